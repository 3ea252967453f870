"""From lessons to the rows of a round, with the model at hand.

What is left out is counted by reason in `left_out`; nothing is ever truncated.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from buffer.records import Decision
from buffer.teacher import told, with_last_turn
from learner.config import LearnerConfig
from learner.lessons import Lesson, Limits, answered
from learner.lookalike import lookalikes, subjects_of
from learner.model import Model
from learner.publish import probe_logprobs
from learner.rephrase import HELD_OUT, TRAINED, asked_for, readable, rephrased, scrambled
from learner.rows import Pools, Row, answer_room, may_reuse, prompts_of, target_rows
from learner.sdft import teaching

_ASKED = 4
"""Rows that put the question as it was asked, among some fifteen other wordings."""
_WRITTEN_TOKENS = 40
_WRITTEN_TEMPERATURE = 0.8


@dataclass(frozen=True, slots=True)
class Wordings:
    """How a lesson's question is put: in training, and to the candidate at the gate."""

    trained: tuple[str, ...]
    held_out: tuple[str, ...]


@dataclass
class Curriculum:
    """Builds rows for one round's lessons. `parent` is the version whose adapter the model holds."""

    model: Model
    config: LearnerConfig
    parent: int
    seed: int
    left_out: Counter[str] = field(default_factory=Counter)
    _targets: dict[str, list[int]] = field(default_factory=dict)
    _target_rows: dict[str, list[Row]] = field(default_factory=dict)
    _well_taught: set[str] = field(default_factory=set)
    """Lessons whose teacher answers right: what the student says may be drawn to it."""

    @property
    def limits(self) -> Limits:
        return Limits.of(self.config)

    def teachable(self, lessons: Sequence[Lesson]) -> tuple[list[Lesson], list[Decision]]:
        """Those that have a target, and a decision against each of the others.

        A target is the tokens that the answer should have: the correction's own, or, where the feedback only
        says something about the answer, what the teacher answers with that in its context.
        """
        prompts = {le.feedback_id: prompts_of(le, le.question, self.model.chat.render)[1] for le in lessons}
        fits = {id_ for id_, prompt in prompts.items() if len(prompt) <= self.limits.prompt}
        unsaid = [le for le in lessons if le.answer is None and le.feedback_id in fits]
        with teaching(self.model, self.config):
            answers = self.model.generate(
                [prompts[le.feedback_id] for le in unsaid], max_tokens=self.config.max_completion_tokens
            )
        self._targets |= {le.feedback_id: answer for le, answer in zip(unsaid, answers, strict=True)}
        self._targets |= {
            le.feedback_id: self.model.chat.answer(le.answer, le.template_kwargs)
            for le in lessons
            if le.answer is not None and le.feedback_id in fits
        }
        against = {le.feedback_id: self._against(le) for le in lessons}
        skipped = [decision for decision in against.values() if decision is not None]
        self.left_out.update(decision.reason for decision in skipped)
        return [le for le in lessons if against[le.feedback_id] is None], skipped

    def _against(self, lesson: Lesson) -> Decision | None:
        """Why a lesson's target cannot be taught. Limits may have been lowered since it was accepted."""
        target = self._targets.get(lesson.feedback_id)

        def skip(reason: str, detail: str) -> Decision:
            return Decision(feedback_id=lesson.feedback_id, status="skipped", reason=reason, detail=detail)

        if target is None:
            return skip("prompt_too_long", f"the teacher's prompt is over {self.limits.prompt} tokens")
        if not self.model.chat.ended(target):
            return skip("teacher_too_long", f"so told, it answers in over {self.limits.completion} tokens")
        if len(target) > self.limits.completion:
            return skip("answer_too_long", f"the right answer is over {self.limits.completion} tokens")
        if lesson.given.kind == "follow_up" and not answered(self.model.chat.decode(target), lesson):
            return skip("teacher_misses_hint", "so told, it still does not answer so")
        return None

    def pools(
        self,
        lessons: Sequence[Lesson],
        replay: Sequence[Lesson],
        wordings: Sequence[Wordings],
        anchors: Sequence[Row],
    ) -> Pools:
        """All rows that are known before the first step. `lessons` are teachable, `wordings` are theirs.

        An earlier lesson that is a rating is rehearsed as it was answered.
        """
        rated = [le for le in replay if le.given.kind == "rating"]
        earlier, _ = self.teachable([le for le in replay if le.given.kind != "rating"])
        right = self._right_teachers(lessons)
        self._well_taught = {le.feedback_id for le in right}
        return Pools(
            lessons=self._taught(lessons, wordings) + self._reuse(right),
            replay=self._taught(earlier, [self._framed(le) for le in earlier]) + self._rated(rated),
            lookalikes=self._lookalikes(lessons, earlier),
            anchors=list(anchors),
        )

    def wordings(self, lessons: Sequence[Lesson]) -> list[Wordings]:
        """Each lesson's question in other words: by frames, and as the model itself writes them."""
        every = [self._framed(le) for le in lessons]
        written = self._written(lessons, every) if self.config.written_questions else [[] for _ in lessons]
        made = []
        for framed, questions in zip(every, written, strict=True):
            kept_out = len(questions) // 3
            made.append(
                Wordings((*framed.trained, *questions[kept_out:]), (*framed.held_out, *questions[:kept_out]))
            )
        return made

    def fresh(self, lessons: Sequence[Lesson], step: int) -> list[Row]:
        """What the student, as it is now, answers to each lesson, and where that is wrong, or cannot be
        judged, all rows that teach the lesson once more; seeded by round and step. Plain fine-tuning never
        learns from wrong answers."""
        prompts = [prompts_of(le, le.question, self.model.chat.render) for le in lessons]
        completions = self.model.generate(
            [student for student, _ in prompts],
            max_tokens=self._room(lessons),
            temperature=self.config.rollout_temperature,
            seed=self.seed + step,
        )
        rows: list[Row] = []
        for lesson, put, completion in zip(lessons, prompts, completions, strict=True):
            if lesson.feedback_id in self._well_taught:
                rows.append(Row("fresh", *put, tuple(completion)))
        for lesson, completion in zip(lessons, completions, strict=True):
            if lesson.wordless or not answered(self.model.chat.decode(completion), lesson):
                rows += self._target_rows[lesson.feedback_id]
        return rows

    def _right_teachers(self, lessons: Sequence[Lesson]) -> list[Lesson]:
        """Those whose teacher, with the correction in its context, answers right. What no words show is taken
        on trust."""
        if self.config.objective == "cross_entropy":
            return []
        prompts = [prompts_of(le, le.question, self.model.chat.render)[1] for le in lessons]
        with teaching(self.model, self.config):
            answers = self.model.generate(prompts, max_tokens=self._room(lessons))
        right = [
            le
            for le, answer in zip(lessons, answers, strict=True)
            if le.wordless or answered(self.model.chat.decode(answer), le)
        ]
        self.left_out["teacher_wrong"] += len(lessons) - len(right)
        return right

    def _room(self, lessons: Sequence[Lesson]) -> list[int]:
        return [answer_room(le, self.model.chat.answer, self.config) for le in lessons]

    def _framed(self, lesson: Lesson) -> Wordings:
        question = lesson.question
        if not self.config.framed_questions:
            return Wordings((), tuple(rephrased(question, HELD_OUT)))
        rng = random.Random(f"words {self.seed} {question}")  # noqa: S311 - reproducible, not secret
        mixed = scrambled(question, self.config.scrambled_questions, rng)
        framed = rephrased(question, TRAINED, lesson.answer or "")
        return Wordings((*framed, *mixed), tuple(rephrased(question, HELD_OUT)))

    def _taught(self, lessons: Sequence[Lesson], wordings: Sequence[Wordings]) -> list[Row]:
        """The question as it was asked counts several times."""
        rows: list[Row] = []
        for lesson, wording in zip(lessons, wordings, strict=True):
            target = self._targets[lesson.feedback_id]
            questions = [lesson.question, *wording.trained]
            made, dropped = target_rows(lesson, target, questions, self.model.chat.render, self.limits)
            self.left_out["over_limit"] += dropped
            self._target_rows[lesson.feedback_id] = made[:1] * (_ASKED - 1) + made
            rows += self._target_rows[lesson.feedback_id]
        return rows

    def _written(self, lessons: Sequence[Lesson], framed: Sequence[Wordings]) -> list[list[str]]:
        """Wordings that base writes with the correction at hand. One is kept if it reads as the same question
        (`learner.rephrase.readable`), is none of the frames', and the teacher then still answers right."""
        count = self.config.written_questions
        prompts = [self.model.chat.render(asked_for(le.question, told(le.given) or "")) for le in lessons]
        with self.model.base():
            drafts = self.model.generate(
                [prompt for prompt in prompts for _ in range(count)],
                max_tokens=_WRITTEN_TOKENS,
                temperature=_WRITTEN_TEMPERATURE,
                seed=self.seed,
            )
            pairs = []
            for index, ids in enumerate(drafts):
                lesson, known = lessons[index // count], framed[index // count]
                question = readable(self.model.chat.decode(ids), lesson.question, told(lesson.given) or "")
                if question is None:
                    self.left_out["written_unusable"] += 1
                elif (lesson, question) in pairs or question in (*known.trained, *known.held_out):
                    self.left_out["written_twice"] += 1
                else:
                    pairs.append((lesson, question))
            teachers = [prompts_of(le, question, self.model.chat.render)[1] for le, question in pairs]
            answers = self.model.generate(teachers, max_tokens=self._room([le for le, _ in pairs]))
        kept: dict[str, list[str]] = {le.feedback_id: [] for le in lessons}
        for (lesson, question), answer in zip(pairs, answers, strict=True):
            if lesson.wordless or answered(self.model.chat.decode(answer), lesson):
                kept[lesson.feedback_id].append(question)
            else:
                self.left_out["written_misleads_teacher"] += 1
        return [kept[le.feedback_id] for le in lessons]

    def _lookalikes(self, lessons: Sequence[Lesson], earlier: Sequence[Lesson]) -> list[Row]:
        """The lessons' questions about others, in any of their wordings, answered as the lesson would be. For
        each lesson without such questions those of an earlier one, which leaks when it is rehearsed alone."""
        if not self.config.lookalikes_per_step:
            return []
        rng = random.Random(f"lookalikes {self.seed}")  # noqa: S311 - reproducible, not secret
        taken = subjects_of(le.question for le in (*lessons, *earlier))
        about = [le for le in lessons if le.subject is not None]
        without = len(lessons) - len(about)
        self.left_out["no_lookalike"] += without
        rehearsed = [le for le in earlier if le.subject is not None]
        about += rng.sample(rehearsed, min(without, len(rehearsed)))
        return [row for lesson in about for row in self._about_others(lesson, taken, rng)]

    def _about_others(self, lesson: Lesson, taken: frozenset[str], rng: random.Random) -> list[Row]:
        right = lesson.answer
        said = self.model.chat.decode(self._targets[lesson.feedback_id]) if right is None else right
        frames = TRAINED if self.config.framed_questions else ()
        count = self.config.lookalikes_per_lesson
        rows: list[Row] = []
        for question, answer in lookalikes(lesson.question, said, count, rng, taken):
            wording = rng.choice([question, *rephrased(question, frames, answer)])
            put = with_last_turn(lesson.messages, wording)
            prompt = tuple(self.model.chat.render(put, lesson.template_kwargs))
            if right is None:  # the teacher's turn, which opens as it does
                turn = [*self.model.chat.encode(answer), self.model.chat.eos]
            else:
                turn = self.model.chat.answer(answer, lesson.template_kwargs)
            row = Row("lookalike", prompt, prompt, tuple(turn))
            rows += [row] if (fits := row.fits(self.limits)) else []
            self.left_out["over_limit"] += not fits
        return rows

    def _rated(self, lessons: Sequence[Lesson]) -> list[Row]:
        prompts = [tuple(self.model.chat.render(le.messages, le.template_kwargs)) for le in lessons]
        rows = [Row("rated", p, p, le.logged_ids) for p, le in zip(prompts, lessons, strict=True)]
        kept = [row for row in rows if row.fits(self.limits)]
        self.left_out["over_limit"] += len(rows) - len(kept)
        return kept

    def _reuse(self, lessons: Sequence[Lesson]) -> list[Row]:
        """Logged completions that still are rollouts of the parent (`learner.rows.may_reuse`)."""
        rows: list[Row] = []
        for lesson in lessons if self.config.reuse else ():
            prompts = prompts_of(lesson, lesson.question, self.model.chat.render)
            row = Row("reuse", *prompts, lesson.logged_ids)
            if len(row.completion) > self.limits.completion:
                self.left_out["over_limit"] += 1
                continue
            scored = row.completion and not lesson.tempered
            now = probe_logprobs(self.model, [row])[0] if scored else None
            why_not = may_reuse(
                lesson,
                self.parent,
                now,
                max_lag=self.config.max_policy_lag,
                max_gap=self.config.max_reuse_gap,
            )
            if why_not is None:
                rows.append(row)
            else:
                self.left_out[why_not] += 1
        return rows
