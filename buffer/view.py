"""The view: a local look-up of the log that each process keeps, rebuildable from nothing.

Who asked what, the fate of a piece of feedback, rounds and policies, the live policy. Records are applied
in log order, one transaction a batch, together with the positions they move to; a record seen before
(by source and sequence) changes nothing. What can be derived is derived (`buffer.fate`), never stored.
"""

import logging
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from buffer import exchanges, feedback, projection, rounds
from buffer.exchanges import EVERYTHING, Exchange, Wanted
from buffer.fate import Lineage, Status, Trail
from buffer.feedback import Feedback, FeedbackGroup, Judgement
from buffer.files import make_directory
from buffer.records import (
    ExchangeErased,
    FeedbackGiven,
    KeyAdded,
    LearnerReported,
    LearningSwitched,
    Payload,
    Positions,
    Record,
    RoundRequested,
)
from buffer.rounds import Alias, Move, Round
from buffer.sqlite import transaction
from buffer.view_file import BUSY_MS, open_view, translated

logger = logging.getLogger(__name__)

COMPLETE = ""
"""Stands for a stream in `positions` once the log was read to its end."""


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys in force, by name. `ever` says whether there was one, revoked or not."""

    added: tuple[tuple[KeyAdded, float], ...] = ()
    """With the time of each in Unix seconds."""
    ever: bool = False
    complete: bool = False
    """Whether the log was ever read to its end. Until then others may have one, and these be revoked."""


class View:
    """The look-up. Thread-safe; one process writes it. Losing the file costs a re-read of the log.

    Whatever reads or writes it raises `BufferError` where the disk is to blame: `LogFull`, say.
    """

    def __init__(self, path: Path | str) -> None:
        if path != ":memory:":
            make_directory(Path(path).parent)
        self._path = path
        self._lock = threading.RLock()
        self._db = open_view(path)
        self._to_erase = True
        """Erased bytes may be left in the write-ahead log, by a process that died for one."""
        self._judged: Judgement | None = None
        """What every fate depends on, until control or rounds say more."""
        self._keys: Keys | None = None
        """Asked for at every request; until control says more."""
        self.scrub()

    def close(self) -> None:
        with self._lock:
            self._db.close()

    # --- writing -------------------------------------------------------------------------------------

    def positions(self) -> Positions:
        """Up to where the log has been applied."""
        found: Positions = {}
        rows = self._rows("SELECT stream, partition, offset FROM positions WHERE stream != ?", COMPLETE)
        for stream, partition, offset in rows:
            found.setdefault(stream, {})[partition] = offset
        return found

    def mark_complete(self) -> None:
        """Remember that the log was read to its end: from now on the view may lag, but is no mere beginning.
        Emptying it forgets that."""
        with self._transaction():
            self._keys = None
            self._db.execute("INSERT OR IGNORE INTO positions VALUES (?, 0, 0)", (COMPLETE,))

    def forget(self) -> None:
        """Empty the view, to be filled again from the start of the log."""
        tables = self._rows("SELECT name FROM sqlite_master WHERE type = 'table'")
        with self._transaction():
            self._judged = self._keys = None
            for (table,) in tables:
                self._db.execute(f"DELETE FROM {table}")  # noqa: S608 - our own schema's names

    def seen(self, source: str, stream: str) -> int:
        """The highest sequence applied of one source's records in a stream."""
        row = self._row(
            "SELECT max(sequence) FROM watermarks WHERE source = ? AND stream = ?", source, stream
        )
        return int(row[0] or 0)

    def all_seen(self, source: str, stream: str) -> int:
        """The sequence up to which everything of one source's in a stream has certainly been applied."""
        row = self._row(
            "SELECT min(coalesce(w.sequence, 0)) FROM positions p LEFT JOIN watermarks w"
            " ON w.stream = p.stream AND w.partition = p.partition AND w.source = ? WHERE p.stream = ?",
            source,
            stream,
        )
        return int(row[0] or 0)

    def knows(self, record_id: str) -> bool:
        """Whether a record about an exchange or a piece of feedback has been applied."""
        return self._row("SELECT 1 FROM records WHERE record_id = ?", record_id) is not None

    def apply(self, records: Sequence[Record], positions: Positions, *, again: bool = False) -> list[Payload]:
        """Apply what was read from the log and remember how far. Returns the payloads that were new.

        With `again`, what was applied before is applied once more, which should change nothing.
        """
        with self._transaction():
            streams = {record.stream for record in records}
            if streams & {"control", "rounds"}:
                self._judged = None
            if "control" in streams:
                self._keys = None
            unseen = self._unseen(records)
            fresh = [p for r in (records if again else unseen) if (p := projection.apply(self._db, r))]
            self._db.executemany(
                "INSERT OR REPLACE INTO positions VALUES (?, ?, ?)",
                [(s, p, o) for s, partitions in positions.items() for p, o in partitions.items()],
            )
        self._forget(records)
        return fresh

    def absorb(self, records: Sequence[Record]) -> None:
        """Apply exchanges and feedback that this process has just appended, so that it can read its own
        writes before they come back from the log. Control and rounds are decided by log order alone."""
        with self._transaction():
            for record in records:
                if record.stream in ("exchanges", "feedback"):
                    projection.apply(self._db, record)
        self._forget(records)

    def scrub(self) -> None:
        """Take what was erased out of the write-ahead log as well.

        While somebody else reads the file that cannot be done, and the next call tries again. It waits for
        nobody, since all who ask the view would wait, too.
        """
        with self._lock:
            if not self._to_erase:
                return
            self._db.execute("PRAGMA busy_timeout = 0")
            try:
                (busy, _, _) = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                self._to_erase = bool(busy)
            except sqlite3.Error as error:
                logger.warning("what was erased is not out of the view's file yet: %s", error)
            finally:
                self._db.execute(f"PRAGMA busy_timeout = {BUSY_MS}")

    def _forget(self, records: Sequence[Record]) -> None:
        """After an erasure."""
        if any(record.data is None or record.type == ExchangeErased.type for record in records):
            self._to_erase = True
        self.scrub()

    def _unseen(self, records: Sequence[Record]) -> list[Record]:
        """Those above the watermark of their source in their partition, which moves over them."""
        seen: dict[tuple[str, str, int], int] = {}
        unseen = []
        for record in records:
            key = (record.source, record.stream, record.partition)
            if key not in seen:
                row = self._row(
                    "SELECT sequence FROM watermarks WHERE source = ? AND stream = ? AND partition = ?", *key
                )
                seen[key] = row[0] if row is not None else -1
            if record.sequence > seen[key]:
                seen[key] = record.sequence
                unseen.append(record)
        self._db.executemany(
            "INSERT OR REPLACE INTO watermarks VALUES (?, ?, ?, ?)",
            [(*key, top) for key, top in seen.items()],
        )
        return unseen

    # --- exchanges -----------------------------------------------------------------------------------

    def exchange(self, completion_id: str) -> Exchange | None:
        """The stored exchange, or None when it is unknown, erased, or only its end has arrived."""
        row = self._row(
            "SELECT created, opened, closed FROM exchanges WHERE completion_id = ?", completion_id
        )
        return Exchange.of(*row) if row is not None and row[1] is not None else None

    def exchanges(
        self,
        principal: str | None,
        wanted: Wanted = EVERYTHING,
        *,
        limit: int,
        after: str | None = None,
        newest_first: bool = False,
    ) -> list[Exchange]:
        """A principal's (or everybody's) exchanges by time, from behind completion id `after` on."""
        return exchanges.find(
            self._rows, principal, wanted, limit=limit, after=after, newest_first=newest_first
        )

    def asked(self, principal: str, messages: Sequence[Mapping[str, Any]], *, limit: int) -> list[Exchange]:
        """A principal's exchanges that asked exactly this, newest first."""
        rows = self._rows(
            "SELECT created, opened, closed FROM exchanges WHERE question = ? AND opened IS NOT NULL"
            " ORDER BY created DESC LIMIT ?",
            projection.question_key(principal, messages),
            limit,
        )
        return [Exchange.of(*row) for row in rows]

    def erased(self, completion_id: str) -> bool:
        """Whether the exchange is known to be erased."""
        sql = "SELECT 1 FROM exchanges WHERE completion_id = ? AND erased"
        return self._row(sql, completion_id) is not None

    def belonging(self, principal: str) -> tuple[list[str], list[str]]:
        """The ids of a principal's exchanges, and of its feedback, as far as there is something to erase."""
        exchanges, feedback = (
            self._rows(
                f"SELECT {id_} FROM {table} WHERE principal = ? AND"  # noqa: S608
                f" (NOT erased OR EXISTS (SELECT 1 FROM records WHERE subject = {id_}))",
                principal,
            )
            for id_, table in (("completion_id", "exchanges"), ("feedback_id", "feedback"))
        )
        return [row[0] for row in exchanges], [row[0] for row in feedback]

    def tombstones(self, subject: str, time: datetime) -> list[Record]:
        """The records that erase an exchange with all feedback on it, or one piece of feedback."""
        rows = self._rows(
            "SELECT stream, type, record_id, partition_key FROM records WHERE subject = ?1 OR subject IN"
            " (SELECT feedback_id FROM feedback WHERE completion_id = ?1)",
            subject,
        )
        return _tombstones(rows, time)

    def overdue(self, time: datetime) -> list[Record]:
        """The tombstones of what is not erased in the log although its exchange or feedback is: a record that
        was written, or that came here, after the erasure."""
        rows = self._rows("SELECT stream, type, record_id, partition_key FROM records WHERE overdue")
        return _tombstones(rows, time)

    # --- feedback ------------------------------------------------------------------------------------

    def partition_key(self, feedback_id: str) -> str:
        """Of the record that gave the feedback, so that what is written of it later is read after it; "" once
        that is erased."""
        row = self._row(
            "SELECT partition_key FROM records WHERE subject = ? AND type = ?",
            feedback_id,
            FeedbackGiven.type,
        )
        return str(row[0]) if row is not None else ""

    def feedback(self, feedback_id: str) -> Feedback | None:
        found = self._feedback("WHERE f.feedback_id = ?", feedback_id)
        return found[0] if found else None

    def feedback_by_key(self, principal: str, idempotency_key: str) -> Feedback | None:
        """Of several, taken by servers that did not know of each other's yet, the earliest."""
        found = self._feedback(
            "WHERE f.principal = ? AND f.idempotency_key = ? ORDER BY f.received, f.feedback_id LIMIT 1",
            principal,
            idempotency_key,
        )
        return found[0] if found else None

    def all_feedback(
        self, principal: str | None = None, *, status: Status | None = None, about: str | None = None
    ) -> list[Feedback]:
        """Feedback by time: of one principal, of one status, about one completion, or any."""
        found = self._feedback(
            "WHERE (?1 IS NULL OR f.principal = ?1) AND (?2 IS NULL OR f.completion_id = ?2)"
            " ORDER BY f.received, f.feedback_id",
            principal,
            about,
        )
        return [f for f in found if status is None or f.fate.status == status]

    def untriaged(self) -> list[Feedback]:
        """Feedback that the learner has not judged yet, oldest first."""
        return self._feedback(
            "WHERE d.decision IS NULL AND NOT f.withdrawn AND NOT f.erased ORDER BY f.received, f.feedback_id"
        )

    def count_feedback(self) -> Counter[FeedbackGroup]:
        """How much feedback has which status, for which reason, and whether it carries a lesson."""
        with self._lock:
            return feedback.count(self._rows, self._judgement())

    def feedback_arrived(self, since: float, every_s: float) -> dict[float, int]:
        """How much feedback came in each span of `every_s` seconds from `since` on, by the span's start."""
        return feedback.arrived(self._rows, since, every_s)

    def trail(self, feedback_id: str) -> Trail:
        """What is known of a piece of feedback beyond its fate."""
        return feedback.trail(self._rows, feedback_id)

    def _feedback(self, where: str, *arguments: object) -> list[Feedback]:
        with self._lock:
            found = feedback.find(self._rows, self._judgement(), where, *arguments)
        return list(found)  # parsed without the lock, since that may take long

    def _judgement(self) -> Judgement:
        """All rounds by number, and what they and the moves say about policies."""
        with self._lock:
            if self._judged is None:
                facts, moved_to = rounds.facts(self.rounds()), rounds.moved_to(self._rows)
                self._judged = facts, rounds.lineage(moved_to, facts, self.rejected())
            return self._judged

    # --- rounds, policies, the alias -----------------------------------------------------------------

    def rounds(self) -> list[Round]:
        """All rounds, oldest first, with what was answered to lessons that are not erased."""
        return rounds.find(self._rows)

    def release(self, version: int) -> Round | None:
        """The round that made a policy version."""
        return rounds.made_by(self.rounds(), version)

    def rejected(self) -> dict[int, str]:
        """Releases that a server refused to serve, with the reason."""
        return dict(self._rows("SELECT version, why FROM rejected"))

    def moves(self, alias: str) -> list[Move]:
        """All moves of an alias, oldest first."""
        return rounds.moves(self._rows, alias)

    def alias(self, name: str) -> Alias:
        """Where an alias points; version 0 (the base model) before its first move."""
        moves = tuple(move.moved for move in self.moves(name))
        return Alias(moves[-1].version if moves else 0, len(moves), moves)

    def aliases(self) -> set[str]:
        """All that ever moved: policies are numbered and descend across them, so a log is for one."""
        return {alias for (alias,) in self._rows("SELECT DISTINCT alias FROM moves")}

    def lineage(self) -> Lineage:
        """What descends from what, seen from the live policy."""
        return self._judgement()[1]

    # --- who may call --------------------------------------------------------------------------------

    def keys(self) -> Keys:
        """Who may call. The same object until that changes."""
        if (known := self._keys) is not None:
            return known  # without the lock, which a batch that is being applied may hold for long
        with self._lock:
            rows = self._rows("SELECT added, at FROM keys ORDER BY principal")
            added = tuple((KeyAdded.model_validate_json(one), at) for one, at in rows if one is not None)
            complete = self._row("SELECT 1 FROM positions WHERE stream = ?", COMPLETE) is not None
            self._keys = Keys(added, bool(rows), complete)
            return self._keys

    # --- the learner ---------------------------------------------------------------------------------

    def switched(self) -> tuple[LearningSwitched, float] | None:
        """The last switch of learning and its time in Unix seconds."""
        row = self._row("SELECT payload, at FROM latest WHERE what = ?", LearningSwitched.type)
        return (LearningSwitched.model_validate_json(row[0]), row[1]) if row is not None else None

    def paused(self) -> LearningSwitched | None:
        """The switch that paused learning, or None when it may run."""
        last = self.switched()
        return last[0] if last is not None and last[0].paused else None

    def report(self) -> tuple[LearnerReported, float] | None:
        """The learner's latest report and its time in Unix seconds."""
        row = self._row("SELECT payload, at FROM latest WHERE what = ?", LearnerReported.type)
        return (LearnerReported.model_validate_json(row[0]), row[1]) if row is not None else None

    def requests(self) -> list[RoundRequested]:
        """Requests for a round that no round has answered yet."""
        rows = self._rows("SELECT requested FROM requests WHERE answered IS NULL ORDER BY at")
        return [RoundRequested.model_validate_json(row[0]) for row in rows]

    def poison(self) -> list[tuple[str, str, str]]:
        """Records that could not be read: `(record id, type, why)`."""
        return [tuple(row) for row in self._rows("SELECT record_id, type, why FROM poison")]

    # --- SQLite --------------------------------------------------------------------------------------

    def _rows(self, sql: str, *arguments: object) -> list[Any]:
        with self._lock, translated(self._path):
            return self._db.execute(sql, arguments).fetchall()

    def _row(self, sql: str, *arguments: object) -> Any:
        with self._lock, translated(self._path):
            return self._db.execute(sql, arguments).fetchone()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock, translated(self._path), transaction(self._db):
            yield


def _tombstones(rows: Iterable[Sequence[Any]], time: datetime) -> list[Record]:
    """Of records by stream, type, id and partition key."""
    return [Record(stream, type_, id_, time, None, key) for stream, type_, id_, key in rows]
