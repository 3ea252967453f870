"""Whether the system serves and learns, in one sentence, and what is to be done about it. Pure.

`what_to_do` judges `Facts`, gathered from the engine, the log, the view and the samples.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from buffer.checkup import LOW_BYTES, NEARLY_FULL, TOO_LOW_BYTES
from buffer.log import Backlog, Space
from buffer.rounds import Round
from server.errors import ReleaseForeign

Level = Literal["bad", "warn", "note"]
Action = Literal["resume", "learn-held"]
"""What a page can offer a button for."""
LEVELS: tuple[Level, ...] = ("bad", "warn", "note")

BACKLOG_S = 60.0
"""A relay at work is never so late."""
LAG_RECORDS = 1000
REFUSED_ROUNDS = 2
"""In a row: one refused round is what the gate is for."""


@dataclass(frozen=True, slots=True)
class Learner:
    """What `GET /v1/learning` says of the learner; `state` is None before any was heard of."""

    state: str | None = None
    why: str = ""
    heard: float | None = None
    round: int | None = None
    step: int | None = None
    steps: int | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known now. Times are Unix seconds, and None where the beginning is not known."""

    now: float
    policy: str | None
    """The live policy, where it answers here."""
    engine: Literal["starting", "ready", "down"] = "ready"
    engine_why: str = ""
    engine_hint: str = ""
    engine_since: float | None = None
    not_ready: str | None = None
    """Why the live policy does not answer, apart from the engine."""
    unreadable: str | None = None
    """Why the log cannot be read, so that what is known may be old."""
    lag: int = 0
    """Records of the log that the view has not read yet."""
    writable: bool = True
    unwritable_since: float | None = None
    space: Space = field(default_factory=Space)
    backlog: Backlog = field(default_factory=Backlog)
    passed_over: Mapping[str, int] = field(default_factory=dict)
    """Records that the view could not read, by type."""
    learner: Learner = Learner()
    paused_by: str | None = None
    paused_at: float | None = None
    foreign: ReleaseForeign | None = None
    """Why this server, as it is set up, will never serve what the others may."""
    waits_for: Mapping[str, str] = field(default_factory=dict)
    """Policies that are not on this machine, or cannot be read here, and why."""
    rounds: Sequence[Round] = ()
    held: int = 0
    drift: float | None = None
    """Of the live policy from base, nats per token."""
    round_limit: float | None = None
    """How far its round was allowed to move, in the same unit."""


@dataclass(frozen=True, slots=True)
class Todo:
    """Something that is wrong and the next step. `code` is stable."""

    level: Level
    code: str
    what: str
    do: str
    since: float | None = None
    action: Action | None = None


def what_to_do(facts: Facts) -> list[Todo]:
    """Everything that asks for a person, worst first; nothing when all is well."""
    found = [*_serving(facts), *_log(facts), *_learner(facts), *_policies(facts)]
    return sorted(found, key=lambda todo: LEVELS.index(todo.level))


def sentence(facts: Facts) -> str:
    """Whether it serves, and whether it learns."""
    if facts.engine != "ready":
        serves = "The model is starting" if facts.engine == "starting" else "Not serving: vLLM is down"
    elif facts.policy is None:
        serves = "Not serving: the live policy is not loaded"
    elif not facts.writable:
        serves = f"Serving {facts.policy}, but nothing can be recorded"
    else:
        serves = f"Serving {facts.policy}"
    return f"{serves}; {_learns(facts)}."


def _learns(facts: Facts) -> str:
    learner = facts.learner
    if facts.paused_by is not None:
        return f"learning is paused by {facts.paused_by}"
    progress = f", step {learner.step} of {learner.steps}" if learner.steps else ""
    match learner.state:
        case None:
            return "nothing learns: no learner has been heard of"
        case "silent" | "failed" | "stopped":
            return f"nothing learns: the learner is {learner.state}"
        case "waiting" | "starting" | "paused":
            return f"the learner is {learner.state}"
        case _:
            return f"{learner.state} round {learner.round}{progress}"


def _serving(facts: Facts) -> Iterator[Todo]:
    doctor = facts.engine_hint or "`apprentice doctor`, and logs/vllm.log in the state directory"
    if facts.engine == "down":
        yield Todo("bad", "engine_down", f"vLLM is down: {facts.engine_why}", doctor, facts.engine_since)
    elif facts.engine == "starting":
        yield Todo(
            "warn", "engine_starting", f"the model is starting: {facts.engine_why}",
            facts.engine_hint or "wait; logs/vllm.log in the state directory shows how far it is",
            facts.engine_since,
        )  # fmt: skip
    elif facts.policy is None:
        why = facts.not_ready or "it is being loaded"
        yield Todo(
            "bad", "policy_not_served", f"the live policy does not answer: {why}",
            "`apprentice policies`: promote another one, or roll back",
        )  # fmt: skip


def _log(facts: Facts) -> Iterator[Todo]:
    space, backlog = facts.space, facts.backlog
    if not facts.writable:
        yield Todo(
            "bad", "log_not_writable", "the log takes no records: feedback is refused, answers are not kept",
            "free disk space, or raise max_bytes in [buffer]; `apprentice doctor` says which",
            facts.unwritable_since,
        )  # fmt: skip
    if facts.unreadable is not None:
        yield Todo(
            "bad", "log_unreadable", f"what is shown may be old: {facts.unreadable}",
            "check that the broker can be reached: `apprentice doctor`",
        )  # fmt: skip
    elif facts.lag > LAG_RECORDS:
        yield Todo(
            "warn", "view_behind", f"what is shown is {facts.lag} records behind the log",
            "wait; if it does not shrink, look at the gateway's log",
        )  # fmt: skip
    if space.free is not None and space.free < LOW_BYTES:
        level: Level = "bad" if space.free < TOO_LOW_BYTES else "warn"
        yield Todo(
            level, "disk_low", f"{space.free >> 20} MB are free on the journal's disk", "free disk space"
        )
    if space.limit and space.used > NEARLY_FULL * space.limit:
        yield Todo(
            "warn", "journal_nearly_full", f"the journal is {space.used / space.limit:.0%} full",
            "raise max_bytes in [buffer]",
        )  # fmt: skip
    oldest = backlog.oldest.timestamp() if backlog.oldest is not None else facts.now
    if facts.now - oldest > BACKLOG_S:
        yield Todo(
            "warn", "broker_backlog", f"{backlog.pending} records wait for the broker",
            "check that the relay runs and reaches the broker: `apprentice doctor`", oldest,
        )  # fmt: skip
    if backlog.set_aside:
        yield Todo(
            "warn", "set_aside", f"the broker refused {backlog.set_aside} records; only the journal has them",
            "`apprentice doctor` names the last; raise max.message.bytes of its topic",
        )  # fmt: skip
    if backlog.unreadable:
        yield Todo(
            "warn", "unreadable_messages", f"{backlog.unreadable} messages on the topics are no records",
            "find out who else writes to these topics",
        )  # fmt: skip
    if facts.passed_over:
        types = ", ".join(sorted(facts.passed_over))
        yield Todo(
            "warn", "records_passed_over",
            f"{sum(facts.passed_over.values())} records could not be read ({types})",
            "run the release that wrote them, or a newer one",
        )  # fmt: skip


def _learner(facts: Facts) -> Iterator[Todo]:
    learner = facts.learner
    if facts.paused_by is not None:
        yield Todo(
            "warn", "learning_paused", f"learning is paused by {facts.paused_by}",
            "resume it when it may go on", facts.paused_at, "resume",
        )  # fmt: skip
    if learner.state is None:
        yield Todo("warn", "learner_unknown", "no learner has been heard of", "start it: `apprentice learn`")
    elif learner.state in ("silent", "stopped"):
        yield Todo(
            "warn", f"learner_{learner.state}", f"the learner is {learner.state}",
            "start it: `apprentice learn`", learner.heard,
        )  # fmt: skip
    elif learner.state == "failed":
        yield Todo(
            "bad", "learner_failed", f"the learner has given up: {learner.why}",
            "look at its log and mend the cause first", learner.heard,
        )  # fmt: skip
    yield from _rounds(facts.rounds)


def _rounds(rounds: Sequence[Round]) -> Iterator[Todo]:
    """About the last rounds, as far as none has passed since."""
    ended = [(r.ended, r.ended_at) for r in rounds if r.ended is not None]
    passed = [i for i, (end, _) in enumerate(ended) if end.verdict == "passed"]
    bad = ended[passed[-1] + 1 :] if passed else ended
    if not bad:
        return
    (last, _), since = bad[-1], bad[0][1]
    reasons = "; ".join(last.reasons)
    if last.verdict == "failed":
        yield Todo(
            "warn", "round_failed", f"round {last.round} failed: {reasons}",
            "look at the learner's log; its lessons are tried again, after three such rounds once asked for",
            since,
        )  # fmt: skip
    elif len(bad) >= REFUSED_ROUNDS:
        yield Todo(
            "warn", "rounds_refused", f"the last {len(bad)} rounds did not pass the gate: {reasons}",
            "look below at what they answered; correct or withdraw lessons that contradict each other", since,
        )  # fmt: skip


def _policies(facts: Facts) -> Iterator[Todo]:
    if facts.foreign is not None:
        yield Todo(
            "bad", "release_foreign", f"this server cannot follow: {facts.foreign}", facts.foreign.hint
        )  # fmt: skip
    for policy, why in facts.waits_for.items():
        yield Todo(
            "warn", "policy_waits_for_store", f"{policy} cannot be had yet: {why}",
            "check the adapter store, url in [buffer.adapters]; this machine's disk and `ulimit -n` if it is"
            " `unreadable`",
        )  # fmt: skip
    if facts.held:
        yield Todo(
            "note", "feedback_held", f"{facts.held} lessons are held: only a withdrawn policy has them",
            "learn them again in a round of their own", action="learn-held",
        )  # fmt: skip
    if facts.drift is not None and facts.round_limit is not None and facts.drift > facts.round_limit:
        yield Todo(
            "note", "drift_high",
            f"the live policy is {facts.drift:.3f} nats per token from base; one round may move"
            f" {facts.round_limit:.3f}",
            "compare answers with those of alias@base; if general ones have suffered, roll back",
        )  # fmt: skip
