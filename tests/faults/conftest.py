from collections.abc import Iterator

import pytest

from tests.faults.replica import Cluster, brokers, own_topics
from tests.kafka_broker import HOW_TO_GET_ONE


@pytest.fixture(scope="package")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    try:
        with brokers(1, tmp_path_factory.mktemp("broker")) as cluster:
            yield cluster
    except LookupError:
        pytest.skip(HOW_TO_GET_ONE)


@pytest.fixture
def cluster(started: Cluster) -> Iterator[Cluster]:
    """Brokers that may be killed, with topics of one's own."""
    yield own_topics(started)
    for broker in started[1]:
        if not broker.alive:
            broker.start()
