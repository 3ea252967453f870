"""One real vLLM, which all these tests share."""

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from buffer.records import Release
from server.config import EngineConfig
from server.engine.engine import Engine
from server.engine.zero import write_zero
from server.policies import Policies

T = TypeVar("T")


class Background:
    """An event loop on a thread of its own, so that what lives there goes on between and during tests."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float = 300) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout_s)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@pytest.fixture(scope="session")
def background() -> Iterator[Background]:
    background = Background()
    yield background
    background.close()


@dataclass(frozen=True)
class Served:
    """A real vLLM on the model, with the zero adapter loaded. Its calls run by `run`."""

    engine: Engine
    policies: Policies
    adapters: Path
    zero: Release
    background: Background

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.background.run(work)


@pytest.fixture(scope="session")
def engine(
    model_dir: Path, tmp_path_factory: pytest.TempPathFactory, background: Background
) -> Iterator[Served]:
    """ONE real vLLM for the whole session (about half a minute to start). Users are marked e2e."""
    state = tmp_path_factory.mktemp("served")
    adapters = state / "adapters"
    zero = write_zero(adapters, model_dir, alias="apprentice", base="b" * 64)

    async def begin() -> Served:
        engine = Engine(
            EngineConfig(max_model_len=1024), model=model_dir, alias="apprentice", state_dir=state
        )
        policies = Policies(engine, alias="apprentice", adapters=adapters, zero=zero, max_rank=16)
        engine.on_ready = policies.reload
        await engine.start()
        try:
            await engine.wait_ready(240)
        except BaseException:
            await engine.stop()
            raise
        return Served(engine, policies, adapters, zero, background)

    served = background.run(begin())
    yield served
    served.run(served.engine.stop())
