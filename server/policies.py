"""Which policies vLLM holds, and the swap itself: verify, load, warm, probe.

Every policy has a name of its own, `alias@000012`, and a directory that never changes. So a swap is
one more name, running answers keep theirs, and a rollback is instant while the previous policies are loaded.
An adapter can load with 200 and do nothing (a wrong prefix in its tensors' names), hence the probe.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from buffer.adapters import AdapterInvalid, Manifest, RankTooHigh, verify
from buffer.records import Release
from buffer.store import StoreUnavailable
from server.engine.client import EngineClient
from server.errors import (
    EngineRefused,
    EngineUnavailable,
    PolicyNotResident,
    ReleaseForeign,
    ReleaseRefused,
    ServerError,
)

log = logging.getLogger(__name__)

ZERO = 0
TOLERANCE = 0.15
"""Nats per token, in the mean, between the learner's log-probabilities and vLLM's: bf16 and other kernels."""


class Policies:
    """The resident policies of one alias. `zero` is base; it is always resident.

    Which of them is live, and which are kept for a rollback, the caller decides: it installs and retires.
    One swap at a time; `lease` never waits.
    """

    def __init__(
        self,
        engine: EngineClient,
        *,
        alias: str,
        adapters: Path,
        zero: Release,
        max_rank: int,
        base: str | None = None,
    ) -> None:
        """`base`, where given, is the SHA-256 that every release's manifest must name as its base model."""
        self._engine = engine
        self._alias = alias
        self._adapters = adapters.absolute()
        self._max_rank = max_rank
        self._base = base
        self._resident: dict[int, Release] = {ZERO: zero}
        self._draining: set[int] = set()
        self._leases: Counter[int] = Counter()
        self._swapping = asyncio.Lock()
        self._unloading: set[asyncio.Task[None]] = set()

    def name(self, version: int) -> str:
        """The name that a policy has in vLLM."""
        return f"{self._alias}@{version:06d}"

    @property
    def resident(self) -> list[int]:
        """The versions that can be asked for, oldest first."""
        return sorted(self._resident.keys() - self._draining)

    async def install(self, release: Release) -> None:
        """Make a release resident. It is not live yet; again for one that is resident changes nothing.

        Raises `ReleaseRefused` when it must never be served, `ReleaseForeign` when that holds for this server
        alone. When it could not be tried, `EngineUnavailable`; when that may be the engine's fault as well as
        its own, `EngineRefused` or `EngineLost`; when its files cannot be read now, `StoreUnavailable`.
        """
        async with self._swapping:
            if self._resident.get(release.version) != release:
                await self._load(release)
            self._resident[release.version] = release
            self._draining.discard(release.version)

    async def retire(self, version: int) -> None:
        """Let go of a policy: no new requests, unloaded when the last has ended. The zero adapter stays."""
        async with self._swapping:
            if version in self.resident and version != ZERO:
                self._draining.add(version)
                self._unload_when_idle(version)

    @contextmanager
    def lease(self, version: int) -> Iterator[str]:
        """The policy's name in vLLM, which stays loaded inside the block. Raises `PolicyNotResident`."""
        if version not in self._resident or version in self._draining:
            raise PolicyNotResident(
                f"{self.name(version)} is not loaded here",
                f"Loaded are {', '.join(self.name(v) for v in self.resident)}. GET /v1/policies lists all.",
            )
        self._leases[version] += 1
        try:
            yield self.name(version)
        finally:
            self._leases[version] -= 1
            self._unload_when_idle(version)

    async def reload(self) -> dict[int, ServerError | StoreUnavailable]:
        """Load into a fresh vLLM all that was resident, zero first, then the newest; for `Engine.on_ready`.

        A release that does not pass now (its files were damaged, say) is dropped, and returned with its
        reason. Raises when zero cannot be loaded.
        """
        async with self._swapping:
            for gone in self._draining:
                del self._resident[gone]
            self._draining.clear()
            refused: dict[int, ServerError | StoreUnavailable] = {}
            for version in sorted(self._resident, key=lambda v: (v != ZERO, -v)):
                try:
                    await self._load(self._resident[version])
                except (ReleaseRefused, EngineRefused, StoreUnavailable) as error:
                    if version == ZERO:
                        raise
                    log.error("%s is not served any more: %s", self.name(version), error)
                    refused[version] = error
                    del self._resident[version]
            return refused

    # --- one swap ----------------------------------------------------------------------------------------

    async def _load(self, release: Release) -> None:
        name = self.name(release.version)
        try:
            manifest = await asyncio.to_thread(verify, self._adapters, release, max_rank=self._max_rank)
            self._belongs(name, manifest)
            await self._engine.load(name, self._adapters / release.directory)
        except RankTooHigh as error:
            raise ReleaseForeign(
                f"{name}: {error}", "Raise `max_lora_rank` in [engine] to the learner's `rank`."
            ) from error
        except OSError as error:
            raise StoreUnavailable(f"{release.directory} cannot be read: {error}", "unreadable") from error
        except (AdapterInvalid, EngineRefused) as error:
            if _may_pass(error):
                raise
            raise ReleaseRefused(f"{name}: {error}", "Have the learner publish it again.") from error
        try:
            await self._engine.generate(name, [0] * 8, max_tokens=2)
            await self._probe(name, manifest)
        except ServerError as error:
            if isinstance(error, EngineRefused) and not _may_pass(error):
                error = ReleaseRefused(f"{name}: its warm-up failed: {error.message}")
            if not isinstance(error, EngineUnavailable):
                await self._engine.unload(name)
            raise error

    def _belongs(self, name: str, manifest: Manifest) -> None:
        hint = "Give this server the learner's `model` and `alias`, or the learner this server's."
        if manifest.alias != self._alias:
            made_for = f"it was made for the alias {manifest.alias}, this one is {self._alias}"
            raise ReleaseForeign(f"{name}: {made_for}", hint)
        if self._base is not None and manifest.base != self._base:
            raise ReleaseForeign(
                f"{name}: it was trained on another base model than the one served here", hint
            )

    async def _probe(self, name: str, manifest: Manifest) -> None:
        if manifest.version == ZERO:
            return
        served: list[float] = []
        for probe in manifest.probes:
            scores = await self._engine.score(name, probe.token_ids)
            served += scores[probe.start - 1 :][: len(probe.candidate)]
        candidate = [x for probe in manifest.probes for x in probe.candidate]
        parent = [x for probe in manifest.probes for x in probe.parent]
        if verdict := judge(served, candidate, parent):
            raise ReleaseRefused(f"{name}: {verdict}", "See its manifest's probes and vLLM's log.")

    # --- draining ----------------------------------------------------------------------------------------

    def _unload_when_idle(self, version: int) -> None:
        if version in self._draining and not self._leases[version]:
            task = asyncio.create_task(self._unload(version), name=f"unload {self.name(version)}")
            self._unloading.add(task)
            task.add_done_callback(self._unloading.discard)

    async def _unload(self, version: int) -> None:
        async with self._swapping:
            if version not in self._draining or self._leases[version]:
                return
            self._draining.discard(version)
            del self._resident[version], self._leases[version]
            try:
                await self._engine.unload(self.name(version))
            except ServerError as error:  # vLLM forgets it by itself when it restarts
                log.warning("%s was not unloaded: %s", self.name(version), error.message)


def _may_pass(error: Exception) -> bool:
    """Whether vLLM failed, which may have been its own fault."""
    return isinstance(error, EngineRefused) and error.answer >= 500


def judge(served: Sequence[float], candidate: Sequence[float], parent: Sequence[float]) -> str | None:
    """Why what vLLM serves is not the candidate; None when it is. Log-probabilities of the same tokens, nats.

    With served, candidate and parent as vectors s, c, p, `(s-p)·(c-p) / |c-p|²` says how far along the way
    from parent to candidate s is: 0 when the adapter did nothing, 1 when all of it was applied, whatever the
    size of the change. Noise averages out, since tokens count by how much they changed.
    """
    if not candidate or not len(served) == len(candidate) == len(parent):
        return (
            f"its probes are unusable: {len(served)} tokens served, {len(candidate)} and {len(parent)} given"
        )
    change = [c - p for c, p in zip(candidate, parent, strict=True)]
    size = sum(x * x for x in change)
    if size == 0:
        return "its probes do not tell it from its parent"
    applied = sum((s - p) * x for s, p, x in zip(served, parent, change, strict=True)) / size
    off = sum(abs(s - c) for s, c in zip(served, candidate, strict=True)) / len(candidate)
    if not 0.5 < applied < 1.5:
        return f"vLLM serves {applied:.0%} of its change from its parent ({off:.3f} nats per token off)"
    if not off <= TOLERANCE:
        return f"what vLLM serves is {off:.3f} nats per token from what was trained (at most {TOLERANCE})"
    return None
