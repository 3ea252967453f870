"""No acknowledgement leaves before the flush that covers it: read from the system calls of a real gateway.

SIGKILL cannot show this, since what a dead process wrote is in the kernel's cache all the same; only a power
cut would.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from buffer.config import BufferConfig
from tests.faults.replica import Replica

TRACE = "fdatasync,fsync,pwrite64,write,writev,sendto,sendmsg"
ASKED = {"model": "apprentice", "messages": [{"role": "user", "content": "one two"}]}
CALL = re.compile(r"(?P<pid>\d+) +(?P<name>\w+)\((?P<fd>\d+<[^>]*>)(?P<rest>.*)")
RESUMED = re.compile(r"(?P<pid>\d+) +<\.\.\. (?P<name>\w+) resumed>(?P<rest>.*)")

pytestmark = pytest.mark.faults


@dataclass(frozen=True)
class Event:
    """In the order in which they happened: a write or a send begins, a flush has ended."""

    what: str
    target: str
    data: str = ""


def can_trace() -> bool:
    strace = shutil.which("strace")
    return strace is not None and subprocess.run([strace, "-o", "/dev/null", "true"]).returncode == 0


@contextmanager
def traced(pid: int, trace: Path) -> Iterator[None]:
    """The system calls of a process go into a file, until it ends."""
    options = ["-f", "-y", "-s", "100000", "-e", f"trace={TRACE}", "-o", str(trace), "-p", str(pid)]
    with subprocess.Popen(["strace", *options], stderr=subprocess.PIPE, text=True) as tracer:
        try:
            assert tracer.stderr is not None
            assert "attached" in tracer.stderr.readline()
            yield
            tracer.communicate(timeout=60)
        finally:
            tracer.kill()


def events(trace: str) -> Iterator[Event]:
    """What strace saw. A call that another thread's interrupts is printed in two parts."""
    unfinished: dict[str, str] = {}
    for line in trace.splitlines():
        if found := CALL.match(line):
            target, rest = found["fd"], found["rest"]
            if found["name"] not in ("fdatasync", "fsync"):
                yield Event("write", target, rest)
            elif "<unfinished" in rest:
                unfinished[found["pid"]] = target
            elif rest.endswith("= 0"):
                yield Event("flush", target)
        elif (found := RESUMED.match(line)) and found["pid"] in unfinished:
            target = unfinished.pop(found["pid"])
            if found["rest"].endswith("= 0"):
                yield Event("flush", target)


def covered(seen: list[Event], record: str, acknowledgement: str) -> bool:
    """Whether what the journal was given of `record` was flushed before the acknowledgement first left."""
    written = flushed = False
    for event in seen:
        in_journal = "journal.db-wal" in event.target
        if event.what == "flush":
            flushed = flushed or (written and in_journal)
        elif in_journal and record in event.data:
            written, flushed = True, False
        elif "socket:" in event.target and acknowledgement in event.data:
            return flushed
    raise AssertionError(f"{acknowledgement} never left")


@pytest.mark.skipif(not can_trace(), reason="no strace that may trace: apt-get install strace, as root")
def test_no_acknowledgement_leaves_before_the_flush_that_covers_it(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    with (
        Replica(tmp_path / "replica", BufferConfig()) as replica,
        traced(replica.gateway.pid, trace),
        httpx.Client() as client,
    ):
        url = f"{replica.url}/v1/chat/completions"
        streamed = client.post(url, json=ASKED | {"stream": True}, timeout=60)
        whole = client.post(url, json=ASKED, timeout=60)
        assert streamed.headers["x-captured"] == whole.headers["x-captured"] == "true"
        ids = [json.loads(streamed.text.split("\n")[0].removeprefix("data: "))["id"], whole.json()["id"]]
        for number in range(20):
            body = {"completion_id": ids[0], "kind": "correction", "text": f"text {number}"}
            reply = client.post(f"{replica.url}/v1/feedback", json=body, timeout=60)
            assert reply.status_code == 202
            ids.append(reply.json()["id"])
        replica.gateway.kill()
    seen = list(events(trace.read_text(errors="replace")))
    acknowledged = [(one, rf"\"id\":\"{one}") for one in ids]  # the form in which a reply has it
    acknowledged.append(("apprentice.exchange.closed", "data: [DONE]"))
    assert [record for record, reply in acknowledged if not covered(seen, record, reply)] == []
