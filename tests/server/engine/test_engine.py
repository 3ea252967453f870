"""The engine's circle on a process that looks like vLLM."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from server.config import EngineConfig
from server.engine.client import EngineClient
from server.engine.engine import Engine, Patience
from server.engine.leash import session_members
from server.errors import EngineLost, EngineRefused, EngineUnavailable

FAKE = str(Path(__file__).parents[1] / "fake_vllm.py")
QUICK = Patience(poll=0.05, answer=0.5, misses=2, stall=60, first_pause=0.05, longest_pause=0.2)


@asynccontextmanager
async def running(state: Path, *, patience: Patience = QUICK, **kwargs: Any) -> AsyncIterator[Engine]:
    """An engine on the fake, started but perhaps not ready."""
    engine = Engine(
        kwargs.pop("config", EngineConfig()),
        model=state,
        alias="apprentice",
        state_dir=state,
        patience=patience,
        argv=kwargs.pop("argv", lambda socket: [sys.executable, FAKE, str(socket)]),
        **kwargs,
    )
    await engine.start()
    try:
        yield engine
    finally:
        session = engine.pid
        await engine.stop()
        assert session is None or not session_members(session)


async def until(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - what is awaited lies in another process, too
            await asyncio.sleep(0.005)


async def tell(engine: Engine, what: str) -> None:
    with pytest.raises(EngineUnavailable):
        async with asyncio.timeout(10), engine.post(f"/{what}", {}):
            if what == "hang":
                raise EngineUnavailable("it answers this one")


def test_requests_are_refused_until_the_policies_are_loaded(tmp_path: Path) -> None:
    async def scenario() -> None:
        loaded, go_on = asyncio.Event(), asyncio.Event()

        async def on_ready() -> None:
            await engine.load("apprentice@000000", tmp_path / "zero")
            loaded.set()
            await go_on.wait()

        async with running(tmp_path, on_ready=on_ready) as engine:
            await loaded.wait()
            assert engine.state == "starting"
            with pytest.raises(EngineUnavailable) as caught:
                async with engine.post("/echo", {}):
                    pass
            assert caught.value.retry_after_s > 0
            go_on.set()
            await engine.wait_ready(10)
            async with engine.post("/echo", {"a": 1}) as answer:
                assert await answer.json() == {"a": 1}
            assert await engine.loaded() == {"apprentice@000000"}

    asyncio.run(scenario())


def test_a_crash_is_told_with_its_reason_and_answered_by_a_restart(tmp_path: Path) -> None:
    async def scenario() -> None:
        reasons: list[str] = []

        async def on_ready() -> None:
            reasons.append(engine.why)
            await engine.load("apprentice@000007", tmp_path)

        async with running(tmp_path, on_ready=on_ready) as engine:
            await engine.wait_ready(10)
            with pytest.raises(EngineLost):
                async with asyncio.timeout(10), engine.post("/exit", {}):
                    pass
            await until(lambda: engine.state == "down")
            assert "code 3: RuntimeError: the worker is gone" in engine.why
            await until(lambda: engine.starts > 1)
            assert await engine.loaded() == {"apprentice@000007"}
            assert len(reasons) == 2

    asyncio.run(scenario())


def test_one_that_was_never_reached_is_not_taken_for_ended(tmp_path: Path) -> None:
    """What was asked of it cannot have ended it."""

    async def scenario() -> None:
        for url in (f"unix:{tmp_path}/none.sock", "http://127.0.0.1:1"):
            client = EngineClient(url)
            await client.open()
            with pytest.raises(EngineUnavailable) as caught:
                await client.loaded()
            await client.close()
            assert not isinstance(caught.value, EngineLost)

    asyncio.run(scenario())


def test_one_that_lives_but_does_not_answer_is_restarted(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as engine:
            await engine.wait_ready(10)
            first = engine.pid
            await tell(engine, "hang")
            await until(lambda: engine.starts > 1)
            assert engine.pid != first

    asyncio.run(scenario())


def test_one_that_answers_but_makes_no_tokens_is_restarted(tmp_path: Path) -> None:
    async def scenario() -> None:
        patience = Patience(poll=0.05, answer=2, stall=0.5, first_pause=0.05)
        async with running(tmp_path, patience=patience) as engine:
            await engine.wait_ready(10)
            await until(lambda: engine.starts > 1)

    asyncio.run(scenario())


def test_a_failing_on_ready_keeps_the_engine_down(tmp_path: Path) -> None:
    async def scenario() -> None:
        async def on_ready() -> None:
            await engine.load("apprentice@000000", tmp_path / "missing")

        async with running(tmp_path, on_ready=on_ready) as engine:
            with pytest.raises(EngineUnavailable):
                await engine.wait_ready(1.5)
            assert engine.starts == 0
            await until(lambda: engine.state == "down")
            assert "no adapter found" in engine.why

    asyncio.run(scenario())


def test_an_attached_engine_that_lost_its_adapters_gets_them_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        socket = tmp_path / "v.sock"

        async def spawn() -> asyncio.subprocess.Process:
            socket.unlink(missing_ok=True)
            process = await asyncio.create_subprocess_exec(sys.executable, FAKE, str(socket))
            await until(socket.exists)
            return process

        async def on_ready() -> None:
            await engine.load("apprentice@000000", tmp_path)

        process = await spawn()
        config = EngineConfig(url=f"unix:{socket}")
        # so patient that it does not see the gap, only that the names are gone
        patience = Patience(poll=0.05, answer=0.5, misses=60, stall=60, first_pause=0.05)
        try:
            async with running(tmp_path, config=config, patience=patience, on_ready=on_ready) as engine:
                await engine.wait_ready(10)
                assert engine.pid is None
                process.kill()
                await process.wait()
                process = await spawn()
                await until(lambda: engine.starts > 1)
                assert await engine.loaded() == {"apprentice@000000"}
            assert process.returncode is None
        finally:
            process.kill()
            await process.wait()

    asyncio.run(scenario())


def test_stopping_ends_every_process_and_loading_twice_is_harmless(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as engine:
            await engine.wait_ready(10)
            session = engine.pid
            assert session is not None and session_members(session)
            await engine.load("apprentice@000001", tmp_path / "one")
            await engine.load("apprentice@000001", tmp_path / "one")
            with pytest.raises(EngineRefused) as caught:
                await engine.load("apprentice@000002", tmp_path / "missing")
            assert caught.value.answer == 404
            with pytest.raises(EngineUnavailable, match="not now"):
                await engine.load("apprentice@000002", tmp_path / "busy")
        assert not session_members(session)
        assert engine.state == "down"

    asyncio.run(scenario())


def test_a_state_directory_too_deep_for_a_socket_gets_a_private_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        deep = tmp_path / ("d" * 120)
        deep.mkdir()
        async with running(deep) as engine:
            await engine.wait_ready(10)
            socket = Path(engine.url.removeprefix("unix:"))
            assert len(os.fsencode(socket)) <= 100
            assert socket.parent.stat().st_mode & 0o777 == 0o700
        assert not socket.parent.exists()

    asyncio.run(scenario())


def test_a_missing_model_directory_is_named(tmp_path: Path) -> None:
    async def scenario() -> None:
        engine = Engine(
            EngineConfig(), model=tmp_path / "none", alias="a", state_dir=tmp_path, patience=QUICK
        )
        await engine.start()
        await until(lambda: engine.state == "down")
        assert f"{tmp_path / 'none'} does not exist" in engine.why
        assert engine.hint
        await engine.stop()

    asyncio.run(scenario())
