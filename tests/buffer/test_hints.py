"""What is taken for a correction, what is left alone, and the hint that a correction leaves."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buffer.hints import MAX_CHARS, hint_of, is_correction

ANSWER = "It is called Quillmoor."
NAMES = st.from_regex(r"[B-HJ-MO-Z][a-z]{5,9}( [B-HJ-MO-Z][a-z]{5,9})?", fullmatch=True)

HINTS = [
    ("No, it is called Bramblewick.", "it is called Bramblewick."),
    ("no its bramblewick", "its bramblewick"),
    ("Nope, Bramblewick", "Bramblewick"),
    ("No — it’s Bramblewick.", "it's Bramblewick."),  # noqa: RUF001 - as phones write it
    ("No\n\nIt's Bramblewick.", "It's Bramblewick."),
    ("No, no, it's an otter", "it's an otter"),
    ("Wrong. It was Ida Holm.", "It was Ida Holm."),
    ("Incorrect: it closes at six", "it closes at six"),
    ("Not quite. The bakery is in Ostwick.", "The bakery is in Ostwick."),
    ("That's not right, it is Bergen.", "it is Bergen."),
    ("Sorry, but that's wrong: it's Bergen", "it's Bergen"),
    ("thats wrong because it was founded in 1974", "it was founded in 1974"),
    ("Your answer is incorrect. It closes at six. It sells bread.", "It closes at six. It sells bread."),
    ("You got it wrong, it's Bergen", "it's Bergen"),
    ("I think you mean Bramblewick.", "Bramblewick."),
    ("Actually, it is called Bramblewick.", "it is called Bramblewick."),
    ("Actually Ida Holm runs it", "Ida Holm runs it"),
    ("Well, actually no, it's Bergen.", "it's Bergen."),
    ("In fact, it was founded in 1974.", "it was founded in 1974."),
    ("No, I'm vegetarian.", "I'm vegetarian."),
    ("No, it doesn't sell bread.", "it doesn't sell bread."),
    ("No, it's right next to the church", "it's right next to the church"),
    ("No, it's a bakery that isn't open on Sundays.", "it's a bakery that isn't open on Sundays."),
    ("No, -5 degrees", "-5 degrees"),
    ("No, Dr. J. R. Holm of St. Ives founded it.", "Dr. J. R. Holm of St. Ives founded it."),
    ("No, that's wrong! It is Bergen! Please fix it.", "It is Bergen!"),
    # the rejected answer is left out
    ("It's called Bramblewick, not Quillmoor.", "It's called Bramblewick."),
    ("No, it's called Bramblewick instead of Quillmoor.", "it's called Bramblewick."),
    ("No, Bramblewick not Quillmoor", "Bramblewick"),
    ("No, not Quillmoor, Bramblewick.", "Bramblewick."),
    ("No, it is not Quillmoor but Bramblewick.", "Bramblewick."),
    ("No, the mascot isn't a cat, it's an otter.", "it's an otter."),
]
WITHOUT_A_HINT = [
    "No!",
    "Wrong!",
    "No, that's wrong.",
    "That isn't correct",
    "that's not right at all",
    "No, wrong again!",
    "No, that's wrong. Try again.",
    "That is not true. Are you sure",
    "No, it's not called Quillmoor.",
    "No, not Quillmoor.",
    "Wrong. It closes at six. It sells bread. It has a cat. It is in Ostwick.",
]
NO_CORRECTIONS = [
    "",
    "Thanks!",
    "What is it called?",
    "Yes, it is called Bramblewick",
    "Great, it is called Bramblewick",
    "The weather is nice.",
    "Tell me more",
    "Is it wrong?",
    "No, what is it called?",
    "No, what is it called",
    "no, can you look again",
    "No, it's Bergen, isn't it?",
    "No, thanks.",
    "No thank you",
    "no problem",
    "No worries!",
    "No need",
    "No, that's all",
    "No, that's right.",
    "No, I'm good",
    "No, I agree with you",
    "No, I meant the other bakery",
    "No, give me a list",
    "No, make it shorter",
    "No one founded it",
    "No-one knows",
    "No bakery is called that",
    "Nobody knows",
    "Noon is fine",
    "Nothing else",
    "Not now",
    "Not bad at all",
    "Wrong number, sorry",
    "false alarm",
    "Correct.",
    "Actually, make it about dogs",
    "Actually, can you make it shorter",
    "Actually, I want a poem about dogs",
    "Actually, I found it in the drawer.",
    "Actually, let's talk about Oslo",
    "Actually, that's great",
    "Actually that's right",
    "It's raining, and I am not happy",
    "It's fine, not bad",
    "No, it is called " + "x" * MAX_CHARS,
]


@pytest.mark.parametrize("turn", [turn for turn, _ in HINTS] + WITHOUT_A_HINT)
def test_a_correction_is_recognised(turn: str) -> None:
    assert is_correction(turn, ANSWER)


@pytest.mark.parametrize("turn", NO_CORRECTIONS)
def test_what_is_no_correction_is_left_alone(turn: str) -> None:
    assert not is_correction(turn, ANSWER)


def test_no_after_a_question_is_its_answer() -> None:
    asked = "It is called Quillmoor. Shall I tell you more?\n"
    assert not is_correction("No, Bramblewick will do.", asked)
    assert is_correction("That's wrong, it is called Bramblewick.", asked)
    for asked in ("Which do you want? Red or blue.", "It is booked. Let me know if you also want a taxi."):
        assert not is_correction("No, the green one.", asked)
    assert is_correction(
        "No, it is Bramblewick.", "What is it called? You may well ask. It is called Quillmoor."
    )


@pytest.mark.parametrize(("turn", "hint"), HINTS)
def test_the_hint_is_what_the_correction_says(turn: str, hint: str) -> None:
    assert hint_of(turn) == hint


@pytest.mark.parametrize(
    "turn", [*WITHOUT_A_HINT, "What is it called?", "No, what is it called", "Try again"]
)
def test_where_nothing_says_what_is_right_there_is_no_hint(turn: str) -> None:
    assert hint_of(turn) is None


@given(
    st.sampled_from(
        ["No, ", "Nope. ", "Wrong: ", "No, that's wrong. ", "Actually, ", "that is incorrect - "]
    ),
    st.sampled_from(["it is called {}.", "its name is {}", "the bakery belongs to {}!"]),
    NAMES,
)
def test_whatever_the_lead_in_the_statement_is_the_hint(lead: str, statement: str, name: str) -> None:
    said = statement.format(name)
    assert is_correction(lead + said, ANSWER)
    assert hint_of(lead + said) == said


@given(
    st.text(max_size=200)
    | st.lists(st.sampled_from("No , . not it is Bramblewick wrong ? but".split())).map(" ".join)
)
def test_a_hint_is_said_in_the_users_own_words(turn: str) -> None:
    hint = hint_of(turn)
    if hint is not None:
        left = iter(re.findall(r"\w+", turn))
        assert all(word in left for word in re.findall(r"\w+", hint))
        assert hint.strip()
