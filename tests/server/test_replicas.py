"""Several servers and one learner, each with its own state: they share the broker, the store, the secret.

Gateways and relays are real processes, the broker is a real one; vLLM is scripted, the learner is this test.
"""

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from buffer.adapters import base_digest
from buffer.backend import open_log
from buffer.client import Buffer
from buffer.config import AdaptersConfig, BufferConfig, KafkaConfig, Shared
from buffer.log import LogUnavailable
from buffer.records import Release, RoundEnded, RoundPlanned
from buffer.store import AdapterStore
from buffer.view import View
from tests.server.adapters import PROMPT, publish, write_weights
from tests.server.test_main import Processes

pytestmark = pytest.mark.kafka

ASKED = {"model": "apprentice", "messages": [{"role": "user", "content": "one two"}]}
SECRET = "5e" * 32


def wait_for(holds: Callable[[], bool], what: str) -> None:
    for _ in range(600):
        if holds():
            return
        time.sleep(0.05)
    raise AssertionError(f"never: {what}")


class Relay:
    """Carries one state's journal to the broker; can be stopped and started again."""

    def __init__(self, state: Path, env: dict[str, str]) -> None:
        self._command = [sys.executable, "-m", "buffer", "--state", str(state)]
        own = {name: value for name, value in os.environ.items() if not name.startswith("APPRENTICE_")}
        self._env = {**own, **env}
        self._log = state.parent / f"{state.name}-relay.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, env=self._env, stderr=log)

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()


class Replica:
    """A machine that serves."""

    def __init__(self, directory: Path, env: dict[str, str]) -> None:
        self.processes = Processes(directory)
        self.state = self.processes.state
        self.relay = Relay(self.state, env)
        self.processes.start(**env)
        self._client = httpx.Client(timeout=60)

    def wait_until_ready(self) -> None:
        self._client.base_url = self.processes.wait_until_ready()

    def get(self, path: str) -> httpx.Response:
        return self._client.get(path)

    def post(self, path: str, body: Any = None) -> httpx.Response:
        return self._client.post(path, json=body)

    def serves(self) -> str:
        reply = self.post("/v1/chat/completions", {**ASKED, "store": False})
        return str(reply.headers.get("x-policy"))

    def moves(self) -> list[dict[str, Any]]:
        """Every move of the alias, in the log's order."""
        moves = [move for policy in self.get("/v1/policies").json()["data"] for move in policy["moves"]]
        return sorted(moves, key=lambda move: int(move["epoch"]))

    def close(self) -> None:
        self._client.close()
        self.relay.stop()
        self.processes.close()


class Fleet:
    """Three replicas, and the learner's machine."""

    def __init__(self, directory: Path, broker: str, stack: ExitStack) -> None:
        prefix, url = f"test-{uuid.uuid4().hex[:8]}.", f"file://{directory}/store"
        env = {
            "APPRENTICE_BUFFER_BACKEND": "kafka",
            "APPRENTICE_BUFFER_KAFKA_BOOTSTRAP_SERVERS": broker,
            "APPRENTICE_BUFFER_KAFKA_TOPIC_PREFIX": prefix,
            "APPRENTICE_BUFFER_KAFKA_PARTITIONS": "3",
            "APPRENTICE_BUFFER_ADAPTERS_URL": url,
            "APPRENTICE_SERVER_SECRET": SECRET,
        }
        shared = Shared(state=directory / "learner")
        kafka = KafkaConfig(bootstrap_servers=[broker], topic_prefix=prefix, partitions=3)
        settings = BufferConfig(backend="kafka", kafka=kafka, adapters=AdaptersConfig(url=url))
        self.buffer = Buffer(open_log(shared, settings, name="learner"), View(":memory:"))
        stack.callback(self.buffer.close)
        self.store = AdapterStore(shared.state / "adapters", settings.adapters)
        relay = Relay(shared.state, env)
        stack.callback(relay.stop)
        wait_for(self._reads_the_log, "the topics are there")
        self.replicas: list[Replica] = []
        for name in "abc":
            replica = Replica(directory / name, env)
            stack.callback(replica.close)
            self.replicas.append(replica)
        for replica in self.replicas:
            replica.wait_until_ready()
        self.base = base_digest(self.replicas[0].processes.model)

    def _reads_the_log(self) -> bool:
        try:
            self.buffer.start()
        except LogUnavailable:
            return False
        return True

    def release(self) -> int:
        """One round that passes, on top of what is live; its version, once all serve it."""
        view = self.buffer.view
        version = 1 + max((r.planned.round for r in view.rounds()), default=0)
        parent = view.alias("apprentice").version
        release = self._published(version)
        self.store.put(release)
        planned = RoundPlanned(
            round=version, parent=parent, lessons=[], seed=1, base=self.base, config={}, templates={}
        )
        self.buffer.decide(planned).result(60)
        self.buffer.decide(RoundEnded(round=version, verdict="passed", release=release)).result(60)
        self.all_serve(version)
        wait_for(lambda: view.alias("apprentice").version == version, "the learner heard of it")
        return version

    def _published(self, version: int) -> Release:
        weights = self.store.root / f".weights-{version}"
        write_weights(weights, seed=version)
        scores = [-0.5 * version - 0.1 * i for i in range(len(PROMPT) - 1)]
        parent = [-9.0] * len(scores)
        return publish(
            self.store.root, weights, version=version, candidate=scores, parent=parent, base=self.base
        )

    def all_serve(self, version: int) -> None:
        name = f"apprentice@{version:06d}"
        wait_for(lambda: {r.serves() for r in self.replicas} == {name}, f"all serve {name}")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, broker: str) -> Iterator[Fleet]:
    with ExitStack() as stack:
        yield Fleet(tmp_path_factory.mktemp("fleet"), broker, stack)


def test_a_release_published_once_is_served_by_all(fleet: Fleet) -> None:
    version = fleet.release()
    made_by = fleet.buffer.view.release(version)
    assert made_by is not None and made_by.release is not None
    for replica in fleet.replicas:
        name, there = f"apprentice@{version:06d}", replica.state / "adapters" / made_by.release.directory
        assert replica.processes.vllm.loaded[name] == str(there), "each from a directory of its own"
        assert len([move for move in replica.moves() if move["version"] == version]) == 1


def test_what_any_replica_is_asked_for_all_do(fleet: Fleet) -> None:
    first, second = fleet.release(), fleet.release()
    a, b, c = fleet.replicas
    assert b.post("/v1/policies/rollback").json()["version"] == first
    fleet.all_serve(first)
    assert c.post(f"/v1/policies/{second}/promote").status_code == 200
    fleet.all_serve(second)
    assert a.post("/v1/policies/0/promote").status_code == 200
    fleet.all_serve(0)
    assert a.post(f"/v1/policies/{second}/promote").status_code == 200
    fleet.all_serve(second)


def test_of_two_decisions_at_once_one_wins_everywhere(fleet: Fleet) -> None:
    first, second = fleet.release(), fleet.release()
    both = threading.Barrier(2)

    def ask(replica: Replica, version: int) -> httpx.Response:
        both.wait()
        return replica.post(f"/v1/policies/{version}/promote")

    a, b, _ = fleet.replicas
    with ThreadPoolExecutor() as pool:
        answers: Sequence[httpx.Response] = list(pool.map(ask, (a, b), (first, 0)))
    made = fleet.replicas[2].moves()[-1]["version"]
    assert made in (first, 0), second
    fleet.all_serve(made)
    wait_for(lambda: fleet.replicas[0].moves() == fleet.replicas[1].moves(), "they know the same moves")
    for answer, version in zip(answers, (first, 0), strict=True):
        # who lost is told so, unless it looked after the other one had won
        if answer.status_code != 200:
            assert (answer.json()["error"]["code"], version != made) == ("alias_moved", True)
    assert any(answer.status_code == 200 for answer in answers)


def test_feedback_reaches_any_replica_also_before_its_exchange(fleet: Fleet) -> None:
    a, b, c = fleet.replicas
    a.relay.stop()  # nothing of what this machine answers gets to the others
    try:
        asked = a.post("/v1/chat/completions", ASKED).json()["id"]
        assert b.get(f"/v1/chat/completions/{asked}").status_code == 404
        given = b.post("/v1/feedback", {"completion_id": asked, "kind": "correction", "text": "three"})
        assert given.status_code == 202
        forged = asked[:-1] + ("0" if asked[-1] != "0" else "1")
        refused = b.post("/v1/feedback", {"completion_id": forged, "kind": "correction", "text": "three"})
        assert refused.status_code == 404
    finally:
        a.relay.start()
    feedback_id = given.json()["id"]
    view = fleet.buffer.view
    wait_for(lambda: view.exchange(asked) is not None, "the learner has the exchange")
    wait_for(lambda: view.feedback(feedback_id) is not None, "and the feedback on it")
    found = view.feedback(feedback_id)
    assert found is not None and found.given is not None and found.given.completion_id == asked
    wait_for(lambda: c.get(f"/v1/feedback/{feedback_id}").status_code == 200, "the third knows it too")
