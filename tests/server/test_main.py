"""The gateway as a process, in front of a scripted vLLM."""

import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from buffer.client import Buffer
from buffer.view import View
from server.__main__ import follow, listen, url_of
from tests.background import Background
from tests.server.adapters import write_stub_model
from tests.server.running import Running
from tests.server.scripted_vllm import ScriptedVLLM

ASKED = {"model": "apprentice", "messages": [{"role": "user", "content": "one two"}]}


class Processes:
    """Starts gateways on one state directory."""

    def __init__(self, directory: Path) -> None:
        self.state = directory / "state"
        self.vllm = ScriptedVLLM()
        self._socket = directory / "v.sock"
        self.model = directory / "model"
        write_stub_model(self.model)
        self._background = Background()
        self.on_loop(self.vllm.start(self._socket))
        self.started: list[subprocess.Popen[str]] = []

    def on_loop(self, work: Any) -> Any:
        return self._background.run(work, 120)

    def start(self, *run: str, **env: str) -> "subprocess.Popen[str]":
        """`run` is what Python runs, if not the server as it is."""
        process = subprocess.Popen(
            [sys.executable, *(run or ("-m", "server")), "--state", str(self.state)],
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("APPRENTICE_")},
                "APPRENTICE_MODEL": str(self.model),
                "APPRENTICE_ENGINE_URL": f"unix:{self._socket}",
                "APPRENTICE_SERVER_PORT": "0",
                **env,
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def wait_until_ready(self) -> str:
        """The URL of the gateway that has become ready."""
        for _ in range(2400):
            try:
                url = str(json.loads((self.state / "run" / "server.json").read_text())["url"])
                if httpx.get(f"{url}/readyz").status_code == 200:
                    return url
            except (OSError, httpx.TransportError):
                pass
            time.sleep(0.05)
        raise AssertionError("the gateway did not become ready")

    def close(self) -> None:
        for process in self.started:
            process.kill()
            process.communicate()
        self.on_loop(self.vllm.stop())
        self._background.close()


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    made = Processes(tmp_path)
    yield made
    made.close()


def test_it_serves_drains_and_keeps_what_it_promised(processes: Processes) -> None:
    first = processes.start()
    url = processes.wait_until_ready()
    run_file = processes.state / "run" / "server.json"
    assert json.loads(run_file.read_text())["pid"] == first.pid
    secret = processes.state / "secret"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    completion_id = httpx.post(f"{url}/v1/chat/completions", json=ASKED).json()["id"]

    slow = {**ASKED, "messages": [{"role": "user", "content": "/slow a b"}], "stream": True}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=slow, timeout=120) as reply:
        lines = reply.iter_lines()
        next(lines)
        first.send_signal(signal.SIGTERM)
        processes.on_loop(until_refused(url))
        processes.on_loop(release(processes.vllm))
        assert [line for line in lines if line][-1] == "data: [DONE]"
    assert first.wait(120) == 0
    assert not run_file.exists()

    before = secret.read_bytes()
    processes.start()
    url = processes.wait_until_ready()
    assert secret.read_bytes() == before
    stored = httpx.get(f"{url}/v1/chat/completions").json()["data"]
    assert [c["status"] for c in stored] == ["complete", "complete"]
    feedback = {"completion_id": completion_id, "kind": "correction", "text": "three"}
    assert httpx.post(f"{url}/v1/feedback", json=feedback).status_code == 202


def test_it_remembers_what_it_did_and_what_its_log_takes(processes: Processes) -> None:
    processes.start()
    url = processes.wait_until_ready()
    httpx.post(f"{url}/v1/chat/completions", json=ASKED)
    found = httpx.get(f"{url}/v1/overview").json()
    assert found["traffic"]["hour"]["by_outcome"] == {"ok": 1}
    assert len(found["traffic"]["history"]["at"]) >= 1
    assert found["log"]["used"] > 0 and found["log"]["free"] > 0
    assert httpx.get(f"{url}/dashboard").status_code == 200


def test_without_keys_another_sites_page_can_teach_it_nothing(processes: Processes) -> None:
    processes.start()
    url = processes.wait_until_ready()
    body = {"kind": "demonstration", "messages": ASKED["messages"], "text": "x"}
    for headers in ({"origin": "https://elsewhere.example"}, {"host": "elsewhere.example"}):
        for path, sent in (
            ("/v1/feedback", body),
            ("/v1/policies/rollback", None),
            ("/v1/learning/pause", {}),
        ):
            refused = httpx.post(f"{url}{path}", json=sent, headers=headers)
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "not_local")
    assert httpx.post(f"{url}/v1/feedback", json=body).status_code == 202


def keys(processes: Processes, *arguments: str) -> str:
    """What `apprentice keys` prints, as a process beside the gateway's."""
    command = [sys.executable, "-m", "server.cli", "keys", *arguments, "--state", str(processes.state)]
    env = {name: value for name, value in os.environ.items() if not name.startswith("APPRENTICE_")}
    return subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout.strip()


def status_of(url: str, key: str) -> int:
    return httpx.get(f"{url}/v1/models", headers={"authorization": f"Bearer {key}"}).status_code


def until_status(url: str, key: str, status: int) -> None:
    for _ in range(2400):
        if status_of(url, key) == status:
            return
        time.sleep(0.05)
    raise AssertionError(f"never {status}")


def test_a_key_that_was_made_before_the_first_start_lets_others_in(processes: Processes) -> None:
    key = keys(processes, "add", "ann", "--scope", "infer")
    processes.start(APPRENTICE_SERVER_HOST="0.0.0.0")  # noqa: S104
    url = processes.wait_until_ready()
    assert (status_of(url, key), status_of(url, "wrong")) == (200, 401)


def test_a_running_gateway_obeys_keys_and_revocations(processes: Processes) -> None:
    processes.start()
    url = processes.wait_until_ready()
    assert status_of(url, "none") == 200
    key = keys(processes, "add", "ann")
    until_status(url, "none", 401)
    assert status_of(url, key) == 200
    keys(processes, "revoke", "ann")
    until_status(url, key, 401)
    assert status_of(url, "none") == 401


def test_a_name_may_not_have_two_keys(processes: Processes) -> None:
    keys(processes, "add", "ann")
    first = processes.start()
    processes.wait_until_ready()
    first.send_signal(signal.SIGTERM)
    assert first.wait(120) == 0
    second = processes.start(APPRENTICE_SERVER_KEYS_ANN="ab" * 32)
    _, said = second.communicate(timeout=120)
    assert second.returncode == 2
    assert "ann: both in [server.keys] and" in said
    keys(processes, "revoke", "ann")
    third = processes.start(APPRENTICE_SERVER_KEYS_ANN="ab" * 32)
    processes.wait_until_ready()
    assert third.poll() is None


async def until_refused(url: str) -> None:
    # each time anew: a connection that is kept may be served until the end of the draining
    async with httpx.AsyncClient(headers={"connection": "close"}) as client:
        for _ in range(2400):
            try:
                await client.get(f"{url}/healthz")
            except httpx.TransportError:
                return
            await asyncio.sleep(0.05)
    raise AssertionError("the gateway went on listening")


async def release(vllm: ScriptedVLLM) -> None:
    vllm.release.set()


def test_a_second_signal_ends_it_at_once_and_what_came_is_kept(processes: Processes) -> None:
    process = processes.start()
    url = processes.wait_until_ready()
    slow = {**ASKED, "messages": [{"role": "user", "content": "/slow a b"}], "stream": True}
    with (
        pytest.raises(httpx.TransportError),
        httpx.stream("POST", f"{url}/v1/chat/completions", json=slow, timeout=120) as reply,
    ):
        lines = reply.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        processes.on_loop(until_refused(url))
        process.send_signal(signal.SIGTERM)
        list(lines)
    assert process.wait(120) == 0
    processes.start()
    url = processes.wait_until_ready()
    (stored,) = httpx.get(f"{url}/v1/chat/completions").json()["data"]
    assert stored["status"] == "aborted"


BROKEN = """
import sys
from server import __main__ as server

async def follow(gateway):
    raise ZeroDivisionError

server.follow = follow
sys.exit(server.main())
"""


def test_when_following_breaks_all_is_closed_at_the_end(processes: Processes) -> None:
    process = processes.start("-c", BROKEN)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "ZeroDivisionError" in said
    closed = [processes.state / "journal.db", processes.state / "server" / "view.db"]
    assert all(file.exists() for file in closed)
    # which SQLite deletes when the last one closes the file
    assert not any(Path(f"{file}-wal").exists() for file in closed)


def test_one_gateway_owns_a_state_directory(processes: Processes) -> None:
    processes.start()
    processes.wait_until_ready()
    second = processes.start()
    _, said = second.communicate(timeout=120)
    assert second.returncode == 1
    assert "another gateway owns" in said


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"APPRENTICE_SERVER_HOST": "0.0.0.0"}, "apprentice keys add"),  # noqa: S104
        ({"APPRENTICE_MODEL": "smollm2-135m-instruct"}, "has not been fetched"),
        ({"APPRENTICE_SERVER_PROT": "1"}, "port"),
        ({"APPRENTICE_SERVER_SECRET": "too short"}, "hex digits"),
        ({"APPRENTICE_BUFFER_ADAPTERS_URL": "nosuch://bucket"}, "[buffer.adapters] url"),
    ],
)
def test_a_wrong_configuration_is_told_and_ends_with_2(
    processes: Processes, env: dict[str, str], said: str
) -> None:
    process = processes.start(**env)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert said in errors


def test_it_listens_and_says_so_while_the_engine_is_starting(processes: Processes) -> None:
    processes.start(APPRENTICE_ENGINE_URL="unix:/nowhere/at/all.sock")
    run_file = processes.state / "run" / "server.json"
    for _ in range(2400):
        if run_file.exists():
            break
        time.sleep(0.05)
    url = json.loads(run_file.read_text())["url"]
    assert httpx.get(f"{url}/healthz").status_code == 200
    for refused in (httpx.get(f"{url}/readyz"), httpx.post(f"{url}/v1/chat/completions", json=ASKED)):
        assert refused.status_code == 503
        assert "retry-after" in refused.headers


def test_a_taken_port_is_found_out_first() -> None:
    taken = listen("127.0.0.1", 0)
    with taken, pytest.raises(OSError):
        listen("127.0.0.1", taken.getsockname()[1])


def test_the_url_is_one_that_a_client_can_use() -> None:
    for host, shown in (("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::1", "[::1]")):  # noqa: S104
        with listen(host, 0) as listening:
            assert url_of(listening) == f"http://{shown}:{listening.getsockname()[1]}"


def test_small_writes_do_not_wait_for_the_callers_acknowledgement() -> None:
    with listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_log_that_cannot_be_read_fails_no_request(running: Running) -> None:
    """As after a restart while the broker is away: what the view knows is served, and nothing is decided."""
    running.stop_following()
    gateway, log = running.gateway, running.log
    gateway.live, gateway.behind = None, "the log has not been read yet"
    log.unreadable = True
    following = running.start(follow(gateway))
    running.run(gateway.until(lambda: gateway.live == 0))
    client = running.client()
    assert client.post("/v1/chat/completions", json=ASKED).headers["x-captured"] == "true"
    assert "the log cannot be read" in client.get("/readyz").json()["error"]["message"]
    following.cancel()


def test_a_disk_without_room_for_the_view_is_waited_for(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.__main__.RETRY_S", 0.05)
    running.stop_following()
    gateway, started = running.gateway, running.gateway.buffer
    assert running.client().post("/v1/chat/completions", json=long_question()).status_code == 200
    view = View(":memory:")
    view._db.execute("PRAGMA max_page_count = 1")  # what it has now, that is: SQLite calls it full beyond
    gateway.buffer = Buffer(running.log, view, gateway.news.tell)
    gateway.live, gateway.behind = None, "the log has not been read yet"
    following = running.start(follow(gateway))
    running.run(gateway.until(lambda: gateway.live == 0))
    assert "database or disk is full" in running.client().get("/readyz").json()["error"]["message"]
    view._db.execute("PRAGMA max_page_count = 1000000")
    running.run(gateway.until(lambda: gateway.behind is None))
    following.cancel()
    gateway.buffer.close()
    gateway.buffer = started


def long_question() -> dict[str, Any]:
    return {**ASKED, "messages": [{"role": "user", "content": "one two " * 10_000}]}


def test_before_the_live_policy_is_loaded_the_alias_does_not_answer(running: Running) -> None:
    """Least of all with the base model in its place; the base itself may be asked."""
    running.stop_following()
    running.gateway.live = None
    client = running.client()
    assert client.post("/v1/chat/completions", json=ASKED).status_code == 503
    assert client.post("/v1/chat/completions", json={**ASKED, "model": "apprentice@base"}).status_code == 200
