import asyncio

import pytest

from buffer.log import LogUnavailable
from buffer.records import AliasMoved, FeedbackWithdrawn, Payload, ReleaseRejected, RoundEnded
from buffer.rounds import Alias, Round
from server.errors import EngineLost, EngineRefused, EngineUnavailable, ReleaseForeign
from server.follow import Follower, Patience, candidate, kept
from tests.server.api.test_learning import passed, planned, release, wait_for_live, write
from tests.server.running import Running
from tests.server.test_fetch import wait_for


def moves(*versions: int) -> Alias:
    made = tuple(
        AliasMoved(alias="apprentice", version=v, epoch=i, why="promote", by="op")
        for i, v in enumerate(versions)
    )
    return Alias(versions[-1] if versions else 0, len(versions), made)


def test_the_recent_policies_and_the_base_are_kept() -> None:
    assert kept(moves()) == [0, 0]
    assert kept(moves(1, 2, 3, 4)) == [4, 3, 2, 0]
    assert kept(moves(1, 2, 3, 4, 3)) == [3, 4, 2, 0]


def made(version: int, parent: int) -> Round:
    return Round(planned(version, parent), 0.0, passed(version), 1.0)


def test_a_candidate_grew_from_the_live_policy_and_is_new() -> None:
    def next_(rounds: list[Round], alias: Alias, *rejected: int) -> int | None:
        found = candidate(rounds, alias, rejected)
        return found.version if found is not None else None

    refused = Round(planned(4, 1), 0.0, RoundEnded(round=4, verdict="refused"), 1.0)
    running = Round(planned(5, 1), 0.0, None, None)
    assert next_([], moves()) is None
    assert next_([made(1, 0)], moves()) == 1
    assert next_([made(1, 0)], moves(1)) is None
    assert next_([made(1, 0), made(2, 1), made(3, 1), refused, running], moves(1)) == 3
    assert next_([made(1, 0), made(2, 1), made(3, 1)], moves(1), 3) == 2
    assert next_([made(1, 0), made(2, 1), made(3, 2)], moves(1, 2, 1)) is None, (
        "3 grew from what was withdrawn"
    )


def test_a_release_becomes_live_and_the_log_says_so(running: Running) -> None:
    release(running, 1)
    assert running.log.payloads(AliasMoved) == [
        AliasMoved(alias="apprentice", version=1, epoch=0, why="release", by="server")
    ]
    assert running.policies.installed == [1]
    body = {"model": "apprentice", "messages": [{"role": "user", "content": "x"}]}
    assert running.client().post("/v1/chat/completions", json=body).headers["x-policy"] == "apprentice@000001"


def test_old_policies_are_let_go(running: Running) -> None:
    release(running, 1, 2, 3, 4)
    running.run(running.gateway.until(lambda: set(running.policies.resident) == {0, 2, 3, 4}))


def test_a_release_that_fails_its_probe_is_rejected_and_not_served(running: Running) -> None:
    release(running, 1)
    running.policies.bad = {2}
    write(running, planned(2, 1), passed(2))
    running.run(running.gateway.until(lambda: 2 in running.gateway.buffer.view.rejected()))
    assert running.gateway.live == 1
    assert running.log.payloads(ReleaseRejected) == [
        ReleaseRejected(version=2, why="the probe of 2 differs", by="server")
    ]
    write(running, planned(3, 1), passed(3))
    wait_for_live(running, 3)


FAILING = EngineRefused("vLLM answered /v1/load_lora_adapter with 500: it ended", answer=500)
QUICK = Patience(tries=3, ends=2, first_pause_s=0.05, longest_pause_s=0.05)


def test_a_release_at_which_vllm_fails_is_tried_again_and_served(running: Running) -> None:
    release(running, 1)
    running.stop_following()
    running.policies.errors = {2: FAILING}
    running.follow(Patience(tries=3, first_pause_s=0.05, longest_pause_s=60))
    write(running, planned(2, 1), passed(2))
    wait_for(lambda: running.policies.tried.count(2) == 2)
    running.policies.errors = {}
    running.stop_following()
    running.follow(QUICK)
    wait_for_live(running, 2)
    assert running.log.payloads(ReleaseRejected) == []


@pytest.mark.parametrize(
    ("error", "tried", "why"),
    [
        (FAILING, 3, "it ended (3 times in a row)"),
        (EngineLost("Server disconnected"), 2, "Server disconnected (2 times in a row)"),
    ],
)
def test_a_release_at_which_vllm_always_fails_or_ends_is_rejected_in_the_end(
    running: Running, error: EngineRefused | EngineLost, tried: int, why: str
) -> None:
    release(running, 1)
    running.stop_following()
    running.policies.errors = {2: error}
    running.follow(QUICK)
    write(running, planned(2, 1), passed(2))
    running.run(running.gateway.until(lambda: 2 in running.gateway.buffer.view.rejected()))
    assert running.policies.tried.count(2) == tried
    (rejected,) = running.log.payloads(ReleaseRejected)
    assert isinstance(rejected, ReleaseRejected) and why in rejected.why
    assert running.gateway.live == 1


def test_a_vllm_that_is_only_busy_says_nothing_about_a_release(running: Running) -> None:
    release(running, 1)
    running.stop_following()
    running.policies.errors = {2: EngineUnavailable("vLLM answered /v1/load_lora_adapter with 503: busy")}
    running.follow(Patience(tries=1, ends=1, first_pause_s=0.05, longest_pause_s=0.05))
    write(running, planned(2, 1), passed(2))
    wait_for(lambda: running.policies.tried.count(2) == 2)
    running.policies.errors = {}
    wait_for_live(running, 2)
    assert running.log.payloads(ReleaseRejected) == []


def test_between_two_tries_there_is_a_pause_in_which_all_else_goes_on(running: Running) -> None:
    release(running, 1)
    running.stop_following()
    running.policies.errors = {2: FAILING}
    running.follow(Patience(first_pause_s=60))
    write(running, planned(2, 1), passed(2))
    wait_for(lambda: 2 in running.policies.tried)
    for version in (0, 1):
        epoch = running.gateway.alias_now().epoch
        moved = AliasMoved(alias="apprentice", version=version, epoch=epoch, why="promote", by="elsewhere")
        write(running, moved)
        wait_for_live(running, version)
    assert running.policies.tried.count(2) == 1
    assert running.log.payloads(ReleaseRejected) == []


def test_a_live_policy_at_which_vllm_fails_leaves_the_one_before_in_place(running: Running) -> None:
    release(running, 1)
    running.stop_following()
    running.policies.errors = {2: FAILING}
    write(running, planned(2, 1), passed(2))
    write(running, AliasMoved(alias="apprentice", version=2, epoch=1, why="release", by="elsewhere"))
    running.follow(QUICK)
    wait_for(lambda: running.policies.tried.count(2) > 1)
    assert running.client().get("/readyz").json()["policy"] == "apprentice@000001"
    running.policies.errors = {}
    wait_for_live(running, 2)


def test_after_a_start_a_live_policy_at_which_vllm_fails_is_told_as_the_reason(running: Running) -> None:
    release(running, 1)
    running.stop_following()
    running.gateway.live, running.policies.resident = None, {0}
    running.policies.errors = {1: FAILING}
    running.follow(QUICK)
    wait_for(lambda: running.policies.tried.count(1) > 2)
    refused = running.client().get("/readyz")
    assert refused.status_code == 503 and "it ended" in refused.json()["error"]["message"]
    running.policies.errors = {}
    wait_for_live(running, 1)


def test_a_release_for_another_server_is_no_verdict_and_is_told_by_this_ones_health(running: Running) -> None:
    release(running, 1)
    why = "apprentice@000002: it was trained on another base model"
    running.policies.errors = {2: ReleaseForeign(why, "Give it the same `model`.")}
    write(running, planned(2, 1), passed(2))
    wait_for(lambda: running.gateway.foreign is not None)
    client = running.client()
    (todo,) = [one for one in client.get("/v1/overview").json()["todo"] if one["level"] == "bad"]
    assert todo["code"] == "release_foreign" and "another base model" in todo["what"]
    assert todo["do"] == "Give it the same `model`."
    assert client.get("/readyz").json()["policy"] == "apprentice@000001", "the others are not helped by less"
    write(running, AliasMoved(alias="apprentice", version=2, epoch=1, why="release", by="elsewhere"))
    running.run(running.gateway.until(lambda: running.gateway.alias_now().version == 2))
    write(running, AliasMoved(alias="apprentice", version=0, epoch=2, why="rollback", by="elsewhere"))
    wait_for_live(running, 0)
    wait_for(lambda: running.gateway.foreign is None)
    assert running.log.payloads(ReleaseRejected) == []
    assert running.policies.tried.count(2) == 1, "nothing about it will change here"


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.gateway.CONFIRM_S", 0.2)
    monkeypatch.setattr("server.follow.RETRY_S", 0.05)


def promoted(running: Running) -> float | None:
    return running.gateway.metrics.registry.get_sample_value(
        "apprentice_releases_total", {"outcome": "promoted"}
    )


@pytest.mark.usefixtures("hurried")
def test_a_move_that_the_log_does_not_bring_back_is_written_once(running: Running) -> None:
    running.stop_following()
    write(running, planned(1, 0), passed(1))
    wait_for(lambda: running.gateway.buffer.view.release(1) is not None)
    running.log.silent = True
    running.follow(QUICK)
    wait_for(lambda: running.policies.tried != [])
    for _ in range(3):
        with pytest.raises(LogUnavailable) as waiting:
            running.run(running.gateway.move(1, expected=Alias(0, 0, ()), why="release", by="server"))
    assert "unless another move came before it" in waiting.value.hint
    running.log.silent = False
    wait_for_live(running, 1)
    assert len(running.log.payloads(AliasMoved)) == 1
    assert promoted(running) == 1


@pytest.mark.usefixtures("hurried")
def test_a_rejection_that_the_log_does_not_bring_back_is_written_once(running: Running) -> None:
    running.stop_following()
    running.policies.bad = {1}
    write(running, planned(1, 0), passed(1))
    wait_for(lambda: running.gateway.buffer.view.release(1) is not None)
    running.log.silent = True
    follower = Follower(running.gateway)
    with pytest.raises(LogUnavailable):
        running.run(follower.reconcile())
    for _ in range(2):
        running.run(follower.reconcile())
    running.log.silent = False
    assert len(running.log.payloads(ReleaseRejected)) == 1
    assert running.policies.tried == [1]


def test_no_exchange_and_no_feedback_wakes_who_waits_for_policies(running: Running) -> None:
    news = running.gateway.news

    async def rung(payload: Payload) -> bool:
        bell = news.bell()
        news.tell([payload])
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return bell.is_set()

    assert not running.run(rung(FeedbackWithdrawn(feedback_id="fb-1", by="ann")))
    assert running.run(rung(ReleaseRejected(version=9, why="x", by="server")))


def test_a_release_that_grew_from_a_withdrawn_policy_is_not_promoted(running: Running) -> None:
    release(running, 1, 2)
    write(running, planned(3, 2))
    running.client("root-key").post("/v1/policies/rollback")
    write(running, passed(3), planned(4, 1), passed(4))
    wait_for_live(running, 4)
    assert [m.version for m in running.gateway.alias_now().moves] == [1, 2, 1, 4]


def test_a_rolled_back_release_is_not_promoted_again(running: Running) -> None:
    release(running, 1, 2)
    running.client("root-key").post("/v1/policies/rollback")
    write(running, planned(3, 1))
    assert running.gateway.live == 1
    assert [m.version for m in running.gateway.alias_now().moves] == [1, 2, 1]


def test_what_passed_while_nobody_looked_is_found(running: Running) -> None:
    running.stop_following()
    write(running, planned(1, 0), passed(1), planned(2, 0), passed(2))
    running.follow()
    wait_for_live(running, 2)


def test_another_replicas_move_is_followed(running: Running) -> None:
    release(running, 1, 2)
    write(running, AliasMoved(alias="apprentice", version=1, epoch=2, why="rollback", by="elsewhere"))
    wait_for_live(running, 1)


def test_a_live_policy_that_cannot_be_loaded_leaves_the_one_before_in_place(running: Running) -> None:
    release(running, 1)
    running.policies.bad = {2}
    running.stop_following()
    write(running, planned(2, 1), passed(2))
    write(running, AliasMoved(alias="apprentice", version=2, epoch=1, why="release", by="elsewhere"))
    running.follow()
    write(running, planned(3, 2), passed(3))
    body = {"model": "apprentice", "messages": [{"role": "user", "content": "x"}]}
    assert running.client().post("/v1/chat/completions", json=body).headers["x-policy"] == "apprentice@000001"
    assert running.client().get("/readyz").status_code == 200
