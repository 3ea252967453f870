import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buffer.records import (
    PAYLOADS,
    STREAMS,
    Choice,
    ExchangeClosed,
    FeedbackGiven,
    LearningSwitched,
    Message,
    Record,
    UnreadableRecord,
    timestamp,
    uuid7,
)

TIMES = st.datetimes(datetime(1990, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))
RANDOMNESS = st.binary(min_size=10, max_size=10)
TOKENS = st.lists(st.integers(0, 2**31 - 1), max_size=50)
LOGPROBS = st.lists(st.floats(max_value=0, width=32, allow_nan=False), max_size=50)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(TIMES, RANDOMNESS)
def test_a_uuid7_is_one_and_tells_its_time(time: datetime, randomness: bytes) -> None:
    text = uuid7(time, randomness)
    number = int(text, 16)
    assert len(text) == 32
    assert number >> 76 & 0xF == 7
    assert number >> 62 & 0b11 == 0b10
    assert timedelta(milliseconds=number >> 80) == time - datetime(1970, 1, 1, tzinfo=UTC) - timedelta(
        microseconds=time.microsecond % 1000
    )


@given(TIMES, TIMES, RANDOMNESS, RANDOMNESS)
def test_uuid7s_sort_as_their_times(a: datetime, b: datetime, x: bytes, y: bytes) -> None:
    if a < b:
        assert uuid7(a, x) < uuid7(b, y)


@given(TIMES, RANDOMNESS, RANDOMNESS)
def test_uuid7s_of_one_millisecond_sort_as_their_times(time: datetime, x: bytes, y: bytes) -> None:
    assert uuid7(time, x) < uuid7(time + timedelta(microseconds=1), y)


@given(TIMES, RANDOMNESS, RANDOMNESS)
def test_uuid7s_keep_62_random_bits(time: datetime, x: bytes, y: bytes) -> None:
    kept = bytes([0x3F, *[0xFF] * 7])
    same = all(a & mask == b & mask for a, b, mask in zip(x[:8], y[:8], kept, strict=True))
    assert (uuid7(time, x) == uuid7(time, y)) == same


@given(TOKENS, LOGPROBS, TIMES, RANDOMNESS)
def test_an_exchange_survives_its_record(
    tokens: list[int], logprobs: list[float], time: datetime, randomness: bytes
) -> None:
    closed = ExchangeClosed(
        completion_id="c",
        status="complete",
        prompt_token_ids=tokens,
        choices=[Choice(message=Message(role="assistant", content="x"), token_ids=tokens, logprobs=logprobs)],
    )
    record = Record.of(closed, time=time, randomness=randomness, partition_key="k")
    assert record.payload() == closed
    assert record.stream == "exchanges"
    if tokens:
        assert isinstance(json.loads(record.data or b"")["prompt_token_ids"], str), "packed, not a list"


@given(JSON, st.text(max_size=200), TIMES, RANDOMNESS)
def test_feedback_survives_its_record(content: object, text: str, time: datetime, randomness: bytes) -> None:
    given_ = FeedbackGiven(
        feedback_id="f",
        principal="p",
        kind="demonstration",
        text=text,
        messages=[Message.model_validate({"role": "user", "content": content, "name": text})],
    )
    assert Record.of(given_, time=time, randomness=randomness).payload() == given_


@given(TIMES)
def test_timestamps_are_rfc_3339_to_the_millisecond(time: datetime) -> None:
    text = timestamp(time)
    assert text.endswith("Z")
    assert datetime.fromisoformat(text) == time.replace(microsecond=time.microsecond // 1000 * 1000)


def test_every_payload_has_a_type_of_its_own_and_a_known_stream() -> None:
    assert all(cls.type == name and cls.stream in STREAMS for name, cls in PAYLOADS.items())
    assert all(name.startswith("apprentice.") and name.endswith(".v1") for name in PAYLOADS)


def test_a_newer_writer_does_not_break_an_older_reader() -> None:
    record = Record(
        "control", LearningSwitched.type, "i", datetime.now(UTC), b'{"paused": true, "by": "me", "new": 1}'
    )
    assert record.payload() == LearningSwitched(paused=True, by="me")


@pytest.mark.parametrize(
    ("type_", "data"),
    [("apprentice.unknown.v9", b"{}"), (LearningSwitched.type, b"{"), (LearningSwitched.type, None)],
)
def test_what_cannot_be_read_says_so(type_: str, data: bytes | None) -> None:
    with pytest.raises(UnreadableRecord):
        Record("control", type_, "i", datetime.now(UTC), data).payload()


def test_a_tombstone_keeps_stream_id_and_partition_key() -> None:
    time = datetime(2026, 1, 1, tzinfo=UTC)
    record = Record("feedback", "t", "i", time, b"{}", "k", "/s", 7)
    assert record.tombstone(time) == Record("feedback", "t", "i", time, None, "k")
