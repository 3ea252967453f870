import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from buffer import files


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are synced and renamed, in order."""
    seen: list[str] = []
    fsync, replace, rename = os.fsync, os.replace, os.rename

    def record_fsync(fd: int) -> None:
        seen.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{fd}')).name}")
        fsync(fd)

    def record_rename(name: str) -> object:
        def call(source: str, target: str) -> None:
            seen.append(f"rename {Path(target).name}")
            (replace if name == "replace" else rename)(source, target)

        return call

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_rename("replace"))
    monkeypatch.setattr(os, "rename", record_rename("rename"))
    return seen


def test_bytes_are_synced_before_the_name_and_the_name_after(tmp_path: Path, calls: list[str]) -> None:
    files.write_durably(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert calls[0].startswith("fsync .file.")
    assert calls[1:] == ["rename file", f"fsync {tmp_path.name}"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "file"
    files.write_durably(target, b"old")

    def fail(fd: int) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        files.write_durably(target, b"new")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_scratch_is_gone_afterwards_and_so_is_what_the_killed_left(tmp_path: Path) -> None:
    hold = (
        "import sys, time; from pathlib import Path; from buffer.files import scratch\n"
        "with scratch(Path(sys.argv[1]), '.made-') as folder: print(folder, flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", hold, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        theirs = Path(other.stdout.readline().strip())
        with files.scratch(tmp_path, ".made-") as mine:
            assert {*tmp_path.iterdir()} == {mine, theirs}, "its owner lives"
        other.kill()
    assert [*tmp_path.iterdir()] == [theirs]
    with files.scratch(tmp_path, ".made-") as mine:
        assert [*tmp_path.iterdir()] == [mine]
    assert [*tmp_path.iterdir()] == []


def test_what_is_written_is_its_owners(tmp_path: Path) -> None:
    files.write_durably(tmp_path / "made" / "on the way" / "file", b"")
    assert stat.S_IMODE((tmp_path / "made" / "on the way" / "file").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "made").stat().st_mode) == 0o700


def test_a_directory_is_published_after_everything_in_it(tmp_path: Path, calls: list[str]) -> None:
    building = tmp_path / "building"
    (building / "inner").mkdir(parents=True)
    (building / "inner" / "a").write_text("a")
    (building / "b").write_text("b")
    files.publish_directory(building, tmp_path / "final")
    assert (tmp_path / "final" / "inner" / "a").read_text() == "a"
    assert not building.exists()
    at = calls.index("rename final")
    assert sorted(calls[:at]) == ["fsync a", "fsync b", "fsync building", "fsync inner"]
    assert calls[at + 1 :] == [f"fsync {tmp_path.name}"]


def test_what_is_published_is_never_replaced(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    files.publish_directory(tmp_path / "first", tmp_path / "final")
    with pytest.raises(FileExistsError):
        files.publish_directory(tmp_path / "second", tmp_path / "final")
    assert (tmp_path / "final" / "file").read_text() == "first"


def test_of_two_that_publish_at_once_the_second_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("second", "final"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    monkeypatch.setattr(Path, "exists", lambda _: False)
    with pytest.raises(FileExistsError):
        files.publish_directory(tmp_path / "second", tmp_path / "final")
    assert (tmp_path / "final" / "file").read_text() == "final"


def test_a_lock_has_one_owner_and_outlives_no_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    code = (
        "import pathlib, sys, time; from buffer import files; "
        "print(files.lock(pathlib.Path(sys.argv[1])) is not None, flush=True); time.sleep(600)"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code, path],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert owner.stdout is not None
    assert owner.stdout.readline() == "True\n"
    assert files.lock(path) is None
    assert path.read_text() == f"{owner.pid}\n"
    owner.kill()
    owner.wait()
    owner.stdout.close()
    held = files.lock(path)
    assert held is not None
    assert files.lock(path) is None
    os.close(held)
