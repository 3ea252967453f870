"""Reaching a broker: TLS, passwords, and what is said when it cannot be done."""

import logging
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from buffer.config import KafkaConfig
from buffer.journal import Journal
from buffer.kafka import KafkaLog
from buffer.log import BufferError, LogMisconfigured, LogUnavailable
from buffer.topics import ensure_topics
from tests.buffer.conftest import RunRelay, ids, kafka_settings, make, read_until
from tests.kafka_broker import Broker

PASSWORD = "open-sesame"
JAAS = (
    'org.apache.kafka.common.security.plain.PlainLoginModule required username="broker" password="inner"'
    f' user_broker="inner" user_ann="{PASSWORD}";'
)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate that is its own authority, with its key beside it."""
    at = tmp_path_factory.mktemp("certificate")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=broker",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "ca.pem"],
        cwd=at, check=True, capture_output=True,
    )  # fmt: skip
    (at / "server.pem").write_text((at / "key.pem").read_text() + (at / "ca.pem").read_text())
    return at / "ca.pem"


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory, certificate: Path, request: Any) -> Iterator[str]:
    """A broker that takes TLS and passwords only."""
    home = request.getfixturevalue("kafka_home_or_skip")
    settings = {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(certificate.with_name("server.pem")),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(certificate),
        "sasl.enabled.mechanisms": "PLAIN",
        "sasl.mechanism.inter.broker.protocol": "PLAIN",
        "listener.name.sasl_ssl.plain.sasl.jaas.config": JAAS,
    }
    directory = tmp_path_factory.mktemp("kafka")
    with Broker(home, directory, protocol="SASL_SSL", settings=settings) as broker:
        yield broker.bootstrap


def client(certificate: Path, **changes: Any) -> dict[str, Any]:
    """The settings of [buffer.kafka] client for that broker."""
    return {
        "security_protocol": "SASL_SSL",
        "ssl_cafile": str(certificate),
        "sasl_mechanism": "PLAIN",
        "sasl_plain_username": "ann",
        "sasl_plain_password": PASSWORD,
    } | changes


@pytest.mark.kafka
def test_relay_and_reader_pass_through_tls_with_a_password(
    tmp_path: Path, secure: str, certificate: Path, run_relay: RunRelay
) -> None:
    settings = kafka_settings(secure, client=client(certificate))
    run_relay(tmp_path / "journal.db", settings)
    log = KafkaLog(Journal(tmp_path / "journal.db"), settings.kafka, name="test")
    log.append([make(number) for number in range(20)]).result()
    records, _ = read_until(log, 20)
    log.close()
    assert ids(records) == ids([make(number) for number in range(20)])


@pytest.mark.kafka
@pytest.mark.parametrize(
    ("changes", "kinds", "hint"),
    [
        # a refusal and the end of the connection may arrive together, and then only the latter is seen
        ({"sasl_plain_password": "hunter2"}, (LogMisconfigured, LogUnavailable), "sasl_"),
        ({"sasl_mechanism": "SCRAM-SHA-256"}, (LogMisconfigured, LogUnavailable), "sasl_"),
        ({"ssl_cafile": None}, LogMisconfigured, "set ssl_cafile"),
        ({"ssl_cafile": "/nowhere/ca.pem"}, LogMisconfigured, "correct the ssl_* files"),
        (
            {"security_protocol": "PLAINTEXT", "bootstrap_timeout_ms": 500},
            LogUnavailable,
            "security_protocol",
        ),
    ],
)
def test_wrong_credentials_say_what_to_correct_and_never_the_password(
    tmp_path: Path,
    secure: str,
    certificate: Path,
    caplog: pytest.LogCaptureFixture,
    changes: dict[str, Any],
    kinds: type[BufferError] | tuple[type[BufferError], ...],
    hint: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    settings = kafka_settings(secure, client=client(certificate, **changes))
    log = KafkaLog(Journal(tmp_path / "journal.db"), settings.kafka, name="test")
    for attempt in (log.ends, lambda: ensure_topics(settings.kafka, name="test")):
        with pytest.raises(kinds) as caught:
            attempt()
        assert hint in caught.value.hint
        told = f"{caught.getrepr(style='long')}{settings!r}{settings.model_dump_json()}{caplog.text}"
        assert not [secret for secret in (PASSWORD, "hunter2") if secret in told.replace(f'"{PASSWORD}"', "")]
    log.close()


def test_reading_without_a_broker_is_unavailable_and_appending_works(tmp_path: Path) -> None:
    config = KafkaConfig(bootstrap_servers=["127.0.0.1:9"], client={"bootstrap_timeout_ms": 300})
    log = KafkaLog(Journal(tmp_path / "journal.db"), config, name="test")
    log.append([make(1)]).result()
    before = threading.active_count()
    for _ in range(2):
        with pytest.raises(LogUnavailable, match=re.escape("127.0.0.1:9")):
            log.read({})
    assert threading.active_count() == before, "failed attempts pile up"
    log.close()


def test_a_broker_that_is_away_is_said_once_with_its_reason_and_not_by_the_library(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    config = KafkaConfig(bootstrap_servers=["127.0.0.1:9"], client={"bootstrap_timeout_ms": 300})
    log = KafkaLog(Journal(tmp_path / "journal.db"), config, name="test")
    with pytest.raises(LogUnavailable, match="refused"):
        log.read({})
    log.close()
    assert [record.name for record in caplog.records if record.name.startswith("kafka")] == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"ssl_cafil": "x"}, "ssl_cafil"), ({"client_dns_lookup": "guess"}, "client_dns_lookup")],
)
def test_a_client_setting_that_cannot_be_is_a_misconfiguration(
    tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    log = KafkaLog(Journal(tmp_path / "journal.db"), KafkaConfig(client=settings), name="test")
    with pytest.raises(LogMisconfigured, match=said) as caught:
        log.read({})
    assert "client" in caught.value.hint
    log.close()
