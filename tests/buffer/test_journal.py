"""What the journal promises beyond the contract of every log: about disks, deaths and neighbours."""

import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from buffer.journal import Journal
from buffer.journal_file import FROM_1, VERSION
from buffer.log import LogFull, LogMisconfigured, LogUnavailable
from buffer.records import STREAMS
from tests.buffer.conftest import START, ids, make, read_until, wait_until

WRITER = """
import sys
from pathlib import Path
from buffer.journal import Journal
from tests.buffer.conftest import make

journal = Journal(Path(sys.argv[1]))
first, last = int(sys.argv[2]), int(sys.argv[3])
for number in range(first, last):
    journal.append([make(number), make(number, stream="feedback")]).result()
    print(number, flush=True)
journal.close()
"""


def spawn(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A Python process that can import the project and its tests."""
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "journal.db"


def test_only_its_owner_may_read_it(path: Path) -> None:
    journal = Journal(path)
    journal.append([make(1)]).result()
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    journal.close()
    assert set(modes.values()) == {0o600}
    assert "journal.db" in modes


def test_an_acknowledgement_waits_for_the_disk(path: Path) -> None:
    journal = Journal(path)
    pragmas = {
        name: journal.commit(lambda db, name=name: db.execute(f"PRAGMA {name}").fetchone()[0]).result()  # type: ignore[misc]
        for name in ("journal_mode", "synchronous", "secure_delete")
    }
    journal.close()
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "secure_delete": 1}


def test_a_killed_writer_loses_nothing_that_was_acknowledged(path: Path) -> None:
    acknowledged: list[int] = []
    for _ in range(3):
        first = acknowledged[-1] + 2 if acknowledged else 0  # the one under way may have been written
        writer = spawn(WRITER, path, first, first + 100_000)
        assert writer.stdout is not None
        for line in writer.stdout:
            acknowledged.append(int(line))
            if len(acknowledged) % 150 == 0:
                break
        writer.kill()
        acknowledged += [int(line) for line in writer.stdout.read().split("\n")[:-1]]
        writer.wait()
        writer.stdout.close()
    journal = Journal(path)
    records, _ = read_until(journal, 2 * len(acknowledged))
    journal.close()
    found = ids(records)
    for stream in ("exchanges", "feedback"):
        assert {f"{stream}-{number}" for number in acknowledged} <= set(found)
    halves = [{one.split("-")[1] for one in found if one.startswith(stream)} for stream in STREAMS[:2]]
    assert halves[0] == halves[1], "an append was torn"
    assert len(found) == len(set(found))


def test_two_processes_share_one_journal(path: Path) -> None:
    journal = Journal(path)
    writers = [spawn(WRITER, path, first, first + 100) for first in (0, 1000)]
    records, positions = read_until(journal, 400)
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    journal.append([make(5000)]).result()
    assert ids(journal.read(positions)[0]) == ["exchanges-5000"]
    journal.close()
    assert len(set(ids(records))) == 400
    for first in (0, 1000):
        mine = [one for one in ids(records) if first <= int(one.split("-")[1]) < first + 100]
        assert mine == [f"{s}-{n}" for n in range(first, first + 100) for s in ("exchanges", "feedback")]
    assert len({record.source for record in records}) == 1
    sequences = [record.sequence for record in records]
    assert sequences == sorted(set(sequences))


def test_processes_that_start_together_make_one_journal(path: Path) -> None:
    writers = [spawn(WRITER, path, first, first + 3) for first in range(0, 40, 10)]
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    journal = Journal(path)
    records, _ = read_until(journal, 24)
    journal.close()
    assert len(set(ids(records))) == 24


def test_a_quota_refuses_whole_appends_and_leaves_room_for_others(path: Path) -> None:
    journal = Journal(path, max_bytes=400_000)
    fitting = journal.append([make(1)])
    bursting = journal.append([make(2), make(3, data=b"x" * 900_000)])
    neighbour = journal.append([make(4)])
    wait([fitting, bursting, neighbour])
    error = bursting.exception()
    records, _ = journal.read({})
    journal.close()
    assert isinstance(error, LogFull)
    assert "max_bytes" in error.hint
    assert ids(records) == ["exchanges-1", "exchanges-4"]


def test_its_space_is_what_it_holds_beside_its_quota_and_the_disk(path: Path) -> None:
    journal = Journal(path, max_bytes=2_000_000)
    before = journal.space()
    journal.append([make(1, data=b"x" * 100_000)]).result()
    after = journal.space()
    journal.close()
    assert before.used < 100_000 <= after.used < 200_000
    assert after.limit == 2_000_000
    assert after.free is not None and after.free > 0


def test_erasing_makes_room_in_a_full_journal(path: Path) -> None:
    journal = Journal(path, max_bytes=400_000)
    large = make(1, data=b"x" * 300_000)
    journal.append([large]).result()
    with pytest.raises(LogFull):
        journal.append([make(2, data=b"x" * 200_000)]).result()
    journal.append([large.tombstone(START)]).result()
    journal.append([make(2, data=b"x" * 200_000)]).result()
    journal.close()


FULL_DISK = """
import resource, sys
from pathlib import Path
from buffer.journal import Journal
from buffer.log import LogFull
from tests.buffer.conftest import make

journal = Journal(Path(sys.argv[1]))
journal.append([make(1)]).result()
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
refused = 0
for number in range(2, 12):
    try:
        journal.append([make(number, data=b"x" * 100_000)]).result()
    except LogFull:
        refused += 1
assert refused > 5, refused
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
journal.append([make(99)]).result()
journal.close()
"""


def test_a_full_disk_is_reported_and_survived(path: Path) -> None:
    child = spawn(FULL_DISK, path)
    child.communicate()
    assert child.returncode == 0
    journal = Journal(path)
    found = ids(journal.read({})[0])
    journal.close()
    assert found[0] == "exchanges-1"
    assert found[-1] == "exchanges-99"


def test_a_job_that_fails_does_not_take_its_group_down(path: Path) -> None:
    def fail(db: sqlite3.Connection) -> None:
        db.execute("DELETE FROM records")
        raise ZeroDivisionError

    journal = Journal(path)
    before, failing, after = journal.append([make(1)]), journal.commit(fail), journal.append([make(2)])
    wait([before, failing, after])
    records, _ = journal.read({})
    journal.close()
    assert isinstance(failing.exception(), ZeroDivisionError)
    assert ids(records) == ["exchanges-1", "exchanges-2"]


def test_an_erased_record_is_read_without_its_data(path: Path) -> None:
    journal = Journal(path)
    record, other = make(1), make(1, stream="feedback")
    journal.append([record, other]).result()
    journal.append([record.tombstone(START)]).result()
    found = [(each.id, each.data is None) for each in journal.read({})[0]]
    journal.close()
    assert found == [(record.id, True), (other.id, False), (record.id, True)]


def in_files(path: Path, text: str) -> bool:
    """Read by a process of its own: closing the file here would drop SQLite's locks."""
    code = (
        "import sys, pathlib; files = pathlib.Path(sys.argv[1]).iterdir();"
        " print(any(sys.argv[2].encode() in f.read_bytes() for f in files))"
    )
    return spawn(code, path.parent, text).communicate()[0] == "True\n"


def test_erased_bytes_are_gone_from_the_disk(path: Path) -> None:
    secret = b"the secret of the lighthouse keeper " * 400
    journal = Journal(path)
    record = make(1, data=secret)
    journal.append([record]).result()
    journal.append([record.tombstone(START)]).result()
    journal.append([make(2)]).result()  # behind it, so the erasure's checkpoint has been made
    assert not in_files(path, "lighthouse")
    journal.close()


@contextmanager
def read_by_another(path: Path) -> Iterator[None]:
    """Somebody reads the journal as it is now, and goes on reading."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM records").fetchall()
        yield


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for another waits until the test has failed."""
    monkeypatch.setattr("buffer.journal_file.BUSY_S", 3600.0)


@pytest.mark.usefixtures("patient")
def test_who_reads_for_long_holds_up_nobody_who_appends(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("buffer.journal.WAL_BYTES", 0)
    with closing(Journal(path)) as journal, closing(Journal(path)) as neighbour:
        journal.append([make(1)]).result()
        with read_by_another(path):
            journal.append([make(1).tombstone(START)]).result(30)
            for number in range(2, 6):
                for one in (neighbour, journal):
                    one.append([make(number)]).result(30)
        assert len(journal.read({})[0]) == 10


@pytest.mark.usefixtures("patient")
def test_what_a_reader_kept_from_being_erased_is_erased_without_a_cause_after_it(path: Path) -> None:
    with closing(Journal(path)) as journal:
        record = make(1, data=b"the lighthouse keeper " * 400)
        journal.append([record]).result()
        with read_by_another(path):
            journal.append([record.tombstone(START)]).result(30)
            journal.append([make(2)]).result(30)
            assert in_files(path, "lighthouse")
        assert wait_until(lambda: not in_files(path, "lighthouse"))


def test_nothing_is_moved_out_of_the_wal_while_another_process_writes(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("buffer.journal_file.BUSY_S", 0.1)
    monkeypatch.setattr("buffer.journal.AGAIN_S", 0.1)
    with closing(Journal(path)) as journal:
        journal.append([make(1)]).result()
        journal.append([make(2)]).result()
        with closing(sqlite3.connect(path, isolation_level=None)) as writer:
            with read_by_another(path):
                journal.append([make(1).tombstone(START)]).result()
                writer.execute("BEGIN IMMEDIATE")
            before = path.stat().st_mtime_ns

            def moved() -> bool:
                return path.stat().st_mtime_ns != before

            assert wait_until(lambda: moved() or "put off: database is locked" in caplog.text)
            assert not moved()
        assert wait_until(moved)


def test_the_wal_is_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("buffer.journal.WAL_BYTES", 100_000)
    with closing(Journal(path)) as journal:
        for number in range(20):
            journal.append([make(number, data=b"x" * 50_000)]).result()
        assert Path(f"{path}-wal").stat().st_size < 300_000


def ruin(path: Path) -> None:
    path.write_bytes(b"not a database" * 1000)


def future(path: Path) -> None:
    Journal(path).close()
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version = {VERSION + 1}")
    db.close()


def foreign(path: Path) -> None:
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE something (else_ TEXT)")
    db.close()


@pytest.mark.parametrize("spoil", [ruin, future, foreign])
def test_a_file_that_is_not_a_journal_of_ours_is_left_alone(
    path: Path, spoil: Callable[[Path], None]
) -> None:
    path.parent.mkdir()
    spoil(path)
    before = path.read_bytes()
    with pytest.raises(LogMisconfigured) as caught:
        Journal(path)
    assert caught.value.hint
    assert path.read_bytes() == before


def test_a_migration_that_fails_leaves_the_file_as_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Journal(path).close()
    with closing(sqlite3.connect(path)) as db:
        for name in ("source", "sequence", "partition"):
            db.execute(f"ALTER TABLE records DROP COLUMN {name}")
        db.execute("PRAGMA user_version = 1")
    with monkeypatch.context() as broken:
        broken.setattr(
            "buffer.journal_file.FROM_1", (FROM_1[0], "ALTER TABLE nowhere ADD COLUMN source TEXT")
        )
        with pytest.raises(LogMisconfigured, match="nowhere"):
            Journal(path)
    journal = Journal(path)
    journal.append([make(1)]).result()
    assert ids(journal.read({})[0]) == ["exchanges-1"]
    journal.close()


def test_a_journal_that_others_keep_locked_is_unavailable(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("buffer.journal_file.BUSY_S", 0.1)
    journal = Journal(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LogUnavailable):
        journal.append([make(1)]).result()
    other.execute("ROLLBACK")
    other.close()
    journal.append([make(2)]).result()
    assert ids(journal.read({})[0]) == ["exchanges-2"]
    journal.close()
