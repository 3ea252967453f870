"""`apprentice up` with small processes in the place of the gateway and the learner."""

import asyncio
import io
import json
import os
import signal
import socket
import sys
import textwrap
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from buffer.config import BufferConfig, Shared
from buffer.files import lock
from buffer.teacher import Templates
from server import cli
from server.commands import up
from server.commands.command import CommandError
from server.commands.settings import Settings
from server.commands.supervisor import Child
from server.commands.terminal import Terminal
from server.config import EngineConfig, ServerConfig

GATEWAY = """
import json, os, signal, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

asked = 0
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        global asked
        asked += 1
        self.send_response(200 if asked > 1 else 503)
        self.end_headers()
        self.wfile.write(json.dumps({"error": {"message": "vLLM is loading the model"}}).encode())
    def log_message(self, *_):
        pass

def stop(*_):
    print("drained", flush=True)
    os._exit(0)

signal.signal(signal.SIGTERM, stop)
server = HTTPServer(("127.0.0.1", 0), Handler)
run = Path(sys.argv[1]) / "run" / "server.json"
run.parent.mkdir(parents=True, exist_ok=True)
run.write_text(json.dumps({"url": f"http://127.0.0.1:{server.server_port}", "pid": os.getpid()}))
server.serve_forever()
"""
LEARNER = "import time; print('learning', flush=True); time.sleep(600)"


class Pipe(io.StringIO):
    """A terminal's output; `hook` sees every event as it is written."""

    def __init__(self, hook: Callable[[dict[str, object]], None]) -> None:
        super().__init__()
        self._hook = hook

    def write(self, text: str) -> int:
        if text.strip():
            self._hook(json.loads(text))
        return super().write(text)

    def events(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.getvalue().splitlines()]


def settings(state: Path) -> Settings:
    model = state / "model"
    shared = Shared(state=state, model=str(model))
    return Settings(
        shared,
        ServerConfig.model_validate({}),
        EngineConfig.model_validate({}),
        BufferConfig.model_validate({}),
        Templates(),
        {},
    )


def fake_children(state: Path) -> list[Child]:
    programs = {"gateway": GATEWAY, "learner": LEARNER}
    return [
        Child(name, [sys.executable, "-c", textwrap.dedent(code), str(state)])
        for name, code in programs.items()
    ]


def test_it_says_why_it_waits_then_that_it_is_ready_and_stops_in_order(tmp_path: Path) -> None:
    def interrupt_when_ready(event: dict[str, object]) -> None:
        if event["event"] == "ready":
            os.kill(os.getpid(), signal.SIGINT)

    out = Pipe(interrupt_when_ready)
    asyncio.run(up.run(settings(tmp_path), fake_children(tmp_path), Terminal(as_json=True, out=out)))
    told = [(e["event"], e["text"]) for e in out.events()]
    assert ("waiting", "not ready yet: vLLM is loading the model") in told
    ready = next(e for e in out.events() if e["event"] == "ready")
    assert str(ready["url"]).startswith("http://127.0.0.1:") and ready["state"] == str(tmp_path)
    assert [text for event, text in told if event == "child"] == ["gateway stopping", "learner stopping"]
    assert told[-1][0] == "stopped"
    assert (tmp_path / "logs" / "gateway.log").read_text() == "drained\n"
    assert not (tmp_path / "run" / "server.json").exists()


def test_a_part_that_cannot_run_is_an_error_that_names_its_log(tmp_path: Path) -> None:
    children = [Child("gateway", [sys.executable, "-c", "raise SystemExit(2)"])]
    with pytest.raises(CommandError, match="the gateway cannot run") as caught:
        asyncio.run(asyncio.wait_for(up.run(settings(tmp_path), children, Terminal(out=io.StringIO())), 20))
    assert "gateway.log" in caught.value.hint


def test_a_state_directory_belongs_to_one_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = lock(tmp_path / "run" / "up.lock")
    assert held is not None
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").touch()
    (model / "model.safetensors").touch()
    try:
        code = cli.main(["up", "--state", str(tmp_path), "--model", str(model)])
    finally:
        os.close(held)
    assert code == 1
    assert f"process {os.getpid()} already runs on the state directory" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["nowhere", "./nowhere", "/nowhere/at/all", "a/b/c"])
def test_a_missing_model_is_said_before_anything_starts(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["up", "--state", str(tmp_path / "state"), "--model", name]) == 1
    error = capsys.readouterr().err
    assert f"there is no model {name}" in error and "→ correct `model`" in error
    assert not (tmp_path / "state").exists()


def test_a_directory_without_a_model_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["up", "--state", str(tmp_path / "state"), "--model", str(tmp_path)]) == 1
    assert "holds no model" in capsys.readouterr().err


def test_a_taken_port_is_said_before_anything_starts(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CommandError, match=f"port {port}") as caught:
            up.free_port(ServerConfig.model_validate({"port": port}))
    assert "--port" in caught.value.hint
    assert up.free_port(ServerConfig.model_validate({"port": 0})) > 0


def test_flags_reach_the_children_as_variables(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert (
        cli.main(["up", "--dry-run", "--state", str(tmp_path), "--port", "1234", "--alias", "scholar"]) == 0
    )
    printed = json.loads(capsys.readouterr().out)
    assert printed["server"]["port"] == 1234 and printed["alias"] == "scholar"
    assert list(printed["processes"]) == ["gateway", "learner"]


def test_kafka_adds_its_relay(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPRENTICE_BUFFER_BACKEND", "kafka")
    assert cli.main(["up", "--dry-run"]) == 0
    assert list(json.loads(capsys.readouterr().out)["processes"]) == ["gateway", "learner", "relay"]


def test_secrets_are_masked(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPRENTICE_ENGINE_API_KEY", "sesame")
    assert cli.main(["serve", "--dry-run"]) == 0
    assert "sesame" not in capsys.readouterr().out
