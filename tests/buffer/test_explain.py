import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Literal

import pytest

from buffer.explain import Step, explain, known
from buffer.memory import MemoryLog
from buffer.next_step import TO_DO
from buffer.records import (
    AliasMoved,
    Choice,
    Decision,
    ExchangeClosed,
    ExchangeOpened,
    FeedbackGiven,
    FeedbackTriaged,
    FeedbackWithdrawn,
    LearnerReported,
    LearnerState,
    LearningSwitched,
    Message,
    Payload,
    Record,
    Release,
    ReleaseRejected,
    RoundEnded,
    RoundPlanned,
)
from buffer.view import View
from tests.buffer.conftest import START

ASKED = ExchangeOpened(
    completion_id="c-1", principal="ann", conversation="x", endpoint="chat", policy=0,
    request={"messages": [{"role": "user", "content": "Who runs\nthe bakery?"}]},
)  # fmt: skip
ANSWERED = ExchangeClosed(
    completion_id="c-1", status="complete",
    choices=[Choice(message=Message(role="assistant", content="Nobody does."))],
)  # fmt: skip
GIVEN = FeedbackGiven(
    feedback_id="fb-1", principal="ann", kind="correction", completion_id="c-1", text="Ida Holm does."
)


class Story:
    """What is written in order, a second apart, and how it is explained."""

    def __init__(self, *payloads: Payload) -> None:
        self.log, self.view, self.seconds = MemoryLog(), View(":memory:"), 0
        self.write(*payloads)

    def write(self, *payloads: Payload) -> list[Record]:
        records = []
        for payload in payloads:
            time = START + timedelta(seconds=self.seconds)
            records.append(Record.of(payload, time=time, randomness=os.urandom(10)))
            self.seconds += 1
        self.append(records)
        return records

    def append(self, records: list[Record]) -> None:
        self.log.append(records).result()
        self.view.apply(*self.log.read(self.view.positions()))

    def explain(self, feedback_id: str = "fb-1", *, later_s: float = 1) -> tuple[list[Step], str]:
        feedback = self.view.feedback(feedback_id)
        assert feedback is not None
        now = START.timestamp() + self.seconds + later_s
        return explain(known(self.view, feedback, "apprentice", now))

    def what(self) -> list[str]:
        return [step.what for step in self.explain()[0]]

    def next(self) -> str:
        return self.explain()[1]


@pytest.fixture
def story() -> Iterator[Story]:
    """Feedback that has been accepted by a learner that is there."""
    one = Story(ASKED, ANSWERED, GIVEN, judged("accepted"), reported("waiting", "1 of 8 are there"))
    yield one
    one.view.close()


def judged(status: Literal["accepted", "quarantined", "skipped"], reason: str = "") -> FeedbackTriaged:
    detail = f"in words: {reason}" if reason else ""
    return FeedbackTriaged(
        decisions=[Decision(feedback_id="fb-1", status=status, reason=reason, detail=detail)]
    )


def reported(state: LearnerState, why: str, **more: Any) -> LearnerReported:
    return LearnerReported(state=state, why=why, **more)


def planned(number: int, *lessons: str, parent: int = 0) -> RoundPlanned:
    return RoundPlanned(
        round=number, parent=parent, lessons=list(lessons or ["fb-1"]), seed=1, base="b" * 64, config={}
    )


def result(*, asked: bool) -> dict[str, Any]:
    one = {"feedback_id": "fb-1", "asked": asked, "held_out": 2, "held_out_of": 3}
    return {"lessons": [one | {"answer": "Ida Holm", "before": "Nobody"}]}


def passed(number: int, evaluation: dict[str, Any] | None = None) -> RoundEnded:
    release = Release(version=number, digest="d" * 64, directory=f"{number:06d}-{'d' * 12}")
    evaluation = result(asked=True) if evaluation is None else evaluation
    return RoundEnded(round=number, verdict="passed", evaluation=evaluation, release=release)


def moved(version: int, epoch: int, why: Literal["release", "promote", "rollback"] = "release") -> AliasMoved:
    return AliasMoved(alias="apprentice", version=version, epoch=epoch, why=why, by="root")


def test_the_way_to_the_live_policy_is_told_in_order_with_times(story: Story) -> None:
    story.write(planned(1, "fb-1", "fb-2"), passed(1), moved(1, 0))
    steps, next_ = story.explain()
    assert [step.what for step in steps] == [
        "answered", "received", "accepted", "planned", "passed", "served",
    ]  # fmt: skip
    start = START.timestamp()
    assert [step.time for step in steps if step.time is not None] == [
        start + s for s in (0, 2, 3, 5, 6, 7)
    ]  # fmt: skip
    why = {step.what: step.why for step in steps}
    assert "policy 0" in why["answered"] and "“Who runs the bakery?”: “Nobody does.”" in why["answered"]
    assert (
        "from ann" in why["received"] and "c-1" in why["received"] and "“Ida Holm does.”" in why["received"]
    )
    assert "with 1 others, from policy 0" in why["planned"]
    assert "policy 1" in why["passed"] and "2 of 3 other wordings" in why["passed"]
    assert "before: “Nobody”, after: “Ida Holm”" in why["passed"]
    assert "root made policy 1 live" in why["served"]
    assert next_ == "nothing: the live policy has learned it"


def test_what_waits_says_for_whom() -> None:
    story = Story(GIVEN)
    assert "record of the answer" in story.next()
    story.write(ASKED)
    assert "no learner has been heard of" in story.next()
    story.write(reported("training", "x", round=4, step=3, steps=9))
    assert "training (round 4, step 3 of 9)" in story.next()
    story.view.close()


def test_a_rating_waits_for_the_end_of_its_answer() -> None:
    story = Story(ASKED, GIVEN.model_copy(update={"kind": "rating", "text": None, "value": 1.0}))
    assert "record of the answer" in story.next()
    story.write(ANSWERED)
    assert "no learner" in story.next()
    story.view.close()


def test_accepted_feedback_says_why_no_round_takes_it(story: Story) -> None:
    assert "1 of 8 are there" in story.next()
    assert "601 s" in story.explain(later_s=600)[1]
    story.write(LearningSwitched(paused=True, by="root"))
    assert "paused by root" in story.next() and "resume" in story.next()
    story.write(LearningSwitched(paused=False, by="root"), reported("failed", "out of memory"))
    assert "failed: out of memory" in story.next()


@pytest.mark.parametrize("reason", [*TO_DO, "a_newer_reason"])
@pytest.mark.parametrize("decision", ["skipped", "quarantined"])
def test_what_is_not_taken_says_why_and_what_to_do(
    decision: Literal["skipped", "quarantined"], reason: str
) -> None:
    story = Story(ASKED, ANSWERED, GIVEN, judged(decision, reason))
    steps, next_ = story.explain()
    assert (steps[-1].what, steps[-1].why) == (decision, f"in words: {reason} ({reason})")
    assert next_
    story.view.close()


def test_a_refused_round_says_why_and_how_to_ask_again(story: Story) -> None:
    ended = RoundEnded(round=1, verdict="refused", reasons=["forgot"], evaluation=result(asked=False))
    story.write(planned(1), ended)
    steps, next_ = story.explain()
    assert steps[-1].what == "refused" and "forgot; this lesson was not answered" in steps[-1].why
    assert '{"include": ["refused"]}' in next_


def test_a_failed_round_decides_nothing(story: Story) -> None:
    story.write(planned(1), RoundEnded(round=1, verdict="failed", reasons=["no memory"]))
    assert "no memory; that decides nothing" in story.explain()[0][-1].why
    assert "a round takes it" in story.next()


def test_a_release_that_a_server_refused_says_so(story: Story) -> None:
    story.write(planned(1), passed(1), ReleaseRejected(version=1, why="its probe differs", by="server"))
    assert story.what()[-2:] == ["passed", "rejected"]
    assert "its probe differs" in story.explain()[0][-1].why


def test_after_a_rollback_it_says_how_to_roll_forward(story: Story) -> None:
    story.write(planned(1), passed(1), moved(1, 0), moved(0, 1, "rollback"))
    assert story.what()[-2:] == ["served", "rolled_back"]
    assert "apprentice policies promote 1" in story.next() and '"held"' in story.next()
    story.write(moved(1, 2, "promote"))
    assert story.what()[-1] == "served"


def test_a_policy_that_grew_from_its_own_still_serves_it(story: Story) -> None:
    story.write(planned(1), passed(1), moved(1, 0), planned(2, "fb-2", parent=1), passed(2, {}), moved(2, 1))
    assert story.what()[-1] == "served", "nothing replaced it"
    assert story.next().startswith("nothing")


def test_what_serves_without_having_learned_it_says_so(story: Story) -> None:
    story.write(planned(1), passed(1, result(asked=False)), moved(1, 0))
    assert "passed without this lesson" in story.next()


def test_what_a_later_round_lost_is_told(story: Story) -> None:
    kept = {"kept": [{"feedback_id": "fb-1", "parent": True, "candidate": False}]}
    story.write(planned(1), passed(1), moved(1, 0), planned(2, "fb-2", parent=1), passed(2, kept))
    assert "lost" not in story.what()
    story.write(moved(2, 1))
    assert "lost" in story.what() and "lost it in round 2" in story.next()


def test_a_later_correction_is_named(story: Story) -> None:
    story.write(GIVEN.model_copy(update={"feedback_id": "fb-2", "text": "Jo does."}))
    steps, next_ = story.explain()
    assert steps[-1].what == "superseded" and "fb-2" in steps[-1].why and "explain fb-2" in next_


def test_a_withdrawal_says_by_whom(story: Story) -> None:
    story.write(FeedbackWithdrawn(feedback_id="fb-1", by="root"))
    assert (story.explain()[0][-1].what, story.explain()[0][-1].why) == ("withdrawn", "by root")
    assert story.next().startswith("nothing")


def test_of_what_was_erased_nothing_is_quoted(story: Story) -> None:
    story.write(planned(1), passed(1), moved(1, 0))
    (record,) = [r for r in story.log.read({})[0] if r.type == GIVEN.type]
    story.append([record.tombstone(START + timedelta(seconds=60))])
    steps, _ = story.explain(later_s=100)
    assert (steps[-1].what, steps[-1].time) == ("erased", START.timestamp() + 60)
    assert not any("Ida" in step.why or "Nobody" in step.why for step in steps)
