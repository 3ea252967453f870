"""What clients do and what they were promised: chats and feedback, and every acknowledgement noted.

Each prompt and each text is unique, so that what is found in the log can be told apart. A chat without a
reply is not sent again; feedback is, under its Idempotency-Key, until it is acknowledged.
"""

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import aiohttp

PAUSE_S = 0.05
"""Before a client calls again where nothing answers."""


@dataclass
class Ledger:
    """Promises by completion id or feedback id. A record counts once it is durable by the contract."""

    asked: set[str] = field(default_factory=set)
    """Every prompt that was ever sent."""
    opened: dict[str, str] = field(default_factory=dict)
    """Completion id to its prompt: the prompt's record is durable."""
    closed: set[str] = field(default_factory=set)
    """Completion ids whose answer's record is durable."""
    given: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Feedback id to completion id and text."""
    failures: Counter[str] = field(default_factory=Counter)
    """Calls that got no acknowledgement, by reason."""
    calls: int = 0

    @property
    def records(self) -> int:
        return len(self.opened) + len(self.closed) + len(self.given)


class Clients:
    """Calls one gateway. Raises nothing: what fails is noted."""

    def __init__(self, url: str, session: aiohttp.ClientSession, ledger: Ledger) -> None:
        self._url, self._session, self.ledger = url, session, ledger
        self._numbers = itertools.count()

    async def run(self, workers: int, enough: Callable[[], bool]) -> None:
        """At full speed, until there is enough."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(workers):
                tasks.create_task(self._work(enough))

    async def run_at(self, rate: float, seconds: float) -> None:
        """So many exchanges per second, each with feedback on it, whether earlier ones have ended or not."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with asyncio.TaskGroup() as tasks:
            for turn in range(round(rate * seconds)):
                await asyncio.sleep(began + turn / rate - loop.time())
                tasks.create_task(self._exchange())

    async def _work(self, enough: Callable[[], bool]) -> None:
        while not enough():
            await self._exchange()

    async def _exchange(self) -> None:
        number = next(self._numbers)
        chat = self._streamed if number % 2 else self._whole
        completion_id = await self._noted(chat(f"prompt {number}"))
        if completion_id is None:
            await asyncio.sleep(PAUSE_S)
            return
        while await self._noted(self._correct(completion_id, f"text {number}")) is None:  # noqa: ASYNC110
            await asyncio.sleep(PAUSE_S)

    async def _noted(self, call: Coroutine[Any, Any, str]) -> str | None:
        """What a call gave; None, and the reason in the ledger, when it was not acknowledged."""
        self.ledger.calls += 1
        try:
            return await call
        except aiohttp.ClientResponseError as error:
            why = f"{error.status}"
        except (aiohttp.ClientError, TimeoutError) as error:
            why = type(error).__name__
        self.ledger.failures[why] += 1
        return None

    async def _whole(self, prompt: str) -> str:
        async with self._chat(prompt, stream=False) as reply:
            _captured(reply)
            completion_id = str((await reply.json())["id"])
        self.ledger.opened[completion_id] = prompt
        self.ledger.closed.add(completion_id)
        return completion_id

    async def _streamed(self, prompt: str) -> str:
        async with self._chat(prompt, stream=True) as reply:
            _captured(reply)
            async for line in reply.content:
                if line.startswith(b"data: {"):
                    event = json.loads(line.removeprefix(b"data: "))
                    if "error" in event:
                        raise aiohttp.ClientPayloadError(str(event))
                    completion_id = str(event["id"])
                    self.ledger.opened[completion_id] = prompt
                elif line.startswith(b"data: [DONE]"):
                    self.ledger.closed.add(completion_id)
                    return completion_id
        raise aiohttp.ClientPayloadError("a stream without an end")

    async def _correct(self, completion_id: str, text: str) -> str:
        body = {"completion_id": completion_id, "kind": "correction", "text": text}
        url, headers = f"{self._url}/v1/feedback", {"idempotency-key": text}
        async with self._session.post(url, json=body, headers=headers) as reply:
            reply.raise_for_status()
            feedback_id = str((await reply.json())["id"])
        self.ledger.given[feedback_id] = (completion_id, text)
        return feedback_id

    def _chat(self, prompt: str, *, stream: bool) -> "aiohttp.client._RequestContextManager":
        self.ledger.asked.add(prompt)
        messages = [{"role": "user", "content": prompt}]
        body = {"model": "apprentice", "messages": messages, "stream": stream}
        return self._session.post(f"{self._url}/v1/chat/completions", json=body)


def _captured(reply: aiohttp.ClientResponse) -> None:
    reply.raise_for_status()
    if reply.headers.get("x-captured") != "true":
        raise aiohttp.ClientPayloadError("answered, and not captured")
