"""What the learner says of itself, in the log: silence means that it is gone.

A change is reported at once, progress within a state every `REPORT_S`. A thread repeats the latest report
every `HEARTBEAT_S`, since loading a model or preparing a round can take longer than anyone waits for a word.
"""

import logging
import threading
import time
from collections.abc import Callable

from buffer.client import Buffer
from buffer.log import BufferError
from buffer.records import LearnerReported, LearnerState
from learner.plan import Step

logger = logging.getLogger(__name__)

REPORT_S = 2.0
HEARTBEAT_S = 20.0


class Reporter:
    """Writes the learner's reports. `clock` gives seconds."""

    def __init__(self, buffer: Buffer, clock: Callable[[], float] = time.monotonic) -> None:
        self._buffer = buffer
        self._clock = clock
        self._lock = threading.Lock()
        self._last: LearnerReported | None = None
        self._said_at = 0.0
        self._closed = threading.Event()
        self._repeating = threading.Thread(target=self._repeat, name="reporter", daemon=True)
        self._repeating.start()

    def say(
        self, state: LearnerState, why: str, *, round_number: int | None = None, step: Step | None = None
    ) -> None:
        """Report what is being done, and why nothing is. Raises what `Log.append` raises."""
        report = LearnerReported(
            state=state,
            why=why,
            round=round_number,
            step=step.number if step is not None else None,
            steps=step.of if step is not None else None,
            loss=step.loss if step is not None else None,
        )
        with self._lock:
            last = self._last
            same = last is not None and (last.state, last.why, last.round) == (state, why, round_number)
            if not same or (report != last and self._clock() - self._said_at >= REPORT_S):
                self._write(report)

    def close(self) -> None:
        """Stop repeating."""
        self._closed.set()
        self._repeating.join()

    def _write(self, report: LearnerReported) -> None:
        self._last, self._said_at = report, self._clock()
        self._buffer.write([report]).result()

    def _repeat(self) -> None:
        while not self._closed.wait(HEARTBEAT_S / 4):
            with self._lock:
                if self._last is None or self._clock() - self._said_at < HEARTBEAT_S:
                    continue
                try:
                    self._write(self._last)
                except BufferError as error:
                    logger.warning("the log refused a report: %s %s", error, error.hint)
