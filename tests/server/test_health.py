from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Literal

import pytest

from buffer.log import Backlog, Space
from buffer.records import RoundEnded, RoundPlanned
from buffer.rounds import Round
from server.errors import ReleaseForeign
from server.health import Facts, Learner, Todo, sentence, what_to_do

NOW = 1_000_000.0
WELL = Facts(NOW, "apprentice@000003", learner=Learner("waiting", "nothing to learn", NOW - 5))


def ended(number: int, verdict: Literal["passed", "refused", "failed"], *reasons: str) -> Round:
    planned = RoundPlanned(round=number, parent=0, lessons=["fb-1"], seed=1, base="b", config={})
    at = NOW - 1000 + number
    return Round(planned, at - 1, RoundEnded(round=number, verdict=verdict, reasons=list(reasons)), at)


def only(**wrong: Any) -> Todo:
    (found,) = what_to_do(replace(WELL, **wrong))
    assert found.what and found.do
    return found


def test_where_all_is_well_there_is_nothing_to_do() -> None:
    assert what_to_do(WELL) == []
    assert sentence(WELL) == "Serving apprentice@000003; the learner is waiting."


@pytest.mark.parametrize(
    ("code", "level", "wrong"),
    [
        ("engine_down", "bad", {"engine": "down", "engine_why": "it was killed", "engine_since": NOW - 60}),
        ("engine_starting", "warn", {"engine": "starting"}),
        ("policy_not_served", "bad", {"policy": None, "not_ready": "its probe differs"}),
        ("log_not_writable", "bad", {"writable": False, "unwritable_since": NOW - 9}),
        ("log_unreadable", "bad", {"unreadable": "the broker is away"}),
        ("view_behind", "warn", {"lag": 5000}),
        ("disk_low", "warn", {"space": Space(1, 0, 1 << 30)}),
        ("disk_low", "bad", {"space": Space(1, 0, 1 << 20)}),
        ("journal_nearly_full", "warn", {"space": Space(95, 100, 1 << 40)}),
        ("broker_backlog", "warn", {"backlog": Backlog(7, datetime.fromtimestamp(NOW - 61, UTC))}),
        ("set_aside", "warn", {"backlog": Backlog(set_aside=1)}),
        ("unreadable_messages", "warn", {"backlog": Backlog(unreadable=1)}),
        ("records_passed_over", "warn", {"passed_over": {"apprentice.new.v9": 2}}),
        ("learning_paused", "warn", {"paused_by": "root", "paused_at": NOW - 100}),
        ("learner_unknown", "warn", {"learner": Learner()}),
        ("learner_silent", "warn", {"learner": Learner("silent", "", NOW - 300)}),
        ("learner_stopped", "warn", {"learner": Learner("stopped", "", NOW - 300)}),
        ("learner_failed", "bad", {"learner": Learner("failed", "no memory", NOW - 300)}),
        ("round_failed", "warn", {"rounds": [ended(1, "failed", "no memory")]}),
        ("rounds_refused", "warn", {"rounds": [ended(1, "refused", "x"), ended(2, "refused", "forgot")]}),
        ("release_foreign", "bad", {"foreign": ReleaseForeign("another base", "Give it the same.")}),
        ("policy_waits_for_store", "warn", {"waits_for": {"apprentice@000004": "missing"}}),
        ("feedback_held", "note", {"held": 3}),
        ("drift_high", "note", {"drift": 0.3, "round_limit": 0.15}),
    ],
)  # fmt: skip
def test_each_thing_that_is_wrong_is_named_with_its_next_step(
    code: str, level: str, wrong: dict[str, Any]
) -> None:
    found = only(**wrong)
    assert (found.code, found.level) == (code, level)
    since = [value for name, value in wrong.items() if name.endswith(("_since", "_at"))]
    assert [found.since] == since or not since


@pytest.mark.parametrize(
    "fine",
    [
        {"lag": 10},
        {"space": Space(10, 100, 1 << 40)},
        {"backlog": Backlog(7, datetime.fromtimestamp(NOW - 5, UTC))},
        {"rounds": [ended(1, "refused", "x")]},
        {"rounds": [ended(1, "refused"), ended(2, "refused"), ended(3, "passed")]},
        {"drift": 0.1, "round_limit": 0.15},
        {"drift": 0.3},
    ],
)
def test_what_is_usual_asks_for_nobody(fine: dict[str, Any]) -> None:
    assert what_to_do(replace(WELL, **fine)) == []


def test_the_worst_comes_first() -> None:
    found = what_to_do(replace(WELL, held=1, lag=5000, learner=Learner("failed")))
    assert [one.level for one in found] == ["bad", "warn", "note"]


def test_refused_rounds_are_counted_since_the_last_that_passed() -> None:
    found = only(
        rounds=[ended(1, "refused"), ended(2, "passed"), ended(3, "refused"), ended(4, "refused", "y")]
    )
    assert "the last 2 rounds" in found.what and "y" in found.what
    assert found.since == NOW - 997


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"engine": "down"}, "Not serving: vLLM is down; the learner is waiting."),
        ({"engine": "starting"}, "The model is starting; the learner is waiting."),
        ({"policy": None}, "Not serving: the live policy is not loaded; the learner is waiting."),
        (
            {"writable": False},
            "Serving apprentice@000003, but nothing can be recorded; the learner is waiting.",
        ),
        ({"paused_by": "ann"}, "Serving apprentice@000003; learning is paused by ann."),
        ({"learner": Learner()}, "Serving apprentice@000003; nothing learns: no learner has been heard of."),
        ({"learner": Learner("silent")}, "Serving apprentice@000003; nothing learns: the learner is silent."),
        (
            {"learner": Learner("training", "", NOW, 4, 30, 96)},
            "Serving apprentice@000003; training round 4, step 30 of 96.",
        ),
    ],
)
def test_one_sentence_says_whether_it_serves_and_learns(facts: dict[str, Any], said: str) -> None:
    assert sentence(replace(WELL, **facts)) == said
