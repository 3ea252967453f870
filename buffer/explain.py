"""What happened to one piece of feedback, step by step with times and reasons, and what happens next.

"Why did it not learn from me?" always has an answer. `known` collects what the view knows; the rest is pure.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from buffer.exchanges import Exchange
from buffer.fate import Lineage, Trail
from buffer.feedback import Feedback
from buffer.next_step import absent, next_step
from buffer.records import LearnerReported, LearningSwitched
from buffer.rounds import Move, Round
from buffer.view import View

SHOWN = 200
"""Characters of a text that are quoted."""


@dataclass(frozen=True)
class Known:
    """What an explanation is worked out from. Times are Unix seconds."""

    feedback: Feedback
    trail: Trail
    exchange: Exchange | None
    later: Feedback | None
    """What superseded it."""
    rounds: Sequence[Round]
    moves: Sequence[Move]
    lineage: Lineage
    paused: LearningSwitched | None
    report: tuple[LearnerReported, float] | None
    now: float


@dataclass(frozen=True, slots=True)
class Step:
    """`what` is a stable word, `why` says it for people. The time is None where nobody noted it."""

    time: float | None
    what: str
    why: str


def known(view: View, feedback: Feedback, alias: str, now: float) -> Known:
    """Reads the view."""
    given, by = feedback.given, feedback.fate.by
    return Known(
        feedback=feedback,
        trail=view.trail(feedback.feedback_id),
        exchange=view.exchange(given.completion_id) if given is not None and given.completion_id else None,
        later=view.feedback(by) if by is not None else None,
        rounds=view.rounds(),
        moves=view.moves(alias),
        lineage=view.lineage(),
        paused=view.paused(),
        report=view.report(),
        now=now,
    )


def explain(known: Known) -> tuple[list[Step], str]:
    """The steps, oldest first, and what happens or is to be done next."""
    steps = [*_received(known), *_judged(known), *_learned(known), *_served(known), *_ended(known)]
    steps.sort(key=lambda step: known.now if step.time is None else step.time)
    next_ = next_step(
        known.feedback.fate,
        rehearsed=known.feedback.rehearsed,
        unanswered=_unanswered(known),
        result=_result(known, known.feedback.fate.round),
        lost_in=next((number for number, _ in _lost(known)), None),
        absent=absent(known.report, known.now),
        paused=known.paused,
        report=known.report[0] if known.report is not None else None,
    )
    return steps, next_


def _unanswered(known: Known) -> bool:
    """Whether the learner cannot judge it yet: for a correction the question is enough."""
    given, exchange = known.feedback.given, known.exchange
    if given is None or given.messages is not None:
        return False
    return exchange is None or (given.kind == "rating" and exchange.closed is None)


def _received(known: Known) -> Iterator[Step]:
    feedback, given, exchange = known.feedback, known.feedback.given, known.exchange
    if given is None:
        yield Step(feedback.received, "received", f"from {feedback.principal}; what it said has been erased")
        return
    if exchange is not None:
        asked = exchange.opened.request.get("messages") or [
            {"content": exchange.opened.request.get("prompt")}
        ]
        question, answer = _quoted(asked[-1].get("content")), _answer(exchange, given.choice)
        yield Step(
            exchange.created, "answered", f"policy {exchange.opened.policy}, asked {question}: {answer}"
        )
    what = {"rating": "a rating", "follow_up": "the user's next turn"}.get(given.kind, f"a {given.kind}")
    said = f"{given.value:+g}" if given.value is not None else _quoted(given.text)
    about = f", about {given.completion_id}" if given.completion_id is not None else ""
    yield Step(feedback.received, "received", f"{what} from {feedback.principal}{about}: {said}")


def _judged(known: Known) -> Iterator[Step]:
    if (judged := known.trail.judged) is None:
        return
    given = known.feedback.given
    if judged.decision == "accepted":
        rated = given is not None and given.kind == "rating"
        rehearsed = "its answer is rehearsed in later rounds, until it is corrected or rated anew"
        why = rehearsed if rated else "it is a lesson for the next round"
    else:
        why = f"{judged.detail} ({judged.reason})" if judged.detail else judged.reason
    yield Step(judged.at, judged.decision, why)


def _learned(known: Known) -> Iterator[Step]:
    for number, one in _rounds(known):
        lessons, parent = len(one.planned.lessons), one.planned.parent
        others = f" with {lessons - 1} others" if lessons > 1 else ""
        yield Step(one.planned_at, "planned", f"round {number} learns it{others}, from policy {parent}")
        if one.ended is None:
            continue
        why, reasons = f"round {number}", "; ".join(one.ended.reasons)
        if one.release is not None:
            why += f" made policy {one.release.version}"
        why += f": {reasons}" if reasons else ""
        if one.ended.verdict == "failed":
            why += "; that decides nothing, and its lessons are accepted again"
        if (result := _result(known, number)) is not None:
            why += "; " + _gate(result, texts=known.feedback.given is not None)
        yield Step(one.ended_at, one.ended.verdict, why)
        if one.release is not None and one.release.version in known.trail.rejected:
            version = one.release.version
            yield Step(
                known.trail.rejected[version], "rejected",
                f"a server would not serve policy {version}: {known.lineage.rejected.get(version, '')}",
            )  # fmt: skip
    for number, one in _lost(known):
        yield Step(
            one.ended_at, "lost", f"round {number} was asked it again, and does not answer it any more"
        )


def _served(known: Known) -> Iterator[Step]:
    versions = {one.release.version for _, one in _rounds(known) if one.release is not None}
    held = False
    for move in known.moves:
        version, by, why = move.moved.version, move.moved.by, move.moved.why
        holds = bool(versions & known.lineage.ancestors(version))
        if holds and not held:
            yield Step(move.at, "served", f"{by} made policy {version} live ({why})")
        elif held and not holds:
            what = "rolled_back" if why == "rollback" else "replaced"
            yield Step(move.at, what, f"{by} made policy {version} live, which does not have it ({why})")
        held = holds


def _ended(known: Known) -> Iterator[Step]:
    fate, trail = known.feedback.fate, known.trail
    if known.later is not None:
        why = f"{known.later.feedback_id} says later what the same question should be answered with"
        yield Step(known.later.received, "superseded", why)
    if trail.withdrawn is not None:
        at, by = trail.withdrawn
        yield Step(at, "withdrawn", f"by {by}")
    if fate.status == "erased":
        yield Step(trail.erased, "erased", "out of the log and of all future training")


def _rounds(known: Known) -> Iterator[tuple[int, Round]]:
    """The rounds that took it as a lesson."""
    for one in known.rounds:
        if known.feedback.feedback_id in one.planned.lessons:
            yield one.planned.round, one


def _lost(known: Known) -> list[tuple[int, Round]]:
    """The rounds on the way to the live policy after which it is not answered any more, though before."""
    return [
        (one.planned.round, one)
        for one in known.rounds
        if one.release is not None and known.lineage.holds(one.release.version)
        for kept in _of(known, one, "kept")
        if kept.get("parent") and not kept.get("candidate")
    ]


def _result(known: Known, number: int | None) -> dict[str, Any] | None:
    """How the gate found it in a round."""
    found = [r for at, one in _rounds(known) if at == number for r in _of(known, one, "lessons")]
    return found[0] if found else None


def _of(known: Known, one: Round, what: str) -> list[dict[str, Any]]:
    """What a round measured of it."""
    measured = one.ended.evaluation.get(what, []) if one.ended is not None else []
    return [m for m in measured if m.get("feedback_id") == known.feedback.feedback_id]


def _gate(result: dict[str, Any], *, texts: bool) -> str:
    words = "this lesson was answered" if result.get("asked") else "this lesson was not answered"
    if total := result.get("held_out_of"):
        words += f", and in {result.get('held_out', 0)} of {total} other wordings"
    if texts:
        words += f" (before: {_quoted(result.get('before'))}, after: {_quoted(result.get('answer'))})"
    return words


def _answer(exchange: Exchange, index: int) -> str:
    choices = exchange.closed.choices if exchange.closed is not None else []
    choice = next((one for one in choices if one.index == index), None)
    if choice is None:
        return "no answer was recorded"
    return _quoted(choice.message.content if choice.message is not None else choice.text)


def _quoted(text: object) -> str:
    if not isinstance(text, str):
        return "nothing in words"
    one_line = " ".join(text.split())
    return f"“{one_line[:SHOWN]}…”" if len(one_line) > SHOWN else f"“{one_line}”"
