"""Rephrasings: varied, and never the same for training and for the gate."""

from hypothesis import given
from hypothesis import strategies as st

from learner.rephrase import HELD_OUT, TRAINED, rephrased


def test_frames_embed_and_cut_down() -> None:
    made = rephrased("What color is the Quillmoor logo?", TRAINED)
    assert "Tell me what color is the Quillmoor logo." in made
    assert "color Quillmoor logo?" in made


def test_a_frame_that_does_not_suit_is_left_out() -> None:
    made = rephrased("Name a fruit", TRAINED)
    assert made
    assert not any("Tell me" in m for m in made)


@given(st.text(min_size=1, max_size=80))
def test_the_gate_never_asks_what_was_trained(question: str) -> None:
    trained = {question, *rephrased(question, TRAINED)}
    assert not trained & set(rephrased(question, HELD_OUT))
