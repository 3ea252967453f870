"""The rows that a round trains on: whose tokens, under which prompt, towards which teacher.

A row is a completion with two prompts: the student's, and the teacher's with the correction in it. Kinds:

    target    the correction's own tokens, for the question as asked and for each of its rephrasings
    reuse     what a policy of ours had answered, by its logged token ids (arXiv 2601.19897 trains on the
              student's own outputs; a server has them already)
    fresh     what the student answers now
    anchor    base's answer to a general prompt, towards base itself: it holds the model where it was

Pure: encoding is an argument.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from buffer.teacher import teacher_messages, with_last_turn
from learner.lessons import Lesson, Limits, Render
from learner.rephrase import TRAINED, rephrased

Kind = Literal["target", "reuse", "fresh", "anchor"]


@dataclass(frozen=True, slots=True)
class Row:
    """One training row. Ids are token ids; `teacher` is the teacher's prompt."""

    kind: Kind
    student: tuple[int, ...]
    teacher: tuple[int, ...]
    completion: tuple[int, ...]


def prompts_of(lesson: Lesson, question: str, render: Render) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The student's and the teacher's prompt for a lesson whose question is put as `question`.

    Both come from one template and differ in the last turn's text alone.
    """
    messages = with_last_turn(lesson.messages, question)
    teacher = teacher_messages(messages, lesson.given)
    if teacher is None:
        raise ValueError(f"feedback {lesson.feedback_id} has no teacher context")
    return tuple(render(messages, lesson.tools)), tuple(render(teacher, lesson.tools))


def target_rows(
    lesson: Lesson, target: Sequence[int], render: Render, limits: Limits
) -> tuple[list[Row], int]:
    """The target's tokens under every trained phrasing, and how many rows were over a limit."""
    rows, dropped = [], 0
    for question in [lesson.question, *rephrased(lesson.question, TRAINED)]:
        row = Row("target", *prompts_of(lesson, question, render), tuple(target))
        fits = len(row.teacher) <= limits.prompt and len(target) <= limits.completion
        rows += [row] if fits else []
        dropped += not fits
    return rows, dropped


def may_reuse(
    lesson: Lesson, parent: int, parent_logprobs: Sequence[float] | None, *, max_lag: int, max_gap: float
) -> str | None:
    """Why a logged completion is no rollout of the parent; None when it is one.

    The loss needs no importance weight (the expectation over the next token is exact), only prefixes that
    the student would visit: so the policy must be recent, and the mean log-ratio of its tokens small. Where
    sampling was not at T=1 that ratio says nothing, so it is not looked at.
    """
    if not lesson.logged_ids:
        return "nothing_logged"
    if parent - lesson.logged_policy > max_lag:
        return "policy_too_old"
    if lesson.tempered or parent_logprobs is None or len(lesson.logged_logprobs) != len(parent_logprobs):
        return None
    gap = sum(a - b for a, b in zip(parent_logprobs, lesson.logged_logprobs, strict=True)) / len(
        parent_logprobs
    )
    return "policy_moved_on" if abs(gap) > max_gap else None


def endless(rows: Callable[[], Sequence[Row]], rng: random.Random) -> Iterator[Row]:
    """Rows without end: each shuffled pass gives every row once. `rows` is asked anew for every pass."""
    while present := list(rows()):
        rng.shuffle(present)
        yield from present
