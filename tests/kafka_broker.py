"""A real Apache Kafka broker on this machine, for suites marked `kafka`.

    with Broker(kafka_home(), directory) as broker: ...broker.bootstrap...

`KAFKA_HOME` is a download of Apache Kafka 4 (its `libs/` and a `java` 17 are all that is used).
"""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

HOW_TO_GET_ONE = (
    "no Kafka broker: set KAFKA_HOME to an unpacked Apache Kafka 4 download (with java 17 on the PATH), "
    "or KAFKA_BOOTSTRAP_SERVERS to a broker that runs"
)
PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers=127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
log.dirs={data}
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
auto.create.topics.enable=false
log.cleaner.backoff.ms=200
broker.heartbeat.interval.ms=200
broker.session.timeout.ms=1500
"""


def kafka_home() -> Path | None:
    """Where the broker's jars are, or None when there is no broker to start here."""
    beside = Path(__file__).parents[2] / "shared" / "kafka"
    home = Path(os.environ["KAFKA_HOME"]) if os.environ.get("KAFKA_HOME") else beside
    return home if shutil.which("java") and (home / "libs").is_dir() else None


class Broker:
    """One broker that is also its controller. It keeps its port and its data when it is stopped."""

    def __init__(self, home: Path, directory: Path) -> None:
        self._classpath = f"{home / 'libs'}/*"
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self.port, controller = free_ports(2)
        self.bootstrap = f"127.0.0.1:{self.port}"
        self._properties = directory / "server.properties"
        self._properties.write_text(
            PROPERTIES.format(port=self.port, controller=controller, data=directory / "data")
        )
        identity = self._java("kafka.tools.StorageTool", "random-uuid").split()[-1]
        self._java(
            "kafka.tools.StorageTool", "format", "--standalone", "-t", identity, "-c", str(self._properties)
        )

    def start(self) -> None:
        """Start it, or start it again, and wait until it takes connections."""
        log = self._directory / "broker.log"
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [
                    "java",
                    "-Xmx512m",
                    "-XX:+UseSerialGC",
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
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.05)
        raise RuntimeError(f"the broker did not start: {log.read_text()[-2000:]}")

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

    def _java(self, *arguments: str) -> str:
        command = ["java", "-cp", self._classpath, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, cwd=self._directory).stdout


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
