"""Feedback over HTTP, end to end: a gateway in a process of its own on a journal of its own, and its callers.

No vLLM is needed: a correction is checked, recorded and answered without one. The callers send one request
after the other over connections that stay open; each correction is about one of `EXCHANGES` recorded answers.
"""

import asyncio
import contextlib
import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path

import aiohttp

from buffer.bench import Timing
from buffer.client import Buffer
from buffer.journal import Journal
from buffer.records import Choice, ExchangeClosed, ExchangeOpened, Message, Release, uuid7
from buffer.view import View
from server.__main__ import http_server, listen, url_of
from server.config import EngineConfig, ServerConfig
from server.engine.engine import Engine
from server.gateway import Gateway
from server.identity import LOCAL, SECRET_BYTES, Receipts, conversation_of
from server.metrics import Metrics
from server.news import News
from server.policies import Policies

EXCHANGES = 100
ANSWER_TOKENS = 200
SECRET = bytes(SECRET_BYTES)
START_S = 60.0


class Refused(Exception):
    """The gateway did not start, or did not accept feedback."""


@contextlib.contextmanager
def gateway(directory: Path) -> Iterator[tuple[str, list[str]]]:
    """A running gateway's URL, and the ids of completions that feedback may be about. Raises `Refused`."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_run, args=(directory, there), daemon=True)
    process.start()
    try:
        if not here.poll(START_S):
            raise Refused(f"the benchmark's gateway did not start in {START_S:.0f} s")
        yield here.recv()
    except EOFError:
        raise Refused("the benchmark's gateway ended; its error stands above") from None
    finally:
        process.terminate()
        process.join()


async def load(url: str, completions: list[str], *, count: int, callers: int, array: int) -> Timing:
    """Send that many corrections, each with a text of its own, `array` of them in a request and `callers`
    requests at a time. Raises `Refused`."""
    starts = iter(range(0, count, array))
    calls: list[float] = []
    headers = {"content-type": "application/json"}
    connector = aiohttp.TCPConnector(limit=callers)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

        def correction(number: int) -> dict[str, str]:
            return {
                "kind": "correction",
                "completion_id": completions[number % len(completions)],
                "text": f"No, it is called Bramblewick {number}, and has been for a hundred years.",
            }

        async def caller() -> None:
            for start in starts:
                some = [correction(number) for number in range(start, min(start + array, count))]
                body = some if array > 1 else some[0]
                at = time.perf_counter()
                async with session.post(f"{url}/v1/feedback", data=json.dumps(body).encode()) as reply:
                    if reply.status != 202:
                        raise Refused(f"the gateway answered {reply.status}: {await reply.text()}")
                    await reply.read()
                calls.append(time.perf_counter() - at)

        began = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(callers):
                tasks.create_task(caller())
        return Timing.of(count, time.perf_counter() - began, calls)


def _run(directory: Path, parent: Connection) -> None:
    asyncio.run(_serve(directory, parent))


async def _serve(directory: Path, parent: Connection) -> None:
    """A gateway as `apprentice serve` makes it, but for the engine, which is never started."""
    news, receipts = News(), Receipts(SECRET)
    news.listen()
    buffer = Buffer(Journal(directory / "journal.db"), View(directory / "server" / "view.db"), news.tell)
    completions = [await asyncio.to_thread(_record_exchange, buffer, receipts) for _ in range(EXCHANGES)]
    await asyncio.to_thread(buffer.start)
    engine = Engine(EngineConfig(), model=directory, alias="apprentice", state_dir=directory)
    nothing = Release(version=0, digest="", directory="")
    gateway = Gateway(
        alias="apprentice", config=ServerConfig(port=0), engine=engine, buffer=buffer, receipts=receipts,
        policies=Policies(engine, alias="apprentice", adapters=directory, zero=nothing, max_rank=16),
        metrics=Metrics(buffer), news=news, behind=None,
    )  # fmt: skip
    listening = listen("127.0.0.1", 0)
    serving = asyncio.create_task(http_server(gateway).serve(sockets=[listening]))
    parent.send((url_of(listening), completions))
    await serving
    await asyncio.to_thread(buffer.close)


def _record_exchange(buffer: Buffer, receipts: Receipts) -> str:
    """Record a short question and an answer of `ANSWER_TOKENS`; its completion id."""
    question = f"What is harbour {os.urandom(4).hex()} called?"
    request = {"model": "apprentice", "messages": [{"role": "user", "content": question}]}
    conversation = conversation_of(LOCAL.name, request)
    id_ = receipts.mint("chat", uuid7(datetime.now(UTC), os.urandom(8)), LOCAL.name, conversation)
    opened = ExchangeOpened(
        completion_id=id_, principal=LOCAL.name, conversation=conversation, endpoint="chat", policy=0,
        request=request,
    )  # fmt: skip
    answer = Choice(
        message=Message(role="assistant", content="It is called Harbour. " * (ANSWER_TOKENS // 5)),
        token_ids=list(range(ANSWER_TOKENS)),
        logprobs=[-0.5] * ANSWER_TOKENS,
    )
    closed = ExchangeClosed(
        completion_id=id_, status="complete", prompt_token_ids=list(range(40)), choices=[answer]
    )
    buffer.write([opened, closed], conversation).result()
    return id_
