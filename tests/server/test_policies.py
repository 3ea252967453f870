"""Swaps: what makes a release resident, what refuses it, and how policies drain."""

import asyncio
import errno
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buffer.adapters import WEIGHTS
from buffer.records import Release
from buffer.store import StoreUnavailable
from server.engine.client import EngineClient
from server.errors import (
    EngineRefused,
    EngineUnavailable,
    PolicyNotResident,
    ReleaseForeign,
    ReleaseRefused,
)
from server.policies import Policies, judge
from tests.server.adapters import PROMPT, publish, write_weights

PARENT = [-2.0 - 0.1 * (i % 5) for i in range(len(PROMPT) - 1)]


class FakeEngine(EngineClient):
    """Serves `served[name]` log-probabilities for names that are loaded; `down` makes it unavailable."""

    def __init__(self) -> None:
        super().__init__("unix:/nowhere")
        self.names: list[str] = []
        self.served: dict[str, list[float]] = {}
        self.down = False
        self.failing: dict[str, int] = {}
        """Calls to the status that they are answered with."""

    def _up(self, call: str = "") -> None:
        if self.down:
            raise EngineUnavailable("down")
        if call in self.failing:
            raise EngineRefused("it failed", answer=self.failing[call])

    async def load(self, name: str, directory: Path) -> None:
        self._up("load")
        assert directory.is_absolute()
        self.names.append(name)

    async def unload(self, name: str) -> None:
        self._up()
        self.names.remove(name)

    async def score(self, model: str, token_ids: Sequence[int]) -> list[float]:
        self._up("score")
        assert model in self.names
        return self.served.get(model, PARENT)

    async def generate(self, model: str, token_ids: Sequence[int], *, max_tokens: int) -> list[int]:
        self._up("generate")
        return [1]


def shifted(version: int) -> list[float]:
    return [p + 0.5 * math.sin(version + i) for i, p in enumerate(PARENT)]


def release(adapters: Path, version: int, alias: str = "apprentice") -> Release:
    weights = adapters / f".weights-{version}"
    write_weights(weights, seed=version)
    return publish(adapters, weights, version=version, candidate=shifted(version), parent=PARENT, alias=alias)


async def policies(adapters: Path, engine: FakeEngine, *versions: int) -> Policies:
    """With zero and these versions resident."""
    weights = adapters / ".weights-0"
    write_weights(weights, seed=0, scale=0)
    zero = publish(adapters, weights, version=0, candidate=PARENT, parent=PARENT)
    made = Policies(engine, alias="apprentice", adapters=adapters, zero=zero, max_rank=16, base="b" * 64)
    await made.reload()
    for version in versions:
        engine.served[made.name(version)] = shifted(version)
        await made.install(release(adapters, version))
    return made


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_good_release_becomes_resident_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        made = await policies(tmp_path, engine, 12)
        assert list(made.resident) == [0, 12]
        assert engine.names == ["apprentice@000000", "apprentice@000012"]
        with made.lease(12) as name:
            assert name == "apprentice@000012"

    asyncio.run(scenario())


def test_one_that_does_nothing_is_refused_and_unloaded(tmp_path: Path) -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        made = await policies(tmp_path, engine)
        with pytest.raises(ReleaseRefused, match="serves 0% of its change"):
            await made.install(release(tmp_path, 12))  # the fake serves the parent's log-probabilities
        assert engine.names == ["apprentice@000000"]
        assert list(made.resident) == [0]

    asyncio.run(scenario())


def test_damaged_files_never_reach_the_engine(tmp_path: Path) -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        made = await policies(tmp_path, engine)
        bad = release(tmp_path, 12)
        weights = tmp_path / bad.directory / WEIGHTS
        damaged = bytearray(weights.read_bytes())
        damaged[-1] ^= 1
        weights.write_bytes(damaged)
        with pytest.raises(ReleaseRefused, match="SHA-256 differs"):
            await made.install(bad)
        assert engine.names == ["apprentice@000000"]

    asyncio.run(scenario())


def test_what_this_machine_cannot_read_now_says_nothing_about_the_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(path: Path) -> str:
        raise OSError(errno.EMFILE, "Too many open files", str(path))

    async def scenario() -> None:
        engine = FakeEngine()
        made = await policies(tmp_path, engine, 12)
        good = release(tmp_path, 13)
        engine.served[made.name(13)] = shifted(13)
        with monkeypatch.context() as patched:
            patched.setattr("buffer.adapters.sha256_file", busy)
            with pytest.raises(StoreUnavailable, match="Too many open files"):
                await made.install(good)
            with pytest.raises(StoreUnavailable):
                await made.reload()
        await made.install(good)
        assert made.resident == [0, 12, 13]

    asyncio.run(scenario())


def test_a_rank_above_this_servers_limit_is_no_verdict(tmp_path: Path) -> None:
    async def scenario() -> None:
        made = await policies(tmp_path, FakeEngine())
        made._max_rank = 2
        with pytest.raises(ReleaseForeign, match="rank 4 is above the server's limit of 2") as refused:
            await made.install(release(tmp_path, 12))
        assert "max_lora_rank" in refused.value.hint

    asyncio.run(scenario())


def test_a_release_of_another_alias_or_base_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        made = await policies(tmp_path, engine)
        with pytest.raises(ReleaseForeign, match="alias other"):
            await made.install(release(tmp_path, 12, alias="other"))
        zero = next(iter(made._resident.values()))
        elsewhere = Policies(
            engine, alias="apprentice", adapters=tmp_path, zero=zero, max_rank=16, base="c" * 64
        )
        with pytest.raises(ReleaseForeign, match="another base model"):
            await elsewhere.install(release(tmp_path, 13))

    asyncio.run(scenario())


def test_an_unavailable_engine_says_nothing_about_the_release(tmp_path: Path) -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        made = await policies(tmp_path, engine)
        engine.down = True
        one = release(tmp_path, 12)
        with pytest.raises(EngineUnavailable):
            await made.install(one)
        engine.down = False
        engine.served[made.name(12)] = shifted(12)
        await made.install(one)
        assert list(made.resident) == [0, 12]

    asyncio.run(scenario())


@pytest.mark.parametrize("call", ["load", "generate", "score"])
@pytest.mark.parametrize(("answer", "verdict"), [(500, EngineRefused), (400, ReleaseRefused)])
def test_a_failure_of_vllm_itself_is_no_verdict_on_the_release(
    tmp_path: Path, call: str, answer: int, verdict: type[Exception]
) -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        made = await policies(tmp_path, engine)
        one = release(tmp_path, 12)
        engine.failing = {call: answer}
        with pytest.raises(verdict, match="it failed"):
            await made.install(one)
        assert engine.names == ["apprentice@000000"], "nothing half tried stays"
        engine.failing = {}
        engine.served[made.name(12)] = shifted(12)
        await made.install(one)
        assert list(made.resident) == [0, 12]

    asyncio.run(scenario())


def test_a_fresh_vllm_that_fails_at_a_policy_is_kept_without_it(tmp_path: Path) -> None:
    class Failing(FakeEngine):
        async def load(self, name: str, directory: Path) -> None:
            if name == "apprentice@000002":
                raise EngineRefused("it failed", answer=500)
            await super().load(name, directory)

    async def scenario() -> None:
        made = await policies(tmp_path, FakeEngine(), 1, 2)
        made._engine = fresh = Failing()
        fresh.served = {made.name(1): shifted(1)}
        assert list(await made.reload()) == [2]
        assert list(made.resident) == [0, 1]

    asyncio.run(scenario())


def test_a_retired_policy_takes_no_requests_and_goes_with_its_last_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        made = await policies(tmp_path, engine, 1, 2)
        with made.lease(1), made.lease(2):
            with made.lease(1):
                await made.retire(1)
                assert list(made.resident) == [0, 2]
                with pytest.raises(PolicyNotResident), made.lease(1):
                    pass
            await settle()
            assert "apprentice@000001" in engine.names
        await settle()
        assert engine.names == ["apprentice@000000", "apprentice@000002"]

    asyncio.run(scenario())


def test_a_draining_policy_that_is_installed_again_stays(tmp_path: Path) -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        made = await policies(tmp_path, engine, 1)
        with made.lease(1):
            await made.retire(1)
            await made.install(made._resident[1])
        await settle()
        assert list(made.resident) == [0, 1]
        assert engine.names == ["apprentice@000000", "apprentice@000001"]

    asyncio.run(scenario())


def test_the_zero_adapter_is_never_retired(tmp_path: Path) -> None:
    async def scenario() -> None:
        made = await policies(tmp_path, FakeEngine(), 1)
        await made.retire(0)
        assert list(made.resident) == [0, 1]

    asyncio.run(scenario())


def test_reload_brings_all_back_but_what_drains_or_was_damaged(tmp_path: Path) -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        made = await policies(tmp_path, engine, 1, 2, 3)
        with made.lease(1):
            await made.retire(1)
            engine.names.clear()  # vLLM was restarted
            (tmp_path / made._resident[2].directory / WEIGHTS).write_bytes(b"")
            refused = await made.reload()
        await settle()
        assert engine.names == ["apprentice@000000", "apprentice@000003"]
        assert list(refused) == [2]
        assert list(made.resident) == [0, 3]

    asyncio.run(scenario())


changes = st.lists(
    st.tuples(st.floats(-8, 0), st.floats(-2, 2).filter(lambda x: abs(x) > 0.01)), min_size=1, max_size=40
)


@given(changes)
def test_the_judge_tells_candidate_from_parent_whatever_the_size_of_the_change(
    changes: list[tuple[float, float]],
) -> None:
    parent = [p for p, _ in changes]
    candidate = [p + x for p, x in changes]
    assert judge(candidate, candidate, parent) is None
    assert judge(parent, candidate, parent) is not None


def test_the_judge_refuses_what_is_far_from_both_or_has_nothing_to_go_by() -> None:
    far = [c + (1.0 if i % 2 else -1.0) for i, c in enumerate(shifted(1))]
    assert "nats per token" in str(judge(far, shifted(1), PARENT))
    assert "do not tell" in str(judge(PARENT, PARENT, PARENT))
    assert "unusable" in str(judge([], [], []))
    assert judge([math.nan] * len(PARENT), shifted(1), PARENT) is not None
