"""The gateway in front of real vLLM: what the scripted one only claims about it."""

import ast
import asyncio
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from buffer.client import Buffer
from buffer.memory import MemoryLog
from buffer.records import ExchangeClosed
from buffer.view import View
from learner.lessons import as_rendered, template_kwargs
from server.api.fields import forwarded
from server.config import ServerConfig
from server.gateway import Gateway
from server.identity import Endpoint, Receipts
from server.metrics import Metrics
from server.news import News
from tests.e2e.conftest import Served
from tests.server.running import events, hang_up, serve

pytestmark = pytest.mark.e2e

ASKED: Any = {
    "model": "apprentice", "messages": [{"role": "user", "content": "Name three colours."}],
    "temperature": 0.0, "max_tokens": 12,
}  # fmt: skip


@pytest.fixture(scope="module")
def gateway(engine: Served) -> Iterator[tuple[Gateway, str]]:
    """A gateway on the session's vLLM, and its URL."""

    async def start() -> tuple[Any, ...]:
        news = News()
        news.listen()
        buffer = Buffer(MemoryLog(), View(":memory:"), news.tell)
        gateway = Gateway(
            alias="apprentice", config=ServerConfig(port=0), engine=engine.engine, policies=engine.policies,
            buffer=buffer, receipts=Receipts(bytes(32)), metrics=Metrics(buffer), news=news, live=0,
            behind=None,
        )  # fmt: skip
        await asyncio.to_thread(buffer.start)
        return gateway, *await serve(gateway)

    async def stop() -> None:
        hang_up(server)
        await asyncio.to_thread(made.buffer.close)

    made, server, url = engine.run(start())
    yield made, url
    engine.run(stop())


@pytest.fixture
def client(gateway: tuple[Gateway, str]) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway[1]}/v1", api_key="none", max_retries=0) as made:
        yield made


def recorded(gateway: tuple[Gateway, str], completion_id: str) -> ExchangeClosed:
    """The end of an exchange, which may come a moment after its client has left."""
    for _ in range(1000):
        found = gateway[0].buffer.view.exchange(completion_id)
        if found is not None and found.closed is not None:
            return found.closed
        time.sleep(0.01)
    raise AssertionError("the exchange was not closed")


def test_a_stream_and_a_whole_reply_leave_the_same_record(
    gateway: tuple[Gateway, str], client: openai.OpenAI
) -> None:
    whole = client.chat.completions.create(**ASKED)
    chunks = list(client.chat.completions.create(**ASKED, stream=True))
    said = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert said == whole.choices[0].message.content
    one, two = recorded(gateway, whole.id), recorded(gateway, chunks[0].id)
    assert one.untrainable is None
    assert one.prompt_token_ids and one.prompt_token_ids == two.prompt_token_ids
    assert one.choices[0].token_ids == two.choices[0].token_ids
    assert one.choices[0].message == two.choices[0].message
    assert one.choices[0].finish_reason == two.choices[0].finish_reason
    assert len(one.choices[0].logprobs) == len(one.choices[0].token_ids) == one.usage["completion_tokens"]
    assert one.choices[0].logprobs == pytest.approx(two.choices[0].logprobs, abs=0.05)


def test_recorded_log_probabilities_are_those_of_the_policy(
    engine: Served, gateway: tuple[Gateway, str], client: openai.OpenAI
) -> None:
    """At T=1 and untruncated, whatever the sampling was: the learner compares them with its own."""
    record = recorded(gateway, client.chat.completions.create(**{**ASKED, "temperature": 0.5}).id)
    choice = record.choices[0]
    ids = [*record.prompt_token_ids, *choice.token_ids]
    scored = engine.run(engine.engine.score("apprentice@000000", ids))
    assert choice.logprobs == pytest.approx(scored[len(record.prompt_token_ids) - 1 :], abs=0.1)


def test_text_completions_leave_a_record_for_each_choice(
    gateway: tuple[Gateway, str], client: openai.OpenAI
) -> None:
    made: Any = {"model": "apprentice@base", "prompt": "The sky is", "max_tokens": 4, "n": 2}
    whole = client.completions.create(**made)
    chunks = list(client.completions.create(**made, stream=True))
    for completion_id in (whole.id, chunks[0].id):
        record = recorded(gateway, completion_id)
        assert record.untrainable is None
        assert record.prompt_token_ids
        assert [len(c.token_ids) == len(c.logprobs) > 0 for c in record.choices] == [True, True]


def test_a_client_that_leaves_is_recorded_as_far_as_it_got(gateway: tuple[Gateway, str]) -> None:
    body = {**ASKED, "stream": True, "max_tokens": 500, "ignore_eos": True}
    url = f"{gateway[1]}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, timeout=60) as reply:
        assert reply.headers["x-captured"] == "true"
        lines = (line for line in reply.iter_lines() if line)
        first = next(lines)
        for _ in range(3):
            next(lines)
    record = recorded(gateway, first.split('"id":"')[1].split('"')[0])
    assert record.status == "aborted"
    assert record.untrainable is None
    assert 0 < len(record.choices[0].token_ids) == len(record.choices[0].logprobs) < 500


def test_what_vllm_finds_wrong_is_the_clients_to_correct(gateway: tuple[Gateway, str]) -> None:
    for more, status in (
        ({"max_tokens": 100_000}, 400),
        ({"temperature": -1}, 400),
        ({"messages": [{"role": "user", "content": "word " * 3000}]}, 400),
        ({"response_format": {"type": "json_schema"}}, 400),
    ):
        refused = httpx.post(f"{gateway[1]}/v1/chat/completions", json={**ASKED, **more}, timeout=60)
        assert refused.status_code == status
        assert refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("endpoint", "folder", "name"),
    [
        ("chat", "chat_completion", "ChatCompletionRequest"),
        ("completions", "completion", "CompletionRequest"),
    ],
)
def test_every_forwarded_field_is_one_that_vllm_knows(endpoint: Endpoint, folder: str, name: str) -> None:
    """vLLM ignores what it does not know, so such a field would silently do nothing."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None and spec.origin is not None
    source = (Path(spec.origin).parent / "entrypoints" / "openai" / folder / "protocol.py").read_text()
    (found,) = [c for c in ast.parse(source).body if isinstance(c, ast.ClassDef) and c.name == name]
    known = {
        s.target.id for s in found.body if isinstance(s, ast.AnnAssign) and isinstance(s.target, ast.Name)
    }
    assert forwarded(endpoint) - known == set()


def test_the_learner_gives_the_chat_template_what_vllm_gives_it() -> None:
    """In the same order, too: templates print objects as they come."""
    call = {"name": "weather", "arguments": '{"city": "Ostwick", "days": 2}'}
    spoilt = {"name": "clock", "arguments": "[1"}
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Will it rain?", "name": "ann"},
        {
            "content": None,
            "tool_calls": [{"type": "function", "id": "1", "function": call}],
            "role": "assistant",
        },
        {"role": "tool", "content": "yes", "tool_call_id": "1"},
        {"role": "assistant", "content": "Yes.", "tool_calls": [], "refusal": None},
        {"role": "assistant", "tool_calls": [{"id": "2", "type": "function", "function": spoilt}]},
        {"role": "assistant", "content": "It will.", "reasoning": "The tool says yes."},
        {"role": "user", "content": "When?"},
    ]
    tools = [
        {"type": "function", "function": {"description": "d", "strict": True, "name": "weather", "more": 1}},
        {
            "type": "function",
            "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}},
        },
    ]
    requests: list[dict[str, Any]] = [{}, {"reasoning_effort": "low"}, {"reasoning_effort": "none"}]
    program = f"""import json
from types import SimpleNamespace
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.renderers.chat_utils import parse_chat_messages
asked = [ChatCompletionRequest(messages=[], **more) for more in {requests}]
one = ChatCompletionRequest(messages={messages}, tools={tools})
text_model = SimpleNamespace(multimodal_config=None, enable_prompt_embeds=False)
print(json.dumps([
    [one.build_chat_params(None, "auto").chat_template_kwargs for one in asked],
    parse_chat_messages(one.messages, text_model, "string")[0],
    [tool.model_dump() for tool in one.tools],
]))"""
    ran = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    theirs = json.loads(ran.stdout.splitlines()[-1])
    always = {"add_generation_prompt": True, "continue_final_message": False}
    ours = [
        [always | template_kwargs(request) for request in requests],
        [as_rendered(message) for message in messages],
        template_kwargs({"tools": tools})["tools"],
    ]
    assert theirs[0] == ours[0]
    assert [json.dumps(one) for one in theirs[1:]] == [json.dumps(one) for one in ours[1:]]


def test_extra_fields_have_their_effect(gateway: tuple[Gateway, str]) -> None:
    body = {
        **ASKED, "stream": True, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "min_tokens": 2,
        "stop_token_ids": [2], "bad_words": ["zzz"], "structured_outputs": {"choice": ["red", "blue"]},
    }  # fmt: skip
    with httpx.stream("POST", f"{gateway[1]}/v1/chat/completions", json=body, timeout=60) as reply:
        found = events(reply)
    assert "".join(c["choices"][0]["delta"].get("content") or "" for c in found[:-1]) in ("red", "blue")
