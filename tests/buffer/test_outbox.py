from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from buffer.journal import Journal
from buffer.log import Backlog, LogFull
from buffer.outbox import Outbox, backlog
from tests.buffer.conftest import START, ids, make

LATER = START + timedelta(days=1)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "journal.db")
    journal.append([make(number) for number in range(10)]).result()
    yield journal
    journal.close()


def test_what_is_relayed_is_pending_no_more(journal: Journal) -> None:
    outbox = Outbox(journal, "here")
    first = outbox.pending(4)
    assert ids([record for _, record in first]) == ids([make(number) for number in range(4)])
    outbox.advance(first[-1][0])
    assert ids([record for _, record in outbox.pending(100)]) == ids(
        [make(number) for number in range(4, 10)]
    )


def test_the_watermark_survives_and_never_goes_back(journal: Journal, tmp_path: Path) -> None:
    Outbox(journal, "here").advance(7)
    Outbox(journal, "here").advance(3)
    again = Journal(tmp_path / "journal.db")
    assert Outbox(again, "here").relayed() == 7
    again.close()


def test_another_target_starts_from_the_oldest_record(journal: Journal) -> None:
    Outbox(journal, "here").advance(7)
    assert len(Outbox(journal, "there").pending(100)) == 10


def test_only_what_was_relayed_and_is_old_is_forgotten(journal: Journal) -> None:
    outbox = Outbox(journal, "here")
    outbox.advance(6)
    assert outbox.prune(START) == 0
    assert outbox.prune(LATER) == 6
    assert ids(journal.read({})[0]) == ids([make(number) for number in range(6, 10)])


def test_a_journal_that_is_nearly_full_forgets_the_oldest_of_what_was_relayed(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "tight.db", max_bytes=1_000_000)
    outbox = Outbox(journal, "here")
    written = 0
    with pytest.raises(LogFull):
        while True:
            journal.append([make(written, data=bytes(10_000))]).result()
            written += 1
    assert outbox.make_room() == 0, "what the broker has not got is never forgotten"
    outbox.advance(written - 3)
    assert outbox.make_room() > 0
    kept = ids(journal.read({})[0])
    assert kept[-3:] == ids([make(number) for number in range(written - 3, written)])
    journal.append([make(written, data=bytes(10_000))]).result()
    assert outbox.make_room() == 0, "there is room again"
    journal.close()


def test_sequences_go_on_after_everything_was_forgotten(journal: Journal) -> None:
    outbox = Outbox(journal, "here")
    outbox.advance(10)
    assert outbox.prune(LATER) == 10
    ends = journal.ends()
    journal.append([make(10)]).result()
    records, _ = journal.read(ends)
    assert [(record.id, record.sequence) for record in records] == [("exchanges-10", 11)]


def test_what_was_set_aside_stays_with_its_reason_until_it_is_erased(journal: Journal) -> None:
    outbox = Outbox(journal, "here")
    outbox.set_aside(3, "too large")
    outbox.advance(10)
    outbox.prune(LATER)
    ((record, reason),) = outbox.poisoned()
    assert (record.id, reason) == ("exchanges-2", "too large")
    journal.append([record.tombstone(START)]).result()
    ((record, _),) = outbox.poisoned()
    assert record.data is None


def test_the_backlog_is_what_the_target_in_use_has_not_got(journal: Journal) -> None:
    assert (backlog(journal).pending, backlog(journal).oldest) == (10, make(0).time)
    here, there = Outbox(journal, "here"), Outbox(journal, "there")
    here.use()
    here.advance(7)
    assert (backlog(journal).pending, backlog(journal).oldest) == (3, make(7).time)
    there.use()
    assert backlog(journal).pending == 10
    here.use()
    assert backlog(journal).pending == 3
    here.set_aside(8, "too large")
    here.advance(10)
    here.prune(LATER)
    assert backlog(journal) == Backlog(pending=0, oldest=None, set_aside=1)
