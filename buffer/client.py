"""A process's hold on the buffer: append what happened, look up what is known.

`Buffer` joins a log and a view: a thread follows the log into the view, and `write` appends new records and
makes this process's own exchanges and feedback visible in its view at once.
"""

import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime

from buffer.log import Log, LogUnavailable, behind
from buffer.records import Payload, Record, Stream
from buffer.view import View

logger = logging.getLogger(__name__)

RETRY_S = 2.0
"""Pause before reading again from a log that could not be read."""


class Buffer:
    """`on_news` is called on the follower's thread with the payloads of each batch applied to the view."""

    def __init__(self, log: Log, view: View, on_news: Callable[[list[Payload]], None] | None = None) -> None:
        self.log = log
        self.view = view
        self._on_news = on_news
        self._stopping = threading.Event()
        self._awaited: dict[str, Future[None]] = {}
        self._clock = threading.Lock()
        self._latest = datetime.min.replace(tzinfo=UTC)
        self._follower = threading.Thread(target=self._follow, name="buffer-follower", daemon=True)

    def start(self) -> None:
        """Bring the view up to the log's present end, then keep following it. Raises `LogUnavailable`."""
        ends = self.log.ends()
        if behind(ends, self.view.positions()):
            logger.warning("the view knows of records that the log does not have: it is built anew")
            self.view.forget()
        while behind(self.view.positions(), ends):
            self._pump(wait_s=0.1)
        self._follower.start()

    def write(self, payloads: Sequence[Payload], partition_key: str = "") -> Future[None]:
        """Append records for `payloads` atomically. Resolves once they are on disk and readable in the view.

        Raises through the future what `Log.append` raises.
        """
        time = self._now()
        return self.append(
            [
                Record.of(p, time=time, randomness=os.urandom(10), partition_key=partition_key)
                for p in payloads
            ]
        )

    def decide(self, payload: Payload) -> Future[None]:
        """Append one record and resolve once it has come back through the log into this process's view.

        For whoever must build on its own control or rounds record. While a broker is away that takes as long.
        """
        record = Record.of(payload, time=self._now(), randomness=os.urandom(10))
        decided = self._awaited[record.id] = Future()

        def refused(done: Future[None]) -> None:
            error = done.exception()
            if error is not None and self._awaited.pop(record.id, None) is not None:
                decided.set_exception(error)

        self.log.append([record]).add_done_callback(refused)
        return decided

    def settled(self, stream: Stream) -> bool:
        """Whether all that was appended here to a stream has come back through the log into the view.

        After a restart, a predecessor's records may still be on their way to a broker.
        """
        source, sequence = self.log.last(stream)
        return self.view.seen(source, stream) >= sequence

    def append(self, records: Sequence[Record]) -> Future[None]:
        """Append ready-made records (tombstones, say); else as `write`."""
        visible: Future[None] = Future()
        visible.set_running_or_notify_cancel()

        def on_disk(done: Future[None]) -> None:
            try:
                done.result()
                self.view.absorb(records)
            except BaseException as error:
                visible.set_exception(error)
            else:
                visible.set_result(None)

        self.log.append(records).add_done_callback(on_disk)
        return visible

    def close(self) -> None:
        """Stop following, then close the log and the view."""
        self._stopping.set()
        if self._follower.is_alive():
            self._follower.join()
        self.log.close()
        self.view.close()

    def _now(self) -> datetime:
        """The time, never earlier than before: clocks are set back, and feedback is read in its order."""
        with self._clock:
            self._latest = max(self._latest, datetime.now(UTC))
            return self._latest

    def _follow(self) -> None:
        while not self._stopping.is_set():
            try:
                self._pump(wait_s=0.5)
            except LogUnavailable as error:
                logger.warning("the log cannot be read, trying again: %s", error)
                self._stopping.wait(RETRY_S)
            except Exception:
                # The follower must outlive a fault in one batch or one listener: log it, retry the batch.
                logger.exception("following the log failed, trying again")
                self._stopping.wait(RETRY_S)

    def _pump(self, wait_s: float) -> None:
        records, positions = self.log.read(self.view.positions(), wait_s=wait_s)
        if records or positions != self.view.positions():
            news = self.view.apply(records, positions)
            for record in records:
                decided = self._awaited.pop(record.id, None)
                if decided is not None:
                    decided.set_result(None)
            if news and self._on_news is not None:
                self._on_news(news)
