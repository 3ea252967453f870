"""What `apprentice doctor` checks of the buffer: state directory, disk, journal, clock, broker, relay.

Each check takes what it needs and returns one finding. Nothing is changed: the journal is opened read-only,
no topic is made, and the one file that is written, to see the disk flush, is deleted.
"""

import contextlib
import fcntl
import os
import shutil
import sqlite3
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from buffer.config import KafkaConfig
from buffer.journal_file import VERSION
from buffer.log import BufferError

LOW_BYTES, TOO_LOW_BYTES = 2 << 30, 64 << 20
SLOW_FSYNC_S = 0.1
NEARLY_FULL = 0.9
LARGE_BYTES = 10 << 30
BOUNDS = {
    "adapters": "keep fewer old releases: lower keep in [buffer.adapters]",
    "journal.db": "it keeps everything: max_bytes in [buffer] bounds it, and a broker takes over what is old",
    "server": "its look-ups grow with the log: `apprentice erase` what need not be kept",
    "learner": "its look-ups grow with the log: `apprentice erase` what need not be kept",
}
"""What keeps a part of the state directory small."""
LAG_RECORDS = 10_000
CLOCK_S = 60


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found; `todo` is the next step, where there is one."""

    check: str
    verdict: Literal["ok", "warning", "wrong"]
    says: str
    todo: str = ""


def check_state(state: Path) -> Finding:
    """The directory is there, writable, only its owner's, and its disk has room."""
    name = "state directory"
    if not state.exists():
        return Finding(name, "warning", f"{state} does not exist yet", "`apprentice up` makes it")
    if not state.is_dir() or not os.access(state, os.R_OK | os.W_OK | os.X_OK):
        return Finding(
            name, "wrong", f"{state} cannot be written", f"chown it to this user, chmod 700 {state}"
        )
    free = shutil.disk_usage(state).free
    if free < TOO_LOW_BYTES:
        return Finding(name, "wrong", f"{state}: {free >> 20} MB are free", "free disk space")
    if free < LOW_BYTES:
        return Finding(name, "warning", f"{state}: {free >> 20} MB are free", "free disk space soon")
    if state.stat().st_mode & 0o077:
        return Finding(name, "warning", f"others may enter {state}", f"chmod 700 {state}")
    return Finding(name, "ok", f"{state}, {free >> 30} GB free")


def check_size(state: Path) -> Finding:
    """What the state directory holds, and whether a part of it has grown large."""
    sizes: Counter[str] = Counter()
    for folder, _, names in os.walk(state):
        for name in names:
            file = Path(folder, name)
            part = file.relative_to(state).parts[0].removesuffix("-wal").removesuffix("-shm")
            with contextlib.suppress(FileNotFoundError):  # it has just been deleted
                sizes[part] += file.lstat().st_size
    largest = ", ".join(f"{part} {size / 1e6:.0f} MB" for part, size in sizes.most_common(3))
    said = f"{sizes.total() / 1e6:.0f} MB" + (f": {largest}" if largest else "")
    for part, size in sizes.most_common(1):
        if size > LARGE_BYTES:
            return Finding("size", "warning", said, BOUNDS.get(part, f"look into {state / part}"))
    return Finding("size", "ok", said)


def check_fsync(state: Path) -> Finding:
    """The disk flushes, and how fast: every acknowledgement waits for it once."""
    name, took = "fsync", []
    try:
        with tempfile.TemporaryFile(dir=state) as file:
            for _ in range(9):
                file.write(bytes(4096))
                file.flush()
                began = time.perf_counter()
                os.fsync(file.fileno())
                took.append(time.perf_counter() - began)
    except OSError as error:
        return Finding(name, "wrong", f"{state}: {error}", "check the disk and its permissions")
    middle = statistics.median(took)
    if middle > SLOW_FSYNC_S:
        return Finding(
            name, "warning", f"{1e3 * middle:.0f} ms, which every request waits for", "use another disk"
        )
    return Finding(name, "ok", f"{1e3 * middle:.1f} ms")


def check_journal(path: Path, max_bytes: int) -> Finding:
    """It opens, its pages are sound, and its quota has room."""
    name = "journal"
    if not path.exists():
        return Finding(name, "ok", "none yet")
    try:
        with _read_only(path) as db:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version != VERSION:
                return Finding(
                    name, "wrong", f"{path} has format {version}, not {VERSION}",
                    "run the release that wrote it, or move it away",
                )  # fmt: skip
            problems = [row[0] for row in db.execute("PRAGMA quick_check(1)")]
            if problems != ["ok"]:
                return _damaged(path, problems[0])
            pages, unused, size = (
                db.execute(f"PRAGMA {what}").fetchone()[0]
                for what in ("page_count", "freelist_count", "page_size")
            )
    except sqlite3.DatabaseError as error:
        return _damaged(path, error)
    held = (pages - unused) * size
    said = f"{path}, {held / 2**20:.1f} MB" + (f" of {max_bytes / 2**20:.1f}" if max_bytes else "")
    if max_bytes and held > NEARLY_FULL * max_bytes:
        return Finding(name, "warning", f"{said}: nearly full", "raise max_bytes in [buffer]")
    return Finding(name, "ok", said)


def check_set_aside(path: Path) -> Finding:
    """No record was refused by the broker."""
    name = "records set aside"
    with _read_only(path) as db:
        rows = db.execute("SELECT seq, reason FROM poison ORDER BY seq").fetchall()
    if not rows:
        return Finding(name, "ok", "none")
    seq, reason = rows[-1]
    return Finding(
        name, "warning", f"{len(rows)} that the broker refused; the last, {seq}: {reason}",
        "raise max.message.bytes of its topic; the journal keeps them",
    )  # fmt: skip


def check_clock(path: Path, now: datetime) -> Finding:
    """Nothing was recorded in the future: ids and records are read in the order of their times."""
    name = "clock"
    with _read_only(path) as db:
        row = db.execute("SELECT time FROM records ORDER BY seq DESC LIMIT 1").fetchone()
    ahead = datetime.fromisoformat(row[0]) - now if row else timedelta(0)
    if ahead > timedelta(seconds=CLOCK_S):
        return Finding(
            name, "warning", f"the last record is {ahead.total_seconds():.0f} s ahead of the clock",
            "set the clock (NTP); until it has caught up, all records carry about that time",
        )  # fmt: skip
    return Finding(name, "ok", f"{now.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC")


def check_broker(config: KafkaConfig) -> tuple[Finding, str | None]:
    """It answers and its topics are as they must be; with the cluster's id."""
    from kafka.errors import KafkaError

    from buffer.topics import inspect_topics

    name, servers = "broker", ", ".join(config.bootstrap_servers)
    try:
        cluster, missing = inspect_topics(config, name="doctor")
    except BufferError as error:
        return Finding(name, "wrong", str(error), error.hint), None
    except (KafkaError, OSError) as error:
        todo = "check that the broker runs, and bootstrap_servers in [buffer.kafka]"
        return Finding(name, "wrong", f"{servers}: {error!r}", todo), None
    if missing:
        todo = "the relay makes them: `apprentice up`, or python -m buffer"
        return Finding(name, "warning", f"{servers} lacks {', '.join(missing)}", todo), cluster
    return Finding(name, "ok", f"{servers}, topics {config.topic_prefix}*"), cluster


def check_relay(path: Path, target: str) -> Finding:
    """What the broker has not got yet, and whether a relay is at work on it."""
    name, lock = "relay", path.with_name("relay.lock")
    with _read_only(path) as db:
        (last,) = db.execute("SELECT coalesce(max(seq), 0) FROM records").fetchone()
        row = db.execute("SELECT seq FROM relayed WHERE target = ?", (target,)).fetchone()
    behind = last - (row[0] if row else 0)
    said = f"{behind} records behind"
    runs = lock.exists() and _owned(lock)
    if behind and not runs:
        return Finding(name, "wrong", f"none runs, {said}", "start it: `apprentice up`, or python -m buffer")
    if behind > LAG_RECORDS:
        return Finding(name, "warning", said, "look at its log for why the broker takes them slowly")
    return Finding(name, "ok", said)


def _owned(lock: Path) -> bool:
    """Whether a process holds it. Shared, so that the owner's process id in it stays."""
    with lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _damaged(path: Path, what: object) -> Finding:
    todo = "stop everything, move it away and restore a backup, or save what sqlite3's .recover can read"
    return Finding("journal", "wrong", f"{path} is damaged: {what}", todo)


@contextlib.contextmanager
def _read_only(path: Path) -> Iterator[sqlite3.Connection]:
    db = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True, timeout=5.0)
    try:
        yield db
    finally:
        db.close()
