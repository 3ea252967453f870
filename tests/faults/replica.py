"""One machine of the system as the real processes: a gateway, its relay, and a scripted vLLM beneath.

They are started together and killed one by one; the gateway keeps its port.
"""

import contextlib
import json
import os
import random
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import httpx

from buffer.config import BufferConfig, KafkaConfig
from buffer.topics import topic_of
from tests.kafka_broker import Broker, free_ports, kafka_home, leaders
from tests.kafka_broker import Cluster as ThreeBrokers
from tests.server.adapters import write_stub_model

ROOT = Path(__file__).parents[2]
PATIENCE_S = 120.0
"""How long anything may take to come up on a machine that is busy."""


class Victim(Protocol):
    """What can be killed without a word, and started again."""

    def kill(self) -> None: ...

    def start(self) -> None: ...


class Child:
    """A process of the project's own."""

    def __init__(self, name: str, module: str, *arguments: object, directory: Path) -> None:
        self.log = directory / f"{name}.log"
        self._command = [sys.executable, "-P", "-m", module, *map(str, arguments)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        settings = {name: text for name, text in os.environ.items() if not name.startswith("APPRENTICE_")}
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command,
                cwd=self.log.parent,
                env={**settings, "PYTHONPATH": str(ROOT)},
                stdout=output,
                stderr=output,
            )

    def kill(self) -> None:
        """SIGKILL, as a crash."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def said(self) -> str:
        return self.log.read_text()


class Replica:
    """A gateway on a state directory of its own. With a broker in `buffer`, a relay, too."""

    def __init__(
        self, directory: Path, buffer: BufferConfig, *, state: Path | None = None, settings: str = ""
    ) -> None:
        """`settings` are further lines of [server]."""
        directory.mkdir(parents=True, exist_ok=True)
        self.directory, self.buffer = directory, buffer
        self.state = state or directory / "state"
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        self._socket = directory / "v.sock"
        write_stub_model(directory / "model")
        config = directory / "apprentice.toml"
        config.write_text(_toml(buffer, directory, port, settings))
        where = ("--config", config, "--state", self.state)
        self.engine = Child("engine", "tests.server.scripted_vllm", self._socket, directory=directory)
        self.gateway = Child("gateway", "server", *where, directory=directory)
        self.relay = Child("relay", "buffer", *where, directory=directory)

    @property
    def relayed(self) -> bool:
        """Whether a relay belongs to it."""
        return self.buffer.backend == "kafka"

    def start(self) -> None:
        """Start everything and wait until it serves."""
        for child in (self.engine, *([self.relay] if self.relayed else []), self.gateway):
            child.start()
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/readyz").status_code == 200:
                    return
            time.sleep(0.05)
        raise AssertionError(f"the gateway did not become ready:\n{self.gateway.said()[-3000:]}")

    def close(self) -> None:
        for child in (self.gateway, self.relay, self.engine):
            child.kill()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


Cluster = tuple[BufferConfig, list[Broker]]
"""A log on real brokers: its settings, and the brokers to kill."""


class Leader:
    """Whichever of the brokers leads a partition of the exchanges when it is to die."""

    def __init__(self, kafka: KafkaConfig, brokers: Sequence[Broker], seed: int) -> None:
        self._kafka, self._brokers = kafka, {broker.node: broker for broker in brokers}
        self._random = random.Random(seed)
        self._killed: Broker | None = None

    def kill(self) -> None:
        topic = topic_of(self._kafka, "exchanges")
        while not (led := self._brokers.keys() & set(leaders(self._kafka.bootstrap_servers, topic))):
            time.sleep(0.1)  # an election is under way
        self._killed = self._brokers[self._random.choice(sorted(led))]
        self._killed.kill()

    def start(self) -> None:
        if self._killed is not None:
            self._killed.start()
            self._killed = None


@contextlib.contextmanager
def brokers(count: int, directory: Path) -> Iterator[Cluster]:
    """One of them or three; of three a topic has all as replicas, and two must have what is acknowledged.

    Raises `LookupError` where there are none to start.
    """
    home = kafka_home()
    if home is None:
        raise LookupError("KAFKA_HOME names no download of Apache Kafka")
    if count not in (1, 3):
        raise ValueError(f"there are suites for one broker and for three, not for {count}")
    kafka: dict[str, Any] = {"partitions": 3}
    if count == 1:
        with Broker(home, directory) as broker:
            kafka["bootstrap_servers"] = [broker.bootstrap]
            yield BufferConfig.model_validate({"backend": "kafka", "kafka": kafka}), [broker]
        return
    with ThreeBrokers(home, directory) as three:
        kafka |= {
            "bootstrap_servers": three.bootstrap,
            "replication_factor": 3,
            "min_insync_replicas": 2,
        }
        yield BufferConfig.model_validate({"backend": "kafka", "kafka": kafka}), list(three.brokers)


def own_topics(cluster: Cluster) -> Cluster:
    """The same brokers with topics that nobody has used."""
    buffer, victims = cluster
    kafka = buffer.kafka.model_copy(update={"topic_prefix": f"test-{uuid.uuid4().hex[:8]}."})
    return buffer.model_copy(update={"kafka": kafka}), victims


def _toml(buffer: BufferConfig, directory: Path, port: int, settings: str) -> str:
    kafka = buffer.kafka.model_dump(exclude={"client"})
    lines = [
        f"model = {json.dumps(str(directory / 'model'))}",
        "[engine]",
        f"url = {json.dumps(f'unix:{directory}/v.sock')}",
        "[buffer]",
        *_values(buffer.model_dump(exclude={"kafka", "adapters"})),
        "[buffer.kafka]",
        *_values(kafka),
        "[server]",
        f"port = {port}",
        settings,
    ]
    return "\n".join(lines)


def _values(table: dict[str, Any]) -> list[str]:
    return [f"{name} = {json.dumps(value)}" for name, value in table.items()]
