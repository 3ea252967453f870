"""The command line's table, its help, and how it says that something is wrong."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from server import cli

HEAVY = ("torch", "transformers", "vllm", "fastapi", "aiohttp", "openai", "uvicorn")


def run_without(arguments: list[str]) -> tuple[int, list[str], str]:
    """The exit code of a command in a fresh interpreter, the heavy modules it loaded, and what it printed."""
    program = (
        "import sys\nfrom server.cli import main\n"
        f"try: code = main({arguments!r})\nexcept SystemExit as end: code = end.code\n"
        f"print('LOADED', code, *[name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    text, _, last = done.stdout.rpartition("LOADED ")
    code, *loaded = last.split()
    return int(code), loaded, text


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in cli.COMMANDS)])
def test_help_loads_nothing_heavy_and_tells_the_exit_codes(arguments: list[str]) -> None:
    code, loaded, text = run_without(arguments)
    assert (code, loaded) == (0, [])
    if len(arguments) == 2:
        assert "--json" in text and "exit codes" in text
    else:
        assert all(name in text for name in cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_target_exists(name: str) -> None:
    module, _, function = cli.COMMANDS[name][0].partition(":")
    found = importlib.util.find_spec(module)
    assert found is not None and found.origin is not None
    assert f"def {function}(" in Path(found.origin).read_text()


def test_an_unknown_command_is_refused_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["lern"])
    assert ended.value.code == 2
    assert "learn" in capsys.readouterr().err


def test_without_a_command_it_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([])
    assert ended.value.code == 0
    assert "commands:" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["status"], ["demo"], ["feedback", "list"], ["policies", "list"]])
def test_without_a_server_it_names_the_command_that_starts_one(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("APPRENTICE_URL", raising=False)
    assert cli.main([*command, "--state", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "no server runs on the state directory" in error and "make up" in error


def test_an_error_is_json_when_json_was_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("APPRENTICE_URL", raising=False)
    assert cli.main(["status", "--json", "--state", str(tmp_path)]) == 1
    error = json.loads(capsys.readouterr().err)["error"]
    assert error["code"] == "server_unreachable" and "make up" in error["hint"]


def test_a_wrong_configuration_is_exit_code_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = tmp_path / "apprentice.toml"
    config.write_text("[server]\nprot = 8600\n")
    assert cli.main(["up", "--dry-run", "--config", str(config)]) == 2
    assert "did you mean port?" in capsys.readouterr().err


def test_feedback_takes_one_kind_at_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["feedback", "send", "chatcmpl-1", "--url", "http://127.0.0.1:9"]
    assert cli.main([*command, "--rating", "1", "--correction", "no"]) == 1
    assert "--correction, --instruction and --rating" in capsys.readouterr().err
