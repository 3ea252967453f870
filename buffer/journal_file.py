"""The journal's SQLite file: made, opened, brought to this version."""

import contextlib
import os
import sqlite3
import tempfile
import uuid
from pathlib import Path

from buffer import files
from buffer.log import LogMisconfigured
from buffer.sqlite import transaction

VERSION = 2
SCHEMA = (
    "CREATE TABLE journal (source TEXT NOT NULL)",
    # AUTOINCREMENT never uses a seq twice, pruned or not; BEGIN IMMEDIATE makes its order the commit order
    """CREATE TABLE records (seq INTEGER PRIMARY KEY AUTOINCREMENT, stream TEXT NOT NULL, type TEXT NOT NULL,
       id TEXT NOT NULL, time TEXT NOT NULL, partition_key TEXT NOT NULL, data BLOB,
       source TEXT, sequence INT, partition INT)""",  # the last three: NULL but for what was restored
    "CREATE INDEX records_by_id ON records (id)",
    "CREATE TABLE relayed (target TEXT PRIMARY KEY, seq INTEGER NOT NULL)",
    "CREATE TABLE poison (seq INTEGER PRIMARY KEY, reason TEXT NOT NULL)",
)
FROM_1 = tuple(
    f"ALTER TABLE records ADD COLUMN {name}" for name in ("source TEXT", "sequence INT", "partition INT")
)

BUSY_S = 10.0
"""How long to wait for another process's commit."""


def connect(path: Path) -> sqlite3.Connection:
    """Another connection, which checkpoints only when it is told to."""
    db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA wal_autocheckpoint = 0")
    db.execute("PRAGMA journal_size_limit = 0")  # a WAL that begins anew is cut to what is in it
    return db


def open_journal(path: Path) -> sqlite3.Connection:
    """The writing connection to a file that is a journal of this version; made, or brought to it, if need be.

    Raises `LogMisconfigured` for one that is none, or of a newer version.
    """
    if not path.exists():
        _create(path)
    db = connect(path)
    try:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            raise LogMisconfigured(
                f"{path} has format {version}, newer than the {VERSION} known here", "run a newer release"
            )
        if version < 1:
            raise LogMisconfigured(f"{path} is not a journal", "move it away, or set another state directory")
        if version < VERSION:
            _migrate(db)
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA secure_delete = ON")
    except BaseException:
        db.close()
        raise
    return db


def _migrate(db: sqlite3.Connection) -> None:
    """From format 1, unless another process was faster."""
    with transaction(db):
        if db.execute("PRAGMA user_version").fetchone()[0] == 1:
            for statement in FROM_1:
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {VERSION}")


def _create(path: Path) -> None:
    """Make a finished, empty journal appear under `path`, unless another process was faster.

    It is laid out under another name because processes that switch one file to WAL together fail.
    """
    files.make_directory(path.parent)
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(fd)
    try:
        with contextlib.closing(connect(Path(temporary))) as db:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("BEGIN")
            for statement in SCHEMA:
                db.execute(statement)
            db.execute("INSERT INTO journal VALUES (?)", (f"/journals/{uuid.uuid4()}",))
            db.execute(f"PRAGMA user_version = {VERSION}")
            db.execute("COMMIT")
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)  # unlike a rename it never replaces what is there
        files.sync(path.parent)
    finally:
        os.unlink(temporary)
