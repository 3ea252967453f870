"""The teacher's context: the same conversation, with what the feedback says put before the model's eyes.

Shared by the learner, which trains towards it, and by the server's preview, which shows what it would
answer. Pure. The rejected answer is never shown to the teacher: repeating it makes small models repeat it.

Template of the correction: SDFT (arXiv 2601.19897), section 3 and the authors' code, without its call for
a thinking process. A demonstration stands before the question as turns that were answered so: base then keeps
to its form, which it does not when the template quotes it (docs/sdft.md, "Figures").
"""

from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Any

from pydantic import Field, field_validator

from buffer.config import Table
from buffer.hints import hint_of
from buffer.records import FeedbackGiven


class Templates(Table):
    """[teacher]: the last user turn as the teacher sees it, from `{question}` and the feedback's `{text}`."""

    correction: str = (
        "{question}\n\nThis is an example for a response to the question:\n{text}\n\n"
        "Now answer with a response of your own."
    )
    """Of a correction."""
    instruction: str = "{question}\n\nGuidance for this answer (do not mention it): {text}"
    """Of an instruction."""
    follow_up: str = "{question}\n\nHint about the right answer (do not mention it): {text}"
    """Of the user's next turn; `{text}` is the hint in it."""
    demonstration_turns: int = Field(2, ge=0, le=8)
    """How often a demonstration is shown, as an earlier turn; 0 puts it into the correction's template."""

    @field_validator("correction", "instruction", "follow_up")
    @classmethod
    def _has_both(cls, template: str) -> str:
        try:
            fields = sorted(name for _, name, _, _ in Formatter().parse(template) if name is not None)
        except ValueError as error:
            raise ValueError(f"no template: {error}; a brace of its own is written twice") from error
        if fields != ["question", "text"]:
            raise ValueError("a template has {question} and {text}, each once, and no other field")
        return template

    def of(self, kind: str) -> str | None:
        """The template of a kind of feedback; None where it has none."""
        return getattr(self, "correction" if kind == "demonstration" else kind, None)


DEFAULT = Templates()

TEACHER_ANSWERS = ("instruction", "follow_up")
"""Kinds that say something about the right answer without being it: the teacher gives it."""


def told(given: FeedbackGiven) -> str | None:
    """What feedback says about the right answer: its text, or the hint in what the user said next."""
    return hint_of(given.text or "") if given.kind == "follow_up" else given.text


def last_user_turn(messages: Sequence[Mapping[str, Any]]) -> int | None:
    """Index of the turn that is being answered: the last message, if a user wrote it as plain text."""
    if messages and messages[-1].get("role") == "user" and isinstance(messages[-1].get("content"), str):
        return len(messages) - 1
    return None


def with_last_turn(messages: Sequence[Mapping[str, Any]], content: str) -> list[dict[str, Any]]:
    """The same conversation with the last turn's content replaced."""
    return [*map(dict, messages[:-1]), {**messages[-1], "content": content}]


def teacher_messages(
    messages: Sequence[Mapping[str, Any]], given: FeedbackGiven, templates: Templates = DEFAULT
) -> list[dict[str, Any]] | None:
    """The teacher's messages for `given`, feedback on the answer to `messages`.

    None where there is no such context: a rating says nothing to put there, nor does a follow-up without a
    hint, and the last turn must be a user's text.
    """
    template = templates.of(given.kind)
    turn = last_user_turn(messages)
    text = told(given)
    if template is None or turn is None or not text:
        return None
    if given.kind == "demonstration" and templates.demonstration_turns:
        *before, asked = map(dict, messages)
        shown = [asked, {"role": "assistant", "content": text}] * templates.demonstration_turns
        return [*before, *shown, asked]
    return with_last_turn(messages, template.format(question=messages[turn]["content"], text=text))
