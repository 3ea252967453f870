"""The gate's verdict, one reason at a time."""

import pytest

from learner.config import GateConfig
from learner.gate import Evaluation, KeptResult, LessonResult, degenerate, full, verdict


def lesson(asked: bool = True, held_out: int = 2) -> LessonResult:
    return LessonResult(
        feedback_id="f", asked=asked, held_out=held_out, held_out_of=2, answer="an otter", before="a cat"
    )


GOOD = Evaluation(lessons=[lesson(), lesson()], kl_to_parent=0.05)


def test_a_good_candidate_passes() -> None:
    assert verdict(GOOD, GateConfig()) == []


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"lessons": []}, "nothing to learn"),
        ({"lessons": [lesson(asked=False), lesson(asked=False)]}, "of its lessons"),
        ({"lessons": [lesson(held_out=0), lesson(held_out=0)]}, "held-out"),
        ({"kept": [KeptResult(feedback_id="e", parent=True, candidate=False)]}, "earlier lessons"),
        ({"kl_to_parent": 5.0}, "nats per token"),
        ({"kl_to_parent": float("nan")}, "nats per token"),
        ({"degenerate": 0.9, "parent_degenerate": 0.1}, "loop"),
    ],
)
def test_each_failing_is_named(change: dict[str, object], word: str) -> None:
    reasons = verdict(GOOD.model_copy(update=change), GateConfig())
    assert len(reasons) == 1
    assert word in reasons[0]


def test_an_earlier_lesson_that_the_parent_had_lost_already_does_not_count() -> None:
    kept = [KeptResult(feedback_id="e", parent=False, candidate=False)]
    assert verdict(GOOD.model_copy(update={"kept": kept}), GateConfig()) == []


def test_loops_and_silence_are_degenerate() -> None:
    assert degenerate([], stops={2})
    assert degenerate([2], stops={2})
    assert degenerate([5, 6] * 20, stops={2})
    assert not degenerate([*range(10, 40), 2], stops={2})


def test_an_adapter_is_full_when_round_after_round_displaces_what_it_held() -> None:
    def round_(kept: int, lost: int, learned: int) -> Evaluation:
        results = [
            KeptResult(feedback_id=f"k{n}", parent=True, candidate=n < kept) for n in range(kept + lost)
        ]
        return Evaluation(lessons=[lesson()] * learned, kept=results)

    roomy, crowded = round_(kept=8, lost=1, learned=8), round_(kept=4, lost=4, learned=8)
    assert full([]) is None
    assert full([crowded]) is None
    assert full([crowded, roomy]) is None
    assert full([roomy, crowded, Evaluation(lessons=[lesson()])]) is None
    told = full([roomy, crowded, crowded])
    assert told is not None
    assert "taught 16 lessons and lost 8" in told
    assert "rank" in told
