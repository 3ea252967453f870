import math
from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from buffer.client import Buffer
from buffer.memory import MemoryLog
from buffer.view import View
from server import traffic
from server.metrics import Metrics
from server.traffic import Sample, Traffic, quantile

INF = float("inf")


def test_a_quantile_is_interpolated_within_its_bucket() -> None:
    counts = {0.1: 50.0, 0.5: 90.0, 1.0: 100.0, INF: 100.0}
    assert quantile(counts, 0.5) == pytest.approx(0.1)
    assert quantile(counts, 0.7) == pytest.approx(0.3)
    assert quantile(counts, 0.95) == pytest.approx(0.75)


def test_a_quantile_above_all_bounds_is_the_last_one_and_of_nothing_there_is_none() -> None:
    assert quantile({1.0: 0.0, INF: 4.0}, 0.5) == 1.0
    assert quantile({1.0: 0.0, INF: 0.0}, 0.5) is None
    assert quantile({}, 0.5) is None


@example([0.004, 0.9, 0.9], 1 / 3)
@given(st.lists(st.sampled_from([0.004, 0.02, 0.3, 0.9, 7.0]), min_size=1), st.floats(0.01, 0.99))
def test_a_quantile_lies_in_the_bucket_of_the_observation_that_it_is(seen: list[float], q: float) -> None:
    bounds = [0.01, 0.1, 0.5, 1.0, 10.0, INF]
    counts = {bound: float(sum(one <= bound for one in seen)) for bound in bounds}
    found = quantile(counts, q)
    assert found is not None
    ordered, rank = sorted(seen), q * len(seen)
    # at the edge between two observations it may be either's
    beside = ordered[max(math.ceil(rank) - 1, 0)], ordered[min(int(rank), len(seen) - 1)]
    first, last = (next(i for i, bound in enumerate(bounds) if one <= bound) for one in beside)
    low = bounds[first - 1] if first else 0.0
    assert low <= found <= bounds[last]


def test_it_reads_the_gateways_own_metrics() -> None:
    buffer = Buffer(MemoryLog(), View(":memory:"))
    metrics = Metrics(buffer)
    metrics.requests.labels("chat", "ok").inc(3)
    metrics.requests.labels("completions", "ok").inc()
    metrics.requests.labels("chat", "engine_unavailable").inc()
    metrics.refusals.labels("invalid_json").inc(2)
    metrics.latency.labels("chat").observe(0.2)
    metrics.first_token.observe(0.03)
    metrics.in_flight.inc()
    metrics.log_writable.set(0)
    found = traffic.read(metrics, 5.0, engine_ready=False)
    buffer.log.close()
    buffer.view.close()
    assert found.answers == {"ok": 4, "engine_unavailable": 1}
    assert found.refusals == {"invalid_json": 2}
    assert (found.latency[0.1], found.latency[0.25], found.latency[INF]) == (0, 1, 1)
    assert found.first_token[0.05] == 1
    assert (found.in_flight, found.engine_ready, found.log_writable) == (1, False, False)


def hour(*answered: int, every_s: float = 10.0) -> Traffic:
    """One sample for each number of answers so far."""
    made = Traffic()
    for number, count in enumerate(answered):
        made.add(Sample(1000 + every_s * number, Counter(ok=count), latency={0.5: count, INF: count}))
    return made


def test_rates_are_of_the_minute_before_each_sample() -> None:
    course = hour(0, 60, 60, 60, 60, 60, 60).describe(
        Sample(1070, Counter(ok=60), latency={0.5: 60, INF: 60})
    )
    history = course["history"]
    assert history["at"] == [1010, 1020, 1030, 1040, 1050, 1060, 1070]
    assert history["requests_per_s"] == [6, 3, 2, 1.5, 1.2, 1, 0]
    assert history["p50_s"][0] == 0.25
    assert history["p50_s"][-1] is None
    assert course["now"]["requests_per_s"] == 0


def test_the_hour_counts_errors_by_what_they_were_but_not_clients_that_left() -> None:
    now = Sample(1600, Counter(ok=90, aborted=5, engine_unavailable=3), Counter(invalid_api_key=7))
    found = hour(10).describe(now)["hour"]
    assert (found["seconds"], found["answers"], found["errors"]) == (600, 88, 3)
    assert found["by_outcome"] == {"ok": 80, "aborted": 5, "engine_unavailable": 3}
    assert found["refusals"] == {"invalid_api_key": 7}


def test_without_a_sample_only_the_present_is_known() -> None:
    found = Traffic().describe(Sample(1.0, Counter(ok=9), in_flight=2))
    assert found["now"] == {"in_flight": 2}
    assert found["history"] == {"at": []}
    assert found["hour"]["answers"] == 0


def test_it_forgets_what_is_older_than_an_hour() -> None:
    course = hour(*range(1000)).describe(Sample(11_000, Counter(ok=1000)))
    assert len(course["history"]["at"]) == traffic.KEPT + 1
    assert course["hour"]["seconds"] == traffic.KEPT * traffic.EVERY_S + 10


def test_it_knows_since_when_something_holds() -> None:
    made = Traffic()
    for at, ready in enumerate([True, False, True, False, False]):
        made.add(Sample(float(at), engine_ready=ready))
    assert made.since(lambda s: not s.engine_ready) == 3
    assert made.since(lambda s: s.engine_ready) is None
    assert made.since(lambda s: s.log_writable) == 0
