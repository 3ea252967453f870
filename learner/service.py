"""The learner at work: triage what came in, plan, run a round, write down how it ended, again.

Every decision goes into the log, so the service itself remembers nothing: killed at any point, its successor
finds the open round in the view and runs that same round again.
"""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from buffer.adapters import AdapterInvalid, made_in
from buffer.client import Buffer
from buffer.feedback import Feedback
from buffer.log import BufferError
from buffer.records import (
    Decision,
    FeedbackTriaged,
    LearnerState,
    LessonAnswered,
    Positions,
    Release,
    RoundEnded,
    RoundPlanned,
)
from buffer.rounds import Round as PastRound
from buffer.store import AdapterStore, StoreUnavailable, needed
from buffer.teacher import DEFAULT, Templates
from learner.checkpoint import CHECKPOINT, CheckpointFile
from learner.config import LearnerConfig
from learner.gate import Evaluation, full
from learner.lessons import Limits, triage
from learner.measure import Reference
from learner.model import Model
from learner.plan import Plan, Quiet, Step, Waiting, plan_round, since_base
from learner.reporter import Reporter
from learner.round import LessonGone, Round

logger = logging.getLogger(__name__)

POLL_S = 0.5
BATCH = 256
"""Feedback judged per record."""

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
"""Between attempts to reach the adapter store."""


class Stopped(Exception):
    """The process was asked to stop; an open round is left to be resumed."""


@dataclass
class Service:
    """One learner over one buffer. `seed` gives each round's 31 bits of randomness, `steady` seconds."""

    buffer: Buffer
    model: Model
    reference: Reference
    config: LearnerConfig
    store: AdapterStore
    scratch: Path
    base_name: str
    alias: str
    reporter: Reporter
    stopping: threading.Event
    templates: Templates = DEFAULT
    quiet: Quiet = field(default_factory=Quiet)
    seed: Callable[[], int] = lambda: secrets.randbits(31)
    steady: Callable[[], float] = time.monotonic
    _settled: bool = False
    """Whether all that this or an earlier process decided here has come back: before, a round that was
    planned already could be planned again."""
    _restock_at: float | None = 0.0
    """When to look what the adapter store lacks; None when it lacked nothing."""
    _idle_since: Positions | None = None
    """Up to where the log was read when last nothing waited."""

    def run(self) -> None:
        """Work until `stopping` is set."""
        while not self.stopping.is_set():
            try:
                self.turn()
            except Stopped:
                break
            except BufferError as error:
                logger.error("%s (%s)", error, error.hint)
            self.stopping.wait(POLL_S)
        self.reporter.say("stopped", "the learner was stopped; started again, it goes on with an open round")

    def turn(self) -> None:
        """One turn: judge new feedback, then run the open or the next round, or say why there is none."""
        view = self.buffer.view
        if not self._settled and not self.buffer.settled("rounds"):
            self.reporter.say("waiting", "its predecessor's records are still on their way to the broker")
            return
        if not self._settled and all(r.ended is not None for r in view.rounds()):
            self._delete_checkpoint()
        self._settled = True
        self.triage()
        self._restock()
        read = self._read()
        if read == self._idle_since:
            self.quiet(())
            return
        rounds = view.rounds()
        unfinished = next((r.planned for r in rounds if r.ended is None), None)
        if unfinished is not None:
            self._run_round(unfinished)
            return
        paused = view.paused()
        if paused is not None:
            self.reporter.say("paused", _paused_by(paused.by, paused.why))
            return
        plan = plan_round(
            view.all_feedback(),
            rounds,
            view.lineage(),
            view.requests(),
            quiet=self.quiet,
            config=self.config,
        )
        if isinstance(plan, Waiting):
            self._idle_since = read if plan.idle else None
            crowded = full(_evaluations(since_base(rounds)))
            state: LearnerState = "failed" if plan.failed else "waiting"
            self.reporter.say(state, f"{plan.why}; {crowded}" if crowded else plan.why)
            return
        self._run_round(self._write_plan(plan))

    def _read(self) -> Positions:
        """Up to where all is read that may change what is to be done."""
        return {stream: at for stream, at in self.buffer.view.positions().items() if stream != "exchanges"}

    def triage(self) -> None:
        """Judge feedback that is new or whose exchange has arrived since."""
        decisions: list[Decision] = []
        for feedback in self.buffer.view.untriaged():
            decision = self._judge(feedback)
            decisions += [decision] if decision is not None else []
        for first in range(0, len(decisions), BATCH):
            self._write(FeedbackTriaged(decisions=decisions[first : first + BATCH]))

    def _judge(self, feedback: Feedback) -> Decision | None:
        about = feedback.given.completion_id if feedback.given is not None else None
        exchange = self.buffer.view.exchange(about) if about is not None else None
        chat, limits = self.model.chat, Limits.of(self.config)
        try:
            return triage(feedback, exchange, chat.render, chat.answer, chat.steering, limits, self.templates)
        except Exception as error:
            # The named boundary for a piece of feedback: a chat template raises what it likes.
            logger.exception("feedback %s cannot be put to the model", feedback.feedback_id)
            return Decision(
                feedback_id=feedback.feedback_id,
                status="skipped",
                reason="template_refuses",
                detail=f"the chat template takes no such conversation: {error}",
            )

    # --- rounds --------------------------------------------------------------------------------------

    def _write_plan(self, plan: Plan) -> RoundPlanned:
        planned = RoundPlanned(
            round=plan.round,
            parent=plan.parent,
            lessons=list(plan.lessons),
            replay=list(plan.replay),
            requests=list(plan.requests),
            seed=self.seed(),
            base=self.model.digest,
            config=self.config.model_dump(mode="json"),
            templates=self.templates.model_dump(),
        )
        self._write(planned)
        return planned

    def _run_round(self, planned: RoundPlanned) -> None:
        logger.info(
            "round %d: %d lessons, %d rehearsed", planned.round, len(planned.lessons), len(planned.replay)
        )
        round_ = Round(
            planned,
            self.buffer.view,
            self.model,
            self.reference,
            self.store.root,
            self.base_name,
            self.alias,
            lambda state, why, step: self._progress(round_, state, why, step),
            self.scratch,
        )
        try:
            self._require_same_model(planned)
            self._have_parent(planned)
            ended = round_.run()
            if ended.release is not None:
                self._share(ended.release, round_)
        except (Stopped, BufferError):
            raise
        except LessonGone as gone:
            ended = RoundEnded(round=planned.round, verdict="failed", taken_back=True, reasons=[str(gone)])
        except Exception as error:
            # The named boundary for a round: whatever broke it becomes its verdict, and the learner lives on.
            logger.exception("round %d failed", planned.round)
            ended = RoundEnded(
                round=planned.round, verdict="failed", reasons=[f"{type(error).__name__}: {error}"]
            )
        if round_.skipped:
            self._write(FeedbackTriaged(decisions=round_.skipped))
        if ended.evaluation:
            self._quote(round_.answers)
        self._discard(planned.round, ended.release)
        self._write(ended)
        self._delete_checkpoint()
        self._tidy()
        logger.info(
            "round %d %s: %s", planned.round, ended.verdict, "; ".join(ended.reasons) or "served next"
        )

    def _delete_checkpoint(self) -> None:
        """It holds what the lessons say: once no round is open it must not stay."""
        CheckpointFile(self.scratch / CHECKPOINT, key="").delete()

    def _require_same_model(self, planned: RoundPlanned) -> None:
        """Raises `LessonGone`, so that the lessons go into another round."""
        if planned.base != self.model.digest:
            raise LessonGone("the base model has changed since the round was planned")
        config = LearnerConfig.model_validate(planned.config)
        if (config.rank, config.alpha) != (self.model.rank, self.model.alpha):
            raise LessonGone("the adapter's rank or alpha has changed since the round was planned")

    def _progress(self, round_: Round, state: LearnerState, why: str, step: Step | None) -> None:
        """Between steps: report, wait while paused, leave when asked to stop. Raises `LessonGone` where one
        goes during the pause: what the round has written down of it must not stay for so long."""
        if self.stopping.is_set():
            raise Stopped
        number, seen = round_.planned.round, None
        while (paused := self.buffer.view.paused()) is not None and not self.stopping.is_set():
            why_paused = f"round {number} waits: {_paused_by(paused.by, paused.why)}"
            self.reporter.say("paused", why_paused, round_number=number, step=step)
            if (read := self._read()) != seen:
                round_.check()
                self.triage()
                seen = read
            self.stopping.wait(POLL_S)
        self.reporter.say(state, why, round_number=number, step=step)

    # --- the adapter store ---------------------------------------------------------------------------

    def _share(self, release: Release, round_: Round) -> None:
        """Have the release in the store before the log names it, however long that takes.

        Raises `LessonGone` when what it learned was taken back meanwhile; then it is to be discarded.
        """
        self._insist(lambda: self.store.put(release), "publishing", round_.planned.round)
        round_.check()

    def _discard(self, number: int, kept: Release | None) -> None:
        """Delete what a round, or a try of it that was cut short, published and no round's end will name: no
        erasure would ever find it."""
        named = [*self._known()[0], kept]
        for release in made_in(self.store.root, number):
            if release not in named:
                self._insist(partial(self.store.remove, release), "publishing", number)

    def _have_parent(self, planned: RoundPlanned) -> None:
        """A learner that was moved to another machine fetches what it goes on from."""
        parent = self.buffer.view.release(planned.parent)
        if self.store.shared and parent is not None and (release := parent.release) is not None:
            self._insist(lambda: self.store.fetch(release), "planning", planned.round)

    def _restock(self) -> None:
        """Put into the store what is needed, lies here and is missing there: it is new, or has lost it."""
        if self._restock_at is None or self.steady() < self._restock_at:
            return
        self._restock_at = None
        releases, keep = self._known() if self.store.shared else ([], set())
        for release in releases:
            try:
                if release.version in keep and self.store.here(release):
                    self.store.put(release)
            except StoreUnavailable as error:
                logger.warning("%s (%s); trying again in %.0f s", error, error.hint, LONGEST_PAUSE_S)
                self._restock_at = self.steady() + LONGEST_PAUSE_S
            except (AdapterInvalid, OSError) as error:
                logger.error("%s cannot be put into the adapter store: %s", release.directory, error)

    def _tidy(self) -> None:
        """Delete adapters that nothing needs. What fails is tried again after the next round."""
        releases, keep = self._known()
        try:
            if self.store.shared:  # else the server deletes, which knows what vLLM holds
                self.store.sweep(releases, keep)
                self.store.trim(releases, keep)
        except (StoreUnavailable, AdapterInvalid, OSError) as error:
            logger.warning("old adapters stay: %s", error)

    def _known(self) -> tuple[list[Release], set[int]]:
        """All releases, and the versions among them that are needed."""
        view = self.buffer.view
        rounds = view.rounds()
        keep = needed(view.alias(self.alias), rounds, view.rejected())
        return [r.release for r in rounds if r.release is not None], keep

    def _insist(self, work: Callable[[], None], state: LearnerState, round_number: int | None = None) -> None:
        """Try until the store does it. Raises `Stopped` when asked to stop, and what is not the store's."""
        pause = FIRST_PAUSE_S
        while True:
            try:
                return work()
            except StoreUnavailable as error:
                logger.warning("%s (%s); trying again in %.0f s", error, error.hint, pause)
                self.reporter.say(state, f"waits: {error} ({error.hint})", round_number=round_number)
            if self.stopping.wait(pause):
                raise Stopped
            pause = min(2 * pause, LONGEST_PAUSE_S)

    # --- records -------------------------------------------------------------------------------------

    def _write(self, payload: FeedbackTriaged | RoundPlanned | RoundEnded) -> None:
        """Append a decision and wait until it is in the view, so that the next turn builds on it."""
        decided = self.buffer.decide(payload)
        while not decided.done():
            if self.stopping.is_set():
                raise Stopped
            wait([decided], timeout=POLL_S)
        decided.result()

    def _quote(self, answers: Sequence[LessonAnswered]) -> None:
        """Write down what was said to each lesson, where the lesson itself is written."""
        key = self.buffer.view.partition_key
        for written in [self.buffer.write([one], key(one.feedback_id)) for one in answers]:
            written.result()


def _evaluations(rounds: Sequence[PastRound]) -> list[Evaluation]:
    """Of those that have ended, as far as they can be read: one may be another release's."""
    found = []
    for one in rounds:
        if one.ended is not None and one.ended.evaluation:
            with suppress(ValidationError):
                found.append(Evaluation.model_validate(one.ended.evaluation))
    return found


def _paused_by(by: str, why: str) -> str:
    reason = f" ({why})" if why else ""
    return f"paused by {by}{reason}; POST /v1/learning/resume lets it go on"
