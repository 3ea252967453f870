"""The adapter store: what is put is fetched whole, and nothing else ever is."""

import errno
import hashlib
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from buffer.adapters import CONFIG, MANIFEST, WEIGHTS, AdapterInvalid, verify
from buffer.config import AdaptersConfig, BufferConfig, ConfigError, load, resolved
from buffer.records import AliasMoved, Release, RoundEnded, RoundPlanned
from buffer.rounds import Alias, Round
from buffer.store import AdapterStore, StoreUnavailable, needed
from tests.buffer.stores import FailingFileSystem, away, failing, made


@pytest.fixture(params=["file", "failing"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty store: files of a shared disk, or objects."""
    return f"{request.param}://{tmp_path}/store"


@pytest.fixture
def objects(tmp_path: Path) -> str:
    """Of an empty store of objects, whose calls can fail."""
    return f"failing://{tmp_path}/store"


def opened(root: Path, url: str | None, keep: int = 3) -> AdapterStore:
    return AdapterStore(root, AdaptersConfig(url=url, keep=keep))


def test_what_the_learner_puts_a_server_fetches(tmp_path: Path, url: str) -> None:
    release = made(tmp_path / "learner", 1)
    learner, server = opened(tmp_path / "learner", url), opened(tmp_path / "server", url)
    learner.put(release)
    learner.put(release)
    assert not server.here(release)
    server.fetch(release)
    assert verify(tmp_path / "server", release, max_rank=16).version == 1
    assert [p.name for p in (tmp_path / "server").iterdir()] == [release.directory]
    server.fetch(release)


def test_processes_on_a_shared_disk_see_each_others_releases(tmp_path: Path) -> None:
    release, url = made(tmp_path / "learner", 1), f"file://{tmp_path}/store"
    opened(tmp_path / "learner", url).put(release)
    fetch = (
        "import sys; from pathlib import Path; from buffer.config import AdaptersConfig;"
        "from buffer.records import Release; from buffer.store import AdapterStore;"
        "AdapterStore(Path(sys.argv[1]), AdaptersConfig(url=sys.argv[2]))"
        ".fetch(Release.model_validate_json(sys.argv[3]))"
    )
    there = str(tmp_path / "server")
    subprocess.run([sys.executable, "-c", fetch, there, url, release.model_dump_json()], check=True)
    verify(tmp_path / "server", release, max_rank=16)


@pytest.mark.parametrize("calls", range(4))
def test_a_release_is_visible_only_when_whole(tmp_path: Path, objects: str, calls: int) -> None:
    release = made(tmp_path / "learner", 1)
    learner, server = opened(tmp_path / "learner", objects), opened(tmp_path / "server", objects)
    left = calls

    def dies(method: str, path: str) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise ConnectionError("cut off")

    with failing(dies), pytest.raises(StoreUnavailable):
        learner.put(release)
    with pytest.raises(StoreUnavailable) as refused:
        server.fetch(release)
    assert refused.value.reason == "missing"
    learner.put(release)
    server.fetch(release)


@pytest.mark.parametrize("calls", range(3))
def test_a_fetch_that_is_cut_off_leaves_nothing(tmp_path: Path, objects: str, calls: int) -> None:
    release = made(tmp_path / "learner", 1)
    opened(tmp_path / "learner", objects).put(release)
    server, left = opened(tmp_path / "server", objects), calls

    def dies(method: str, path: str) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise ConnectionError("cut off")

    with failing(dies), pytest.raises(StoreUnavailable) as refused:
        server.fetch(release)
    assert refused.value.reason == "unreachable"
    assert not server.here(release)
    assert not (tmp_path / "server").exists() or list((tmp_path / "server").iterdir()) == []
    server.fetch(release)


def test_what_a_killed_fetch_left_does_not_get_into_the_release(tmp_path: Path, url: str) -> None:
    release = made(tmp_path / "learner", 1)
    opened(tmp_path / "learner", url).put(release)
    left = tmp_path / "server" / f".{release.directory}.fetched"
    left.mkdir(parents=True)
    (left / "half").write_bytes(b"x")
    opened(tmp_path / "server", url).fetch(release)
    verify(tmp_path / "server", release, max_rank=16)
    assert not left.exists()


def test_two_processes_of_one_state_directory_fetch_the_same_at_once(tmp_path: Path, objects: str) -> None:
    release = made(tmp_path / "learner", 1)
    opened(tmp_path / "learner", objects).put(release)
    here, state = [opened(tmp_path / "state", objects) for _ in range(2)], tmp_path / "state"
    calls = iter(range(99))

    def the_other(method: str, path: str) -> None:
        if next(calls) == 2:  # the first has one file already
            here[1].fetch(release)

    with failing(the_other):
        here[0].fetch(release)
    verify(state, release, max_rank=16)
    assert [path.name for path in state.iterdir()] == [release.directory]


def test_what_killed_fetches_left_goes_with_the_release(tmp_path: Path, url: str) -> None:
    store = opened(tmp_path / "learner", url)
    releases = [made(store.root, version) for version in (1, 2)]
    left = [store.root / f".{releases[0].directory}.fetched{more}" for more in ("", "x1", "x2")]
    for one in left:
        one.mkdir()
    store.sweep(releases, {2})
    assert not any(one.exists() for one in left)


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG, MANIFEST])
def test_what_was_changed_in_the_store_is_not_taken(tmp_path: Path, name: str) -> None:
    release = made(tmp_path / "learner", 1)
    opened(tmp_path / "learner", f"file://{tmp_path}/store").put(release)
    with (tmp_path / "store" / release.directory / name).open("ab") as file:
        file.write(b" ")
    server = opened(tmp_path / "server", f"file://{tmp_path}/store")
    with pytest.raises(StoreUnavailable) as refused:
        server.fetch(release)
    assert (refused.value.reason, server.here(release)) == ("damaged", False)


def test_a_manifest_that_a_cut_left_behind_half_is_written_again(tmp_path: Path) -> None:
    release, url = made(tmp_path / "learner", 1), f"file://{tmp_path}/store"
    learner = opened(tmp_path / "learner", url)
    learner.put(release)
    (tmp_path / "store" / release.directory / MANIFEST).write_bytes(b'{"version": 1,')
    learner.put(release)
    opened(tmp_path / "server", url).fetch(release)


def test_a_damaged_release_is_not_put(tmp_path: Path, url: str) -> None:
    release = made(tmp_path / "learner", 1)
    (tmp_path / "learner" / release.directory / CONFIG).write_bytes(b"{}")
    with pytest.raises(AdapterInvalid, match="SHA-256"):
        opened(tmp_path / "learner", url).put(release)


@pytest.mark.parametrize(
    "directory", ["../../etc", "000001-../../../x", "/etc/passwd", "000001-3f9c0a1b2c4d/.."]
)
def test_a_name_from_the_log_that_is_no_releases_becomes_no_path(
    tmp_path: Path, url: str, directory: str
) -> None:
    forged = Release(version=1, digest="d" * 64, directory=directory)
    store = opened(tmp_path / "server", url)
    for call in (store.here, store.put, store.fetch, store.remove):
        with pytest.raises(AdapterInvalid, match="not a release directory"):
            call(forged)


def test_a_file_name_in_a_manifest_stays_inside_its_directory(tmp_path: Path) -> None:
    store = tmp_path / "store"
    raw = json.dumps(
        {"version": 1, "alias": "a", "parent": 0, "round": 1, "base": "b", "rank": 4,
         "files": {"../../evil": "0" * 64}}
    ).encode()  # fmt: skip
    digest = hashlib.sha256(raw).hexdigest()
    release = Release(version=1, digest=digest, directory=f"000001-{digest[:12]}")
    (store / release.directory).mkdir(parents=True)
    (store / release.directory / MANIFEST).write_bytes(raw)
    (tmp_path / "evil").write_bytes(b"x")
    with pytest.raises(StoreUnavailable, match="should match pattern") as refused:
        opened(tmp_path / "server", f"file://{store}").fetch(release)
    assert refused.value.reason == "damaged"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FileNotFoundError("gone"), "missing"),
        (PermissionError("no"), "denied"),
        (OSError(errno.ENOSPC, "full"), "full"),
        (RuntimeError("whatever a library raises"), "unreachable"),
    ],
)
def test_a_failure_has_a_reason_and_a_hint(
    tmp_path: Path, objects: str, error: Exception, reason: str
) -> None:
    def fails(method: str, path: str) -> None:
        raise error

    release = made(tmp_path / "learner", 1)
    with failing(fails), pytest.raises(StoreUnavailable) as refused:
        opened(tmp_path / "server", objects).fetch(release)
    assert refused.value.reason == reason
    assert refused.value.hint
    assert release.directory in str(refused.value)


def test_without_a_store_the_local_directory_is_all_there_is(tmp_path: Path) -> None:
    release = made(tmp_path / "here", 1)
    opened(tmp_path / "here", None).put(release)
    opened(tmp_path / "here", None).fetch(release)
    with pytest.raises(StoreUnavailable, match=r"no \[buffer.adapters\] url") as refused:
        opened(tmp_path / "elsewhere", None).fetch(release)
    assert refused.value.reason == "missing"


def test_without_a_store_a_machine_keeps_the_newest_and_the_needed_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    store = opened(tmp_path / "here", None, keep=3)
    releases = [made(store.root, version) for version in range(1, 7)]
    unknown = made(store.root, 9)
    store.sweep(releases, {0, 2})
    store.trim(releases, set())
    assert [r.version for r in releases if not store.here(r)] == [1, 3]
    assert store.here(unknown), "it may be on its way into the log"
    assert releases[0].directory in caplog.text and releases[2].directory in caplog.text
    assert not list(store.root.glob(".*deleted"))


def test_a_deletion_that_was_cut_short_is_finished(tmp_path: Path) -> None:
    store = opened(tmp_path / "here", None, keep=3)
    releases = [made(store.root, version) for version in range(1, 5)]
    half = store.root / f".{releases[0].directory}.deleted"
    (store.root / releases[0].directory).rename(half)
    store.sweep(releases, set())
    assert not half.exists()


@pytest.mark.parametrize("url", ["nosuchprotocol://bucket/prefix"])
def test_a_url_that_nothing_here_understands_is_a_wrong_setting(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match="nosuchprotocol") as refused:
        opened(tmp_path, url)
    assert "install" in refused.value.hint


def test_a_path_is_not_a_url(tmp_path: Path) -> None:
    env = {"APPRENTICE_BUFFER_ADAPTERS_URL": "/mnt/shared"}
    with pytest.raises(ConfigError, match=r"buffer\.adapters\.url"):
        load(BufferConfig, "buffer", env=env)


def test_the_stores_secrets_are_masked() -> None:
    options = {"key": "k", "secret": "hush", "client_kwargs": {"aws_session_token": "hush", "region": "x"}}
    shown = resolved(AdaptersConfig(url="s3://bucket", options=options))
    assert "hush" not in str(shown)
    assert shown["options"]["client_kwargs"]["region"] == "x"


# --- what is kept ------------------------------------------------------------------------------------


def moves(*versions: int) -> Alias:
    made = tuple(
        AliasMoved(alias="apprentice", version=v, epoch=i, why="promote", by="op")
        for i, v in enumerate(versions)
    )
    return Alias(versions[-1] if versions else 0, len(versions), made)


def passed(version: int, parent: int) -> Round:
    planned = RoundPlanned(round=version, parent=parent, lessons=[], seed=1, base="b" * 64, config={})
    release = Release(version=version, digest="d" * 64, directory=f"{version:06d}-{'d' * 12}")
    return Round(planned, 0.0, RoundEnded(round=version, verdict="passed", release=release), 1.0)


def test_needed_is_what_is_live_was_live_lately_or_may_become_live() -> None:
    rounds = [passed(v, v - 1) for v in range(1, 6)] + [passed(6, 5), passed(7, 5), passed(8, 4)]
    assert needed(moves(1, 2, 3, 4, 5), rounds, [7]) == {3, 4, 5, 6, 8}, "8 may, after a move back to 4"
    assert needed(moves(), rounds[:1], []) == {0, 1}


def test_what_the_round_under_way_starts_from_is_needed() -> None:
    under_way = Round(passed(9, 1).planned, 0.0, None, None)
    assert needed(moves(1, 2, 3, 4, 5), [under_way], []) == {1, 3, 4, 5}


def test_where_a_rollback_leads_is_needed() -> None:
    back = moves(1, 2, 3, 4, 5)
    rolled = tuple(
        AliasMoved(alias="apprentice", version=v, epoch=e, why="rollback", by="op")
        for v, e in ((4, 5), (3, 6))
    )
    alias = Alias(3, 7, back.moves + rolled)
    assert alias.previous == 2
    assert 2 in needed(alias, [], [])


def test_a_machine_lets_go_of_what_nothing_keeps_and_the_store_has(tmp_path: Path, url: str) -> None:
    store = opened(tmp_path / "learner", url)
    releases = [made(store.root, version) for version in (1, 2, 3)]
    unknown = made(store.root, 9)
    for release in releases:
        store.put(release)
    store.sweep(releases, {0, 3})
    assert [store.here(release) for release in releases] == [False, False, True]
    assert store.here(unknown), "it may be on its way into the log"
    store.fetch(releases[0])


def test_the_store_keeps_the_newest_and_the_needed(tmp_path: Path, url: str) -> None:
    store = opened(tmp_path / "learner", url, keep=3)
    releases = [made(store.root, version) for version in range(1, 7)]
    for release in releases:
        store.put(release)
    store.trim(releases, {0, 2})
    server = opened(tmp_path / "server", url)
    gone = []
    for release in releases:
        try:
            server.fetch(release)
        except StoreUnavailable as error:
            assert error.reason == "missing"
            gone.append(release.version)
    assert gone == [1, 3]
    store.trim(releases, {0, 2})


def test_a_deletion_that_is_cut_off_leaves_nothing_visible(tmp_path: Path, objects: str) -> None:
    store = opened(tmp_path / "learner", objects, keep=3)
    releases = [made(store.root, version) for version in range(1, 5)]
    for release in releases:
        store.put(release)

    def dies(method: str, path: str) -> None:
        if method == "rm":
            raise ConnectionError("cut off")

    with failing(dies), pytest.raises(StoreUnavailable):
        store.trim(releases, set())
    with pytest.raises(StoreUnavailable) as refused:
        opened(tmp_path / "server", objects).fetch(releases[0])
    assert refused.value.reason == "missing"
    store.trim(releases, set())
    left = [path for path in FailingFileSystem.store if str(tmp_path) in path]
    assert left
    assert not [path for path in left if releases[0].directory in path]


def test_a_release_that_must_not_be_served_is_nowhere(tmp_path: Path, url: str) -> None:
    store = opened(tmp_path / "learner", url)
    release = made(store.root, 1)
    store.put(release)
    store.remove(release)
    with pytest.raises(StoreUnavailable):
        store.fetch(release)


def test_a_store_that_is_away_says_so(tmp_path: Path, objects: str) -> None:
    release = made(tmp_path / "learner", 1)
    with failing(away), pytest.raises(StoreUnavailable, match="the store is away"):
        opened(tmp_path / "learner", objects).put(release)
