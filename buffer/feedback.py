"""Feedback, and how the view finds it with what became of it.

What became of it is not stored: each query brings the facts that decide it, and `fate` judges them.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from buffer.fate import Fate, FeedbackFact, Judged, Lineage, RoundFact, Status, Trail, fate
from buffer.records import FeedbackGiven
from buffer.view_file import Rows

Judgement = tuple[Mapping[int, RoundFact], Lineage]
"""What every fate depends on: all rounds by number, and what they and the moves say about policies."""


@dataclass(frozen=True, slots=True)
class Feedback:
    """One piece of feedback with what became of it. `given` is None once erased."""

    feedback_id: str
    principal: str
    received: float
    given: FeedbackGiven | None
    fate: Fate
    question: str | None = None
    """Names the question that it is about (`buffer.projection.question_key`); None until that is known."""

    @property
    def rehearsed(self) -> bool:
        """Whether it is a good rating: material for replay in every round, and a reason for none."""
        return self.given is not None and self.given.kind == "rating" and self.fate.status == "accepted"


class FeedbackGroup(NamedTuple):
    """What pieces of feedback have in common; `teaches` is False for a rating, which carries no lesson."""

    status: Status
    reason: str
    teaches: bool


_FACTS = """
    f.erased, f.withdrawn, d.decision,
    (SELECT group_concat(round) FROM (
        SELECT round FROM lessons t WHERE t.feedback_id = f.feedback_id ORDER BY round)) AS rounds,
    CASE WHEN f.teaches THEN (
        SELECT max(l.feedback_id) FROM feedback l LEFT JOIN decisions e ON e.feedback_id = l.feedback_id
        WHERE l.principal = f.principal AND l.question = f.question
        AND (l.teaches, l.feedback_id) > (f.teaches, f.feedback_id) AND NOT l.withdrawn AND NOT l.erased
        AND coalesce(e.decision, 'accepted') = 'accepted') END AS later"""
"""What decides the fate of feedback. `later` supersedes it: the latest later lesson on the same question,
and of a follow-up any that was given on purpose."""
_FROM = "FROM feedback f LEFT JOIN decisions d ON d.feedback_id = f.feedback_id"


def find(rows: Rows, judged: Judgement, where: str, *arguments: object) -> Iterator[Feedback]:
    """The feedback that the conditions (and order) of `where` name.

    The query runs at once, so that it sees what was judged; what it found is parsed when it is taken.
    """
    rounds, lineage = judged
    columns = f"f.feedback_id, f.principal, f.received, f.given, f.question, d.reason, {_FACTS}"
    return (
        Feedback(
            feedback_id=feedback_id,
            principal=principal,
            received=received,
            given=FeedbackGiven.model_validate_json(given) if given is not None else None,
            fate=fate(_fact(facts, rounds, reason or ""), lineage),
            question=question,
        )
        for feedback_id, principal, received, given, question, reason, *facts in rows(
            f"SELECT {columns} {_FROM} {where}", *arguments
        )
    )


def count(rows: Rows, judged: Judgement) -> Counter[FeedbackGroup]:
    """How much feedback has which status, for which reason, and whether it carries a lesson."""
    rounds, lineage = judged
    counted: Counter[FeedbackGroup] = Counter()
    columns = f"{_FACTS}, f.teaches > 0 AS lesson, d.reason, count(*)"
    # equal facts, equal fate: what supersedes it does not matter, only whether anything does
    equal = "erased, withdrawn, decision, rounds, later IS NULL, lesson, reason"
    for *facts, lesson, reason, number in rows(f"SELECT {columns} {_FROM} GROUP BY {equal}"):
        found = fate(_fact(facts, rounds, reason or ""), lineage)
        counted[FeedbackGroup(found.status, found.reason, bool(lesson))] += number
    return counted


def _fact(facts: Sequence[Any], rounds: Mapping[int, RoundFact], reason: str = "") -> FeedbackFact:
    """From the columns of `_FACTS`."""
    erased, withdrawn, decision, taught, superseded_by = facts
    return FeedbackFact(
        erased=bool(erased),
        withdrawn=bool(withdrawn),
        decision=decision,
        reason=reason,
        superseded_by=superseded_by,
        rounds=tuple(rounds[int(number)] for number in taught.split(",")) if taught else (),
    )


def arrived(rows: Rows, since: float, every_s: float) -> dict[float, int]:
    """How much feedback came in each span of `every_s` seconds from `since` on, by the span's start."""
    return dict(
        rows(
            "SELECT ?1 + ?2 * CAST((received - ?1) / ?2 AS INT) AS start, count(*) FROM feedback"
            " WHERE received >= ?1 GROUP BY start ORDER BY start",
            since,
            every_s,
        )
    )


def trail(rows: Rows, feedback_id: str) -> Trail:
    """What is known of a piece of feedback beyond its fate."""
    judged = rows("SELECT at, decision, reason, detail FROM decisions WHERE feedback_id = ?", feedback_id)
    withdrawn = rows("SELECT at, by FROM withdrawals WHERE feedback_id = ?", feedback_id)
    erased = rows("SELECT erased_at FROM feedback WHERE feedback_id = ?", feedback_id)
    rejected = dict(rows("SELECT version, at FROM rejected"))
    return Trail(
        Judged(*judged[0]) if judged else None,
        withdrawn[0] if withdrawn else None,
        erased[0][0] if erased else None,
        rejected,
    )


def by_status(counted: Mapping[FeedbackGroup, int]) -> Counter[Status]:
    """The counts of `count` by status alone."""
    statuses: Counter[Status] = Counter()
    for group, count in counted.items():
        statuses[group.status] += count
    return statuses


def rehearsed(counted: Mapping[FeedbackGroup, int]) -> int:
    """How many of the counts of `count` are good ratings, as `Feedback.rehearsed` says."""
    return sum(n for group, n in counted.items() if group.status == "accepted" and not group.teaches)


def pending(counted: Mapping[FeedbackGroup, int]) -> int:
    """How much of the counts of `count` waits to be judged or learned."""
    statuses = by_status(counted)
    return statuses["received"] + statuses["accepted"] - rehearsed(counted)
