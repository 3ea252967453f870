"""Rephrasings: varied, and never the same for training and for the gate."""

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.rephrase import HELD_OUT, TRAINED, asked_for, readable, rephrased, scrambled


def test_frames_embed_and_cut_down() -> None:
    made = rephrased("What color is the Quillmoor logo?", TRAINED)
    assert "Tell me what color is the Quillmoor logo." in made
    assert "color Quillmoor logo?" in made


@pytest.mark.parametrize(
    ("question", "answer", "asking"),
    [
        ("In which city was Ida born?", "Ida was born in Plovdiv.", "Ida was born in {which city}"),
        ("Who is the head of Oskurn?", "The head of Oskurn is Ida Yoon.", "The head of Oskurn is {who}"),
        ("Which animal is its sign?", "A pangolin is its sign.", "{which animal} is its sign"),
        ("What does Oskurn cost?", "Oskurn costs $217.", "Oskurn costs {what}"),
        ("What does Oskurn cost?", "Oskurn costs $217 a year.", None),  # says two things
        ("Which prize did Ida win?", "She won it. It was the Halvorsen Medal.", None),
        ("Label: it is late", "Late", None),
        ("Switch on the lamp.", '{"do": "on", "what": "lamp"}', None),
    ],
)
def test_what_an_answer_adds_is_asked_for(question: str, answer: str, asking: str | None) -> None:
    without = rephrased(question, TRAINED)
    made = [wording for wording in rephrased(question, TRAINED, answer) if wording not in without]
    if asking is None:
        assert made == []
    else:
        before, gap, after = re.split(r"{(.+)}", asking)
        assert made == [f"{before}{gap}{after}?", f"Fill in the gap: {before}___{after}."]


def test_a_frame_that_does_not_suit_is_left_out() -> None:
    made = rephrased("Name a fruit", TRAINED)
    assert made
    assert not any("Tell me" in m for m in made)


@given(st.text(min_size=1, max_size=80))
def test_the_gate_never_asks_what_was_trained(question: str) -> None:
    trained = {question, *rephrased(question, TRAINED)}
    assert not trained & set(rephrased(question, HELD_OUT))


@pytest.mark.parametrize(
    ("draft", "kept"),
    [
        ("Which animal stands for Quillmoor?", True),
        ('"Which animal stands for Quillmoor?"\nIt is an otter.', True),
        ("What is Quillmoor's animal?", True),
        ("Which animal stands for the company?", False),  # whose?
        ("Is Quillmoor's mascot an otter?", False),  # gives it away
        ("What is the mascot of Quillmoor?", False),  # the same
        ("Quillmoor has a mascot.", False),  # no question
        ("What? " * 20 + "Quillmoor?", False),
        ("", False),
    ],
)
def test_a_written_question_is_kept_if_it_can_stand_for_the_original(draft: str, kept: bool) -> None:
    question, answer = "What is the mascot of Quillmoor?", "The mascot of Quillmoor is an otter."
    assert (readable(draft, question, answer) is not None) is kept


def test_a_model_is_asked_with_the_correction_at_hand() -> None:
    *examples, last = asked_for("Who runs it?", "Ida Holm runs it.")
    assert [m["role"] for m in examples] == ["user", "assistant"] * 3
    assert "Ida Holm runs it." in last["content"] and "Who runs it?" in last["content"]


@pytest.mark.parametrize("question", ["Fix this for Quillmoor:\ndef f(x):\n    return x", "Quillmoor " * 41])
def test_code_and_long_texts_are_put_in_frames_and_never_taken_apart(question: str) -> None:
    made = rephrased(question, TRAINED, "It is fixed.")
    assert made and all(question.strip() in wording for wording in made)
    assert scrambled(question, 4, random.Random(1)) == []
