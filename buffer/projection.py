"""How each record changes the view's tables: the schema, and one function from a record to SQL.

Streams are read side by side, so a record may come before one of another stream that it refers to:
a decision before its feedback, feedback before its exchange. Every function here allows for that, and
applying a record twice is the same as applying it once. Where partitions were added to a stream, that holds
for the records within it, too: a withdrawal may come before its feedback.
"""

import hashlib
import json
import sqlite3
import unicodedata
from typing import Any

from buffer.records import (
    AliasMoved,
    ExchangeClosed,
    ExchangeErased,
    ExchangeOpened,
    FeedbackGiven,
    FeedbackTriaged,
    FeedbackWithdrawn,
    KeyAdded,
    KeyRevoked,
    LearnerReported,
    LearningSwitched,
    LessonAnswered,
    Payload,
    Record,
    ReleaseRejected,
    RoundEnded,
    RoundPlanned,
    RoundRequested,
    UnreadableRecord,
)

SCHEMA_VERSION = 8
SCHEMA = """
CREATE TABLE positions (stream TEXT, partition INT, offset INT,
                        PRIMARY KEY (stream, partition)) WITHOUT ROWID;
CREATE TABLE watermarks (source TEXT, stream TEXT, partition INT, sequence INT,
                         PRIMARY KEY (source, stream, partition)) WITHOUT ROWID;
CREATE TABLE exchanges (completion_id TEXT PRIMARY KEY, principal TEXT, question TEXT, created REAL,
                        policy INT, erased INT NOT NULL DEFAULT 0, asked TEXT, answered TEXT,
                        opened BLOB, closed BLOB);
CREATE INDEX exchanges_by_principal ON exchanges (principal, created, completion_id);
CREATE INDEX exchanges_by_time ON exchanges (created, completion_id);
CREATE INDEX exchanges_by_question ON exchanges (question, created);
CREATE TABLE feedback (feedback_id TEXT PRIMARY KEY, principal TEXT, completion_id TEXT, question TEXT,
                       teaches INT, idempotency_key TEXT, received REAL, given BLOB,
                       withdrawn INT NOT NULL DEFAULT 0, erased INT NOT NULL DEFAULT 0, erased_at REAL);
CREATE INDEX feedback_by_exchange ON feedback (completion_id);
CREATE INDEX feedback_by_question ON feedback (principal, question);
CREATE INDEX feedback_by_key ON feedback (principal, idempotency_key);
CREATE TABLE withdrawals (feedback_id TEXT PRIMARY KEY, by TEXT, at REAL) WITHOUT ROWID;
CREATE TABLE decisions (feedback_id TEXT PRIMARY KEY, decision TEXT, reason TEXT, detail TEXT,
                        at REAL) WITHOUT ROWID;
CREATE TABLE rounds (round INTEGER PRIMARY KEY, planned BLOB, planned_at REAL, ended BLOB, ended_at REAL,
                     ended_id TEXT);
CREATE TABLE lessons (feedback_id TEXT, round INT, PRIMARY KEY (feedback_id, round)) WITHOUT ROWID;
CREATE TABLE answers (feedback_id TEXT, round INT, before TEXT, answer TEXT,
                      PRIMARY KEY (feedback_id, round)) WITHOUT ROWID;
CREATE TABLE moves (alias TEXT, epoch INT, moved BLOB, at REAL, record_id TEXT,
                    PRIMARY KEY (alias, epoch)) WITHOUT ROWID;
CREATE TABLE rejected (version INTEGER PRIMARY KEY, why TEXT, at REAL);
CREATE TABLE keys (principal TEXT PRIMARY KEY, added BLOB, at REAL) WITHOUT ROWID;
CREATE TABLE requests (request_id TEXT PRIMARY KEY, requested BLOB, at REAL, answered INT) WITHOUT ROWID;
CREATE TABLE latest (what TEXT PRIMARY KEY, payload BLOB, at REAL) WITHOUT ROWID;
CREATE TABLE records (record_id TEXT PRIMARY KEY, stream TEXT, type TEXT, partition_key TEXT,
                      subject TEXT, overdue INT NOT NULL) WITHOUT ROWID;
CREATE INDEX records_by_subject ON records (subject);
CREATE INDEX records_overdue ON records (record_id) WHERE overdue;
CREATE TABLE poison (record_id TEXT PRIMARY KEY, type TEXT, why TEXT) WITHOUT ROWID;
"""

TEACHES = {"correction": 2, "instruction": 2, "demonstration": 2, "follow_up": 1}
"""Kinds of feedback that carry a lesson of their own. Of one question the latest counts, among those that
were given on purpose if there are any: what a user says in passing gives way to them."""


def question_key(principal: str, asked: object) -> str:
    """Names a question: equal for equal messages (or prompt) of one principal."""
    canonical = json.dumps([principal, asked], sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def asked(request: dict[str, Any]) -> object:
    """What a captured request asked: its messages, or its prompt."""
    return request.get("messages", request.get("prompt"))


def turn(request: dict[str, Any]) -> str:
    """The text of the turn that a captured request asked about: what came after the last answer.

    Instructions to the model and earlier turns are left out: those are in exchanges of their own.
    """
    if (messages := request.get("messages")) is None:
        return str(request.get("prompt", ""))
    turns = list[str]()
    for message in reversed(messages):
        if message.get("role") == "assistant":
            break
        if message.get("role") not in ("system", "developer"):
            turns.append(text_of(message.get("content")))
    return "\n".join(reversed(turns))


def text_of(content: object) -> str:
    """The text of a message's content, which may be in parts."""
    if isinstance(content, list):
        return "\n".join(str(part["text"]) for part in content if isinstance(part, dict) and "text" in part)
    return content if isinstance(content, str) else ""


def folded(text: str) -> str:
    """Equal for texts that a reader takes for equal: whatever the case, and however letters are encoded."""
    return unicodedata.normalize("NFKC", text).casefold()


def apply(db: sqlite3.Connection, record: Record) -> Payload | None:
    """Bring one record into the tables. Returns its payload; None for a tombstone or a record set aside."""
    if record.data is None:
        _tombstone(db, record.id, record.time.timestamp())
        return None
    try:
        payload = record.payload()
    except UnreadableRecord as error:
        db.execute("INSERT OR IGNORE INTO poison VALUES (?, ?, ?)", (record.id, record.type, str(error)))
        return None
    at = record.time.timestamp()
    match payload:
        case ExchangeOpened():
            _exchange_opened(db, payload, at)
            _remember(db, record, payload.completion_id)
        case ExchangeClosed():
            _exchange_closed(db, payload, at)
            _remember(db, record, payload.completion_id)
        case ExchangeErased():
            _erase_exchange(db, payload.completion_id, at)
        case FeedbackGiven():
            _feedback_given(db, payload, at)
            _remember(db, record, payload.feedback_id)
        case FeedbackWithdrawn():
            withdrawn = (payload.feedback_id, payload.by, at)
            db.execute(  # of several the earliest, in whatever order they are read
                "INSERT INTO withdrawals VALUES (?, ?, ?) ON CONFLICT DO UPDATE"
                " SET by = excluded.by, at = excluded.at WHERE excluded.at < withdrawals.at",
                withdrawn,
            )
            db.execute("UPDATE feedback SET withdrawn = 1 WHERE feedback_id = ?", (payload.feedback_id,))
        case LessonAnswered():
            db.execute(
                "INSERT OR REPLACE INTO answers SELECT ?1, ?2, ?3, ?4"
                " WHERE NOT EXISTS (SELECT 1 FROM feedback WHERE feedback_id = ?1 AND erased)",
                (payload.feedback_id, payload.round, payload.before, payload.answer),
            )
            _remember(db, record, payload.feedback_id)
        case FeedbackTriaged():
            db.executemany(
                "INSERT OR REPLACE INTO decisions VALUES (?, ?, ?, ?, ?)",
                [(d.feedback_id, d.status, d.reason, d.detail, at) for d in payload.decisions],
            )
        case AliasMoved():
            _alias_moved(db, payload, at, record.id)
        case KeyAdded():
            db.execute(  # a key in force is not replaced: of two that are added at once the first counts
                "INSERT INTO keys VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET added = excluded.added,"
                " at = excluded.at WHERE added IS NULL",
                (payload.principal, payload.model_dump_json(), at),
            )
        case KeyRevoked():
            db.execute("UPDATE keys SET added = NULL, at = NULL WHERE principal = ?", (payload.principal,))
        case ReleaseRejected():
            db.execute("INSERT OR IGNORE INTO rejected VALUES (?, ?, ?)", (payload.version, payload.why, at))
        case RoundRequested():
            requested = (payload.request_id, payload.model_dump_json(), at)
            db.execute("INSERT OR IGNORE INTO requests VALUES (?, ?, ?, NULL)", requested)
            _see_answered(db)  # its round may have been read first
        case RoundPlanned():
            _round_planned(db, payload, at)
        case RoundEnded():
            db.execute(
                "UPDATE rounds SET ended = ?, ended_at = ?, ended_id = ? WHERE round = ? AND ended IS NULL",
                (payload.model_dump_json(), at, record.id, payload.round),
            )
            if payload.taken_back:
                db.execute("UPDATE requests SET answered = NULL WHERE answered = ?", (payload.round,))
                _see_answered(db)
        case LearningSwitched() | LearnerReported():
            db.execute(
                "INSERT OR REPLACE INTO latest VALUES (?, ?, ?)",
                (payload.type, payload.model_dump_json(), at),
            )
    return payload


def current_epoch(db: sqlite3.Connection, alias: str) -> int:
    """The number of moves the alias has made: what the next one must carry."""
    return int(db.execute("SELECT count(*) FROM moves WHERE alias = ?", (alias,)).fetchone()[0])


def _remember(db: sqlite3.Connection, record: Record, subject: str) -> None:
    """Keep what a later tombstone of this record needs, which is overdue where its subject is erased."""
    db.execute(
        "INSERT OR IGNORE INTO records VALUES (?1, ?2, ?3, ?4, ?5,"
        " EXISTS (SELECT 1 FROM exchanges WHERE completion_id = ?5 AND erased)"
        " OR EXISTS (SELECT 1 FROM feedback WHERE feedback_id = ?5 AND erased))",
        (record.id, record.stream, record.type, record.partition_key, subject),
    )


def _exchange_opened(db: sqlite3.Connection, opened: ExchangeOpened, at: float) -> None:
    question = question_key(opened.principal, asked(opened.request))
    db.execute(
        "INSERT INTO exchanges (completion_id, principal, question, created, policy, asked, opened)"
        " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET principal = excluded.principal,"
        " question = excluded.question, created = excluded.created, policy = excluded.policy,"
        " asked = excluded.asked, opened = excluded.opened WHERE NOT erased",
        (
            opened.completion_id,
            opened.principal,
            question,
            at,
            opened.policy,
            folded(turn(opened.request)),
            opened.model_dump_json(),
        ),
    )
    db.execute(
        "UPDATE feedback SET question = ? WHERE completion_id = ? AND question IS NULL AND NOT erased",
        (question, opened.completion_id),
    )


def _exchange_closed(db: sqlite3.Connection, closed: ExchangeClosed, at: float) -> None:
    said = [text_of(one.message.content) if one.message else one.text or "" for one in closed.choices]
    db.execute(
        "INSERT INTO exchanges (completion_id, created, answered, closed) VALUES (?, ?, ?, ?)"
        " ON CONFLICT DO UPDATE SET answered = excluded.answered, closed = excluded.closed WHERE NOT erased",
        (closed.completion_id, at, folded("\n".join(said)), closed.model_dump_json()),
    )


def _feedback_given(db: sqlite3.Connection, given: FeedbackGiven, at: float) -> None:
    about = db.execute(
        "SELECT question, erased FROM exchanges WHERE completion_id = ?", (given.completion_id,)
    ).fetchone()
    question, erased = about if about is not None else (None, 0)
    if given.messages is not None:
        question = question_key(given.principal, [m.model_dump() for m in given.messages])
    db.execute(
        "INSERT OR IGNORE INTO feedback (feedback_id, principal, completion_id, question, teaches,"
        " idempotency_key, received, given, erased, withdrawn) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9,"
        " EXISTS (SELECT 1 FROM withdrawals WHERE feedback_id = ?1))",
        (
            given.feedback_id,
            given.principal,
            given.completion_id,
            question,
            TEACHES.get(given.kind, 0),
            given.idempotency_key,
            at,
            None if erased else given.model_dump_json(),
            erased,
        ),
    )
    if erased:
        _forget(db, given.feedback_id)  # what was said to it may have been read first


def _alias_moved(db: sqlite3.Connection, moved: AliasMoved, at: float, record_id: str) -> None:
    if moved.epoch == current_epoch(db, moved.alias):
        db.execute(
            "INSERT INTO moves VALUES (?, ?, ?, ?, ?)",
            (moved.alias, moved.epoch, moved.model_dump_json(), at, record_id),
        )


def _round_planned(db: sqlite3.Connection, planned: RoundPlanned, at: float) -> None:
    db.execute(
        "INSERT OR IGNORE INTO rounds (round, planned, planned_at) VALUES (?, ?, ?)",
        (planned.round, planned.model_dump_json(), at),
    )
    db.executemany(
        "INSERT OR IGNORE INTO lessons VALUES (?, ?)", [(f, planned.round) for f in planned.lessons]
    )
    _see_answered(db)


def _see_answered(db: sqlite3.Connection) -> None:
    """A request is answered by the first round, from its own on, that was not taken back."""
    db.execute(
        "UPDATE requests SET answered = (SELECT min(round) FROM rounds WHERE round >= (SELECT min(round)"
        " FROM rounds, json_each(planned, '$.requests') WHERE value = request_id)"
        " AND NOT coalesce(json_extract(ended, '$.taken_back'), 0)) WHERE answered IS NULL"
    )


def _tombstone(db: sqlite3.Connection, record_id: str, at: float) -> None:
    subject = db.execute("SELECT stream, subject FROM records WHERE record_id = ?", (record_id,)).fetchone()
    if subject is None:
        return
    db.execute("DELETE FROM records WHERE record_id = ?", (record_id,))
    if subject[0] == "feedback":
        _erase_feedback(db, subject[1], at)
    else:
        _erase_exchange(db, subject[1], at)


def _erase_exchange(db: sqlite3.Connection, completion_id: str, at: float) -> None:
    db.execute(
        "INSERT INTO exchanges (completion_id, erased) VALUES (?, 1)"
        " ON CONFLICT DO UPDATE SET erased = 1, opened = NULL, closed = NULL, question = NULL,"
        " asked = NULL, answered = NULL",
        (completion_id,),
    )
    _erase_feedback(db, completion_id, at)


def _erase_feedback(db: sqlite3.Connection, subject: str, at: float) -> None:
    """One piece of feedback, or all on an exchange, with what was said to it."""
    db.execute(
        "UPDATE feedback SET erased = 1, given = NULL, erased_at = coalesce(erased_at, ?2)"
        " WHERE feedback_id = ?1 OR completion_id = ?1",
        (subject, at),
    )
    _forget(db, subject)


def _forget(db: sqlite3.Connection, subject: str) -> None:
    """What was said to erased feedback; and tombstones are overdue for what is left of it in the log."""
    its = "(SELECT feedback_id FROM feedback WHERE feedback_id = ?1 OR completion_id = ?1)"
    db.execute(f"DELETE FROM answers WHERE feedback_id IN {its}", (subject,))  # noqa: S608
    db.execute(f"UPDATE records SET overdue = 1 WHERE subject = ?1 OR subject IN {its}", (subject,))  # noqa: S608
