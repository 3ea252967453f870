"""The view once more from the log alone, and what differs from the view that is there.

Nothing should: a view is a function of the log. What differs tells of a fault, of a damaged file, or of
records that an older release could not read. What is erased is not compared: a view that saw it go keeps the
mark, and one that is built later may find nothing to mark.
"""

import os
import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from buffer import files, projection
from buffer.log import Log, behind, read_to_end
from buffer.records import Positions
from buffer.view import View

SHOWN = 3
"""Keys of rows that differ and are named, of however many there are."""
EVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class From:
    """Where to begin: what was known is kept, and records from there on are applied once more.

    Of the records at or after `positions` those of `time` or later.
    """

    positions: Positions = field(default_factory=dict)
    time: datetime = EVER


@dataclass(frozen=True, slots=True)
class Difference:
    """How many rows of a table only the view there has, and only the one from the log, and some keys."""

    table: str
    only_there: int
    only_from_log: int
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Replayed:
    """`records` were applied. `unusable` says why the view there could not be compared, if so."""

    records: int
    differences: tuple[Difference, ...] = ()
    unusable: str = ""

    @property
    def same(self) -> bool:
        return not self.differences and not self.unusable


def replay(log: Log, there: Path, built: Path, begin: From | None = None) -> Replayed:
    """Build the view `built` from the log, and compare it with the view file `there`, which is left alone.

    A process may go on working with it meanwhile: what is compared is a copy, and both are brought to the
    same end of the log. Raises `LogUnavailable`.
    """
    copy = built.with_name("copy.db")
    unusable = _copy(there, copy) or _catch_up(log, copy)
    if begin is not None and not unusable:
        shutil.copyfile(copy, built)
    with closing(View(built)) as new:
        if begin is None or unusable:
            return _compared(log, copy, new, follow(log, new), unusable, built)
        count = 0
        for records, positions in read_to_end(log, _within(begin.positions, log.ends())):
            chosen = [record for record in records if record.time >= begin.time]
            new.apply(chosen, positions, again=True)
            count += len(chosen)
        return _compared(log, copy, new, count, unusable, built)


def follow(log: Log, view: View) -> int:
    """Bring a view to the log's present end; how many records were read for it. Raises `LogUnavailable`."""
    count = 0
    for records, positions in read_to_end(log, view.positions()):
        view.apply(records, positions)
        count += len(records)
    view.mark_complete()
    return count


def put_in_place(built: Path, there: Path) -> None:
    """Let a built view take the place of the one that is there, which no process may have open.

    A crash in between leaves the old one at an earlier position of the log, from which it goes on.
    """
    files.sync(built)
    for suffix in ("-wal", "-shm"):
        Path(f"{there}{suffix}").unlink(missing_ok=True)
    os.replace(built, there)
    files.sync(there.parent)


def _copy(there: Path, copy: Path) -> str:
    """A consistent copy, also while a process writes; or why there is none."""
    try:
        with closing(sqlite3.connect(there)) as old, closing(sqlite3.connect(copy)) as new:
            old.backup(new)
            (version,) = new.execute("PRAGMA user_version").fetchone()
            (check,) = new.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        return f"it is damaged: {error}"
    if check != "ok":
        return f"it is damaged: {check}"
    return "" if version == projection.SCHEMA_VERSION else "it was written by another release"


def _catch_up(log: Log, copy: Path) -> str:
    """Bring the copy to the end; or why it cannot be."""
    with closing(View(copy)) as view:
        if behind(log.ends(), view.positions()):
            return "it knows of records that the log does not have"
        follow(log, view)
    return ""


def _within(positions: Positions, ends: Positions) -> Positions:
    """The same, where the log has such partitions, and not beyond its ends."""
    return {
        stream: {p: min(offset, ends[stream][p]) for p, offset in partitions.items() if p in ends[stream]}
        for stream, partitions in positions.items()
    }


def _compared(log: Log, copy: Path, new: View, records: int, unusable: str, built: Path) -> Replayed:
    if unusable:
        return Replayed(records, unusable=unusable)
    with closing(View(copy)) as old:
        while old.positions() != new.positions():  # records arrived meanwhile
            follow(log, old)
            follow(log, new)
    return Replayed(records, differences(copy, built))


def differences(there: Path, built: Path) -> tuple[Difference, ...]:
    """What two views of the same records say differently. Where they stand in their log is not compared."""
    found = []
    with closing(sqlite3.connect(built)) as db:
        db.execute("ATTACH ? AS there", (str(there),))
        tables = "SELECT name FROM main.sqlite_master WHERE type = 'table' AND name != 'positions'"
        for (table,) in db.execute(tables).fetchall():
            kept = "WHERE NOT erased" if table in ("exchanges", "feedback") else ""
            old, new = (f"SELECT * FROM {schema}.{table} {kept}" for schema in ("there", "main"))  # noqa: S608
            gone, added = (_only(db, *pair) for pair in ((old, new), (new, old)))
            if gone or added:
                keys = dict.fromkeys(str(row[0]) for row in (*gone, *added))
                found.append(Difference(table, len(gone), len(added), tuple(keys)[:SHOWN]))
    return tuple(found)


def _only(db: sqlite3.Connection, these: str, those: str) -> list[tuple[object, ...]]:
    return db.execute(f"{these} EXCEPT {those}").fetchall()
