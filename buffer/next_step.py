"""What comes next for a piece of feedback, or what to do where nothing does. Pure."""

from collections.abc import Mapping
from typing import Any

from buffer.fate import Fate
from buffer.records import LearnerReported, LearningSwitched

SILENT_AFTER_S = 60
"""A learner reports more often than this, whatever it does."""
NEVER_HEARD = "no learner has been heard of: start it with `apprentice learn`"
AGAIN = 'ask for a round that takes it again: POST /v1/learning/rounds with {"include": ["%s"]}'

TO_DO: Mapping[str, str] = {
    "rating_only": "say in a correction what the answer should have been",
    "no_hint": "say in a correction what would be right",
    "not_a_chat": "ask it over /v1/chat/completions, and correct that answer",
    "no_user_turn": "ask in a user's plain text, and correct that answer",
    "not_rehearsable": "nothing: long or cut answers are not rehearsed",
    "no_teacher": "give it again with a text",
    "template_mismatch": "ask again, and correct the new answer",
    "control_tokens": "ask again without it, and correct the new answer",
    "template_refuses": "give it with other messages: users and assistants in turn, a system's first or none",
    "teacher_too_long": "say in a correction what the answer should have been",
    "teacher_misses_hint": "say in a correction what the answer should have been",
    "answer_too_long": "give a shorter answer, or raise max_completion_tokens in [learner] and give it again",
    "prompt_too_long": "give it about a shorter conversation, or raise max_prompt_tokens in [learner] and"
    " give it again",
}
"""By the learner's reason against a piece of feedback."""


def absent(report: tuple[LearnerReported, float] | None, now: float) -> str | None:
    """Why nothing is to be expected of the learner, whose last report and its time these are."""
    if report is None:
        return NEVER_HEARD
    said, at = report
    silent = int(now - at)
    if silent > SILENT_AFTER_S and said.state not in ("stopped", "failed"):
        return (
            f"the learner has not been heard of for {silent} s: is it running? "
            "start it with `apprentice learn`"
        )
    return None


def next_step(
    fate: Fate,
    *,
    rehearsed: bool,
    unanswered: bool,
    result: Mapping[str, Any] | None,
    lost_in: int | None,
    absent: str | None,
    paused: LearningSwitched | None,
    report: LearnerReported | None,
) -> str:
    """A sentence.

    `unanswered`: what it needs of its exchange has not arrived. `result`: how the gate found it in its last
    round. `lost_in`: the first round after which the model did not answer it any more.
    """
    match fate.status:
        case "received":
            if unanswered:
                return "it waits for the record of the answer that it is about, which has not arrived whole"
            return absent or _learner(report, "the learner judges it")
        case "accepted":
            if rehearsed:
                return "nothing: it is rehearsed beside the lessons of later rounds, and starts none"
            if paused is not None and absent is None:
                return f"learning was paused by {paused.by}: POST /v1/learning/resume lets it go on"
            return absent or _learner(report, "a round takes it")
        case "quarantined" | "skipped":
            return TO_DO.get(fate.reason, "give it again in another form")
        case "training":
            return absent or _learner(report, f"the gate judges round {fate.round}")
        case "refused":
            return AGAIN % "refused" + "; or correct the same question in other words"
        case "trained":
            return (
                f"a server takes policy {fate.policy} up, once it has verified and loaded it;"
                " `apprentice policies list` and its log say what it waits for"
            )
        case "served":
            if lost_in is not None:
                return f"the model lost it in round {lost_in}: ask again, and correct the new answer"
            if result is not None and not result.get("asked"):
                return "the round passed without this lesson: ask again, and correct the new answer"
            return "nothing: the live policy has learned it"
        case "superseded":
            return f"nothing: the later one counts; `apprentice explain {fate.by}`"
        case "held":
            return f"roll forward with `apprentice policies promote {fate.policy}`, or {AGAIN % 'held'}"
        case "withdrawn" | "erased":
            return "nothing: it is left out of all future rounds; give it anew if it should be learned"


def _learner(report: LearnerReported | None, then: str) -> str:
    """What the learner does first."""
    if report is None or report.state in ("stopped", "failed"):
        why = f"the learner {report.state}: {report.why}" if report is not None else NEVER_HEARD
        return f"{then} when it runs again: {why}"
    if report.round is not None:
        at = f", step {report.step} of {report.steps}" if report.steps else ""
        return f"{then} when it comes to it; now it is {report.state} (round {report.round}{at})"
    return f"{then} when it comes to it; now it is {report.state}: {report.why}"
