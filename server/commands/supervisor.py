"""Keeping child processes running: start, restart after a crash, stop in order, and leave none behind.

Each child has a session of its own, so a Ctrl-C at the terminal reaches only this process, which then stops
the children one after the other. When this process is killed without a word, the kernel kills the children
(PR_SET_PDEATHSIG), and those take their own with them.
"""

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from server.commands.command import USAGE

PERMANENT = USAGE
"""The exit code of a child that a restart cannot help: its arguments or configuration are wrong."""

_LOG_BYTES, _OLDER_LOGS = 10 << 20, 3
_LAST_WORDS_S = 2.0
"""For what a killed group had written to be read."""

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass(frozen=True)
class Child:
    """A process to keep running. `stop_s` is how long it may take to end after SIGTERM."""

    name: str
    command: Sequence[str]
    stop_s: float = 15.0
    env: Mapping[str, str] = field(default_factory=dict)


class LogFile(RotatingFileHandler):
    """A child's lines. At `max_bytes` the file becomes `<name>.1`, that one `<name>.2`, and the last goes."""

    def __init__(self, path: Path, max_bytes: int = _LOG_BYTES) -> None:
        """Raises `OSError`."""
        super().__init__(path, maxBytes=max_bytes, backupCount=_OLDER_LOGS, encoding="utf-8")

    def write(self, line: str) -> None:
        self.emit(logging.makeLogRecord({"msg": line}))

    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk must not stop the child at a full pipe."""

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


@dataclass(frozen=True)
class Backoff:
    """Seconds before a restart: `first`, doubled up to `most`; anew after `steady` seconds of running."""

    first: float = 1.0
    most: float = 30.0
    steady: float = 60.0


class Supervisor:
    """Runs `children` from the first to the last and stops them in the same order.

    `output` gets each line that a child prints, `say` what happens to it: `(child, text)`.
    """

    def __init__(
        self,
        children: Sequence[Child],
        *,
        logs: Path,
        output: Callable[[str, str], None],
        say: Callable[[str, str], None],
        backoff: Backoff | None = None,
    ) -> None:
        self._children = children
        self._logs = logs
        self._output = output
        self._say = say
        self._backoff = backoff or Backoff()
        self._running: dict[str, asyncio.subprocess.Process] = {}
        self._stopping = asyncio.Event()
        self._forced = asyncio.Event()

    def interrupt(self) -> None:
        """Stop in order; the second time, at once. Safe to call from a signal handler of the loop."""
        if self._stopping.is_set():
            self._forced.set()
        self._stopping.set()

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    async def run(self) -> str | None:
        """Until `interrupt`. Returns the name of the child that cannot run, if that is why it ended."""
        keepers = [asyncio.create_task(self._keep(child), name=child.name) for child in self._children]
        stopped = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait([stopped, *keepers], return_when=asyncio.FIRST_COMPLETED)
            asked = self._stopping.is_set()
            hopeless = next((k.get_name() for k in keepers if k.done() and not asked), None)
            self._stopping.set()
            for child in self._children:
                await self._stop(child)
            await asyncio.gather(*keepers)
        finally:
            self._kill_all()
        return hopeless

    async def once(self, child: Child) -> int:
        """Run one process to its end and return its exit code; `interrupt` ends it."""
        ended = asyncio.create_task(self._run(child))
        stopped = asyncio.create_task(self._stopping.wait())
        await asyncio.wait([ended, stopped], return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            await self._stop(child)
        stopped.cancel()
        return await ended

    async def _keep(self, child: Child) -> None:
        """Run `child` again whenever it ends; returns when a restart cannot help, or all are to stop.

        One that has run well with these settings is tried again: what has changed is elsewhere (a broker that
        refuses the login now), and the others go on meanwhile.
        """
        pause, lived = self._backoff.first, False
        while not self.stopping:
            began = time.monotonic()
            code = await self._run(child)
            if self.stopping:
                return
            steady = time.monotonic() - began > self._backoff.steady
            lived = lived or steady
            if code == PERMANENT and not lived:
                self._say(child.name, "cannot run with these settings; its message is above")
                return
            if steady:
                pause = self._backoff.first
            self._say(child.name, f"{describe(code)}; starting it again in {pause:g} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
            pause = min(pause * 2, self._backoff.most)

    async def _run(self, child: Child) -> int:
        """One life of a child, its output copied to its log and to `output`."""
        with closing(self._open_log(child.name)) as log:
            reading, writing = os.pipe()
            # our own pipe: asyncio's would keep `wait` from returning while a grandchild holds it open
            process = await asyncio.create_subprocess_exec(
                *child.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=writing,
                stderr=writing,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **child.env},
                start_new_session=True,
                preexec_fn=_die_with(os.getpid()),
            )
            os.close(writing)
            self._running[child.name] = process
            copying = asyncio.create_task(self._copy(child.name, reading, log))
            code = await process.wait()
            # What it started holds the pipe, and gets the time to end by itself: a new life would meet it.
            await self._unless_forced(copying, child.stop_s)
            _kill_group(process.pid)
            await asyncio.wait([copying], timeout=_LAST_WORDS_S)
            copying.cancel()
            del self._running[child.name]
        return code

    def _open_log(self, name: str) -> "LogFile":
        """Without room for one the child runs all the same."""
        try:
            self._logs.mkdir(parents=True, exist_ok=True)
            return LogFile(self._logs / f"{name}.log")
        except OSError as error:
            self._say(name, f"has no log: {error}")
            return LogFile(Path(os.devnull), max_bytes=0)

    async def _copy(self, name: str, reading: int, log: "LogFile") -> None:
        """Until every process that holds the pipe's other end is gone."""
        stream = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(reading, "rb", buffering=0)
        )
        rest = b""
        try:
            while chunk := await stream.read(1 << 16):
                *lines, rest = (rest + chunk).replace(b"\r", b"\n").split(b"\n")
                for line in lines:
                    self._show(name, line, log)
            self._show(name, rest, log)
        finally:
            transport.close()

    def _show(self, name: str, line: bytes, log: "LogFile") -> None:
        if text := line.decode(errors="replace").rstrip():
            log.write(text)
            self._output(name, text)

    async def _stop(self, child: Child) -> None:
        """SIGTERM, wait for `stop_s` or for the second interrupt, then SIGKILL to its group."""
        process = self._running.get(child.name)
        if process is None:
            return
        self._say(child.name, "stopping")
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        ended = asyncio.create_task(process.wait())
        await self._unless_forced(ended, child.stop_s)
        if not ended.done():
            self._say(child.name, "does not stop by itself, so it is killed")
            _kill_group(process.pid)
        await ended

    async def _unless_forced(self, task: asyncio.Task[Any], seconds: float) -> None:
        """Wait for `task`, but no longer than `seconds` and not after the second interrupt."""
        forced = asyncio.create_task(self._forced.wait())
        await asyncio.wait([task, forced], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        forced.cancel()

    def _kill_all(self) -> None:
        for process in self._running.values():
            _kill_group(process.pid)


def describe(code: int) -> str:
    """A return code as subprocess gives it, in words."""
    if code >= 0:
        return f"ended with code {code}"
    return f"was killed by {signal.Signals(-code).name}"


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _die_with(supervisor: int) -> Callable[[], None]:
    """What a child runs between fork and exec: system calls only, since other threads do not exist there."""

    def prepare() -> None:
        if _LIBC is not None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != supervisor:
                os._exit(1)  # it died before the kernel was told

    return prepare
