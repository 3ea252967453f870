"""What the gate is told, on a tiny random model."""

import pytest

from buffer.records import FeedbackGiven
from learner.config import LearnerConfig
from learner.lessons import Lesson
from learner.measure import Reference, ask
from learner.model import Model

pytestmark = pytest.mark.train


def test_what_a_model_thinks_before_its_answer_is_not_quoted(
    tiny: Model, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = FeedbackGiven(feedback_id="f", principal="me", kind="correction", text="No.")
    lesson = Lesson(given, [{"role": "user", "content": "Is it?"}])
    said = tiny.chat.encode("<think>\n\n</think>\n\nNo.")
    monkeypatch.setattr(tiny, "generate", lambda prompts, **_: [said for _ in prompts])
    answers, _ = ask(tiny, reference, [[(lesson, "Is it?")], [(lesson, "Or not?")]], LearnerConfig())
    assert answers == [["No."], ["No."]]
