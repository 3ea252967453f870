"""The journal: a durable log in one SQLite file, shared by all processes of one machine.

It is the embedded log, where every stream has partition 0 and an offset is a `seq`; and it is the outbox
in front of Kafka (`buffer.outbox`). WAL with `synchronous=FULL` survives a power cut; one fsync carries
everything that waited for it (group commit), so an append costs the same alone or in company.

    append ─► queue ─► writer thread: BEGIN IMMEDIATE, all jobs, COMMIT (one fsync) ─► futures
"""

import contextlib
import logging
import os
import queue
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from buffer.journal_file import connect, open_journal
from buffer.log import Backlog, BufferError, LogNotEmpty, LogUnavailable, Space, refuse_too_large
from buffer.records import KEYED, STREAMS, Positions, Record, Stream, timestamp
from buffer.sqlite import translate

COLUMNS = "seq, stream, type, id, time, partition_key, data, source, sequence, partition"
INSERT = f"INSERT INTO records ({COLUMNS}) VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608

AGAIN_S = 1.0
"""How soon a checkpoint that was held up is tried again."""
POLL_S = 0.025
"""How soon a reader notices what another process appended."""
GROUP_JOBS, GROUP_BYTES, READ_BYTES = 512, 8 << 20, 16 << 20
WAL_BYTES = 16 << 20
"""Where the WAL is moved into the file, which takes two more flushes: rarely, then."""

Job = Callable[[sqlite3.Connection], Any]
T = TypeVar("T")
logger = logging.getLogger(__name__)


class Journal:
    """A `Log` in the file `path`, made when missing (0600). Any number of processes may open it.

    `max_bytes` bounds the file; 0 leaves it to the disk. Raises `LogMisconfigured` when the file is
    corrupt, too new, or out of reach.
    """

    def __init__(self, path: Path, *, max_bytes: int = 0) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._wal = f"{path}-wal"
        with _translated(path):
            self._db = open_journal(path)
            self._reader, self._mover = connect(path), connect(path)
            if max_bytes:
                (page,) = self._db.execute("PRAGMA page_size").fetchone()
                self._db.execute(f"PRAGMA max_page_count = {max(max_bytes // page, 1)}")
            # by the connection that moves the WAL, which does nothing before it has read the file
            (self.source,) = self._mover.execute("SELECT source FROM journal").fetchone()
        self._reading = threading.Lock()
        self._gate = threading.Condition()  # guards the two below; notified after each commit
        self._commits = 0
        self._closed = False
        self._queue: queue.SimpleQueue[tuple[Job, Future[Any], int] | None] = queue.SimpleQueue()
        self._to_erase = True  # erased bytes may be left in the WAL by a process that died
        self._look_at = 0.0
        self._writer = threading.Thread(target=self._write_forever, name=f"journal {path}", daemon=True)
        self._writer.start()

    def append(self, records: Sequence[Record]) -> "Future[None]":
        rows = list(map(_values, records))  # taken now: the caller may change its list

        def insert(db: sqlite3.Connection) -> None:
            for stream, type_, id_, time_, key, data in rows:
                if data is None:  # first, so that a full disk has room for the tombstone
                    db.execute("UPDATE records SET data = NULL WHERE id = ? AND stream = ?", (id_, stream))
                    self._to_erase = True
                db.execute(INSERT, (stream, type_, id_, time_, key, data, None, None, None))

        try:
            refuse_too_large(records)
        except BufferError as error:
            refused: Future[None] = Future()
            refused.set_exception(error)
            return refused
        return self.commit(insert, size=sum(len(row[-1] or b"") for row in rows))

    def restore(self, read: Callable[[], Iterable[Record]]) -> "Future[int]":
        """Fill an empty journal with the records of another log, all or none; how many they are.

        They keep their source, sequence and partition, by which readers know them, and the journal keeps
        its own identity: it never gives out a sequence that its predecessor, were it to go on, gives too.
        Those of streams with several partitions come in the order of their sequences: a relay may spread them
        over other partitions, and sends a tombstone to all.
        `read` gives the records; what it raises comes through the future, as does `LogNotEmpty`.
        """

        def fill(db: sqlite3.Connection) -> int:
            if db.execute("SELECT 1 FROM sqlite_sequence WHERE name = 'records'").fetchone() is not None:
                raise LogNotEmpty(f"{self.path} has records already", "restore into a new state directory")
            db.execute("CREATE TEMP TABLE incoming AS SELECT * FROM records LIMIT 0")
            db.executemany(INSERT.replace("records", "incoming"), map(_restored, read()))
            columns = COLUMNS.removeprefix("seq, ")
            (spread,) = db.execute("SELECT max(partition) > 0 FROM incoming").fetchone()
            keyed = f"?1 AND stream IN ({', '.join(repr(stream) for stream in KEYED)})"
            count = db.execute(
                f"INSERT INTO records ({columns}) SELECT {columns} FROM incoming"  # noqa: S608
                f" ORDER BY {keyed}, CASE WHEN {keyed} THEN sequence END, rowid",
                (spread,),
            ).rowcount
            db.execute("DROP TABLE incoming")
            return count

        return self.commit(fill)

    def commit(self, job: Callable[[sqlite3.Connection], T], *, size: int = 0) -> "Future[T]":
        """Run `job` in the next transaction; the future resolves to its result once that is on disk.

        The job may run twice (again on its own when its group failed), so it must only touch the
        database. `size` is about how many bytes it writes.
        """
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()  # what is queued is written, whoever stops waiting for it
        with self._gate:
            self._refuse_closed()
            self._queue.put((job, future, size))
        return future

    def read(
        self, positions: Positions, *, limit: int = 500, wait_s: float = 0.0
    ) -> tuple[list[Record], Positions]:
        """As `Log.read`; records of all streams come in the order of their `seq`."""
        starts: dict[str, int] = {stream: positions.get(stream, {}).get(0, 1) for stream in STREAMS}
        deadline = time.monotonic() + wait_s
        while True:
            with self._gate:
                self._refuse_closed()
                seen = self._commits
            ends = self.ends()
            records, last = self._select(starts, limit)
            # the streams share one sequence: all have been read up to the last record, or to the end
            upto = last + 1 if records else ends["control"][0]
            starts = {stream: max(start, upto) for stream, start in starts.items()}
            left = deadline - time.monotonic()
            if records or left <= 0:
                return records, {stream: {0: start} for stream, start in starts.items()}
            self._wait_for_commit(seen, min(left, POLL_S))

    def ends(self) -> Positions:
        last = self.query("SELECT seq FROM sqlite_sequence WHERE name = 'records'")
        return {stream: {0: last[0][0] + 1 if last else 1} for stream in STREAMS}

    def last(self, stream: Stream) -> Record | None:
        sql = f"SELECT {COLUMNS} FROM records WHERE stream = ? ORDER BY seq DESC LIMIT 1"  # noqa: S608
        found = self.query(sql, (stream,))
        return self.record(found[0]) if found else None

    def appended(self, stream: Stream, after: int, limit: int = 500) -> list[Record]:
        mine = "seq > ? AND stream = ? AND source IS NULL"
        sql = f"SELECT {COLUMNS} FROM records WHERE {mine} ORDER BY seq LIMIT ?"  # noqa: S608
        return [self.record(row) for row in self.query(sql, (after, stream, limit))]

    def backlog(self) -> Backlog:
        return Backlog()

    def space(self) -> Space:
        names = ("page_count", "freelist_count", "page_size")
        pages, unused, size = (int(self.query(f"PRAGMA {name}")[0][0]) for name in names)
        free = shutil.disk_usage(self.path.parent).free
        return Space((pages - unused) * size, self._max_bytes, free)

    def query(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Rows of a SELECT, from a connection of its own: it never waits for a commit."""
        with self._reading, _translated(self.path):
            self._refuse_closed()
            return self._reader.execute(sql, values).fetchall()

    def record(self, row: Sequence[Any]) -> Record:
        """The record in a row of `COLUMNS`."""
        seq, stream, type_, id_, time_, key, data, source, sequence, partition = row
        if source is None:
            source, sequence, partition = self.source, seq, 0
        return Record(
            stream, type_, id_, datetime.fromisoformat(time_), data, key, source, sequence, partition
        )

    def close(self) -> None:
        with self._gate:
            if self._closed:
                return
            self._closed = True
            self._queue.put(None)
            self._gate.notify_all()
        self._writer.join()
        with self._reading:
            self._reader.close()
        self._mover.close()
        self._db.close()

    def _refuse_closed(self) -> None:
        if self._closed:
            raise LogUnavailable(f"{self.path} is closed", "open it again")

    def _wait_for_commit(self, seen: int, timeout: float) -> None:
        with self._gate:
            self._gate.wait_for(lambda: self._closed or self._commits != seen, timeout)

    def _select(self, starts: dict[str, int], limit: int) -> tuple[list[Record], int]:
        """Up to `limit` records, of not much above `READ_BYTES`, at or after their stream's start; the last's
        `seq`."""
        sql = f"""SELECT {COLUMNS} FROM records WHERE seq >= ? AND seq >= CASE stream
            {" ".join("WHEN ? THEN ?" for _ in starts)} ELSE 0 END ORDER BY seq LIMIT ?"""  # noqa: S608
        flat = [value for pair in starts.items() for value in pair]
        records: list[Record] = []
        size = last = 0
        with self._reading, _translated(self.path):
            self._refuse_closed()
            with contextlib.closing(self._reader.execute(sql, (min(starts.values()), *flat, limit))) as rows:
                for row in rows:
                    records.append(self.record(row))
                    last = row[0]
                    size += len(records[-1].data or b"")
                    if size >= READ_BYTES:
                        break
        return records, last

    # --- the writer thread ------------------------------------------------------------------------------

    def _write_forever(self) -> None:
        closing = False
        while not closing:
            group, closing = self._next_group()
            if group:
                self._commit(group)
            with self._gate:
                self._commits += 1
                self._gate.notify_all()
            self._checkpoint(last=closing)

    def _next_group(self) -> tuple[list[tuple[Job, Future[Any]]], bool]:
        """All jobs that wait, within bounds, and whether the journal is closing behind them."""
        group: list[tuple[Job, Future[Any]]] = []
        size = 0
        wait = AGAIN_S if self._to_erase else None  # an erasure that a reader held up is tried again
        with contextlib.suppress(queue.Empty):
            while len(group) < GROUP_JOBS and size < GROUP_BYTES:
                item = self._queue.get(timeout=wait) if not group else self._queue.get_nowait()
                if item is None:
                    return group, True
                group.append(item[:2])
                size += item[2]
        return group, False

    def _commit(self, group: list[tuple[Job, Future[Any]]]) -> None:
        """One transaction for the group; when that fails, one for each, so that only the guilty fail."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
        except Exception as error:
            for _, future in group:
                future.set_exception(translate(error, self.path))
            return
        try:
            results = [job(self._db) for job, _ in group]
            self._db.execute("COMMIT")
        except Exception as error:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")  # SQLite has done so itself after some errors
            if len(group) == 1:
                group[0][1].set_exception(translate(error, self.path))
            else:
                for one in group:
                    self._commit([one])
        else:
            for (_, future), result in zip(group, results, strict=True):
                future.set_result(result)

    def _checkpoint(self, *, last: bool) -> None:
        """Move the WAL into the file and begin it anew: to bound it, and because it still holds erased bytes.

        What somebody reads stays where it is until a later call: nobody could append while this one waited.
        """
        try:
            due = self._to_erase or os.path.getsize(self._wal) > WAL_BYTES
            if due and (last or time.monotonic() >= self._look_at):
                self._look_at = time.monotonic() + AGAIN_S
                if self._move() and (not self._to_erase or self._begin_anew()):
                    self._to_erase, self._look_at = False, 0.0
        except (sqlite3.Error, OSError) as error:
            logger.warning("checkpoint of %s put off: %s", self.path, error)

    def _move(self) -> bool:
        """Move the WAL into the file; whether that was all of it.

        Only ever with the write lock held: SQLite before 3.51.3 can corrupt a file when one process
        checkpoints while another restarts the WAL. TRUNCATE does not do: where it does not get the lock in
        time it moves the WAL without, and once it has the lock it waits for readers.
        """
        self._db.execute("BEGIN IMMEDIATE")
        try:
            busy, frames, moved = self._mover.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        finally:
            self._db.execute("ROLLBACK")
        return not busy and frames == moved

    def _begin_anew(self) -> bool:
        """Write something into a WAL that was moved: unless somebody reads it, that begins it anew and cuts
        off what was in it. Whether it did."""
        if before := self._wal_header():
            self._db.execute("PRAGMA application_id = 0")  # which it is: nothing reads it
        return not before or before != self._wal_header()

    def _wal_header(self) -> bytes:
        """With a salt that is another one whenever the WAL begins anew."""
        with open(self._wal, "rb") as wal:
            return wal.read(32)


def _restored(record: Record) -> tuple[Any, ...]:
    """The values of `INSERT` for a record of another log."""
    refuse_too_large([record])
    return (*_values(record), record.source, record.sequence, record.partition)


def _values(record: Record) -> tuple[Any, ...]:
    """Those of `INSERT` that every record has."""
    time_ = timestamp(record.time)
    return (record.stream, record.type, record.id, time_, record.partition_key, record.data)


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Raise what SQLite or the disk says as a `BufferError`."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise translate(error, path) from error
