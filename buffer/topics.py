"""The topics behind the streams: how many partitions, what is kept, and whether the broker's agree."""

import logging
import time
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.admin import ConfigResource, ConfigResourceType, NewTopic
from kafka.errors import (
    KafkaConfigurationError,
    KafkaError,
    NotControllerError,
    SaslAuthenticationFailedError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
    UnsupportedSaslMechanismError,
)
from kafka.net.compat import KafkaNetClient
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector

from buffer.config import KafkaConfig
from buffer.log import BufferError, LogMisconfigured, LogUnavailable
from buffer.records import KEYED, STREAMS, Stream

UNREACHABLE = (
    "check that the broker runs, and in [buffer.kafka] bootstrap_servers and what client says of"
    " security_protocol, sasl_mechanism and ssl_cafile"
)
REFUSED_LOGIN = (SaslAuthenticationFailedError, UnsupportedSaslMechanismError)
CLIENTS = (KafkaAdminClient, KafkaConsumer, KafkaProducer)
HOUR_MS = 3_600_000
METADATA_AGE_MS = 30_000
"""How soon relays and readers notice that partitions were added."""
FLIGHT_BYTES = 256 << 10
"""What the relay puts into one batch; every topic must take as much."""
WHY = {
    "cleanup.policy": "what is erased must leave the disk, and nothing else may",
    "retention.ms": "views are rebuilt from its start",
    "retention.bytes": "views are rebuilt from its start",
    "min.insync.replicas": "it says how many copies an acknowledgement stands for",
    "max.message.bytes": f"the relay sends up to {FLIGHT_BYTES} at once",
}
"""Settings that must be as wanted."""

logger = logging.getLogger(__name__)
if not logging.getLogger("kafka").level:  # unless somebody wants to see it
    logging.getLogger("kafka").setLevel(logging.CRITICAL)  # it repeats, at every retry, what we say once


def topic_of(config: KafkaConfig, stream: Stream) -> str:
    return f"{config.topic_prefix}{stream}"


def partitions_of(config: KafkaConfig, stream: Stream) -> int:
    """How many it is made with."""
    return config.partitions if stream in KEYED else 1


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
    if stream in KEYED:
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

    Raises `LogMisconfigured` for settings that no client knows or that contradict each other, and where the
    broker refuses the login; `LogUnavailable` when it is away or cannot be talked to this way.
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
    network: Any = None
    failures: list[Exception] = []

    def make_network(**its: Any) -> Any:
        nonlocal network
        selector = NetworkSelector(**its)
        network = KafkaNetClient(selector, _Connections(failures, selector, **its))
        return network

    try:
        return client(**settings, kafka_client=make_network)
    except Exception as error:
        if network is not None:
            network.close()  # a client that cannot be built leaves its thread behind, trying for ever
        if (explained := _explain(error, failures, config)) is None:
            raise
        raise explained from error


class _Connections(KafkaConnectionManager):  # type: ignore[misc]
    """Keeps why connections could not be made. kafka-python logs it and goes on trying until time is up."""

    def __init__(self, failures: list[Exception], *arguments: Any, **settings: Any) -> None:
        self._failures = failures
        super().__init__(*arguments, **settings)

    def get_connection(self, *arguments: Any, **settings: Any) -> Any:
        connection = super().get_connection(*arguments, **settings)
        connection.init_future.add_errback(self._failures.append)
        return connection


def _explain(error: Exception, failures: list[Exception], config: KafkaConfig) -> BufferError | None:
    """What a person can act on, of a client that could not be built."""
    servers = ", ".join(config.bootstrap_servers)
    if isinstance(error, KafkaConfigurationError):
        return LogMisconfigured(f"Kafka client: {error}", "correct client in [buffer.kafka]")
    if refused := [one for one in failures if isinstance(one, REFUSED_LOGIN)]:
        return LogMisconfigured(
            f"{servers} refuses the login: {refused[0]}",
            "correct sasl_mechanism, and the user and password of it, of client in [buffer.kafka]",
        )
    if isinstance(error, KafkaError | OSError):
        return LogUnavailable(f"{servers}: {failures[0] if failures else error!r}", UNREACHABLE)
    return None


def ensure_topics(config: KafkaConfig, *, name: str) -> str:
    """Make the topics that are missing, check those that are there, and return the cluster's id.

    Raises `LogMisconfigured` where a topic contradicts the settings, else as `connect`, or `KafkaError`.
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
    except RuntimeError as error:  # kafka-python's word for a cluster that elects its controller just now
        raise NotControllerError(str(error)) from error
    admin.wait_for_topics([topic.name])
    logger.info("created topic %s with %d partitions", topic.name, topic.num_partitions)


def _check(admin: Any, config: KafkaConfig, stream: Stream) -> None:
    partitions, settings = _describe(admin, topic_of(config, stream))
    _check_layout(config, stream, len(partitions), min(len(each["replica_nodes"]) for each in partitions))
    _check_settings(config, stream, {name: entry["value"] for name, entry in settings.items()})


def _describe(admin: Any, topic: str, timeout_s: float = 10.0) -> tuple[list[Any], dict[str, Any]]:
    """Its partitions and its settings, each from whichever broker answers.

    A broker that does not know a new topic yet answers with neither, and kafka-python tells no error; it is
    waited for. Raises `UnknownTopicOrPartitionError`.
    """
    resource, until = ConfigResource(ConfigResourceType.TOPIC, topic), time.monotonic() + timeout_s
    while True:
        (description,) = admin.describe_topics([topic])
        settings = admin.describe_configs([resource], config_filter="all")["topic"][topic]
        if description["partitions"] and settings:
            return description["partitions"], settings
        if time.monotonic() > until:
            raise UnknownTopicOrPartitionError(f"{topic}, or this user may not describe its settings")
        time.sleep(0.1)


def _check_layout(config: KafkaConfig, stream: Stream, partitions: int, replicas: int) -> None:
    topic = topic_of(config, stream)
    tool = f"kafka-topics.sh --bootstrap-server {config.bootstrap_servers[0]} --alter --topic {topic}"
    if stream in KEYED and partitions < config.partitions:
        raise LogMisconfigured(
            f"topic {topic} has {partitions} partitions, fewer than {config.partitions}",
            f"{tool} --partitions {config.partitions}, or set partitions = {partitions} in [buffer.kafka]",
        )
    if stream not in KEYED and partitions != 1:
        raise LogMisconfigured(
            f"topic {topic} has {partitions} partitions, and the order of its records decides",
            "use another topic_prefix in [buffer.kafka]: partitions cannot be taken away",
        )
    if replicas < config.replication_factor:
        raise LogMisconfigured(
            f"topic {topic} has {replicas} replicas, fewer than {config.replication_factor}",
            f"add some with kafka-reassign-partitions.sh, or set replication_factor = {replicas}"
            " in [buffer.kafka]",
        )


def _check_settings(config: KafkaConfig, stream: Stream, found: dict[str, str]) -> None:
    """What matters must be as wanted; of the rest an operator may think otherwise."""
    topic, wanted = topic_of(config, stream), settings_of(config, stream)
    kept = "" if stream in KEYED else "retention.ms retention.bytes"
    tool = f"kafka-configs.sh --bootstrap-server {config.bootstrap_servers[0]} --alter --topic {topic}"
    for name in f"cleanup.policy {kept} min.insync.replicas max.message.bytes".split():
        value, wants = found[name], wanted[name]
        if value == wants or (name == "max.message.bytes" and int(value) >= FLIGHT_BYTES):
            continue
        hint = f"{tool} --add-config {name}={wants}"
        if name == "min.insync.replicas":
            hint += f", or set min_insync_replicas = {value} in [buffer.kafka]"
        raise LogMisconfigured(f"topic {topic} has {name}={value}, not {wants}: {WHY[name]}", hint)


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
