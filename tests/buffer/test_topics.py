"""Connecting to a broker that wants TLS and a password."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from buffer.config import BufferConfig, KafkaConfig
from buffer.journal import Journal
from buffer.kafka import KafkaLog
from buffer.log import BufferError, LogMisconfigured, LogUnavailable
from buffer.topics import ensure_topics
from tests.buffer.conftest import ids, make, read_until
from tests.kafka_broker import HOW_TO_GET_ONE, Broker, kafka_home

pytestmark = pytest.mark.kafka

PROPERTIES = """\
ssl.keystore.type=PEM
ssl.keystore.location={directory}/server.pem
ssl.truststore.type=PEM
ssl.truststore.location={directory}/ca.pem
sasl.enabled.mechanisms=PLAIN
sasl.mechanism.inter.broker.protocol=PLAIN
listener.name.sasl_ssl.plain.sasl.jaas.config=\
org.apache.kafka.common.security.plain.PlainLoginModule required \
username="broker" password="within" user_broker="within" user_apprentice="open-sesame";
"""


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaConfig]:
    """How to talk to a broker that has a listener with TLS and a login, and no other."""
    home = kafka_home()
    if home is None:
        pytest.skip(HOW_TO_GET_ONE)
    directory = tmp_path_factory.mktemp("guarded")
    key, certificate = directory / "key.pem", directory / "ca.pem"
    subprocess.run(
        f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1"
        f" -addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {certificate}".split(),
        check=True,
        capture_output=True,
    )
    (directory / "server.pem").write_text(key.read_text() + certificate.read_text())
    more = PROPERTIES.format(directory=directory)
    with Broker(home, directory, protocol="SASL_SSL", more=more) as broker:
        client = {
            "security_protocol": "SASL_SSL",
            "ssl_cafile": str(certificate),
            "sasl_mechanism": "PLAIN",
            "sasl_plain_username": "apprentice",
            "sasl_plain_password": "open-sesame",
            "bootstrap_timeout_ms": 3_000,
        }
        yield KafkaConfig(bootstrap_servers=[broker.bootstrap], partitions=2, client=client)


def with_client(config: KafkaConfig, **changes: Any) -> KafkaConfig:
    return config.model_copy(update={"client": config.client | changes})


def test_relay_and_reader_work_over_tls_with_a_login(
    tmp_path: Path, guarded: KafkaConfig, run_relay: Callable[[Path, BufferConfig], None]
) -> None:
    run_relay(tmp_path / "journal.db", BufferConfig(backend="kafka", kafka=guarded))
    log = KafkaLog(Journal(tmp_path / "journal.db"), guarded, name="test")
    log.append([make(number) for number in range(5)]).result()
    records, _ = read_until(log, 5)
    log.close()
    assert ids(records) == ids([make(number) for number in range(5)])


def refusals(tmp_path: Path, config: KafkaConfig) -> list[BufferError]:
    """What the relay says, and what a reader says."""
    caught = []
    with pytest.raises(BufferError) as relay:
        ensure_topics(config, name="test")
    caught.append(relay.value)
    log = KafkaLog(Journal(tmp_path / "journal.db"), config, name="test")
    with pytest.raises(BufferError) as reader:
        log.read({})
    log.close()
    return [*caught, reader.value]


def test_a_wrong_password_names_the_settings_and_is_not_repeated(
    tmp_path: Path, guarded: KafkaConfig, caplog: pytest.LogCaptureFixture
) -> None:
    """The broker hangs up on a refused login, at times before the client has read that it is one."""
    config = with_client(guarded, sasl_plain_password="close-sesame")
    for error in refusals(tmp_path, config):
        assert isinstance(error, LogMisconfigured | LogUnavailable)
        assert isinstance(error, LogUnavailable) or "refuses the login" in str(error)
        assert "sasl_" in error.hint
        assert "sesame" not in f"{error!r} {error.hint} {error.__cause__!r}"
    assert "sesame" not in caplog.text + repr(config)


@pytest.mark.parametrize(
    ("changes", "why"),
    [({"ssl_cafile": None}, "CERTIFICATE_VERIFY_FAILED"), ({"security_protocol": "SASL_PLAINTEXT"}, "")],
)
def test_a_broker_that_cannot_be_talked_to_this_way_names_the_settings(
    tmp_path: Path, guarded: KafkaConfig, changes: dict[str, Any], why: str
) -> None:
    for error in refusals(tmp_path, with_client(guarded, **changes)):
        assert isinstance(error, LogUnavailable)
        assert why in str(error)
        assert "security_protocol" in error.hint


def test_the_library_does_not_repeat_what_we_say(
    tmp_path: Path, guarded: KafkaConfig, caplog: pytest.LogCaptureFixture
) -> None:
    refusals(tmp_path, with_client(guarded, security_protocol="SASL_PLAINTEXT"))
    assert [record for record in caplog.records if record.name.startswith("kafka")] == []
