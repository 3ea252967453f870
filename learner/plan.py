"""What the next round is, or why there is none yet. Pure: the view's facts and the clocks come in.

A round starts at `start_at` accepted pieces of feedback, or `start_after_s` seconds after the last one when
any wait, or on request; it continues from the live policy, so it waits for a release that is on its way.
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from buffer.fate import Lineage
from buffer.feedback import Feedback
from buffer.records import RoundRequested
from buffer.rounds import Round
from learner.config import LearnerConfig

T = TypeVar("T")

MOST_ROWS = 2
"""Of a step, about one lesson."""

MAX_FAILURES = 3
"""Rounds that may fail one after another before the learner waits for a person."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """No round now, and why. `idle`: nothing waits, so that only a new record changes it; `failed`: a person
    must look first."""

    why: str
    idle: bool = False
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What a round will learn, rehearse and start from."""

    round: int
    parent: int
    lessons: tuple[str, ...]
    replay: tuple[str, ...]
    requests: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """Progress: `number` of `of` steps are done. `tokens` is what the student read in this one."""

    number: int
    of: int
    loss: float
    tokens: int = 0


class Quiet:
    """How long no feedback has come, whatever happens to the clocks of those who record it and our own.

    A piece came between the look before it was first seen and that one: so much its own time may say, and
    from then on the steady clock counts. `wall` gives Unix seconds, `steady` seconds that never jump.
    """

    def __init__(
        self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic
    ) -> None:
        self._wall, self._steady = wall, steady
        self._looked = self._since = float("-inf")
        self._seen: set[str] = set()

    def __call__(self, pending: Sequence[Feedback]) -> float:
        """Seconds since the latest of those that wait came; to be asked at every look, even if none does."""
        now, wall = self._steady(), self._wall()
        for one in pending:
            if one.feedback_id not in self._seen:
                came = max(now - max(wall - one.received, 0.0), self._looked)
                self._since = max(self._since, came)
        self._seen, self._looked = {one.feedback_id for one in pending}, now
        return now - self._since


def plan_round(
    feedback: Sequence[Feedback],
    rounds: Sequence[Round],
    lineage: Lineage,
    requests: Sequence[RoundRequested],
    *,
    quiet: Callable[[Sequence[Feedback]], float],
    config: LearnerConfig,
) -> Plan | Waiting:
    """Decide from all feedback (oldest first), all rounds, the open requests, and how long it is `Quiet`."""
    wanted = {"accepted", *(status for request in requests for status in request.include)}
    pending = [f for f in feedback if f.fate.status in wanted and not f.rehearsed]
    quiet_s = quiet(pending)
    if not requests:
        waiting = _not_yet(pending, rounds, quiet_s, config)
        if waiting is not None:
            return waiting
    coming = on_its_way(rounds, lineage)
    if coming is not None:
        return Waiting(f"policy {coming} has passed the gate and a server has still to take it up")
    lessons = pending[: config.max_lessons]
    number = rounds[-1].planned.round + 1 if rounds else 1
    return Plan(
        round=number,
        parent=lineage.live,
        lessons=tuple(f.feedback_id for f in lessons),
        replay=tuple(f.feedback_id for f in _rehearsed(feedback, config.max_replay, number)),
        requests=tuple(r.request_id for r in requests),
    )


def _rehearsed(feedback: Sequence[Feedback], count: int, number: int) -> list[Feedback]:
    """Lessons that are served, and good ratings that stand: a quarter at most, or what the lessons leave."""
    rated = _good_answers(feedback)
    served = [f for f in feedback if f.fate.status == "served"]
    lessons = replayed(served, count - min(len(rated), count // 4), number)
    return [*lessons, *replayed(rated, count - len(lessons), number)]


def _good_answers(feedback: Sequence[Feedback]) -> list[Feedback]:
    """Good ratings of answers that were neither corrected nor rated anew, and on whose question no later
    lesson was given."""
    latest: dict[tuple[str, str | None, int], int] = {}
    corrected: set[str | None] = set()
    taught: dict[str | None, int] = {}
    for at, one in enumerate(feedback):
        given, status = one.given, one.fate.status
        if given is None or status == "withdrawn":
            continue
        if given.kind == "rating":
            latest[one.principal, given.completion_id, given.choice] = at
        elif status != "skipped":
            corrected.add(given.completion_id)
            if one.question is not None:
                taught[one.question] = at
    return [
        feedback[at]
        for (_, completion_id, _), at in latest.items()
        if feedback[at].rehearsed
        and completion_id not in corrected
        and taught.get(feedback[at].question, -1) < at
    ]


def replayed(earlier: Sequence[T], count: int, number: int) -> list[T]:
    """What round `number` rehearses: `count` of what was learned before, another sample every round."""
    if len(earlier) <= count:
        return list(earlier)
    sample = random.Random(number).sample(range(len(earlier)), count)  # noqa: S311 - reproducible
    return [earlier[index] for index in sorted(sample)]


def steps_for(lessons: int, config: LearnerConfig) -> int:
    """Optimiser steps of a round with so many lessons."""
    return min(config.max_steps, max(config.min_steps, config.steps_per_lesson * lessons))


def shared_out(lessons: int, config: LearnerConfig) -> LearnerConfig:
    """The rows of a step in a round with so many lessons: what few of them leave goes to earlier ones, which
    a step full of one lesson would displace, or is left out where nothing is to be rehearsed."""
    taught = min(config.lessons_per_step, MOST_ROWS * lessons)
    left = config.lessons_per_step - taught
    rehearsed = config.replay_per_step + left if config.replay_per_step else 0
    return config.model_copy(update={"lessons_per_step": taught, "replay_per_step": rehearsed})


def on_its_way(rounds: Sequence[Round], lineage: Lineage) -> int | None:
    """A release that grew from the live policy and that no server has taken up or turned down yet."""
    for r in reversed(rounds):
        release = r.release
        if release is not None and r.planned.parent == lineage.live and release.version > lineage.live:
            known = release.version in lineage.rejected or lineage.ever_served(release.version)
            return None if known else release.version
    return None


def since_base(rounds: Sequence[Round]) -> Sequence[Round]:
    """The rounds of the adapter that is filled now: from the last on that began with base."""
    return rounds[max((i for i, r in enumerate(rounds) if r.planned.parent == 0), default=0) :]


def failures_in_a_row(rounds: Sequence[Round]) -> int:
    """How many of the latest rounds ended by an error of the learner's own."""
    count = 0
    for r in reversed(rounds):
        if r.ended is None or r.ended.verdict != "failed":
            break
        count += not r.ended.taken_back
    return count


def _not_yet(
    pending: Sequence[Feedback], rounds: Sequence[Round], quiet_s: float, config: LearnerConfig
) -> Waiting | None:
    if not pending:
        return Waiting("nothing to learn: no accepted feedback is waiting", idle=True)
    if failures_in_a_row(rounds) >= MAX_FAILURES:
        return Waiting(
            f"the last {MAX_FAILURES} rounds failed; see their reasons, then ask for one with"
            " POST /v1/learning/rounds",
            failed=True,
        )
    if len(pending) < config.start_at and quiet_s < config.start_after_s:
        return Waiting(
            f"{len(pending)} of {config.start_at} pieces of feedback are there; a round starts with these"
            f" {config.start_after_s:.0f} s after the last one"
        )
    return None
