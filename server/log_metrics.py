"""What the log and the disk say of the whole loop, as metrics: the relay and the learner have no endpoint.

Worked out from the view at every scrape, so it survives a restart and is the same on every replica.
"""

import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from pydantic import BaseModel, ValidationError

from buffer.backend import JOURNAL
from buffer.client import Buffer
from buffer.feedback import by_status, pending
from buffer.log import BufferError
from buffer.records import LearnerState, Positions
from buffer.rounds import Alias, Round, made_by
from buffer.view import View

VERDICTS = ("passed", "refused", "failed")


@dataclass(frozen=True, slots=True)
class Family:
    """One metric as its readers know it; `name` is without the prefix `apprentice_`."""

    name: str
    type: Literal["counter", "gauge", "histogram"]
    about: str
    labels: tuple[str, ...] = ()


FAMILIES = (
    Family("feedback_status", "gauge", "Feedback by status.", ("status",)),
    Family("feedback_pending", "gauge", "Feedback that waits to be judged or learned."),
    Family(
        "feedback_left_out", "gauge",
        "Feedback that the learner skipped or quarantined, by its reason.", ("status", "reason"),
    ),
    Family("rounds", "gauge", "Rounds by verdict; the one under way is `running`.", ("verdict",)),
    Family("rounds_without_release", "gauge", "Rounds refused or failed since the last one that passed."),
    Family("round_running_seconds", "gauge", "Since the round under way was planned; 0 when none is."),
    Family("last_round_verdict", "gauge", "1 for the verdict of the last round that ended.", ("verdict",)),
    Family("last_round_end_timestamp_seconds", "gauge", "When the last round ended, in Unix time."),
    Family("last_round_seconds", "gauge", "From plan to verdict of the last round that ended."),
    Family("measured_phase_seconds", "gauge", "What each phase of the last measured round took.", ("phase",)),
    Family("measured_steps", "gauge", "Optimiser steps of the last measured round."),
    Family("measured_loss", "gauge", "Loss of its `first` and `last` step, nats per token.", ("step",)),
    Family("measured_lessons", "gauge", "Lessons that it was to learn."),
    Family("measured_asked_ratio", "gauge", "Share of its lessons that the candidate answers as asked."),
    Family("measured_held_out_ratio", "gauge", "Share of phrasings that training never saw, answered."),
    Family("measured_kept_ratio", "gauge", "Share of the earlier lessons that the parent answers, kept."),
    Family("measured_leaked_ratio", "gauge", "Share of the same questions about others, answered so too."),
    Family("measured_kl_to_parent", "gauge", "KL(parent || candidate), nats per token on general prompts."),
    Family("measured_drift", "gauge", "KL(base || candidate), nats per token on general prompts."),
    Family("measured_degenerate_ratio", "gauge", "Share of general answers that are empty or loop."),
    Family("policy_drift", "gauge", "KL(base || live policy) as its round measured it; 0 for the base."),
    Family("log_policy_version", "gauge", "The policy that the log says is live."),
    Family("releases_rejected", "gauge", "Releases that some server refused to serve."),
    Family("learner_state", "gauge", "1 for the state that the learner reported last.", ("state",)),
    Family("learner_report_age_seconds", "gauge", "Since the learner was last heard of."),
    Family("learner_step", "gauge", "The step that it reported last; 0 outside of training."),
    Family("learner_steps", "gauge", "Of how many; 0 outside of training."),
    Family("learner_loss", "gauge", "Loss of that step, nats per token; absent outside of training."),
    Family("learning_paused", "gauge", "1 while learning is paused by an operator."),
    Family(
        "records_passed_over", "gauge",
        "Records that the view could not read, by type: of a newer release, or damaged.", ("type",),
    ),
    Family(
        "view_lag_records", "gauge",
        "Records of the log not read yet, of the partition that lags most; absent while it cannot be asked.",
    ),
    Family("log_pending_records", "gauge", "Records that wait for the broker."),
    Family("log_pending_seconds", "gauge", "Age of the oldest record that waits for the broker."),
    Family("log_set_aside_records", "gauge", "Records that the broker refused for good."),
    Family(
        "log_unreadable_messages", "counter",
        "Messages on the log's topics that were passed over: they are no records.",
    ),
    Family("journal_bytes", "gauge", "Size of the journal's files."),
    Family("disk_free_bytes", "gauge", "Free space where the state directory is."),
    Family("disk_bytes", "gauge", "Size of the file system where the state directory is."),
)  # fmt: skip

Sample = tuple[str, Sequence[str], float]
"""Name, label values, value."""


class LogCollector(Collector):
    """The families above. `state` is the state directory, None where nothing is kept on disk."""

    def __init__(self, buffer: Buffer, alias: str, state: Path | None) -> None:
        self._buffer = buffer
        self._alias = alias
        self._state = state

    def collect(self) -> Iterable[Metric]:
        made: dict[str, Any] = {f.name: _empty(f) for f in FAMILIES}
        for name, labels, value in self._samples(time.time()):
            made[name].add_metric(labels, value)
        return list(made.values())

    def describe(self) -> Iterable[Metric]:
        return []

    def _samples(self, now: float) -> Iterator[Sample]:
        view = self._buffer.view
        rounds, alias = view.rounds(), view.alias(self._alias)
        yield from _feedback(view)
        yield from _rounds(rounds, now)
        yield from _policies(rounds, alias)
        yield "releases_rejected", (), len(view.rejected())
        yield from _learner(view, now)
        types = Counter(t if t.startswith("apprentice.") else "other" for _, t, _ in view.poison())
        for type_, count in types.items():
            yield "records_passed_over", (type_,), count
        yield from _log(self._buffer, now)
        if self._state is not None:
            yield from _disk(self._state)


def _feedback(view: View) -> Iterator[Sample]:
    counted = view.count_feedback()
    for status, count in by_status(counted).items():
        yield "feedback_status", (status,), count
    yield "feedback_pending", (), pending(counted)
    unfit: Counter[tuple[str, str]] = Counter()
    for group, count in counted.items():
        if group.status in ("skipped", "quarantined"):
            unfit[group.status, group.reason] += count
    for labels, count in unfit.items():
        yield "feedback_left_out", labels, count


def _rounds(rounds: Sequence[Round], now: float) -> Iterator[Sample]:
    verdicts = [r.ended.verdict if r.ended is not None else "running" for r in rounds]
    for verdict in (*VERDICTS, "running"):
        yield "rounds", (verdict,), verdicts.count(verdict)
    ended = [r for r in rounds if r.ended is not None]
    in_vain = 0
    for one in ended:
        in_vain = 0 if one.release is not None else in_vain + 1
    yield "rounds_without_release", (), in_vain
    open_ = next((r for r in rounds if r.ended is None), None)
    yield "round_running_seconds", (), max(now - open_.planned_at, 0.0) if open_ is not None else 0.0
    if not ended:
        return
    last = ended[-1]
    for verdict in VERDICTS:
        yield "last_round_verdict", (verdict,), last.ended is not None and last.ended.verdict == verdict
    if last.ended_at is not None:
        yield "last_round_end_timestamp_seconds", (), last.ended_at
        yield "last_round_seconds", (), max(last.ended_at - last.planned_at, 0.0)
    if measured := next((m for r in reversed(ended) if (m := Measured.of(r)) is not None), None):
        yield from measured.samples()


def _policies(rounds: Sequence[Round], alias: Alias) -> Iterator[Sample]:
    yield "log_policy_version", (), alias.version
    made = made_by(rounds, alias.version)
    if alias.version == 0:
        yield "policy_drift", (), 0.0
    elif made is not None and (measured := Measured.of(made)) is not None:
        yield "policy_drift", (), measured.drift


def _learner(view: View, now: float) -> Iterator[Sample]:
    yield "learning_paused", (), view.paused() is not None
    if (heard := view.report()) is None:
        return
    report, at = heard
    for state in get_args(LearnerState):
        yield "learner_state", (state,), state == report.state
    yield "learner_report_age_seconds", (), max(now - at, 0.0)
    yield "learner_step", (), report.step or 0
    yield "learner_steps", (), report.steps or 0
    if report.loss is not None:
        yield "learner_loss", (), report.loss


def _log(buffer: Buffer, now: float) -> Iterator[Sample]:
    """Where records go on to a broker: the gateway shares the relay's journal, not its process."""
    try:
        backlog = buffer.log.backlog()
    except BufferError:
        return
    yield "log_pending_records", (), backlog.pending
    oldest = backlog.oldest
    yield "log_pending_seconds", (), max(now - oldest.timestamp(), 0.0) if oldest is not None else 0.0
    yield "log_set_aside_records", (), backlog.set_aside
    yield "log_unreadable_messages", (), backlog.unreadable
    try:
        ends = buffer.log.ends()
    except BufferError:
        return
    yield "view_lag_records", (), lag(buffer.view.positions(), ends)


def lag(positions: Positions, ends: Positions) -> int:
    """How far the partition that lags most is behind its end."""
    return max(
        (
            end - positions.get(stream, {}).get(partition, 0)
            for stream, partitions in ends.items()
            for partition, end in partitions.items()
        ),
        default=0,
    )


def _disk(state: Path) -> Iterator[Sample]:
    files = [file for suffix in ("", "-wal") if (file := state / f"{JOURNAL}{suffix}").exists()]
    yield "journal_bytes", (), sum(file.stat().st_size for file in files)
    disk = shutil.disk_usage(state)
    yield "disk_free_bytes", (), disk.free
    yield "disk_bytes", (), disk.total


class _Lesson(BaseModel):
    asked: bool
    held_out: int
    held_out_of: int
    leaked: int = 0
    leaked_of: int = 0


class _Kept(BaseModel):
    parent: bool
    candidate: bool


class Measured(BaseModel):
    """What of a round's evaluation is told here; the learner, which is not imported, writes it."""

    lessons: list[_Lesson]
    kept: list[_Kept]
    drift: float
    kl_to_parent: float
    degenerate: float
    loss_first: float
    loss_last: float
    steps: int
    seconds: dict[str, float]

    @classmethod
    def of(cls, one: Round) -> "Measured | None":
        """None when the round was not measured, or by a learner of another release."""
        try:
            return cls.model_validate(one.ended.evaluation if one.ended is not None else {})
        except ValidationError:
            return None

    def samples(self) -> Iterator[Sample]:
        for phase, seconds in self.seconds.items():
            yield "measured_phase_seconds", (phase,), seconds
        yield "measured_steps", (), self.steps
        yield "measured_loss", ("first",), self.loss_first
        yield "measured_loss", ("last",), self.loss_last
        yield "measured_lessons", (), len(self.lessons)
        known = [one for one in self.kept if one.parent]
        shares = {
            "asked": (sum(one.asked for one in self.lessons), len(self.lessons)),
            "held_out": (
                sum(one.held_out for one in self.lessons),
                sum(one.held_out_of for one in self.lessons),
            ),
            "kept": (sum(one.candidate for one in known), len(known)),
            "leaked": (sum(one.leaked for one in self.lessons), sum(one.leaked_of for one in self.lessons)),
        }
        for name, (part, whole) in shares.items():
            if whole:
                yield f"measured_{name}_ratio", (), part / whole
        yield "measured_kl_to_parent", (), self.kl_to_parent
        yield "measured_drift", (), self.drift
        yield "measured_degenerate_ratio", (), self.degenerate


def _empty(family: Family) -> GaugeMetricFamily | CounterMetricFamily:
    made = CounterMetricFamily if family.type == "counter" else GaugeMetricFamily
    return made(f"apprentice_{family.name}", family.about, labels=family.labels)
