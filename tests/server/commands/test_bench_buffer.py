"""`apprentice bench buffer` with tiny numbers: every figure is there, and nothing is left behind."""

import json
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer

from server import cli
from server.commands.bench import BENCHES
from server.commands.bench_buffer import show
from tests.buffer.conftest import broker as broker
from tests.server.test_cli import run_without


def measured(state: Path, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    command = ["bench", "buffer", "--json", "--records", "20", "--size", "100", "--state", str(state), *more]
    assert cli.main(command) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert list(state.iterdir()) == []
    return found


def test_it_measures_disk_journal_and_feedback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = measured(tmp_path, capsys)
    shapes = {(one["batch"], one["appenders"], one["durability"]) for one in found["journal"]}
    assert {(1, 1, "FULL"), (1, 64, "FULL"), (100, 8, "NORMAL")} <= shapes
    assert [(one["callers"], one["array"]) for one in found["feedback"]] == [
        (1, 1),
        (16, 1),
        (64, 1),
        (16, 16),
    ]
    for one in (found["fsync"], *found["journal"], *found["feedback"]):
        assert one["count"] > 0 and one["per_second"] > 0
        assert 0 < one["p50_ms"] <= one["p99_ms"]
    assert "relay" not in found
    show(found)
    shown = capsys.readouterr().out
    assert "[buffer.kafka]" in shown and "accepted/s" in shown


@pytest.mark.kafka
def test_with_a_broker_the_relay_stands_beside_the_plain_client(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], broker: str
) -> None:
    config = tmp_path / "apprentice.toml"
    config.write_text(
        f'[buffer]\nbackend = "kafka"\n[buffer.kafka]\nbootstrap_servers = ["{broker}"]\n'
        'topic_prefix = "b."\n'
    )
    found = measured(tmp_path / "state", capsys, "--config", str(config))
    assert set(found["relay"]) == {"plain", "plain, large batches", "relay"}
    assert all(per_second > 0 for per_second in found["relay"].values())
    show(found)
    assert "of plain" in capsys.readouterr().out
    consumer = KafkaConsumer(bootstrap_servers=[broker])
    left = [topic for topic in consumer.topics() if topic.startswith("b.")]
    consumer.close()
    assert left == []


@pytest.mark.parametrize("wrong", [["--records", "0"], ["--size", "0"], ["--size", "2000000"]])
def test_numbers_that_cannot_be_measured_are_refused(wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", "buffer", *wrong])
    assert ended.value.code == 2


@pytest.mark.parametrize("name", BENCHES)
def test_each_benchmarks_help_is_its_own(name: str) -> None:
    code, loaded, text = run_without(["bench", name, "--help"])
    assert (code, loaded) == (0, [])
    assert f"apprentice bench {name}" in text and "--json" in text
