"""What of a log teaches something, by itself."""

from contextlib import closing

import pytest

from buffer.log import Log
from buffer.memory import MemoryLog
from buffer.records import AliasMoved, Record
from buffer.taught import collect
from buffer.teacher import teacher_messages
from buffer.view import View
from tests import recorded
from tests.buffer.conftest import START, read_until


@pytest.fixture
def filled(log: Log) -> Log:
    log.append([record for record in recorded.records() if record.data is not None]).result()
    log.append([record for record in recorded.records() if record.data is None]).result()
    read_until(log, len(recorded.records()))
    return log


def test_only_what_teaches_is_taken_and_the_rest_is_counted_by_its_reason(filled: Log) -> None:
    with closing(View(":memory:")) as view:
        lessons, left_out = collect(filled, view)
    assert [lesson.given.feedback_id for lesson in lessons] == recorded.TAUGHT
    assert left_out == {
        "erased": 1, "withdrawn": 1, "superseded": 1, "quarantined": 1, "skipped": 1, "no_text": 1,
        "no_user_turn": 1,
    }  # fmt: skip


def test_a_lesson_by_itself_shows_the_teacher_the_same(filled: Log) -> None:
    with closing(View(":memory:")) as view:
        lessons, _ = collect(filled, view)
    assert [lesson.kind for lesson in lessons] == [
        "correction", "instruction", "correction", "follow_up", "correction",
    ]  # fmt: skip
    for lesson in lessons:
        alone = lesson.alone()
        assert alone.completion_id is None and alone.messages is not None
        asked = [message.model_dump(exclude_none=True) for message in alone.messages]
        assert asked == lesson.messages
        assert teacher_messages(asked, alone) == teacher_messages(lesson.messages, lesson.given)
    assert [lesson.without_tools for lesson in lessons] == [False, False, False, False, True]


def test_one_principal_can_be_asked_for() -> None:
    log = MemoryLog()
    log.append(recorded.records()).result()
    with closing(View(":memory:")) as view:
        lessons, _ = collect(log, view, "ben")
    assert [lesson.given.feedback_id for lesson in lessons] == ["fb-7", "fb-8"]


def test_a_correction_whose_exchange_is_not_there_is_counted() -> None:
    log = MemoryLog()
    log.append([record for record in recorded.records() if record.stream != "exchanges"]).result()
    with closing(View(":memory:")) as view:
        lessons, left_out = collect(log, view)
    assert lessons == []
    assert left_out["exchange_missing"] > 0


def test_what_a_rolled_back_policy_held_is_left_out() -> None:
    log = MemoryLog()
    log.append(recorded.records()).result()
    back = AliasMoved(alias="apprentice", version=0, epoch=1, why="rollback", by="root")
    log.append([Record.of(back, time=START, randomness=bytes(10))]).result()
    with closing(View(":memory:")) as view:
        lessons, left_out = collect(log, view)
    assert left_out["held"] == 1 and "fb-1" not in {lesson.given.feedback_id for lesson in lessons}
