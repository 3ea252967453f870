"""The log on Kafka: appended to the journal, carried over by the relay, read back from the broker.

    append ─► journal ─(relay, another process)─► topics ─► read

Appending never waits for the broker. Reading is `assign` and `seek`: the caller's positions are the only
state, so there is no consumer group. A position beyond what the broker has (it lost data, or its topic was
made anew) starts that partition over; readers know redelivered records by source and sequence.
"""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from buffer import outbox
from buffer.binding import from_message
from buffer.config import KafkaConfig
from buffer.journal import Journal
from buffer.log import Backlog, LogUnavailable, Space
from buffer.records import STREAMS, Positions, Record, Stream, UnreadableRecord
from buffer.topics import METADATA_AGE_MS, connect, topic_of

POLL_MS = 100
"""How long one reader keeps the consumer before another thread gets a turn."""

logger = logging.getLogger(__name__)


class KafkaLog:
    """A `Log` over `journal`, which it owns and closes. The relay makes the topics.

    The broker may be away: then reading raises `LogUnavailable`, or finds nothing new where it was
    reachable before. Partitions that were added are noticed within `METADATA_AGE_MS`.
    """

    def __init__(self, journal: Journal, config: KafkaConfig, *, name: str) -> None:
        self.journal = journal
        self._config = config
        self._name = name
        self._lock = threading.Lock()  # KafkaConsumer is not thread-safe
        self._consumer: Any = None
        self._at: dict[TopicPartition, int] = {}
        self._stream_of: dict[str, Stream] = {topic_of(config, stream): stream for stream in STREAMS}
        self._closed = False
        self._unreadable = 0

    def append(self, records: Sequence[Record]) -> "Future[None]":
        return self.journal.append(records)

    def read(
        self, positions: Positions, *, limit: int = 500, wait_s: float = 0.0
    ) -> tuple[list[Record], Positions]:
        deadline = time.monotonic() + wait_s
        while True:
            with self._reachable() as consumer:
                self._seek(consumer, positions)
                left = deadline - time.monotonic()
                # a first poll only sends its request, so even one that may not wait gets a moment
                batches = consumer.poll(timeout_ms=POLL_MS, max_records=limit)
                records = [record for tp, batch in batches.items() for record in self._records(tp, batch)]
                for tp in self._at:
                    position = consumer.position(tp, timeout_ms=POLL_MS)
                    self._at[tp] = self._at[tp] if position is None else position
                if records or batches or left <= 0:
                    return records, self._positions(self._at)

    def ends(self) -> Positions:
        with self._reachable() as consumer:
            return self._positions(consumer.end_offsets(list(self._at), timeout_ms=10_000))

    def last(self, stream: Stream) -> Record | None:
        return self.journal.last(stream)

    def appended(self, stream: Stream, after: int, limit: int = 500) -> list[Record]:
        return self.journal.appended(stream, after, limit)

    def backlog(self) -> Backlog:
        return replace(outbox.backlog(self.journal), unreadable=self._unreadable)

    def space(self) -> Space:
        return self.journal.space()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._disconnect()
        self.journal.close()

    @contextmanager
    def _reachable(self) -> Iterator[Any]:
        """The consumer, connected and one's own; what goes wrong with it means a new one next time."""
        with self._lock:
            if self._closed:
                raise LogUnavailable("the log is closed", "open it again")
            try:
                consumer = self._consumer or self._connect()
                self._assign(consumer)
                yield consumer
            except (KafkaError, OSError) as error:
                self._disconnect()
                servers = ", ".join(self._config.bootstrap_servers)
                raise LogUnavailable(
                    f"{servers}: {error!r}", "check that the broker runs; try again"
                ) from error

    def _connect(self) -> Any:
        consumer = connect(
            KafkaConsumer,
            self._config,
            self._name,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            allow_auto_create_topics=False,
            max_partition_fetch_bytes=4 << 20,
            metadata_max_age_ms=METADATA_AGE_MS,
        )
        self._consumer = consumer
        self._at = {}
        return consumer

    def _assign(self, consumer: Any) -> None:
        """Read every partition that the broker has by now."""
        there = {topic: consumer.partitions_for_topic(topic) for topic in self._stream_of}
        if missing := [topic for topic, partitions in there.items() if not partitions]:
            self._disconnect()
            raise LogUnavailable(f"topic {missing[0]} does not exist", "start the relay: python -m buffer")
        found = {TopicPartition(topic, number) for topic, numbers in there.items() for number in numbers}
        if added := found - self._at.keys():
            self._at |= dict.fromkeys(added, -1)
            consumer.assign(list(self._at))

    def _disconnect(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            consumer.close(autocommit=False, timeout_ms=1_000)

    def _seek(self, consumer: Any, positions: Positions) -> None:
        """Go where `positions` says, where that is not where reading ended anyway."""
        for tp, at in self._at.items():
            wanted = positions.get(self._stream_of[tp.topic], {}).get(tp.partition, 0)
            if wanted != at:
                consumer.seek(tp, wanted)
                self._at[tp] = wanted

    def _records(self, tp: TopicPartition, batch: list[Any]) -> Iterator[Record]:
        for message in batch:
            try:
                record = from_message(self._stream_of[tp.topic], message.value, message.headers)
                yield replace(record, partition=tp.partition)
            except UnreadableRecord as error:
                self._unreadable += 1
                logger.warning(
                    "%s/%d offset %d passed over: %s", tp.topic, tp.partition, message.offset, error
                )

    def _positions(self, offsets: dict[TopicPartition, int]) -> Positions:
        positions: Positions = {}
        for tp, offset in offsets.items():
            positions.setdefault(self._stream_of[tp.topic], {})[tp.partition] = offset
        return positions
