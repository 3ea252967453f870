"""What was taught: the lessons that a view knows, by themselves, without the answers that they are about.

For whoever trains elsewhere or afresh: token ids mean nothing to another model, so only words are taken.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from buffer.fate import Status
from buffer.feedback import Feedback
from buffer.log import Log, read_to_end
from buffer.records import FeedbackGiven, FeedbackKind, Message
from buffer.teacher import last_user_turn, told
from buffer.view import View

LEFT_OUT: tuple[Status, ...] = ("withdrawn", "superseded", "quarantined", "skipped", "held")
"""What became of feedback that teaches nothing further. `held`: an operator took back what it had taught."""


@dataclass(frozen=True, slots=True)
class Taught:
    """One lesson: how `messages` should be answered, as `given` says."""

    feedback: Feedback
    given: FeedbackGiven
    messages: list[dict[str, Any]]
    context: str
    """What it says about the right answer: the correction, the instruction, the hint."""
    without_tools: bool
    """Whether it was asked with tools, which are not part of the messages."""

    @property
    def kind(self) -> FeedbackKind:
        return self.given.kind

    def alone(self) -> FeedbackGiven:
        """The same feedback without its exchange: it says itself what was asked."""
        return self.given.model_copy(
            update={
                "completion_id": None,
                "choice": 0,
                "idempotency_key": None,
                "messages": [Message(**message) for message in self.messages],
            }
        )


def collect(log: Log, view: View, principal: str | None = None) -> tuple[list[Taught], Counter[str]]:
    """The lessons of a log (or of one principal), oldest first, and how much is none, by the reason.

    `view` is an empty one, to be filled. Whose it was cannot be told of what is erased: it is counted where
    all are asked for. Raises `LogUnavailable`.
    """
    erased = set()
    for records, positions in read_to_end(log):
        view.apply(records, positions)
        erased |= {r.id for r in records if r.data is None and r.type == FeedbackGiven.type}
    left_out = Counter({"erased": len(erased)}) if erased and principal is None else Counter()
    return list(_taught(view, left_out, principal)), left_out


def _taught(view: View, left_out: Counter[str], principal: str | None) -> Iterator[Taught]:
    for feedback in view.all_feedback(principal):
        given = feedback.given
        if given is None:
            continue  # erased, and counted
        if feedback.fate.status in LEFT_OUT:
            left_out[feedback.fate.status] += 1
            continue
        exchange = view.exchange(given.completion_id) if given.completion_id is not None else None
        if given.messages is not None:
            messages = [message.model_dump(exclude_none=True) for message in given.messages]
        elif exchange is not None:
            messages = [dict(message) for message in exchange.opened.request.get("messages", [])]
        else:
            left_out["exchange_missing"] += 1
            continue
        context = told(given)
        if not context or given.kind == "rating":
            left_out["no_text"] += 1
        elif last_user_turn(messages) is None:
            left_out["no_user_turn"] += 1
        else:
            tools = exchange is not None and given.messages is None and exchange.opened.request.get("tools")
            yield Taught(feedback, given, messages, context, bool(tools))
