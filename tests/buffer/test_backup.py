"""Backup and restore: what is in the file, and that the view built from it is the same."""

import json
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from buffer.backup import export, records_of, restore
from buffer.config import BufferConfig, KafkaConfig, Shared
from buffer.journal import Journal
from buffer.kafka import KafkaLog
from buffer.log import ExportRefused, Log, LogNotEmpty, read_to_end
from buffer.memory import MemoryLog
from buffer.records import Record
from buffer.replay import differences, follow
from buffer.structured import from_line, to_line
from buffer.view import View
from tests import recorded
from tests.buffer.conftest import START, ids, kafka_settings, make, read_until

RunRelay = Callable[[Path, BufferConfig], None]


def exported(log: Log) -> list[bytes]:
    lines: list[bytes] = []
    export(log, lines.append)
    return lines


def told(line: bytes) -> str:
    """What a line says; of a tombstone not where it was read, since it is sent to every partition."""
    record = json.loads(line)
    if record.get("data") is None and record.get("data_base64") is None:
        del record["partition"]
    return json.dumps(record)


def read_all(log: Log) -> list[Record]:
    return [record for records, _ in read_to_end(log) for record in records]


def restored(state: Path, lines: Iterable[bytes], config: BufferConfig | None = None) -> Journal:
    lines = list(lines)
    shared = Shared(state=state)
    restore(shared, config or BufferConfig(), lambda: lines)
    return Journal(state / "journal.db")


def view_of(log: Log, path: Path) -> Path:
    with closing(View(path)) as view:
        follow(log, view)
    return path


def test_an_export_has_every_record_as_it_is(log: Log) -> None:
    log.append([make(number, key=f"key-{number % 5}") for number in range(700)]).result()
    records, _ = read_until(log, 700)
    lines = exported(log)
    assert sorted(lines) == sorted(map(to_line, records))


def test_what_is_still_given_out_ahead_of_its_tombstone_is_exported_without_its_data() -> None:
    class Uncompacted(MemoryLog):
        def _blank(self, tombstone: Record) -> None:
            pass

    log, record = Uncompacted(), make(1, data=b'{"secret":1}')
    log.append([record, record.tombstone(START)]).result()
    assert b"secret" in (log.read({})[0][0].data or b"")
    assert not [line for line in exported(log) if b"secret" in line]


def test_what_is_erased_is_exported_without_its_data(log: Log) -> None:
    record = make(1, key="k", data=b'{"secret":1}')
    log.append([record, make(2, key="k")]).result()
    log.append([record.tombstone(START)]).result()
    read_until(log, lambda records: any(r.data is None for r in records))
    lines: list[bytes] = []
    done = export(log, lines.append)
    assert not [line for line in lines if b"secret" in line]
    assert done.records == len(lines) and done.erased == len(lines) - 1


def test_a_record_that_is_delivered_twice_is_exported_once() -> None:
    class Redelivering(MemoryLog):
        def read(self, *arguments: Any, **more: Any) -> Any:
            records, positions = super().read(*arguments, **more)
            return records + records[:2], positions

    log = Redelivering()
    log.append([make(number) for number in range(3)]).result()
    assert ids([from_line(line) for line in exported(log)]) == ids(read_all(log))[:3]


def test_types_that_are_not_known_here_are_exported_and_counted() -> None:
    log = MemoryLog()
    log.append([make(1)]).result()
    done = export(log, lambda _: None)
    assert (done.records, done.unknown) == (1, 1)


def test_a_restored_journal_reads_as_the_original(tmp_path: Path) -> None:
    with closing(restored(tmp_path / "one", recorded.LINES)) as one:
        assert read_all(one) == recorded.records()
        lines = exported(one)
        assert lines == recorded.LINES
        with closing(restored(tmp_path / "two", lines)) as two:
            assert read_all(two) == read_all(one)
            old, new = view_of(one, tmp_path / "one.db"), view_of(two, tmp_path / "two.db")
            assert differences(old, new) == ()
            with closing(View(old)) as first, closing(View(new)) as second:
                assert first.positions() == second.positions()


def test_a_restored_journal_goes_on_under_its_own_name(tmp_path: Path) -> None:
    """It never gives out a sequence that the original, which may still run, gives out, too."""
    with closing(Journal(tmp_path / "journal.db")) as original:
        original.append([make(number) for number in range(5)]).result()
        with closing(restored(tmp_path / "new", exported(original))) as copy:
            original.append([make(5)]).result()
            copy.append([make(6)]).result()
            (ours, theirs) = read_all(copy)[-1], read_all(original)[-1]
            assert ours.source != theirs.source and copy.source == ours.source
            assert (ours.sequence, theirs.sequence) == (6, 6)
            last = copy.last("exchanges")
            assert last is not None and (last.source, last.sequence) == (copy.source, 6)
            assert ids(copy.appended("exchanges", 0)) == ids([make(6)])
            assert ids(read_all(copy)) == ids([*map(make, range(5)), make(6)])


def test_the_last_record_of_a_restored_stream_is_named_as_readers_know_it(tmp_path: Path) -> None:
    with closing(restored(tmp_path, recorded.LINES)) as journal:
        last = [record for record in recorded.records() if record.stream == "rounds"][-1]
        found = journal.last("rounds")
        assert found is not None and (found.source, found.sequence) == (last.source, last.sequence)


def test_what_was_restored_can_be_erased(tmp_path: Path) -> None:
    with closing(restored(tmp_path, recorded.LINES)) as journal:
        record = recorded.records()[0]
        journal.append([record.tombstone(START)]).result()
        assert [r.data for r in read_all(journal) if r.id == record.id] == [None, None]
    assert b"Ostwick?" not in (tmp_path / "journal.db").read_bytes().replace(b"warm is it in Ostwick?", b"")


def test_a_log_is_not_restored_over_another(tmp_path: Path) -> None:
    with closing(Journal(tmp_path / "journal.db")) as journal:
        journal.append([make(1)]).result()
    with pytest.raises(LogNotEmpty) as refused:
        restored(tmp_path, recorded.LINES)
    assert "new state directory" in refused.value.hint


def test_a_restore_that_is_refused_leaves_the_journal_empty(tmp_path: Path) -> None:
    lines = recorded.LINES
    with pytest.raises(ExportRefused, match="line 44"):
        restored(tmp_path, [*lines, lines[0][:50]])
    with closing(restored(tmp_path, lines)) as journal:
        assert len(read_all(journal)) == len(lines)


def test_an_order_that_would_lose_records_is_refused() -> None:
    one, two = (replace(make(n, stream="rounds"), source="/s", sequence=n) for n in (1, 2))
    assert list(records_of(map(to_line, [one, two]))) == [one, two]
    with pytest.raises(ExportRefused, match="line 2: record rounds-1 comes after a later one"):
        list(records_of(map(to_line, [two, one])))


def test_of_several_sources_and_partitions_none_is_lost(tmp_path: Path) -> None:
    """As an export from Kafka has them: each partition in its order, and no order between them."""
    many = [
        replace(make(n, key=str(n)), source=f"/s{n % 2}", sequence=n + 1, partition=n % 3) for n in range(20)
    ]
    many.sort(key=lambda record: (record.partition, record.source, record.sequence))
    with closing(restored(tmp_path, map(to_line, many))) as journal:
        found = read_all(journal)
        assert sorted(map(to_line, found)) == sorted(map(to_line, many))
        for source in ("/s0", "/s1"):  # so they may be relayed to any number of partitions
            sequences = [record.sequence for record in found if record.source == source]
            assert sequences == sorted(sequences)
        with closing(View(":memory:")) as view:
            follow(journal, view)
            assert len(view.poison()) == 20, "each was applied: they are of no known type"


def test_a_journal_of_the_first_format_is_brought_up_to_date(tmp_path: Path) -> None:
    import sqlite3

    path = tmp_path / "journal.db"
    with closing(Journal(path)) as journal:
        journal.append([make(1), make(2)]).result()
        before = read_all(journal)
    with closing(sqlite3.connect(path)) as db:
        for name in ("source", "sequence", "partition"):
            db.execute(f"ALTER TABLE records DROP COLUMN {name}")
        db.execute("PRAGMA user_version = 1")
    with closing(Journal(path)) as journal, closing(Journal(path)) as another:
        assert read_all(journal) == before
        another.append([make(3)]).result()
        assert ids(read_all(journal)) == ids(map_(1, 2, 3))


def map_(*numbers: int) -> list[Record]:
    return [make(number) for number in numbers]


@pytest.mark.kafka
def test_a_log_on_kafka_is_exported_and_restored_on_other_topics_and_on_a_journal(
    broker: str, settings: BufferConfig, run_relay: RunRelay, tmp_path: Path
) -> None:
    original = tmp_path / "original" / "journal.db"
    run_relay(original, settings)
    with closing(KafkaLog(Journal(original), settings.kafka, name="test")) as log:
        log.append([record for record in recorded.records() if record.data is not None]).result()
        log.append([record for record in recorded.records() if record.data is None]).result()
        read_until(log, len(recorded.records()))
        lines = exported(log)
        old = view_of(log, tmp_path / "old.db")
    assert len({json.loads(line)["partition"] for line in lines}) > 1, "it is about more than one partition"

    elsewhere = kafka_settings(broker)
    state = tmp_path / "elsewhere"
    restored(state, lines, elsewhere).close()
    run_relay(state / "journal.db", elsewhere)
    with closing(KafkaLog(Journal(state / "journal.db"), elsewhere.kafka, name="test")) as log:
        read_until(
            log, lambda records: len({(r.source, r.stream, r.sequence) for r in records}) == len(lines)
        )
        assert sorted(map(told, exported(log))) == sorted(map(told, lines))
        assert differences(old, view_of(log, tmp_path / "new.db")) == ()
        log.append([make(1, stream="rounds")]).result()
        read, _ = read_until(log, lambda records: "rounds-1" in ids(records))
        assert "rounds-1" in ids(read), "the relay goes on behind what was restored"

    with closing(restored(tmp_path / "embedded", lines)) as journal:
        differing = differences(old, view_of(journal, tmp_path / "embedded.db"))
        assert {d.table for d in differing} <= {"watermarks"}, "tombstones were read from every partition"

    with pytest.raises(LogNotEmpty, match="topics"):
        restored(tmp_path / "third", lines, elsewhere)


@pytest.mark.kafka
def test_a_restored_log_may_be_spread_over_another_number_of_partitions(
    broker: str, run_relay: RunRelay, tmp_path: Path
) -> None:
    settings = kafka_settings(broker)
    fewer = BufferConfig(
        backend="kafka", kafka=KafkaConfig(**settings.kafka.model_dump() | {"partitions": 1, "client": {}})
    )
    apart = [replace(make(n, key=str(n)), source="/s", sequence=n, partition=p) for n, p in ((2, 1), (1, 0))]
    restored(tmp_path, map(to_line, apart), fewer).close()
    run_relay(tmp_path / "journal.db", fewer)
    with closing(KafkaLog(Journal(tmp_path / "journal.db"), fewer.kafka, name="test")) as log:
        read, _ = read_until(log, 2)
    assert ids(read) == ["exchanges-1", "exchanges-2"]
