from typing import Any

import pytest

from buffer.records import (
    AliasMoved,
    FeedbackGiven,
    LearnerReported,
    LearningSwitched,
    LessonAnswered,
    Payload,
    Release,
    RoundEnded,
    RoundPlanned,
    RoundRequested,
)
from server.api.learning import describe_learning
from server.identity import LOCAL
from tests.server.running import Running
from tests.server.test_callers import decide, key_added


def planned(round_: int, parent: int, *lessons: str) -> RoundPlanned:
    return RoundPlanned(
        round=round_, parent=parent, lessons=list(lessons), seed=7, base="b" * 64, config={"lr": 1e-3}
    )


def passed(round_: int, **evaluation: Any) -> RoundEnded:
    release = Release(version=round_, digest="d" * 64, directory=f"{round_:06d}-{'d' * 12}")
    return RoundEnded(round=round_, verdict="passed", evaluation=evaluation, release=release)


def write(running: Running, *payloads: Payload) -> None:
    running.run(running.gateway.write(payloads))


def wait_for_live(running: Running, version: int) -> None:
    running.run(running.gateway.until(lambda: running.gateway.live == version))


def release(running: Running, *rounds: int) -> None:
    """Rounds that pass and are promoted, each on the one before."""
    for number in rounds:
        write(running, planned(number, number - 1), passed(number, drift=0.01 * number))
        wait_for_live(running, number)


# --- the learner -------------------------------------------------------------------------------------


def test_without_a_learner_it_says_how_to_start_one(running: Running) -> None:
    found = running.client().get("/v1/learning").json()
    assert found["state"] is None
    assert "apprentice learn" in found["why"]


def test_it_says_what_the_learner_does_and_what_the_last_round_gave(running: Running) -> None:
    write(
        running,
        planned(1, 0, "fb-1"),
        RoundEnded(round=1, verdict="refused", reasons=["forgot"], evaluation={"x": 1}),
    )
    write(running, planned(2, 0, "fb-1"))
    write(running, LearnerReported(state="training", why="round 2", round=2, step=3, steps=9, loss=0.5))
    running.run(running.gateway.until(lambda: running.gateway.buffer.view.report() is not None))
    found = running.client().get("/v1/learning").json()
    assert (found["state"], found["round"], found["step"], found["loss"]) == ("training", 2, 3, 0.5)
    assert found["last_round"]["verdict"] == "refused"
    assert found["last_round"]["reasons"] == ["forgot"]
    assert [r["round"] for r in found["rounds"]] == [2, 1]
    assert found["rounds"][0]["verdict"] is None


def test_what_was_answered_to_a_lesson_is_told_to_its_author_and_to_admins_alone(running: Running) -> None:
    decide(running, key_added("prometheus"))
    measured = [{"feedback_id": "fb-1", "asked": True}, {"feedback_id": "fb-2", "asked": False}]
    write(
        running,
        FeedbackGiven(feedback_id="fb-1", principal="ann", kind="correction", text="x"),
        FeedbackGiven(feedback_id="fb-2", principal="ben", kind="correction", text="x"),
        LessonAnswered(feedback_id="fb-1", round=1, before="old of ann", answer="new of ann"),
        LessonAnswered(feedback_id="fb-2", round=1, before="old of ben", answer="new of ben"),
        planned(1, 0, "fb-1", "fb-2"),
        passed(1, lessons=measured),
    )
    wait_for_live(running, 1)

    def told(key: str, path: str) -> list[tuple[str, str]]:
        found = running.client(key).get(path).json()
        one = found["rounds"][0] if "rounds" in found else found["data"][1] if "data" in found else found
        assert found.get("last_round", one) == one
        lessons = one["evaluation"]["lessons"]
        assert [lesson["asked"] for lesson in lessons] == [True, False], "numbers are for all"
        return [(lesson["before"], lesson["answer"]) for lesson in lessons]

    hidden, of_ann, of_ben = ("", ""), ("old of ann", "new of ann"), ("old of ben", "new of ben")
    for path in ("/v1/learning", "/v1/policies", "/v1/policies/1"):
        assert told("ann-key", path) == [of_ann, hidden]
        assert told("ben-key", path) == [hidden, of_ben]
        assert told("prometheus-key", path) == [hidden, hidden]
        assert told("root-key", path) == [of_ann, of_ben]


def test_it_says_when_the_learner_has_fallen_silent(running: Running) -> None:
    write(running, LearnerReported(state="waiting", why="nothing to learn"))
    running.run(running.gateway.until(lambda: running.gateway.buffer.view.report() is not None))
    report = running.gateway.buffer.view.report()
    assert report is not None
    heard = describe_learning(running.gateway, LOCAL, report[1] + 59)
    silent = describe_learning(running.gateway, LOCAL, report[1] + 300)
    assert (heard["state"], heard["why"]) == ("waiting", "nothing to learn")
    assert silent["state"] == "silent"
    assert "300 s" in silent["why"]


def test_feedback_is_counted_by_status(running: Running) -> None:
    ids = running.run(seed_feedback(running))
    found = running.client().get("/v1/learning").json()
    assert found["feedback"] == {"received": len(ids)}
    assert found["pending"] == len(ids)


async def seed_feedback(running: Running) -> list[str]:
    given = [
        FeedbackGiven(feedback_id=f"fb-{i}", principal="ann", kind="correction", text="x") for i in range(3)
    ]
    await running.gateway.write(given)
    return [one.feedback_id for one in given]


def test_an_admin_pauses_resumes_and_asks_for_a_round(running: Running) -> None:
    root = running.client("root-key")
    paused = root.post("/v1/learning/pause", json={"why": "night"}).json()
    assert (paused["paused"], paused["paused_by"]) == (True, "root")
    assert root.post("/v1/learning/resume").json()["paused"] is False
    assert running.log.payloads(LearningSwitched) == [
        LearningSwitched(paused=True, by="root", why="night"), LearningSwitched(paused=False, by="root"),
    ]  # fmt: skip
    asked = root.post("/v1/learning/rounds", json={"include": ["held"]})
    assert asked.status_code == 202
    assert running.log.payloads(RoundRequested) == [
        RoundRequested(request_id=asked.json()["id"], by="root", include=["held"])
    ]
    assert root.post("/v1/learning/rounds").status_code == 202
    refused = root.post("/v1/learning/rounds", json={"include": ["everything"]})
    assert refused.status_code == 400


@pytest.mark.parametrize(
    "path",
    [
        "/v1/learning/pause",
        "/v1/learning/resume",
        "/v1/learning/rounds",
        "/v1/policies/rollback",
        "/v1/policies/1/promote",
    ],
)
def test_only_admins_decide(running: Running, path: str) -> None:
    refused = running.client().post(path)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "missing_scope")
    assert running.log.batches == []


# --- policies ----------------------------------------------------------------------------------------


def test_policies_are_listed_with_their_lineage(running: Running) -> None:
    release(running, 1, 2)
    found = running.client().get("/v1/policies").json()["data"]
    assert [(p["id"], p["parent"], p["live"], p["resident"]) for p in found] == [
        ("apprentice@000000", None, False, True),
        ("apprentice@000001", 0, False, True),
        ("apprentice@000002", 1, True, True),
    ]
    one = running.client().get("/v1/policies/2").json()
    assert (one["round"], one["verdict"], one["evaluation"]) == (2, "passed", {"drift": 0.02})
    assert (one["config"], one["seed"]) == ({"lr": 1e-3}, 7)
    assert running.client().get("/v1/policies/9").status_code == 404
    assert running.client().get("/v1/policies/x").status_code == 404
    assert running.client("root-key").post(f"/v1/policies/{10**30}/promote").status_code == 400


def test_a_rollback_returns_to_the_policy_before_and_answers_with_it(running: Running) -> None:
    release(running, 1, 2)
    root = running.client("root-key")
    done = root.post("/v1/policies/rollback").json()
    assert (done["version"], done["was"], done["why"]) == (1, 2, "rollback")
    body = {"model": "apprentice", "messages": [{"role": "user", "content": "x"}]}
    reply = running.client().post("/v1/chat/completions", json=body)
    assert reply.headers["x-policy"] == "apprentice@000001"
    assert root.post("/v1/policies/rollback").json()["version"] == 0
    refused = root.post("/v1/policies/rollback")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "nothing_to_roll_back")


def test_a_policy_is_loaded_before_it_is_promoted(running: Running) -> None:
    release(running, 1, 2, 3, 4)
    assert 1 not in running.policies.resident
    root = running.client("root-key")
    assert root.post("/v1/policies/1/promote").json()["version"] == 1
    assert running.gateway.live == 1
    assert root.post("/v1/policies/1/promote").json()["was"] == 1
    assert root.post("/v1/policies/9/promote").status_code == 404
    running.policies.bad = {2}
    running.policies.resident.discard(2)
    refused = root.post("/v1/policies/2/promote")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "release_refused")
    assert running.gateway.live == 1


def test_a_move_that_was_overtaken_is_a_conflict(running: Running) -> None:
    release(running, 1, 2)
    before = running.gateway.alias_now()
    write(running, AliasMoved(alias="apprentice", version=0, epoch=before.epoch, why="promote", by="other"))
    late = running.gateway.move(1, expected=before, why="rollback", by="root")
    with pytest.raises(Exception, match="other moved apprentice to 000000"):
        running.run(late)
    wait_for_live(running, 0)
