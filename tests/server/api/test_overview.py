import threading
import time
from typing import Any

import httpx

from buffer.log import LogFull
from buffer.records import (
    Decision,
    ExchangeOpened,
    FeedbackGiven,
    FeedbackTriaged,
    LearnerReported,
    LearningSwitched,
    RoundEnded,
)
from server import traffic
from tests.server.api.test_learning import passed, planned, wait_for_live, write
from tests.server.running import Running


def overview(running: Running, key: str = "ann-key") -> dict[str, Any]:
    reply = running.client(key).get("/v1/overview")
    assert reply.status_code == 200
    found: dict[str, Any] = reply.json()
    return found


def codes(found: dict[str, Any]) -> list[str]:
    return [one["code"] for one in found["todo"]]


def until(running: Running, holds: Any) -> None:
    running.run(running.gateway.until(holds))


def test_it_is_for_whoever_has_a_key_and_says_who_that_is(running: Running) -> None:
    assert httpx.get(f"{running.url}/v1/overview").status_code == 401
    assert overview(running)["caller"] == {"name": "ann", "admin": False}
    assert overview(running, "root-key")["caller"] == {"name": "root", "admin": True}


def test_it_says_that_it_serves_and_that_nothing_learns(running: Running) -> None:
    found = overview(running)
    assert found["health"] == {
        "level": "warn",
        "says": "Serving apprentice@000000; nothing learns: no learner has been heard of.",
    }
    assert codes(found) == ["learner_unknown"]


def test_traffic_is_the_gateways_own(running: Running) -> None:
    first = traffic.read(running.gateway.metrics, time.time() - 60, engine_ready=True)
    running.gateway.traffic.add(first)
    body = {"model": "apprentice", "messages": [{"role": "user", "content": "x"}]}
    for _ in range(3):
        running.client().post("/v1/chat/completions", json=body)
    running.client().post("/v1/feedback", content=b"{")
    found = overview(running)["traffic"]
    assert found["hour"]["by_outcome"] == {"ok": 3}
    assert found["hour"]["refusals"] == {"invalid_json": 1}
    assert found["hour"]["p95_s"] > 0
    assert found["now"]["requests_per_s"] > 0
    assert len(found["history"]["at"]) == 1


def test_feedback_is_told_by_status_by_reason_and_by_when_it_came(running: Running) -> None:
    given = [
        FeedbackGiven(
            feedback_id=f"fb-{i}", principal="ann", kind="correction", text="x", completion_id="c-1"
        )
        for i in range(4)
    ]
    decisions = [
        Decision(feedback_id="fb-0", status="skipped", reason="not_a_chat"),
        Decision(feedback_id="fb-1", status="skipped", reason="not_a_chat"),
        Decision(feedback_id="fb-2", status="accepted"),
        Decision(feedback_id="fb-3", status="accepted"),
    ]
    write(running, *given, FeedbackTriaged(decisions=decisions))
    write(running, planned(1, 0, "fb-3"), RoundEnded(round=1, verdict="refused", reasons=["forgot"]))
    until(
        running,
        lambda: running.gateway.buffer.view.rounds()[-1:] and not running.gateway.buffer.view.untriaged(),
    )
    found = overview(running)["feedback"]
    assert found["by_status"] == {"skipped": 2, "accepted": 1, "refused": 1}
    assert found["by_reason"] == [
        {"status": "skipped", "reason": "not_a_chat", "count": 2},
        {"status": "refused", "reason": "forgot", "count": 1},
    ]
    assert len(found["arrived"]) == 24
    assert found["arrived"][-1]["count"] + found["arrived"][-2]["count"] == 4


def test_what_is_wrong_is_found_where_it_is(running: Running) -> None:
    write(running, LearnerReported(state="waiting", why="nothing to learn"))
    write(running, LearningSwitched(paused=True, by="root"))
    until(running, lambda: running.gateway.buffer.view.paused() is not None)
    running.log.failing[ExchangeOpened.type] = LogFull("the disk is full")
    body = {"model": "apprentice", "messages": [{"role": "user", "content": "x"}]}
    assert running.client().post("/v1/chat/completions", json=body).status_code == 503
    running.log.unreadable = True
    running.engine.state = "down"
    running.engine.why = "it was killed"
    found = overview(running)
    assert codes(found) == ["engine_down", "log_not_writable", "log_unreadable", "learning_paused"]
    assert found["todo"][-1]["since"] is not None
    assert found["health"]["level"] == "bad"
    assert found["log"]["unreadable"] == "the log cannot be read: the broker is away"


def test_held_lessons_and_drift_are_worth_a_note(running: Running) -> None:
    write(running, LearnerReported(state="waiting", why="nothing to learn"))
    given = FeedbackGiven(feedback_id="fb-1", principal="ann", kind="correction", text="x", completion_id="c")
    write(running, given, FeedbackTriaged(decisions=[Decision(feedback_id="fb-1", status="accepted")]))
    plan = planned(1, 0, "fb-1").model_copy(update={"config": {"gate": {"max_kl_to_parent": 0.15}}})
    write(running, plan, passed(1, drift=0.3))
    wait_for_live(running, 1)
    assert codes(overview(running)) == ["drift_high"]
    assert running.client("root-key").post("/v1/policies/rollback").status_code == 200
    found = overview(running)
    assert codes(found) == ["feedback_held"]
    assert found["health"]["says"] == "Serving apprentice@000000; the learner is waiting."


def test_a_log_that_does_not_answer_keeps_nobody_waiting(running: Running) -> None:
    asked, answer = [0], threading.Event()
    original = running.log.ends

    def ends() -> Any:
        asked[0] += 1
        answer.wait()
        return original()

    running.log.ends = ends  # type: ignore[method-assign]
    first, second = overview(running), overview(running)
    answer.set()
    assert "has not answered" in first["log"]["unreadable"]
    assert "has not answered" in second["log"]["unreadable"]
    assert asked == [1]
