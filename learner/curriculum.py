"""From lessons to the rows of a round, with the model at hand: targets, reuse, fresh rollouts.

What is left out is counted by reason in `left_out`; nothing is ever truncated.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from buffer.teacher import TEACHER_ANSWERS
from learner.config import LearnerConfig
from learner.lessons import Lesson, Limits
from learner.model import Model
from learner.publish import probe_logprobs
from learner.rows import Row, may_reuse, prompts_of, target_rows


@dataclass
class Curriculum:
    """Builds rows for one round's lessons. `parent` is the version whose adapter the model holds."""

    model: Model
    config: LearnerConfig
    parent: int
    seed: int
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def limits(self) -> Limits:
        return Limits(self.config.max_prompt_tokens, self.config.max_completion_tokens)

    def rows(self, lessons: Sequence[Lesson]) -> list[Row]:
        """The rows that are known before the first step. The question as it was asked counts twice."""
        rows: list[Row] = []
        for lesson, target in zip(lessons, self.targets(lessons), strict=True):
            made, dropped = target_rows(lesson, target, self.model.render, self.limits)
            self.left_out["over_limit"] += dropped
            rows += made[:1] + made
        return rows + self._reuse(lessons)

    def targets(self, lessons: Sequence[Lesson]) -> list[list[int]]:
        """The tokens that a lesson's answer should have: the correction's own, or, where the feedback says
        only something about the answer, what the teacher answers with that in its context."""
        ids = {
            le.feedback_id: [*self.model.encode(le.given.text or ""), self.model.eos]
            for le in lessons
            if le.given.kind not in TEACHER_ANSWERS
        }
        told = [le for le in lessons if le.given.kind in TEACHER_ANSWERS]
        with self.model.base():
            prompts = [prompts_of(le, le.question, self.model.render)[1] for le in told]
            answers = self.model.generate(prompts, max_tokens=self.config.max_completion_tokens)
        ids |= {le.feedback_id: answer for le, answer in zip(told, answers, strict=True)}
        return [ids[le.feedback_id] for le in lessons]

    def fresh(self, lessons: Sequence[Lesson], step: int) -> list[Row]:
        """What the student, as it is now, answers to each lesson; seeded by round and step."""
        prompts = [prompts_of(le, le.question, self.model.render) for le in lessons]
        completions = self.model.generate(
            [student for student, _ in prompts],
            max_tokens=self.config.max_answer_tokens,
            temperature=self.config.rollout_temperature,
            seed=self.seed + step,
        )
        return [Row("fresh", *p, tuple(c)) for p, c in zip(prompts, completions, strict=True)]

    def _reuse(self, lessons: Sequence[Lesson]) -> list[Row]:
        """Logged completions that still are rollouts of the parent (`learner.rows.may_reuse`)."""
        rows = []
        for lesson in lessons:
            prompts = prompts_of(lesson, lesson.question, self.model.render)
            row = Row("reuse", *prompts, lesson.logged_ids)
            fits = 0 < len(row.completion) <= self.limits.completion
            now = probe_logprobs(self.model, [row])[0] if fits and not lesson.tempered else None
            why_not = may_reuse(
                lesson,
                self.parent,
                now,
                max_lag=self.config.max_policy_lag,
                max_gap=self.config.max_reuse_gap,
            )
            if why_not is None and fits:
                rows.append(row)
            else:
                self.left_out[why_not or "over_limit"] += 1
        return rows
