"""The relay beside a plain producer: the same messages to the same broker, into topics made alike.

The plain one is kafka-python's own, idempotent with `acks=all`: once with its defaults, once with batches as
large as the relay's. It is handed finished messages; the relay reads records from the journal, makes them
messages, keeps its order guarantee, and notes in the journal how far it has come.
"""

import contextlib
import threading
import time
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from kafka import KafkaAdminClient, KafkaProducer
from kafka.errors import KafkaError

from buffer.bench import make_records
from buffer.binding import partition_of, to_message
from buffer.config import BufferConfig, KafkaConfig
from buffer.journal import Journal
from buffer.log import LogUnavailable
from buffer.outbox import Outbox
from buffer.records import STREAMS, Record
from buffer.relay import Relay
from buffer.topics import FLIGHT_BYTES, connect, ensure_topics, partitions_of, topic_of

PATIENCE_S = 120.0


def compare(
    directory: Path, config: BufferConfig, *, records: int, size: int, rounds: int = 3
) -> dict[str, float]:
    """Records per second of `plain`, `plain, large batches` and `relay`: each the best of `rounds` in turn.

    The topics are made for it and deleted. Raises `BufferError` where the broker is away or too slow.
    """
    made = make_records(records, size)
    ways = {
        "plain": partial(_plain, made=made),
        "plain, large batches": partial(_plain, made=made, batch_size=FLIGHT_BYTES, linger_ms=50),
        "relay": partial(_relay, directory, config, made=made),
    }
    best = dict.fromkeys(ways, 0.0)
    try:
        for _ in range(rounds):
            for name, way in ways.items():
                with _topics(config.kafka) as kafka:
                    best[name] = max(best[name], records / way(kafka))
    except (KafkaError, OSError) as error:
        servers = ", ".join(config.kafka.bootstrap_servers)
        raise LogUnavailable(f"{servers}: {error!r}", "check that the broker runs") from error
    return best


def _plain(kafka: KafkaConfig, *, made: list[Record], **settings: Any) -> float:
    """Seconds until the broker has acknowledged everything."""
    partitions = partitions_of(kafka, "exchanges")
    messages = [(to_message(one), partition_of(one.partition_key, partitions)) for one in made]
    topic = topic_of(kafka, "exchanges")
    producer = connect(KafkaProducer, kafka, "bench", acks="all", enable_idempotence=True, **settings)
    try:
        producer.partitions_for(topic)
        began = time.perf_counter()
        for message, partition in messages:
            producer.send(
                topic, key=message.key, value=message.value, headers=message.headers, partition=partition
            )
        producer.flush(timeout=PATIENCE_S)
        return time.perf_counter() - began
    finally:
        producer.close(timeout=5.0)


def _relay(directory: Path, config: BufferConfig, kafka: KafkaConfig, *, made: list[Record]) -> float:
    """Seconds from reaching the broker until the journal knows that it has everything."""
    journal = Journal(directory / f"{uuid.uuid4().hex}.db")
    for start in range(0, len(made), 500):
        journal.append(made[start : start + 500]).result()
    outbox = Outbox(journal, f"{ensure_topics(kafka, name='bench')}/{kafka.topic_prefix}")
    relay, ready = Relay(journal, config.model_copy(update={"kafka": kafka})), threading.Event()
    thread = threading.Thread(target=relay.run, args=(ready.set,), daemon=True)
    thread.start()
    try:
        reached = ready.wait(PATIENCE_S)
        began = time.perf_counter()
        while reached and outbox.relayed() < len(made):
            if time.perf_counter() - began > PATIENCE_S:
                raise LogUnavailable(
                    f"the relay did not finish in {PATIENCE_S:.0f} s", "give fewer --records"
                )
            time.sleep(0.01)
        return time.perf_counter() - began
    finally:
        relay.stop(0.0)
        thread.join()
        journal.close()


@contextlib.contextmanager
def _topics(config: KafkaConfig) -> Iterator[KafkaConfig]:
    """The configured topics under a prefix of their own."""
    own = config.model_copy(update={"topic_prefix": f"{config.topic_prefix}bench-{uuid.uuid4().hex[:8]}."})
    ensure_topics(own, name="bench")
    try:
        yield own
    finally:
        admin = connect(KafkaAdminClient, config, "bench")
        admin.delete_topics([topic_of(own, stream) for stream in STREAMS])
        admin.close()
