"""`apprentice doctor`: what it finds, its exit code, and that it goes on after a check that fails."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from buffer.adapters import CONFIG, MANIFEST, WEIGHTS
from buffer.files import write_durably
from buffer.journal import Journal
from server import cli
from server.commands.client import RUN_FILE
from server.commands.doctor import check_adapters, check_server, check_vllm
from tests.buffer.conftest import make
from tests.server.adapters import publish, write_stub_model, write_weights
from tests.server.running import Running


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The settings of a sound installation on the state directory `tmp_path / "state"`."""
    state, model = tmp_path / "state", tmp_path / "model"
    state.mkdir(mode=0o700)
    write_stub_model(model)
    file = tmp_path / "apprentice.toml"
    file.write_text(f'state = "{state}"\nmodel = "{model}"\n[engine]\nurl = "http://127.0.0.1:9"\n')
    return file


def doctor(capsys: pytest.CaptureFixture[str], config: Path, *more: str) -> tuple[int, dict[str, str]]:
    """Its exit code, and the verdict of each check."""
    code = cli.main(["doctor", "--json", "--config", str(config), *more])
    found = json.loads(capsys.readouterr().out)
    assert all(one["todo"] for one in found if one["verdict"] != "ok")
    return code, {one["check"]: one["verdict"] for one in found}


def test_a_sound_installation_has_nothing_wrong(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = Journal(config.parent / "state" / "journal.db")
    journal.append([make(1)]).result()
    journal.close()
    code, found = doctor(capsys, config)
    assert (code, set(found.values()) - {"warning"}) == (0, {"ok"})
    assert {
        "configuration",
        "state directory",
        "fsync",
        "journal",
        "clock",
        "model",
        "adapters",
        "vLLM",
    } <= set(found)


def test_what_is_wrong_fails_and_the_other_checks_are_made(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (config.parent / "state" / "journal.db").write_bytes(b"no journal" * 1000)
    (config.parent / "model" / "config.json").unlink()
    code, found = doctor(capsys, config)
    assert code == 1
    assert (found["journal"], found["model"], found["adapters"]) == ("wrong", "wrong", "ok")


def test_a_broker_that_is_away_is_found(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text(
        f'{config.read_text()}[buffer]\nbackend = "kafka"\n[buffer.kafka]\n'
        'bootstrap_servers = ["127.0.0.1:9"]\nclient = { bootstrap_timeout_ms = 300 }\n'
    )
    code, found = doctor(capsys, config)
    assert (code, found["broker"]) == (1, "wrong")


@pytest.mark.parametrize("wrong", ["[server]\nprot = 1\n", "[learner]\nstepps = 1\n", "[buffer\n"])
def test_a_configuration_that_does_not_load_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: str
) -> None:
    config = tmp_path / "apprentice.toml"
    config.write_text(wrong)
    assert doctor(capsys, config) == (1, {"configuration": "wrong"})


def test_for_people_it_is_a_line_a_check_and_the_next_step(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (config.parent / "state").chmod(0o755)
    assert cli.main(["doctor", "--config", str(config)]) == 0
    shown = capsys.readouterr().out
    assert "warning state directory: others may enter" in shown
    assert f"→ chmod 700 {config.parent / 'state'}" in shown


def tamper(directory: Path) -> None:
    with (directory / WEIGHTS).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")


def rewrite_the_manifest(directory: Path) -> None:
    manifest = json.loads((directory / MANIFEST).read_text())
    (directory / MANIFEST).write_text(json.dumps({**manifest, "parent": 7}))


def remove(directory: Path) -> None:
    (directory / CONFIG).unlink()


@pytest.mark.parametrize("damage", [tamper, rewrite_the_manifest, remove])
def test_an_adapter_that_was_changed_is_found(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    for version in (1, 2):
        write_weights(tmp_path / f"w{version}", seed=version)
        release = publish(
            tmp_path / "adapters", tmp_path / f"w{version}", version=version, candidate=[-1.0], parent=[-2.0]
        )
    assert check_adapters(tmp_path / "adapters", 16).says == "2 verified"
    damage(tmp_path / "adapters" / release.directory)
    found = check_adapters(tmp_path / "adapters", 16)
    assert found.verdict == "wrong"
    assert "1 of 2 damaged" in found.says and release.directory in found.says


def test_an_adapter_whose_rank_is_too_high_here_is_not_damaged(tmp_path: Path) -> None:
    write_weights(tmp_path / "w", seed=1)
    publish(tmp_path / "adapters", tmp_path / "w", version=1, candidate=[-1.0], parent=[-2.0])
    found = check_adapters(tmp_path / "adapters", 2)
    assert found.verdict == "wrong"
    assert "rank 4 is above the server's limit of 2" in found.says and "damaged" not in found.says
    assert "max_lora_rank" in found.todo


def test_vllm_is_not_needed_where_one_is_attached() -> None:
    assert check_vllm("http://127.0.0.1:8000").verdict == "ok"


def test_a_server_is_asked_for_its_learner(running: Running, tmp_path: Path) -> None:
    assert check_server(tmp_path, None).says == "none runs here"
    write_durably(tmp_path / RUN_FILE, json.dumps({"url": running.url, "pid": 1}).encode())
    found = check_server(tmp_path, "ann-key")
    assert found.verdict == "warning" and "apprentice learn" in found.todo
    assert "is not told" in check_server(tmp_path, "wrong-key").says
    running.gateway.engine.state = "down"
    assert "is not ready" in check_server(tmp_path, "ann-key").says


def test_a_server_that_is_gone_without_a_word_is_wrong(tmp_path: Path) -> None:
    write_durably(tmp_path / RUN_FILE, b'{"url": "http://127.0.0.1:9", "pid": 1}')
    found = check_server(tmp_path, None)
    assert found.verdict == "wrong" and "make up" in found.todo


def test_it_says_who_may_call(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def of_keys() -> tuple[str, str]:
        cli.main(["doctor", "--json", "--config", str(config)])
        (found,) = (one for one in json.loads(capsys.readouterr().out) if one["check"] == "keys")
        return found["verdict"], found["says"]

    def keys(*arguments: str) -> None:
        assert cli.main(["keys", *arguments, "--config", str(config)]) == 0
        capsys.readouterr()

    assert of_keys() == ("ok", "none: only programs on this machine may call")
    keys("add", "ann")
    assert of_keys() == ("warning", "1, none of an admin")
    keys("add", "root", "--scope", "admin")
    assert of_keys() == ("ok", "2; admin: root")
    keys("revoke", "ann")
    keys("revoke", "root")
    assert of_keys() == ("wrong", "every key was revoked, so nobody may call")
    config.write_text(f'{config.read_text()}[server]\nhost = "0.0.0.0"\n')
    verdict, says = of_keys()
    assert verdict == "wrong" and "open to others" in says
    keys("add", "ann")
    config.write_text(f'{config.read_text()}[server.keys]\nann = "{"ab" * 32}"\n')
    verdict, says = of_keys()
    assert verdict == "wrong" and "both" in says
