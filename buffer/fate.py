"""What became of a piece of feedback, worked out from the log's facts rather than stored.

    received → accepted | quarantined | skipped → training → refused | trained → served
    and at any time: superseded, held (only a withdrawn policy has it), withdrawn, erased

Pure. `Lineage` is what the rounds and the alias's moves say about policies; `fate` judges one row.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

Status = Literal[
    "received",
    "accepted",
    "quarantined",
    "skipped",
    "training",
    "refused",
    "trained",
    "served",
    "superseded",
    "held",
    "withdrawn",
    "erased",
]


@dataclass(frozen=True, slots=True)
class RoundFact:
    """One round: `verdict` is None while it runs; `version` is that of its release, if it passed."""

    round: int
    parent: int
    verdict: Literal["passed", "refused", "failed"] | None = None
    version: int | None = None
    why: str = ""


@dataclass(frozen=True)
class Lineage:
    """Which policies descend from which. Version 0 is the base model."""

    live: int = 0
    moved_to: tuple[int, ...] = ()
    """Every version that the alias ever pointed to."""
    parents: Mapping[int, int] = field(default_factory=dict)
    rejected: Mapping[int, str] = field(default_factory=dict)
    """Releases that a server refused to serve, with the reason."""

    def ancestors(self, version: int) -> frozenset[int]:
        """`version` and all it grew from, without the base."""
        seen: set[int] = set()
        while version and version not in seen:
            seen.add(version)
            version = self.parents.get(version, 0)
        return frozenset(seen)

    @cached_property
    def _live(self) -> frozenset[int]:
        return self.ancestors(self.live)

    @cached_property
    def _served(self) -> frozenset[int]:
        return frozenset().union(*map(self.ancestors, self.moved_to))

    def holds(self, version: int) -> bool:
        """Whether the live policy contains what `version` learned."""
        return version in self._live

    def ever_served(self, version: int) -> bool:
        return version in self._served


@dataclass(frozen=True, slots=True)
class Fate:
    """A status and what explains it: `reason` is a stable code or a verdict's words."""

    status: Status
    reason: str = ""
    round: int | None = None
    policy: int | None = None
    by: str | None = None
    """The feedback that superseded this one."""


@dataclass(frozen=True, slots=True)
class Judged:
    """The learner's judgement: a stable `reason` and a `detail` for people, as in `records.Decision`."""

    at: float
    decision: Literal["accepted", "quarantined", "skipped"]
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Trail:
    """When what decides a piece of feedback's fate was recorded, in Unix seconds, and by whom."""

    judged: Judged | None = None
    withdrawn: tuple[float, str] | None = None
    """When it was withdrawn, and by whom."""
    erased: float | None = None
    rejected: Mapping[int, float] = field(default_factory=dict)
    """When a server refused which release."""


@dataclass(frozen=True, slots=True)
class FeedbackFact:
    """What the log says about one piece of feedback, apart from its content."""

    erased: bool = False
    withdrawn: bool = False
    superseded_by: str | None = None
    decision: Literal["accepted", "quarantined", "skipped"] | None = None
    reason: str = ""
    rounds: tuple[RoundFact, ...] = ()
    """The rounds that took it as a lesson, oldest first."""


def fate(fact: FeedbackFact, lineage: Lineage) -> Fate:
    """Judge one piece of feedback. A failed round decides nothing: its lessons are accepted again."""
    if fact.erased:
        return Fate("erased")
    if fact.withdrawn:
        return Fate("withdrawn")
    judged = [r for r in fact.rounds if r.verdict != "failed"]
    if fact.superseded_by:
        return Fate(
            "superseded",
            "a later correction of the same question",
            round=judged[-1].round if judged else None,
            policy=judged[-1].version if judged else None,
            by=fact.superseded_by,
        )
    if fact.decision is None:
        return Fate("received", fact.reason)
    if fact.decision != "accepted":
        return Fate(fact.decision, fact.reason)
    if not judged:
        return Fate("accepted")
    passed = [r for r in judged if r.version is not None and lineage.holds(r.version)]
    return _after_round(passed[-1] if passed else judged[-1], lineage)


def _after_round(last: RoundFact, lineage: Lineage) -> Fate:
    if last.verdict is None:
        return Fate("training", round=last.round)
    if last.version is None:
        return Fate("refused", last.why, round=last.round)
    if lineage.holds(last.version):
        return Fate("served", round=last.round, policy=last.version)
    if last.version in lineage.rejected:
        return Fate("refused", lineage.rejected[last.version], round=last.round, policy=last.version)
    if lineage.ever_served(last.version):
        return Fate("held", "its policy was rolled back", round=last.round, policy=last.version)
    if lineage.live > last.version:
        return Fate("held", "its policy was passed over", round=last.round, policy=last.version)
    return Fate("trained", round=last.round, policy=last.version)
