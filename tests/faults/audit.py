"""The log against the promises: every record is read back through a fresh view and compared.

The names for what can be wrong are Jepsen's: an acknowledged write that is nowhere is *lost*, a committed one
that a reader never sees is *unseen*, one that is applied twice is a *duplicate*.
"""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from buffer.config import BufferConfig
from buffer.journal import Journal
from buffer.kafka import KafkaLog
from buffer.log import Log, LogUnavailable
from buffer.records import STREAMS, Positions, Record
from buffer.view import View
from tests.faults.traffic import Ledger

PATIENCE_S = 30.0
"""How long a reader may wait for the next record of a log that the relay has carried everything to."""


@dataclass(frozen=True)
class Findings:
    """How many of each. All but `redelivered` must be 0."""

    lost: int = 0
    """Acknowledged, and not in the view."""
    changed: int = 0
    """In the view with another content than was acknowledged."""
    unseen: int = 0
    """In the journal, and not in the log."""
    duplicate: int = 0
    """Beyond one for each record of the journal, after dropping what a reader drops."""
    out_of_order: int = 0
    """Behind a later record of its journal in the same partition, after dropping the same."""
    invented: int = 0
    """In the view, and never asked."""
    redelivered: int = 0
    """Dropped by every reader: the relay's repetitions."""

    @property
    def wrong(self) -> dict[str, int]:
        counted = {field.name: int(getattr(self, field.name)) for field in fields(self)}
        return {name: count for name, count in counted.items() if count and name != "redelivered"}


def audit(state: Path, buffer: BufferConfig, ledger: Ledger, scratch: Path) -> Findings:
    """Read the log of the one journal in `state` to its end, once all of it is there, and compare."""
    journal = Journal(state / "journal.db")
    written = {record.sequence: record for record in _everything(journal)}
    log: Log = KafkaLog(journal, buffer.kafka, name="audit") if buffer.backend == "kafka" else journal
    view = View(scratch / "audit.db")
    try:
        read = _applied(log, view, written)
        kept, redelivered = _deduplicated(read)
        lost, changed, invented = _compared(view, ledger)
    finally:
        view.close()
        log.close()
    seen = Counter(record.sequence for record in kept)
    same = sum(_same(record, written[record.sequence]) for record in kept if record.sequence in written)
    return Findings(
        lost=lost,
        changed=changed + len(kept) - same,
        unseen=len(written.keys() - seen.keys()),
        duplicate=sum(seen.values()) - len(seen),
        out_of_order=sum(1 for _ in _backwards(kept)),
        invented=invented,
        redelivered=redelivered,
    )


def drained(state: Path) -> bool:
    """Whether the relay has carried all of the journal."""
    journal = Journal(state / "journal.db")
    try:
        done = journal.query("SELECT max(seq) FROM relayed")[0][0] or 0
        return all(last.sequence <= done for stream in STREAMS if (last := journal.last(stream)) is not None)
    finally:
        journal.close()


def _everything(log: Log) -> Iterator[Record]:
    positions: Positions = {}
    while True:
        records, positions = log.read(positions, limit=5_000)
        if not records:
            return
        yield from records


def _applied(log: Log, view: View, written: dict[int, Record]) -> list[Record]:
    """All that the log holds, applied to the view; waits for what is still on its way."""
    read: list[Record] = []
    missing = set(written)
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            records, positions = log.read(view.positions(), limit=5_000, wait_s=0.5)
        except LogUnavailable:
            time.sleep(0.2)
            continue
        view.apply(records, positions)
        read += records
        missing -= {record.sequence for record in records}
        if records:
            deadline = time.monotonic() + PATIENCE_S
        elif not missing and positions == log.ends():
            break
    return read


def _deduplicated(read: list[Record]) -> tuple[list[Record], int]:
    """What is left when records at or below the watermark of their source and partition are dropped."""
    watermarks: dict[tuple[str, str, int], int] = {}
    kept = []
    for record in read:
        part = (record.source, record.stream, record.partition)
        if record.sequence > watermarks.get(part, 0):
            watermarks[part] = record.sequence
            kept.append(record)
    return kept, len(read) - len(kept)


def _backwards(kept: list[Record]) -> Iterator[Record]:
    """Records whose partition key had a later record of the journal before them."""
    last: dict[tuple[str, str], int] = {}
    for record in kept:
        part = (record.stream, record.partition_key)
        if record.sequence < last.get(part, 0):
            yield record
        last[part] = record.sequence


def _same(one: Record, other: Record) -> bool:
    return (one.id, one.type, one.time, one.data, one.source) == (
        other.id,
        other.type,
        other.time,
        other.data,
        other.source,
    )


def _compared(view: View, ledger: Ledger) -> tuple[int, int, int]:
    """Lost, changed and invented."""
    lost = changed = invented = 0
    for completion_id, prompt in ledger.opened.items():
        exchange = view.exchange(completion_id)
        if exchange is None or (completion_id in ledger.closed and exchange.closed is None):
            lost += 1
            continue
        said = [c.message.content for c in exchange.closed.choices if c.message] if exchange.closed else []
        answered = said == [prompt] if completion_id in ledger.closed else True
        changed += not (_asked(exchange.opened.request) == prompt and answered)
    all_feedback = view.all_feedback()
    found = {one.feedback_id: one.given for one in all_feedback}
    for feedback_id, (completion_id, text) in ledger.given.items():
        given = found.get(feedback_id)
        lost += given is None
        changed += given is not None and (given.completion_id, given.text) != (completion_id, text)
    # each text was sent under one key until it was acknowledged: it is there once, or a retry made two of it
    texts = Counter(given.text for given in found.values() if given is not None)
    invented += sum(count - 1 for count in texts.values())
    prompts: Counter[str] = Counter()
    after = None
    while page := view.exchanges(None, limit=1_000, after=after):
        prompts.update(_asked(exchange.opened.request) for exchange in page)
        after = page[-1].opened.completion_id
    invented += sum(count - (prompt in ledger.asked) for prompt, count in prompts.items())
    return lost, changed, invented


def _asked(request: dict[str, list[dict[str, str]]]) -> str:
    return request["messages"][-1]["content"]
