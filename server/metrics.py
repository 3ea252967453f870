"""What the gateway counts, in Prometheus' terms, in a registry of its own.

Nothing is labelled with a policy's version or a caller: such label values would only ever grow. vLLM's own
metrics are appended without `vllm:lora_requests_info`, which keeps a series for every adapter it ever saw.
"""

import time
from collections import Counter as Tally
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from buffer.client import Buffer
from buffer.log import BufferError
from buffer.records import Positions
from buffer.view import by_status

_DURATIONS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_HIDDEN = "vllm:lora_requests_info"


class Metrics:
    """All metrics of one gateway."""

    def __init__(self, buffer: Buffer) -> None:
        self.registry = CollectorRegistry()
        counter, gauge, histogram = self._counter, self._gauge, self._histogram
        self.requests = counter("requests", "Requests answered.", "route", "outcome")
        self.latency = histogram("request_seconds", "From request to the reply's last byte.", "route")
        self.first_token = histogram("first_token_seconds", "From request to a stream's first text.")
        self.in_flight = gauge("requests_in_flight", "Requests being answered.")
        self.captures = counter("captures", "Exchanges recorded.", "status")
        self.capture_failures = counter("capture_failures", "Exchanges whose record could not be written.")
        self.uncaptured = counter("uncaptured", "Exchanges answered although nothing was recorded.", "reason")
        self.log_writable = gauge("log_writable", "1 while the log takes records, 0 after it refused some.")
        self.log_writable.set(1)
        self.refusals = counter("refusals", "Requests refused.", "reason")
        self.feedback = counter("feedback", "Feedback received.", "kind")
        self.follow_up_failures = counter("follow_up_failures", "Follow-ups that could not be recorded.")
        self.append_seconds = histogram("log_append_seconds", "Until appended records were on disk.")
        self.live_policy = gauge("live_policy_version", "The policy that the alias stands for here.")
        self.swap_seconds = histogram("swap_seconds", "To verify, load and probe a release.")
        self.releases = counter("releases", "Releases tried.", "outcome")
        self.store_failures = counter("store_failures", "Fetches that the adapter store failed.", "reason")
        self.webhook_failures = counter("webhook_failures", "Webhook attempts that failed.", "reason")
        self.webhook_pending = gauge("webhook_pending", "Events that the webhook's receiver has not taken.")
        self.engine_ready = gauge("engine_ready", "1 while vLLM answers.")
        self.engine_starts = gauge("engine_starts", "How often vLLM became ready: above 1 it was restarted.")
        self.registry.register(_BufferCollector(buffer))

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
        return Counter(f"apprentice_{name}", about, labels, registry=self.registry)

    def _gauge(self, name: str, about: str) -> Gauge:
        return Gauge(f"apprentice_{name}", about, registry=self.registry)

    def _histogram(self, name: str, about: str, *labels: str) -> Histogram:
        return Histogram(f"apprentice_{name}", about, labels, registry=self.registry, buckets=_DURATIONS)


class _BufferCollector(Collector):
    """Counts that the view knows best: they survive a restart and are the same on every replica."""

    def __init__(self, buffer: Buffer) -> None:
        self._buffer = buffer
        self._view = buffer.view

    def collect(self) -> Iterable[Metric]:
        feedback = GaugeMetricFamily("apprentice_feedback_status", "Feedback by status.", labels=["status"])
        for status, count in by_status(self._view.count_feedback()).items():
            feedback.add_metric([status], count)
        yield feedback
        rounds = GaugeMetricFamily("apprentice_rounds", "Rounds by verdict.", labels=["verdict"])
        verdicts = Tally(r.ended.verdict if r.ended is not None else "running" for r in self._view.rounds())
        for verdict, count in verdicts.items():
            rounds.add_metric([verdict], count)
        yield rounds
        yield from self._of_log()
        about = "Records that the view could not read, by type: of a newer release, or damaged."
        passed_over = GaugeMetricFamily("apprentice_records_passed_over", about, labels=["type"])
        for type_, count in Tally(type_ for _, type_, _ in self._view.poison()).items():
            passed_over.add_metric([type_], count)
        yield passed_over
        try:
            ends = self._buffer.log.ends()
        except BufferError:
            return
        about = "Records of the log that the view has not read yet, of the partition that lags most."
        yield GaugeMetricFamily("apprentice_view_lag_records", about, value=lag(self._view.positions(), ends))

    def _of_log(self) -> Iterator[Metric]:
        """Where records go on to a broker: the gateway shares the relay's journal, not its process."""
        try:
            backlog = self._buffer.log.backlog()
        except BufferError:
            return
        age = time.time() - backlog.oldest.timestamp() if backlog.oldest is not None else 0.0
        gauges: list[tuple[str, str, float]] = [
            ("pending_records", "Records that wait for the broker.", backlog.pending),
            ("pending_seconds", "Age of the oldest record that waits for the broker.", max(age, 0.0)),
            ("set_aside_records", "Records that the broker refused for good.", backlog.set_aside),
        ]
        for name, about, value in gauges:
            yield GaugeMetricFamily(f"apprentice_log_{name}", about, value=value)
        about = "Messages on the log's topics that were passed over: they are no records."
        yield CounterMetricFamily("apprentice_log_unreadable_messages", about, value=backlog.unreadable)

    def describe(self) -> Iterable[Metric]:
        return []


def lag(positions: Positions, ends: Positions) -> int:
    """How far the partition that lags most is behind its end."""
    return max(
        (
            end - positions.get(stream, {}).get(partition, 0)
            for stream, partitions in ends.items()
            for partition, end in partitions.items()
        ),
        default=0,
    )


def without_hidden(text: str) -> str:
    """vLLM's metrics without the one that grows with every adapter."""
    return "".join(
        line
        for line in text.splitlines(keepends=True)
        if not line.removeprefix("# HELP ").removeprefix("# TYPE ").startswith(_HIDDEN)
    )
