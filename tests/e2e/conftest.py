"""One real vLLM, which all these tests share."""

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
from tests.background import Background

T = TypeVar("T")


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
