"""The view's SQLite file: opened, or started afresh."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from buffer import projection
from buffer.sqlite import translate

BUSY_MS = 5_000
"""How long to wait for another process that has the file locked."""

DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
OURS = (
    0,
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_MISMATCH,
    sqlite3.SQLITE_MISUSE,
    sqlite3.SQLITE_RANGE,
)
"""What a wrong statement gives, whatever the disk does."""

Rows = Callable[..., list[Any]]
"""Runs one query with its arguments, alone with the database."""


def open_view(path: Path | str) -> sqlite3.Connection:
    """Open, or start afresh: an older, newer or damaged view is thrown away, since the log has it all.

    One that cannot be opened for another reason is kept. Raises as `translated`.
    """
    with translated(path):
        if not _usable(path):
            for suffix in ("", "-wal", "-shm"):
                Path(f"{path}{suffix}").unlink(missing_ok=True)
        db = _connect(path)
        if _version(db) == 0:
            db.executescript(
                f"BEGIN; {projection.SCHEMA} PRAGMA user_version={projection.SCHEMA_VERSION}; COMMIT;"
            )
        return db


@contextmanager
def translated(path: Path | str) -> Iterator[None]:
    """Raise what the disk or another process does to the view as the `BufferError` that the journal makes of
    it, and a fault of ours as it is."""
    try:
        yield
    except sqlite3.Error as error:
        if _code(error) in OURS:
            raise
        wrong = "check its path, its permissions and `ulimit -n`; if it is damaged, delete it: it is rebuilt"
        raise translate(error, path, full="free disk space", wrong=wrong) from error


def _usable(path: Path | str) -> bool:
    """Whether it is a view of this version, or none yet."""
    try:
        with closing(_connect(path)) as db:
            return _version(db) in (0, projection.SCHEMA_VERSION)
    except sqlite3.DatabaseError as error:
        if _code(error) not in DAMAGED:
            raise
        return False


def _connect(path: Path | str) -> sqlite3.Connection:
    db = sqlite3.connect(path, BUSY_MS / 1000, check_same_thread=False, isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=NORMAL")
    db.execute("PRAGMA secure_delete=ON")
    return db


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary result code, or 0 where the error is Python's."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
