import sqlite3
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from buffer.client import Buffer
from buffer.log import LogFull, LogUnavailable, behind
from buffer.memory import MemoryLog
from buffer.records import (
    STREAMS,
    AliasMoved,
    Choice,
    ExchangeClosed,
    ExchangeErased,
    ExchangeOpened,
    FeedbackGiven,
    Message,
    Payload,
    Positions,
    Record,
    RoundPlanned,
    uuid7,
)
from buffer.view import View
from tests.buffer.conftest import START, wait_until


def opened(completion_id: str) -> ExchangeOpened:
    return ExchangeOpened(
        completion_id=completion_id, principal="p", conversation="c", endpoint="chat", policy=0, request={}
    )


def moved(epoch: int) -> AliasMoved:
    return AliasMoved(alias="a", version=epoch + 1, epoch=epoch, why="promote", by="op")


class Heard:
    """Collects news and waits for it."""

    def __init__(self) -> None:
        self.payloads: list[Payload] = []
        self._more = threading.Condition()
        self.fail = False

    def __call__(self, payloads: list[Payload]) -> None:
        with self._more:
            if self.fail:
                self.fail = False
                raise RuntimeError("a listener's fault")
            self.payloads += payloads
            self._more.notify_all()

    def wait_for(self, count: int) -> None:
        with self._more:
            assert self._more.wait_for(lambda: len(self.payloads) >= count, 20)


class FlakyLog(MemoryLog):
    """Refuses to be written, or read, while told to."""

    def __init__(self) -> None:
        super().__init__()
        self.full = False
        self.unreadable = 0

    def append(self, records: Sequence[Record]) -> "Future[None]":
        if self.full:
            refused: Future[None] = Future()
            refused.set_exception(LogFull("no space"))
            return refused
        return super().append(records)

    def read(
        self, positions: Positions, *, limit: int = 500, wait_s: float = 0.0
    ) -> tuple[list[Record], Positions]:
        if self.unreadable:
            self.unreadable -= 1
            raise LogUnavailable("away")
        return super().read(positions, limit=limit, wait_s=wait_s)


@pytest.fixture
def log() -> FlakyLog:
    return FlakyLog()


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def buffer(log: FlakyLog, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> Iterator[Buffer]:
    monkeypatch.setattr("buffer.client.RETRY_S", 0.01)
    buffer = Buffer(log, View(":memory:"), heard)
    yield buffer
    buffer.close()


def test_starting_catches_up_first(log: FlakyLog, buffer: Buffer) -> None:
    other = Buffer(log, View(":memory:"))
    for number in range(1200):
        other.write([opened(f"c-{number}")]).result()
    buffer.start()
    assert buffer.view.exchange("c-1199") is not None
    other.view.close()


def test_what_was_written_can_be_read_as_soon_as_it_is_durable(buffer: Buffer) -> None:
    buffer.write([opened("c-1")], "key").result()
    assert buffer.view.exchange("c-1") is not None
    (record,) = buffer.log.read({})[0]
    assert record.partition_key == "key"


def test_a_refused_write_is_not_visible(log: FlakyLog, buffer: Buffer) -> None:
    log.full = True
    with pytest.raises(LogFull):
        buffer.write([opened("c-1")]).result()
    assert buffer.view.exchange("c-1") is None


def test_news_comes_once_and_the_view_knows_it_already(buffer: Buffer, heard: Heard) -> None:
    buffer.start()
    buffer.write([moved(0), moved(1)]).result()
    heard.wait_for(2)
    assert heard.payloads == [moved(0), moved(1)]
    assert buffer.view.alias("a").version == 2


def test_following_outlives_a_log_that_is_away(log: FlakyLog, buffer: Buffer, heard: Heard) -> None:
    buffer.start()
    log.unreadable = 3
    buffer.write([moved(0)]).result()
    heard.wait_for(1)


def test_following_outlives_a_listener_that_fails(buffer: Buffer, heard: Heard) -> None:
    buffer.start()
    heard.fail = True
    buffer.decide(moved(0)).result(20)  # so that its batch ends here
    buffer.write([moved(1)]).result()
    heard.wait_for(1)
    assert buffer.view.alias("a").version == 2


def test_starting_says_when_the_log_is_away_and_can_be_tried_again(log: FlakyLog, buffer: Buffer) -> None:
    log.unreadable = 1
    with pytest.raises(LogUnavailable):
        buffer.start()
    buffer.start()


def test_a_decision_resolves_once_it_is_in_the_view(log: FlakyLog, buffer: Buffer) -> None:
    buffer.start()
    log.unreadable = 1
    buffer.decide(moved(0)).result(20)
    assert buffer.view.alias("a").version == 1
    log.full = True
    with pytest.raises(LogFull):
        buffer.decide(moved(1)).result(20)


def test_what_a_predecessor_decided_is_unsettled_until_it_comes_back(log: FlakyLog, buffer: Buffer) -> None:
    planned = RoundPlanned(round=1, parent=0, lessons=[], seed=1, base="b", config={})
    Buffer(log, View(":memory:")).write([planned]).result()
    assert not buffer.settled("rounds")
    buffer.start()
    assert buffer.settled("rounds")
    assert buffer.settled("control")


def test_a_view_of_another_log_is_built_anew(log: FlakyLog, tmp_path: Path) -> None:
    other = Buffer(MemoryLog(), View(tmp_path / "view.db"))
    other.start()
    for number in range(3):
        other.decide(moved(number)).result(20)
    other.close()
    view = View(tmp_path / "view.db")
    log.append([Record.of(moved(0), time=datetime.now(UTC), randomness=bytes(10))]).result()
    buffer = Buffer(log, view)
    buffer.start()
    assert view.alias("a").version == 1
    assert view.positions() == log.ends()
    buffer.close()


class SharedLog(FlakyLog):
    """Processes come and go, and it stays."""

    def close(self) -> None:
        pass


def complete(path: Path) -> bool:
    """Whether a process that opens the view now can rely on it."""
    with closing(View(path)) as view:
        return view.keys().complete


def start_cut_short(log: SharedLog, path: Path) -> None:
    """The log goes away behind the first batch, and then the process dies."""

    def goes_away(_: list[Payload]) -> None:
        log.unreadable = 1

    buffer = Buffer(log, View(path), goes_away)
    with pytest.raises(LogUnavailable):
        buffer.start()
    assert behind(buffer.view.positions(), log.ends()) and buffer.view.positions()
    buffer.close()


def start(log: SharedLog, path: Path) -> None:
    buffer = Buffer(log, View(path))
    buffer.start()
    buffer.close()


def fill(log: SharedLog) -> None:
    """With more than one batch."""
    records = [Record.of(moved(n), time=START, randomness=n.to_bytes(10)) for n in range(600)]
    log.append(records).result()


def test_a_view_is_complete_once_the_log_was_read_to_its_end(tmp_path: Path) -> None:
    log, path = SharedLog(), tmp_path / "view.db"
    fill(log)
    start_cut_short(log, path)
    assert not complete(path)
    start(log, path)
    assert complete(path)
    fill(log)
    start_cut_short(log, path)
    assert complete(path), "it only lags"


def test_an_empty_log_is_read_to_its_end_at_once(buffer: Buffer) -> None:
    before = buffer.view.keys()
    buffer.start()
    assert not before.complete and buffer.view.keys().complete


def test_a_view_that_is_built_anew_is_not_complete_meanwhile(tmp_path: Path) -> None:
    longer, log, path = SharedLog(), SharedLog(), tmp_path / "view.db"
    fill(longer)
    fill(longer)
    start(longer, path)
    fill(log)
    start_cut_short(log, path)
    assert not complete(path)


class Clock:
    """A wall clock that is set at will."""

    def __init__(self) -> None:
        self.time = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.time


@pytest.mark.parametrize("step", [timedelta(days=-1), timedelta(milliseconds=-1), timedelta(0)])
def test_time_goes_on_when_the_clock_is_set_back(log: FlakyLog, step: timedelta) -> None:
    clock = Clock()
    buffer = Buffer(log, View(":memory:"), clock=clock)
    times = [buffer.now()]
    clock.time += step
    times += [buffer.now() for _ in range(50)]
    assert times == sorted(set(times))
    buffer.close()


def test_time_goes_on_behind_what_an_earlier_process_wrote(log: FlakyLog) -> None:
    clock = Clock()
    earlier = Buffer(log, View(":memory:"), clock=clock)
    earlier.write([opened("c-1")]).result()
    before = earlier.now()
    clock.time -= timedelta(hours=1)
    later = Buffer(log, View(":memory:"), clock=clock)
    assert later.now() > before
    earlier.view.close()
    later.close()


def test_a_clock_that_is_set_forward_is_followed(log: FlakyLog) -> None:
    clock = Clock()
    buffer = Buffer(log, View(":memory:"), clock=clock)
    buffer.now()
    clock.time += timedelta(days=1)
    assert buffer.now() == clock.time
    buffer.close()


def test_whatever_the_clock_does_exchanges_are_listed_in_the_order_they_came(log: FlakyLog) -> None:
    clock = Clock()
    buffer = Buffer(log, View(":memory:"), clock=clock)
    steps = [0, 10, -86_400_000, -1, 0, 1, 7_200_000, -3_600_000, 0]
    for number, milliseconds in enumerate(steps):
        clock.time += timedelta(milliseconds=milliseconds)
        id_ = f"c-{uuid7(buffer.now(), bytes(8))}-{number}"
        buffer.write([opened(id_)]).result()
    replica = Buffer(log, View(":memory:"))
    replica.start()
    for view in (buffer.view, replica.view):
        listed: list[str] = []
        while page := view.exchanges("p", limit=2, after=listed[-1] if listed else None):
            listed += [exchange.opened.completion_id for exchange in page]
        assert [int(one.rpartition("-")[2]) for one in listed] == list(range(len(steps)))
    replica.close()
    buffer.close()


def given(feedback_id: str) -> FeedbackGiven:
    return FeedbackGiven(
        feedback_id=feedback_id,
        principal="p",
        kind="demonstration",
        idempotency_key="k",
    )


class OutboxLog(FlakyLog):
    """As behind a relay: what is appended comes back only when told to."""

    relayed = 0

    def read(
        self, positions: Positions, *, limit: int = 500, wait_s: float = 0.0
    ) -> tuple[list[Record], Positions]:
        records, _ = super().read(positions, limit=limit)
        records = [one for one in records if one.sequence <= self.relayed]
        return records, {stream: {0: self.relayed + 1} for stream in STREAMS}


def test_what_a_predecessor_acknowledged_is_known_before_the_log_brings_it_back() -> None:
    log = OutboxLog()
    Buffer(log, View(":memory:")).write([opened("c-1"), given("f-1")]).result()
    buffer = Buffer(log, View(":memory:"))
    assert buffer.view.feedback_by_key("p", "k") is None
    buffer.recall()
    found = buffer.view.feedback_by_key("p", "k")
    assert found is not None
    assert found.feedback_id == "f-1"
    assert buffer.view.exchange("c-1") is not None
    log.relayed = 2
    buffer.start()
    assert len(buffer.view.all_feedback()) == 1
    buffer.close()


def test_what_a_predecessor_erased_is_erased_before_the_log_brings_it_back(tmp_path: Path) -> None:
    log = OutboxLog()
    before = Buffer(log, View(tmp_path / "view.db"))
    before.write([opened("c-1"), given("f-1")]).result()
    before.view.close()  # killed: what is appended from here on is on disk, and its view does not know of it
    acknowledged = log.appended("exchanges", 0) + log.appended("feedback", 0)
    log.append([record.tombstone(START) for record in acknowledged]).result()
    buffer = Buffer(log, View(tmp_path / "view.db"))
    assert buffer.view.exchange("c-1") is not None
    buffer.recall()
    assert buffer.view.exchange("c-1") is None
    found = buffer.view.feedback("f-1")
    assert found is not None and found.given is None
    buffer.close()


def ended(completion_id: str) -> ExchangeClosed:
    choice = Choice(message=Message(role="assistant", content="a secret"))
    return ExchangeClosed(completion_id=completion_id, status="complete", choices=[choice])


def content(log: MemoryLog) -> bytes:
    return b"".join(record.data or b"" for record in log.read({})[0])


def test_what_is_appended_later_than_its_erasure_is_erased_at_once(log: FlakyLog, buffer: Buffer) -> None:
    buffer.write([opened("c-1")]).result()
    buffer.append(buffer.view.tombstones("c-1", buffer.now())).result()
    buffer.write([ended("c-1"), ended("c-2")]).result()
    assert [r.data is None for r in log.read({})[0]] == [True, True, True, False, True]


def test_what_others_append_later_than_its_erasure_is_erased_as_well(
    log: FlakyLog, buffer: Buffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("buffer.client.LATE_S", 0.0)
    buffer.write([opened("c-1")]).result()
    buffer.append(buffer.view.tombstones("c-1", buffer.now())).result()
    buffer.start()
    other = Buffer(log, View(":memory:"))
    other.write([ended("c-1")]).result()
    assert wait_until(lambda: b"a secret" not in content(log))
    other.view.close()


def test_an_erasure_that_the_log_refused_is_tried_again(
    log: FlakyLog, buffer: Buffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("buffer.client.LATE_S", 0.0)
    buffer.write([opened("c-1")]).result()
    buffer.append(buffer.view.tombstones("c-1", buffer.now())).result()
    log.append([Record.of(ended("c-1"), time=START, randomness=bytes(10))]).result()
    log.full = True
    buffer.start()
    assert wait_until(lambda: bool(buffer.view.overdue(START)))
    log.full = False
    assert wait_until(lambda: b"a secret" not in content(log))


def test_what_a_reader_of_the_views_file_kept_from_being_erased_is_erased_without_a_cause(
    log: FlakyLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("buffer.client.LATE_S", 0.0)
    path = tmp_path / "view.db"
    buffer = Buffer(log, View(path))
    buffer.write([opened("c-1"), ended("c-1")]).result()
    buffer.start()
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM exchanges").fetchall()
        buffer.append(buffer.view.tombstones("c-1", buffer.now())).result()
        assert wait_until(lambda: buffer.view.positions() == log.ends())
        assert Path(f"{path}-wal").stat().st_size
        reader.execute("ROLLBACK")
        assert wait_until(lambda: not Path(f"{path}-wal").stat().st_size)
    buffer.close()


def test_what_is_still_being_read_is_not_erased_twice(log: FlakyLog) -> None:
    """While a view catches up, a tombstone may be on its way behind its record."""
    records = [Record.of(p, time=START, randomness=bytes([n] * 10)) for n, p in enumerate(ERASED)]
    log.append(records).result()
    log.append([records[1].tombstone(START)]).result()
    buffer = Buffer(log, View(":memory:"))
    buffer.view.apply(records, {})
    assert buffer.view.overdue(START)
    buffer.write([opened("c-2")]).result()
    buffer.start()
    assert len(log.read({})[0]) == 4
    buffer.close()


ERASED: list[Payload] = [ExchangeErased(completion_id="c-1", by="ann"), opened("c-1")]


class FullView(View):
    """On a disk without room."""

    def absorb(self, records: Sequence[Record]) -> None:
        raise sqlite3.OperationalError("database or disk is full")


def test_what_is_on_disk_is_acknowledged_though_the_view_has_no_room_for_it(log: FlakyLog) -> None:
    buffer = Buffer(log, FullView(":memory:"))
    buffer.write([opened("c-1")]).result(20)
    buffer.start()
    assert buffer.view.exchange("c-1") is not None
    buffer.close()
