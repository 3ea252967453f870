"""The topics behind the streams: how many partitions, what is kept, and whether the broker's agree."""

import logging
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.admin import ConfigResource, ConfigResourceType, NewTopic
from kafka.errors import KafkaConfigurationError, TopicAlreadyExistsError
from kafka.net.compat import KafkaNetClient

from buffer.config import KafkaConfig
from buffer.log import LogMisconfigured
from buffer.records import STREAMS, Stream

CLIENTS = (KafkaAdminClient, KafkaConsumer, KafkaProducer)
HOUR_MS = 3_600_000
FLIGHT_BYTES = 256 << 10
"""What the relay puts into one batch; every topic must take as much."""

logger = logging.getLogger(__name__)


def topic_of(config: KafkaConfig, stream: Stream) -> str:
    return f"{config.topic_prefix}{stream}"


def partitions_of(config: KafkaConfig, stream: Stream) -> int:
    """Control and rounds have one partition each, because their order decides."""
    return config.partitions if stream in ("exchanges", "feedback") else 1


def settings_of(config: KafkaConfig, stream: Stream) -> dict[str, str]:
    """How its topic is made: nothing expires, and what is erased leaves the disk within about a day.

    The active segment is never compacted, so `segment.ms` ends it; `delete.retention.ms` is how long a
    reader may be away and still see the tombstones.
    """
    settings = {
        "cleanup.policy": "delete",
        "retention.ms": "-1",
        "retention.bytes": "-1",
        "max.message.bytes": str((1 << 20) + 12),
        "min.insync.replicas": str(config.min_insync_replicas),
    }
    if stream in ("exchanges", "feedback"):
        settings |= {
            "cleanup.policy": "compact",
            "min.cleanable.dirty.ratio": "0.01",
            "segment.ms": str(6 * HOUR_MS),
            "max.compaction.lag.ms": str(12 * HOUR_MS),
            "delete.retention.ms": str(30 * 24 * HOUR_MS),
        }
    return settings


def connect(client: Any, config: KafkaConfig, name: str, **own: Any) -> Any:
    """A client of that class, with those of the user's settings that it knows. `own` are its defaults.

    Raises `LogMisconfigured` for settings that no client knows or that contradict each other, `KafkaError`
    when the broker is away.
    """
    known = {key for each in CLIENTS for key in each.DEFAULT_CONFIG}
    if unknown := sorted(config.client.keys() - known):
        raise LogMisconfigured(
            f"no client of kafka-python has a setting called {', '.join(unknown)}",
            "correct client in [buffer.kafka]",
        )
    settings = {
        "bootstrap_servers": config.bootstrap_servers,
        "client_id": f"apprentice-{name}",
        "bootstrap_timeout_ms": 5_000,
        "request_timeout_ms": 15_000,
        "reconnect_backoff_max_ms": 2_000,
        **own,
        **{key: value for key, value in config.client.items() if key in client.DEFAULT_CONFIG},
    }
    networks: list[Any] = []

    def network(**its: Any) -> Any:
        networks.append(KafkaNetClient(**its))
        return networks[-1]

    try:
        return client(**settings, kafka_client=network)
    except Exception as error:
        for each in networks:
            each.close()  # a client that cannot be built leaves its thread behind, trying for ever
        if isinstance(error, KafkaConfigurationError):
            raise LogMisconfigured(f"Kafka client: {error}", "correct client in [buffer.kafka]") from error
        raise


def ensure_topics(config: KafkaConfig, *, name: str) -> str:
    """Make the topics that are missing, check those that are there, and return the cluster's id.

    Raises `LogMisconfigured` where a topic contradicts the settings, `KafkaError` where the broker is away.
    """
    admin = connect(KafkaAdminClient, config, name)
    try:
        present = set(admin.list_topics())
        for stream in STREAMS:
            topic = topic_of(config, stream)
            if topic not in present:
                _create(admin, config, stream)
            _check(admin, config, stream)
        return str(admin.describe_cluster()["cluster_id"])
    finally:
        admin.close()


def _create(admin: Any, config: KafkaConfig, stream: Stream) -> None:
    topic = NewTopic(
        topic_of(config, stream),
        num_partitions=partitions_of(config, stream),
        replication_factor=config.replication_factor,
        topic_configs=settings_of(config, stream),
    )
    try:
        admin.create_topics([topic])
    except TopicAlreadyExistsError:
        return  # another relay was faster
    admin.wait_for_topics([topic.name])
    logger.info("created topic %s with %d partitions", topic.name, topic.num_partitions)


def _check(admin: Any, config: KafkaConfig, stream: Stream) -> None:
    topic, wanted = topic_of(config, stream), partitions_of(config, stream)
    (description,) = admin.describe_topics([topic])
    count = len(description["partitions"])
    if count != wanted:
        key = f"set partitions = {count} in [buffer.kafka]" if wanted > 1 else "use another topic_prefix"
        raise LogMisconfigured(
            f"topic {topic} has {count} partitions, not {wanted}",
            f"{key}: records of one conversation would be split over two partitions",
        )
    resource = ConfigResource(ConfigResourceType.TOPIC, topic)
    found = admin.describe_configs([resource], config_filter="all")["topic"][topic]
    policy, wants = found["cleanup.policy"]["value"], settings_of(config, stream)["cleanup.policy"]
    if policy != wants:
        raise LogMisconfigured(
            f"topic {topic} has cleanup.policy={policy}, not {wants}",
            f"kafka-configs --alter --topic {topic} --add-config cleanup.policy={wants}",
        )
    if wants == "delete" and found["retention.ms"]["value"] != "-1":
        raise LogMisconfigured(
            f"topic {topic} forgets after {found['retention.ms']['value']} ms, and views are rebuilt from it",
            f"kafka-configs --alter --topic {topic} --add-config retention.ms=-1",
        )
    if int(found["max.message.bytes"]["value"]) < FLIGHT_BYTES:
        raise LogMisconfigured(
            f"topic {topic} takes batches of {found['max.message.bytes']['value']} bytes only",
            f"kafka-configs --alter --topic {topic} --add-config max.message.bytes={(1 << 20) + 12}",
        )


def inspect_topics(config: KafkaConfig, *, name: str) -> tuple[str, list[str]]:
    """The cluster's id and the topics that are missing; makes nothing. Raises as `ensure_topics`."""
    admin = connect(KafkaAdminClient, config, name)
    try:
        present = set(admin.list_topics())
        for stream in STREAMS:
            if topic_of(config, stream) in present:
                _check(admin, config, stream)
        missing = [topic for stream in STREAMS if (topic := topic_of(config, stream)) not in present]
        return str(admin.describe_cluster()["cluster_id"]), missing
    finally:
        admin.close()
