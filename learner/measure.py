"""Measuring a candidate against its parent and base: what the gate judges.

General prompts come with base's own greedy answers (`Reference`), computed once per base model and kept.
"""

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from buffer.files import make_directory, publish_directory, scratch
from buffer.teacher import with_last_turn
from learner.chat import after_thinking
from learner.config import LearnerConfig
from learner.gate import Evaluation, KeptResult, LessonResult, degenerate
from learner.lessons import Lesson, answered
from learner.lookalike import HELD_OUT, lookalikes, subjects_of
from learner.loss import divergence
from learner.model import Model
from learner.publish import probe_logprobs
from learner.rows import Row, answer_room, prompts_of
from learner.sdft import teaching
from learner.whitening import Whitening, load_whitenings, save_whitenings, whitenings_of

_DATA = Path(__file__).parent / "data"
_NAMES = ("anchors", "general")
_FORMAT = 3
"""Of what is kept of base: other files than this version's are not read."""
ANSWER_TOKENS = 40
"""Length of base's answers, for anchors and for drift."""
LOOPS_ASKED = 12
"""General prompts that a candidate answers freely, to be looked at for loops."""
OTHERS = 2
"""Look-alikes of each lesson's question that a candidate answers, to be looked at for leaks."""
PROBED = 3
"""Lessons, and as many general prompts, whose log-probabilities a server checks before it serves."""


HeldOut = Sequence[Sequence[str]]
"""For each lesson, wordings of its question that training never sees."""
Question = tuple[Lesson, str]
"""A lesson, and how its question is put."""
Key = tuple[str, str]
"""Feedback, and how its question is put."""


@dataclass(frozen=True, slots=True)
class Reference:
    """Base's greedy answers: `anchors` are trained on, `general` measure drift, and never the other way."""

    anchors: tuple[Row, ...]
    general: tuple[Row, ...]
    states: Mapping[Row, Tensor]
    """Base's hidden states, `[tokens, D]`, on every row of both."""
    whitenings: Mapping[str, Whitening]
    """By layer, from what it reads on the anchors."""

    def coordinates(self, config: LearnerConfig) -> Mapping[str, Whitening]:
        """In which the adapter is drawn and moved, by layer."""
        return self.whitenings if config.whitened else {}

    @property
    def anchor_states(self) -> dict[Row, Tensor]:
        """Those on the anchors, to train towards."""
        return {row: self.states[row] for row in self.anchors}


def load_reference(model: Model, cache: Path) -> Reference:
    """Read base's answers to these prompts, in the model's precision, from `cache`, or generate and keep them
    there (a minute or two on two cores)."""
    precision = str(model.dtype).removeprefix("torch.")
    prompts = {name: [model.chat.render(json.loads(line)) for line in _lines(name)] for name in _NAMES}
    asked = hashlib.sha256(json.dumps(prompts).encode()).hexdigest()  # another chat template asks otherwise
    directory = cache / f"reference-{_FORMAT}-{model.digest[:12]}-{asked[:12]}-{precision}"
    if not directory.exists():
        _generate_reference(model, prompts, directory)
    answers = json.loads((directory / "answers.json").read_text())
    states = load_file(directory / "states.safetensors", device=str(model.device))
    rows = {name: tuple(_anchor(p, c) for p, c in answers[name]) for name in _NAMES}
    return Reference(
        **rows,
        states={row: states[f"{name}.{i}"] for name in rows for i, row in enumerate(rows[name])},
        whitenings=load_whitenings(directory / "whitening.safetensors", model.device),
    )


def _generate_reference(model: Model, prompts: Mapping[str, list[list[int]]], directory: Path) -> None:
    with model.base():
        completions = iter(model.generate(list(chain(*prompts.values())), max_tokens=ANSWER_TOKENS))
        answers = {name: [(prompt, next(completions)) for prompt in prompts[name]] for name in _NAMES}
        rows = {name: [_anchor(p, c) for p, c in answers[name]] for name in _NAMES}
        found = {name: states_of(model, rows[name]) for name in _NAMES}
    states = {f"{name}.{i}": state.contiguous() for name in _NAMES for i, state in enumerate(found[name])}
    whitenings = whitenings_of(model, rows["anchors"])
    with scratch(directory.parent, ".reference-") as folder:
        made = folder / "reference"
        make_directory(made)
        (made / "answers.json").write_text(json.dumps(answers))
        save_file(states, made / "states.safetensors")
        save_whitenings(whitenings, made / "whitening.safetensors")
        with suppress(FileExistsError):  # another process, a benchmark's or the learner's, was first
            publish_directory(made, directory)


def _lines(name: str) -> list[str]:
    return (_DATA / f"{name}.jsonl").read_text().splitlines()


def _anchor(prompt: Sequence[int], completion: Sequence[int]) -> Row:
    return Row("anchor", tuple(prompt), tuple(prompt), tuple(completion))


def states_of(model: Model, rows: Sequence[Row]) -> list[Tensor]:
    """The student's hidden states on each row."""
    return model.states([r.student for r in rows], [r.completion for r in rows])


def mean_divergence(model: Model, teacher: Sequence[Tensor], student: Sequence[Tensor]) -> float:
    """Mean over rows of the mean over tokens of KL(teacher || student), in nats."""
    per_row = [divergence(t, s, model.head_VD).mean() for t, s in zip(teacher, student, strict=True)]
    return float(torch.stack(per_row).mean())


# --- what the gate judges ------------------------------------------------------------------------------


class Aim(NamedTuple):
    """What the teacher says to one wording of a `wordless` lesson, which only the distance to it can judge:
    it is learned where the student, without the instruction, has come at least half the way."""

    row: Row
    teacher: Tensor
    """Its hidden states there."""
    distance: float
    """KL to the sharpened teacher at the start: the parent's, for an earlier lesson base's."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """The parent's side of the paired tests, measured before the first step."""

    answers: tuple[str, ...]
    """To the round's lessons, asked as they were."""
    kept: tuple[bool, ...]
    """Whether it answers each earlier lesson."""
    aims: Mapping[Key, Aim]
    general_states: tuple[Tensor, ...]
    degenerate: float
    probed: tuple[Row, ...]
    probe_logprobs: tuple[tuple[float, ...], ...]


def measure_parent(
    model: Model,
    reference: Reference,
    lessons: Sequence[Lesson],
    held_out: HeldOut,
    replay: Sequence[Lesson],
    config: LearnerConfig,
) -> Baseline:
    """Measure the model as it is, before training."""
    questions = [[(le, le.question) for le in group] for group in (lessons, replay)]
    (answers, retold), loops = ask(model, reference, questions, config)
    wordless = [(le, question) for le, question in (*_put(lessons, held_out), *questions[1]) if le.wordless]
    targets = _targets(model, [*wordless, *((le, le.question) for le in lessons[:PROBED])], config)
    aims, distances = _aims(model, wordless, targets[: len(wordless)], replay, config)
    probed = (*targets[len(wordless) :], *reference.general[:PROBED])
    return Baseline(
        answers=tuple(answers),
        kept=tuple(
            _shows(le, le.question, answer, aims, distances)
            for le, answer in zip(replay, retold, strict=True)
        ),
        aims=aims,
        general_states=tuple(states_of(model, reference.general)),
        degenerate=loops,
        probed=probed,
        probe_logprobs=tuple(map(tuple, probe_logprobs(model, probed))),
    )


def measure_candidate(
    model: Model,
    reference: Reference,
    lessons: Sequence[Lesson],
    held_out: HeldOut,
    replay: Sequence[Lesson],
    before: Baseline,
    config: LearnerConfig,
) -> Evaluation:
    """Measure the model as it is now, against its parent's baseline and base."""
    base_states = [reference.states[row] for row in reference.general]
    states = states_of(model, reference.general)
    put = _put(lessons, held_out)
    about_others = lookalike_questions(lessons)
    questions = [put, about_others, [(le, le.question) for le in replay]]
    (said, of_others, retold), loops = ask(model, reference, questions, config)
    answers = {(le.feedback_id, question): a for (le, question), a in zip(put, said, strict=True)}
    leaks = [(le.feedback_id, answered(a, le)) for (le, _), a in zip(about_others, of_others, strict=True)]
    aims = before.aims.values()
    near = _distances(model, [aim.row for aim in aims], [aim.teacher for aim in aims], config)
    distances = dict(zip(before.aims, near, strict=True))
    return Evaluation(
        lessons=_lesson_results(lessons, held_out, answers, distances, leaks, before),
        kept=[
            KeptResult(
                feedback_id=le.feedback_id,
                parent=parent,
                candidate=_shows(le, le.question, answer, before.aims, distances),
            )
            for le, parent, answer in zip(replay, before.kept, retold, strict=True)
        ],
        drift=mean_divergence(model, base_states, states),
        parent_drift=mean_divergence(model, base_states, before.general_states),
        kl_to_parent=mean_divergence(model, before.general_states, states),
        degenerate=loops,
        parent_degenerate=before.degenerate,
    )


def ask(
    model: Model, reference: Reference, questions: Sequence[Sequence[Question]], config: LearnerConfig
) -> tuple[list[list[str]], float]:
    """Greedy answers, without any correction in context, to each group of questions, and of free answers to
    general prompts the share that is empty or loops. All are decoded together: a batch takes hardly longer
    than one of its rows."""
    put = [(le, with_last_turn(le.messages, question)) for le, question in chain.from_iterable(questions)]
    prompts = [model.chat.render(messages, le.template_kwargs) for le, messages in put]
    general = [row.student for row in reference.general[:LOOPS_ASKED]]
    room = [answer_room(le, model.chat.answer, config) for le, _ in put]
    most = [*room, *[config.max_answer_tokens] * len(general)]
    answers = iter(model.generate([*prompts, *general], max_tokens=most))
    texts = [[after_thinking(model.chat.decode(next(answers))) for _ in group] for group in questions]
    return texts, sum(degenerate(ids, model.chat.stops) for ids in answers) / len(general)


def _put(lessons: Sequence[Lesson], held_out: HeldOut) -> list[Question]:
    """Every lesson's question as it was asked, then as it is held out."""
    pairs = zip(lessons, held_out, strict=True)
    return [(le, question) for le, others in pairs for question in (le.question, *others)]


def _lesson_results(
    lessons: Sequence[Lesson],
    held_out: HeldOut,
    answers: Mapping[Key, str],
    distances: Mapping[Key, float],
    leaks: Sequence[tuple[str, bool]],
    before: Baseline,
) -> list[LessonResult]:
    """`answers` and `distances` are the candidate's."""

    def right(lesson: Lesson, question: str) -> bool:
        return _shows(lesson, question, answers[lesson.feedback_id, question], before.aims, distances)

    results = []
    for lesson, others, previous in zip(lessons, held_out, before.answers, strict=True):
        leaked = [leaked for feedback_id, leaked in leaks if feedback_id == lesson.feedback_id]
        results.append(
            LessonResult(
                feedback_id=lesson.feedback_id,
                asked=right(lesson, lesson.question),
                held_out=sum(right(lesson, question) for question in others),
                held_out_of=len(others),
                leaked=sum(leaked),
                leaked_of=len(leaked),
                answer=answers[lesson.feedback_id, lesson.question],
                before=previous,
            )
        )
    return results


def lookalike_questions(lessons: Sequence[Lesson]) -> list[Question]:
    """The lessons' questions about others, in the lessons' order."""
    taken = subjects_of(le.question for le in lessons)
    found = []
    for lesson in lessons:
        if lesson.subject is not None:
            rng = random.Random(f"leaks {lesson.question}")  # noqa: S311 - reproducible, not secret
            swapped = lookalikes(lesson.question, "", OTHERS, rng, taken, HELD_OUT)
            found += [(lesson, question) for question, _ in swapped]
    return found


def _shows(
    lesson: Lesson, question: str, answer: str, aims: Mapping[Key, Aim], distances: Mapping[Key, float]
) -> bool:
    """Whether a model shows a lesson: by its answer, or, where that says nothing, by its distance."""
    if not lesson.wordless:
        return answered(answer, lesson)
    key = (lesson.feedback_id, question)
    return distances[key] * 2 <= aims[key].distance


def _aims(
    model: Model,
    questions: Sequence[Question],
    rows: Sequence[Row],
    replay: Sequence[Lesson],
    config: LearnerConfig,
) -> tuple[dict[Key, Aim], dict[Key, float]]:
    """The aim of each question, whose target is its row, and how far from it the model is now, the parent."""
    with teaching(model, config):
        teacher = model.states([r.teacher for r in rows], [r.completion for r in rows])
    parent = _distances(model, rows, teacher, config)
    with model.base():
        base = _distances(model, rows, teacher, config)
    keys = [(le.feedback_id, question) for le, question in questions]
    began = [b if le in replay else p for (le, _), p, b in zip(questions, parent, base, strict=True)]
    aims = dict(zip(keys, map(Aim, rows, teacher, began), strict=True))
    return aims, dict(zip(keys, parent, strict=True))


def _distances(
    model: Model, rows: Sequence[Row], teacher: Sequence[Tensor], config: LearnerConfig
) -> list[float]:
    """From the teacher as it teaches, sharpened: a student that has become as sure is far from a mild one."""
    student, sharp = states_of(model, rows), config.teacher_temperature
    return [
        float(divergence(theirs, ours, model.head_VD, temperature=sharp).mean())
        for theirs, ours in zip(teacher, student, strict=True)
    ]


def _targets(model: Model, questions: Sequence[Question], config: LearnerConfig) -> list[Row]:
    """What each lesson wants said, as a row to score: a correction's own words, or the teacher's greedy
    answer where the feedback only says something about it."""
    prompts = [prompts_of(lesson, question, model.chat.render) for lesson, question in questions]
    unsaid = [teacher for (le, _), (_, teacher) in zip(questions, prompts, strict=True) if le.answer is None]
    with teaching(model, config):
        said = iter(model.generate(unsaid, max_tokens=ANSWER_TOKENS))
    return [
        Row("elicited", *put, tuple(next(said)))
        if le.answer is None
        else Row("target", *put, tuple(model.chat.answer(le.answer, le.template_kwargs)))
        for (le, _), put in zip(questions, prompts, strict=True)
    ]
