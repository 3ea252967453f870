"""What was acknowledged is in the log, whoever dies: the short form of `make faults`."""

from pathlib import Path

import pytest

from tests.faults.replica import Cluster
from tests.faults.scenarios import kill_everything, take_the_broker_away

pytestmark = [pytest.mark.faults, pytest.mark.kafka]


def test_nothing_acknowledged_is_lost_while_gateway_relay_and_broker_are_killed(
    tmp_path: Path, cluster: Cluster
) -> None:
    figures = kill_everything(tmp_path, cluster, records=800, kills=2, seed=1)
    assert set(figures.kills.values()) == {2}
    assert figures.ledger.records >= 800
    assert figures.findings.wrong == {}


def test_a_broker_that_is_away_fails_no_request_and_is_caught_up(tmp_path: Path, cluster: Cluster) -> None:
    figures = take_the_broker_away(tmp_path, cluster, seconds=10, rate=50)
    assert figures.ledger.failures == {}
    assert figures.ledger.records == 750
    assert figures.findings.wrong == {}
