"""`apprentice bench learning`: what is learned, kept, leaked and paid, each beside its controls.

    facts      48 invented facts: SDFT at its defaults; plain SFT with tuned learning rate and early stop;
               SFT with our anchors, wordings, look-alikes and replay; half of them with the corrections of
               the other half and with an empty context
    sequence   facts, then calls to an invented API, then a labelling policy: SDFT, both kinds of SFT, and a
               separate adapter for each
    ablations  half of the facts, with one part of the recipe switched off at a time

Every run is one JSON file in the output directory; a run that is there is not done again, so that the
benchmark goes on where it was cut short.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from buffer.files import write_durably
from learner.bench.pupil import Pupil, ceiling
from learner.bench.tasks import Task, api_calls, facts, labels
from learner.config import LearnerConfig
from learner.measure import Reference
from learner.model import Model

Say = Callable[[str], None]

SFT_RATES = (5e-4, 1e-3, 2e-3)
"""Learning rates among which plain SFT's is chosen, by its best paraphrased recall on the first seed."""
SAME: Mapping[str, Any] = {"objective": "cross_entropy", "reuse": False}
"""SFT with our anchors, wordings, look-alikes and replay."""
PLAIN: Mapping[str, Any] = {
    **SAME,
    "framed_questions": False,
    "whitened": False,
    "fresh_rollouts": 0,
    "lookalikes_per_step": 0,
    "anchors_per_step": 0,
    "replay_per_step": 0,
}
QUICK_STEPS = 5
"""At most, for each lesson."""
ABLATIONS: Mapping[str, Mapping[str, Any]] = {
    "as it is": {},
    "not whitened": {"whitened": False},
    "no anchors": {"anchors_per_step": 0},
    "no look-alikes": {"lookalikes_per_step": 0},
    "no other wordings": {"framed_questions": False},
    "no replay": {"replay_per_step": 0},
    "no reuse": {"reuse": False},
    "no fresh rollouts": {"fresh_rollouts": 0},
    "no hard labels": {"hard_labels": False},
    "teacher not sharpened": {"teacher_temperature": 1.0},
    "teacher last-promoted": {"teacher": "last-promoted"},
    "reverse KL": {"objective": "reverse_kl"},
}


@dataclass(frozen=True)
class Run:
    """One model, taught `tasks` one after another. `curve` is the number of steps between points, `blind` the
    control whose teacher sees no correction. With `early_stop` a task ends as it was at its best point."""

    part: str
    arm: str
    seed: int
    tasks: tuple[Task, ...]
    config: LearnerConfig
    curve: int = 0
    blind: bool = False
    early_stop: bool = False

    @property
    def name(self) -> str:
        return f"{self.part}--{self.arm}--{self.seed}"

    @property
    def settings(self) -> dict[str, Any]:
        """What a result that is there must have been made with to stand for this run's."""
        return {
            "lessons": [len(task.lessons) for task in self.tasks],
            "taught": [task.digest for task in self.tasks],
            "blind": self.blind,
            "curve_steps": self.curve,
            "config": self.config.model_dump(mode="json"),
            **({"early_stop": True} if self.early_stop else {}),
        }


@dataclass
class Bench:
    """Runs what is missing in `out` and gathers the results. `quick` teaches less, with one seed."""

    model: Model
    reference: Reference
    out: Path
    seeds: int = 3
    quick: bool = False
    config: LearnerConfig = field(default_factory=LearnerConfig)
    say: Say = lambda _: None

    def run(self, parts: Sequence[str]) -> dict[str, Any]:
        """All results of `parts`, those of earlier calls included."""
        tasks = self._tasks() if "sequence" in parts else self._tasks()[:1]
        results: dict[str, Any] = {
            "ceiling": {task.name: self._ceiling(task) for task in tasks},
            "adapter_mb": sum(t.nbytes for t in self.model.adapter_state().values()) / 1e6,
        }
        for part in parts:
            runs = {"facts": self._facts, "sequence": self._sequence, "ablations": self._ablations}[part]
            results[part] = [self._kept(one.name, partial(self._do, one), one.settings) for one in runs()]
        return results

    # --- what there is to do ---------------------------------------------------------------------------

    def _tasks(self) -> tuple[Task, Task, Task]:
        if self.quick:
            return facts().first(4), api_calls(4, 12), labels(4, 12)
        return facts(), api_calls(), labels()

    def _half_of_facts(self) -> Task:
        every = self._tasks()[0]
        return every.first(len(every.lessons) // 2)

    def _facts(self) -> Iterator[Run]:
        task = self._tasks()[:1]
        half = self._half_of_facts()
        others = task[0].lessons[len(half.lessons) :]
        short = {"min_steps": 1, "steps_per_lesson": min(QUICK_STEPS, self.config.steps_per_lesson)}
        config = self.config.model_copy(update=short) if self.quick else self.config
        same = config.model_copy(update=SAME)
        curve, stops = (0, 0) if self.quick else (64, 20)
        for seed in range(self.seeds):
            yield Run("facts", "sdft", seed, task, config, curve=curve)
            if not self.quick:
                yield Run("facts", "sft+", seed, task, same, curve=curve)
            for rate in SFT_RATES[:1] if self.quick else SFT_RATES if seed == 0 else (self._tuned(),):
                plain = self._plain(rate)
                yield Run("facts", f"sft {rate:g}", seed, task, plain, stops, early_stop=not self.quick)
            if seed == 0:
                yield Run("facts", "shuffled", seed, (half.shuffled(others),), config)
            if seed == 0 and not self.quick:
                yield Run("facts", "empty context", seed, (half,), config, blind=True)

    def _plain(self, rate: float) -> LearnerConfig:
        """Plain SFT: all lessons in one round, eight rows a step."""
        steps = 16 if self.quick else 160
        everything = {"learning_rate": rate, "lessons_per_step": 8, "max_lessons": 64}
        return self.config.model_copy(update={**PLAIN, **everything, "min_steps": steps, "max_steps": steps})

    def _tuned(self) -> float:
        """The learning rate of plain SFT that was best on the first seed, or the middle one before that."""
        best = dict.fromkeys(SFT_RATES, 0.0) | {SFT_RATES[1]: 1e-9}
        for rate in SFT_RATES:
            path = self._path(f"facts--sft {rate:g}--0")
            for point in json.loads(path.read_text())["curve"] if path.exists() else ():
                best[rate] = max(best[rate], point["scores"]["paraphrased"])
        return max(SFT_RATES, key=best.__getitem__)

    def _sequence(self) -> Iterator[Run]:
        whole_facts, calls, sorting = self._tasks()
        tasks = (whole_facts.first(len(calls.lessons)), calls, sorting)
        same = self.config.model_copy(update=SAME)
        plain = self.config.model_copy(update={**PLAIN, "learning_rate": self._tuned()})
        for seed in range(self.seeds):
            yield Run("sequence", "sdft", seed, tasks, self.config)
            if seed == 0:  # as the ablations: hours each
                yield Run("sequence", "sft+", seed, tasks, same)
                yield Run("sequence", "sft", seed, tasks, plain)
            for task in tasks[1:]:  # the first one's separate adapter is the sequence's first stage
                yield Run("sequence", f"separate {task.name}", seed, (task,), self.config)

    def _ablations(self) -> Iterator[Run]:
        for name, changed in ABLATIONS.items():
            changed_config = self.config.model_copy(update=changed)
            yield Run("ablations", name, 0, (self._half_of_facts(),), changed_config)

    # --- doing it ------------------------------------------------------------------------------------

    def _ceiling(self, task: Task) -> dict[str, Any]:
        """What base knows without, and its teacher with, the correction in context."""

        def examined() -> dict[str, Any]:
            untaught = Pupil(self.model, self.reference, self.config, seed=0)
            return {"base": untaught.examine(task.tests), "teacher": ceiling(self.model, task)}

        settings = {"lessons": len(task.lessons), "taught": task.digest}
        return self._kept(f"ceiling--{task.name}", examined, settings)

    def _do(self, run: Run) -> dict[str, Any]:
        pupil = Pupil(self.model, self.reference, run.config, run.seed, run.blind)
        curve: list[dict[str, Any]] = []
        stages: list[dict[str, Any]] = []
        seconds = 0.0
        for task in run.tasks:
            began = time.monotonic()
            best, most = None, -1.0
            for step in pupil.study(task):
                self.say(f"{run.name}: {task.name}, step {step.number} of {step.of}, loss {step.loss:.3f}")
                if run.curve and step.number % run.curve == 0:
                    paused = time.monotonic()
                    asked = {name: task.tests[name] for name in ("asked", "paraphrased")}
                    recall = pupil.examine(asked)
                    curve.append({"steps": pupil.steps, "scores": recall, "drift": pupil.drift()})
                    if run.early_stop and recall["paraphrased"] > most:
                        best, most = self.model.adapter_state(), recall["paraphrased"]
                    began += time.monotonic() - paused
            seconds += time.monotonic() - began
            if best is not None:
                self.model.load_adapter(best)
            self.say(f"{run.name}: examined after {task.name}")
            scores = {one.name: pupil.examine(one.tests) for one in run.tasks}
            stages.append({"task": task.name, "scores": scores, "drift": pupil.drift()})
        return {
            "part": run.part,
            "arm": run.arm,
            "seed": run.seed,
            "dtype": str(self.model.dtype),
            "steps": pupil.steps,
            "tokens": pupil.tokens,
            "seconds": round(seconds, 1),
            "stages": stages,
            "curve": curve,
        }

    def _path(self, name: str) -> Path:
        return self.out / "runs" / f"{name.replace(' ', '-')}.json"

    def _kept(
        self, name: str, make: Callable[[], dict[str, Any]], settings: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What is in the file, if it was made with the same model and settings, in whichever precision; else
        it is made."""
        settings = {"model": self.model.digest, **settings}
        path = self._path(name)
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        if any(found.get(key) != value for key, value in settings.items()):
            found = {**make(), **settings}
            write_durably(path, json.dumps(found, indent=1).encode())
        return found
