"""What every log promises, whatever holds the records."""

import itertools
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import pytest

from buffer.log import MAX_DATA_BYTES, Log, LogUnavailable, RecordTooLarge, read_to_end
from buffer.records import STREAMS, Positions, Record
from tests.buffer.conftest import START, Open, ids, make, read_until


def test_a_record_comes_back_as_it_was_with_its_source_and_sequence(log: Log) -> None:
    record = make(1, key="conversation")
    log.append([record]).result()
    ((read,), _) = read_until(log, 1)
    assert replace(read, source="", sequence=0, partition=0) == record
    assert read.source.startswith("/")
    assert read.sequence > 0


def test_each_record_names_the_partition_that_it_was_read_from(log: Log) -> None:
    """Within one source and partition the sequence grows: that is what readers drop redelivery by."""
    for number in range(60):
        log.append([make(number, key=f"key-{number % 11}")])
    records, positions = read_until(log, 60)
    assert {record.partition for record in records} <= positions["exchanges"].keys()
    for partition in positions["exchanges"]:
        sequences = [record.sequence for record in records if record.partition == partition]
        assert sequences == sorted(set(sequences))


def test_the_last_record_of_a_stream_is_known(log: Log) -> None:
    assert log.last("rounds") is None
    log.append([make(1, stream="rounds"), make(2)]).result()
    records, _ = read_until(log, 2)
    (written,) = [record for record in records if record.stream == "rounds"]
    last = log.last("rounds")
    assert last is not None
    assert (last.source, last.sequence) == (written.source, written.sequence)
    assert [one.sequence for one in log.appended("rounds", after=0)] == [written.sequence]
    assert log.appended("rounds", after=written.sequence) == []


def test_equal_keys_are_read_in_the_order_they_were_appended(log: Log) -> None:
    for start in range(0, 300, 10):
        log.append([make(number, key=f"key-{number % 7}") for number in range(start, start + 10)])
    records, _ = read_until(log, 300)
    assert len(records) == 300
    for key in {record.partition_key for record in records}:
        mine = [record for record in records if record.partition_key == key]
        assert ids(mine) == ids(sorted(mine, key=lambda record: record.time))


def test_all_streams_are_read(log: Log) -> None:
    log.append([make(1, stream=stream) for stream in STREAMS]).result()
    records, _ = read_until(log, len(STREAMS))
    assert {record.stream for record in records} == set(STREAMS)


def test_an_append_that_is_refused_leaves_nothing_behind(log: Log) -> None:
    refused = log.append([make(1), make(2, data=b"x" * (MAX_DATA_BYTES + 1))])
    with pytest.raises(RecordTooLarge):
        refused.result()
    log.append([make(3)]).result()
    records, positions = read_until(log, 1)
    assert ids(records) == ["exchanges-3"]
    assert log.read(positions)[0] == []


def test_the_largest_record_passes(log: Log) -> None:
    log.append([make(1, data=b"x" * MAX_DATA_BYTES)]).result()
    log.append([make(2)]).result()
    records, _ = read_until(log, 2)
    assert sorted(len(record.data or b"") for record in records) == [len(make(2).data or b""), MAX_DATA_BYTES]


def test_positions_resume_exactly_where_reading_stopped(log: Log) -> None:
    log.append([make(number, key=str(number)) for number in range(50)]).result()
    read_until(log, 50)  # behind a relay, wait until all are there
    records: list[Record] = []
    positions: Positions = {}
    while len(records) < 50:
        some, positions = log.read(positions, limit=7, wait_s=1)
        assert 0 < len(some) <= 7
        records += some
    assert sorted(ids(records)) == sorted(ids([make(number) for number in range(50)]))


def test_reading_again_from_the_same_positions_gives_the_same_records(log: Log) -> None:
    log.append([make(number, key="key") for number in range(20)]).result()
    records, _ = read_until(log, 20)
    middle: Positions = {}
    first, middle = log.read({}, limit=8, wait_s=1)
    log.read(middle, wait_s=1)
    again, _ = log.read(middle, wait_s=1)
    assert again == records[8:]
    assert first == records[:8]


def test_what_was_read_reaches_the_ends(log: Log) -> None:
    log.append([make(number, key=str(number), stream=STREAMS[number % 4]) for number in range(40)]).result()
    _, positions = read_until(log, 40)
    assert positions == log.ends()
    assert log.read(log.ends())[0] == []


def test_an_empty_log_has_ends_too(log: Log) -> None:
    records, positions = log.read({})
    assert records == []
    assert positions == log.ends()


def test_sequences_of_a_source_grow_within_a_partition(log: Log) -> None:
    for number in range(60):
        log.append([make(number, key=f"key-{number % 5}")])
    records, _ = read_until(log, 60)
    assert len({(record.source, record.sequence) for record in records}) == 60
    for key in {record.partition_key for record in records}:
        sequences = [record.sequence for record in records if record.partition_key == key]
        assert sequences == sorted(sequences)


def test_a_tombstone_erases_the_data_and_is_read_itself(log: Log) -> None:
    record = make(1, key="conversation")
    log.append([record]).result()
    log.append([record.tombstone(START)]).result()
    log.append([make(2, key="conversation")]).result()
    seen, _ = read_until(log, lambda records: "exchanges-2" in ids(records))
    mine = [each for each in seen if each.id == record.id]
    assert mine[-1].data is None
    assert mine[-1].time == START
    assert all(each.data is None or each.sequence < mine[-1].sequence for each in mine)


def test_concurrent_appends_lose_nothing(log: Log) -> None:
    def append(worker: int) -> None:
        for number in range(25):
            log.append([make(1000 * worker + number, key=f"key-{worker}")]).result()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(append, range(8)))
    records, _ = read_until(log, 200)
    expected = [f"exchanges-{1000 * worker + number}" for worker in range(8) for number in range(25)]
    assert sorted(ids(records)) == sorted(expected)


def test_a_waiting_reader_wakes_up(log: Log) -> None:
    read: Future[list[str]] = Future()
    ends = log.ends()
    thread = threading.Thread(target=lambda: read.set_result(ids(log.read(ends, wait_s=60)[0])))
    thread.start()
    log.append([make(1)]).result()
    assert read.result(timeout=50) == ["exchanges-1"]
    thread.join()


def test_giving_up_on_an_append_does_not_take_it_back(log: Log) -> None:
    futures = [log.append([make(number)]) for number in range(50)]
    for future in futures:
        future.cancel()
    records, _ = read_until(log, 50)
    assert len(records) == 50


def test_a_closed_log_says_so(log: Log) -> None:
    log.append([make(1)])
    log.close()
    with pytest.raises(LogUnavailable):
        log.append([make(2)])
    with pytest.raises(LogUnavailable):
        log.read({})
    with pytest.raises(LogUnavailable):
        log.ends()
    log.close()


def test_closing_flushes(open_durable: Open) -> None:
    log = open_durable()
    for number in range(100):
        log.append([make(number)])
    log.close()
    records, _ = read_until(open_durable(), 100)
    assert ids(records) == ids([make(number) for number in range(100)])


def test_a_restart_keeps_records_source_and_positions(open_durable: Open) -> None:
    log = open_durable()
    log.append([make(number) for number in range(10)]).result()
    before, _ = read_until(log, 10)
    _, middle = log.read({}, limit=4, wait_s=1)
    log.close()
    log = open_durable()
    log.append([make(10)]).result()
    after, _ = read_until(log, 7, middle)
    assert after[:6] == before[4:]
    assert after[6].id == "exchanges-10"
    assert after[6].source == before[0].source
    assert after[6].sequence > before[-1].sequence


def test_reading_comes_to_an_end_where_the_last_records_are_passed_over(log: Log) -> None:
    log.append([make(1, stream="control"), make(2), make(3)]).result()
    read_until(log, 3)
    past = {stream: at for stream, at in log.ends().items() if stream != "control"}
    batches = list(itertools.islice(read_to_end(log, past), 50))
    assert ids([record for records, _ in batches for record in records]) == ["control-1"]
    assert len(batches) < 50
