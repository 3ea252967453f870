"""A journal or a disk that is full: who is refused, who is not, and that it passes."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from buffer.config import BufferConfig
from tests.faults.audit import audit
from tests.faults.replica import Replica
from tests.faults.traffic import Ledger

pytestmark = pytest.mark.faults

DISK_BYTES = 8 << 20


class Caller:
    """Calls a gateway and notes what was acknowledged."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=60)
        self.ledger = Ledger()

    def chat(self, **more: Any) -> httpx.Response:
        prompt = f"prompt {len(self.ledger.asked)}"
        self.ledger.asked.add(prompt)
        messages = [{"role": "user", "content": prompt}]
        reply = self._client.post(
            "/v1/chat/completions", json={"model": "apprentice", "messages": messages} | more
        )
        if reply.headers.get("x-captured") == "true" and not more.get("stream"):
            self.ledger.opened[reply.json()["id"]] = prompt
            self.ledger.closed.add(reply.json()["id"])
        return reply

    def teach(self, completion_id: str, text: str) -> httpx.Response:
        body = {"completion_id": completion_id, "kind": "correction", "text": text}
        reply = self._client.post("/v1/feedback", json=body)
        if reply.status_code == 202:
            self.ledger.given[reply.json()["id"]] = (completion_id, text)
        return reply

    def fill(self, completion_id: str) -> None:
        """Teach at length until there is no room for anything that short any more."""
        number = 0
        for size in (7_000, 1_000, 10):
            while self.teach(completion_id, f"{number} " + "x" * size).status_code == 202:
                number += 1
                assert number < 10_000

    def metric(self, name: str) -> str:
        lines = self._client.get("/metrics").text.splitlines()
        return next(line.rpartition(" ")[2] for line in lines if line.startswith(name))

    def erase(self, completion_id: str) -> httpx.Response:
        return self._client.delete(f"/v1/chat/completions/{completion_id}")

    def close(self) -> None:
        self._client.close()


def calling(replica: Replica) -> AbstractContextManager[Caller]:
    return closing(Caller(replica.url))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of `DISK_BYTES`."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only root may mount the small disk that is filled here")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk: Path) -> Path:
    """Leave no byte; the file to delete."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 16, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return ballast


def assert_capture_is_refused(caller: Caller, completion_id: str) -> None:
    for refused in (caller.chat(), caller.chat(stream=True)):
        error = refused.json()["error"]
        assert (refused.status_code, error["code"]) == (503, "log_full")
        assert "store: false" in error["hint"]
        assert "retry-after" in refused.headers
    assert caller.teach(completion_id, "y" * 5_000).json()["error"]["code"] == "log_full"
    assert caller.chat(store=False).status_code == 200
    assert caller.metric("apprentice_log_writable") == "0.0"


def assert_capture_works(caller: Caller, completion_id: str) -> None:
    assert caller.chat().headers["x-captured"] == "true"
    assert "[DONE]" in caller.chat(stream=True).text
    assert caller.teach(completion_id, "after").status_code == 202
    assert caller.metric("apprentice_log_writable") == "1.0"


def test_a_full_journal_refuses_what_must_be_recorded_until_there_is_room(tmp_path: Path) -> None:
    quota = BufferConfig(max_bytes=400_000)
    with Replica(tmp_path / "replica", quota) as replica, calling(replica) as caller:
        kept, large = caller.chat().json()["id"], caller.chat().json()["id"]
        caller.fill(large)
        assert_capture_is_refused(caller, kept)
        assert caller.erase(large).status_code == 200
        assert_capture_works(caller, kept)


def test_a_full_disk_refuses_what_must_be_recorded_until_there_is_room(tmp_path: Path, disk: Path) -> None:
    there = Replica(tmp_path / "replica", BufferConfig(), state=disk / "state")
    with there as replica, calling(replica) as caller:
        kept = caller.chat().json()["id"]
        ballast = fill(disk)
        caller.fill(kept)
        assert_capture_is_refused(caller, kept)
        ballast.unlink()
        assert_capture_works(caller, kept)
        replica.gateway.kill()
        assert audit(replica.state, replica.buffer, caller.ledger, tmp_path).wrong == {}


def test_where_it_may_a_full_disk_is_served_without_capture(tmp_path: Path, disk: Path) -> None:
    settings = "serve_uncaptured = true"
    there = Replica(tmp_path / "replica", BufferConfig(), state=disk / "state", settings=settings)
    with there as replica, calling(replica) as caller:
        kept = caller.chat().json()["id"]
        ballast = fill(disk)
        caller.fill(kept)
        whole, streamed = caller.chat(), caller.chat(stream=True)
        for served in (whole, streamed):
            assert (served.status_code, served.headers["x-captured"]) == (200, "false")
        assert whole.json()["choices"][0]["message"]["content"].startswith("prompt ")
        assert streamed.text.endswith("data: [DONE]\n\n")
        assert caller.metric('apprentice_uncaptured_total{reason="log_full"}') == "2.0"
        assert caller.metric("apprentice_log_writable") == "0.0"
        assert caller.teach(kept, "y" * 5_000).status_code == 503
        assert caller.teach(whole.json()["id"], "z").status_code == 404, "it is no receipt"
        ballast.unlink()
        assert_capture_works(caller, kept)
        replica.gateway.kill()
        assert audit(replica.state, replica.buffer, caller.ledger, tmp_path).wrong == {}
