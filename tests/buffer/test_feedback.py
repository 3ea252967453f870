from collections import Counter
from collections.abc import Iterator

import pytest

from buffer.records import FeedbackWithdrawn, Message
from tests.buffer.conftest import START
from tests.buffer.test_view import Written, correction, envelope, moved, opened, passed, planned, triaged


@pytest.fixture
def log() -> Iterator[Written]:
    written = Written()
    yield written
    written.view.close()


def test_feedback_may_come_before_its_exchange(log: Written) -> None:
    log.write(correction("fb-1", "c-1"), correction("fb-2", "c-2"))
    assert [f.feedback_id for f in log.view.untriaged()] == ["fb-1", "fb-2"]
    log.write(opened("c-1"), opened("c-2"))
    assert log.status("fb-1") == "superseded"
    found = log.view.feedback("fb-1")
    assert found is not None and found.fate.by == "fb-2"


def test_only_the_same_question_of_the_same_principal_is_superseded(log: Written) -> None:
    log.write(opened("c-1"), opened("c-2", "Else?"), opened("c-3", principal="ben"), opened("c-4", n=2))
    log.write(correction("fb-1", "c-1"), correction("fb-2", "c-2"), correction("fb-3", "c-3", "ben"))
    assert [log.status(f"fb-{i}") for i in (1, 2, 3)] == ["received"] * 3
    log.write(correction("fb-4", "c-4"))
    assert log.status("fb-1") == "superseded"


def test_feedback_names_the_question_that_it_is_about(log: Written) -> None:
    log.write(*(correction(f"fb-{i}", f"c-{i}") for i in (1, 2, 3)), opened("c-1"), opened("c-2", n=2))
    named = [feedback.question for feedback in log.view.all_feedback()]
    assert named[0] == named[1] is not None
    assert named[2] is None
    log.write(opened("c-3", "Else?"))
    last = log.view.feedback("fb-3")
    assert last is not None and last.question not in (None, named[0])


@pytest.mark.parametrize(
    ("first", "second", "superseded", "by"),
    [
        ("follow_up", "follow_up", "fb-1", "fb-2"),
        ("follow_up", "correction", "fb-1", "fb-2"),
        ("correction", "follow_up", "fb-2", "fb-1"),
    ],
)
def test_a_follow_up_gives_way_to_what_was_said_on_purpose(
    log: Written, first: str, second: str, superseded: str, by: str
) -> None:
    log.write(opened("c-1"), correction("fb-1", "c-1", kind=first), correction("fb-2", "c-1", kind=second))
    assert (log.status(superseded), log.status(by)) == ("superseded", "received")
    log.write(triaged(by, "skipped"))
    assert log.status(superseded) == "received"


def test_a_rating_supersedes_nothing_and_is_not_superseded(log: Written) -> None:
    log.write(opened("c-1"), correction("fb-1", "c-1"))
    log.write(correction("fb-2", "c-1", kind="rating", text=None, value=1.0), correction("fb-3", "c-1"))
    assert log.status("fb-2") == "received"
    assert log.status("fb-1") == "superseded"


@pytest.mark.parametrize("undone", ["withdrawn", "quarantined", "erased"])
def test_a_later_correction_that_falls_away_gives_the_earlier_one_back(log: Written, undone: str) -> None:
    log.write(opened("c-1"))
    log.write(correction("fb-1", "c-1"))
    (later,) = log.write(correction("fb-2", "c-1"))
    if undone == "withdrawn":
        log.write(FeedbackWithdrawn(feedback_id="fb-2", by="ann"))
    elif undone == "quarantined":
        log.write(triaged("fb-2", "quarantined"))
    else:
        log.append([later.tombstone(START)])
    assert (log.status("fb-1"), log.status("fb-2")) == ("received", undone)


def test_a_demonstration_of_a_question_supersedes_its_correction_in_either_order(log: Written) -> None:
    asked = [Message(role="user", content="What?")]
    log.write(correction("fb-1", "c-1"), correction("fb-2", "c-9", kind="demonstration", messages=asked))
    log.write(opened("c-1"), opened("c-9", "Something else?"))
    assert log.status("fb-1") == "superseded"
    assert log.status("fb-2") == "received"


def test_feedback_is_found_by_its_idempotency_key(log: Written) -> None:
    log.write(correction("fb-1", "c-1", idempotency_key="k", body_digest="d"))
    found = log.view.feedback_by_key("ann", "k")
    assert found is not None and found.feedback_id == "fb-1"
    assert log.view.feedback_by_key("ben", "k") is None


def test_of_two_with_one_key_the_earlier_is_found_by_it_and_neither_is_lost(log: Written) -> None:
    """Servers that did not know of each other's yet have acknowledged both."""
    earlier, later = (envelope(correction(id_, "c-1", idempotency_key="k")) for id_ in ("fb-2", "fb-3"))
    log.append([later, earlier])
    log.view.absorb([earlier, later])
    found = log.view.feedback_by_key("ann", "k")
    assert found is not None and found.feedback_id == "fb-2"
    assert [f.feedback_id for f in log.view.all_feedback()] == ["fb-2", "fb-3"]
    assert sorted(log.view.belonging("ann")[1]) == ["fb-2", "fb-3"]
    log.write(opened("c-1"))
    assert (log.status("fb-2"), log.status("fb-3")) == ("superseded", "received")


def test_feedback_goes_from_received_to_served_and_back(log: Written) -> None:
    log.write(opened("c-1"), correction("fb-1", "c-1"))
    seen = [log.status("fb-1")]
    for payload in (
        triaged("fb-1", "accepted"), planned(1, 0, "fb-1"), passed(1), moved(1, 0), moved(0, 1, "rollback"),
    ):  # fmt: skip
        log.write(payload)
        seen.append(log.status("fb-1"))
    assert seen == ["received", "accepted", "training", "trained", "served", "held"]
    assert [f.feedback_id for f in log.view.all_feedback(status="held")] == ["fb-1"]
    assert log.view.all_feedback("ben") == []


def test_feedback_is_counted_as_it_is_listed(log: Written) -> None:
    kinds = ["correction", "follow_up", "rating"]
    for number in range(36):
        kind, completion_id = kinds[number % 3], f"c-{number // 4}"
        log.write(
            opened(completion_id, completion_id), correction(f"fb-{number:02}", completion_id, kind=kind)
        )
        if number % 5:
            log.write(triaged(f"fb-{number:02}", "skipped" if number % 7 == 0 else "accepted"))
    log.write(planned(1, 0, "fb-03", "fb-06"), passed(1), planned(2, 1, "fb-18", "fb-03"))
    listed = Counter(
        (f.fate.status, f.fate.reason, f.given is not None and f.given.kind != "rating")
        for f in log.view.all_feedback()
    )
    assert log.view.count_feedback() == listed
    assert len(listed) > 6
    assert {reason for status, reason, _ in listed if status == "skipped"} == {"because"}


def test_feedback_is_counted_by_when_it_came(log: Written) -> None:
    for number in range(7):
        log.write(correction(f"fb-{number}", "c-1"))
    came = [f.received for f in log.view.all_feedback()]
    since = came[0] + 0.0005  # they come a millisecond apart
    arrived = log.view.feedback_arrived(since, 0.004)
    assert list(arrived.values()) == [4, 2]
    assert list(arrived) == pytest.approx([since, since + 0.004])
