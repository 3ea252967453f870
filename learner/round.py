"""One round, from its record to its verdict.

    the plan's lessons and replay ► rows ► SDFT steps ► measure ► gate ► publish

A round is a function of its record, the log and the base model: cut short anywhere, it goes on from its last
checkpoint to the same adapter, to the bit on the same machine and thread count.
"""

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from buffer.adapters import directory_of
from buffer.records import Decision, LearnerState, LessonAnswered, Release, RoundEnded, RoundPlanned
from buffer.teacher import Templates
from buffer.view import View
from learner.checkpoint import CHECKPOINT, CheckpointFile
from learner.config import LearnerConfig
from learner.curriculum import Curriculum
from learner.gate import verdict
from learner.lessons import Lesson, lesson_of
from learner.measure import Baseline, Reference, measure_candidate, measure_parent
from learner.model import Model
from learner.plan import Step, shared_out, steps_for
from learner.publish import probe_logprobs, probes, publish
from learner.rows import Pools
from learner.sdft import train
from learner.whitening import Whitening

logger = logging.getLogger(__name__)

Report = Callable[[LearnerState, str, Step | None], None]
"""Tells what the round is doing. Called between steps: it may wait there, or raise to stop the round."""


class LessonGone(Exception):
    """A lesson was erased or withdrawn while its round was under way."""


@dataclass
class Round:
    """Runs one planned round."""

    planned: RoundPlanned
    view: View
    model: Model
    reference: Reference
    adapters: Path
    base_name: str
    alias: str
    report: Report
    scratch: Path
    """Where the checkpoint of the round under way is kept."""
    skipped: list[Decision] = field(default_factory=list)
    """Against lessons that turned out to be none."""
    answers: list[LessonAnswered] = field(default_factory=list)
    """To each lesson, once it was measured."""
    _seconds: dict[str, float] = field(default_factory=dict)

    def run(self) -> RoundEnded:
        """Train, measure, judge and, if it passes, publish. Raises `LessonGone`."""
        number = self.planned.round
        config = LearnerConfig.model_validate(self.planned.config)
        accepted, replay = self._join(self.planned.lessons), self._join(self.planned.replay)
        self.report("planning", f"round {number} prepares its rows", None)
        with self._timed("prepare"):
            coordinates = self.reference.coordinates(config)
            self._load_parent(coordinates)
            curriculum = Curriculum(self.model, config, self.planned.parent, self.planned.seed)
            lessons, self.skipped = curriculum.teachable(accepted)
            if not lessons:
                return RoundEnded(round=number, verdict="refused", reasons=["there was nothing to learn"])
            wordings = curriculum.wordings(lessons)
            held_out = [w.held_out for w in wordings]
            earlier = [le for le in replay if le.given.kind != "rating"]
            before = measure_parent(self.model, self.reference, lessons, held_out, earlier, config)
            pools = curriculum.pools(lessons, replay, wordings, self.reference.anchors)
            rows = Counter(r.kind for pool in (pools.lessons, pools.replay, pools.lookalikes) for r in pool)
        with self._timed("train"):
            losses = []
            steps = train(
                self.model,
                pools,
                self.reference.anchor_states,
                lambda step: curriculum.fresh(lessons, step),
                whitenings=coordinates,
                config=shared_out(len(lessons), config),
                steps=steps_for(len(lessons), config),
                seed=self.planned.seed,
                checkpoints=self._checkpoints(pools),
            )
            for step in steps:
                losses.append(step.loss)
                if step.number % config.checkpoint_steps == 0:
                    self.check()
                self.report("training", f"round {number} learns {len(lessons)} lessons", step)
        with self._timed("measure"):
            self.report("evaluating", f"round {number} is being measured", None)
            measured = measure_candidate(
                self.model, self.reference, lessons, held_out, earlier, before, config
            )
        evaluation = measured.model_copy(
            update={
                "loss_first": losses[0],
                "loss_last": losses[-1],
                "steps": len(losses),
                "seconds": {name: round(s, 1) for name, s in self._seconds.items()},
                "rows": dict(rows),
                "left_out": dict(curriculum.left_out),
            }
        )
        reasons = verdict(evaluation, config.gate)
        self.answers = [
            LessonAnswered(feedback_id=r.feedback_id, round=number, before=r.before, answer=r.answer)
            for r in evaluation.lessons
        ]
        self.check()
        return RoundEnded(
            round=number,
            verdict="refused" if reasons else "passed",
            reasons=reasons,
            evaluation=evaluation.model_dump(exclude={"lessons": {"__all__": {"before", "answer"}}}),
            release=None if reasons else self._publish(before),
        )

    def check(self) -> None:
        """Raises `LessonGone` if a lesson has been erased or withdrawn meanwhile."""
        self._join([*self.planned.lessons, *self.planned.replay])

    def _checkpoints(self, pools: Pools) -> CheckpointFile:
        """Where this round stands, on disk. One that was begun with other rows (by another chat template), in
        another precision, or with an adapter of another shape, begins again."""
        model = self.model
        made_with = f"{model.device.type} {model.dtype} {model.rank} {model.alpha} {pools}"
        key = hashlib.sha256(f"{self.planned.model_dump_json()} {made_with}".encode()).hexdigest()
        return CheckpointFile(self.scratch / CHECKPOINT, key)

    def _join(self, feedback_ids: Sequence[str]) -> list[Lesson]:
        lessons = []
        templates = Templates.model_validate(self.planned.templates)
        for feedback_id in feedback_ids:
            found = self.view.feedback(feedback_id)
            if found is None or found.given is None or found.fate.status in ("erased", "withdrawn"):
                raise LessonGone(f"feedback {feedback_id} was withdrawn or erased during the round")
            exchange = self.view.exchange(found.given.completion_id or "")
            lesson = lesson_of(found.given, exchange, templates)
            if lesson is None:
                raise LessonGone(f"the exchange of feedback {feedback_id} was erased during the round")
            lessons.append(lesson)
        return lessons

    def _load_parent(self, coordinates: Mapping[str, Whitening]) -> None:
        if self.planned.parent == 0:
            self.model.reset_adapter(self.planned.seed, coordinates)
            return
        parent = self.view.release(self.planned.parent)
        if parent is None or parent.release is None:
            raise FileNotFoundError(f"no round in the log made policy {self.planned.parent}")
        self.model.load_adapter_file(directory_of(self.adapters, parent.release))

    def _publish(self, before: Baseline) -> Release:
        self.report("publishing", f"round {self.planned.round} passed the gate", None)
        made = [r.release.version for r in self.view.rounds() if r.release is not None]
        return publish(
            self.adapters,
            self.model,
            version=max(made, default=0) + 1,
            alias=self.alias,
            parent=self.planned.parent,
            round_number=self.planned.round,
            base_name=self.base_name,
            probes=probes(before.probed, probe_logprobs(self.model, before.probed), before.probe_logprobs),
        )

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self._seconds[name] = time.monotonic() - started
