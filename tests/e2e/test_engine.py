"""The engine's contract on the real vLLM: scores, a death and a return, the zero adapter."""

import os
import signal

import pytest

from server.engine.leash import session_members
from server.errors import EngineUnavailable
from tests.e2e.conftest import Served
from tests.server.adapters import PROMPT
from tests.server.engine.test_engine import until

pytestmark = pytest.mark.e2e


def test_scores_are_those_of_the_tokens_that_vllm_samples(engine: Served) -> None:
    async def scenario() -> None:
        name = engine.policies.name(0)
        body = {"model": name, "prompt": [PROMPT], "max_tokens": 6, "temperature": 0, "logprobs": 0}
        async with engine.engine.post("/v1/completions", body | {"return_token_ids": True}) as answer:
            choice = (await answer.json())["choices"][0]
        scored = await engine.engine.score(name, [*PROMPT, *choice["token_ids"]])
        assert len(scored) == len(PROMPT) + 5
        assert scored[-6:] == pytest.approx(choice["logprobs"]["token_logprobs"], abs=0.05)
        assert await engine.engine.generate(name, PROMPT, max_tokens=6) == choice["token_ids"]

    engine.run(scenario())


def test_after_a_worker_is_killed_the_residents_are_back(engine: Served) -> None:
    async def scenario() -> None:
        vllm = engine.engine
        await vllm.wait_ready(240)
        starts, session = vllm.starts, vllm.pid
        assert session is not None
        worker = max(session_members(session))
        body = {
            "model": "apprentice@000000",
            "prompt": [PROMPT],
            "max_tokens": 900,
            "ignore_eos": True,
            "stream": True,
        }
        with pytest.raises(EngineUnavailable):
            async with vllm.post("/v1/completions", body) as answer:
                assert answer.status == 200
                text = ""
                async for chunk in answer.content:
                    text += chunk.decode()
                    if worker and chunk:
                        os.kill(worker, signal.SIGKILL)
                        worker = 0
                # vLLM may still end the stream itself, with an error in it
                assert "error" in text
                raise EngineUnavailable("the stream ended with an error event")
        await until(lambda: vllm.starts > starts, 240)
        assert await vllm.loaded() == {engine.policies.name(v) for v in engine.policies.resident}
        assert not session_members(session)
        assert await vllm.generate("apprentice@000000", PROMPT, max_tokens=2)

    engine.run(scenario())


def test_vllm_serves_base_under_it(engine: Served) -> None:
    zero = engine.run(engine.engine.score(engine.policies.name(0), PROMPT))
    base = engine.run(engine.engine.score("apprentice@base", PROMPT))
    assert zero == pytest.approx(base, abs=1e-6)
