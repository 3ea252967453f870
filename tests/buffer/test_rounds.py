from collections.abc import Iterator
from typing import Any

import pytest

from buffer.records import LessonAnswered, RoundEnded
from tests.buffer.conftest import START
from tests.buffer.test_view import Written, correction, moved, opened, passed, planned, said


@pytest.fixture
def log() -> Iterator[Written]:
    written = Written()
    yield written
    written.view.close()


def measured(*feedback_ids: str) -> RoundEnded:
    lessons = [{"feedback_id": one, "asked": True} for one in feedback_ids]
    return RoundEnded(round=1, verdict="refused", evaluation={"lessons": lessons})


@pytest.mark.parametrize("erased", ["fb-1", "c-1"])
def test_a_round_quotes_its_lessons_until_they_are_erased(log: Written, erased: str) -> None:
    log.write(opened("c-1"), correction("fb-1", "c-1"), correction("fb-2", "c-2"))
    log.write(
        planned(1, 0, "fb-1", "fb-2"), said("fb-1", "This."), said("fb-2", "That."), measured("fb-1", "fb-2")
    )

    def quoted() -> list[Any]:
        (only,) = log.view.rounds()
        assert only.ended is not None
        return [(one.get("before"), one.get("answer")) for one in only.ended.evaluation["lessons"]]

    assert quoted() == [("No idea.", "This."), ("No idea.", "That.")]
    log.append(log.view.tombstones(erased, START))
    assert quoted() == [(None, None), ("No idea.", "That.")]
    assert LessonAnswered.type in [r.type for r in log.log.read({})[0] if r.data is None]
    log.write(said("fb-1", "This again."))
    assert quoted()[0] == (None, None)


def test_a_round_is_known_from_its_plan_to_its_end(log: Written) -> None:
    log.write(planned(1, 0, "fb-1"))
    (only,) = log.view.rounds()
    assert only.ended is None and only.release is None
    log.write(passed(1), RoundEnded(round=1, verdict="failed"))
    found = log.view.release(1)
    assert found is not None and found.planned.round == 1
    assert log.view.release(2) is None


def test_the_alias_follows_the_log_and_ignores_stale_moves(log: Written) -> None:
    assert log.view.alias("apprentice").version == 0
    log.write(moved(1, 0), moved(2, 0), moved(3, 1), moved(9, 7))
    alias = log.view.alias("apprentice")
    assert (alias.version, alias.epoch) == (3, 2)
    assert [m.version for m in alias.moves] == [1, 3]
    assert log.view.lineage().live == 3


def test_two_rollbacks_go_back_two_versions(log: Written) -> None:
    assert log.view.alias("apprentice").previous is None
    log.write(moved(1, 0), moved(2, 1), moved(3, 2))
    back = []
    for epoch in (3, 4, 5):
        previous = log.view.alias("apprentice").previous
        assert previous is not None
        back.append(previous)
        log.write(moved(previous, epoch, "rollback"))
    assert back == [2, 1, 0]
    assert log.view.alias("apprentice").previous is None


def test_a_promotion_after_a_rollback_can_be_rolled_back(log: Written) -> None:
    log.write(moved(1, 0), moved(2, 1), moved(1, 2, "rollback"), moved(2, 3, "promote"))
    assert log.view.alias("apprentice").previous == 1
