"""`apprentice status`, and its live screen in a real pseudo-terminal."""

import fcntl
import io
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from rich.console import Console

from server import cli
from server.commands.command import FAILED, OK
from server.commands.status_watch import gauges, log_line, screen
from tests.server.api.test_learning import release
from tests.server.running import Running
from tests.server.test_fetch import wait_for

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

ROUND = {"round": 3, "ended": 1_700_000_000, "reasons": [], "evaluation": {}}
LEARNING: dict[str, Any] = {
    "state": "training", "why": "round 4 learns 8 lessons, see [learner]", "round": 4, "step": 12,
    "steps": 48, "loss": 0.125, "feedback": {"served": 8, "accepted": 2}, "pending": 2, "last_round": None,
    "rounds": [
        {**ROUND, "round": 4, "verdict": None, "ended": None},
        {**ROUND, "verdict": "refused", "reasons": ["answers 40% of its lessons, under 50%"] * 3},
        {**ROUND, "round": 2, "verdict": "passed"},
    ],
}  # fmt: skip
POLICIES = [
    {"id": "apprentice@000000", "live": False, "moves": []},
    {"id": "apprentice@000002", "live": True,
     "moves": [{"at": 1_700_000_100, "by": "root", "why": "promote", "version": 2, "epoch": 3}]},
]  # fmt: skip
METRICS = "apprentice_view_lag_records 0.0\napprentice_log_writable 1.0\nvllm:thing 3\n"
FOUND = {
    "url": "http://127.0.0.1:8600", "engine": "ready", "policies": POLICIES, "learning": LEARNING,
    "metrics": METRICS,
}  # fmt: skip


def shown(found: dict[str, Any] | None, problem: str = "", width: int = 80) -> str:
    out = io.StringIO()
    Console(file=out, width=width, height=24).print(screen(found, problem, datetime(2026, 1, 1)))
    return out.getvalue()


def test_the_screen_has_all_that_matters_within_80_columns() -> None:
    text = shown(FOUND)
    assert max(map(len, text.splitlines())) <= 80 and len(text.splitlines()) < 24
    for words in (
        "ready, http://127.0.0.1:8600/v1", "apprentice@000002 is live", "step 12 of 48, loss 0.125", "━",
        "[learner]", "2 accepted, 8 served; 2 to be learned", "read to its end",
        "apprentice@000002 went live by root", "round 3 refused", "round 2 passed",
    ):  # fmt: skip
        assert words in text


def test_while_no_server_answers_it_says_so_above_what_was_known() -> None:
    assert "no server answers; trying again" in shown(None, "no server answers")
    text = shown(FOUND, "no server answers")
    assert "what was known last" in text and "apprentice@000002 is live" in text and "ready, " not in text


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ("", "cannot be read"),
        ("apprentice_log_writable 1.0\n", "it cannot be read now"),
        ("apprentice_view_lag_records 7.0\n", "7 records behind"),
        ("apprentice_log_writable 0.0\n", "IT TAKES NO RECORDS"),
        ("apprentice_log_pending_records 3.0\napprentice_log_pending_seconds 5.2\n", "3 wait for the broker"),
        ("apprentice_log_set_aside_records 1.0\n", "1 that the broker refused"),
        ("apprentice_webhook_pending 2.0\n", "2 events wait for the webhook"),
    ],
)  # fmt: skip
def test_what_holds_the_log_up_is_said(metrics: str, words: str) -> None:
    assert words in log_line(gauges(metrics))


def test_one_print_is_as_before(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    release(running, 1)
    command = ["status", "--url", running.url, "--key", "ann-key"]
    assert cli.main(command) == OK
    assert "apprentice@000001 is live, of 2 with the base" in capsys.readouterr().out
    assert cli.main([*command, "--json"]) == OK
    found = json.loads(capsys.readouterr().out)
    assert found["engine"] == "ready" and found.keys() == {"url", "engine", "policies", "learning"}
    assert isinstance(found["policies"][1]["moves"][0]["at"], int)


def test_without_a_terminal_there_is_nothing_to_watch(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", "--watch", "--url", "http://127.0.0.1:9"]) == FAILED
    assert "needs a terminal" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["status", "--watch", "--json"])


class Canned:
    """A server that says the same to everybody."""

    def __init__(self, port: int = 0) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                said = {
                    "/readyz": "{}", "/v1/policies": json.dumps({"data": POLICIES}),
                    "/v1/learning": json.dumps(LEARNING), "/metrics": METRICS,
                }[self.path].encode()  # fmt: skip
                self.send_response(200)
                self.send_header("content-length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Watching:
    """`apprentice status --watch` in a terminal of 80 by 24."""

    def __init__(self, url: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.before = termios.tcgetattr(slave)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "server.cli", "status", "-w", "--url", url],
            stdin=slave, stdout=slave, stderr=slave, env={**os.environ, "TERM": "xterm"},
            # as a terminal starts it: what runs in the background ignores SIGINT, and so would its child
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        self._slave = slave
        self.raw = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                self.raw += os.read(self._master, 1 << 16).decode(errors="replace")
            except OSError:
                return

    def since(self, start: int) -> str:
        return ESCAPE.sub("", self.raw[start:])

    def after(self) -> list[Any]:
        return termios.tcgetattr(self._slave)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._slave)
        self._reader.join()
        os.close(self._master)


@pytest.fixture
def canned() -> Iterator[Canned]:
    one = Canned()
    yield one
    one.close()


def test_it_outlives_a_server_that_restarts_and_gives_the_terminal_back(canned: Canned) -> None:
    watching = Watching(f"http://127.0.0.1:{canned.port}")
    try:
        wait_for(lambda: "step 12 of 48" in watching.since(0))
        canned.close()
        wait_for(lambda: "no server answers" in watching.since(0))
        mark = len(watching.raw)
        back = Canned(canned.port)
        wait_for(lambda: "ready, http" in watching.since(mark))
        back.close()
        watching.process.send_signal(signal.SIGINT)
        assert watching.process.wait(60) == OK
        wait_for(lambda: watching.raw.endswith("\x1b[?25h\x1b[?1049l"))  # cursor and screen are back
        assert "Traceback" not in watching.raw
        assert watching.after() == watching.before
    finally:
        watching.close()
