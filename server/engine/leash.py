"""A parent for the engine that never leaves a process behind: `python -P leash.py [--grace S] -- command...`.

vLLM is several processes, and whoever started it may be killed without a word. So the gateway holds a pipe to
this program's standard input and never writes: when the pipe ends, the gateway is gone. The command runs in a
process group of its own, and this program adopts whatever its members orphan. On the pipe's end, on SIGTERM
or SIGINT, or when the command exits, the group gets SIGTERM, `GRACE_S` seconds, then SIGKILL, and this
program exits with the command's code (128 + n for signal n). If this program itself is killed, the kernel
kills the command, and the gateway calls `kill_session` for the rest: a vLLM whose front end died runs on
forever.

Standard library only, one thread, a few MB: it must outlive everything else.
"""

import argparse
import contextlib
import ctypes
import os
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path

GRACE_S = 10.0
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def _prctl(option: int, value: int) -> None:
    """Linux only; elsewhere the pipe and the process group still do nearly all of the work."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _die_with_parent() -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _reap() -> dict[int, int]:
    """Collect the children that have ended, adopted ones too: process id to wait status."""
    ended: dict[int, int] = {}
    with contextlib.suppress(ChildProcessError):
        while (one := os.waitpid(-1, os.WNOHANG))[0]:
            ended[one[0]] = one[1]
    return ended


def _signal_group(group: int, number: int) -> bool:
    """Whether the group still had a member."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


def kill_session(leader: int, *, grace_s: float = GRACE_S) -> None:
    """End what is left of the session that `leader`, now dead, made: SIGTERM, then SIGKILL. Linux only."""
    deadline = time.monotonic() + grace_s
    number = signal.SIGTERM  # first, so that vLLM frees its shared memory
    while left := session_members(leader):
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)
        if time.monotonic() > deadline + grace_s:
            return
        time.sleep(0.1)
        if time.monotonic() > deadline:
            number = signal.SIGKILL


def session_members(leader: int) -> list[int]:
    """The live members of a session."""
    members = []
    for entry in Path("/proc").glob("[0-9]*/stat") if sys.platform == "linux" else ():
        with contextlib.suppress(OSError):
            state, _, _, session = entry.read_text().rpartition(")")[2].split()[:4]
            if int(session) == leader and state != "Z":
                members.append(int(entry.parent.name))
    return members


def run(command: list[str], grace_s: float = GRACE_S) -> int:
    """Run `command` on the leash and return its exit code."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    asked_to_stop = False

    def on_signal(number: int, _frame: object) -> None:
        nonlocal asked_to_stop
        asked_to_stop = asked_to_stop or number != signal.SIGCHLD

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, on_signal)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    child = subprocess.Popen(  # noqa: S603 - the command is the gateway's
        command, stdin=subprocess.DEVNULL, process_group=0, preexec_fn=_die_with_parent
    ).pid
    waiting = selectors.DefaultSelector()
    waiting.register(reading, selectors.EVENT_READ)
    waiting.register(sys.stdin.fileno(), selectors.EVENT_READ)

    status: int | None = None
    while status is None and not asked_to_stop:
        for key, _ in waiting.select():
            if not os.read(key.fd, 4096):
                asked_to_stop = True
        status = _reap().get(child)

    _signal_group(child, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while True:
        status = _reap().get(child, status)
        if not _signal_group(child, 0):
            break
        if time.monotonic() > deadline + grace_s:
            break  # a member that even SIGKILL does not move is stuck in the kernel
        if time.monotonic() > deadline:
            _signal_group(child, signal.SIGKILL)
        time.sleep(0.05)
    code = os.waitstatus_to_exitcode(status) if status is not None else 1
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description="Run a command and leave nothing of it behind.")
    arguments.add_argument("--grace", type=float, default=GRACE_S, help="seconds from SIGTERM to SIGKILL")
    arguments.add_argument("command", nargs="+")
    given = arguments.parse_args()
    sys.exit(run(given.command, given.grace))
