"""The deployment's processes side by side: three servers with their relays, a broker, and a real Prometheus.

Prometheus runs on `deploy/prometheus` itself, only with shorter times; vLLM and the learner are stand-ins.
"""

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from buffer.backend import open_log
from buffer.client import Buffer
from buffer.config import BufferConfig, Shared
from buffer.log import LogUnavailable
from buffer.records import LearnerReported, Payload, RoundEnded, RoundPlanned
from buffer.view import View
from tests.buffer.conftest import kafka_settings
from tests.deploy.test_metric_names import expressions
from tests.deploy.tools import PROMETHEUS, program
from tests.faults.replica import Child, Replica
from tests.kafka_broker import free_ports
from tests.server.running import hashed

pytestmark = pytest.mark.kafka

KEY = "the-key-of-prometheus"
SETTINGS = f'secret = "{"5e" * 32}"\nkeys = {{ metrics = "{hashed({"m": KEY})["m"]}" }}\nadmins = ["metrics"]'
ASKED = {"model": "apprentice", "messages": [{"role": "user", "content": "one two"}]}
HEADERS = {"authorization": f"Bearer {KEY}"}


def wait_for(holds: Callable[[], bool], what: str) -> None:
    for _ in range(600):
        if holds():
            return
        time.sleep(0.2)
    raise AssertionError(f"never: {what}")


class Prometheus:
    """Prometheus on the deployment's own files."""

    def __init__(self, directory: Path, targets: list[str]) -> None:
        self._directory = directory
        directory.mkdir()
        for name in ("prometheus.yml", "rules.yml"):
            (directory / name).write_text(hurried((PROMETHEUS / name).read_text()))
        (directory / "metrics.key").write_text(KEY)
        (directory / "targets.yml").write_text(f"- targets: {targets}")
        (port,) = free_ports(1)
        self._url = f"http://127.0.0.1:{port}"
        with (directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    program("prometheus"),
                    "--config.file=prometheus.yml",
                    "--storage.tsdb.path=data",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                cwd=directory,
                stderr=log,
            )
        wait_for(self._ready, "Prometheus is ready")

    def ask(self, expression: str) -> dict[str, float]:
        """The result's values by server, "" for one that is of no server."""
        found = self.get("query", query=expression)["result"]
        return {one["metric"].get("instance", ""): float(one["value"][1]) for one in found}

    def firing(self, alert: str) -> list[str]:
        """The servers for which an alert fires."""
        return sorted(self.ask(f'ALERTS{{alertname="{alert}",alertstate="firing"}}'))

    def get(self, what: str, **parameters: str) -> Any:
        answer = httpx.get(f"{self._url}/api/v1/{what}", params=parameters, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _ready(self) -> bool:
        assert self._process.poll() is None, (self._directory / "log").read_text()
        try:
            return httpx.get(f"{self._url}/-/ready", timeout=60).status_code == 200
        except httpx.TransportError:
            return False


def hurried(text: str) -> str:
    """A configuration or rules with seconds in the place of minutes and hours."""
    return re.sub(r"^( *(?:for|scrape_interval|evaluation_interval):) \w+$", r"\1 1s", text, flags=re.M)


class Learner:
    """Stands for the learner on a machine of its own: it says what it is told to."""

    def __init__(self, directory: Path, settings: BufferConfig, config: Path, stack: ExitStack) -> None:
        relay = Child(
            "learner-relay", "buffer", "--config", config, "--state", directory, directory=config.parent
        )
        relay.start()
        stack.callback(relay.kill)
        self._buffer = Buffer(open_log(Shared(state=directory), settings, name="learner"), View(":memory:"))
        stack.callback(self._buffer.close)
        wait_for(self._reads_the_log, "the topics are there")

    def says(self, *payloads: Payload) -> None:
        for payload in payloads:
            self._buffer.decide(payload).result(60)

    def _reads_the_log(self) -> bool:
        try:
            self._buffer.start()
        except LogUnavailable:
            return False
        return True


class Fleet:
    """All of it."""

    def __init__(self, directory: Path, broker: str, stack: ExitStack) -> None:
        settings = kafka_settings(broker)
        self.servers = [Replica(directory / name, settings, settings=SETTINGS) for name in "abc"]
        for server in self.servers:
            stack.callback(server.close)
            for child in (server.engine, server.relay, server.gateway):
                child.start()
        self.learner = Learner(directory / "learner", settings, directory / "a" / "apprentice.toml", stack)
        for server in self.servers:
            server.wait_until_ready()
        self.addresses = [server.url.removeprefix("http://") for server in self.servers]
        self.prometheus = Prometheus(directory / "prometheus", self.addresses)
        stack.callback(self.prometheus.close)

    def expect(self, expression: str, *values: float) -> None:
        """Wait until Prometheus has these values of the three servers."""
        wanted = dict(zip(self.addresses, values, strict=True))
        wait_for(lambda: self.prometheus.ask(expression) == wanted, f"{expression} is {wanted}")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, broker: str) -> Iterator[Fleet]:
    program("prometheus")
    with ExitStack() as stack:
        yield Fleet(tmp_path_factory.mktemp("deployed"), broker, stack)


def test_prometheus_reaches_all_servers_and_each_tells_of_itself(fleet: Fleet) -> None:
    for server, times in zip(fleet.servers, (1, 2, 3), strict=True):
        for _ in range(times):
            reply = httpx.post(f"{server.url}/v1/chat/completions", json=ASKED, headers=HEADERS, timeout=60)
            assert reply.status_code == 200
    fleet.expect('up{job="apprentice"}', 1, 1, 1)
    fleet.expect("apprentice_ready", 1, 1, 1)
    fleet.expect('apprentice_requests_total{outcome="ok"}', 1, 2, 3)
    fleet.expect("apprentice_log_pending_records", 0, 0, 0)


def test_what_the_learner_does_is_told_by_every_server(fleet: Fleet) -> None:
    planned = RoundPlanned(round=1, parent=0, lessons=[], seed=1, base="b", config={})
    fleet.learner.says(planned, RoundEnded(round=1, verdict="failed", reasons=["out of memory"]))
    fleet.learner.says(LearnerReported(state="waiting", why="for feedback"))
    fleet.expect('apprentice_learner_state{state="waiting"}', 1, 1, 1)
    fleet.expect('apprentice_rounds{verdict="failed"}', 1, 1, 1)
    wait_for(lambda: fleet.prometheus.firing("RoundFailed") == [""], "one alert for all servers")


def test_an_engine_that_dies_is_an_alert_for_its_server_until_it_is_back(fleet: Fleet) -> None:
    *_, victim = fleet.servers
    wait_for(lambda: fleet.prometheus.firing("NotServing") == [], "all serve")
    victim.engine.kill()
    wait_for(lambda: fleet.prometheus.firing("NotServing") == fleet.addresses[-1:], "it fires")
    assert fleet.prometheus.firing("NothingServes") == []
    victim.engine.start()
    wait_for(lambda: fleet.prometheus.firing("NotServing") == [], "it is over")


def test_every_rule_and_every_panel_gets_an_answer(fleet: Fleet) -> None:
    for expression in expressions():
        asked = expression.replace("$__rate_interval", "1m").replace("$instance", ".*")
        fleet.prometheus.get("query", query=asked)
    groups = fleet.prometheus.get("rules")["groups"]
    assert [rule["name"] for group in groups for rule in group["rules"] if rule["health"] == "err"] == []
