import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from buffer import files
from buffer.journal import Journal
from buffer.replay import From, follow
from buffer.view import View
from server import cli
from server.commands.replay import beginning
from tests import recorded

VIEWS = ("server/view.db", "learner/view.db")


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    state = recorded.restored(tmp_path / "state")
    with closing(Journal(state / "journal.db")) as journal:
        for name in VIEWS:
            with closing(View(state / name)) as view:
                follow(journal, view)
    return state


def replay(state: Path, *more: str) -> int:
    return cli.main(["replay", "--state", str(state), *more])


def told(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def spoil(state: Path) -> None:
    with closing(sqlite3.connect(state / VIEWS[1])) as db:
        db.execute("DELETE FROM rejected")
        db.commit()


def test_nothing_differs(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = [(state / name).stat().st_ino for name in VIEWS]
    assert replay(state) == 0
    assert capsys.readouterr().out == (
        "server: 43 records replayed, nothing differs\nlearner: 43 records replayed, nothing differs\n"
    )
    assert [(state / name).stat().st_ino for name in VIEWS] == before, "they are left alone"
    assert [path.name for path in (state / "server").iterdir()] == ["view.db"]


def test_what_a_replay_that_was_killed_left_is_deleted(state: Path) -> None:
    left, others = (state / "server" / f".replay-{name}" for name in ("killed", "running"))
    for folder in (left, others):
        folder.mkdir()
        (folder / "copy.db").write_bytes(b"x")
    running = files.lock(others / "lock")
    assert running is not None
    with open(running, "rb"):
        assert replay(state) == 0
        assert not left.exists() and (others / "copy.db").exists()


def test_a_view_that_differs_is_replaced(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil(state)
    assert replay(state, "--json") == 1
    server, learner = told(capsys)
    assert (server["same"], server["replaced"]) == (True, False)
    assert (learner["same"], learner["replaced"]) == (False, True)
    assert learner["differences"] == [
        {"table": "rejected", "only_there": 0, "only_from_log": 1, "examples": ["9"]}
    ]
    assert replay(state) == 0


def test_under_a_running_process_it_is_only_compared(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil(state)
    owned = files.lock(state / "run" / "learner.lock")
    assert owned is not None
    with open(owned, "rb"), closing(View(state / VIEWS[1])) as view:
        assert replay(state) == 1
        assert "left alone, because its process runs" in capsys.readouterr().out
        assert view.rejected() == {}
    assert replay(state) == 1
    assert replay(state) == 0


def test_from_a_time_or_positions_gives_the_same(state: Path) -> None:
    spoil(state)
    assert replay(state, "--from", '{"control": {"0": 44}, "rounds": {"0": 44}}') == 0, "it was before that"
    assert replay(state, "--from", "2026-01-01T00:00:36") == 1
    assert replay(state) == 0


def test_a_state_that_never_ran_has_nothing_to_compare(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert replay(recorded.restored(tmp_path / "new")) == 0
    assert "nothing to compare" in capsys.readouterr().out


def test_what_from_takes() -> None:
    assert beginning("2026-05-01") == From(time=datetime(2026, 5, 1, tzinfo=UTC))
    assert beginning("2026-05-01T12:00:00+02:00") == From(time=datetime(2026, 5, 1, 10, tzinfo=UTC))
    assert beginning('{"rounds": {"0": 4}}') == From({"rounds": {0: 4}})


@pytest.mark.parametrize(
    "text", ["yesterday", "{", '{"songs": {"0": 1}}', '{"rounds": 3}', '{"rounds": {"a": 1}}']
)
def test_another_from_is_refused(text: str, state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        replay(state, "--from", text)
    assert ended.value.code == 2
    assert "--from takes" in capsys.readouterr().err
