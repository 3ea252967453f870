"""What is done to the system, and what came of it: small in the tests, large in `make faults`."""

import asyncio
import random
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests.faults.audit import PATIENCE_S, Findings, audit, drained
from tests.faults.replica import Cluster, Leader, Replica, Victim
from tests.faults.traffic import Clients, Ledger


@dataclass
class Figures:
    """What happened and what was found."""

    ledger: Ledger
    findings: Findings
    kills: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    """While clients called."""
    drain_s: float = 0.0
    """From the broker's return, or the clients' end, until the relay had carried everything."""


def kill_everything(
    directory: Path, cluster: Cluster, *, records: int, kills: int, seed: int, workers: int = 8
) -> Figures:
    """Clients at full speed, while gateway, relay and broker are killed `kills` times each and started again.

    When each dies is drawn from `seed`, in terms of the records that have been acknowledged by then. Of
    several brokers it is each time one that leads.
    """
    buffer, brokers = cluster
    broker: Victim = brokers[0] if len(brokers) == 1 else Leader(buffer.kafka, brokers, seed)
    with Replica(directory / "replica", buffer) as replica:
        ledger = Ledger()
        named: dict[str, Victim] = {"gateway": replica.gateway, "relay": replica.relay, "broker": broker}
        reapers = [
            Reaper(victim, ledger, sorted(random.Random(f"{seed} {name}").sample(range(records), kills)))
            for name, victim in named.items()
        ]
        began = time.monotonic()

        def enough() -> bool:
            return ledger.records >= records and not any(reaper.is_alive() for reaper in reapers)

        for reaper in reapers:
            reaper.start()
        asyncio.run(_calls(replica.url, ledger, lambda clients: clients.run(workers, enough)))
        for reaper in reapers:
            reaper.join()
            if reaper.failed is not None:
                raise reaper.failed
        seconds = time.monotonic() - began
        replica.wait_until_ready()
        drain_s = _drain(replica)
        found = audit(replica.state, buffer, ledger, directory)
    done = dict(zip(named, (reaper.kills for reaper in reapers), strict=True))
    return Figures(ledger, found, done, seconds, drain_s)


def take_the_broker_away(directory: Path, cluster: Cluster, *, seconds: float, rate: float) -> Figures:
    """Clients at a steady rate of requests while there is no broker for so long; then it comes back."""
    buffer, brokers = cluster
    with Replica(directory / "replica", buffer) as replica:
        ledger = Ledger()
        for broker in brokers:
            broker.kill()
        began = time.monotonic()
        # each exchange is two requests: the chat and its feedback
        asyncio.run(_calls(replica.url, ledger, lambda clients: clients.run_at(rate / 2, seconds)))
        took = time.monotonic() - began
        for broker in brokers:
            broker.launch()
        for broker in brokers:
            broker.wait()  # none of several takes connections before most are there
        drain_s = _drain(replica)
        return Figures(ledger, audit(replica.state, buffer, ledger, directory), {}, took, drain_s)


class Reaper(threading.Thread):
    """Kills one victim, and starts it again at once, whenever so many records have been acknowledged."""

    def __init__(self, victim: Victim, ledger: Ledger, moments: list[int]) -> None:
        super().__init__(daemon=True)
        self._victim, self._ledger, self._moments = victim, ledger, moments
        self.kills = 0
        self.failed: Exception | None = None

    def run(self) -> None:
        try:
            for moment in self._moments:
                while self._ledger.records < moment:
                    time.sleep(0.002)
                self._victim.kill()
                self.kills += 1
                self._victim.start()
        except Exception as error:  # told by whoever joins
            self.failed = error


async def _calls(url: str, ledger: Ledger, work: Callable[[Clients], Coroutine[Any, Any, None]]) -> None:
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        await work(Clients(url, session, ledger))


def _drain(replica: Replica) -> float:
    began = time.monotonic()
    while not drained(replica.state) and time.monotonic() - began < 20 * PATIENCE_S:
        time.sleep(0.1)
    return time.monotonic() - began
