"""The whole system as a user starts it, and a look at its processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.commands.client import CallFailed, Client, ServerSilent

APPRENTICE = [sys.executable, "-P", "-m", "server.cli"]
START_S, RESTART_S = 300.0, 180.0


@dataclass
class System:
    """A running `apprentice up`."""

    up: subprocess.Popen[bytes]
    url: str
    state: Path

    @property
    def client(self) -> Client:
        return Client(self.url)

    def command(self, *arguments: str) -> "subprocess.Popen[str]":
        """A command of ours against this system, its output in pipes."""
        return subprocess.Popen(
            [*APPRENTICE, *arguments, "--url", self.url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )

    def kill(self, part: str) -> None:
        """SIGKILL the process that runs the module `part`, and no other."""
        found = [
            pid
            for pid, command in descendants(self.up.pid).items()
            if f"-m {part} " in command and "leash.py" not in command
        ]
        assert len(found) == 1, (part, descendants(self.up.pid))
        os.kill(found[0], signal.SIGKILL)

    def ready(self) -> bool:
        try:
            self.client.get("/readyz")
        except (CallFailed, ServerSilent):
            return False
        return True

    def until(self, condition: Callable[[], bool], what: str, timeout_s: float) -> None:
        """Wait. Fails with the logs' ends when the system died or it takes too long."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert self.up.poll() is None and time.monotonic() < deadline, f"{what}\n{self.logs()}"
            time.sleep(0.25)

    def logs(self) -> str:
        return "\n".join(
            f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}"
            for log in sorted((self.state / "logs").glob("*.log"))
        )


@contextmanager
def running(model: Path, state: Path, settings: str = "") -> Iterator[System]:
    """`apprentice up` on a free port, ready; stopped by one SIGINT, after which nothing of it is left.

    `settings` are the text of its apprentice.toml.
    """
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port = probe.getsockname()[1]
    state.mkdir(parents=True, exist_ok=True)
    config = state / "apprentice.toml"
    config.write_text(settings)
    flags = ["--json", "--config", str(config), "--state", str(state), "--model", str(model)]
    flags += ["--port", str(port)]
    with (state / "up.out").open("wb") as out:
        up = subprocess.Popen([*APPRENTICE, "up", *flags], stdout=out, stderr=out, env=environment())
    system = System(up, f"http://127.0.0.1:{port}", state)
    try:
        system.until(system.ready, "it does not become ready", START_S)
        yield system
        processes = descendants(up.pid)
        up.send_signal(signal.SIGINT)
        assert up.wait(timeout=120) == 0
        assert [command for pid, command in processes.items() if _alive(pid)] == []
    finally:
        left = descendants(up.pid)
        up.kill()
        up.wait()
        for pid in filter(_alive, left):
            os.kill(pid, signal.SIGKILL)


def environment() -> dict[str, str]:
    """This environment without what would configure the system under test."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("APPRENTICE_", "OPENAI_"))}


def descendants(pid: int) -> dict[int, str]:
    """Process id to command line of everything below `pid`."""
    children: dict[int, list[int]] = {}
    commands: dict[int, str] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            commands[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
        except (OSError, ValueError):
            continue  # it has just ended
        children.setdefault(parent, []).append(int(entry.name))
    found: dict[int, str] = {}
    waiting = [pid]
    while waiting:
        for child in children.get(waiting.pop(), []):
            found[child] = commands[child]
            waiting.append(child)
    return found


def result(process: "subprocess.Popen[str]", timeout_s: float) -> tuple[int, dict[str, Any]]:
    """A command's exit code and the JSON that it printed."""
    out, error = process.communicate(timeout=timeout_s)
    assert out, error
    found: dict[str, Any] = json.loads(out)
    return process.returncode, found


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
