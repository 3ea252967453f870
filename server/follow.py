"""Following the log: what it says is live gets loaded and served, what it releases gets tried and promoted.

`Follower.reconcile` compares what the view says with what is loaded and does what is missing. It looks at
states, not at news, so a release that passed while this process was down is found like any other.
"""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from buffer.adapters import AdapterInvalid
from buffer.log import BufferError
from buffer.records import Release, ReleaseRejected
from buffer.rounds import Alias, Round
from buffer.store import KEPT, StoreUnavailable, needed
from server.errors import (
    EngineLost,
    EngineRefused,
    EngineUnavailable,
    ReleaseForeign,
    ReleaseRefused,
    RequestRefused,
    ServerError,
)
from server.gateway import Gateway

logger = logging.getLogger(__name__)

RETRY_S = 2.0
LOOK_AGAIN_S = 30.0


def candidate(rounds: Sequence[Round], alias: Alias, rejected: Sequence[int]) -> Release | None:
    """The release to promote next: the newest that grew from the live policy and was never live or refused.

    After a rollback nothing that grew from the withdrawn policy is one, nor is the withdrawn one itself.
    """
    been = {move.version for move in alias.moves}
    passed = [
        r.release
        for r in rounds
        if r.release is not None and r.ended is not None and r.ended.verdict == "passed"
        and r.planned.parent == alias.version
        and r.release.version not in been and r.release.version not in rejected
    ]  # fmt: skip
    return max(passed, key=lambda release: release.version, default=None)


def kept(alias: Alias) -> list[int]:
    """The versions that stay loaded, the most recent first: live, the ones before it, and the base."""
    return [*alias.recent(1 + KEPT), 0]


@dataclass(frozen=True, slots=True)
class Patience:
    """How often a vLLM that is ready may fail at a release before that is the release's fault.

    A 500 may mean that vLLM itself is ending, so the release is tried again, after a pause that doubles each
    time: with these numbers it is rejected after two and a half minutes at the earliest. Some time it must
    be, since one at which vLLM always fails would be tried for ever.
    """

    tries: int = 6
    ends: int = 3
    """Fewer where vLLM ends without a word, which aborts all that it was answering."""
    first_pause_s: float = 5.0
    longest_pause_s: float = 80.0


@dataclass(frozen=True, slots=True)
class _Failures:
    """Of vLLM at one release, in a row."""

    last: EngineRefused | EngineLost
    count: int
    again: float
    """On the loop's clock."""


class Follower:
    """Run `run` as a task. It ends by being cancelled.

    What it writes of a release holds for all servers, so only the release's own faults are written: not what
    is wrong with this server (`ReleaseForeign`, told by its health), or with vLLM as long as that may pass.
    """

    def __init__(self, gateway: Gateway, patience: Patience | None = None) -> None:
        self._gateway = gateway
        self._patience = patience or Patience()
        self._failed: dict[int, str] = {}
        """Versions that could not be loaded here, so that they are not tried again without an end."""
        self._foreign: dict[int, ReleaseForeign] = {}
        """Versions that this process can never load."""
        self._failures: dict[int, _Failures] = {}
        self._rejected: set[int] = set()
        """Versions that this process has rejected: the log may not have brought it back yet."""
        self._waits_for = ""
        self._away: StoreUnavailable | EngineRefused | EngineLost | None = None
        """Why something is not on this machine, or not in vLLM, yet."""

    async def run(self) -> None:
        """Reconcile at once, at every piece of news, and again after a failure."""
        while True:
            heard = self._gateway.news.bell()
            pause = LOOK_AGAIN_S
            try:
                await self.reconcile()
                self._waits_for = ""
            except (ServerError, BufferError) as error:
                if str(error) != self._waits_for:
                    logger.info("loading policies waits: %s", error)
                self._waits_for, pause = str(error), RETRY_S
            except Exception:
                # The follower must outlive a fault in one release: log it and look again.
                logger.exception("following the log failed")
                pause = RETRY_S
            # not wait_for: before Python 3.12 it loses a cancellation that comes together with the bell
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await heard.wait()

    async def reconcile(self) -> None:
        """Bring what is served to what the log says.

        Raises `EngineUnavailable`, `EngineRefused`, `StoreUnavailable` to be called again later. What can be
        done without the store is done before: a rollback never waits for it.
        """
        gateway, self._away = self._gateway, None
        gateway.require_engine()
        alias = await asyncio.to_thread(gateway.alias_now)
        await self._serve(alias)
        decided = gateway.live == alias.version and gateway.behind is None
        wanted = [alias.version]
        if decided and (release := await asyncio.to_thread(self._candidate, alias)):
            await self._try(release, alias)
            alias = await asyncio.to_thread(gateway.alias_now)
            await self._serve(alias)
            wanted = [alias.version, release.version]
        gateway.foreign = next((self._foreign[v] for v in wanted if v in self._foreign), None)
        await self._keep()
        if self._away is not None:
            raise self._away
        await self._sweep()

    async def _install(self, version: int) -> None:
        """As `Gateway.install`, but a release that is not on this machine is fetched meanwhile.

        Where vLLM failed at it, that is raised again until the pause is over.
        """
        gateway, now = self._gateway, asyncio.get_running_loop().time
        if version in gateway.policies.resident:
            return
        if version in self._foreign:
            raise self._foreign[version].with_traceback(None)  # else it grows each time
        before = self._failures.get(version)
        if before is not None and now() < before.again:
            raise before.last.with_traceback(None)
        release = await gateway.release(version)
        if gateway.fetcher is not None:
            gateway.fetcher.require(release)
        try:
            with gateway.metrics.timed(gateway.metrics.swap_seconds):
                await gateway.policies.install(release)
        except ReleaseForeign as error:
            logger.error("release %d cannot be served by this server: %s", version, error)
            self._foreign[version] = error
            raise
        except (EngineRefused, EngineLost) as error:
            count = before.count + 1 if before is not None else 1
            pause = min(self._patience.first_pause_s * 2 ** (count - 1), self._patience.longest_pause_s)
            self._failures[version] = _Failures(error, count, now() + pause)
            raise
        except StoreUnavailable as error:
            if gateway.fetcher is not None:
                gateway.fetcher.tell(version, error)
            raise
        except ReleaseRefused as error:
            if gateway.fetcher is not None and isinstance(error.__cause__, AdapterInvalid):
                await gateway.fetcher.fetch_again(release)
            raise
        self._failures.pop(version, None)
        if gateway.fetcher is not None:
            gateway.fetcher.tell(version, None)

    def _candidate(self, alias: Alias) -> Release | None:
        view = self._gateway.buffer.view
        return candidate(view.rounds(), alias, [*view.rejected(), *self._rejected])

    async def _serve(self, alias: Alias) -> None:
        """Make the live policy answer here. What answered before goes on until it can."""
        gateway = self._gateway
        try:
            await self._install(alias.version)
        except (ReleaseRefused, StoreUnavailable, EngineRefused) as error:
            if not isinstance(error, ReleaseRefused):
                self._away = error
            else:
                if self._failed.get(alias.version) != error.message:
                    logger.error("the live policy %d cannot be served here: %s", alias.version, error)
                self._failed[alias.version] = error.message
            if gateway.live not in gateway.policies.resident:
                gateway.not_ready = f"the live policy {alias.version} cannot be served: {error}"
                return
        else:
            if gateway.live != alias.version:
                logger.info("serving policy %d", alias.version)
                gateway.live = alias.version
                gateway.news.ring()  # for who waits until it is served
            gateway.metrics.live_policy.set(alias.version)
        gateway.not_ready = None

    async def _try(self, release: Release, alias: Alias) -> None:
        gateway, version = self._gateway, release.version
        try:
            await self._install(version)
        except StoreUnavailable as error:
            self._away = error
            return
        except ReleaseForeign:
            return
        except ReleaseRefused as error:
            await self._reject(version, error.message)
            return
        except (EngineRefused, EngineLost) as error:
            tries = self._patience.tries if isinstance(error, EngineRefused) else self._patience.ends
            if (times := self._failures[version].count) >= tries:
                await self._reject(version, f"{error.message} ({times} times in a row)")
            else:
                self._away = error
            return
        try:
            await gateway.move(version, expected=alias, why="release", by=gateway.name)
        except RequestRefused as error:
            logger.info("release %d was overtaken: %s", version, error)

    async def _reject(self, version: int, why: str) -> None:
        gateway = self._gateway
        logger.warning("release %d is refused: %s", version, why)
        await gateway.write([ReleaseRejected(version=version, why=why, by=gateway.name)])
        gateway.metrics.releases.labels("refused").inc()
        self._rejected.add(version)
        await gateway.until(lambda: version in gateway.buffer.view.rejected())

    async def _keep(self) -> None:
        """Have the recent policies loaded, so that a rollback is instant, and let go of the others."""
        gateway = self._gateway
        # what is held before the alias is read, and no more after, has become live
        held = self._held()
        keep = kept(await asyncio.to_thread(gateway.alias_now))
        for version in set(gateway.policies.resident) - {*keep, *held, *self._held(), gateway.live}:
            await gateway.policies.retire(version)
        for version in keep:
            if version in self._failed:
                continue
            try:
                await self._install(version)
            except EngineUnavailable:
                raise
            except (StoreUnavailable, EngineRefused) as error:
                self._away = error
            except (ReleaseRefused, RequestRefused) as error:
                logger.warning("policy %d stays unloaded: %s", version, error)
                self._failed[version] = str(error)

    def _held(self) -> set[int]:
        fetcher = self._gateway.fetcher
        return fetcher.held if fetcher is not None else set()

    async def _sweep(self) -> None:
        """Once all is in place, let go of adapters that nothing needs on this machine."""
        gateway, view = self._gateway, self._gateway.buffer.view
        if gateway.fetcher is None or gateway.behind is not None:
            return  # the log may need what this view does not know of
        resident = gateway.policies.resident

        def plan() -> tuple[list[Release], set[int]]:
            rounds = view.rounds()
            keep = {*needed(gateway.alias_now(), rounds, view.rejected()), *resident}
            return [r.release for r in rounds if r.release is not None], keep

        await gateway.fetcher.sweep(plan)
