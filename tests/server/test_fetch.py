"""A server whose releases come from a store: what happens while that is away, slow, or back again."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from buffer.adapters import WEIGHTS, AdapterInvalid, verify_files
from buffer.config import AdaptersConfig
from buffer.records import AliasMoved, Release, ReleaseRejected, RoundEnded
from buffer.store import AdapterStore, StoreUnavailable
from server.errors import ReleaseRefused
from server.fetch import Fetcher
from server.follow import Follower
from tests.buffer.stores import away, failing, made
from tests.server.api.test_learning import planned, wait_for_live, write
from tests.server.running import Running
from tests.server.stub_policies import StubPolicies

ASKED = {"model": "apprentice", "messages": [{"role": "user", "content": "x"}]}


@pytest.fixture
def learner(tmp_path: Path) -> AdapterStore:
    """The learner's end of the store."""
    return AdapterStore(tmp_path / "learner", AdaptersConfig(url=f"failing://{tmp_path}/store"))


@pytest.fixture
def server(running: Running, learner: AdapterStore, tmp_path: Path) -> Iterator[AdapterStore]:
    """The running server's end."""
    store = AdapterStore(tmp_path / "server", AdaptersConfig(url=f"failing://{tmp_path}/store"))
    gateway = running.gateway
    gateway.fetcher = Fetcher(store, gateway.metrics.store_failures, gateway.news.ring)
    yield store
    running.stop_following()
    gateway.fetcher.close()


def release(running: Running, learner: AdapterStore, version: int, parent: int) -> Release:
    """A round of the learner that passes."""
    one = made(learner.root, version)
    learner.put(one)
    write(running, planned(version, parent), RoundEnded(round=version, verdict="passed", release=one))
    return one


def judging(running: Running, store: AdapterStore) -> None:
    """Have the running server check files as the real one does."""

    async def install(release: Release) -> None:
        try:
            verify_files(store.root / release.directory, release)
        except AdapterInvalid as error:
            raise ReleaseRefused(str(error)) from error
        await StubPolicies.install(running.policies, release)

    running.policies.install = install


def policy(running: Running, version: int) -> dict[str, object]:
    return dict(running.client().get(f"/v1/policies/{version}").json())


def answered_by(running: Running) -> str:
    return running.client().post("/v1/chat/completions", json=ASKED).headers["x-policy"]


def failures(running: Running, reason: str) -> float:
    got = running.gateway.metrics.registry.get_sample_value(
        "apprentice_store_failures_total", {"reason": reason}
    )
    return got or 0.0


def wait_for(holds: Callable[[], bool]) -> None:
    for _ in range(1200):
        if holds():
            return
        threading.Event().wait(0.02)
    raise AssertionError("it did not come to pass")


def wait_for_failure(running: Running, reason: str) -> None:
    wait_for(lambda: failures(running, reason) > 0)


def test_a_copy_that_was_damaged_here_is_fetched_again_and_no_verdict_on_the_release(
    running: Running, learner: AdapterStore, server: AdapterStore
) -> None:
    running.stop_following()
    judging(running, server)
    one = release(running, learner, 1, 0)
    server.fetch(one)
    (server.root / one.directory / WEIGHTS).write_bytes(b"damaged")
    running.follow()
    wait_for_live(running, 1)
    assert running.log.payloads(ReleaseRejected) == []


def test_a_release_that_cannot_be_read_here_is_told_counted_and_tried_again(
    running: Running, learner: AdapterStore, server: AdapterStore
) -> None:
    running.policies.errors = {
        1: StoreUnavailable("000001 cannot be read: too many open files", "unreadable")
    }
    release(running, learner, 1, 0)
    wait_for(lambda: failures(running, "unreadable") >= 2)
    assert "too many open files" in str(policy(running, 1)["waits_for"])
    (todo,) = [
        one for one in running.client().get("/v1/overview").json()["todo"]
        if one["code"] == "policy_waits_for_store"
    ]  # fmt: skip
    assert "too many open files" in todo["what"] and "ulimit" in todo["do"]
    running.policies.errors = {}
    wait_for_live(running, 1)
    assert policy(running, 1)["waits_for"] is None
    assert running.log.payloads(ReleaseRejected) == []


def test_a_release_that_was_fetched_again_and_is_still_wrong_is_rejected(
    running: Running, learner: AdapterStore, server: AdapterStore
) -> None:
    wrong = ReleaseRefused("a tensor is not finite")
    wrong.__cause__ = AdapterInvalid("a tensor is not finite")
    running.policies.errors = {1: wrong}
    release(running, learner, 1, 0)
    running.run(running.gateway.until(lambda: 1 in running.gateway.buffer.view.rejected()))
    assert running.policies.tried.count(1) == 2


def test_a_release_is_fetched_and_served(
    running: Running, learner: AdapterStore, server: AdapterStore
) -> None:
    one = release(running, learner, 1, 0)
    wait_for_live(running, 1)
    assert server.here(one)
    assert policy(running, 1)["waits_for"] is None


def test_while_the_store_is_away_what_is_loaded_serves_on(
    running: Running, learner: AdapterStore, server: AdapterStore
) -> None:
    release(running, learner, 1, 0)
    wait_for_live(running, 1)
    two = made(learner.root, 2)
    learner.put(two)
    with failing(away):
        write(running, planned(2, 1), RoundEnded(round=2, verdict="passed", release=two))
        wait_for_failure(running, "unreachable")
        assert answered_by(running) == "apprentice@000001"
        assert running.client().get("/readyz").status_code == 200
        assert "unreachable: the adapter store did not fetch" in str(policy(running, 2)["waits_for"])
        refused = running.client("root-key").post("/v1/policies/2/promote")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
        assert "[buffer.adapters]" in refused.json()["error"]["hint"]
    wait_for_live(running, 2)
    assert policy(running, 2)["waits_for"] is None
    assert running.log.payloads(ReleaseRejected) == [], "it says nothing about the release"


def test_a_live_policy_that_cannot_be_fetched_leaves_the_one_before_in_place(
    running: Running, learner: AdapterStore, server: AdapterStore
) -> None:
    release(running, learner, 1, 0)
    wait_for_live(running, 1)
    two = made(learner.root, 2)  # the store does not have it
    moved = AliasMoved(alias="apprentice", version=2, epoch=1, why="promote", by="elsewhere")
    write(running, planned(2, 1), RoundEnded(round=2, verdict="passed", release=two), moved)
    wait_for_failure(running, "missing")
    assert answered_by(running) == "apprentice@000001"
    assert running.client().get("/readyz").status_code == 200
    learner.put(two)
    wait_for_live(running, 2)


def test_a_new_server_is_not_ready_before_it_has_what_is_live(
    running: Running, learner: AdapterStore, server: AdapterStore
) -> None:
    running.stop_following()
    running.gateway.live = None
    with failing(away):
        release_ = made(learner.root, 1)
        moved = AliasMoved(alias="apprentice", version=1, epoch=0, why="promote", by="elsewhere")
        write(running, planned(1, 0), RoundEnded(round=1, verdict="passed", release=release_), moved)
        wait_for(lambda: running.gateway.alias_now().version == 1)
        running.follow()
        wait_for_failure(running, "unreachable")
        wait_for(lambda: "away" in (running.gateway.not_ready or ""))
        refused = running.client().get("/readyz")
        assert refused.status_code == 503
        assert "the store is away" in refused.text
    learner.put(release_)
    wait_for_live(running, 1)
    assert running.client().get("/readyz").status_code == 200


def test_a_rollback_waits_for_no_fetch(running: Running, learner: AdapterStore, server: AdapterStore) -> None:
    for version in (1, 2):
        release(running, learner, version, version - 1)
        wait_for_live(running, version)
    hangs, free = threading.Event(), threading.Event()

    def hang(method: str, path: str) -> None:
        if method == "get_file":
            hangs.set()
            assert free.wait(60)

    with failing(hang):
        release(running, learner, 3, 2)
        assert hangs.wait(60)
        try:
            answer = running.client("root-key").post("/v1/policies/rollback")
            assert (answer.status_code, answer.json()["version"]) == (200, 1)
            assert answered_by(running) == "apprentice@000001"
        finally:
            free.set()


def test_a_store_that_is_away_is_not_asked_at_every_piece_of_news(
    running: Running, learner: AdapterStore, server: AdapterStore
) -> None:
    one = made(learner.root, 1)
    asked: list[str] = []

    def count(method: str, path: str) -> None:
        asked.append(path)
        raise ConnectionError("away")

    async def ask() -> None:
        fetcher = running.gateway.fetcher
        assert fetcher is not None
        with pytest.raises(StoreUnavailable, match="away"):
            await fetcher.fetch(one)
        for _ in range(30):
            with pytest.raises(StoreUnavailable, match="away"):
                fetcher.require(one)
            await asyncio.sleep(0.005)

    running.stop_following()
    with failing(count):
        running.run(ask())
    assert len(asked) < 10


def test_a_name_that_no_release_can_have_is_refused_for_good(
    running: Running, learner: AdapterStore, server: AdapterStore
) -> None:
    forged = Release(version=1, digest="d" * 64, directory="../../../etc")
    write(running, planned(1, 0), RoundEnded(round=1, verdict="passed", release=forged))
    running.run(running.gateway.until(lambda: 1 in running.gateway.buffer.view.rejected()))
    assert "not a release directory" in running.gateway.buffer.view.rejected()[1]


def test_old_releases_do_not_fill_the_disk(
    running: Running, learner: AdapterStore, server: AdapterStore
) -> None:
    releases = []
    for version in range(1, 6):
        releases.append(release(running, learner, version, version - 1))
        wait_for_live(running, version)
    wait_for(lambda: not server.here(releases[1]))
    assert [server.here(one) for one in releases] == [False, False, True, True, True]
    again = running.client("root-key").post("/v1/policies/1/promote")
    assert again.status_code == 200
    assert server.here(releases[0]), "it came back from the store"


@pytest.fixture
def alone(running: Running, tmp_path: Path) -> Iterator[AdapterStore]:
    """Without a store: learner and server share one directory, and three releases stay."""
    store = AdapterStore(tmp_path / "adapters", AdaptersConfig(keep=3))
    gateway = running.gateway
    gateway.fetcher = Fetcher(store, gateway.metrics.store_failures, gateway.news.ring)
    yield store
    running.stop_following()
    gateway.fetcher.close()


def promote(running: Running, version: int) -> httpx.Response:
    return running.client("root-key").post(f"/v1/policies/{version}/promote")


def test_without_a_store_old_releases_are_deleted_and_promoting_one_says_so(
    running: Running, alone: AdapterStore
) -> None:
    releases = []
    for version in range(1, 7):
        releases.append(release(running, alone, version, version - 1))
        wait_for_live(running, version)
    wait_for(lambda: not alone.here(releases[2]))
    assert [alone.here(one) for one in releases] == [False, False, False, True, True, True]
    refused = promote(running, 1)
    assert (refused.status_code, refused.json()["error"]["code"]) == (410, "policy_deleted")
    assert releases[0].directory in refused.json()["error"]["hint"]
    assert failures(running, "missing") == 0
    assert answered_by(running) == "apprentice@000006"
    assert promote(running, 5).json()["version"] == 5


def test_while_the_log_has_not_been_read_nothing_is_deleted(running: Running, alone: AdapterStore) -> None:
    running.stop_following()
    running.run(Follower(running.gateway).reconcile())
    running.gateway.behind = "the log cannot be read"
    releases = [release(running, alone, version, 0) for version in range(1, 7)]
    refused = [ReleaseRejected(version=one.version, why="x", by="server") for one in releases]
    write(running, *refused)
    wait_for(lambda: len(running.gateway.buffer.view.rejected()) == 6)
    running.run(Follower(running.gateway).reconcile())
    assert all(alone.here(one) for one in releases)
    running.gateway.behind = None
    running.run(Follower(running.gateway).reconcile())
    assert [alone.here(one) for one in releases] == [False, False, False, True, True, True]


def test_what_is_about_to_become_live_stays_loaded(
    running: Running, learner: AdapterStore, server: AdapterStore
) -> None:
    for version in range(1, 6):
        release(running, learner, version, version - 1)
        wait_for_live(running, version)
    running.stop_following()

    async def promoting() -> None:
        async with running.gateway.hold(1):
            await running.gateway.install(1)
            await Follower(running.gateway).reconcile()
            assert 1 in running.policies.resident
        await Follower(running.gateway).reconcile()

    running.run(promoting())
    assert set(running.policies.resident) == {0, 3, 4, 5}


def test_what_is_about_to_become_live_is_not_deleted(running: Running, alone: AdapterStore) -> None:
    running.stop_following()
    releases = [release(running, alone, version, 0) for version in range(1, 7)]
    write(running, *[ReleaseRejected(version=one.version, why="x", by="server") for one in releases])
    wait_for(lambda: len(running.gateway.buffer.view.rejected()) == 6)

    async def promoting() -> None:
        async with running.gateway.hold(1):
            await Follower(running.gateway).reconcile()

    running.run(promoting())
    assert [alone.here(one) for one in releases] == [True, False, False, True, True, True]
