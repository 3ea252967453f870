"""The rows that a round trains on: whose tokens, under which prompt, towards which teacher.

A row is a completion with two prompts: the student's, and the teacher's with the correction in it. Kinds:

    target     the correction's own tokens, for the question as asked and for each of its rephrasings
    elicited   what the teacher answers, for the same, where the feedback only says something about the answer
    reuse      what a policy of ours had answered, by its logged token ids (arXiv 2601.19897 trains on the
               student's own outputs; a server has them already)
    fresh      what the student answers now
    rated      a logged answer that was rated good, towards the policy that the round starts from
    lookalike  a lesson's answer about somebody else, to its question about them, towards base: the lesson
               stays with its subject
    anchor     base's answer to a general prompt, towards base: it holds the model where it was

Pure: encoding is an argument.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

from buffer.teacher import with_last_turn
from learner.config import LearnerConfig
from learner.lessons import Lesson, Limits, Render

Kind = Literal["target", "elicited", "reuse", "fresh", "rated", "lookalike", "anchor"]
TAUGHT: frozenset[Kind] = frozenset({"target", "elicited", "reuse", "fresh"})
"""Rows whose teacher has the correction in its context; the others' teacher sees what the student sees."""


@dataclass(frozen=True, slots=True)
class Row:
    """One training row. Ids are token ids; `teacher` is the teacher's prompt."""

    kind: Kind
    student: tuple[int, ...]
    teacher: tuple[int, ...]
    completion: tuple[int, ...]

    def fits(self, limits: Limits) -> bool:
        """Whether it is within the limits: nothing is ever truncated."""
        return len(self.teacher) <= limits.prompt and len(self.completion) <= limits.completion

    @property
    def tokens(self) -> int:
        """Length of what the student reads."""
        return len(self.student) + len(self.completion)


@dataclass
class Pools:
    """A round's rows by what they are for. Fresh rollouts join `lessons` while the round runs."""

    lessons: list[Row] = field(default_factory=list)
    replay: list[Row] = field(default_factory=list)
    lookalikes: list[Row] = field(default_factory=list)
    anchors: list[Row] = field(default_factory=list)

    def batches(self, config: LearnerConfig, seed: int) -> Iterator[list[Row]]:
        """A step's rows, without end: each pool gives its share, an empty one nothing."""
        rng = random.Random(seed)  # noqa: S311 - reproducible order, not secrecy
        shares = (
            (self.lessons, config.lessons_per_step),
            (self.replay, config.replay_per_step),
            (self.lookalikes, config.lookalikes_per_step),
            (self.anchors, config.anchors_per_step),
        )
        drawn = [(pool, _endless(pool, rng), count) for pool, count in shares]
        while True:
            yield [row for pool, rows, count in drawn if pool for row in islice(rows, count)]


def _endless(pool: list[Row], rng: random.Random) -> Iterator[Row]:
    """The pool's rows without end: each shuffled pass gives every row once. What is added meanwhile is mixed
    into the rest of the present one: a pass may be half of a round."""
    left: list[Row] = []
    known = 0
    while True:
        if not left or known < len(pool):
            left += pool[known:] or pool
            known = len(pool)
            rng.shuffle(left)
        yield left.pop()


def prompts_of(lesson: Lesson, question: str, render: Render) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The student's and the teacher's prompt for a lesson whose question is put as `question`.

    Both come from one template and differ in the last turn's text alone.
    """
    messages = with_last_turn(lesson.messages, question)
    teacher = lesson.teacher(messages)
    if teacher is None:
        raise ValueError(f"feedback {lesson.feedback_id} has no teacher context")
    kwargs = lesson.template_kwargs
    return tuple(render(messages, kwargs)), tuple(render(teacher, kwargs))


def answer_room(lesson: Lesson, answer: Callable[[str], Sequence[int]], config: LearnerConfig) -> int:
    """Tokens within which an answer has to show the lesson: half as many again as the right one has, where it
    is known; where a hint or a check is looked for anywhere, and at most, `max_completion_tokens`."""
    most = config.max_completion_tokens
    if lesson.answer is not None:
        return min(most, max(config.max_answer_tokens, len(answer(lesson.answer)) * 3 // 2))
    sought = lesson.given.check is not None or lesson.given.kind == "follow_up"
    return most if sought else min(most, config.max_answer_tokens)


def target_rows(
    lesson: Lesson, target: Sequence[int], questions: Sequence[str], render: Render, limits: Limits
) -> tuple[list[Row], int]:
    """The target's tokens under every wording of the question, and how many rows were over a limit."""
    kind: Kind = "elicited" if lesson.answer is None else "target"
    rows, dropped = [], 0
    for question in questions:
        row = Row(kind, *prompts_of(lesson, question, render), tuple(target))
        rows += [row] if (fits := row.fits(limits)) else []
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
    if abs(parent - lesson.logged_policy) > max_lag:  # after a rollback the parent is the older one
        return "policy_too_old"
    if lesson.tempered:
        return None
    if parent_logprobs is None or len(lesson.logged_logprobs) != len(parent_logprobs):
        return "logprobs_missing"
    gap = sum(a - b for a, b in zip(parent_logprobs, lesson.logged_logprobs, strict=True)) / len(
        parent_logprobs
    )
    return "policy_moved_on" if abs(gap) > max_gap else None
