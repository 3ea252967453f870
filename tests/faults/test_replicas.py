"""Machines on one broker that goes away: they agree on what is live, and keep what they acknowledged."""

import hashlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import httpx
import pytest

from buffer.adapters import base_digest
from buffer.config import BufferConfig
from buffer.journal import Journal
from buffer.kafka import KafkaLog
from buffer.records import AliasMoved, Payload, Record, RoundEnded, RoundPlanned
from buffer.rounds import Alias
from buffer.view import View
from tests.faults.replica import Cluster, Replica
from tests.server.adapters import PROMPT, publish, write_weights
from tests.server.scripted_vllm import score

pytestmark = [pytest.mark.faults, pytest.mark.kafka]
RACES = 2


def until(holds: Callable[[], bool], what: str) -> None:
    for _ in range(1200):
        if holds():
            return
        time.sleep(0.05)
    raise AssertionError(f"not in a minute: {what}")


def releases(replica: Replica) -> list[Payload]:
    """The adapters of two rounds, 1 on base and 2 on 1, and the records that say so."""
    payloads: list[Payload] = []
    for version in (1, 2):
        weights = replica.directory / f"weights-{version}"
        write_weights(weights, seed=version)
        candidate, parent = (
            [score(f"apprentice@{v}", token) for token in PROMPT[1:]] for v in (version, version - 1)
        )
        release = publish(
            replica.state / "adapters", weights, version=version, candidate=candidate, parent=parent,
            base=base_digest(replica.directory / "model"),
        )  # fmt: skip
        planned = RoundPlanned(round=version, parent=version - 1, lessons=[], seed=1, base="b", config={})
        payloads += [planned, RoundEnded(round=version, verdict="passed", release=release)]
    return payloads


def append(replica: Replica, payloads: list[Payload]) -> None:
    journal = Journal(replica.state / "journal.db")
    journal.append([Record.of(p, time=datetime.now(UTC), randomness=bytes(8)) for p in payloads]).result()
    journal.close()


def moves_written(replica: Replica) -> int:
    journal = Journal(replica.state / "journal.db")
    (count,) = journal.query("SELECT count(*) FROM records WHERE type = ?", (AliasMoved.type,))[0]
    journal.close()
    return int(count)


def live(replica: Replica) -> str:
    return str(httpx.get(f"{replica.url}/readyz", timeout=60).json().get("policy"))


def test_operators_on_two_replicas_while_the_broker_is_away_leave_one_live_policy(
    tmp_path: Path, cluster: Cluster
) -> None:
    buffer, (broker,) = cluster
    replicas = [Replica(tmp_path / f"replica-{number}", buffer) for number in range(3)]
    records = [releases(replica) for replica in replicas]
    assert records[0] == records[1] == records[2]
    append(replicas[0], records[0])
    with ExitStack() as stack, ThreadPoolExecutor(2) as operators:
        for replica in replicas:
            stack.enter_context(replica)
        until(lambda: {live(r) for r in replicas} == {"apprentice@000002"}, "both releases are live")
        before = sum(map(moves_written, replicas))
        for race in range(RACES):
            target = 0 if race % 2 else 1
            written = [moves_written(replica) for replica in replicas[:2]]
            broker.kill()
            calls = [
                operators.submit(httpx.post, f"{replicas[0].url}/v1/policies/{target}/promote", timeout=60),
                operators.submit(httpx.post, f"{replicas[1].url}/v1/policies/rollback", timeout=60),
            ]
            until(partial(all_wrote, replicas, written), "both wrote")
            broker.start()
            assert {call.result().status_code for call in calls} <= {200, 409, 503}
            until(lambda: len({live(r) for r in replicas}) == 1 and lag(replicas) == 0, "they agree")
            if live(replicas[0]) != "apprentice@000002":
                httpx.post(f"{replicas[2].url}/v1/policies/2/promote", timeout=60).raise_for_status()
                until(lambda: {live(r) for r in replicas} == {"apprentice@000002"}, "2 is live again")
        assert sum(map(moves_written, replicas)) == before + 3 * RACES
        agreed = {live(r) for r in replicas}
        alias = read_alias(buffer, tmp_path)
    assert agreed == {f"apprentice@{alias.version:06d}"}
    assert [move.epoch for move in alias.moves] == list(range(2 + 2 * RACES)), "one of each two moves won"


def all_wrote(replicas: list[Replica], before: list[int]) -> bool:
    return all(moves_written(replicas[index]) > count for index, count in enumerate(before))


def lag(replicas: list[Replica]) -> float:
    texts = [httpx.get(f"{replica.url}/metrics", timeout=60).text for replica in replicas]
    lines = [line for text in texts for line in text.splitlines()]
    lags = [float(line.split()[1]) for line in lines if line.startswith("apprentice_view_lag_records ")]
    return max(lags) if len(lags) == len(replicas) else 1.0  # it is not told while the broker is away


def read_alias(buffer: BufferConfig, directory: Path) -> Alias:
    view = View(directory / "fresh.db")
    log = KafkaLog(Journal(directory / "fresh-journal.db"), buffer.kafka, name="test")
    ends = log.ends()
    while view.positions() != ends:
        records, positions = log.read(view.positions(), wait_s=1)
        view.apply(records, positions)
    log.close()
    alias = view.alias("apprentice")
    view.close()
    return alias


def test_a_gateway_that_dies_while_the_broker_is_away_knows_what_it_acknowledged(
    tmp_path: Path, cluster: Cluster
) -> None:
    buffer, (broker,) = cluster
    # a key, since without any a server that has lost its view trusts nobody until the log is read
    settings = f"keys = {{ ann = '{hashlib.sha256(b'ann-key').hexdigest()}' }}"
    with Replica(tmp_path / "replica", buffer, settings=settings) as replica:
        broker.kill()
        asked = [{"role": "user", "content": "one"}]
        body = {"kind": "demonstration", "messages": asked, "text": "two"}

        def teach() -> str:
            headers = {"idempotency-key": "k", "authorization": "Bearer ann-key"}
            reply = httpx.post(f"{replica.url}/v1/feedback", json=body, headers=headers, timeout=60)
            assert reply.status_code == 202
            return str(reply.json()["id"])

        first = teach()
        replica.gateway.kill()
        # what a gateway leaves that dies between the journal's flush and the view's
        for file in (replica.state / "server").glob("view.db*"):
            file.unlink()
        replica.gateway.start()
        until(lambda: up(replica), "it listens")
        assert teach() == first


def up(replica: Replica) -> bool:
    try:
        return httpx.get(f"{replica.url}/healthz", timeout=60).status_code == 200
    except httpx.TransportError:
        return False
