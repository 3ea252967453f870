"""Logs of every kind, and the records to put into them."""

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from buffer.config import BufferConfig, KafkaConfig
from buffer.journal import Journal
from buffer.log import Log, LogUnavailable
from buffer.memory import MemoryLog
from buffer.records import Positions, Record, Stream
from tests.kafka_broker import HOW_TO_GET_ONE, Broker, kafka_home

Open = Callable[[], Log]
"""Opens the log of this test; again after closing it, as a restart would."""

START = datetime(2026, 1, 1, tzinfo=UTC)


def make(number: int, key: str = "", stream: Stream = "exchanges", data: bytes | None = None) -> Record:
    """The record that is called `number`."""
    body = b'{"number": %d}' % number if data is None else data
    time = START + timedelta(milliseconds=number)
    return Record(stream, "test.v1", f"{stream}-{number}", time, body, key)


def read_until(
    log: Log, enough: int | Callable[[list[Record]], bool], positions: Positions | None = None
) -> tuple[list[Record], Positions]:
    """Read until that many records have come, or until they satisfy `enough`; a relay takes a while.

    When nothing comes for long, what came so far is returned, for the test to find wanting.
    """
    records: list[Record] = []
    positions = positions or {}
    patience = 300
    while patience and not (len(records) >= enough if isinstance(enough, int) else enough(records)):
        try:
            some, positions = log.read(positions, wait_s=0.1)
        except LogUnavailable:
            some = []
        records += some
        patience = 300 if some else patience - 1
    return records, positions


def ids(records: Sequence[Record]) -> list[str]:
    return [record.id for record in records]


def wait_until(holds: Callable[[], bool]) -> bool:
    for _ in range(400):
        if holds():
            return True
        time.sleep(0.05)
    return False


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The `host:port` of a broker for the whole session."""
    if given := os.environ.get("KAFKA_BOOTSTRAP_SERVERS"):
        yield given
    elif home := kafka_home():
        with Broker(home, tmp_path_factory.mktemp("kafka")) as started:
            yield started.bootstrap
    else:
        pytest.skip(HOW_TO_GET_ONE)


def kafka_settings(broker: str) -> BufferConfig:
    """Topics of one's own on that broker."""
    kafka = KafkaConfig(
        bootstrap_servers=[broker], topic_prefix=f"test-{uuid.uuid4().hex[:8]}.", partitions=3
    )
    return BufferConfig(backend="kafka", kafka=kafka)


@pytest.fixture
def settings(broker: str) -> BufferConfig:
    return kafka_settings(broker)


@pytest.fixture
def run_relay() -> Iterator[Callable[[Path, BufferConfig], None]]:
    """Starts a relay for that journal in this process; returns once it has reached the broker."""
    from buffer.relay import Relay

    with ExitStack() as stack:

        def start(path: Path, settings: BufferConfig) -> None:
            journal = Journal(path)
            relay, ready = Relay(journal, settings), threading.Event()
            thread = threading.Thread(target=relay.run, args=(ready.set,))
            stack.callback(journal.close)
            stack.callback(thread.join)
            stack.callback(relay.stop)
            thread.start()
            assert ready.wait(30), "the relay did not reach the broker"

        yield start


@pytest.fixture(params=["journal", pytest.param("kafka", marks=pytest.mark.kafka)])
def open_durable(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Every kind of log that survives a restart."""
    opened: list[Log] = []
    path = tmp_path / "journal.db"
    if request.param == "kafka":
        from buffer.kafka import KafkaLog

        settings: BufferConfig = request.getfixturevalue("settings")
        request.getfixturevalue("run_relay")(path, settings)

    def open_() -> Log:
        journal = Journal(path)
        log = KafkaLog(journal, settings.kafka, name="test") if request.param == "kafka" else journal
        opened.append(log)
        return log

    yield open_
    for each in opened:
        each.close()


@pytest.fixture(params=["memory", "journal", pytest.param("kafka", marks=pytest.mark.kafka)])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Log]:
    """Every kind of log, open and empty."""
    path = tmp_path / "journal.db"
    opened: Log
    if request.param == "memory":
        opened = MemoryLog()
    elif request.param == "journal":
        opened = Journal(path)
    else:
        from buffer.kafka import KafkaLog

        settings: BufferConfig = request.getfixturevalue("settings")
        request.getfixturevalue("run_relay")(path, settings)
        opened = KafkaLog(Journal(path), settings.kafka, name="test")
    yield opened
    opened.close()
