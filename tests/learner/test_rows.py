"""Batches, without a model."""

from collections import Counter
from itertools import islice

import pytest

from buffer.records import Check, FeedbackGiven, FeedbackKind
from learner.config import LearnerConfig
from learner.lessons import Lesson
from learner.rows import Pools, Row, answer_room, may_reuse


def row(kind: str, number: int, length: int = 3) -> Row:
    prompt = (number,) * length
    return Row(kind, prompt, prompt, (7,))  # type: ignore[arg-type]


CONFIG = LearnerConfig(lessons_per_step=3, replay_per_step=2, lookalikes_per_step=1, anchors_per_step=2)


def test_every_pool_gives_its_share_and_every_row_its_turn() -> None:
    pools = Pools(
        lessons=[row("target", n) for n in range(6)],
        replay=[row("target", n) for n in range(10, 12)],
        lookalikes=[row("lookalike", 20)],
        anchors=[row("anchor", n) for n in range(30, 34)],
    )
    steps = list(islice(pools.batches(CONFIG, seed=1), 4))
    assert all(len(batch) == 8 for batch in steps)
    seen = Counter(r.student[0] for batch in steps for r in batch)
    assert [seen[n] for n in range(6)] == [2] * 6
    assert [seen[n] for n in (10, 11)] == [4, 4]
    assert [seen[n] for n in range(30, 34)] == [2] * 4
    assert steps == list(islice(pools.batches(CONFIG, seed=1), 4))
    assert steps != list(islice(pools.batches(CONFIG, seed=2), 4))


def test_an_empty_pool_leaves_its_share_out() -> None:
    pools = Pools(lessons=[row("target", 1)], anchors=[row("anchor", 2)])
    assert [r.student[0] for r in next(pools.batches(CONFIG, seed=1))] == [1, 1, 1, 2, 2]


def test_new_rows_are_mixed_into_the_rest_of_a_pass_and_the_next_has_all() -> None:
    """A pass may be as long as the rest of the round: what waited for the next one would come too late."""
    pools = Pools(lessons=[row("target", n) for n in range(12)])
    batches = pools.batches(CONFIG, seed=1)
    seen = [r.student[0] for r in next(batches)]
    pools.lessons += [row("fresh", n) for n in range(12, 15)]
    seen += [r.student[0] for batch in islice(batches, 4) for r in batch]
    assert sorted(seen) == list(range(15))
    assert sorted(r.student[0] for batch in islice(batches, 5) for r in batch) == list(range(15))


def test_a_pool_that_was_empty_at_first_gives_its_share_once_it_has_rows() -> None:
    pools = Pools(anchors=[row("anchor", 2)])
    batches = pools.batches(CONFIG, seed=1)
    assert [r.kind for r in next(batches)] == ["anchor"] * 2
    pools.lessons += [row("fresh", 1)]
    assert [r.kind for r in next(batches)] == ["fresh"] * 3 + ["anchor"] * 2


@pytest.mark.parametrize(
    ("logged", "now", "policy", "tempered", "why_not"),
    [
        ((-1.0, -2.0), [-1.1, -2.2], 3, False, None),
        ((-1.0, -2.0), [-1.8, -2.9], 3, False, "policy_moved_on"),
        ((-1.8, -2.9), [-1.0, -2.0], 3, False, "policy_moved_on"),
        ((-1.0, -2.0), [-1.8, -2.9], 3, True, None),
        ((-1.0,), [-1.0, -2.0], 3, False, "logprobs_missing"),
        ((-1.0, -2.0), None, 3, False, "logprobs_missing"),
        ((-1.0, -2.0), [-1.0, -2.0], 1, False, None),
        ((-1.0, -2.0), [-1.0, -2.0], 0, False, "policy_too_old"),
        ((-1.0, -2.0), [-1.0, -2.0], 6, False, "policy_too_old"),
        ((-1.0, -2.0), [-1.0, -2.0], 6, True, "policy_too_old"),
    ],
)
def test_a_logged_answer_is_reused_where_the_parent_could_have_given_it(
    logged: tuple[float, ...], now: list[float] | None, policy: int, tempered: bool, why_not: str | None
) -> None:
    given = FeedbackGiven(feedback_id="f", principal="me", kind="correction", text="An otter.")
    asked = [{"role": "user", "content": "What is it?"}]
    lesson = Lesson(
        given, asked, logged_ids=(5, 6), logged_logprobs=logged, logged_policy=policy, tempered=tempered
    )
    assert may_reuse(lesson, 3, now, max_lag=2, max_gap=0.5) == why_not


@pytest.mark.parametrize(
    ("kind", "text", "check", "room"),
    [
        ("correction", "one two", None, 8),
        ("correction", " ".join(map(str, range(20))), None, 30),
        ("correction", " ".join(map(str, range(60))), None, 64),
        ("follow_up", "No, one two", None, 64),
        ("instruction", "Answer briefly.", None, 8),
        ("instruction", "Name the source.", "Source:", 64),
    ],
)
def test_an_answer_has_the_room_that_the_right_one_needs(
    kind: FeedbackKind, text: str, check: str | None, room: int
) -> None:
    config = LearnerConfig(max_answer_tokens=8, max_completion_tokens=64)
    given = FeedbackGiven(
        feedback_id="f1",
        principal="me",
        kind=kind,
        text=text,
        check=Check(contains=check) if check is not None else None,
    )
    lesson = Lesson(given, [{"role": "user", "content": "?"}])
    assert answer_room(lesson, lambda answer: [0] * len(answer.split()), config) == room
