import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buffer.records import ExchangeClosed, ExchangeOpened, Message
from server.api.sse import Events, event
from server.api.transcript import CUT_ABOVE_BYTES, Transcript, to_record

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@st.composite
def answers(draw: st.DrawFn) -> dict[str, Any]:
    """One choice of a whole chat reply."""
    count = draw(st.integers(0, 8))
    calls = [
        {"id": f"call-{i}", "type": "function", "function": {"name": f"f{i}", "arguments": draw(TEXT)}}
        for i in range(draw(st.integers(0, 2)))
    ]
    ids = draw(st.lists(st.integers(0, 2**31 - 1), min_size=count, max_size=count))
    logprobs = [{"token": "x", "logprob": draw(st.floats(-50, 0, width=32))} for _ in ids]
    message = {
        "role": "assistant",
        "content": draw(TEXT),
        "tool_calls": calls,
        "reasoning": draw(TEXT) or None,
    }
    return {"message": message, "token_ids": ids, "logprobs": {"content": logprobs}, "finish_reason": "stop"}


def cut(draw: st.DrawFn, value: Any, pieces: int) -> list[Any]:
    """A text or list in `pieces` parts, some of them empty."""
    marks = sorted(draw(st.lists(st.integers(0, len(value)), min_size=pieces - 1, max_size=pieces - 1)))
    return [value[a:b] for a, b in zip([0, *marks], [*marks, len(value)], strict=True)]


@st.composite
def chunked(draw: st.DrawFn) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A whole reply and a stream that says the same: choices interleaved, everything cut at any place."""
    choices: list[dict[str, Any]] = []
    chunks: list[dict[str, Any]] = []
    for index in range(draw(st.integers(1, 3))):
        choice = {"index": index, **draw(answers())}
        choices.append(choice)
        pieces = draw(st.integers(1, 5))
        message = choice["message"]
        parts: list[list[Any]] = [
            cut(draw, one, pieces)
            for one in (
                message["content"],
                message["reasoning"] or "",
                choice["token_ids"],
                choice["logprobs"]["content"],
                *(call["function"]["arguments"] for call in message["tool_calls"]),
            )
        ]
        for position, (content, reasoning, ids, logprobs, *arguments) in enumerate(zip(*parts, strict=True)):
            calls = []
            for at, text in enumerate(arguments):
                function: dict[str, Any] = {"arguments": text}
                call: dict[str, Any] = {"index": at, "function": function}
                if position == 0:
                    call["id"], function["name"] = f"call-{at}", f"f{at}"
                calls.append(call)
            delta = {"content": content or None, "reasoning": reasoning or None, "tool_calls": calls}
            chunks.append({"choices": [{
                "index": index, "delta": delta, "token_ids": ids,
                "logprobs": {"content": logprobs} if logprobs else None,
                "finish_reason": "stop" if position == pieces - 1 else None,
            }]})  # fmt: skip
    chunks = draw(interleaved(chunks, len(choices)))
    start: dict[str, Any] = {"index": 0, "delta": {"role": "assistant", "content": ""}}
    chunks.insert(0, {"choices": [start], "prompt_token_ids": [7]})
    chunks.append({"choices": [], "usage": {"total_tokens": 3, "prompt_tokens_details": None}})
    return {"choices": choices, "prompt_token_ids": [7], "usage": {"total_tokens": 3}}, chunks


@st.composite
def interleaved(draw: st.DrawFn, chunks: list[dict[str, Any]], choices: int) -> list[dict[str, Any]]:
    """Chunks of different choices in any order, those of one choice in theirs."""
    queues = [[c for c in chunks if c["choices"][0]["index"] == i] for i in range(choices)]
    mixed = []
    while any(queues):
        mixed.append(draw(st.sampled_from([queue for queue in queues if queue])).pop(0))
    return mixed


def closed(replies: list[dict[str, Any]]) -> ExchangeClosed:
    transcript = Transcript("chat")
    for one in replies:
        transcript.add(one)
    return transcript.closed("id", "complete", {"temperature": 1.0})


@given(chunked())
def test_a_stream_makes_the_same_record_as_the_whole_reply(
    both: tuple[dict[str, Any], list[dict[str, Any]]],
) -> None:
    whole, chunks = both
    assert closed(chunks) == closed([whole])


@given(chunked(), st.data())
def test_a_stream_may_be_cut_anywhere(
    both: tuple[dict[str, Any], list[dict[str, Any]]], data: st.DataObject
) -> None:
    _, chunks = both
    raw = b"".join(event(chunk) for chunk in chunks)
    marks = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=20)))
    events = Events()
    read = [
        json.loads(text)
        for a, b in zip([0, *marks], [*marks, len(raw)], strict=True)
        for text in events.feed(raw[a:b])
    ]
    assert read == chunks


def test_the_whole_reply_is_recorded() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    choice = {
        "index": 0, "finish_reason": "tool_calls", "token_ids": [1, 2],
        "logprobs": {"content": [{"logprob": -0.5}, {"logprob": -1.5}]},
        "message": {"role": "assistant", "content": "", "tool_calls": [call], "audio": None},
    }  # fmt: skip
    found = closed([{"choices": [choice], "prompt_token_ids": [9], "usage": {"total_tokens": 3}}])
    assert found.prompt_token_ids == [9]
    assert found.usage == {"total_tokens": 3}
    assert found.sampling == {"temperature": 1.0, "logprobs_mode": "raw_logprobs"}
    assert found.untrainable is None
    (only,) = found.choices
    assert (only.token_ids, only.logprobs, only.finish_reason) == ([1, 2], [-0.5, -1.5], "tool_calls")
    assert only.message == Message.model_validate(
        {"role": "assistant", "content": None, "tool_calls": [call]}
    )


def test_completions_are_recorded_as_text() -> None:
    transcript = Transcript("completions")
    choice = {"index": 0, "text": "ab", "token_ids": [1], "prompt_token_ids": [9], "finish_reason": "length"}
    transcript.add({"choices": [{**choice, "logprobs": {"token_logprobs": [-1.0]}}]})
    found = transcript.closed("id", "complete", {})
    assert (found.choices[0].text, found.choices[0].message) == ("ab", None)
    assert (found.choices[0].logprobs, found.prompt_token_ids) == ([-1.0], [9])


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({"choices": [{"index": 0, "message": {"content": "x"}}]}, "no token ids"),
        (
            {
                "choices": [{"index": 0, "message": {"content": "x"}, "token_ids": [1]}],
                "prompt_token_ids": [1],
            },
            "do not match",
        ),
    ],
)
def test_what_lacks_its_tokens_cannot_be_trained_on(answer: dict[str, Any], why: str) -> None:
    assert why in (closed([answer]).untrainable or "")


def envelope(payload: ExchangeClosed | ExchangeOpened) -> bytes:
    record = to_record(payload, time=datetime.now(UTC), randomness=bytes(10), partition_key="k")
    assert record.data is not None
    assert len(record.data) <= CUT_ABOVE_BYTES
    return record.data


def test_a_record_that_would_be_too_large_loses_its_tokens_first() -> None:
    many = [1] * 400_000
    choice = {"index": 0, "message": {"content": "kept"}, "token_ids": many, "logprobs": None}
    found = ExchangeClosed.model_validate_json(
        envelope(closed([{"choices": [choice], "prompt_token_ids": [1]}]))
    )
    assert found.choices[0].message == Message(role="assistant", content="kept")
    assert found.choices[0].token_ids == []
    assert "too large" in (found.untrainable or "")


def test_a_text_that_would_be_too_large_goes_next() -> None:
    choice = {"index": 0, "message": {"content": "x" * 1_000_000}, "token_ids": [1]}
    found = ExchangeClosed.model_validate_json(
        envelope(closed([{"choices": [choice], "prompt_token_ids": [1]}]))
    )
    assert found.choices == []
    assert "too large" in (found.untrainable or "")


def test_too_large_questions_stay_different_questions() -> None:
    def opened(completion_id: str) -> ExchangeOpened:
        messages = [{"role": "user", "content": "x" * 1_000_000}]
        request = {"model": "apprentice", "messages": messages, "metadata": {"a": "b"}}
        return ExchangeOpened(
            completion_id=completion_id, principal="p", conversation="c", endpoint="chat", policy=0,
            request=request,
        )  # fmt: skip

    one, two = (ExchangeOpened.model_validate_json(envelope(opened(i))) for i in ("id-1", "id-2"))
    assert one.request["messages"] != two.request["messages"]
    assert one.request["metadata"] == {"a": "b"}
