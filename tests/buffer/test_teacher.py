"""What the teacher sees of each kind of feedback."""

from typing import Any

import pytest
from pydantic import ValidationError

from buffer.records import FeedbackGiven, FeedbackKind
from buffer.teacher import Templates, teacher_messages, told

ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is it called?"}]


def given(kind: FeedbackKind, text: str | None) -> FeedbackGiven:
    return FeedbackGiven(feedback_id="f", principal="ann", kind=kind, completion_id="c", text=text)


def last(messages: list[dict[str, Any]] | None) -> str:
    assert messages is not None and messages[:-1] == ASKED[:-1]
    return str(messages[-1]["content"])


@pytest.mark.parametrize("kind", ["correction", "instruction"])
def test_a_text_is_told_as_it_is_written(kind: FeedbackKind) -> None:
    feedback = given(kind, "No, it is called Bramblewick.")
    assert told(feedback) == "No, it is called Bramblewick."
    assert "No, it is called Bramblewick." in last(teacher_messages(ASKED, feedback))


def test_a_demonstration_stands_before_the_question_as_turns_that_were_answered_so() -> None:
    shown = [ASKED[1], {"role": "assistant", "content": "Bramblewick."}]
    feedback = given("demonstration", "Bramblewick.")
    assert teacher_messages(ASKED, feedback) == [ASKED[0], *shown, *shown, ASKED[1]]
    once = teacher_messages(ASKED, feedback, Templates(demonstration_turns=1))
    assert once == [ASKED[0], *shown, ASKED[1]]
    quoted = teacher_messages(ASKED, feedback, Templates(demonstration_turns=0))
    assert quoted == teacher_messages(ASKED, given("correction", "Bramblewick."))


def test_of_a_follow_up_the_hint_is_told_and_not_the_rejected_answer() -> None:
    feedback = given("follow_up", "No, it is called Bramblewick, not Quillmoor.")
    assert told(feedback) == "it is called Bramblewick."
    shown = last(teacher_messages(ASKED, feedback))
    assert shown.startswith("What is it called?")
    assert shown.endswith("it is called Bramblewick.")
    assert "Quillmoor" not in shown and "No," not in shown


@pytest.mark.parametrize("text", ["No, that's wrong.", "", None])
def test_without_a_hint_there_is_no_teacher(text: str | None) -> None:
    assert told(given("follow_up", text)) is None
    assert teacher_messages(ASKED, given("follow_up", text)) is None


def test_a_rating_and_an_unanswerable_conversation_have_no_teacher() -> None:
    assert teacher_messages(ASKED, given("rating", None)) is None
    assert teacher_messages(ASKED[:1], given("correction", "Bramblewick.")) is None


def test_templates_are_configuration() -> None:
    own = Templates(correction="{text} answers {question}; write {{}} for nothing.")
    made = teacher_messages([{"role": "user", "content": "Who? {text}"}], given("correction", "Ida"), own)
    assert made == [{"role": "user", "content": "Ida answers Who? {text}; write {} for nothing."}]


@pytest.mark.parametrize(
    "template",
    ["{question}", "{text} {text} {question}", "{question} {text} {answer}", "{question} {text", ""],
)
def test_a_template_without_both_parts_is_refused(template: str) -> None:
    with pytest.raises(ValidationError):
        Templates(instruction=template)
