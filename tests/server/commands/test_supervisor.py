"""The supervisor, with small real processes as its children."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from server.commands.supervisor import Backoff, Child, LogFile, Supervisor, describe

OBEDIENT = """
import signal, sys, time
def stop(*_):
    print("bye", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print("up", flush=True)
while True:
    time.sleep(0.05)
"""
STUBBORN = OBEDIENT.replace("sys.exit(0)", "pass")


class Witness:
    """Keeps what the supervisor says and what its children print, and waits for it."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []
        self.lines: list[tuple[str, str]] = []
        self._news = asyncio.Event()

    def say(self, name: str, text: str) -> None:
        self.said.append((name, text))
        self._news.set()

    def output(self, name: str, line: str) -> None:
        self.lines.append((name, line))
        self._news.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self._news.clear()
                await self._news.wait()


def python(name: str, code: str, *arguments: str, stop_s: float = 10.0) -> Child:
    return Child(name, [sys.executable, "-c", textwrap.dedent(code), *arguments], stop_s=stop_s)


def supervise(witness: Witness, logs: Path, *children: Child) -> Supervisor:
    backoff = Backoff(first=0.05, most=0.2)
    return Supervisor(children, logs=logs, output=witness.output, say=witness.say, backoff=backoff)


def alive(pid: int) -> bool:
    """Whether it still runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def still_alive(pids: Sequence[int]) -> list[int]:
    """Those that do not end; a killed process needs a moment. None of them outlives the test."""
    deadline = time.monotonic() + 20
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    left = [pid for pid in pids if alive(pid)]
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return left


def test_children_stop_one_after_the_other_in_the_order_of_their_start(tmp_path: Path) -> None:
    async def scenario(witness: Witness) -> str | None:
        supervisor = supervise(witness, tmp_path, *(python(name, OBEDIENT) for name in ("a", "b", "c")))
        running = asyncio.create_task(supervisor.run())
        await witness.until(lambda: len(witness.lines) == 3)
        supervisor.interrupt()
        return await running

    witness = Witness()
    assert asyncio.run(scenario(witness)) is None
    assert witness.said == [("a", "stopping"), ("b", "stopping"), ("c", "stopping")]
    assert [name for name, line in witness.lines if line == "bye"] == ["a", "b", "c"]
    assert (tmp_path / "a.log").read_text() == "up\nbye\n"


def test_a_crashed_child_is_started_again_and_the_pause_grows(tmp_path: Path) -> None:
    async def scenario(witness: Witness) -> None:
        supervisor = supervise(
            witness, tmp_path, python("weak", "print('up', flush=True); raise SystemExit(3)")
        )
        running = asyncio.create_task(supervisor.run())
        await witness.until(lambda: len(witness.said) >= 4)
        supervisor.interrupt()
        await running

    witness = Witness()
    asyncio.run(scenario(witness))
    assert [text for _, text in witness.said[:4]] == [
        f"ended with code 3; starting it again in {pause} s" for pause in (0.05, 0.1, 0.2, 0.2)
    ]


def test_a_child_with_wrong_settings_ends_everything(tmp_path: Path) -> None:
    async def scenario(witness: Witness) -> str | None:
        other = python("other", OBEDIENT)
        supervisor = supervise(witness, tmp_path, other, python("wrong", "raise SystemExit(2)"))
        return await asyncio.wait_for(supervisor.run(), 20)

    witness = Witness()
    assert asyncio.run(scenario(witness)) == "wrong"
    assert ("other", "stopping") in witness.said


def test_a_child_that_ran_well_with_the_same_settings_is_tried_again(tmp_path: Path) -> None:
    """Its broker refuses the login now, say: that must not stop the server beside it."""

    async def scenario(witness: Witness) -> str | None:
        child = python("relay", "import time; time.sleep(0.3); raise SystemExit(2)")
        supervisor = supervise(witness, tmp_path, child)
        supervisor._backoff = Backoff(first=0.05, most=0.2, steady=0.1)
        running = asyncio.create_task(supervisor.run())
        await witness.until(lambda: len(witness.said) >= 2)
        supervisor.interrupt()
        return await running

    witness = Witness()
    assert asyncio.run(scenario(witness)) is None
    assert {text for _, text in witness.said[:2]} == {"ended with code 2; starting it again in 0.05 s"}


def test_the_second_interrupt_does_not_wait_for_a_stubborn_child(tmp_path: Path) -> None:
    async def scenario(witness: Witness) -> None:
        supervisor = supervise(witness, tmp_path, python("stubborn", STUBBORN, stop_s=600))
        running = asyncio.create_task(supervisor.run())
        await witness.until(lambda: ("stubborn", "up") in witness.lines)
        supervisor.interrupt()
        await witness.until(lambda: ("stubborn", "bye") in witness.lines)
        supervisor.interrupt()
        await running

    witness = Witness()
    asyncio.run(scenario(witness))
    assert witness.said[-1] == ("stubborn", "does not stop by itself, so it is killed")


def test_what_a_crashed_child_left_behind_is_gone_before_its_next_life(tmp_path: Path) -> None:
    parent = """
        import subprocess, sys
        print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid, flush=True)
        raise SystemExit(3)
    """

    async def scenario(witness: Witness) -> list[int]:
        supervisor = supervise(witness, tmp_path, python("parent", parent, stop_s=0.5))
        running = asyncio.create_task(supervisor.run())
        await witness.until(lambda: bool(witness.said))
        left = still_alive([int(witness.lines[0][1])])
        supervisor.interrupt()
        await running
        return left

    assert asyncio.run(scenario(Witness())) == []


def test_a_process_that_runs_once_gives_its_exit_code(tmp_path: Path) -> None:
    async def scenario(witness: Witness) -> int:
        return await supervise(witness, tmp_path).once(python("once", "print('hello'); raise SystemExit(7)"))

    witness = Witness()
    assert asyncio.run(scenario(witness)) == 7
    assert witness.lines == [("once", "hello")]


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's part in it is Linux's")
def test_a_killed_supervisor_leaves_no_process(tmp_path: Path) -> None:
    program = f"""
        import asyncio, sys
        from pathlib import Path
        from server.commands.supervisor import Child, Supervisor
        sleeper = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
        children = [Child(name, [sys.executable, "-c", sleeper]) for name in ("a", "b")]
        show = lambda name, line: print(line, flush=True)
        asyncio.run(Supervisor(children, logs=Path({str(tmp_path)!r}), output=show, say=show).run())
    """
    supervisor = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True
    )
    with supervisor:
        assert supervisor.stdout is not None
        pids = [int(supervisor.stdout.readline()) for _ in range(2)]
        assert all(map(alive, pids))
        supervisor.send_signal(signal.SIGKILL)
    assert still_alive(pids) == []


def test_a_log_that_has_grown_is_set_aside_and_old_ones_go(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "a.log", max_bytes=100)
    for number in range(100):
        log.write(f"line {number} of many")
    log.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.log", "a.log.1", "a.log.2", "a.log.3"]
    assert all(path.stat().st_size <= 100 for path in tmp_path.iterdir())
    kept = "".join((tmp_path / name).read_text() for name in ("a.log.3", "a.log.2", "a.log.1", "a.log"))
    assert kept.splitlines()[-1] == "line 99 of many"
    numbers = [int(line.split()[1]) for line in kept.splitlines()]
    assert numbers == list(range(numbers[0], 100)), "none is lost in between"


def test_on_a_full_disk_lines_are_dropped_in_silence(capfd: pytest.CaptureFixture[str]) -> None:
    log = LogFile(Path("/dev/full"), max_bytes=0)
    for _ in range(3):
        log.write("x" * 10_000)
    log.close()
    assert capfd.readouterr().err == ""


def test_a_return_code_is_put_into_words() -> None:
    assert describe(1) == "ended with code 1"
    assert describe(-9) == "was killed by SIGKILL"
