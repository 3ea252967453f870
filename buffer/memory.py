"""A `Log` that forgets everything at the end of the process, for tests."""

import threading
import uuid
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from datetime import datetime

from buffer.log import Backlog, BufferError, LogUnavailable, Space, refuse_too_large
from buffer.records import STREAMS, Positions, Record, Stream, timestamp


class MemoryLog:
    """As `Journal`: one sequence for all streams, partition 0, an offset is a sequence."""

    def __init__(self) -> None:
        self.source = f"/memory/{uuid.uuid4()}"
        self._records: list[Record] = []
        self._changed = threading.Condition()
        self._closed = False

    def append(self, records: Sequence[Record]) -> "Future[None]":
        future: Future[None] = Future()
        with self._changed:
            self._refuse_closed()
            try:
                refuse_too_large(records)
            except BufferError as error:
                future.set_exception(error)
                return future
            for record in records:
                if record.data is None:
                    self._blank(record)
                sequence, time = len(self._records) + 1, datetime.fromisoformat(timestamp(record.time))
                self._records.append(replace(record, time=time, source=self.source, sequence=sequence))
            self._changed.notify_all()
        future.set_result(None)
        return future

    def read(
        self, positions: Positions, *, limit: int = 500, wait_s: float = 0.0
    ) -> tuple[list[Record], Positions]:
        starts: dict[str, int] = {stream: positions.get(stream, {}).get(0, 1) for stream in STREAMS}
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._from(starts), wait_s)
            self._refuse_closed()
            records = self._from(starts)[:limit]
            upto = records[-1].sequence + 1 if records else len(self._records) + 1
        starts = {stream: max(start, upto) for stream, start in starts.items()}
        return records, {stream: {0: start} for stream, start in starts.items()}

    def ends(self) -> Positions:
        self._refuse_closed()
        return {stream: {0: len(self._records) + 1} for stream in STREAMS}

    def last(self, stream: Stream) -> Record | None:
        with self._changed:
            return next((r for r in reversed(self._records) if r.stream == stream), None)

    def appended(self, stream: Stream, after: int, limit: int = 500) -> list[Record]:
        with self._changed:
            return [r for r in self._records[after:] if r.stream == stream][:limit]

    def backlog(self) -> Backlog:
        return Backlog()

    def space(self) -> Space:
        return Space()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _from(self, starts: dict[str, int]) -> list[Record]:
        low = max(min(starts.values()), 1)
        return [record for record in self._records[low - 1 :] if record.sequence >= starts[record.stream]]

    def _blank(self, tombstone: Record) -> None:
        for index, record in enumerate(self._records):
            if (record.stream, record.id) == (tombstone.stream, tombstone.id):
                self._records[index] = replace(record, data=None)

    def _refuse_closed(self) -> None:
        if self._closed:
            raise LogUnavailable("the log is closed", "open it again")
