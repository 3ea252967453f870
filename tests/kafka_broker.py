"""A real Apache Kafka broker on this machine, for suites marked `kafka`.

    with Broker(kafka_home(), directory) as broker: ...broker.bootstrap...
    with Cluster(kafka_home(), directory) as cluster: ...cluster.brokers[0].kill()...

`KAFKA_HOME` is a download of Apache Kafka 4 (its `libs/` and a `java` 17 are all that is used); without it
`.kafka` in the checkout is used, which `make kafka` fills.
"""

import base64
import contextlib
import os
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

HOW_TO_GET_ONE = (
    "no Kafka broker: `make kafka` fetches one (java 17 and mvn), or set KAFKA_HOME to an unpacked "
    "Apache Kafka 4 download, or KAFKA_BOOTSTRAP_SERVERS to a broker that runs"
)
PROPERTIES = """\
process.roles=broker,controller
node.id={node}
controller.quorum.voters={voters}
listeners={protocol}://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
controller.listener.names=CONTROLLER
listener.security.protocol.map={protocol}:{protocol},CONTROLLER:PLAINTEXT
inter.broker.listener.name={protocol}
log.dirs={data}
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
auto.create.topics.enable=false
log.cleaner.backoff.ms=200
log.cleaner.dedupe.buffer.size=16777216
broker.heartbeat.interval.ms=200
broker.session.timeout.ms=1500
{more}
"""


def kafka_home() -> Path | None:
    """Where the broker's jars are, or None when there is no broker to start here."""
    checkout = Path(__file__).parents[1]
    given = os.environ.get("KAFKA_HOME")
    homes = [Path(given)] if given else [checkout / ".kafka", checkout.parent / "shared" / "kafka"]
    return next((home for home in homes if shutil.which("java") and (home / "libs").is_dir()), None)


class Broker:
    """One broker that is also a controller. It keeps its port and its data when it is stopped.

    `protocol` is that of its listener, `more` further lines of its properties. `ports` are those of all
    brokers of its cluster, for clients and for controllers, and `node` counts from 1.
    """

    def __init__(
        self,
        home: Path,
        directory: Path,
        *,
        protocol: str = "PLAINTEXT",
        more: str = "",
        node: int = 1,
        ports: Sequence[tuple[int, int]] = (),
        cluster_id: str = "",
    ) -> None:
        self._classpath = f"{home / 'libs'}/*"
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        ports = ports or free_pairs(1)
        self.node = node
        self.port, controller = ports[node - 1]
        self.bootstrap = f"127.0.0.1:{self.port}"
        self._heap = "-Xmx512m" if len(ports) == 1 else "-Xmx256m"
        self._properties = directory / "server.properties"
        self._properties.write_text(
            PROPERTIES.format(
                node=node,
                voters=",".join(f"{n}@127.0.0.1:{at}" for n, (_, at) in enumerate(ports, 1)),
                protocol=protocol,
                port=self.port,
                controller=controller,
                data=directory / "data",
                more=more,
            )
        )
        self._format = ["format", "-t", cluster_id or new_cluster_id(), "-c", str(self._properties)]

    def start(self) -> None:
        """Start it, or start it again, and wait until it takes connections."""
        self.launch()
        self.wait()

    def launch(self) -> None:
        if not (self._directory / "data").exists():
            command = ["java", "-cp", self._classpath, "kafka.tools.StorageTool", *self._format]
            subprocess.run(command, check=True, capture_output=True, cwd=self._directory)
        with (self._directory / "broker.log").open("ab") as out:
            self._process = subprocess.Popen(
                [
                    "java",
                    self._heap,
                    "-XX:+UseSerialGC",
                    "-XX:TieredStopAtLevel=1",
                    "-cp",
                    self._classpath,
                    "kafka.Kafka",
                    self._properties,
                ],
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=self._directory,
                env=os.environ | {"LOG_DIR": str(self._directory)},
            )

    def wait(self) -> None:
        """Until it takes connections."""
        assert self._process is not None
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.05)
        log = (self._directory / "broker.log").read_text()
        raise RuntimeError(f"the broker did not start: {log[-2000:]}")

    @property
    def alive(self) -> bool:
        """Whether it was started and not killed since."""
        return self._process is not None

    def kill(self) -> None:
        """SIGKILL, as a crash."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()  # what it holds is thrown away


class Cluster:
    """Three brokers that are one: a topic may have three replicas, and one broker may be away."""

    def __init__(self, home: Path, directory: Path) -> None:
        ports, cluster_id = free_pairs(3), new_cluster_id()
        self.brokers = []
        for node in (1, 2, 3):
            (own := directory / f"broker-{node}").mkdir()
            self.brokers.append(Broker(home, own, node=node, ports=ports, cluster_id=cluster_id))
        self.bootstrap = [broker.bootstrap for broker in self.brokers]

    def __enter__(self) -> Self:
        with ThreadPoolExecutor() as together:
            list(together.map(Broker.launch, self.brokers))
        for broker in self.brokers:
            broker.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for broker in self.brokers:
            broker.kill()


@contextlib.contextmanager
def admin(bootstrap: Sequence[str]) -> Iterator[Any]:
    """kafka-python's admin client, closed at the end."""
    from kafka import KafkaAdminClient

    client = KafkaAdminClient(bootstrap_servers=list(bootstrap))
    try:
        yield client
    finally:
        client.close()


def leaders(bootstrap: Sequence[str], topic: str) -> list[int]:
    """The nodes that lead its partitions."""
    with admin(bootstrap) as client:
        (found,) = client.describe_topics([topic])
    return [each["leader_id"] for each in found["partitions"]]


def new_cluster_id() -> str:
    """A random UUID as Kafka writes it; it may not start with a dash."""
    return base64.urlsafe_b64encode(b"\0" + uuid.uuid4().bytes[1:]).decode().rstrip("=")


def free_pairs(count: int) -> list[tuple[int, int]]:
    """A port for clients and one for controllers, of as many brokers."""
    ports = free_ports(2 * count)
    return list(zip(ports[::2], ports[1::2], strict=True))


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
