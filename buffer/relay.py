"""The relay: carries the journal to Kafka, in order, at least once.

A reader drops what it has seen by the highest sequence it saw from a source in a partition. So a record
may reach its partition twice, but never after a later one that got there first: it would be taken for a
repetition and be lost. An idempotent producer alone does not promise that, because it gives up on a batch
and goes on with the next. Hence a *flight*: records that make one batch per partition. A batch is written
whole or not at all, and the next flight starts after all of this one is known; what failed is sent again
from there on.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from kafka import KafkaProducer
from kafka.errors import (
    InvalidRecordError,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
)

from buffer.binding import Message, partition_of, to_message
from buffer.config import BufferConfig, KafkaConfig
from buffer.journal import POLL_S, Journal
from buffer.log import LogFull, LogUnavailable
from buffer.outbox import Outbox
from buffer.records import STREAMS, Record
from buffer.topics import FLIGHT_BYTES, connect, ensure_topics, partitions_of, topic_of

FLIGHT_RECORDS = 1_000
REFUSALS = (MessageSizeTooLargeError, RecordListTooLargeError, InvalidRecordError)
"""Errors that say something about the record, so that sending it again is no use."""
BACKOFF_S = (0.25, 10.0)
PRUNE_EVERY_S = 60.0

logger = logging.getLogger(__name__)


def plan_flight(records: Sequence[Record], config: KafkaConfig) -> list[tuple[Record, Message, int]]:
    """The longest prefix of `records` of which each partition's part fits one batch, with their partitions.

    A record above `FLIGHT_BYTES` has its partition for itself.
    """
    flight: list[tuple[Record, Message, int]] = []
    filled: dict[tuple[str, int], int] = {}
    for record in records:
        message = to_message(record)
        partition = partition_of(record.partition_key, partitions_of(config, record.stream))
        before = filled.get((record.stream, partition), 0)
        if before and before + message.size() > FLIGHT_BYTES:
            break
        filled[record.stream, partition] = before + message.size()
        flight.append((record, message, partition))
    return flight


class Relay:
    """Owns one journal's way to the broker; the caller sees to it that there is only one (`files.lock`)."""

    def __init__(self, journal: Journal, config: BufferConfig) -> None:
        self._journal = journal
        self._config = config
        self._one_by_one = 0
        self._stop = threading.Event()
        self._give_up_at = float("inf")
        self._prune_at = 0.0
        self.refused = 0
        """How many records were set aside since the start."""

    def stop(self, drain_s: float = 10.0) -> None:
        """Let `run` return once the rest is relayed, or after `drain_s` seconds. Safe in a signal handler."""
        self._give_up_at = time.monotonic() + drain_s
        self._stop.set()

    def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Relay until `stop`; `ready` is called each time the broker was reached.

        A broker that is away is waited for, a full disk too. Raises `LogMisconfigured`.
        """
        pause, longest = BACKOFF_S
        while True:
            try:
                with self._connected() as (outbox, producer):
                    ready()
                    pause = BACKOFF_S[0]
                    if self._pump(outbox, producer):
                        return
                    continue
            except (KafkaError, OSError, LogFull, LogUnavailable) as error:
                if self._stop.is_set():
                    logger.warning("stopped early; the journal keeps the rest: %r", error)
                    return
                logger.warning("cannot relay, next try in %.1f s: %r", pause, error)
            self._stop.wait(pause * random.uniform(0.5, 1.0))  # noqa: S311
            pause = min(2 * pause, longest)

    @contextmanager
    def _connected(self) -> Iterator[tuple[Outbox, Any]]:
        kafka = self._config.kafka
        cluster = ensure_topics(kafka, name="relay")
        producer = connect(
            KafkaProducer,
            kafka,
            "relay",
            acks="all",
            enable_idempotence=True,
            max_in_flight_requests_per_connection=1,
            allow_auto_create_topics=False,
            # a batch closes at `flush` only: it is never full, and nobody lingers that long
            batch_size=4 << 20,
            max_request_size=16 << 20,
            linger_ms=30_000,
            delivery_timeout_ms=60_000,
            max_block_ms=10_000,
        )
        try:
            for stream in STREAMS:
                producer.partitions_for(topic_of(kafka, stream))  # or the first `send` of each would block
            yield Outbox(self._journal, f"{cluster}/{kafka.topic_prefix}"), producer
        finally:
            _abandon(producer)

    def _pump(self, outbox: Outbox, producer: Any) -> bool:
        """Relay until told to stop (True), or until a refusal, after which the producer is of no more use."""
        while time.monotonic() < self._give_up_at:
            self._prune(outbox)
            pending = outbox.pending(1 if self._one_by_one else FLIGHT_RECORDS)
            if pending:
                flight = plan_flight([record for _, record in pending], self._config.kafka)
                if not self._fly(outbox, producer, flight, [seq for seq, _ in pending]):
                    return False
            elif self._stop.is_set():
                break
            else:
                self._stop.wait(POLL_S)
        return True

    def _fly(
        self, outbox: Outbox, producer: Any, flight: list[tuple[Record, Message, int]], seqs: list[int]
    ) -> bool:
        """Send one flight and move the watermark over the part that arrived; False after a refusal.

        The flight's places in the journal are the first of `seqs`. Raises `KafkaError` when the rest is to
        be sent again. kafka-python's idempotent producer answers everything with its first refusal from then
        on, so only that of a record alone says who is at fault.
        """
        futures = [
            producer.send(
                topic_of(self._config.kafka, record.stream),
                key=message.key,
                value=message.value,
                headers=message.headers,
                partition=partition,
            )
            for record, message, partition in flight
        ]
        self._await(producer, futures)
        arrived = next((i for i, future in enumerate(futures) if not future.succeeded()), len(futures))
        self._one_by_one = max(self._one_by_one - arrived, 0)
        if arrived:
            outbox.advance(seqs[arrived - 1])
        if arrived == len(flight):
            return True
        error, record = futures[arrived].exception, flight[arrived][0]
        if not isinstance(error, REFUSALS):
            raise error
        if len(flight) > 1:
            self._one_by_one = len(flight) - arrived
            return False
        logger.error("the broker refuses %s %s, set aside: %r", record.type, record.id, error)
        outbox.set_aside(seqs[arrived], repr(error))
        self.refused += 1
        self._one_by_one = max(self._one_by_one - 1, 0)
        return False

    def _await(self, producer: Any, futures: list[Any]) -> None:
        """Until the fate of every record is known, or the time to drain is over."""
        while not all(future.is_done for future in futures):
            try:
                producer.flush(timeout=1.0)
            except KafkaTimeoutError:
                if time.monotonic() > self._give_up_at:
                    raise

    def _prune(self, outbox: Outbox) -> None:
        if time.monotonic() >= self._prune_at:
            self._prune_at = time.monotonic() + PRUNE_EVERY_S
            if gone := outbox.prune(datetime.now(UTC) - timedelta(days=self._config.keep_relayed_days)):
                logger.info("forgot %d records that the broker has", gone)


def _abandon(producer: Any) -> None:
    """Close at once. What was under way comes again in the same order, so it need not be waited for."""
    producer._sender.force_close()  # `close` first waits for what is under way, and fails where that hangs
    try:
        producer.close(timeout=2.0)
    except KafkaError as error:
        logger.debug("the producer would not close: %r", error)
