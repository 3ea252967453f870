"""Records that earlier releases wrote: each must stay readable, and mean what it meant."""

import json

import pytest

from buffer.records import PAYLOADS, FeedbackGiven, Record
from buffer.view import View
from tests import recorded
from tests.buffer.conftest import START

RECORDS = recorded.everything()


def view_of(records: list[Record]) -> View:
    view = View(":memory:")
    view.apply(records, {})
    return view


def test_every_type_of_record_is_among_them() -> None:
    assert {record.type for record in RECORDS if record.data is not None} == PAYLOADS.keys()


@pytest.mark.parametrize("record", [r for r in RECORDS if r.data is not None], ids=lambda r: str(r.type))
def test_nothing_that_was_written_is_lost_in_reading(record: Record) -> None:
    """A field that is renamed or whose type changes turns this red; a new one with a default does not."""
    assert record.data is not None
    read = record.payload().model_dump(mode="json", exclude_defaults=True)
    assert read == json.loads(record.data)


def test_the_story_ends_as_it_did() -> None:
    view = view_of(RECORDS)
    assert {f.feedback_id: f.fate.status for f in view.all_feedback()} == {
        "fb-1": "served", "fb-2": "refused", "fb-4": "withdrawn", "fb-5": "accepted", "fb-6": "superseded",
        "fb-7": "received", "fb-8": "accepted", "fb-9": "quarantined", "fb-10": "skipped",
        "fb-11": "received", "fb-12": "accepted",
    }  # fmt: skip
    assert view.poison() == []
    assert view.alias("apprentice").version == 1
    assert [r.ended.verdict for r in view.rounds() if r.ended is not None] == ["passed", "refused"]
    assert [r.request_id for r in view.requests()] == ["rr-2"]
    assert view.rejected() == {9: "its probe failed"}
    paused, report = view.paused(), view.report()
    assert paused is not None and paused.why == "night"
    assert report is not None and (report[0].step, report[0].loss) == (3, 0.5)
    assert [(key.principal, key.digest[:2], key.scopes) for key, _ in view.keys().added] == [
        ("ann", "a1", ["infer", "feedback"]), ("ben", "b2", ["learn", "of-the-future"]),
    ]  # fmt: skip
    exchange = view.exchange("chatcmpl-1")
    assert exchange is not None and exchange.closed is not None
    assert exchange.closed.choices[0].logprobs == [-0.25, -1.5, -0.125, -3.0]
    assert view.exchange("chatcmpl-3") is None
    view.close()


def test_fields_of_a_newer_release_are_ignored_wherever_they_stand() -> None:
    def newer(value: object) -> object:
        if isinstance(value, list):
            return [newer(one) for one in value]
        if isinstance(value, dict):
            changed = {key: one if key == "templates" else newer(one) for key, one in value.items()}
            return {"of_the_future": {"a": [1]}} | changed
        return value

    for record in RECORDS:
        if record.data is not None:
            data = json.dumps(newer(json.loads(record.data))).encode()
            changed = Record(record.stream, record.type, record.id, record.time, data)
            assert type(changed.payload()) is PAYLOADS[record.type]


def test_records_of_a_newer_release_are_passed_over_and_counted_with_the_reason() -> None:
    unknown = Record("rounds", "apprentice.dream.had.v1", "n-1", START, b'{"about":"sheep"}', "", "/s", 1)
    kind = Record(
        "feedback", FeedbackGiven.type, "n-2", START,
        b'{"feedback_id":"fb-99","principal":"ann","kind":"shrug"}', "", "/s", 1,
    )  # fmt: skip
    view = view_of([unknown, kind, *RECORDS])
    assert [(id_, type_) for id_, type_, _ in view.poison()] == [("n-1", unknown.type), ("n-2", kind.type)]
    assert "kind" in view.poison()[1][2]
    assert view.alias("apprentice").version == 1, "what is behind them is read"
    view.close()
