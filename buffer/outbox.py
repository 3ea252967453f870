"""The journal as an outbox: what the broker has not got yet, what it refused, what may be forgotten."""

import sqlite3
from datetime import UTC, datetime

from buffer.journal import COLUMNS, Journal
from buffer.log import Backlog
from buffer.records import Record, timestamp

PRUNE_ROWS = 5_000
"""How many records one transaction forgets, so that nobody waits long behind it."""
TIGHT = 0.8
"""Share of the journal's quota above which what is with the broker is forgotten before its time."""

_EVER = timestamp(datetime.max.replace(tzinfo=UTC))


class Outbox:
    """The view that one relay has of the journal. `target` names the broker and its topics.

    Watermarks are kept per target: a journal that is pointed at another cluster is relayed from its
    oldest record on.
    """

    def __init__(self, journal: Journal, target: str) -> None:
        self._journal = journal
        self.target = target

    def use(self) -> None:
        """Make this the target that `backlog` speaks of: the last row of its table."""
        sql = "INSERT OR REPLACE INTO relayed VALUES (?, ?)"
        self._journal.commit(lambda db: db.execute(sql, (self.target, self.relayed()))).result()

    def relayed(self) -> int:
        """The `seq` up to which every record is with the broker, or set aside."""
        rows = self._journal.query("SELECT seq FROM relayed WHERE target = ?", (self.target,))
        return int(rows[0][0]) if rows else 0

    def pending(self, limit: int) -> list[tuple[int, Record]]:
        """The next records to relay, in order, each with its place (`seq`) in the journal."""
        sql = f"SELECT {COLUMNS} FROM records WHERE seq > ? ORDER BY seq LIMIT ?"  # noqa: S608
        rows = self._journal.query(sql, (self.relayed(), limit))
        return [(row[0], self._journal.record(row)) for row in rows]

    def advance(self, seq: int) -> None:
        """Everything up to `seq` is done. Never goes back."""
        self._journal.commit(lambda db: self._advance(db, seq)).result()

    def set_aside(self, seq: int, reason: str) -> None:
        """The broker will never take this record: keep it here, out of the way of those behind it."""

        def job(db: sqlite3.Connection) -> None:
            db.execute("INSERT OR REPLACE INTO poison (seq, reason) VALUES (?, ?)", (seq, reason))
            self._advance(db, seq)

        self._journal.commit(job).result()

    def poisoned(self) -> list[tuple[Record, str]]:
        """What was set aside, and why."""
        names = ", ".join(f"records.{name}" for name in COLUMNS.split(", "))
        sql = f"SELECT {names}, reason FROM poison JOIN records USING (seq) ORDER BY seq"  # noqa: S608
        return [(self._journal.record(row[:-1]), row[-1]) for row in self._journal.query(sql)]

    def prune(self, before: datetime) -> int:
        """Forget records that this target has and that are older than `before`; how many went."""
        forgotten = 0
        while gone := self._forget_some(timestamp(before)):
            forgotten += gone
        return forgotten

    def make_room(self) -> int:
        """Forget records that this target has, oldest first, while the journal's quota is nearly used; how
        many went. For a target that keeps each of them on two machines."""
        forgotten = 0
        while self._tight() and (gone := self._forget_some(_EVER)):
            forgotten += gone
        return forgotten

    def _tight(self) -> bool:
        space = self._journal.space()
        return space.limit > 0 and space.used > TIGHT * space.limit

    def _forget_some(self, before: str) -> int:
        sql = """DELETE FROM records WHERE seq IN (SELECT seq FROM records WHERE seq <= ? AND time < ?
                 AND seq NOT IN (SELECT seq FROM poison) ORDER BY seq LIMIT ?)"""

        def job(db: sqlite3.Connection) -> int:
            return db.execute(sql, (self.relayed(), before, PRUNE_ROWS)).rowcount

        return int(self._journal.commit(job).result())

    def _advance(self, db: sqlite3.Connection, seq: int) -> None:
        db.execute(
            "INSERT INTO relayed VALUES (?, ?) ON CONFLICT DO UPDATE SET seq = max(seq, excluded.seq)",
            (self.target, seq),
        )


def backlog(journal: Journal) -> Backlog:
    """What waits for the target in use: everything, before the first was reached."""
    done = journal.query("SELECT seq FROM relayed ORDER BY rowid DESC LIMIT 1")
    first = journal.query(
        "SELECT seq, time FROM records WHERE seq > ? ORDER BY seq LIMIT 1", done[0] if done else (0,)
    )
    (aside,) = journal.query("SELECT count(*) FROM poison")[0]
    if not first:
        return Backlog(set_aside=aside)
    ((seq, time),) = first
    last = journal.ends()["exchanges"][0] - 1  # counting the rows would read all of them
    return Backlog(last - seq + 1, datetime.fromisoformat(time), aside)
