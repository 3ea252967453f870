import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import to_json

from buffer.records import STREAMS, ExchangeOpened, Record, UnreadableRecord
from buffer.structured import from_line, to_line

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
WORDS = st.text(max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)
DATA = st.none() | st.binary(max_size=40) | JSON.map(lambda v: json.dumps(v).encode()) | JSON.map(to_json)
TIMES = st.integers(0, 4 * 10**12).map(lambda ms: EPOCH + timedelta(milliseconds=ms))
RECORDS = st.builds(
    Record, st.sampled_from(STREAMS), WORDS, WORDS, TIMES, DATA, WORDS, WORDS, st.integers(0, 2**63 - 1),
    st.integers(0, 1000),
)  # fmt: skip


@given(RECORDS)
def test_a_record_comes_back_byte_for_byte_from_one_line(record: Record) -> None:
    line = to_line(record)
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    assert from_line(line) == record


@given(JSON)
def test_what_we_write_can_be_read_as_json(value: object) -> None:
    opened = ExchangeOpened(
        completion_id="c", principal="a", conversation="v", endpoint="chat", policy=0, request={"any": value}
    )
    record = Record.of(opened, time=EPOCH, randomness=bytes(10))
    assert json.loads(to_line(record))["data"] == json.loads(record.data or b"")


def test_a_line_has_the_attributes_of_cloudevents() -> None:
    record = Record("rounds", "t.v1", "i", datetime(2026, 1, 1, tzinfo=UTC), b'{"a":1}', "k", "/s", 7, 3)
    assert json.loads(to_line(record)) == {
        "specversion": "1.0", "id": "i", "source": "/s", "type": "t.v1", "time": "2026-01-01T00:00:00.000Z",
        "datacontenttype": "application/json", "data": {"a": 1},
        "stream": "rounds", "sequence": "7", "partition": 3, "partitionkey": "k",
    }  # fmt: skip


def test_attributes_of_a_newer_writer_are_ignored() -> None:
    record = Record("rounds", "t.v1", "i", datetime(2026, 1, 1, tzinfo=UTC), b'{"a":1}', "k", "/s", 7, 3)
    line = json.loads(to_line(record)) | {"traceparent": "00-1", "new": {"er": 1}}
    assert from_line(json.dumps(line).encode()) == record


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"specversion": "2.0"}, "specversion"), ({"stream": "songs"}, "stream"),
        ({"sequence": "x"}, "sequence"), ({"sequence": "-1"}, "sequence"),
        ({"time": "2026-01-01T00:00:00"}, "time"), ({"id": None}, "id"),
        ({"data_base64": "a-b", "data": None}, "as JSON should be"),
    ],
)  # fmt: skip
def test_what_is_no_record_says_why(changed: dict[str, object], why: str) -> None:
    record = Record("rounds", "t.v1", "i", datetime(2026, 1, 1, tzinfo=UTC), b"{}", "k", "/s", 7)
    line = json.loads(to_line(record)) | changed
    with pytest.raises(UnreadableRecord, match=why):
        from_line(json.dumps(line).encode())


@pytest.mark.parametrize("line", [b"", b"{", b"[]", b"3", b"\xff"])
def test_what_is_no_json_object_is_no_record(line: bytes) -> None:
    with pytest.raises(UnreadableRecord):
        from_line(line)
