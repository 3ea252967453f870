"""When a round starts, with what, and why not."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from buffer.fate import Fate, Lineage, Status
from buffer.feedback import Feedback
from buffer.records import FeedbackGiven, Release, RoundEnded, RoundPlanned, RoundRequested
from buffer.rounds import Round
from learner.config import LearnerConfig
from learner.plan import MAX_FAILURES, Plan, Quiet, Waiting, plan_round, replayed, shared_out, since_base

CONFIG = LearnerConfig(start_at=3, start_after_s=30.0, max_lessons=4, max_replay=2)


def feedback(number: int, status: Status = "accepted", received: float = 100.0) -> Feedback:
    given = FeedbackGiven(feedback_id=f"f{number}", principal="me", kind="correction", text="an otter")
    return Feedback(given.feedback_id, "me", received, given, Fate(status))


def ended(number: int, verdict: str = "passed", version: int | None = None, parent: int = 0) -> Round:
    planned = RoundPlanned(round=number, parent=parent, lessons=[], seed=1, base="b", config={})
    release = Release(version=version, digest="d", directory="x") if version is not None else None
    return Round(
        planned,
        0.0,
        RoundEnded.model_validate({"round": number, "verdict": verdict, "release": release}),
        0.0,
    )


def plan(
    *given: Feedback,
    rounds: tuple[Round, ...] = (),
    lineage: Lineage | None = None,
    requests: tuple[RoundRequested, ...] = (),
    now: float = 101.0,
) -> Plan | Waiting:
    def quiet(pending: Sequence[Feedback]) -> float:
        return now - max((one.received for one in pending), default=0.0)

    return plan_round(given, rounds, lineage or Lineage(), requests, quiet=quiet, config=CONFIG)


def test_nothing_to_learn() -> None:
    waiting = plan(feedback(1, "received"), feedback(2, "served"))
    assert isinstance(waiting, Waiting)
    assert "nothing to learn" in waiting.why


def test_enough_feedback_starts_a_round_at_once() -> None:
    assert isinstance(plan(feedback(1), feedback(2)), Waiting)
    started = plan(feedback(1), feedback(2), feedback(3))
    assert isinstance(started, Plan)
    assert started.lessons == ("f1", "f2", "f3")
    assert (started.round, started.parent) == (1, 0)


def test_a_little_feedback_starts_one_after_a_pause() -> None:
    assert isinstance(plan(feedback(1), now=129.0), Waiting)
    assert isinstance(plan(feedback(1), now=130.0), Plan)


class Clocks:
    """A wall clock that can be set, a steady one that cannot, and what passes on both."""

    def __init__(self) -> None:
        self.wall, self.steady = 1000.0, 5.0
        self.quiet = Quiet(lambda: self.wall, lambda: self.steady)

    def wait(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds


def test_quiet_is_counted_from_the_last_piece() -> None:
    clocks = Clocks()
    assert clocks.quiet([feedback(1, received=980.0)]) == 20.0, "it was there before the learner"
    clocks.wait(3.0)
    assert clocks.quiet([feedback(1, received=980.0)]) == 23.0
    clocks.wait(3.0)
    assert clocks.quiet([feedback(2, received=1004.0)]) == 2.0
    clocks.wait(180.0)  # a round runs, and nobody looks
    assert clocks.quiet([feedback(3, received=1090.0)]) == 96.0


@pytest.mark.parametrize("step", [-86_400.0, -5.0, 5.0, 86_400.0])
def test_setting_the_learners_clock_changes_nothing_about_the_quiet(step: float) -> None:
    clocks = Clocks()
    clocks.quiet([feedback(1, received=1000.0)])
    clocks.wait(10.0)
    clocks.wall += step
    assert clocks.quiet([feedback(1, received=1000.0)]) == 10.0


@pytest.mark.parametrize("off", [-86_400.0, -40.0, 40.0, 86_400.0])
def test_feedback_by_a_clock_that_is_wrong_waits_as_long_as_any(off: float) -> None:
    clocks = Clocks()
    early = feedback(1, received=clocks.wall)
    clocks.quiet([early])
    clocks.wait(20.0)
    clocks.quiet([early])
    clocks.wait(0.5)
    late = feedback(2, received=clocks.wall + off)
    in_order = sorted([early, late], key=lambda one: one.received)
    assert 0.0 <= clocks.quiet(in_order) <= 0.5
    clocks.wait(29.0)
    assert 29.0 <= clocks.quiet(in_order) <= 29.5


def test_a_request_starts_one_at_once_and_is_answered() -> None:
    asked = RoundRequested(request_id="r", by="op", include=["held"])
    started = plan(feedback(1, "held"), feedback(2, "refused"), requests=(asked,))
    assert isinstance(started, Plan)
    assert started.lessons == ("f1",)
    assert started.requests == ("r",)


def test_a_round_is_bounded_and_rehearses_a_sample() -> None:
    started = plan(*(feedback(n, "served") for n in range(5)), *(feedback(n) for n in range(5, 12)))
    assert isinstance(started, Plan)
    assert started.lessons == ("f5", "f6", "f7", "f8")
    assert len(started.replay) == 2
    assert set(started.replay) < {f"f{n}" for n in range(5)}


def test_every_round_rehearses_another_sample_in_order() -> None:
    earlier = list(range(40))
    samples = [replayed(earlier, 16, number) for number in (1, 2, 1)]
    assert samples[0] == samples[2] != samples[1]
    assert all(sample == sorted(set(sample)) and len(sample) == 16 for sample in samples)
    assert replayed(earlier[:9], 16, 1) == earlier[:9]
    assert replayed(earlier, 0, 1) == []


def rating(feedback_id: str, about: str | None = None, status: Status = "accepted", **more: Any) -> Feedback:
    """Of the completion `about`, or one of its own."""
    said = {"principal": "me", "value": 1.0, "completion_id": about or f"c-{feedback_id}", **more}
    given = FeedbackGiven(feedback_id=feedback_id, kind="rating", **said)
    return Feedback(feedback_id, given.principal, 1.0, given, Fate(status), f"q-{given.completion_id}")


def rehearsed_with(*earlier: Feedback) -> tuple[str, ...]:
    """What a round rehearses after so much."""
    started = plan(*earlier, *(feedback(n) for n in range(3)))
    assert isinstance(started, Plan)
    return started.replay


def test_good_ratings_take_a_quarter_of_what_is_rehearsed_or_what_lessons_leave() -> None:
    config = CONFIG.model_copy(update={"max_replay": 8})
    ratings = [rating(f"r{n}") for n in range(100)]
    lessons = [feedback(n, "served") for n in range(100)]

    def rehearsed(*earlier: Feedback) -> str:
        now = [feedback(n) for n in range(200, 203)]
        made = plan_round([*earlier, *now], (), Lineage(), (), quiet=lambda _: 0.0, config=config)
        assert isinstance(made, Plan)
        return "".join(feedback_id[0] for feedback_id in made.replay)

    assert rehearsed(*ratings, *lessons) == "ffffffrr"
    assert rehearsed(*ratings[:1], *lessons) == "fffffffr"
    assert rehearsed(*ratings, *lessons[:3]) == "fffrrrrr"
    assert rehearsed(*lessons) == "f" * 8


@pytest.mark.parametrize(
    ("status", "stays"), [("accepted", False), ("served", False), ("withdrawn", True), ("skipped", True)]
)
def test_a_good_rating_of_an_answer_that_is_corrected_is_not_rehearsed(status: Status, stays: bool) -> None:
    given = FeedbackGiven(
        feedback_id="f9", principal="me", kind="correction", text="an otter", completion_id="c"
    )
    correction = Feedback("f9", "me", 1.0, given, Fate(status))
    assert ("good" in rehearsed_with(rating("good", "c"), correction)) is stays
    elsewhere = replace(correction, given=given.model_copy(update={"completion_id": "d"}), question="q-c")
    assert ("good" in rehearsed_with(rating("good", "c"), elsewhere)) is stays
    assert "good" in rehearsed_with(rating("good", "c"), replace(elsewhere, question="q-d"))
    assert "good" in rehearsed_with(elsewhere, rating("good", "c")), "an answer that was right by then"


@pytest.mark.parametrize(
    ("later", "rehearsed"),
    [
        (rating("later", "c", "skipped", value=-1.0), ()),
        (rating("later", "c", "received", value=-1.0), ()),
        (rating("later", "c", "withdrawn", value=-1.0), ("good",)),
        (rating("later", "c"), ("later",)),
        (rating("later", "c", "skipped", value=-1.0, choice=1), ("good",)),
        (rating("later", "c", "skipped", value=-1.0, principal="you"), ("good",)),
    ],
)
def test_of_an_answer_s_ratings_by_one_principal_the_latest_counts(
    later: Feedback, rehearsed: tuple[str, ...]
) -> None:
    assert rehearsed_with(rating("good", "c"), later) == rehearsed


def test_a_good_rating_is_rehearsed_and_starts_no_round() -> None:
    good = rating("good")
    waiting = plan(good, now=1000.0)
    assert isinstance(waiting, Waiting)
    assert "nothing to learn" in waiting.why
    started = plan(good, feedback(1), now=1000.0)
    assert isinstance(started, Plan)
    assert (started.lessons, started.replay) == (("f1",), ("good",))


def test_it_waits_for_a_release_on_its_way() -> None:
    some = [feedback(n) for n in range(3)]
    waiting = plan(*some, rounds=(ended(1, version=1),))
    assert isinstance(waiting, Waiting)
    assert "policy 1" in waiting.why
    live = Lineage(live=1, moved_to=(1,), parents={1: 0})
    started = plan(*some, rounds=(ended(1, version=1),), lineage=live)
    assert isinstance(started, Plan)
    assert (started.round, started.parent) == (2, 1)
    rejected = Lineage(parents={1: 0}, rejected={1: "damaged"})
    assert isinstance(plan(*some, rounds=(ended(1, version=1),), lineage=rejected), Plan)
    rolled_back = Lineage(live=0, moved_to=(1, 0), parents={1: 0})
    assert isinstance(plan(*some, rounds=(ended(1, version=1),), lineage=rolled_back), Plan)


def test_it_stops_after_failing_again_and_again_until_asked() -> None:
    some = [feedback(n) for n in range(3)]
    failed = tuple(ended(n + 1, "failed") for n in range(MAX_FAILURES))
    waiting = plan(*some, rounds=failed)
    assert isinstance(waiting, Waiting)
    assert "failed" in waiting.why
    assert waiting.failed
    asked = RoundRequested(request_id="r", by="op")
    assert isinstance(plan(*some, rounds=failed, requests=(asked,)), Plan)


def test_rounds_whose_lessons_were_taken_back_are_no_failures() -> None:
    some = [feedback(n) for n in range(3)]
    failed = [ended(n + 1, "failed") for n in range(MAX_FAILURES)]
    assert failed[0].ended is not None
    failed[0] = replace(failed[0], ended=failed[0].ended.model_copy(update={"taken_back": True}))
    assert isinstance(plan(*some, rounds=tuple(failed)), Plan)


@pytest.mark.parametrize(
    ("lessons", "taught", "rehearsed"), [(1, 2, 7), (2, 4, 5), (3, 6, 3), (4, 7, 2), (16, 7, 2)]
)
def test_what_few_lessons_leave_of_a_step_goes_to_earlier_ones(
    lessons: int, taught: int, rehearsed: int
) -> None:
    config = shared_out(lessons, LearnerConfig(lessons_per_step=7, replay_per_step=2))
    assert (config.lessons_per_step, config.replay_per_step) == (taught, rehearsed)


def test_where_nothing_is_to_be_rehearsed_what_few_lessons_leave_is_left_out() -> None:
    config = shared_out(1, LearnerConfig(lessons_per_step=7, replay_per_step=0))
    assert (config.lessons_per_step, config.replay_per_step) == (2, 0)


def test_the_rounds_of_an_adapter_are_those_since_it_began_with_base() -> None:
    rounds = [ended(1), ended(2, version=1), ended(3, version=2, parent=1)]
    assert since_base(rounds) == rounds[1:]
    assert since_base([*rounds, again := ended(4), then := ended(5, parent=3)]) == [again, then]
    assert since_base([]) == []
