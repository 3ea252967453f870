"""Getting releases onto this machine, beside everything else: nothing that is served waits for the store."""

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass

import prometheus_client

from buffer.adapters import AdapterInvalid
from buffer.records import Release
from buffer.store import AdapterStore, StoreUnavailable
from server.errors import ReleaseRefused, RequestRefused

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0


@dataclass
class _Failed:
    error: StoreUnavailable
    pause: float
    again: float
    """On the loop's clock."""


class Fetcher:
    """One fetch per release at a time, after a failure again and again with a growing pause."""

    def __init__(
        self, store: AdapterStore, failures: prometheus_client.Counter, on_arrival: Callable[[], None]
    ) -> None:
        """`failures` is labelled by reason; `on_arrival` is called in the loop."""
        self._store = store
        self._failures = failures
        self._on_arrival = on_arrival
        self._fetching: dict[Release, asyncio.Task[StoreUnavailable | None]] = {}
        self._failed: dict[int, _Failed] = {}
        self._fetched_again: set[Release] = set()
        self._held: Counter[int] = Counter()
        self._sweeping = asyncio.Lock()
        self._swept: tuple[set[Release], set[int]] = set(), set()
        """The releases that were looked at last time, and the versions that were kept."""

    def waits_for(self, version: int) -> str | None:
        """Why the last attempt to get this version failed; None when it is here, or was never wanted."""
        failed = self._failed.get(version)
        return f"{failed.error.reason}: {failed.error}" if failed is not None else None

    def require(self, release: Release) -> None:
        """Raise unless the release is here, and see to it that it comes.

        Raises `StoreUnavailable` at once, or `ReleaseRefused` for a name that no release can have.
        """
        failed = self._failed.get(release.version)
        resting = failed is not None and asyncio.get_running_loop().time() < failed.again
        if self._here(release):
            if failed is None or not resting or failed.error.reason != "unreadable":
                return
        elif not resting:
            self._begin(release)
        if failed is None:
            raise StoreUnavailable(f"{release.directory} is being fetched", "missing")
        raise failed.error.with_traceback(None)  # else it grows each time

    def tell(self, version: int, error: StoreUnavailable | None) -> None:
        """How an attempt to have this version here has ended: a failure is counted, and told until one ends
        well."""
        if error is None:
            self._failed.pop(version, None)
            return
        self._failures.labels(error.reason).inc()
        before = self._failed.get(version)
        pause = FIRST_PAUSE_S if before is None else min(2 * before.pause, LONGEST_PAUSE_S)
        self._failed[version] = _Failed(error, pause, asyncio.get_running_loop().time() + pause)

    async def fetch(self, release: Release) -> None:
        """Have the release here, without regard to pauses. Raises as `require`, after trying."""
        if not self._here(release) and (error := await asyncio.shield(self._begin(release))) is not None:
            raise error

    async def fetch_again(self, release: Release) -> None:
        """Let go of a copy that was found damaged, if a store can give it back, once for each release.

        Raises `StoreUnavailable` then: the next `require` fetches it. Raises `OSError`.
        """
        if self._store.shared and release not in self._fetched_again:
            self._fetched_again.add(release)
            async with self._sweeping:
                await asyncio.to_thread(self._store.sweep, [release], ())
            raise StoreUnavailable(f"{release.directory} was damaged here and is fetched again", "damaged")

    async def sweep(self, plan: Callable[[], tuple[Sequence[Release], Collection[int]]]) -> None:
        """Delete from this machine what nothing keeps or holds (`AdapterStore.sweep`). Raises `OSError`.

        `plan` gives the log's releases and the versions that stay. It is called on a thread, once no hold can
        begin any more: a version that was held until now is live by then, and it sees that.
        """
        async with self._sweeping:
            releases, keep = await asyncio.to_thread(plan)
            work = set(releases), {*keep, *self.held}
            if work != self._swept:
                await asyncio.to_thread(self._store.sweep, *work)
                self._swept = work

    @asynccontextmanager
    async def hold(self, version: int) -> AsyncIterator[None]:
        """Within it this version is not deleted: it is about to become live."""
        async with self._sweeping:
            self._held[version] += 1
        try:
            yield
        finally:
            self._held[version] -= 1

    @property
    def held(self) -> set[int]:
        """The versions that are about to become live."""
        return set(+self._held)

    def require_kept(self, release: Release) -> None:
        """Raise `RequestRefused` (410) for a release that is not here and that no store can give back."""
        if not self._store.shared and not self._here(release):
            raise RequestRefused(
                f"policy {release.version} is not on this machine any more: of old releases the newest"
                f" {self._store.keep} are kept (`keep` in [buffer.adapters])",
                f"bring {release.directory} back into {self._store.root} from a backup, or take another one",
                code="policy_deleted", status=410,
            )  # fmt: skip

    def close(self) -> None:
        """Wait for nothing more; a thread that hangs in the store ends with the process."""
        for task in self._fetching.values():
            task.cancel()

    def _here(self, release: Release) -> bool:
        try:
            return self._store.here(release)
        except AdapterInvalid as error:
            raise ReleaseRefused(str(error), "Have the learner publish it again.") from error

    def _begin(self, release: Release) -> "asyncio.Task[StoreUnavailable | None]":
        if (task := self._fetching.get(release)) is None:
            task = asyncio.create_task(self._run(release), name=f"fetch {release.directory}")
            self._fetching[release] = task
            task.add_done_callback(lambda _: self._fetching.pop(release))
        return task

    async def _run(self, release: Release) -> StoreUnavailable | None:
        try:
            await asyncio.wrap_future(_on_a_thread(lambda: self._store.fetch(release)))
        except StoreUnavailable as error:
            self.tell(release.version, error)
            return error
        self.tell(release.version, None)
        self._on_arrival()
        return None


def _on_a_thread(work: Callable[[], None]) -> "Future[None]":
    """Run `work` on a thread that does not keep the process alive."""
    done: Future[None] = Future()
    done.set_running_or_notify_cancel()  # from here on nobody can cancel it under the thread

    def run() -> None:
        try:
            work()
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(None)

    threading.Thread(target=run, name="fetch", daemon=True).start()
    return done
