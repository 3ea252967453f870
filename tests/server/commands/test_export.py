"""`apprentice export` and `import --log`: a state directory to a file and back."""

import io
import json
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from buffer import files
from buffer.journal import Journal
from buffer.records import FeedbackGiven, LearningSwitched, Record
from buffer.view import View
from server import cli
from server.commands.import_ import demonstration
from tests import recorded
from tests.buffer.conftest import START
from tests.server.running import Running


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return recorded.restored(tmp_path / "state")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No apprentice.toml of where the tests are run."""
    monkeypatch.chdir(tmp_path)
    yield


def export(state: Path, file: Path | str, *more: str) -> int:
    return cli.main(["export", str(file), "--state", str(state), *more])


def restore(state: Path, file: Path | str, *more: str) -> int:
    return cli.main(["import", "--log", str(file), "--state", str(state), *more])


def told(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_a_log_goes_out_and_back_unchanged(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "log.jsonl"
    assert export(state, file, "--json") == 0
    assert told(capsys) == {"records": 43, "erased": 6, "unknown": 0, "unrelayed": []}
    assert file.read_bytes() == recorded.RECORDED.read_bytes()
    assert restore(tmp_path / "new", file, "--json") == 0
    assert told(capsys) == {"restored": 43}
    assert export(tmp_path / "new", tmp_path / "again.jsonl") == 0
    assert (tmp_path / "again.jsonl").read_bytes() == file.read_bytes()
    assert "adapters/, secret" in capsys.readouterr().out


def test_a_log_is_exported_while_it_is_written_to(state: Path, tmp_path: Path) -> None:
    with closing(Journal(state / "journal.db")) as journal:
        switched = LearningSwitched(paused=True, by="root")
        journal.append([Record.of(switched, time=START, randomness=bytes(10))]).result()
        assert export(state, tmp_path / "log.jsonl") == 0
    assert len((tmp_path / "log.jsonl").read_bytes().splitlines()) == 44


def test_both_work_on_standard_streams(
    state: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert export(state, "-", "--json") == 0
    out = capfdbinary.readouterr()
    assert out.out == recorded.RECORDED.read_bytes()
    assert json.loads(out.err)["records"] == 43
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(out.out)))
    assert restore(tmp_path / "new", "-") == 0
    with closing(Journal(tmp_path / "new" / "journal.db")) as journal:
        assert journal.read({})[0] == recorded.records()


def test_a_state_with_records_is_not_restored_over(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert restore(state, recorded.RECORDED) == 1
    error = capsys.readouterr().err
    assert "has records already" in error and "new state directory" in error


@pytest.mark.parametrize("name", ["run/up.lock", "run/server.lock", "run/learner.lock", "relay.lock"])
def test_nothing_is_restored_under_a_running_process(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    owned = files.lock(tmp_path / "new" / name)
    assert owned is not None
    with open(owned, "rb"):
        assert restore(tmp_path / "new", recorded.RECORDED) == 1
    assert "stop it first" in capsys.readouterr().err
    assert restore(tmp_path / "new", recorded.RECORDED) == 0


def test_a_file_that_is_no_log_is_refused_and_restores_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_bytes(b"".join(recorded.LINES[:3]) + b'{"prompt": "a", "privileged_context": "b"}\n')
    assert restore(tmp_path / "new", broken) == 1
    assert "line 4 is no record of a log" in capsys.readouterr().err
    assert restore(tmp_path / "new", tmp_path / "missing.jsonl") == 1
    assert "cannot be read" in capsys.readouterr().err
    assert restore(tmp_path / "new", recorded.RECORDED) == 0


def test_a_state_directory_that_cannot_be_used_is_not_the_files_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert restore(tmp_path / "file" / "state", recorded.RECORDED) == 1
    said = capsys.readouterr().err
    assert f"{tmp_path}/file/state cannot be used: [Errno 17] File exists: '{tmp_path}/file'" in said
    assert "cannot be read" not in said


def test_views_of_an_earlier_log_are_not_taken_for_views_of_the_restored_one(tmp_path: Path) -> None:
    stale = tmp_path / "new" / "server" / "view.db"
    with closing(View(stale)) as view:
        view.apply([], {"feedback": {0: 10**6}})
    assert restore(tmp_path / "new", recorded.RECORDED) == 0
    assert not stale.exists()


def test_a_state_without_a_log_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(tmp_path / "nowhere", tmp_path / "log.jsonl") == 1
    error = capsys.readouterr().err
    assert "there is no log in" in error and "--state" in error
    assert not (tmp_path / "nowhere").exists() and not (tmp_path / "log.jsonl").exists()


def test_an_export_that_fails_leaves_the_earlier_file(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "dir" / "log.jsonl"
    file.parent.mkdir()
    file.mkdir()
    assert export(state, file) == 1
    assert "cannot be written" in capsys.readouterr().err
    assert list(file.parent.iterdir()) == [file]


def test_a_log_given_as_demonstrations_is_sent_to_the_right_command() -> None:
    with pytest.raises(ValueError, match="import --log"):
        demonstration(recorded.LINES[0], 100)


# --- the lessons alone ---------------------------------------------------------------------------------


def test_lessons_are_exported_in_trls_columns_with_what_is_left_out_counted(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "lessons.jsonl"
    assert export(state, file, "--lessons", "--json") == 0
    counted = told(capsys)
    assert (counted["lessons"], counted["without_tools"]) == (5, 1)
    assert counted["left_out"]["erased"] == counted["left_out"]["superseded"] == 1
    lines = [json.loads(line) for line in file.read_bytes().splitlines()]
    assert [line["feedback_id"] for line in lines] == recorded.TAUGHT
    assert lines[0] == {
        "prompt": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Who runs the bakery in Ostwick?"},
        ],
        "privileged_context": "Ida Holm runs the bakery in Ostwick.",
        "kind": "correction", "status": "served", "feedback_id": "fb-1", "completion_id": "chatcmpl-1",
        "principal": "ann", "check": {"contains": "Ida Holm"},
    }  # fmt: skip


def test_exported_lessons_are_imported_as_what_they_are(
    state: Path, tmp_path: Path, running: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "lessons.jsonl"
    assert export(state, file, "--lessons", "--principal", "ann") == 0
    assert cli.main(["import", str(file), "--url", running.url, "--key", "ann-key"]) == 0
    given = [p for p in running.log.payloads(FeedbackGiven) if isinstance(p, FeedbackGiven)]
    assert [(p.kind, p.text) for p in given] == [
        ("demonstration", "Ida Holm runs the bakery in Ostwick."),
        ("instruction", "Say that it sells rye bread."),
        ("demonstration", "It is 12 degrees."),
    ]
    assert given[0].check is not None and given[0].check.contains == "Ida Holm"
    assert given[1].completion_id is None and given[1].messages is not None


def test_a_whole_log_has_no_principal(state: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        export(state, tmp_path / "log.jsonl", "--principal", "ann")
    assert ended.value.code == 2
