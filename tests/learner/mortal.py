"""A learner in a process of its own that kills itself at a named point.

The points are where the learner's own functions begin and end, seen by the interpreter's profiler; the code
itself knows nothing of them. A point whose function is gone is never reached, and the test fails.
"""

import itertools
import multiprocessing
import os
import signal
import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from buffer.client import Buffer
from buffer.config import AdaptersConfig
from buffer.journal import Journal
from buffer.records import AliasMoved
from buffer.store import AdapterStore
from buffer.view import View
from learner.config import GateConfig, LearnerConfig
from learner.measure import load_reference
from learner.model import Model
from learner.reporter import Reporter
from learner.service import Service

CONFIG = LearnerConfig(
    rank=4,
    alpha=8,
    min_steps=4,
    steps_per_lesson=1,
    max_answer_tokens=4,
    start_at=2,
    start_after_s=0,
    max_lessons=2,
    checkpoint_steps=2,
    gate=GateConfig(min_asked=0, min_held_out=0, min_kept=0, max_kl_to_parent=100, max_degenerate=1),
)


@dataclass(frozen=True)
class Point:
    """The `nth` time that a function begins or ends; for one of C, the time that `within` calls it."""

    function: str
    event: str = "call"
    nth: int = 1
    within: str = ""

    def die_there(self) -> None:
        """From now on this process ends there, by SIGKILL."""
        left = itertools.count(self.nth - 1, -1)

        def watch(frame: FrameType, event: str, argument: Any) -> None:
            name = argument.__name__ if event == "c_call" else frame.f_code.co_qualname
            if (
                event == self.event
                and name == self.function
                and self.within in ("", frame.f_code.co_qualname)
                and next(left) == 0
            ):
                os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(watch)


POINTS = {
    "before the plan": Point("Service._write_plan"),
    "plan written": Point("Service._write_plan", "return"),
    "before the first step": Point("batch_gradient"),
    "before a checkpoint": Point("CheckpointFile.save"),
    "checkpoint not in its place yet": Point("replace", "c_call", within="writing"),
    "after a checkpoint": Point("CheckpointFile.save", "return"),
    "after the last checkpoint": Point("CheckpointFile.save", "return", nth=2),
    "before publishing": Point("publish"),
    "release not in its place yet": Point("rename", "c_call", within="publish_directory"),
    "published, the round is open": Point("publish", "return"),
    "the round's end written": Point("CheckpointFile.delete", nth=2),
    "after the round": Point("Service._run_round", "return"),
    "in the second round": Point("batch_gradient", nth=7),
}


@dataclass(frozen=True)
class Place:
    """Where a learner works: its own state, and what it only reads."""

    state: Path
    model: Path
    reference: Path

    @property
    def adapters(self) -> Path:
        return self.state / "adapters"

    def open(self) -> Buffer:
        """The log and a view of it, read up to its end."""
        buffer = Buffer(Journal(self.state / "journal.db"), View(self.state / "learner" / "view.db"))
        buffer.start()
        return buffer


def learn(place: Place, point: Point | None) -> int:
    """Run a learner until all feedback has been learned, or dies; its exit code."""
    context = multiprocessing.get_context("forkserver")  # from a process that has done nothing but import
    context.set_forkserver_preload([__name__])
    process = context.Process(target=_learn, args=(place, point))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _learn(place: Place, point: Point | None) -> None:
    import torch

    torch.set_num_threads(1)
    buffer = place.open()
    model = Model.load(place.model, rank=CONFIG.rank, alpha=CONFIG.alpha)
    reference = load_reference(model, place.reference)
    service = Service(
        buffer=buffer,
        model=model,
        reference=replace(reference, anchors=reference.anchors[:4], general=reference.general[:4]),
        config=CONFIG,
        store=AdapterStore(place.adapters, AdaptersConfig()),
        scratch=place.state / "learner",
        base_name="tiny",
        alias="apprentice",
        reporter=Reporter(buffer),
        stopping=threading.Event(),
        seed=lambda: 1,
    )
    if point is not None:
        point.die_there()
    while any(one.fate.status in ("received", "accepted", "training") for one in buffer.view.all_feedback()):
        service.turn()
        _promote(buffer)
    buffer.close()


def _promote(buffer: Buffer) -> None:
    """What a gateway does with a release."""
    alias = buffer.view.alias("apprentice")
    made = [r.release.version for r in buffer.view.rounds() if r.release is not None]
    if made and made[-1] != alias.version:
        moved = AliasMoved(alias="apprentice", version=made[-1], epoch=alias.epoch, why="release", by="test")
        buffer.decide(moved).result(60)
