"""The `Log` Protocol: the one seam between server, learner and where records are kept.

Implementations: `buffer.journal.Journal` (embedded default), `buffer.kafka.KafkaLog` (journal as outbox,
read back from the broker), `buffer.memory.MemoryLog` (tests). One conformance suite,
`tests/buffer/test_log.py`, states the contract for all of them.
"""

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Protocol

from buffer.records import Positions, Record, Stream

MAX_DATA_BYTES = 1_000_000
"""The largest `Record.data`. With its envelope it stays below a broker's default limit of 1 MiB."""


class BufferError(Exception):
    """Root of what can go wrong with the buffer; `code` is stable and `hint` names the next step.

    BufferError
     ├─ LogFull           the disk or the journal's quota is full: nothing was written
     ├─ RecordTooLarge    a record is above `MAX_DATA_BYTES`: cut it down at capture
     ├─ LogUnavailable    the broker or file cannot be reached, or the log is closed: try again
     ├─ LogMisconfigured  settings, topics or permissions are wrong: a person must act
     └─ StoreUnavailable  the adapter store does not give or take a release now (`buffer.store`): try again
    """

    code = "buffer_error"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class LogFull(BufferError):
    code = "log_full"


class RecordTooLarge(BufferError):
    code = "record_too_large"


class LogUnavailable(BufferError):
    code = "log_unavailable"


class LogMisconfigured(BufferError):
    code = "log_misconfigured"


class Log(Protocol):
    """An append-only set of streams, each split into partitions that are ordered."""

    def append(self, records: Sequence[Record]) -> Future[None]:
        """Write all records, atomically and in order. The future resolves once they are on disk (fsync).

        Cancelling the future, or the task that awaits it, does not take them back. Times are kept to the
        millisecond. Raises through the future: `LogFull`, `RecordTooLarge`, `LogMisconfigured`, and
        `LogUnavailable` when others kept the file locked. After an error none of them was written.
        """
        ...

    def read(
        self, positions: Positions, *, limit: int = 500, wait_s: float = 0.0
    ) -> tuple[list[Record], Positions]:
        """Up to `limit` records from `positions` on, and the positions after them; each partition in order.

        Waits up to `wait_s` seconds when there is nothing yet. A record may come again after a redelivery
        (same `source` and `id`, sequence not above what was seen). A tombstoned record is not returned, or
        with `data=None`, or, by a broker that has yet to compact, as it was; then its tombstone follows in
        the same partition. Raises `LogUnavailable`, and `LogMisconfigured` where a person must act.
        """
        ...

    def ends(self) -> Positions:
        """The positions after the last record of every partition. Raises `LogUnavailable`."""
        ...

    def last(self, stream: Stream) -> tuple[str, int]:
        """Source and sequence of the last record of a stream that was appended here; 0 before any.

        Behind a relay it may not have come back through `read` yet.
        """
        ...

    def close(self) -> None:
        """Flush what was appended, then release files, sockets and threads.

        Appending and reading afterwards raise `LogUnavailable`, at once.
        """
        ...


def refuse_too_large(records: Sequence[Record]) -> None:
    """Raise `RecordTooLarge` for the first record whose data no log may hold."""
    for record in records:
        if record.data is not None and len(record.data) > MAX_DATA_BYTES:
            raise RecordTooLarge(
                f"{record.type} {record.id} has {len(record.data)} bytes of data, above {MAX_DATA_BYTES}",
                "cut it down before it is appended",
            )
