"""A process's hold on the buffer: append what happened, look up what is known.

`Buffer` joins a log and a view: a thread follows the log into the view, and `write` appends new records and
makes this process's own exchanges and feedback visible in its view at once.
"""

import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Container, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta

from buffer.log import BufferError, Log, behind
from buffer.records import STREAMS, Payload, Record, Stream
from buffer.view import View

logger = logging.getLogger(__name__)

RETRY_S = 2.0
"""Pause before reading again from a log that could not be read."""
LATE_S = 1.0
"""How often to look for what came later than its erasure."""


class Buffer:
    """`on_news` is called on the follower's thread with the payloads of each batch applied to the view.

    `clock` gives the time, which may jump.
    """

    def __init__(
        self,
        log: Log,
        view: View,
        on_news: Callable[[list[Payload]], None] | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.log = log
        self.view = view
        self._on_news = on_news
        self._clock = clock
        self._stopping = threading.Event()
        self._awaited: dict[str, Future[None]] = {}
        self._ticking = threading.Lock()
        ends = [last.time for stream in STREAMS if (last := log.last(stream)) is not None]
        # a log keeps milliseconds, so the last record may be up to one older than what was given out for it
        self._latest = max(ends, default=datetime.min.replace(tzinfo=UTC)) + timedelta(milliseconds=1)
        self._on_disk: queue.SimpleQueue[tuple[Sequence[Record], Future[None]] | None] = queue.SimpleQueue()
        self._absorber = threading.Thread(target=self._absorb, name="buffer-absorber", daemon=True)
        self._absorber.start()
        self._follower = threading.Thread(target=self._follow, name="buffer-follower", daemon=True)
        self._look_at = 0.0

    def recall(self) -> None:
        """Bring what earlier processes appended here into the view, before it comes back from a broker.

        An acknowledgement of theirs is so kept from the first moment: the same Idempotency-Key, say.
        """
        streams: tuple[Stream, ...] = ("exchanges", "feedback")
        for stream in streams:
            if (last := self.log.last(stream)) is None:
                continue
            after = self.view.all_seen(last.source, stream)
            while records := self.log.appended(stream, after):
                # a tombstone has its record's id
                self.view.absorb([r for r in records if r.data is None or not self.view.knows(r.id)])
                after = records[-1].sequence

    def start(self) -> None:
        """Bring the view up to the log's present end, then keep following it. Raises `BufferError`."""
        ends = self.log.ends()
        if behind(ends, self.view.positions()):
            logger.warning("the view knows of records that the log does not have: it is built anew")
            self.view.forget()
        while behind(self.view.positions(), ends):
            self._pump(wait_s=0.1)
        self.view.mark_complete()
        self._follower.start()

    def write(self, payloads: Sequence[Payload], partition_key: str = "") -> Future[None]:
        """Append records for `payloads` atomically. Resolves once they are on disk and readable in the view.

        Raises through the future what `Log.append` raises.
        """
        time = self.now()
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
        record = Record.of(payload, time=self.now(), randomness=os.urandom(10))
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
        last = self.log.last(stream)
        return last is None or self.view.seen(last.source, stream) >= last.sequence

    def append(self, records: Sequence[Record]) -> Future[None]:
        """Append ready-made records (tombstones, say); else as `write`."""
        visible: Future[None] = Future()
        visible.set_running_or_notify_cancel()

        def on_disk(done: Future[None]) -> None:
            if (error := done.exception()) is not None:
                visible.set_exception(error)
            else:
                self._on_disk.put((records, visible))

        self.log.append(records).add_done_callback(on_disk)
        return visible

    def close(self) -> None:
        """Stop following, then close the log and the view."""
        self._stopping.set()
        if self._follower.is_alive():
            self._follower.join()
        self.log.close()
        self._on_disk.put(None)
        self._absorber.join()
        self.view.close()

    def now(self) -> datetime:
        """The time, later than any before, and than all that was appended here.

        Ids and records are read in its order, and clocks are set back. After one that was far ahead, this one
        stays there until it is caught up with.
        """
        with self._ticking:
            self._latest = max(self._latest + timedelta(microseconds=1), self._clock())
            return self._latest

    def _absorb(self) -> None:
        """Show in the view what is on disk: all that came meanwhile in one transaction."""
        while (first := self._on_disk.get()) is not None:
            group: list[tuple[Sequence[Record], Future[None]] | None] = [first]
            with contextlib.suppress(queue.Empty):
                while group[-1] is not None:
                    group.append(self._on_disk.get_nowait())
            arrived = [one for one in group if one is not None]
            written = [record for records, _ in arrived for record in records]
            try:
                self.view.absorb(written)
                self._erase_late({record.id for record in written})
            except Exception as failure:
                # It is on disk, which is what counts. The follower brings it into the view in time.
                logger.warning("what was appended is not known to the view yet: %r", failure)
            for _, visible in arrived:
                visible.set_result(None)
            if group[-1] is None:
                return

    def _follow(self) -> None:
        while not self._stopping.is_set():
            try:
                self._pump(wait_s=0.5)
                self._look_after_erasures()
            except BufferError as error:
                logger.warning("following the log waits: %s (%s)", error, error.hint)
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

    def _look_after_erasures(self) -> None:
        """Now and then, finish what an erasure had to leave: here it was not known yet, or could not be done.

        What is overdue for no more than a moment may have its tombstone on the way in another stream; that a
        few are then appended twice does no harm.
        """
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + LATE_S
            self.view.scrub()
            self._erase_late()

    def _erase_late(self, ids: Container[str] | None = None) -> None:
        """Append the tombstones of records that came after the erasure of what they are about: of these ids,
        or of any."""
        late = [one for one in self.view.overdue(self.now()) if ids is None or one.id in ids]
        if late:
            logger.info("erasing %d records that came later than their erasure", len(late))
            self.append(late).add_done_callback(_tell_failure)


def _tell_failure(done: "Future[None]") -> None:
    if (error := done.exception()) is not None:
        logger.warning("what came later than its erasure is still in the log, trying again: %s", error)
