import json
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from buffer.log import LogFull
from buffer.records import ExchangeClosed, ExchangeOpened
from tests.server.running import Running, events
from tests.server.scripted_vllm import PROMPT_IDS, logprob, token_id, words
from tests.server.stub_policies import StubPolicies
from tests.server.test_fetch import wait_for

FULL = LogFull("the disk is full", "free some space")


def body(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "apprentice", "messages": [{"role": "user", "content": text}], **more}


def opened(running: Running) -> list[ExchangeOpened]:
    return [p for p in running.log.payloads(ExchangeOpened) if isinstance(p, ExchangeOpened)]


def closed(running: Running) -> list[ExchangeClosed]:
    return [p for p in running.log.payloads(ExchangeClosed) if isinstance(p, ExchangeClosed)]


def wait_for_closed(running: Running) -> ExchangeClosed:
    """The end of an exchange that nobody waits for any more."""
    for _ in range(1000):
        if found := closed(running):
            return found[0]
        time.sleep(0.01)
    raise AssertionError("the exchange was not closed")


def check_capture(running: Running, completion_id: str, text: str) -> None:
    (before,), (after,) = opened(running), closed(running)
    assert before.completion_id == after.completion_id == completion_id
    assert (before.principal, before.policy, before.endpoint) == ("ann", 0, "chat")
    assert before.request["messages"] == [{"role": "user", "content": text}]
    assert (after.status, after.untrainable, after.prompt_token_ids) == ("complete", None, PROMPT_IDS)
    assert after.sampling["temperature"] == 1.0 and after.sampling["logprobs_mode"] == "raw_logprobs"
    assert after.usage["completion_tokens"] == len(words(text))
    (choice,) = after.choices
    assert choice.message is not None and choice.message.content == text
    assert choice.token_ids == [token_id(w) for w in words(text)]
    assert choice.logprobs == [logprob(w) for w in words(text)]
    assert choice.finish_reason == "stop"


def test_the_official_client_gets_an_answer_that_is_captured(running: Running) -> None:
    raw = running.openai().chat.completions.with_raw_response.create(
        model="apprentice", messages=[{"role": "user", "content": "one two three"}]
    )
    assert raw.headers["x-policy"] == "apprentice@000000"
    assert raw.headers["x-captured"] == "true"
    completion = raw.parse()
    assert completion.choices[0].message.content == "one two three"
    assert completion.model == "apprentice"
    check_capture(running, completion.id, "one two three")
    assert running.log.batches == [[ExchangeOpened.type, ExchangeClosed.type]], "one append, so one flush"


def test_the_official_client_streams_an_answer_that_is_captured(running: Running) -> None:
    with running.openai().chat.completions.create(
        model="apprentice",
        messages=[{"role": "user", "content": "one two three"}],
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        assert stream.response.headers["x-captured"] == "true"
        chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "one two three"
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 3
    assert len({c.id for c in chunks}) == 1
    check_capture(running, chunks[0].id, "one two three")


@pytest.mark.parametrize("stream", [False, True])
def test_tool_calls_reach_the_client_and_the_record(running: Running, stream: bool) -> None:
    tools: Any = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    asked: Any = {
        "model": "apprentice", "messages": [{"role": "user", "content": "/tool"}], "tools": tools,
        "tool_choice": "auto",
    }  # fmt: skip
    if stream:
        with running.openai().chat.completions.stream(**asked) as live:
            completion = live.get_final_completion()
    else:
        completion = running.openai().chat.completions.create(**asked)
    calls = completion.choices[0].message.tool_calls
    assert calls and (calls[0].function.name, calls[0].function.arguments) == ("f", '{"a":1}')
    (record,) = closed(running)
    assert record.choices[0].message is not None
    said = record.choices[0].message.model_dump()
    assert said["content"] is None
    assert said["tool_calls"] == [
        {"id": "call-1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    ]
    assert running.vllm.requests[0]["tools"] == tools


@pytest.mark.parametrize("stream", [False, True])
def test_text_completions_are_captured_too(running: Running, stream: bool) -> None:
    client = running.openai()
    if stream:
        chunks = list(client.completions.create(model="apprentice", prompt="a b", stream=True))
        text, completion_id = "".join(c.choices[0].text for c in chunks), chunks[0].id
    else:
        whole = client.completions.create(model="apprentice", prompt="a b")
        text, completion_id = whole.choices[0].text, whole.id
    assert text == "a b"
    assert completion_id.startswith("cmpl-")
    (record,) = closed(running)
    assert record.completion_id == completion_id
    assert (record.choices[0].text, record.choices[0].message) == ("a b", None)
    assert record.choices[0].token_ids == [token_id("a"), token_id(" b")]
    assert record.prompt_token_ids == PROMPT_IDS
    assert opened(running)[0].request["prompt"] == "a b"


def test_several_choices_are_all_captured(running: Running) -> None:
    reply = running.client().post("/v1/chat/completions", json=body("x y", n=3)).json()
    assert [c["index"] for c in reply["choices"]] == [0, 1, 2]
    assert [len(c.token_ids) for c in closed(running)[0].choices] == [2, 2, 2]


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_client_did_not_ask_for_never_reaches_it(running: Running, stream: bool) -> None:
    text = running.client().post("/v1/chat/completions", json=body("x y", stream=stream)).text
    for private in ("token_ids", '"logprob"', "vllm-id", "apprentice@", "kv_transfer_params", 'usage":null'):
        assert private not in text
    assert ("usage" in text) is not stream


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_client_asked_for_reaches_it(running: Running, stream: bool) -> None:
    asked = body("x y", stream=stream, logprobs=True, top_logprobs=2, return_token_ids=True)
    text = running.client().post("/v1/chat/completions", json=asked).text
    assert "prompt_token_ids" in text and str(token_id("x")) in text and '"logprob"' in text
    assert running.vllm.requests[0]["top_logprobs"] == 2


def test_without_store_nothing_is_captured(running: Running) -> None:
    for stream in (False, True):
        response = running.client().post("/v1/chat/completions", json=body("x", store=False, stream=stream))
        assert response.status_code == 200
        assert "x-captured" not in response.headers
        assert response.headers["x-policy"] == "apprentice@000000"
    assert running.log.batches == []
    completion_id = running.client().post("/v1/chat/completions", json=body("x", store=False)).json()["id"]
    feedback = {"completion_id": completion_id, "kind": "correction", "text": "y"}
    assert running.client().post("/v1/feedback", json=feedback).status_code == 404


def test_the_opening_is_durable_before_the_headers_and_the_end_before_done(running: Running) -> None:
    with running.client().stream(
        "POST", "/v1/chat/completions", json=body("/slow a b", stream=True)
    ) as reply:
        assert reply.headers["x-captured"] == "true"
        assert [o.request["messages"][0]["content"] for o in opened(running)] == ["/slow a b"]
        assert closed(running) == []
        running.run(release(running))
        for line in reply.iter_lines():
            if line == "data: [DONE]":
                assert closed(running)[0].status == "complete"
                break
        else:
            raise AssertionError("the stream had no end")


async def release(running: Running) -> None:
    running.vllm.release.set()


def test_a_stream_whose_end_cannot_be_recorded_ends_with_an_error(running: Running) -> None:
    running.log.failing[ExchangeClosed.type] = FULL
    found = events(running.client().post("/v1/chat/completions", json=body("x y", stream=True)))
    assert found[-1]["error"]["code"] == "log_full"
    assert "[DONE]" not in found
    with pytest.raises(openai.APIError, match="disk is full"):
        list(
            running.openai().chat.completions.create(
                model="apprentice", messages=[{"role": "user", "content": "x"}], stream=True
            )
        )


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_log_refuses_what_must_be_captured_and_nothing_else(running: Running, stream: bool) -> None:
    running.log.failing[ExchangeOpened.type] = FULL
    client = running.client()
    refused = client.post("/v1/chat/completions", json=body("x", stream=stream))
    assert refused.status_code == 503
    assert "retry-after" in refused.headers
    assert refused.json()["error"]["code"] == "log_full"
    assert refused.json()["error"]["hint"] == "free some space; meanwhile ask with store: false"
    assert client.post("/v1/chat/completions", json=body("x", stream=stream, store=False)).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_where_it_may_it_answers_without_a_record_and_says_so(tmp_path: Path, stream: bool) -> None:
    running = Running(tmp_path, StubPolicies, serve_uncaptured=True)
    running.log.failing[ExchangeOpened.type] = FULL
    client = running.client()
    served = client.post("/v1/chat/completions", json=body("x", stream=stream))
    id_ = events(served)[0]["id"] if stream else served.json()["id"]
    taught = client.post("/v1/feedback", json={"completion_id": id_, "kind": "correction", "text": "y"})
    counted = client.get("/metrics").text
    running.log.failing.clear()
    again = client.post("/v1/chat/completions", json=body("x", stream=stream))
    kept = len(opened(running)), len(closed(running))
    running.stop()
    assert (served.status_code, served.headers["x-captured"]) == (200, "false")
    assert taught.status_code == 404, "what nobody keeps is no receipt"
    assert 'apprentice_uncaptured_total{reason="log_full"} 1.0' in counted
    assert "apprentice_log_writable 0.0" in counted
    assert again.headers["x-captured"] == "true"
    assert kept == (1, 1), "no end without a beginning"


@pytest.mark.parametrize("what", ["/v1/chat/completions/{id}", "/v1/principals/ann"])
@pytest.mark.parametrize("leaves", [False, True])
def test_what_is_erased_while_it_is_answered_does_not_stay_in_the_log(
    running: Running, what: str, leaves: bool
) -> None:
    asked = body("/slow secret word", stream=True)
    with running.client().stream("POST", "/v1/chat/completions", json=asked) as reply:
        lines = reply.iter_lines()
        said = next(line for line in lines if "secret" in line)
        id_ = json.loads(said.removeprefix("data: "))["id"]
        running.client("root-key").delete(what.format(id=id_)).raise_for_status()
        if not leaves:
            running.run(release(running))
            assert [*lines][-2] == "data: [DONE]"
    for _ in range(300):
        if [types.count(ExchangeClosed.type) for types in running.log.batches[-2:]] == [1, 1]:
            break
        time.sleep(0.01)
    assert running.log.batches[-2:] == [[ExchangeClosed.type]] * 2, "its end, and the tombstone of that"
    assert not [r for r in running.log.read({})[0] if r.data is not None and b"secret" in r.data]
    assert running.client("root-key").get("/v1/principals/ann").json()["exchanges"] == 0


def test_a_client_that_leaves_stops_the_engine_and_what_came_is_captured(running: Running) -> None:
    with running.client().stream(
        "POST", "/v1/chat/completions", json=body("/slow a b", stream=True)
    ) as reply:
        for line in reply.iter_lines():
            if " a" in line:
                break
    record = wait_for_closed(running)
    assert record.status == "aborted"
    assert record.choices[0].token_ids == [token_id("/slow"), token_id(" a")]
    running.run(wait(running))
    assert set(running.policies.leases.values()) == {0}


async def wait(running: Running) -> None:
    await running.vllm.aborted.wait()


def test_a_client_that_leaves_before_the_headers_leaves_no_exchange_without_an_end(running: Running) -> None:
    running.log.holding[ExchangeOpened.type] = Future()
    with pytest.raises(httpx.ReadTimeout):
        running.client().post("/v1/chat/completions", json=body("/slow a b", stream=True), timeout=0.5)
    assert wait_for_closed(running).status == "aborted"
    registry = running.gateway.metrics.registry
    wait_for(lambda: registry.get_sample_value("apprentice_captures_total", {"status": "aborted"}) == 1.0)
    running.log.holding[ExchangeOpened.type].set_result(None)


def test_a_client_that_leaves_before_a_whole_reply_stops_the_engine(running: Running) -> None:
    with pytest.raises(httpx.ReadTimeout):
        running.client().post("/v1/chat/completions", json=body("/slow a b"), timeout=0.5)
    running.run(wait(running))
    assert opened(running) == []


@pytest.mark.parametrize(
    ("text", "code"), [("/break a b c", "engine_unavailable"), ("/error a b", "engine_refused")]
)
def test_an_engine_that_fails_in_a_stream_ends_it_with_an_error(
    running: Running, text: str, code: str
) -> None:
    found = events(running.client().post("/v1/chat/completions", json=body(text, stream=True)))
    assert found[-1]["error"]["code"] == code
    record = wait_for_closed(running)
    assert record.status == "failed"
    assert record.error
    assert len(record.choices[0].token_ids) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_error_is_told_cleanly(running: Running, stream: bool) -> None:
    refused = running.client().post("/v1/chat/completions", json=body("/fail", stream=stream))
    assert refused.status_code == 502
    assert refused.json()["error"]["code"] == "engine_refused"
    refused = running.client().post("/v1/chat/completions", json=body("/long", stream=stream))
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "input_tokens")
    assert "x-captured" not in refused.headers
    assert set(running.policies.leases.values()) == {0}


def test_while_the_engine_is_away_clients_are_told_when_to_come_back(running: Running) -> None:
    running.run(running.engine.stop())
    refused = running.client().post("/v1/chat/completions", json=body("x"))
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["code"] == "engine_unavailable"
    assert running.log.batches == []


def test_the_alias_and_pins_name_policies(running: Running) -> None:
    running.stop_following()
    running.policies.resident |= {1, 2}
    running.gateway.live = 2
    for name, version in (
        ("apprentice", 2), ("apprentice@base", 0), ("apprentice@000001", 1), ("apprentice@000000", 0),
    ):  # fmt: skip
        reply = running.client().post("/v1/chat/completions", json={**body("x"), "model": name})
        assert reply.headers["x-policy"] == f"apprentice@{version:06d}"
        assert reply.json()["model"] == name
        assert running.vllm.requests[-1]["model"] == f"apprentice@{version:06d}"
        assert opened(running)[-1].policy == version


def test_an_unknown_model_never_reaches_the_engine(running: Running) -> None:
    for name in ("gpt-4", "apprentice@000007", "../etc"):
        refused = running.client().post("/v1/chat/completions", json={**body("x"), "model": name})
        assert refused.status_code == 404
        assert refused.json()["error"]["code"] == "model_not_found"
        assert "apprentice@base" in refused.json()["error"]["hint"]
    assert not running.vllm.requests


def test_a_lease_is_held_until_the_last_byte(running: Running) -> None:
    with running.client().stream(
        "POST", "/v1/chat/completions", json=body("/slow a b", stream=True)
    ) as reply:
        assert running.policies.leases == {0: 1}
        running.run(release(running))
        reply.read()
    for _ in range(1000):
        if running.policies.leases == {0: 0}:
            return
        time.sleep(0.01)
    raise AssertionError("the lease was not given back")
