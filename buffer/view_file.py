"""The view's SQLite file: opened, or started afresh."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from buffer import projection

BUSY_MS = 5_000
"""How long to wait for another process that has the file locked."""

Rows = Callable[..., list[Any]]
"""Runs one query with its arguments, alone with the database."""


def open_view(path: Path | str) -> sqlite3.Connection:
    """Open, or start afresh: an older, newer or damaged view is thrown away, since the log has it all."""
    try:
        db = _connect(path)
        version = db.execute("PRAGMA user_version").fetchone()[0]
    except sqlite3.DatabaseError:
        version = -1
    if version not in (0, projection.SCHEMA_VERSION):
        for suffix in ("", "-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        db, version = _connect(path), 0
    if version == 0:
        db.executescript(
            f"BEGIN; {projection.SCHEMA} PRAGMA user_version={projection.SCHEMA_VERSION}; COMMIT;"
        )
    return db


def _connect(path: Path | str) -> sqlite3.Connection:
    db = sqlite3.connect(path, BUSY_MS / 1000, check_same_thread=False, isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=NORMAL")
    db.execute("PRAGMA secure_delete=ON")
    return db
