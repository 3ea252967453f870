"""One model that learns tasks round by round as the learner does, and is examined in between."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from buffer.records import FeedbackGiven, FeedbackKind, Message
from buffer.teacher import teacher_messages
from learner.bench.tasks import Item, Task
from learner.chat import after_thinking
from learner.config import LearnerConfig
from learner.curriculum import Curriculum
from learner.lessons import Lesson
from learner.measure import Reference, mean_divergence, states_of
from learner.model import Model
from learner.plan import Step, replayed, shared_out, steps_for
from learner.rows import Row
from learner.sdft import train

ANSWER_TOKENS = 32
SERVED_TEMPERATURE = 0.7
"""At which the answers that users correct are sampled."""


@dataclass
class Pupil:
    """A base model under a new adapter, taught with `config`. Deterministic in `seed`."""

    model: Model
    reference: Reference
    config: LearnerConfig
    seed: int
    blind: bool = False
    """A control: the teacher sees no correction."""
    steps: int = 0
    tokens: int = 0
    """Of rows that were trained on, prompts included."""
    _learned: list[Lesson] = field(default_factory=list)
    _rounds: int = 0

    def __post_init__(self) -> None:
        self.model.reset_adapter(self.seed, self.reference.coordinates(self.config))

    def study(self, task: Task) -> Iterator[Step]:
        """Learn a task's lessons in rounds of `config.max_lessons`, rehearsing what came before."""
        for first in range(0, len(task.lessons), self.config.max_lessons):
            items = task.lessons[first : first + self.config.max_lessons]
            yield from self._round(self._answered(task.kind, items))

    def _round(self, lessons: list[Lesson]) -> Iterator[Step]:
        self._rounds += 1
        seed = self.seed * 1000 + self._rounds
        curriculum = Curriculum(self.model, self.config, self._rounds - 1, seed)
        lessons, _ = curriculum.teachable(lessons)
        replay = replayed(self._learned, self.config.max_replay, self._rounds)
        pools = curriculum.pools(lessons, replay, curriculum.wordings(lessons), self.reference.anchors)
        if self.blind:
            pools.lessons, pools.replay = _without_context(pools.lessons), []

        def rollout(step: int) -> list[Row]:
            rows = curriculum.fresh(lessons, step)
            return _without_context(rows) if self.blind else rows

        for step in train(
            self.model,
            pools,
            self.reference.anchor_states,
            rollout,
            whitenings=self.reference.coordinates(self.config),
            config=shared_out(len(lessons), self.config),
            steps=steps_for(len(lessons), self.config),
            seed=seed,
        ):
            self.steps += 1
            self.tokens += step.tokens
            yield step
        self._learned += lessons

    def _answered(self, kind: FeedbackKind, items: Sequence[Item]) -> list[Lesson]:
        """Lessons about answers that the model as it is gives to the questions."""
        prompts = [self.model.chat.render(_asking(item.question)) for item in items]
        answers = self.model.generate(
            prompts, max_tokens=ANSWER_TOKENS, temperature=SERVED_TEMPERATURE, seed=self.seed
        )
        return [
            Lesson(
                lesson_given(kind, item.question, item.told, f"{self._rounds}.{index}"),
                _asking(item.question),
                logged_ids=tuple(answer),
                logged_policy=self._rounds,
                tempered=True,
            )
            for index, (item, answer) in enumerate(zip(items, answers, strict=True))
        ]

    # --- examination -----------------------------------------------------------------------------------

    def examine(self, tests: Mapping[str, Sequence[Item]]) -> dict[str, float]:
        """Share of right answers in each group of tests: greedy, no context."""
        return _shares(self.model, tests, lambda item: _asking(item.question))

    def drift(self) -> float:
        """KL(base || model) on general prompts, nats per token (DESIGN: how learning is measured)."""
        base = [self.reference.states[row] for row in self.reference.general]
        return mean_divergence(self.model, base, states_of(self.model, self.reference.general))


def ceiling(model: Model, task: Task) -> dict[str, float]:
    """The teacher's own shares: base with the correction in its context."""

    def with_correction(item: Item) -> list[dict[str, str]]:
        given = lesson_given(task.kind, item.question, item.told, "")
        return teacher_messages(_asking(item.question), given) or []

    with model.base():
        return _shares(model, task.tests, with_correction)


def lesson_given(kind: FeedbackKind, question: str, text: str, feedback_id: str) -> FeedbackGiven:
    """The feedback that says `text` should have been the answer to `question`."""
    return FeedbackGiven(
        feedback_id=feedback_id,
        principal="bench",
        kind=kind,
        messages=[Message(role="user", content=question)],
        text=text,
    )


def _asking(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def _shares(
    model: Model, tests: Mapping[str, Sequence[Item]], messages: Callable[[Item], list[dict[str, str]]]
) -> dict[str, float]:
    items = [(name, item) for name, group in tests.items() for item in group]
    prompts = [model.chat.render(messages(item)) for _, item in items]
    answers = model.generate(prompts, max_tokens=ANSWER_TOKENS, batch=48)
    right = dict.fromkeys(tests, 0)
    for (name, item), answer in zip(items, answers, strict=True):
        right[name] += item.right(after_thinking(model.chat.decode(answer)))
    return {name: right[name] / len(group) for name, group in tests.items()}


def _without_context(rows: Sequence[Row]) -> list[Row]:
    """The student's own answers, on which its teacher sees what it sees itself: nothing can be learned."""
    return [replace(row, teacher=row.student) for row in rows if row.kind in ("reuse", "fresh")]
