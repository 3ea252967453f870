"""The relay against a real broker: what it promises when something breaks."""

import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType

from buffer.binding import partition_of
from buffer.config import BufferConfig, KafkaConfig
from buffer.journal import Journal
from buffer.kafka import KafkaLog
from buffer.log import Backlog, LogFull, LogMisconfigured, LogUnavailable
from buffer.outbox import Outbox
from buffer.records import STREAMS, Positions, Record, Stream
from buffer.relay import Relay, plan_flight
from buffer.topics import FLIGHT_BYTES, ensure_topics, settings_of, topic_of
from tests.buffer.conftest import START, ids, kafka_settings, make, read_until
from tests.kafka_broker import HOW_TO_GET_ONE, Broker, Cluster, admin, kafka_home, leaders

kafka = pytest.mark.kafka
RunRelay = Callable[[Path, BufferConfig], None]


# --- planning ------------------------------------------------------------------------------------------


SHAPES = st.lists(
    st.tuples(
        st.sampled_from(STREAMS),
        st.sampled_from("abcdef"),
        st.sampled_from([10, 10_000, 90_000, 400_000, None]),
    ),
    min_size=1,
    max_size=60,
)


def shaped(shapes: list[tuple[Stream, str, int | None]]) -> list[Record]:
    """A record of each stream, key and size; a tombstone where there is no size."""
    return [
        replace(make(number, key=key, stream=stream), data=None if size is None else b"x" * size)
        for number, (stream, key, size) in enumerate(shapes)
    ]


def counts(keyed: int) -> dict[Stream, int]:
    return {"exchanges": keyed, "feedback": keyed, "control": 1, "rounds": 1}


@given(SHAPES)
def test_a_flight_is_a_prefix_with_one_batch_per_partition(
    shapes: list[tuple[Stream, str, int | None]],
) -> None:
    records = shaped(shapes)
    flight = plan_flight(records, counts(3))
    assert [record for record, _, _ in flight] == records[: len(flight)]
    assert flight, "nothing would ever be sent"
    parts: dict[tuple[str, int], list[int]] = {}
    for record, message, partitions in flight:
        count = counts(3)[record.stream]
        everywhere = record.data is None
        assert [*partitions] == [*range(count)] if everywhere else [partition_of(record.partition_key, count)]
        for partition in partitions:
            parts.setdefault((record.stream, partition), []).append(message.size())
    assert all(len(sizes) == 1 or sum(sizes) <= FLIGHT_BYTES for sizes in parts.values())


@given(SHAPES, st.integers(1, 9), st.integers(0, 9), st.data())
def test_what_is_sent_again_to_more_partitions_never_comes_behind_what_was_sent_after_it(
    shapes: list[tuple[Stream, str, int | None]], before: int, added: int, data: st.DataObject
) -> None:
    """Some batches of a flight are written; it is sent again by the new count, read by the view's rule."""
    records = [replace(r, source="here", sequence=number) for number, r in enumerate(shaped(shapes), 1)]
    first = plan_flight(records, counts(before))
    written = data.draw(st.sets(st.tuples(st.sampled_from(STREAMS), st.integers(0, before - 1))))
    sent = [
        (r, partition)
        for r, _, partitions in first
        for partition in partitions
        if (r.stream, partition) in written
    ]
    left = records
    while left:
        flight = plan_flight(left, counts(before + added))
        sent += [(record, partition) for record, _, partitions in flight for partition in partitions]
        left = left[len(flight) :]
    applied = {record.sequence for record in by_the_views_rule([replace(r, partition=p) for r, p in sent])}
    assert applied == {record.sequence for record in records}


# --- the process ---------------------------------------------------------------------------------------


def configure(directory: Path, settings: BufferConfig) -> None:
    (directory / "apprentice.toml").write_text(
        f'[buffer]\nbackend = "{settings.backend}"\n[buffer.kafka]\n'
        f"bootstrap_servers = {settings.kafka.bootstrap_servers!r}\n"
        f'topic_prefix = "{settings.kafka.topic_prefix}"\npartitions = {settings.kafka.partitions}\n'
    )


@contextmanager
def relay_process(directory: Path, *arguments: str, ready: bool = True) -> Iterator[subprocess.Popen[str]]:
    """`python -m buffer` in that directory, once it is ready."""
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-m", "buffer", *arguments],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(root)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        for line in process.stderr if ready else ():
            if "ready" in line:
                break
        yield process
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_what_a_person_must_mend_is_a_configuration_error(tmp_path: Path) -> None:
    """Not to be started again, as the supervisor and systemd do after all others."""
    (tmp_path / "apprentice.toml").write_text(
        '[buffer]\nbackend = "kafka"\n[buffer.kafka]\nclient = { ssl_cafil = "x" }\n'
    )
    with relay_process(tmp_path, ready=False) as process:
        said = process.communicate(timeout=120)[1]
    assert "correct client in [buffer.kafka]" in said
    assert process.returncode == 2


def by_the_views_rule(records: Sequence[Record]) -> list[Record]:
    """Without repetitions: what is at or below the watermark of its source, stream and partition."""
    watermarks: dict[tuple[str, str, int], int] = {}
    kept: list[Record] = []
    for record in records:
        part = (record.source, record.stream, record.partition)
        if record.sequence > watermarks.get(part, 0):
            watermarks[part] = record.sequence
            kept.append(record)
    return kept


@kafka
def test_a_relay_that_is_killed_loses_nothing_and_repeats_in_order(
    tmp_path: Path, settings: BufferConfig
) -> None:
    configure(tmp_path, settings)
    journal = Journal(tmp_path / ".apprentice" / "journal.db")
    with relay_process(tmp_path):
        pass  # makes the topics
    log = KafkaLog(journal, settings.kafka, name="test")
    records: list[Record] = []
    positions: Positions = {}
    for attempt in range(4):
        for number in range(500):
            journal.append([make(1000 * attempt + number, key=f"key-{number % 11}", data=b"x" * 2000)])
        with relay_process(tmp_path):
            some, positions = read_until(log, 100, positions)
            records += some  # then it is killed, somewhere on its way
    with relay_process(tmp_path):
        some, _ = read_until(
            log, lambda more: len({r.sequence for r in (*records, *more)}) == 2000, positions
        )
        records += some
    log.close()

    kept = by_the_views_rule(records)
    assert len(kept) == 2000
    for key in {record.partition_key for record in kept}:
        mine = [record.time for record in kept if record.partition_key == key]
        assert mine == sorted(mine)


@kafka
def test_a_repetition_is_known_by_source_and_sequence(
    tmp_path: Path, settings: BufferConfig, run_relay: RunRelay
) -> None:
    journal = Journal(tmp_path / "journal.db")
    journal.append([make(number) for number in range(5)]).result()
    run_relay(tmp_path / "journal.db", settings)
    log = KafkaLog(journal, settings.kafka, name="test")
    first, positions = read_until(log, 5)
    journal.commit(lambda db: db.execute("DELETE FROM relayed")).result()  # as if it died before noting it
    again, _ = read_until(log, 5, positions)
    log.close()
    assert again == first


@kafka
def test_the_journal_forgets_what_the_broker_has_had_for_long(
    tmp_path: Path, settings: BufferConfig, run_relay: RunRelay
) -> None:
    journal = Journal(tmp_path / "journal.db")
    old, new = make(1), replace(make(2), time=datetime.now(UTC))
    journal.append([old, new]).result()
    for _ in range(2):  # the second one finds them relayed
        run_relay(tmp_path / "journal.db", settings)
        log = KafkaLog(Journal(tmp_path / "journal.db"), settings.kafka, name="test")
        records, _ = read_until(log, 2)
        log.close()
    for _ in range(1000):
        if len(kept := ids(journal.read({})[0])) == 1:
            break
        time.sleep(0.01)
    journal.close()
    assert kept == [new.id]
    assert ids(records) == [old.id, new.id]


@kafka
def test_a_signal_drains(tmp_path: Path, settings: BufferConfig) -> None:
    configure(tmp_path, settings)
    with relay_process(tmp_path, "--drain", "120") as process:
        journal = Journal(tmp_path / ".apprentice" / "journal.db")
        journal.append([make(number, data=b"x" * 1000) for number in range(3000)]).result()
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
    assert process.stderr is not None
    log = KafkaLog(journal, settings.kafka, name="test")
    records, _ = read_until(log, 3000)
    log.close()
    assert len(records) == 3000


@kafka
def test_there_is_one_relay_per_journal(tmp_path: Path, settings: BufferConfig) -> None:
    configure(tmp_path, settings)
    with relay_process(tmp_path), relay_process(tmp_path, ready=False) as second:
        assert second.wait() == 1


def test_the_embedded_log_needs_no_relay(tmp_path: Path) -> None:
    configure(tmp_path, BufferConfig())
    with relay_process(tmp_path, ready=False) as process:
        assert process.wait() == 0
        assert process.stderr is not None
        assert "nothing to relay" in process.stderr.read()


def test_a_wrong_configuration_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "apprentice.toml").write_text('[buffer]\nbackned = "kafka"\n')
    with relay_process(tmp_path, ready=False) as process:
        assert process.wait() == 2
        assert process.stderr is not None
        assert "did you mean backend?" in process.stderr.read()


@pytest.mark.parametrize(("replicas", "forgets"), [(1, False), (2, True)])
def test_a_full_journal_forgets_early_what_two_brokers_have(
    tmp_path: Path, replicas: int, *, forgets: bool
) -> None:
    kafka = KafkaConfig(replication_factor=replicas, min_insync_replicas=replicas)
    journal = Journal(tmp_path / "journal.db", max_bytes=400_000)
    with pytest.raises(LogFull):
        for number in range(100):
            journal.append([replace(make(number, data=bytes(10_000)), time=datetime.now(UTC))]).result()
    outbox = Outbox(journal, "here")
    outbox.advance(100)
    Relay(journal, BufferConfig(backend="kafka", kafka=kafka))._prune(outbox)
    assert (journal.read({})[0] == []) == forgets
    journal.close()


# --- the broker ----------------------------------------------------------------------------------------


@kafka
def test_a_broker_outage_fails_no_append_and_is_caught_up(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, run_relay: RunRelay
) -> None:
    home = kafka_home()
    if home is None:
        pytest.skip(HOW_TO_GET_ONE)
    with Broker(home, tmp_path_factory.mktemp("kafka")) as broker:
        settings = kafka_settings(broker.bootstrap)
        run_relay(tmp_path / "journal.db", settings)
        log = KafkaLog(Journal(tmp_path / "journal.db"), settings.kafka, name="test")
        records: list[Record] = []
        positions: Positions = {}
        for outage in range(2):
            log.append([make(100 * outage + number) for number in range(50)]).result()
            some, positions = read_until(log, 50, positions)
            records += some
            broker.kill()
            log.append([make(100 * outage + number) for number in range(50, 100)]).result()
            broker.start()
        some, _ = read_until(log, lambda more: len({*ids(records), *ids(more)}) == 200, positions)
        log.close()
    unique = dict.fromkeys(ids(records + some))
    assert list(unique) == ids([make(number) for number in range(200)])


@kafka
def test_three_brokers_of_which_leaders_are_killed_lose_nothing_and_keep_the_order(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, run_relay: RunRelay
) -> None:
    home = kafka_home()
    if home is None:
        pytest.skip(HOW_TO_GET_ONE)
    with Cluster(home, tmp_path_factory.mktemp("kafka")) as cluster:
        config = KafkaConfig(
            bootstrap_servers=cluster.bootstrap, partitions=3, replication_factor=3, min_insync_replicas=2
        )
        topic = topic_of(config, "exchanges")
        path, stop, written = tmp_path / "journal.db", threading.Event(), itertools.count()
        run_relay(path, BufferConfig(backend="kafka", kafka=config))
        log = KafkaLog(Journal(path), config, name="test")

        def append() -> None:
            while not stop.wait(0.01):
                number = next(written)
                log.append([make(number, key=f"key-{number % 11}", data=b"x" * 500)]).result()

        appending = threading.Thread(target=append)
        appending.start()
        try:
            records, positions = read_until(log, 100)
            killed: list[int] = []
            for _ in range(2):
                await_all_replicas(config, topic)
                leader = next(each for each in leaders(config.bootstrap_servers, topic) if each not in killed)
                killed.append(leader)
                cluster.brokers[leader - 1].kill()
                away = next(written)
                some, positions = read_until(log, lambda more, at=away: reaches(more, at), positions)  # type: ignore[misc]
                records += some
                cluster.brokers[leader - 1].start()
        finally:
            stop.set()
            appending.join()
        expected = {record.sequence for record in log.appended("exchanges", 0, 1_000_000)}
        some, _ = read_until(log, lambda more: expected <= {r.sequence for r in (*records, *more)}, positions)
        log.close()
    kept = by_the_views_rule(records + some)
    assert sorted(record.sequence for record in kept) == sorted(expected)
    for key in {record.partition_key for record in kept}:
        mine = [record.sequence for record in kept if record.partition_key == key]
        assert mine == sorted(mine)


def reaches(records: list[Record], number: int) -> bool:
    """Whether one of them was appended after the number was drawn."""
    return any(record.time > START + timedelta(milliseconds=number) for record in records)


def await_all_replicas(config: KafkaConfig, topic: str) -> None:
    with admin(config.bootstrap_servers) as client:
        for _ in range(600):
            (found,) = client.describe_topics([topic])
            if all(len(each["isr_nodes"]) == 3 for each in found["partitions"]):
                return
            time.sleep(0.1)
    raise AssertionError("a broker that came back did not catch up")


def test_reading_without_a_broker_is_unavailable_and_appending_works(tmp_path: Path) -> None:
    config = KafkaConfig(bootstrap_servers=["127.0.0.1:9"], client={"bootstrap_timeout_ms": 300})
    log = KafkaLog(Journal(tmp_path / "journal.db"), config, name="test")
    log.append([make(1)]).result()
    assert (log.backlog().pending, log.backlog().oldest) == (1, make(1).time)
    before = threading.active_count()
    for _ in range(2):
        with pytest.raises(LogUnavailable, match=re.escape("127.0.0.1:9")):
            log.read({})
    assert threading.active_count() == before, "failed attempts pile up"
    log.close()


def test_a_client_setting_that_does_not_exist_is_a_misconfiguration(tmp_path: Path) -> None:
    log = KafkaLog(Journal(tmp_path / "journal.db"), KafkaConfig(client={"ssl_cafil": "x"}), name="test")
    with pytest.raises(LogMisconfigured, match="ssl_cafil"):
        log.read({})
    log.close()


@kafka
def test_reading_before_the_topics_exist_names_the_relay(tmp_path: Path, settings: BufferConfig) -> None:
    log = KafkaLog(Journal(tmp_path / "journal.db"), settings.kafka, name="test")
    with pytest.raises(LogUnavailable) as caught:
        log.read({})
    assert "python -m buffer" in caught.value.hint
    log.close()


@kafka
def test_a_record_that_the_broker_refuses_is_set_aside(
    tmp_path: Path, settings: BufferConfig, run_relay: RunRelay
) -> None:
    create_topic(settings.kafka, settings.kafka.partitions, {"max.message.bytes": str(FLIGHT_BYTES + 1000)})
    journal = Journal(tmp_path / "journal.db")
    journal.append([make(1, data=b"x" * 400_000), make(2), make(3, data=b"x" * 400_000)]).result()
    journal.append([make(number) for number in range(4, 10)]).result()
    run_relay(tmp_path / "journal.db", settings)
    log = KafkaLog(journal, settings.kafka, name="test")
    records, _ = read_until(log, lambda records: "exchanges-9" in ids(records))
    target = f"{ensure_topics(settings.kafka, name='test')}/{settings.kafka.topic_prefix}"
    poisoned = Outbox(journal, target).poisoned()
    records += read_until(log, lambda _: log.backlog().pending == 0)[0]
    backlog = log.backlog()
    log.close()
    assert backlog == Backlog(pending=0, oldest=None, set_aside=2)
    assert [record.id for record, _ in poisoned] == ["exchanges-1", "exchanges-3"]
    assert all("MessageSizeTooLarge" in reason for _, reason in poisoned)
    assert set(ids(records)) == {f"exchanges-{number}" for number in (2, *range(4, 10))}


@kafka
def test_other_peoples_messages_are_passed_over(
    tmp_path: Path, settings: BufferConfig, run_relay: RunRelay
) -> None:
    from kafka import KafkaProducer

    run_relay(tmp_path / "journal.db", settings)
    producer = KafkaProducer(bootstrap_servers=settings.kafka.bootstrap_servers)
    producer.send(topic_of(settings.kafka, "control"), key=b"k", value=b"hello").get(30)
    producer.close()
    log = KafkaLog(Journal(tmp_path / "journal.db"), settings.kafka, name="test")
    log.append([make(1, stream="control")]).result()
    records, positions = read_until(log, 1)
    assert ids(records) == ["control-1"]
    assert positions["control"] == {0: 2}
    assert log.backlog().unreadable == 1
    log.close()


def create_topic(
    config: KafkaConfig, partitions: int, changes: dict[str, str], stream: Stream = "exchanges"
) -> None:
    from kafka.admin import NewTopic

    settings = settings_of(config, stream) | changes
    with admin(config.bootstrap_servers) as client:
        client.create_topics([NewTopic(topic_of(config, stream), partitions, 1, topic_configs=settings)])
        client.wait_for_topics([topic_of(config, stream)])


def add_partitions(config: KafkaConfig, stream: Stream, count: int) -> None:
    from kafka.admin import NewPartitions

    with admin(config.bootstrap_servers) as client:
        client.create_partitions({topic_of(config, stream): NewPartitions(count)})


@kafka
def test_partitions_that_are_added_are_written_and_read_without_a_restart(
    tmp_path: Path, settings: BufferConfig, run_relay: RunRelay
) -> None:
    kafka = settings.kafka.model_copy(update={"client": {"metadata_max_age_ms": 200}})
    settings = settings.model_copy(update={"kafka": kafka})
    run_relay(tmp_path / "journal.db", settings)
    log = KafkaLog(Journal(tmp_path / "journal.db"), kafka, name="test")
    log.append([make(number, key=f"key-{number}") for number in range(50)]).result()
    _, positions = read_until(log, 50)
    add_partitions(kafka, "exchanges", 8)
    new: set[int] = set()
    number = 50
    while new != {3, 4, 5, 6, 7} and number < 5_000:
        log.append([make(number + more, key=f"key-{number + more}") for more in range(50)]).result()
        number += 50
        records, positions = read_until(log, 50, positions)
        assert ids(sorted(records, key=lambda record: record.sequence)) == ids(
            [make(each) for each in range(number - 50, number)]
        )
        new |= {record.partition for record in records if record.partition >= 3}
    assert new == {3, 4, 5, 6, 7}
    assert positions == log.ends()
    log.close()


@kafka
def test_a_tombstone_reaches_its_record_wherever_that_was_written(
    tmp_path: Path, settings: BufferConfig, run_relay: RunRelay
) -> None:
    """By a relay that knew of fewer partitions, or by another that knows of more: hence the long age."""
    run_relay(tmp_path / "here.db", settings)
    here = KafkaLog(Journal(tmp_path / "here.db"), settings.kafka, name="test")
    old = next(m for n in range(99) if partition_of((m := make(n, key=f"key-{n}")).partition_key, 8) >= 3)
    here.append([old]).result()
    read_until(here, 1)
    add_partitions(settings.kafka, "exchanges", 8)
    run_relay(tmp_path / "there.db", settings)
    there = KafkaLog(Journal(tmp_path / "there.db"), settings.kafka, name="test")
    new = replace(old, id="exchanges-new")
    there.append([new]).result()
    records, _ = read_until(there, 2)
    written_to = {record.id: record.partition for record in records}
    assert written_to[old.id] < 3 <= written_to[new.id]

    here.append([old.tombstone(START), new.tombstone(START)]).result()
    records, _ = read_until(there, 2 + 2 * 8)
    here.close()
    there.close()
    for id_, partition in written_to.items():
        mine = [record.data for record in records if (record.id, record.partition) == (id_, partition)]
        assert len(mine) == 2
        assert mine[-1] is None


@kafka
@pytest.mark.parametrize(
    ("partitions", "changes", "hint"),
    [
        (2, {}, "--alter --topic {topic} --partitions 3, or set partitions = 2 in [buffer.kafka]"),
        (3, {"min.insync.replicas": "2"}, "min.insync.replicas=1, or set min_insync_replicas = 2"),
        (3, {"cleanup.policy": "delete"}, "cleanup.policy=compact"),
        (3, {"max.message.bytes": "1000"}, "max.message.bytes=1048588"),
    ],
)
def test_topics_that_contradict_the_settings_stop_the_relay(
    settings: BufferConfig, partitions: int, changes: dict[str, str], hint: str
) -> None:
    create_topic(settings.kafka, partitions, changes)
    with pytest.raises(LogMisconfigured) as caught:
        ensure_topics(settings.kafka, name="test")
    assert hint.format(topic=topic_of(settings.kafka, "exchanges")) in caught.value.hint


@kafka
@pytest.mark.parametrize("call", ["describe_topics", "describe_configs"])
def test_a_broker_that_does_not_know_a_new_topic_yet_is_asked_again(
    settings: BufferConfig, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, real = itertools.count(), getattr(KafkaAdminClient, call)
    topic = topic_of(settings.kafka, "exchanges")

    def answer(admin: KafkaAdminClient, *arguments: Any, **options: Any) -> Any:
        if next(asked):
            return real(admin, *arguments, **options)
        if call == "describe_topics":
            return real(admin, ["strange"])
        (found,) = real(admin, [ConfigResource(ConfigResourceType.TOPIC, "strange")])["topic"].values()
        return {"topic": {topic: found}}

    create_topic(settings.kafka, settings.kafka.partitions, {})
    monkeypatch.setattr(KafkaAdminClient, call, answer)
    ensure_topics(settings.kafka, name="test")
    assert next(asked) > len(STREAMS)


@kafka
def test_fewer_replicas_than_configured_stop_the_relay(settings: BufferConfig) -> None:
    create_topic(settings.kafka, 3, {})
    wanted = settings.kafka.model_copy(update={"replication_factor": 3})
    with pytest.raises(LogMisconfigured) as caught:
        ensure_topics(wanted, name="test")
    assert "kafka-reassign-partitions.sh, or set replication_factor = 1" in caught.value.hint


@kafka
def test_compaction_takes_the_record_and_leaves_the_rest(
    tmp_path: Path, settings: BufferConfig, run_relay: RunRelay
) -> None:
    quick = {"segment.ms": "200", "max.compaction.lag.ms": "200", "min.cleanable.dirty.ratio": "0"}
    create_topic(settings.kafka, settings.kafka.partitions, quick)
    run_relay(tmp_path / "journal.db", settings)
    log = KafkaLog(Journal(tmp_path / "journal.db"), settings.kafka, name="test")
    record = make(0, key="key", data=b"a secret")
    log.append([record, make(1, key="key")]).result()
    read_until(log, 2)  # else the journal erases it before the broker has it
    log.append([record.tombstone(START)]).result()
    for number in range(2, 400):  # a segment ends when a record comes after its time
        log.append([make(number, key="key")]).result()
        records, _ = read_until(log, lambda records, last=f"exchanges-{number}": last in ids(records))  # type: ignore[misc]
        if all(each.data is None for each in records if each.id == record.id):
            break
    found = ids(records)
    assert b"a secret" not in [each.data for each in records]
    assert "exchanges-1" in found
    log.close()
