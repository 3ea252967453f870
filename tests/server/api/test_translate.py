from typing import Any

import pytest

from server.api.reply import reply, worth_sending
from server.api.translate import check, resolve
from server.errors import RequestRefused

ASKED = [{"role": "user", "content": "hi"}]


def chat(**more: Any) -> dict[str, Any]:
    return {"model": "apprentice", "messages": ASKED, **more}


def prompt(**more: Any) -> dict[str, Any]:
    return {"model": "apprentice", "prompt": "hi", **more}


def test_sampling_is_explicit_and_recorded() -> None:
    call = check("chat", chat(temperature=0.2, stop=["x"]), max_n=4)
    assert call.upstream["temperature"] == 0.2
    assert call.upstream["top_p"] == 1.0
    assert call.sampling == {
        "temperature": 0.2, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "presence_penalty": 0.0,
        "frequency_penalty": 0.0, "repetition_penalty": 1.0, "n": 1, "stop": ["x"],
    }  # fmt: skip


def test_what_the_record_needs_is_asked_for() -> None:
    upstream = check("chat", chat(), max_n=4).upstream
    assert upstream["return_token_ids"] is True
    assert (upstream["logprobs"], upstream["top_logprobs"]) == (True, 0)
    upstream = check("chat", chat(logprobs=True, top_logprobs=3), max_n=4).upstream
    assert (upstream["logprobs"], upstream["top_logprobs"]) == (True, 3)
    assert check("completions", prompt(), max_n=4).upstream["logprobs"] == 0
    assert check("completions", prompt(logprobs=2), max_n=4).upstream["logprobs"] == 2


def test_a_stream_always_brings_its_usage() -> None:
    call = check("chat", chat(stream=True), max_n=4)
    assert call.upstream["stream_options"] == {"include_usage": True, "continuous_usage_stats": False}
    assert not call.wants_usage
    assert check("chat", chat(stream=True, stream_options={"include_usage": True}), max_n=4).wants_usage


def test_what_means_nothing_to_vllm_stays_here() -> None:
    body = chat(
        user="u", metadata={"a": "b"}, store=False, service_tier="auto", safety_identifier="s", seed=None
    )
    call = check("chat", body, max_n=4)
    assert not {"user", "metadata", "store", "service_tier", "safety_identifier", "model", "seed"} & set(
        call.upstream
    )
    assert call.request["metadata"] == {"a": "b"}
    assert not call.store


def test_text_parts_become_one_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    call = check("chat", chat(messages=[{"role": "user", "content": parts}]), max_n=4)
    assert call.request["messages"] == call.upstream["messages"] == [{"role": "user", "content": "a\nb"}]


def test_tokens_that_completions_generates_untold() -> None:
    assert check("completions", prompt(), max_n=4).sampling["max_tokens"] == 16
    assert check("completions", prompt(), max_n=4, max_tokens_default=7).sampling["max_tokens"] == 7
    assert "max_tokens" not in check("chat", chat(), max_n=4).sampling
    assert (
        "max_tokens"
        not in check("chat", chat(max_completion_tokens=3), max_n=4, max_tokens_default=7).sampling
    )


def test_one_prompt_in_a_list_is_that_prompt() -> None:
    assert check("completions", prompt(prompt=["hi"]), max_n=4).request["prompt"] == "hi"
    assert check("completions", prompt(prompt=[[1, 2]]), max_n=4).request["prompt"] == [1, 2]
    assert check("completions", prompt(prompt=["a", "b"], store=False), max_n=4).request["prompt"] == [
        "a",
        "b",
    ]


IMAGE = [{"type": "image_url", "image_url": {"url": "http://x"}}]


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ([], None, "invalid_json"),
        ({"messages": ASKED}, "model", "invalid_request"),
        (chat(model=3), "model", "invalid_request"),
        (chat(messages=[]), "messages", "invalid_request"),
        (chat(messages="hi"), "messages", "invalid_request"),
        (chat(messages=[{"content": "x"}]), "messages[0]", "invalid_request"),
        (chat(messages=[{"role": "user", "content": 3}]), "messages[0]", "invalid_request"),
        (chat(messages=[{"role": "user", "content": IMAGE}]), "messages[0]", "unsupported_content"),
        (chat(messages=[{"role": "user", "content": [{"type": "text"}]}]), "messages[0]", "invalid_request"),
        (chat(n=0), "n", "invalid_request"),
        (chat(n=5), "n", "invalid_request"),
        (chat(n=1.5), "n", "invalid_request"),
        (chat(n=True), "n", "invalid_request"),
        (chat(stream="yes"), "stream", "invalid_request"),
        (chat(store=1), "store", "invalid_request"),
        (chat(temperature="0.5"), "temperature", "invalid_request"),
        (chat(top_logprobs=2), "top_logprobs", "invalid_request"),
        (chat(logprobs=True, top_logprobs=21), "top_logprobs", "invalid_request"),
        (chat(logprobs=1), "logprobs", "invalid_request"),
        (chat(stream_options={"include_usage": True}), "stream_options", "invalid_request"),
        (chat(include_reasoning=False), "include_reasoning", "unsupported_field"),
        (chat(modalities=["text", "audio"]), "modalities", "invalid_request"),
        (chat(metadata={"a": 1}), "metadata", "invalid_request"),
        (chat(metadata={str(i): "" for i in range(17)}), "metadata", "invalid_request"),
        (chat(metadata={"a": "b" * 513}), "metadata", "invalid_request"),
        (chat(temperature=3), "temperature", "invalid_request"),
        (chat(seed=2**63), "seed", "invalid_request"),
        (chat(stop=["x", 3]), "stop", "invalid_request"),
        (chat(tools={}), "tools", "invalid_request"),
        (chat(tool_choice="perhaps"), "tool_choice", "invalid_request"),
        (chat(top_p=float("inf")), "top_p", "invalid_request"),
        (chat(chat_template="{{x}}"), "chat_template", "unsupported_field"),
        (chat(chat_template_kwargs={}), "chat_template_kwargs", "unsupported_field"),
        (chat(priority=1), "priority", "unsupported_field"),
        (chat(kv_transfer_params={}), "kv_transfer_params", "unsupported_field"),
        (chat(prompt_logprobs=1), "prompt_logprobs", "unsupported_field"),
        (chat(cache_salt="s"), "cache_salt", "unsupported_field"),
        (chat(echo=True), "echo", "unsupported_field"),
        (chat(functions=[]), "functions", "unsupported_field"),
        (chat(guided_json={}), "guided_json", "unsupported_field"),
        (chat(temprature=1), "temprature", "unknown_field"),
        (chat(prompt="hi"), "prompt", "unknown_field"),
    ],
)
def test_a_bad_request_is_refused_by_name(body: object, param: str | None, code: str) -> None:
    with pytest.raises(RequestRefused) as refused:
        check("chat", body, max_n=4)
    assert (refused.value.param, refused.value.code) == (param, code)


@pytest.mark.parametrize("given", [None, [], 3, ["a", "b"], [1, "a"], [True]])
def test_a_bad_prompt_is_refused(given: object) -> None:
    with pytest.raises(RequestRefused):
        check("completions", prompt(prompt=given), max_n=4)


@pytest.mark.parametrize(
    ("name", "version"),
    [("apprentice", 3), ("apprentice@base", 0), ("apprentice@000002", 2), ("apprentice@000000", 0)],
)
def test_a_model_name_stands_for_a_version(name: str, version: int) -> None:
    assert resolve(name, alias="apprentice", live=3, resident=[0, 2, 3]) == version


@pytest.mark.parametrize(
    "name",
    ["gpt-4", "apprentice@2", "apprentice@000009", "apprentice@", "000002", "apprentice@000002\n", "../x"],
)
def test_unknown_names_never_get_through(name: str) -> None:
    with pytest.raises(RequestRefused) as refused:
        resolve(name, alias="apprentice", live=3, resident=[0, 2, 3])
    assert refused.value.status == 404
    assert "apprentice@000003" in refused.value.hint


ANSWER = {
    "id": "vllm", "model": "apprentice@000003", "prompt_token_ids": [1], "kv_transfer_params": None,
    "choices": [{
        "index": 0, "token_ids": [5], "logprobs": {"content": []}, "finish_reason": "stop",
        "message": {"role": "assistant", "content": "x", "tool_calls": [], "audio": None},
    }],
}  # fmt: skip


def test_a_reply_hides_what_was_not_asked_for() -> None:
    shown = reply(check("chat", chat(), max_n=4), ANSWER, "ours")
    assert shown == {
        "id": "ours",
        "model": "apprentice",
        "choices": [{
            "index": 0, "logprobs": None, "finish_reason": "stop",
            "message": {"role": "assistant", "content": "x"},
        }],
    }  # fmt: skip


def test_a_reply_shows_what_was_asked_for() -> None:
    shown = reply(check("chat", chat(return_token_ids=True, logprobs=True), max_n=4), ANSWER, "ours")
    assert shown["prompt_token_ids"] == [1]
    assert shown["choices"][0]["token_ids"] == [5]
    assert shown["choices"][0]["logprobs"] == {"content": []}


def test_chunks_for_the_record_alone_are_not_sent() -> None:
    call = check("chat", chat(stream=True), max_n=4)
    silent = {"choices": [{"index": 0, "delta": {}, "token_ids": [5], "finish_reason": None}]}
    assert not worth_sending(call, reply(call, silent, "ours"))
    assert not worth_sending(call, reply(call, {"choices": [], "usage": {}}, "ours"))
    said = {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]}
    assert worth_sending(call, reply(call, said, "ours"))
