"""A gateway as it runs, on a free port, in front of a scripted vLLM; on a thread, so tests are plain code."""

import asyncio
import hashlib
import json
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import httpx
import openai
import uvicorn

from buffer.client import Buffer
from buffer.log import BufferError, LogUnavailable
from buffer.memory import MemoryLog
from buffer.records import PAYLOADS, Payload, Positions, Record
from buffer.view import View
from server.api.app import create_app
from server.config import EngineConfig, ServerConfig
from server.engine.engine import Engine, Patience
from server.follow import Follower
from server.follow import Patience as Trying
from server.gateway import Gateway
from server.identity import Receipts
from server.metrics import Metrics
from server.news import News
from tests.background import Background
from tests.server.scripted_vllm import ScriptedVLLM

T = TypeVar("T")

KEYS = {"ann": "ann-key", "ben": "ben-key", "root": "root-key"}


class GatedLog(MemoryLog):
    """A log whose appending and reading can be made to fail."""

    def __init__(self) -> None:
        super().__init__()
        self.failing: dict[str, BufferError] = {}
        """Record type to the error that appending one gives."""
        self.holding: dict[str, Future[None]] = {}
        """Record type to what appending one waits for; nothing is kept of it."""
        self.unreadable = False
        self.silent = False
        """Nothing that is appended comes back."""
        self.batches: list[list[str]] = []
        """The types of each append's records."""

    def append(self, records: Sequence[Record]) -> "Future[None]":
        for record in records:
            if (error := self.failing.get(record.type)) is not None:
                refused: Future[None] = Future()
                refused.set_exception(error)
                return refused
            if (held := self.holding.get(record.type)) is not None:
                return held
        self.batches.append([record.type for record in records])
        return super().append(records)

    def read(
        self, positions: Positions, *, limit: int = 500, wait_s: float = 0.0
    ) -> tuple[list[Record], Positions]:
        """With short waits, so that a follower ends soon."""
        found, after = super().read(positions, limit=limit, wait_s=min(wait_s, 0.02))
        return ([], positions) if self.silent else (found, after)

    def ends(self) -> Positions:
        if self.unreadable:
            raise LogUnavailable("the broker is away")
        return super().ends()

    def payloads(self, *types: type[Payload]) -> list[Payload]:
        """What it holds, of these types."""
        positions: Positions = {}
        found: list[Record] = []
        while True:
            batch, positions = self.read(positions)
            if not batch:
                break
            found += batch
        return [r.payload() for r in found if r.data is not None and PAYLOADS[r.type] in types]


class Running:
    """Everything started; `stop` ends it. `vllm`, `log` and `gateway` are there to look at."""

    def __init__(self, directory: Path, policies: Any, **config: Any) -> None:
        self._background = Background()
        self._directory = directory
        self._clients: list[httpx.Client | openai.OpenAI] = []
        self.log = GatedLog()
        self.run(self._start(policies, ServerConfig(port=0, **config)))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the gateway's loop."""
        return self._background.run(work, 120)

    def start(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """Start a coroutine on the gateway's loop."""
        return self._background.start(work)

    def client(self, key: str = "ann-key", **more: Any) -> httpx.Client:
        headers = {"authorization": f"Bearer {key}"}
        made = httpx.Client(base_url=self.url, headers=headers, timeout=120, **more)
        self._clients.append(made)
        return made

    def openai(self, key: str = "ann-key") -> openai.OpenAI:
        made = openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=120)
        self._clients.append(made)
        return made

    def follow(self, patience: Trying | None = None) -> None:
        """Follow the log again."""
        self.run(self._follow(patience))

    def stop_following(self) -> None:
        """From here on the log changes nothing about what is loaded and live."""
        self.run(self._stop_following())

    def stop(self) -> None:
        for client in self._clients:
            client.close()
        self.run(self._stop())
        self._background.close()

    async def _start(self, policies: Any, config: ServerConfig) -> None:
        self.vllm = ScriptedVLLM()
        socket = self._directory / "v.sock"
        await self.vllm.start(socket)
        self.engine = Engine(
            EngineConfig(url=f"unix:{socket}"), model=self._directory, alias="apprentice",
            state_dir=self._directory, patience=Patience(poll=0.05, first_pause=0.05),
        )  # fmt: skip
        news = News()
        news.listen()
        buffer = Buffer(self.log, View(":memory:"), news.tell)
        self.policies = policies(self.engine)
        self.gateway = Gateway(
            alias="apprentice", config=config, engine=self.engine, policies=self.policies, buffer=buffer,
            receipts=Receipts(bytes(32)), metrics=Metrics(buffer), news=news,
        )  # fmt: skip
        await self.engine.start()
        await self.engine.wait_ready(20)
        await asyncio.to_thread(buffer.start)
        self.gateway.behind = None
        await self._follow()
        await self.gateway.until(lambda: self.gateway.live is not None)
        self._server, self.url = await serve(self.gateway)

    async def _stop(self) -> None:
        hang_up(self._server)
        await self._stop_following()
        await asyncio.gather(self._stop_engine(), asyncio.to_thread(self.gateway.buffer.close))

    async def _stop_engine(self) -> None:
        await self.engine.stop()
        await self.vllm.stop()

    async def _follow(self, patience: Trying | None = None) -> None:
        self._following = asyncio.create_task(Follower(self.gateway, patience).run())

    async def _stop_following(self) -> None:
        self._following.cancel()
        await asyncio.gather(self._following, return_exceptions=True)


async def serve(gateway: Gateway) -> tuple[uvicorn.Server, str]:
    """Serve on a free port: the server and its URL. Without the loop that uvicorn spends its life in, whose
    ticks make an end take a fifth of a second: `hang_up` ends it."""
    config = uvicorn.Config(create_app(gateway), port=0, lifespan="off", log_config=None)
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    return server, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"


def hang_up(server: uvicorn.Server) -> None:
    """Listen no more and cut what is connected."""
    for listener in server.servers:
        listener.close()
    for connection in list(server.server_state.connections):
        connection.transport.abort()


def hashed(keys: dict[str, str]) -> dict[str, str]:
    return {name: hashlib.sha256(key.encode()).hexdigest() for name, key in keys.items()}


def events(response: httpx.Response) -> list[Any]:
    """A stream's events; the last one as the text it is."""
    texts = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    return [json.loads(text) if text != "[DONE]" else text for text in texts]
