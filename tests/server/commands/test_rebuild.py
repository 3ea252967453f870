import json
import shlex
from contextlib import closing
from pathlib import Path

import pytest

from buffer.config import BufferConfig
from buffer.journal import Journal
from buffer.records import FeedbackGiven
from buffer.replay import follow
from buffer.view import View
from server import cli
from server.commands.rebuild import next_command
from tests import recorded


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """As little as looks like a model."""
    directory = tmp_path / "new base"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(b"")
    return directory


def rebuild(state: Path, base: Path, target: Path, *more: str) -> int:
    return cli.main(["rebuild", "--base", str(base), "--to", str(target), "--state", str(state), *more])


def test_the_lessons_and_nothing_else_are_in_the_new_state(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, target = recorded.restored(tmp_path / "state"), tmp_path / "new" / "state"
    before = (state / "journal.db").read_bytes()
    assert rebuild(state, base, target, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["lessons"], told["without_tools"]) == (5, 1)
    assert set(told["left_out"]) == {
        "erased", "withdrawn", "superseded", "quarantined", "skipped", "no_text", "no_user_turn"
    }  # fmt: skip
    assert shlex.split(told["next"]) == ["apprentice", "up", "--state", str(target), "--model", str(base)]
    assert (state / "journal.db").read_bytes() == before
    assert [path.name for path in target.parent.iterdir()] == ["state"]
    with closing(Journal(target / "journal.db")) as journal, closing(View(":memory:")) as view:
        follow(journal, view)
        records, _ = journal.read({})
        lessons = {f.feedback_id: f for f in view.all_feedback()}
    assert [record.type for record in records] == 5 * [FeedbackGiven.type]
    assert list(lessons) == recorded.TAUGHT
    assert {f.fate.status for f in lessons.values()} == {"received"}, "the new learner judges them itself"
    given = lessons["fb-2"].given
    assert given is not None and (given.kind, given.principal) == ("instruction", "ann")
    assert given.messages is not None and given.messages[-1].content == "What does the bakery sell?"
    assert lessons["fb-2"].received == next(
        r.time.timestamp() for r in recorded.records() if b'"fb-2"' in (r.data or b"")
    )


def test_it_says_what_to_type_next(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rebuild(recorded.restored(tmp_path / "state"), base, tmp_path / "new") == 0
    out = capsys.readouterr().out
    assert "lessons taken along: 5; left out: 1 erased" in out
    assert f"apprentice up --state {tmp_path / 'new'} --model '{base}'" in out


def test_what_is_there_is_not_written_over(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = recorded.restored(tmp_path / "state")
    assert rebuild(state, base, state) == 1
    assert "exists already" in capsys.readouterr().err


def test_a_model_that_is_not_there_is_found_out_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = recorded.restored(tmp_path / "state")
    assert rebuild(state, tmp_path / "no model", tmp_path / "new") == 1
    assert "there is no model" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_without_lessons_there_is_nothing_to_make(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Journal(tmp_path / "state" / "journal.db").close()
    assert rebuild(tmp_path / "state", base, tmp_path / "new") == 1
    assert "nothing to learn again" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_under_kafka_the_new_state_gets_topics_of_its_own() -> None:
    command = next_command(Path("/s/new"), "m", BufferConfig(backend="kafka"))
    assert command.startswith("APPRENTICE_BUFFER_KAFKA_TOPIC_PREFIX=apprentice.new. apprentice up ")
