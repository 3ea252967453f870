"""What the log costs on this machine: the disk's own flush, and the journal's appends beside it.

Appends are awaited on an event loop, as a gateway does: `appenders` of them are under way at any time, with
`batch` records each. Under `NORMAL` nothing waits for the disk, and a power cut takes what was acknowledged.
"""

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from buffer.journal import Journal
from buffer.records import Record, uuid7

Durability = Literal["FULL", "NORMAL"]


@dataclass(frozen=True, slots=True)
class Timing:
    """`count` things in `seconds`, and how long single calls took (milliseconds)."""

    count: int
    seconds: float
    p50_ms: float
    p99_ms: float

    @classmethod
    def of(cls, count: int, seconds: float, calls: Sequence[float]) -> "Timing":
        """From the durations of the calls, in seconds, in any order."""
        ordered = sorted(calls)
        middle, late = ordered[len(ordered) // 2], ordered[min(len(ordered) * 99 // 100, len(ordered) - 1)]
        return cls(count, seconds, 1e3 * middle, 1e3 * late)

    @property
    def per_second(self) -> float:
        return self.count / self.seconds


def make_records(count: int, size: int) -> list[Record]:
    """Records with `size` random bytes each: nothing on the way can compress them."""

    def make(number: int) -> Record:
        now, key = datetime.now(UTC), f"key-{number % 64}"
        id_ = uuid7(now, os.urandom(8))
        return Record("exchanges", "apprentice.bench.v1", id_, now, os.urandom(size), key)

    return [make(number) for number in range(count)]


def flushes(directory: Path, size: int, times: int) -> Timing:
    """The floor under every acknowledgement: `size` bytes to the end of a file, and fsync."""
    path, calls = directory / "flushed", []
    with path.open("wb", buffering=0) as file:
        began = time.perf_counter()
        for _ in range(times):
            at = time.perf_counter()
            file.write(bytes(size))
            os.fsync(file.fileno())
            calls.append(time.perf_counter() - at)
        seconds = time.perf_counter() - began
    path.unlink()
    return Timing.of(times, seconds, calls)


def appends(
    directory: Path, *, records: int, size: int, batch: int, appenders: int, durability: Durability = "FULL"
) -> Timing:
    """Append about `records` records to a new journal in `directory`, which is deleted afterwards."""
    path = directory / "bench.db"
    journal = Journal(path)
    if durability != "FULL":
        journal._db.execute(f"PRAGMA synchronous = {durability}")  # the writer sleeps until the first append
    made = make_records(max(records // batch, 1) * batch, size)
    waiting = iter([made[start : start + batch] for start in range(0, len(made), batch)])
    calls: list[float] = []

    async def appender() -> None:
        for some in waiting:
            at = time.perf_counter()
            await asyncio.wrap_future(journal.append(some))
            calls.append(time.perf_counter() - at)

    async def all_of_them() -> float:
        began = time.perf_counter()
        await asyncio.gather(*(appender() for _ in range(appenders)))
        return time.perf_counter() - began

    try:
        seconds = asyncio.run(all_of_them())
    finally:
        journal.close()
        for suffix in ("", "-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
    return Timing.of(len(made), seconds, calls)
