import pytest
from hypothesis import given
from hypothesis import strategies as st

from buffer.binding import from_message, partition_of, to_message
from buffer.records import STREAMS, Record, UnreadableRecord
from tests.buffer.conftest import START

TEXT = st.text(st.characters(codec="utf-8"), max_size=40)
RECORDS = st.builds(
    Record,
    stream=st.sampled_from(STREAMS),
    type=TEXT,
    id=TEXT.filter(bool),
    time=st.integers(0, 10**12).map(lambda ms: START + ms * (START.resolution * 1000)),
    data=st.none() | st.binary(max_size=200),
    partition_key=TEXT,
    source=TEXT,
    sequence=st.integers(1, 2**63 - 1),
)


@given(RECORDS)
def test_a_record_survives_its_message(record: Record) -> None:
    message = to_message(record)
    assert from_message(record.stream, message.value, message.headers) == record


@given(RECORDS)
def test_a_message_is_cloudevents_in_binary_mode(record: Record) -> None:
    message = to_message(record)
    headers = dict(message.headers)
    assert message.key == headers["ce_id"] == record.id.encode()
    assert headers["ce_specversion"] == b"1.0"
    assert {"ce_source", "ce_type", "ce_time", "ce_sequence", "ce_partitionkey"} <= headers.keys()
    assert (message.value is None) == (record.data is None)
    assert ("content-type" in headers) == (record.data is not None)


@pytest.mark.parametrize(("name", "value"), [("ce_sequence", b"%d" % 2**63), ("ce_source", None)])
def test_what_would_stop_a_reader_is_unreadable(name: str, value: bytes | None) -> None:
    message = to_message(Record("exchanges", "test.v1", "1", START, b"{}", source="/s", sequence=1))
    headers = [(each, value if each == name else text) for each, text in message.headers]
    with pytest.raises(UnreadableRecord):
        from_message("exchanges", b"{}", headers)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("ce_specversion", b"0.3")],
        [("ce_specversion", b"1.0"), ("ce_id", b"\xff")],
        [(f"ce_{name}", b"1.0") for name in ("specversion", "id", "source", "type", "time", "sequence")],
    ],
)
def test_other_peoples_messages_are_unreadable(headers: list[tuple[str, bytes]]) -> None:
    with pytest.raises(UnreadableRecord):
        from_message("exchanges", b"{}", headers)


@given(TEXT, st.integers(1, 100))
def test_a_partition_is_within_bounds(key: str, partitions: int) -> None:
    assert 0 <= partition_of(key, partitions) < partitions


@given(TEXT, st.integers(1, 100), st.integers(0, 100))
def test_more_partitions_move_a_key_only_to_one_of_those_that_were_added(
    key: str, before: int, added: int
) -> None:
    now = partition_of(key, before + added)
    assert now == partition_of(key, before) or now >= before


def test_a_partition_is_the_same_in_every_release() -> None:
    assert [partition_of(key, 8) for key in ("", "a", "conversation", "é")] == [0, 3, 1, 6]
    assert [partition_of(key, 6) for key in ("", "a", "conversation", "é")] == [0, 3, 1, 2]


def test_keys_spread_over_all_partitions() -> None:
    counts = [0] * 8
    for number in range(4000):
        counts[partition_of(f"conversation-{number}", 8)] += 1
    assert min(counts) > 300
