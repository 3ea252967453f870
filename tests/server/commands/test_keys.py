"""`apprentice keys`: on a state directory's log, with or without a server on it."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from buffer.journal import Journal
from buffer.records import KeyAdded, KeyRevoked, Record
from server import cli
from server.commands.state import keys_of
from server.identity import digest_of
from tests import recorded
from tests.buffer.conftest import START, make


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default state is in here."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def keys(*arguments: str) -> int:
    return cli.main(["keys", *arguments])


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert keys(*arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


def listed(capsys: pytest.CaptureFixture[str]) -> dict[str, list[str]]:
    return {one["name"]: one["scopes"] for one in told(capsys, "list")["keys"]}


def test_a_key_is_printed_alone_and_once_and_its_digest_kept(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert keys("add", "ann", "--scope", "infer", "--scope", "learn") == 0
    out, err = capsys.readouterr()
    key = out.strip()
    assert key.startswith("ap-") and len(key) >= 3 + 43 and out == f"{key}\n"
    assert "infer, learn" in err and "nobody is an admin yet" in err and key not in err
    with closing(Journal(folder / ".apprentice" / "journal.db")) as journal:
        (record,) = journal.read({})[0]
        added = record.payload()
    assert isinstance(added, KeyAdded) and added.by
    assert (added.principal, added.digest) == ("ann", digest_of(key).hex())
    assert key.encode() not in (folder / ".apprentice" / "journal.db").read_bytes()
    assert keys("list") == 0
    shown = capsys.readouterr().out
    assert "ann  infer, learn" in shown and key not in shown


def test_what_a_key_opens_is_said_or_asking_and_feedback(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["ann"], ["scraper", "--scope", "none"], ["root", "--scope", "admin"]):
        told(capsys, "add", *arguments)
    assert listed(capsys) == {"ann": ["infer", "feedback"], "root": ["admin"], "scraper": []}


def test_a_name_has_one_key_until_it_is_revoked(capsys: pytest.CaptureFixture[str]) -> None:
    first = told(capsys, "add", "ann")["key"]
    assert keys("add", "ann") == 1
    assert "apprentice keys revoke ann" in capsys.readouterr().err
    assert told(capsys, "revoke", "ann") == {"name": "ann", "revoked": True}
    assert told(capsys, "list") == {"keys": [], "open_to_this_machine": False}
    assert told(capsys, "add", "ann")["key"] != first
    assert list(listed(capsys)) == ["ann"]


def test_what_is_not_there_is_not_revoked(capsys: pytest.CaptureFixture[str]) -> None:
    told(capsys, "add", "ann")
    assert keys("revoke", "ben") == 1
    assert "apprentice keys list" in capsys.readouterr().err


def test_the_last_key_that_is_revoked_shuts_everybody_out(capsys: pytest.CaptureFixture[str]) -> None:
    told(capsys, "add", "ann")
    assert keys("revoke", "ann") == 0
    assert "nobody may call now" in capsys.readouterr().err
    assert keys("list") == 0
    assert "every key was revoked" in capsys.readouterr().out


def test_configured_names_are_listed_and_cannot_be_added_or_revoked(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "apprentice.toml").write_text(
        f'[server]\nadmins = ["root"]\n[server.keys]\nroot = "{"ab" * 32}"\ndan = "{"cd" * 32}"\n'
    )
    assert keys("add", "root") == 1
    assert "[server.keys]" in capsys.readouterr().err
    assert keys("add", "ann") == 0
    assert "nobody is an admin" not in capsys.readouterr().err
    assert listed(capsys) == {
        "ann": ["infer", "feedback"],
        "root": ["infer", "feedback", "admin"],
        "dan": ["infer", "feedback"],
    }
    assert keys("revoke", "dan") == 1
    assert "out of [server.keys]" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["", "a b", "a/b", "a" * 101, "ann\n"])
def test_a_name_fits_in_a_path(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        keys("add", name)
    assert ended.value.code == 2


def test_a_state_without_a_log_has_nothing_to_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert keys("list") == 1
    assert "--state DIR" in capsys.readouterr().err


def test_an_exported_log_takes_its_keys_along(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = told(capsys, "add", "ann")["key"]
    assert cli.main(["export", "log.jsonl"]) == 0
    assert cli.main(["import", "--log", "log.jsonl", "--state", "new"]) == 0
    assert key not in (folder / "log.jsonl").read_text()
    capsys.readouterr()
    assert [one["name"] for one in told(capsys, "list", "--state", "new")["keys"]] == ["ann"]
    assert keys("add", "ann", "--state", "new") == 1


def test_keys_are_read_past_everything_else(folder: Path) -> None:
    state = recorded.restored(folder / "state")
    with closing(Journal(state / "journal.db")) as journal:
        assert not keys_of(journal).ever
        added = [KeyAdded(principal=who, digest="ab" * 32, scopes=[], by="x") for who in ("ann", "ben")]
        said = [*added, KeyRevoked(principal="ann", by="x")]
        journal.append([Record.of(one, time=START, randomness=bytes(10)) for one in said]).result()
        journal.append([make(number) for number in range(600)]).result()
        assert [key.principal for key, _ in keys_of(journal).added] == ["ben"]
