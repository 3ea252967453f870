"""What the gateway did of late: its own metrics, sampled into a ring of one hour, as rates and quantiles.

So a page that is opened shows the last hour at once, also where nothing scrapes `/metrics`. Pure: whoever
samples brings the time.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.core import Metric

from server.metrics import Metrics

EVERY_S = 10.0
"""Between two samples."""
KEPT = 360
WINDOW = 6
"""How many samples back a rate or a quantile looks: over a minute, few requests make a line, too."""

Buckets = dict[float, float]
"""A histogram: how many observations were at most each bound, cumulative, as Prometheus has it."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The gateway's counters at one moment, in Unix seconds. They began at zero with the process."""

    at: float
    answers: Counter[str] = field(default_factory=Counter)
    """By outcome; `ok`, and `aborted` where the client left, are no errors."""
    refusals: Counter[str] = field(default_factory=Counter)
    latency: Buckets = field(default_factory=dict)
    first_token: Buckets = field(default_factory=dict)
    in_flight: int = 0
    engine_ready: bool = True
    log_writable: bool = True


def read(metrics: Metrics, at: float, *, engine_ready: bool) -> Sample:
    """Sample the gateway's metrics. It asks neither the log nor the view."""
    return Sample(
        at,
        answers=_by_label(metrics.requests.collect(), "outcome"),
        refusals=_by_label(metrics.refusals.collect(), "reason"),
        latency=_buckets(metrics.latency.collect()),
        first_token=_buckets(metrics.first_token.collect()),
        in_flight=int(_values(metrics.in_flight.collect())[0]),
        engine_ready=engine_ready,
        log_writable=_values(metrics.log_writable.collect())[0] > 0,
    )


class Traffic:
    """The last hour of samples."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque(maxlen=KEPT + 1)

    def add(self, sample: Sample) -> None:
        self._samples.append(sample)

    def since(self, holds: Callable[[Sample], bool]) -> float | None:
        """From when on something has held without a break, as far as is known; None when it does not."""
        start = None
        for sample in reversed(self._samples):
            if not holds(sample):
                break
            start = sample.at
        return start

    def describe(self, now: Sample) -> dict[str, Any]:
        """The present, the hour in sums, and its course: one value a sample in each list, None for none."""
        samples = [*self._samples, now]
        spans = [(samples[max(0, i - WINDOW)], samples[i]) for i in range(1, len(samples))]
        return {
            "now": {"in_flight": now.in_flight, **(_span(*spans[-1]) if spans else {})},
            "hour": _sums(samples[0], now),
            "history": {
                "at": [int(end.at) for _, end in spans],
                **_columns([_span(start, end) for start, end in spans]),
            },
        }


def quantile(counts: Buckets, q: float) -> float | None:
    """As PromQL's `histogram_quantile`: linear within a bucket, the last bound for what is above it."""
    bounds = sorted(counts)
    total = counts[bounds[-1]] if bounds else 0
    if not total:
        return None
    rank, lower, below = q * total, 0.0, 0.0
    for bound in bounds:
        if counts[bound] >= rank and counts[bound] > below:
            if bound == float("inf"):
                return lower
            return lower + (bound - lower) * (rank - below) / (counts[bound] - below)
        lower, below = bound, counts[bound]
    return lower


def _span(start: Sample, end: Sample) -> dict[str, float | None]:
    """Requests and errors a second, and latencies, between two samples."""
    answers = end.answers - start.answers
    seconds = max(end.at - start.at, 1e-3)
    return {
        "requests_per_s": _rounded(answers.total() / seconds),
        "errors_per_s": _rounded(_errors(answers).total() / seconds),
        **_latencies(start, end),
    }


def _latencies(start: Sample, end: Sample) -> dict[str, float | None]:
    latency = _difference(start.latency, end.latency)
    first_token = _difference(start.first_token, end.first_token)
    return {
        "p50_s": _rounded(quantile(latency, 0.5)),
        "p95_s": _rounded(quantile(latency, 0.95)),
        "first_token_p50_s": _rounded(quantile(first_token, 0.5)),
    }


def _sums(start: Sample, end: Sample) -> dict[str, Any]:
    answers = end.answers - start.answers
    return {
        "seconds": round(end.at - start.at),
        "answers": answers.total(),
        "errors": _errors(answers).total(),
        "by_outcome": dict(answers.most_common()),
        "refusals": dict((end.refusals - start.refusals).most_common()),
        **_latencies(start, end),
    }


def _errors(answers: Counter[str]) -> Counter[str]:
    return Counter({outcome: n for outcome, n in answers.items() if outcome not in ("ok", "aborted")})


def _columns(rows: Sequence[dict[str, float | None]]) -> dict[str, list[float | None]]:
    return {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}


def _difference(start: Buckets, end: Buckets) -> Buckets:
    return {bound: count - start.get(bound, 0) for bound, count in end.items()}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _by_label(found: Iterable[Metric], label: str) -> Counter[str]:
    counted: Counter[str] = Counter()
    for sample in (one for metric in found for one in metric.samples if one.name.endswith("_total")):
        counted[sample.labels[label]] += int(sample.value)
    return +counted  # a counter that was made before its first event is at 0


def _buckets(found: Iterable[Metric]) -> Buckets:
    """Over all labels."""
    counted: Buckets = {}
    for sample in (one for metric in found for one in metric.samples if one.name.endswith("_bucket")):
        bound = float(sample.labels["le"])
        counted[bound] = counted.get(bound, 0) + sample.value
    return counted


def _values(found: Iterable[Metric]) -> list[float]:
    return [sample.value for metric in found for sample in metric.samples]
