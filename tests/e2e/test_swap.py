"""Swaps on the real vLLM: what it serves is what was published, alone and beside others."""

import asyncio
from pathlib import Path

import pytest

from learner.cores import dtype_of
from server.errors import ReleaseRefused
from tests.e2e.conftest import Served
from tests.server.adapters import PROMPT, publish, write_weights

pytestmark = pytest.mark.e2e


async def really_served(engine: Served, weights: Path) -> list[float]:
    """What vLLM serves for these weights, under a name that is then forgotten."""
    await engine.engine.load(f"scratch-{weights.name}", weights)
    scores = await engine.engine.score(f"scratch-{weights.name}", PROMPT)
    await engine.engine.unload(f"scratch-{weights.name}")
    return scores


def test_a_real_swap_matches_what_torch_computes(engine: Served, model_dir: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    weights = engine.adapters / ".weights-21"
    write_weights(weights, seed=21)
    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype_of("cpu"))
    net = PeftModel.from_pretrained(base, weights)

    def logprobs() -> list[float]:
        with torch.no_grad():
            logits_TV = net(torch.tensor([PROMPT])).logits[0, :-1].float()
        scored: list[float] = logits_TV.log_softmax(-1)[range(len(PROMPT) - 1), PROMPT[1:]].tolist()
        return scored

    candidate = logprobs()
    with net.disable_adapter():
        parent = logprobs()
    made = publish(engine.adapters, weights, version=21, candidate=candidate, parent=parent)
    engine.run(engine.policies.install(made))
    assert 21 in engine.policies.resident
    served = engine.run(engine.engine.score("apprentice@000021", PROMPT))
    assert served == pytest.approx(candidate, abs=0.5)
    engine.run(engine.policies.retire(21))


def test_an_adapter_that_loads_but_does_nothing_is_caught(engine: Served) -> None:
    right, wrong = engine.adapters / ".right-22", engine.adapters / ".weights-22"
    write_weights(right, seed=22)
    write_weights(wrong, seed=22, prefix="base_model.model.decoder.model")
    candidate = engine.run(really_served(engine, right))
    parent = engine.run(engine.engine.score("apprentice@000000", PROMPT))
    made = publish(engine.adapters, wrong, version=22, candidate=candidate, parent=parent)
    with pytest.raises(ReleaseRefused, match="of its change"):
        engine.run(engine.policies.install(made))
    assert "apprentice@000022" not in engine.run(engine.engine.loaded())


def test_rows_of_different_policies_in_one_batch_do_not_mix(engine: Served) -> None:
    weights = engine.adapters / ".weights-23"
    write_weights(weights, seed=23)
    candidate = engine.run(really_served(engine, weights))
    parent = engine.run(engine.engine.score("apprentice@000000", PROMPT))
    engine.run(
        engine.policies.install(
            publish(engine.adapters, weights, version=23, candidate=candidate, parent=parent)
        )
    )

    async def together() -> list[list[float]]:
        names = ["apprentice@000000", "apprentice@000023"] * 4
        return await asyncio.gather(*(engine.engine.score(name, PROMPT) for name in names))

    for scores in engine.run(together())[0::2]:
        assert scores == pytest.approx(parent, abs=0.1)
    for scores in engine.run(together())[1::2]:
        assert scores == pytest.approx(candidate, abs=0.1)
    engine.run(engine.policies.retire(23))
