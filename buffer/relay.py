"""The relay: carries the journal to Kafka, in order, at least once.

A reader drops what it has seen by the highest sequence it saw from a source in a partition. So a record
may reach its partition twice, but never after a later one that got there first: it would be taken for a
repetition and be lost. An idempotent producer alone does not promise that, because it gives up on a batch
and goes on with the next. Hence a *flight*: records that make one batch per partition. A batch is written
whole or not at all, and the next flight starts after all of this one is known; what failed is sent again
from there on.

Partitions may be added meanwhile: `partition_of` moves a key to an added one only, where nothing of a later
flight can be. A tombstone goes to every partition there is, because its record was written when there may
have been fewer, perhaps by another relay; where it finds nothing it does nothing.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from buffer.config import BufferConfig
from buffer.journal import POLL_S, Journal
from buffer.log import LogFull, LogUnavailable
from buffer.outbox import Outbox
from buffer.records import KEYED, STREAMS, Record, Stream
from buffer.topics import FLIGHT_BYTES, METADATA_AGE_MS, connect, ensure_topics, topic_of

FLIGHT_RECORDS = 1_000
REFUSALS = (MessageSizeTooLargeError, RecordListTooLargeError, InvalidRecordError)
"""Errors that say something about the record, so that sending it again is no use."""
BACKOFF_S = (0.25, 10.0)
REFRESH_S = 10.0
PRUNE_EVERY_S = 60.0

logger = logging.getLogger(__name__)


Flight = list[tuple[Record, Message, Sequence[int]]]
"""Records with the partitions that each goes to."""


def plan_flight(records: Sequence[Record], partitions: Mapping[Stream, int]) -> Flight:
    """The longest prefix of `records` of which each partition's part fits one batch, with their partitions.

    `partitions` says how many each stream has. A tombstone goes to all of them. A record above
    `FLIGHT_BYTES` has its partition for itself.
    """
    flight: Flight = []
    filled: dict[tuple[Stream, int], int] = {}
    for record in records:
        message, count = to_message(record), partitions[record.stream]
        to = range(count) if record.data is None else (partition_of(record.partition_key, count),)
        before = max(filled.get((record.stream, partition), 0) for partition in to)
        if before and before + message.size() > FLIGHT_BYTES:
            break
        for partition in to:
            filled[record.stream, partition] = filled.get((record.stream, partition), 0) + message.size()
        flight.append((record, message, to))
    return flight


class Relay:
    """Owns one journal's way to the broker; the caller sees to it that there is only one (`files.lock`)."""

    def __init__(self, journal: Journal, config: BufferConfig) -> None:
        self._journal = journal
        self._config = config
        self._one_by_one = 0
        self._partitions: dict[Stream, int] = {}
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
                hint = getattr(error, "hint", "")
                logger.warning("cannot relay, next try in %.1f s: %r%s", pause, error, hint and f" ({hint})")
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
            metadata_max_age_ms=METADATA_AGE_MS,
        )
        try:
            self._count_partitions(producer)  # or the first `send` to each topic would block
            outbox = Outbox(self._journal, f"{cluster}/{kafka.topic_prefix}")
            outbox.use()
            yield outbox, producer
        finally:
            _abandon(producer)

    def _pump(self, outbox: Outbox, producer: Any) -> bool:
        """Relay until told to stop (True), or until a refusal, after which the producer is of no more use."""
        while time.monotonic() < self._give_up_at:
            self._prune(outbox)
            pending = outbox.pending(1 if self._one_by_one else FLIGHT_RECORDS)
            if pending:
                if any(record.data is None for _, record in pending):
                    _refresh(producer)  # its record may lie in a partition that is new
                self._count_partitions(producer)
                flight = plan_flight([record for _, record in pending], self._partitions)
                if not self._fly(outbox, producer, flight, [seq for seq, _ in pending]):
                    return False
            elif self._stop.is_set():
                break
            else:
                self._stop.wait(POLL_S)
        return True

    def _count_partitions(self, producer: Any) -> None:
        """Go by the broker's count. It never falls: what is in doubt would be sent behind later records."""
        for stream in STREAMS:
            topic = topic_of(self._config.kafka, stream)
            count = len(producer.partitions_for(topic)) if stream in KEYED else 1
            if count < self._partitions.get(stream, 1):
                raise LogUnavailable(
                    f"topic {topic} has {count} partitions and had {self._partitions[stream]}",
                    "if it was made anew, start the relay again",
                )
            self._partitions[stream] = count

    def _fly(self, outbox: Outbox, producer: Any, flight: Flight, seqs: list[int]) -> bool:
        """Send one flight and move the watermark over the part that arrived; False after a refusal.

        The flight's places in the journal are the first of `seqs`. Raises `KafkaError` when the rest is to
        be sent again. kafka-python's idempotent producer answers everything with its first refusal from then
        on, so only that of a record alone says who is at fault.
        """
        sent = [
            [
                producer.send(
                    topic_of(self._config.kafka, record.stream),
                    key=message.key,
                    value=message.value,
                    headers=message.headers,
                    partition=partition,
                )
                for partition in partitions
            ]
            for record, message, partitions in flight
        ]
        self._await(producer, [future for futures in sent for future in futures])
        failed = [[future.exception for future in futures if not future.succeeded()] for futures in sent]
        arrived = next((i for i, errors in enumerate(failed) if errors), len(flight))
        self._one_by_one = max(self._one_by_one - arrived, 0)
        if arrived:
            outbox.advance(seqs[arrived - 1])
        if arrived == len(flight):
            return True
        record = flight[arrived][0]
        for error in failed[arrived]:
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
            gone = outbox.prune(datetime.now(UTC) - timedelta(days=self._config.keep_relayed_days))
            if self._config.kafka.min_insync_replicas >= 2:
                gone += outbox.make_room()
            if gone:
                logger.info("forgot %d records that the broker has", gone)


def _refresh(producer: Any) -> None:
    """Ask the broker how many partitions there are now. Raises `KafkaError`."""
    asked, answered = producer._metadata.request_update(), threading.Event()
    asked.add_both(lambda _: answered.set())
    if not answered.wait(REFRESH_S):
        raise KafkaTimeoutError(f"no metadata within {REFRESH_S} s")
    if asked.failed():
        raise asked.exception


def _abandon(producer: Any) -> None:
    """Close at once. What was under way comes again in the same order, so it need not be waited for."""
    producer._sender.force_close()  # `close` first waits for what is under way, and fails where that hangs
    try:
        producer.close(timeout=2.0)
    except KafkaError as error:
        logger.debug("the producer would not close: %r", error)
