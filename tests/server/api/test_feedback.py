from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from buffer.log import LogFull
from buffer.records import FeedbackGiven, FeedbackWithdrawn
from server.identity import Receipts
from tests.server.running import KEYS, Running, hashed
from tests.server.stub_policies import StubPolicies


def ask(running: Running, text: str = "What is it called?", key: str = "ann-key", **more: Any) -> str:
    """A completion's id."""
    body = {"model": "apprentice", "messages": [{"role": "user", "content": text}], **more}
    return str(running.client(key).post("/v1/chat/completions", json=body).json()["id"])


def correction(completion_id: str, text: str = "Bramblewick.", **more: Any) -> dict[str, Any]:
    return {"completion_id": completion_id, "kind": "correction", "text": text, **more}


def given(running: Running) -> list[FeedbackGiven]:
    return [p for p in running.log.payloads(FeedbackGiven) if isinstance(p, FeedbackGiven)]


def test_feedback_is_durable_when_it_is_received(running: Running) -> None:
    completion_id = ask(running)
    reply = running.client().post(
        "/v1/feedback", json=correction(completion_id, check={"contains": "bramble"}, choice=0)
    )
    assert reply.status_code == 202
    assert reply.json() == {"id": reply.json()["id"], "status": "received"}
    (record,) = given(running)
    assert record.feedback_id == reply.json()["id"]
    assert (record.principal, record.kind, record.completion_id) == ("ann", "correction", completion_id)
    assert record.check is not None and record.check.contains == "bramble"
    assert (
        running.gateway.receipts.conversation(completion_id, "ann")
        == running.log.read({})[0][-1].partition_key
    )


def test_each_kind_is_taken(running: Running) -> None:
    completion_id = ask(running)
    for body in (
        {"completion_id": completion_id, "kind": "instruction", "text": "Shorter."},
        {"completion_id": completion_id, "kind": "rating", "value": -0.5},
        {"kind": "demonstration", "messages": [{"role": "user", "content": "q"}], "text": "a"},
    ):
        assert running.client().post("/v1/feedback", json=body).status_code == 202
    assert [g.kind for g in given(running)] == ["instruction", "rating", "demonstration"]


def test_a_follow_up_cannot_be_posted_and_the_next_step_is_named(running: Running) -> None:
    body = {**correction(ask(running)), "kind": "follow_up"}
    for path in ("/v1/feedback", "/v1/feedback/preview"):
        refused = running.client().post(path, json=body)
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "kind"
        assert "/v1/chat/completions" in refused.json()["error"]["hint"]
    assert given(running) == []


def test_an_array_is_taken_whole_in_one_append_or_not_at_all(running: Running) -> None:
    completion_id = ask(running)
    running.log.batches.clear()
    many = [correction(completion_id, f"text {i}") for i in range(20)]
    reply = running.client().post("/v1/feedback", json=many)
    ids = [one["id"] for one in reply.json()]
    assert reply.status_code == 202
    assert running.log.batches == [[FeedbackGiven.type] * 20]
    assert [g.feedback_id for g in given(running)] == ids == sorted(ids)
    refused = running.client().post("/v1/feedback", json=[*many, correction(completion_id, " ")])
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "[20].text"
    assert len(given(running)) == 20


def test_of_one_array_the_last_correction_of_a_question_counts(running: Running) -> None:
    completion_id = ask(running)
    client = running.client()
    sent = client.post("/v1/feedback", json=[correction(completion_id, f"text {i}") for i in range(5)]).json()
    fates = [client.get(f"/v1/feedback/{one['id']}").json() for one in sent]
    assert [fate["status"] for fate in fates] == ["superseded"] * 4 + ["received"]
    assert {fate["superseded_by"] for fate in fates[:4]} == {sent[4]["id"]}


def test_only_ones_own_completions_can_be_corrected(running: Running) -> None:
    completion_id = ask(running)
    forged = completion_id[:-1] + ("0" if completion_id[-1] != "0" else "1")
    for key, target in (
        ("ben-key", completion_id),
        ("root-key", completion_id),
        ("ann-key", forged),
        ("ann-key", "x"),
    ):
        refused = running.client(key).post("/v1/feedback", json=correction(target))
        assert refused.status_code == 404
        assert refused.json()["error"]["code"] == "completion_not_found"
    assert given(running) == []


def test_an_erased_completion_cannot_be_corrected(running: Running) -> None:
    erased, kept, client = ask(running, n=2), ask(running), running.client()
    client.delete(f"/v1/chat/completions/{erased}").raise_for_status()
    for body in (
        correction(erased, "a secret"),
        correction(erased, "a secret", choice=1),
        [correction(kept), correction(erased, "a secret")],
    ):
        refused = client.post("/v1/feedback", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "completion_not_found")
    preview = client.post("/v1/feedback/preview", json=correction(erased, "a secret"))
    assert preview.json()["error"]["code"] == "completion_not_found"
    assert given(running) == []


def test_feedback_that_meets_the_erasure_of_its_completion_is_erased_with_it(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when it was checked just before, or by a server that had not heard of the erasure."""
    completion_id, client = ask(running), running.client()
    client.delete(f"/v1/chat/completions/{completion_id}").raise_for_status()
    monkeypatch.setattr(running.gateway.buffer.view, "erased", lambda _: False)
    sent = client.post("/v1/feedback", json=correction(completion_id, "a secret"))
    assert sent.status_code == 202
    assert client.get(f"/v1/feedback/{sent.json()['id']}").json()["status"] == "erased"
    assert given(running) == []


def test_feedback_is_accepted_before_its_exchange_is_known(running: Running) -> None:
    """As on a replica that has not read it yet."""
    completion_id = running.gateway.receipts.mint("chat", "0" * 32, "ann", "f" * 16)
    assert running.client().post("/v1/feedback", json=correction(completion_id)).status_code == 202


def test_a_choice_must_exist(running: Running) -> None:
    completion_id = ask(running, n=2)
    assert running.client().post("/v1/feedback", json=correction(completion_id, choice=1)).status_code == 202
    refused = running.client().post("/v1/feedback", json=correction(completion_id, choice=2))
    assert refused.json()["error"]["code"] == "no_such_choice"


def test_a_full_log_refuses_feedback(running: Running) -> None:
    completion_id = ask(running)
    running.log.failing[FeedbackGiven.type] = LogFull("the disk is full", "free some space")
    refused = running.client().post("/v1/feedback", json=correction(completion_id))
    assert refused.status_code == 503
    assert refused.json()["error"]["hint"] == "free some space"


def test_what_no_record_may_hold_is_its_callers_doing_and_says_nothing_about_the_log(tmp_path: Path) -> None:
    running = Running(tmp_path, StubPolicies, keys=hashed(KEYS))
    client = running.client()
    turn = {"role": "user", "content": "x" * 7000}
    refused = client.post(
        "/v1/feedback", json={"kind": "demonstration", "messages": [turn] * 199, "text": "y"}
    )
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "record_too_large")
    assert refused.json()["error"]["type"] == "invalid_request_error"
    assert "retry-after" not in refused.headers
    counted = client.get("/metrics").text.splitlines()
    assert "apprentice_log_writable 1.0" in counted
    assert 'apprentice_refusals_total{reason="record_too_large"} 1.0' in counted
    assert given(running) == []
    running.stop()


# --- idempotency -------------------------------------------------------------------------------------


@pytest.mark.parametrize("array", [False, True])
def test_a_repeated_request_gets_the_same_answer_and_is_taken_once(running: Running, array: bool) -> None:
    one = correction(ask(running))
    body: Any = [one, {**one, "text": "Other."}] if array else one
    client, headers = running.client(), {"idempotency-key": "k"}
    first = client.post("/v1/feedback", json=body, headers=headers)
    again = client.post("/v1/feedback", json=body, headers=headers)
    assert (again.status_code, again.json()) == (202, first.json())
    assert len(given(running)) == (2 if array else 1)


def test_a_key_with_another_body_is_a_conflict(running: Running) -> None:
    one = correction(ask(running))
    client, headers = running.client(), {"idempotency-key": "k"}
    assert client.post("/v1/feedback", json=one, headers=headers).status_code == 202
    for other in ({**one, "text": "Other."}, [one], [one, one]):
        refused = client.post("/v1/feedback", json=other, headers=headers)
        assert refused.status_code == 409
        assert refused.json()["error"]["code"] == "idempotency_conflict"
    assert len(given(running)) == 1


def test_a_key_belongs_to_its_principal(running: Running) -> None:
    headers = {"idempotency-key": "k"}
    for key in ("ann-key", "ben-key"):
        body = correction(ask(running, key=key))
        assert running.client(key).post("/v1/feedback", json=body, headers=headers).status_code == 202
    assert len(given(running)) == 2


def test_of_many_requests_at_once_with_one_key_one_is_taken(running: Running) -> None:
    body = correction(ask(running))

    def post(_: int) -> Any:
        return running.client().post("/v1/feedback", json=body, headers={"idempotency-key": "k"}).json()

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(post, range(50)))
    assert len({answer["id"] for answer in answers}) == 1
    assert len(given(running)) == 1


def test_a_refused_request_does_not_use_up_its_key(running: Running) -> None:
    one = correction(ask(running))
    client, headers = running.client(), {"idempotency-key": "k"}
    assert client.post("/v1/feedback", json={**one, "text": ""}, headers=headers).status_code == 400
    assert client.post("/v1/feedback", json=one, headers=headers).status_code == 202


# --- what became of it -------------------------------------------------------------------------------


def test_feedback_is_told_to_its_author_and_to_admins(running: Running) -> None:
    sent = running.client().post("/v1/feedback", json=correction(ask(running))).json()
    path = f"/v1/feedback/{sent['id']}"
    found = running.client().get(path).json()
    assert (found["status"], found["kind"], found["text"]) == ("received", "correction", "Bramblewick.")
    assert set(found) >= {"reason", "round", "policy", "superseded_by", "created", "completion_id"}
    assert running.client("root-key").get(path).json() == found
    for key, url in (("ben-key", path), ("ann-key", "/v1/feedback/fb-x")):
        assert running.client(key).get(url).status_code == 404


def test_feedback_is_listed_by_status_and_by_page(running: Running) -> None:
    completion_id, client = ask(running), running.client()
    ids = [
        client.post("/v1/feedback", json=correction(completion_id, f"t{i}")).json()["id"] for i in range(3)
    ]

    def listed(**query: Any) -> tuple[list[str], bool]:
        found = client.get("/v1/feedback", params=query).json()
        return [one["id"] for one in found["data"]], found["has_more"]

    assert listed() == (ids, False)
    assert listed(status="received") == (ids[2:], False)
    assert listed(limit=2) == (ids[:2], True)
    assert listed(limit=2, after=ids[1]) == (ids[2:], False)
    assert running.client("ben-key").get("/v1/feedback").json()["data"] == []
    assert len(running.client("root-key").get("/v1/feedback").json()["data"]) == 3
    refused = client.get("/v1/feedback", params={"status": "lost"})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "status"


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_a_listing_goes_on_behind_what_has_moved_on_meanwhile(running: Running, order: str) -> None:
    client = running.client()
    ids = [
        client.post("/v1/feedback", json=correction(ask(running, f"question {i}"))).json()["id"]
        for i in range(4)
    ]

    def page(after: str | None) -> tuple[list[str], bool]:
        query = {"status": "received", "limit": "2", "order": order} | ({"after": after} if after else {})
        found = client.get("/v1/feedback", params=query).json()
        return [one["id"] for one in found["data"]], found["has_more"]

    expected = ids if order == "asc" else ids[::-1]
    assert page(None) == (expected[:2], True)
    client.delete(f"/v1/feedback/{expected[1]}")
    assert page(expected[1]) == (expected[2:], False)
    client.delete(f"/v1/feedback/{expected[1]}?erase=true")
    assert page(expected[1]) == (expected[2:], False)
    assert page("fb-nothing") == ([], False), "so that a listing ends"


def test_withdrawn_feedback_is_left_out(running: Running) -> None:
    client = running.client()
    sent = client.post("/v1/feedback", json=correction(ask(running))).json()
    path = f"/v1/feedback/{sent['id']}"
    assert running.client("ben-key").delete(path).status_code == 404
    assert client.delete(path).json()["status"] == "withdrawn"
    assert client.get(path).json()["status"] == "withdrawn"
    assert running.log.payloads(FeedbackWithdrawn) == [FeedbackWithdrawn(feedback_id=sent["id"], by="ann")]
    keys = {r.partition_key for r in running.log.read({})[0] if r.stream == "feedback"}
    assert len(keys) == 1, "both in one partition, so that every reader sees them in this order"


# --- preview -----------------------------------------------------------------------------------------


def test_a_preview_asks_the_base_with_the_feedback_in_its_context(running: Running) -> None:
    completion_id = ask(running, "What is it called?")
    body = correction(completion_id, check={"contains": "BRAMBLEwick"})
    found = running.client().post("/v1/feedback/preview", json=body).json()
    assert "Bramblewick." in found["text"]
    assert found["check_passed"] is True
    asked = running.vllm.requests[-1]
    assert (asked["model"], asked["temperature"]) == ("apprentice@000000", 0.0)
    assert "What is it called?" in asked["messages"][-1]["content"]
    assert given(running) == []


def test_a_preview_of_a_demonstration_needs_no_completion(running: Running) -> None:
    asked = {"role": "user", "content": "q?"}
    body = {"kind": "demonstration", "messages": [asked], "text": "a!"}
    found = running.client().post("/v1/feedback/preview", json=body).json()
    assert found["check_passed"] is None
    shown = [asked, {"role": "assistant", "content": "a!"}]
    assert running.vllm.requests[-1]["messages"] == [*shown, *shown, asked]


def test_what_has_no_teacher_cannot_be_previewed(running: Running) -> None:
    rating = {"completion_id": ask(running), "kind": "rating", "value": 1}
    refused = running.client().post("/v1/feedback/preview", json=rating)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "nothing_to_preview")
    unknown = running.gateway.receipts.mint("chat", "0" * 32, "ann", "f" * 16)
    refused = running.client().post("/v1/feedback/preview", json=correction(unknown))
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "completion_unknown")


def test_servers_with_different_secrets_are_told_so(running: Running) -> None:
    completion_id = ask(running)
    running.gateway.receipts = Receipts(b"another secret, of another server")
    feedback = {"completion_id": completion_id, "kind": "correction", "text": "x"}
    refused = running.client().post("/v1/feedback", json=feedback)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "receipt_secret_differs")
    assert "[server] secret" in refused.json()["error"]["hint"]
    strangers = running.client("ben-key").post("/v1/feedback", json=feedback)
    assert strangers.json()["error"]["code"] == "completion_not_found"


def test_feedback_is_listed_by_completion_newest_first_and_ones_own(running: Running) -> None:
    first, second = ask(running, "one"), ask(running, "two")
    sent = [
        running.client().post("/v1/feedback", json=correction(id_, check={"contains": "wick"})).json()["id"]
        for id_ in (first, second)
    ]

    def listed(query: str, key: str = "ann-key") -> list[str]:
        return [one["id"] for one in running.client(key).get(f"/v1/feedback?{query}").json()["data"]]

    assert listed(f"completion_id={second}") == [sent[1]]
    assert listed("order=desc") == sent[::-1]
    assert listed(f"order=desc&after={sent[1]}") == [sent[0]]
    assert listed("", "root-key") == sent
    assert listed("mine=true", "root-key") == []
    assert running.client().get(f"/v1/feedback/{sent[0]}").json()["check"] == {"contains": "wick"}
