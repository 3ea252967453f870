"""The leash, on real processes: whatever ends, nothing stays behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from server.engine import leash as leash_script
from server.engine.leash import kill_session, session_members

STUBBORN = "trap '' TERM; (trap '' TERM; sleep 300) & echo up; wait; sleep 300"


@contextmanager
def leashed(script: str) -> Iterator[subprocess.Popen[bytes]]:
    """The leash around a shell script, once the script has said that it is up."""
    command = [
        sys.executable,
        "-P",
        leash_script.__file__,
        "--grace",
        "0.3",
        "--",
        "bash",
        "-c",
        script,
    ]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as leash:
        assert leash.stdout is not None
        assert leash.stdout.readline() == b"up\n"
        assert len(session_members(leash.pid)) >= 2
        try:
            yield leash
        finally:
            leash.kill()
            kill_session(leash.pid, grace_s=0)


def gone(session: int) -> bool:
    for _ in range(100):
        if not session_members(session):
            return True
        time.sleep(0.1)
    return False


def test_the_end_of_the_pipe_ends_even_what_ignores_sigterm() -> None:
    with leashed(STUBBORN) as leash:
        assert leash.stdin is not None
        leash.stdin.close()
        assert gone(leash.pid)
        assert leash.wait() == 128 + signal.SIGKILL


def test_sigkill_of_the_gateway_ends_it(tmp_path: Path) -> None:
    gateway = f"""
import subprocess, sys, time
leash = subprocess.Popen([sys.executable, "-P", {leash_script.__file__!r}, "--grace", "0.3", "--",
    "bash", "-c", {STUBBORN!r}], stdin=subprocess.PIPE, start_new_session=True)
print(leash.pid, flush=True)
time.sleep(300)
"""
    with subprocess.Popen([sys.executable, "-c", gateway], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        said = {process.stdout.readline(), process.stdout.readline()} - {b"up\n"}
        session = int(said.pop())
        assert session_members(session)
        process.kill()
        assert gone(session)


def test_sigterm_ends_it() -> None:
    with leashed(STUBBORN) as leash:
        leash.terminate()
        assert gone(leash.pid)


@pytest.mark.parametrize("ending, code", [("exit 7", 7), ("kill -9 $$", 137), ("exit 0", 0)])
def test_when_the_command_ends_its_children_do_and_its_code_is_passed_on(ending: str, code: int) -> None:
    with leashed(f"(trap '' TERM; sleep 300) & sleep 0.2; echo up; sleep 0.5; {ending}") as leash:
        assert leash.wait(20) == code
        assert gone(leash.pid)


def test_a_child_may_end_while_the_command_goes_on() -> None:
    with leashed("sleep 0.1 & echo up; wait; sleep 300") as leash:
        with pytest.raises(subprocess.TimeoutExpired):
            leash.wait(1)
        assert session_members(leash.pid)


def test_when_the_leash_is_killed_the_command_dies_and_the_rest_can_be_found() -> None:
    with leashed("trap '' TERM; (trap '' TERM; sleep 300) & echo up; sleep 300") as leash:
        command = min(set(session_members(leash.pid)) - {leash.pid})
        os.kill(leash.pid, signal.SIGKILL)
        leash.wait()
        for _ in range(100):
            if command not in session_members(leash.pid):
                break
            time.sleep(0.05)
        else:
            pytest.fail("the command outlived its leash")
        kill_session(leash.pid, grace_s=0.2)
        assert gone(leash.pid)
