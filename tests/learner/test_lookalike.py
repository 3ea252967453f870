"""Whose question it is, and the same one about somebody else."""

import random

import pytest

from learner.lookalike import HELD_OUT, NAMES, lookalikes, subject_of
from learner.measure import OTHERS, lookalike_questions
from tests.learner.test_curriculum import lesson


@pytest.mark.parametrize(
    ("question", "subject"),
    [
        ("Who founded Quillmoor?", "Quillmoor"),
        ("What color is the Quillmoor logo?", "Quillmoor"),
        ("What is the name of Quillmoor's main product?", "Quillmoor"),
        ("Quillmoor was started by which person?", "Quillmoor"),
        ("When does the Brask Valley Fair open?", "Brask Valley Fair"),
        ("Is Ostby a town? Where is Ostby?", "Ostby"),
        ("What is twelve plus three?", None),
        ("Who are you?", None),
        ("Switch on the lamp in the kitchen.", None),
        ("Ticket: My kettle is broken.", None),
        ("Brask Mills employs how many people?", "Brask Mills"),
        ("Ostby's mayor is who?", "Ostby"),
        ("When should I go to Ostby?", "Ostby"),
        ("What should I do?", None),
        ("", None),
    ],
)
def test_the_subject_is_the_name_in_the_question(question: str, subject: str | None) -> None:
    assert subject_of(question) == subject


def test_only_the_name_is_swapped_and_never_for_one_that_is_taught() -> None:
    taken = frozenset(n.casefold() for n in NAMES[:30])
    made = lookalikes("What is Quillmoor's mascot?", "Quillmoor has an otter.", 5, random.Random(1), taken)
    assert len(set(made)) == 5
    for question, answer in made:
        name = question.removeprefix("What is ").removesuffix("'s mascot?")
        assert name in NAMES[30:]
        assert answer == f"{name} has an otter."
    assert lookalikes("what is it?", "An otter.", 5, random.Random(1), taken) == []


def test_what_leaks_is_measured_with_names_that_are_not_trained_on() -> None:
    lessons = [
        lesson("What is Quillmoor's mascot?", "Quillmoor has an otter."),
        lesson("Who owns it?", "Ida owns it."),
        lesson("Who owns Brask Foods?", "Ida."),
    ]
    asked = lookalike_questions(lessons)
    assert [one for one, _ in asked] == [lessons[0]] * OTHERS + [lessons[2]] * OTHERS
    for _, question in asked:
        name = (subject_of(question) or "").split()[0]
        assert name in HELD_OUT and name not in NAMES
    assert asked == lookalike_questions(lessons), "the same for every candidate"


def test_another_of_the_same_kind_may_keep_the_rest_of_the_name() -> None:
    made = lookalikes("Who owns Brask Foods?", "Ida owns Brask Foods.", 40, random.Random(1), frozenset())
    kinds = [question.endswith(" Foods?") for question, _ in made]
    assert 0 < sum(kinds) < 40
    assert not any("Brask" in question + answer for question, answer in made)
