"""What the journal and the view share of SQLite: a transaction, and what its errors mean to a caller."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from buffer.log import LogFull, LogMisconfigured, LogUnavailable


@contextlib.contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Hold the write lock; commit at the end, or undo all of it where something is raised."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            db.execute("ROLLBACK")  # SQLite has done so itself after some errors
        raise


def translate(
    error: Exception,
    path: Path | str,
    *,
    full: str = "free disk space, or raise max_bytes in [buffer]",
    wrong: str = "check its path and permissions; a corrupt file: move it away, restore a backup",
) -> Exception:
    """What SQLite says, as what a caller can act on. `full` and `wrong` are hints."""
    if not isinstance(error, sqlite3.Error | OSError):
        return error
    code = getattr(error, "sqlite_errorcode", 0)
    no_room = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE)
    passing = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR)
    if code in no_room:
        return LogFull(f"{path}: {error}", full)
    if code & 0xFF in passing:
        return LogUnavailable(f"{path}: {error}", "try again; if it persists, check the disk")
    return LogMisconfigured(f"{path}: {error}", wrong)
