"""What a lesson's answer should be, by the kind of its feedback."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import pytest

from buffer.records import FeedbackGiven, FeedbackKind
from learner.config import LearnerConfig
from learner.curriculum import Curriculum
from learner.lessons import Lesson
from learner.model import Model

EOS = 0


class Echo:
    """In a model's place: a token is a character, and what base answers to a prompt is that prompt."""

    eos = EOS
    adapter = True

    def encode(self, text: str) -> list[int]:
        return [ord(c) for c in text]

    def render(self, messages: Sequence[Any], tools: object = None) -> list[int]:
        return self.encode(str(messages[-1]["content"]))

    @contextmanager
    def base(self) -> Iterator[None]:
        self.adapter = False
        yield
        self.adapter = True

    def generate(self, prompts: Sequence[Sequence[int]], *, max_tokens: int) -> list[list[int]]:
        assert not self.adapter, "the teacher is the base model"
        return [[*prompt, EOS] for prompt in prompts]


def lesson(kind: FeedbackKind, text: str) -> Lesson:
    given = FeedbackGiven(feedback_id=f"{kind} {text}", principal="ann", kind=kind, text=text)
    return Lesson(given, [{"role": "user", "content": "What is it called?"}])


@pytest.mark.parametrize(
    ("kind", "text", "starts", "ends"),
    [
        ("correction", "Bramblewick.", "Bramblewick.", "Bramblewick."),
        ("demonstration", "Bramblewick.", "Bramblewick.", "Bramblewick."),
        ("instruction", "Shorter.", "What is it called?", "Shorter."),
        ("follow_up", "No, it's Bramblewick, not Quillmoor.", "What is it called?", "it's Bramblewick."),
    ],
)
def test_the_target_is_the_correction_itself_or_what_the_teacher_answers(
    kind: FeedbackKind, text: str, starts: str, ends: str
) -> None:
    curriculum = Curriculum(cast(Model, Echo()), LearnerConfig(), parent=0, seed=1)
    # among others of either sort, so that each gets its own
    lessons = [lesson("correction", "First."), lesson(kind, text), lesson("instruction", "Last.")]
    target = "".join(map(chr, curriculum.targets(lessons)[1]))
    assert target.endswith(chr(EOS))
    assert target.startswith(starts) and target[:-1].endswith(ends)
