"""What the gateway counts, in Prometheus' terms, in a registry of its own.

Nothing is labelled with a policy's version or a caller: such label values would only ever grow. vLLM's own
metrics are appended without `vllm:lora_requests_info`, which keeps a series for every adapter it ever saw.
`python -m server.metrics > docs/metrics.md` writes what there is.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from buffer.client import Buffer
from buffer.memory import MemoryLog
from buffer.view import View
from server.log_metrics import FAMILIES, Family, LogCollector

_DURATIONS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_HIDDEN = "vllm:lora_requests_info"


class Metrics:
    """All metrics of one gateway. `state` is its state directory."""

    def __init__(self, buffer: Buffer, *, alias: str = "apprentice", state: Path | None = None) -> None:
        self.registry = CollectorRegistry()
        self.own: list[Family] = []
        """What this process counts itself; the others come from the log."""
        counter, gauge, histogram = self._counter, self._gauge, self._histogram
        self.requests = counter("requests", "Completions asked for, by how they ended.", "route", "outcome")
        self.latency = histogram("request_seconds", "From request to the reply's last byte.", "route")
        self.first_token = histogram("first_token_seconds", "From request to a stream's first text.")
        self.in_flight = gauge("requests_in_flight", "Completions being answered.")
        self.captures = counter("captures", "Exchanges recorded, by how they ended.", "status")
        self.capture_failures = counter("capture_failures", "Exchanges whose end could not be recorded.")
        self.uncaptured = counter("uncaptured", "Exchanges answered although nothing was recorded.", "reason")
        self.log_writable = gauge("log_writable", "1 while the log takes records, 0 after it refused some.")
        self.log_writable.set(1)
        self.refusals = counter("refusals", "Requests to any route refused, by the error's code.", "reason")
        self.feedback = counter("feedback", "Feedback received.", "kind")
        self.follow_up_failures = counter("follow_up_failures", "Follow-ups that could not be recorded.")
        self.append_seconds = histogram("log_append_seconds", "Until appended records were on disk.")
        self.live_policy = gauge("live_policy_version", "The policy that the alias stands for here.")
        self.swap_seconds = histogram("swap_seconds", "To verify, load and probe a release.")
        self.releases = counter("releases", "Releases tried here, `promoted` or `refused`.", "outcome")
        self.store_failures = counter("store_failures", "Fetches or reads of releases that failed.", "reason")
        self.ready = gauge("ready", "1 while this server should get requests, as GET /readyz says.")
        self.webhook_failures = counter("webhook_failures", "Webhook attempts that failed.", "reason")
        self.webhook_pending = gauge("webhook_pending", "Events that the webhook's receiver has not taken.")
        self.engine_ready = gauge("engine_ready", "1 while vLLM answers.")
        self.engine_starts = gauge("engine_starts", "How often vLLM became ready: above 1 it was restarted.")
        # so that the first one is an increase: a series that begins at 1 has none
        self.refusals.labels("internal_error")
        self.releases.labels("refused")
        for reason in ("log_full", "log_unavailable"):
            self.uncaptured.labels(reason)
        self.registry.register(LogCollector(buffer, alias, state))

    def render(self, engine_text: str = "") -> bytes:
        """The text format: ours, then vLLM's."""
        return generate_latest(self.registry) + without_hidden(engine_text).encode()

    @contextmanager
    def timed(self, histogram: Histogram) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            histogram.observe(time.perf_counter() - began)

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        self.own.append(Family(name, "counter", about, labels))
        return Counter(f"apprentice_{name}", about, labels, registry=self.registry)

    def _gauge(self, name: str, about: str) -> Gauge:
        self.own.append(Family(name, "gauge", about))
        return Gauge(f"apprentice_{name}", about, registry=self.registry)

    def _histogram(self, name: str, about: str, *labels: str) -> Histogram:
        self.own.append(Family(name, "histogram", about, labels))
        return Histogram(f"apprentice_{name}", about, labels, registry=self.registry, buckets=_DURATIONS)


def without_hidden(text: str) -> str:
    """vLLM's metrics without the one that grows with every adapter."""
    return "".join(
        line
        for line in text.splitlines(keepends=True)
        if not line.removeprefix("# HELP ").removeprefix("# TYPE ").startswith(_HIDDEN)
    )


# --- their documentation ---------------------------------------------------------------------------------

_PAGE = """\
# Metrics

`GET /metrics` of every server, in Prometheus' text format; with keys configured it takes a bearer key. The
relay and the learner have no endpoint of their own: what can be known of them is in the log, and each server
tells it. What vLLM exports follows under its own names (`vllm:*`), but for `{hidden}`, which
keeps a series for every adapter it ever saw.

This page is written by `python -m server.metrics > docs/metrics.md`. Alerts on these metrics are in
`deploy/prometheus/rules.yml`; what to do about each is in [runbook.md](runbook.md).

## Of this server

Counted since the process started.

{own}

## Of the log, the learner and the disk

Worked out from the log at every scrape: the same on every server, and kept over restarts. `measured_*` speak
of the last round that got as far as the gate, released or not. The backlog (`log_*`), the lag, the journal
and the disk are those of the server's own machine.

{log}
"""


def documentation() -> str:
    """`docs/metrics.md`."""
    buffer = Buffer(MemoryLog(), View(":memory:"))
    own = Metrics(buffer).own
    buffer.close()
    return _PAGE.format(hidden=_HIDDEN, own=_table(own), log=_table(FAMILIES))


def _table(families: Sequence[Family]) -> str:
    rows = ["| name | type | labels | meaning |", "|---|---|---|---|"]
    for one in families:
        name = f"apprentice_{one.name}" + ("_total" if one.type == "counter" else "")
        labels = ", ".join(f"`{label}`" for label in one.labels)
        rows.append(f"| `{name}` | {one.type} | {labels} | {one.about.replace('|', chr(92) + '|')} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(documentation(), end="")
