"""A view from the log alone: the same as the one that is there, or what differs is said."""

import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buffer.journal import Journal
from buffer.log import Log
from buffer.memory import MemoryLog
from buffer.records import LearningSwitched, Record
from buffer.replay import From, follow, put_in_place, replay
from buffer.view import View
from tests import recorded
from tests.buffer.conftest import START, make, read_until

RECORDS = recorded.everything()


def kept(path: Path, log: Log) -> Path:
    """A view that a process keeps."""
    with closing(View(path)) as view:
        follow(log, view)
    return path


def build(folder: Path) -> Path:
    folder.mkdir()
    return folder / "view.db"


def spoil(path: Path, sql: str) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute(sql)
        db.commit()


@pytest.fixture
def filled(log: Log) -> Log:
    log.append([record for record in RECORDS if record.data is not None]).result()
    log.append([record for record in RECORDS if record.data is None]).result()
    read_until(log, lambda records: len({(r.source, r.sequence) for r in records}) == len(RECORDS))
    return log


@pytest.mark.parametrize("log", ["memory", "journal"], indirect=True)
@pytest.mark.parametrize(
    "begin",
    [
        None,
        From(),
        From({"rounds": {0: 30}, "control": {0: 25}}),
        *(From({"control": {0: first}}) for first in range(44, 52)),
        From(time=START + timedelta(seconds=20)),
        From({"exchanges": {0: 10**6}}),
    ],
    ids=["all", "again", "positions", *["keys"] * 8, "time", "beyond the end"],
)
def test_nothing_differs_wherever_it_begins(filled: Log, tmp_path: Path, begin: From | None) -> None:
    there = kept(tmp_path / "there.db", filled)
    assert replay(filled, there, build(tmp_path / "new"), begin).same


@pytest.mark.parametrize("log", ["memory", "journal"], indirect=True)
def test_what_a_view_saw_being_erased_is_no_difference(log: Log, tmp_path: Path) -> None:
    """The kept view read the records before they were erased, the new one reads what is left of them."""
    there = tmp_path / "there.db"
    log.append([record for record in RECORDS if record.data is not None]).result()
    kept(there, log)
    with closing(View(there)) as view:
        gone = view.tombstones("chatcmpl-1", START)
        assert len(gone) == 5, "the exchange's two records, its feedback's two, and what was said to one"
        log.append(gone).result()
        follow(log, view)
        assert view.exchange("chatcmpl-1") is None and view.tombstones("chatcmpl-1", START) == []
    assert replay(log, there, build(tmp_path / "new")).same


def test_what_differs_is_named_and_the_view_left_alone(filled: Log, tmp_path: Path) -> None:
    there = kept(tmp_path / "there.db", filled)
    spoil(there, "UPDATE decisions SET decision = 'accepted' WHERE feedback_id = 'fb-9'")
    spoil(there, "DELETE FROM rounds WHERE round = 2")
    before = there.read_bytes()
    result = replay(filled, there, build(tmp_path / "new"))
    assert {d.table: (d.only_there, d.only_from_log, d.examples) for d in result.differences} == {
        "decisions": (1, 1, ("fb-9",)), "rounds": (0, 1, ("2",)),
    }  # fmt: skip
    assert there.read_bytes() == before


def test_from_keeps_what_is_before_and_repairs_what_is_after(filled: Log, tmp_path: Path) -> None:
    there = kept(tmp_path / "there.db", filled)
    spoil(there, "DELETE FROM rejected")
    spoil(there, "DELETE FROM decisions WHERE feedback_id = 'fb-9'")
    after_triage = From(time=START + timedelta(seconds=34))
    result = replay(filled, there, build(tmp_path / "new"), after_triage)
    assert [d.table for d in result.differences] == ["rejected"]


def test_a_view_that_is_behind_is_brought_to_the_same_end_first(tmp_path: Path) -> None:
    log = MemoryLog()
    log.append(RECORDS[:20]).result()
    there = kept(tmp_path / "there.db", log)
    log.append(RECORDS[20:]).result()
    assert replay(log, there, build(tmp_path / "new")).same


def test_records_that_arrive_meanwhile_are_no_difference(tmp_path: Path) -> None:
    class Growing(MemoryLog):
        """Each time somebody asks for its end, there is one more record, for a while."""

        def ends(self):  # type: ignore[no-untyped-def]
            if len(self._records) < len(RECORDS) + 6:
                switched = LearningSwitched(paused=bool(len(self._records) % 2), by="root")
                self.append([Record.of(switched, time=START, randomness=bytes(10))]).result()
            return super().ends()

    log = Growing()
    log.append(RECORDS).result()
    there = kept(tmp_path / "there.db", log)
    assert replay(log, there, build(tmp_path / "new")).same


def test_a_view_in_use_can_be_compared(tmp_path: Path) -> None:
    with closing(Journal(tmp_path / "journal.db")) as log, closing(View(tmp_path / "there.db")) as view:
        log.append(RECORDS).result()
        follow(log, view)
        assert replay(log, tmp_path / "there.db", build(tmp_path / "new")).same
        assert follow(log, view) == 0


def test_a_built_view_can_be_relied_on_like_one_that_a_process_read(tmp_path: Path) -> None:
    log = MemoryLog()
    log.append(RECORDS).result()
    there = kept(tmp_path / "there.db", log)
    for name, begin in (("all", None), ("again", From())):
        built = build(tmp_path / name)
        replay(log, there, built, begin)
        with closing(View(built)) as view:
            assert view.keys().complete


@pytest.mark.parametrize("what", ["garbage", "another release", "another log"])
def test_a_view_that_cannot_be_compared_says_why(tmp_path: Path, what: str) -> None:
    log = MemoryLog()
    log.append(RECORDS[:-1]).result()
    there = kept(tmp_path / "there.db", log)
    if what == "garbage":
        there.write_bytes(b"no database" * 1000)
    elif what == "another release":
        spoil(there, "PRAGMA user_version = 1")
    else:
        log = MemoryLog()
        log.append([make(1)]).result()
    for number, begin in enumerate((None, From())):
        built = build(tmp_path / f"new-{number}")
        result = replay(log, there, built, begin)
        assert not result.same and result.unusable
        put_in_place(built, tmp_path / "placed.db")
        assert replay(log, tmp_path / "placed.db", build(tmp_path / f"again-{number}")).same


def test_a_built_view_takes_the_place_of_another_with_its_unwritten_rest(tmp_path: Path) -> None:
    log = MemoryLog()
    log.append(RECORDS).result()
    there = kept(tmp_path / "there.db", log)
    Path(f"{there}-wal").write_bytes(b"what a process that was killed left")
    built = build(tmp_path / "new")
    replay(log, kept(tmp_path / "other.db", log), built)
    put_in_place(built, there)
    assert not Path(f"{there}-wal").exists() and not built.exists()
    assert replay(log, there, build(tmp_path / "again")).same


@given(st.integers(0, len(RECORDS)))
def test_applying_the_log_again_from_anywhere_changes_nothing(start: int) -> None:
    with closing(View(":memory:")) as view:
        view.apply(RECORDS, {})
        before = list(view._db.iterdump())
        view.apply(RECORDS[start:], {}, again=True)
        assert list(view._db.iterdump()) == before
