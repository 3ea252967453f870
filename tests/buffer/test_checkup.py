"""What the doctor finds in the buffer, each condition made real."""

import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from buffer import checkup, files
from buffer.checkup import Finding
from buffer.config import BufferConfig, KafkaConfig
from buffer.journal import Journal
from buffer.journal_file import VERSION
from buffer.outbox import Outbox
from buffer.topics import ensure_topics
from tests.buffer.conftest import START, make
from tests.buffer.test_relay import create_topic

NOBODY = 65534


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """A journal with 300 records, closed."""
    journal = Journal(tmp_path / "journal.db")
    journal.append([make(number, data=b"x" * 2000) for number in range(300)]).result()
    journal.close()
    yield tmp_path / "journal.db"


def as_nobody(check: Callable[[], Finding]) -> str:
    """The verdict that a user gets who is not root, whom no permission stops."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        if os.geteuid() == 0:
            os.setuid(NOBODY)
        os.write(writer, check().verdict.encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with open(reader) as answer:
        return answer.read()


def test_a_state_directory_that_cannot_be_written_is_wrong() -> None:
    with tempfile.TemporaryDirectory() as directory:
        state = Path(directory)
        state.chmod(0o555)
        assert as_nobody(lambda: checkup.check_state(state)) == "wrong"
        assert as_nobody(lambda: checkup.check_fsync(state)) == "wrong"
        state.chmod(0o700)
        assert checkup.check_state(state).verdict == "ok"
        assert checkup.check_fsync(state).verdict in ("ok", "warning")
        assert list(state.iterdir()) == []


def test_a_state_directory_that_others_may_enter_is_a_warning(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    found = checkup.check_state(tmp_path)
    assert (found.verdict, found.todo) == ("warning", f"chmod 700 {tmp_path}")


def test_a_state_that_is_no_directory_is_wrong_and_a_missing_one_is_not(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert checkup.check_state(tmp_path / "file").verdict == "wrong"
    assert checkup.check_state(tmp_path / "missing").verdict == "warning"


def test_a_full_disk_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup, "TOO_LOW_BYTES", 1 << 60)
    found = checkup.check_state(tmp_path)
    assert (found.verdict, found.todo) == ("wrong", "free disk space")


def test_a_sound_journal_is_ok(path: Path) -> None:
    assert checkup.check_journal(path, 0).verdict == "ok"
    assert checkup.check_journal(path.with_name("none.db"), 0).verdict == "ok"
    assert not path.with_name("none.db").exists()


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def overwritten(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(os.urandom(20_000))


def newer(path: Path) -> None:
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version = {VERSION + 1}")
    db.close()


def no_database(path: Path) -> None:
    path.write_bytes(b"not a database" * 1000)


@pytest.mark.parametrize("damage", [truncated, overwritten, newer, no_database])
def test_a_damaged_journal_is_wrong_and_left_alone(path: Path, damage: Callable[[Path], None]) -> None:
    damage(path)
    before = path.read_bytes()
    found = checkup.check_journal(path, 0)
    assert found.verdict == "wrong" and found.todo
    assert path.read_bytes() == before


def test_a_journal_near_its_quota_is_a_warning(path: Path) -> None:
    size = path.stat().st_size
    assert checkup.check_journal(path, 2 * size).verdict == "ok"
    found = checkup.check_journal(path, size + 1)
    assert found.verdict == "warning" and "max_bytes" in found.todo


def test_a_journal_that_is_being_written_can_be_checked(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    journal.append([make(1)]).result()
    assert checkup.check_journal(journal.path, 0).verdict == "ok"
    journal.append([make(2)]).result()
    journal.close()


def test_a_record_that_was_set_aside_is_a_warning(path: Path) -> None:
    assert checkup.check_set_aside(path).verdict == "ok"
    journal = Journal(path)
    Outbox(journal, "there").set_aside(7, "MessageSizeTooLarge")
    journal.close()
    found = checkup.check_set_aside(path)
    assert found.verdict == "warning" and "MessageSizeTooLarge" in found.says


def test_records_ahead_of_the_clock_are_a_warning(path: Path) -> None:
    last = START + timedelta(milliseconds=299)
    assert checkup.check_clock(path, last).verdict == "ok"
    found = checkup.check_clock(path, last - timedelta(hours=1))
    assert found.verdict == "warning" and "3600 s ahead" in found.says


def test_what_waits_without_a_relay_is_wrong(path: Path) -> None:
    assert checkup.check_relay(path, "there").verdict == "wrong"
    journal = Journal(path)
    Outbox(journal, "there").advance(300)
    journal.close()
    assert checkup.check_relay(path, "there") == Finding("relay", "ok", "0 records behind")
    assert checkup.check_relay(path, "elsewhere").says == "none runs, 300 records behind"


def test_what_waits_for_a_relay_that_runs_is_a_warning_once_it_is_much(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owned = files.lock(path.with_name("relay.lock"))
    assert owned is not None
    assert checkup.check_relay(path, "there").verdict == "ok"
    monkeypatch.setattr(checkup, "LAG_RECORDS", 100)
    assert checkup.check_relay(path, "there").verdict == "warning"
    os.close(owned)
    assert checkup.check_relay(path, "there").verdict == "wrong", "its lock file alone is no relay"


def test_a_broker_that_is_away_is_wrong() -> None:
    config = KafkaConfig(bootstrap_servers=["127.0.0.1:9"], client={"bootstrap_timeout_ms": 300})
    found, cluster = checkup.check_broker(config)
    assert (found.verdict, cluster) == ("wrong", None)
    assert "127.0.0.1:9" in found.says and "bootstrap_servers" in found.todo


@pytest.mark.kafka
def test_topics_are_looked_at_and_never_made(settings: BufferConfig) -> None:
    for _ in range(2):
        found, cluster = checkup.check_broker(settings.kafka)
        assert found.verdict == "warning" and "control" in found.says and "python -m buffer" in found.todo
        assert cluster
    ensure_topics(settings.kafka, name="test")
    assert checkup.check_broker(settings.kafka)[0].verdict == "ok"


@pytest.mark.kafka
def test_topics_that_contradict_the_settings_are_wrong(settings: BufferConfig) -> None:
    create_topic(settings.kafka, settings.kafka.partitions, {"cleanup.policy": "delete"})
    found, _ = checkup.check_broker(settings.kafka)
    assert found.verdict == "wrong" and "cleanup.policy=compact" in found.todo


def test_the_size_names_what_is_largest_and_what_bounds_it(tmp_path: Path) -> None:
    assert checkup.check_size(tmp_path).verdict == "ok"
    (tmp_path / "adapters" / "000001-x").mkdir(parents=True)
    (tmp_path / "journal.db").write_bytes(bytes(3_000_000))
    (tmp_path / "journal.db-wal").write_bytes(bytes(1_000_000))
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    assert checkup.check_size(tmp_path).says.startswith("4 MB: journal.db 4 MB")
    with (tmp_path / "adapters" / "000001-x" / "adapter_model.safetensors").open("wb") as file:
        file.truncate(11 << 30)  # sparse
    found = checkup.check_size(tmp_path)
    assert found.verdict == "warning" and "[buffer.adapters]" in found.todo
