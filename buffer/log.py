"""The `Log` Protocol: the one seam between server, learner and where records are kept.

Implementations: `buffer.journal.Journal` (embedded default), `buffer.kafka.KafkaLog` (journal as outbox,
read back from the broker), `buffer.memory.MemoryLog` (tests). One conformance suite,
`tests/buffer/test_log.py`, states the contract for all of them.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime
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
     ├─ LogNotEmpty       a log cannot be restored over another one
     ├─ ExportRefused     a file is no export of a log, or does not fit where it is to go
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


class LogNotEmpty(BufferError):
    code = "log_not_empty"


class ExportRefused(BufferError):
    code = "export_refused"


@dataclass(frozen=True, slots=True)
class Backlog:
    """How a log stands to its broker; all zero where it needs none."""

    pending: int = 0
    """Records appended here that the broker has not acknowledged."""
    oldest: datetime | None = None
    """When the first of them was written."""
    set_aside: int = 0
    """Records that the broker refused for good. The journal keeps them."""
    unreadable: int = 0
    """Messages passed over by this process because they are no records."""


@dataclass(frozen=True, slots=True)
class Space:
    """What a log takes of this machine, in bytes."""

    used: int = 0
    limit: int = 0
    """Where appending ends; 0 leaves it to the disk."""
    free: int | None = None
    """Left on the disk. None for a log that is on none."""


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

    def last(self, stream: Stream) -> Record | None:
        """The last record of a stream that was appended here, None before any.

        Behind a relay it may not have come back through `read` yet.
        """
        ...

    def appended(self, stream: Stream, after: int, limit: int = 500) -> list[Record]:
        """What was appended here to a stream behind sequence `after`, in order, but for what was pruned."""
        ...

    def backlog(self) -> Backlog:
        """What waits here for a broker. Works without one."""
        ...

    def space(self) -> Space:
        """How much of this machine it takes, and what is left."""
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


def behind(positions: Positions, ends: Positions) -> bool:
    """Whether something is left to read from `positions` up to `ends`."""
    return any(
        positions.get(stream, {}).get(partition, 0) < end
        for stream, partitions in ends.items()
        for partition, end in partitions.items()
    )


def read_to_end(log: Log, positions: Positions | None = None) -> Iterator[tuple[list[Record], Positions]]:
    """Everything from `positions`, or the start, to the log's present end.

    Batches, which may hold nothing, and the positions after each. Raises `LogUnavailable`.
    """
    positions, ends = positions or {}, log.ends()
    while behind(positions, ends):
        records, positions = log.read(positions, wait_s=0.1)
        yield records, positions
