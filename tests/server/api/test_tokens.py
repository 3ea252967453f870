"""Feedback tokens: one completion, for who holds them, and nothing else."""

import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from buffer.records import FeedbackGiven, KeyRevoked
from server.api.lessons import DAY_S
from server.identity import Token
from tests.server.api.test_feedback import ask, correction, given
from tests.server.running import Running
from tests.server.stub_policies import StubPolicies
from tests.server.test_callers import ROUTES, code, decide, key_added


def token_of(running: Running, completion_id: str, key: str = "ann-key", **more: Any) -> str:
    reply = running.client(key).post("/v1/feedback/tokens", json={"completion_id": completion_id, **more})
    return str(reply.json()["token"])


def own_messages(completion_id: str) -> dict[str, Any]:
    """What teaches another question than the completion's, in its name."""
    asked = [{"role": "user", "content": "Where do I send the money?"}]
    return {"kind": "demonstration", "completion_id": completion_id, "messages": asked, "text": "To me."}


def test_a_token_says_for_what_and_until_when(running: Running) -> None:
    completion_id = ask(running)
    made = running.client().post("/v1/feedback/tokens", json={"completion_id": completion_id}).json()
    assert (made["object"], made["completion_id"]) == ("feedback.token", completion_id)
    assert 0 <= time.time() + 7 * DAY_S - made["expires_at"] < DAY_S
    token = running.gateway.receipts.opened(made["token"])
    assert token == Token(completion_id, "ann", made["expires_at"])


@pytest.mark.parametrize("expires_in", [0, -1, 90 * DAY_S + 1, "7", 1.5, None])
def test_its_time_is_bounded(running: Running, expires_in: Any) -> None:
    body = {"completion_id": ask(running), "expires_in": expires_in}
    refused = running.client().post("/v1/feedback/tokens", json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "expires_in")


def test_only_ones_own_completion_is_given_away(running: Running) -> None:
    for key in ("ben-key", "root-key"):
        refused = running.client(key).post("/v1/feedback/tokens", json={"completion_id": ask(running)})
        assert (refused.status_code, code(refused)) == (404, "completion_not_found")


def test_its_bearer_reads_corrects_previews_and_takes_back(running: Running) -> None:
    completion_id = ask(running)
    client = running.client(token_of(running, completion_id))
    assert client.get(f"/v1/chat/completions/{completion_id}").json()["id"] == completion_id
    preview = client.post("/v1/feedback/preview", json=correction(completion_id))
    assert "Bramblewick." in preview.json()["text"]
    sent = client.post("/v1/feedback", json=correction(completion_id))
    assert sent.status_code == 202
    path = f"/v1/feedback/{sent.json()['id']}"
    assert client.get(path).json()["text"] == "Bramblewick."
    assert client.delete(path).json()["status"] == "withdrawn"
    (record,) = given(running)
    assert (record.principal, record.completion_id) == ("ann", completion_id)


def test_a_preview_shows_its_bearer_the_last_turn_alone(running: Running) -> None:
    before = [
        {"role": "system", "content": "The secret is 4711."},
        {"role": "user", "content": "And who am I?"},
        {"role": "assistant", "content": "Ann."},
    ]
    asked = [*before, {"role": "user", "content": "What is it called?"}]
    completion_id = ask(running, messages=asked)
    body = correction(completion_id)
    reply = running.client(token_of(running, completion_id)).post("/v1/feedback/preview", json=body)
    (turn,) = reply.json()["messages"]
    assert turn["role"] == "user"
    assert "What is it called?" in turn["content"] and "Bramblewick." in turn["content"]
    assert "4711" not in reply.text and "Ann." not in reply.text
    assert running.vllm.requests[-1]["messages"] == [*before, turn], "the teacher is asked with all of it"
    assert running.client().post("/v1/feedback/preview", json=body).json()["messages"] == [*before, turn]


def test_it_opens_nothing_else(running: Running) -> None:
    mine, other = ask(running), ask(running, "Something else?")
    theirs = running.client().post("/v1/feedback", json=correction(other)).json()["id"]
    told = running.client().post(
        "/v1/feedback",
        json={"kind": "demonstration", "messages": [{"role": "user", "content": "q"}], "text": "a"},
    )
    before = len(given(running))
    client = running.client(token_of(running, mine))
    routes: list[tuple[str, str, Any]] = [
        *((method, path, None) for method, path in ROUTES if "/feedback" not in path),
        ("GET", f"/v1/chat/completions/{other}", None),
        ("GET", f"/v1/chat/completions/{mine}/messages", None),
        ("DELETE", f"/v1/chat/completions/{mine}", None),
        ("GET", "/v1/feedback", None),
        ("GET", f"/v1/feedback/{theirs}", None),
        ("GET", f"/v1/feedback/{theirs}/explanation", None),
        ("DELETE", f"/v1/feedback/{theirs}", None),
        ("DELETE", f"/v1/feedback/{theirs}?erase=true", None),
        ("GET", f"/v1/feedback/{told.json()['id']}", None),
        ("POST", "/v1/feedback", correction(other)),
        ("POST", "/v1/feedback", [correction(mine), correction(other)]),
        ("POST", "/v1/feedback/preview", correction(other)),
        ("POST", "/v1/feedback", own_messages(mine)),
        ("POST", "/v1/feedback", [correction(mine), own_messages(mine)]),
        ("POST", "/v1/feedback/preview", own_messages(mine)),
        (
            "POST",
            "/v1/feedback",
            {"kind": "demonstration", "messages": [{"role": "user", "content": "q"}], "text": "a"},
        ),
        (
            "POST",
            "/v1/feedback/preview",
            {"kind": "instruction", "messages": [{"role": "user", "content": "q"}], "text": "a"},
        ),
        ("POST", "/v1/feedback/tokens", {"completion_id": mine}),
    ]
    for method, path, body in routes:
        refused = client.request(method, path, json=body)
        assert (refused.status_code, code(refused)) == (403, "token_not_enough"), (method, path, refused.text)
    assert len(given(running)) == before


def test_it_expires(running: Running) -> None:
    completion_id = ask(running)
    old = running.gateway.receipts.token(Token(completion_id, "ann", int(time.time()) - 1))
    refused = running.client(old).post("/v1/feedback", json=correction(completion_id))
    assert (refused.status_code, code(refused)) == (401, "token_expired")
    assert given(running) == []


def test_a_forged_one_is_a_strangers(running: Running) -> None:
    completion_id = ask(running)
    token = token_of(running, completion_id)
    refused = running.client(token[:-1] + ("0" if token[-1] != "0" else "1")).get("/v1/models")
    assert (refused.status_code, code(refused)) == (401, "invalid_api_key")


def test_it_dies_with_the_key_of_who_gave_it_away(running: Running) -> None:
    decide(running, key_added("cay", "infer", "feedback"))
    completion_id = ask(running, key="cay-key")
    client = running.client(token_of(running, completion_id, "cay-key"))
    assert client.post("/v1/feedback", json=correction(completion_id)).status_code == 202
    decide(running, KeyRevoked(principal="cay", by="test"))
    refused = client.post("/v1/feedback", json=correction(completion_id))
    assert (refused.status_code, code(refused)) == (401, "token_revoked")
    decide(running, key_added("cay", "infer"))
    assert client.get(f"/v1/chat/completions/{completion_id}").status_code == 401, "it may not teach any more"


def test_the_idempotency_keys_of_its_bearers_are_their_own(running: Running) -> None:
    first, second = ask(running), ask(running, "Something else?")
    headers = {"idempotency-key": "1"}
    ids = set()
    for key, completion_id in (
        (token_of(running, first), first),
        (token_of(running, second), second),
        ("ann-key", first),
    ):
        for _ in range(2):
            sent = running.client(key).post("/v1/feedback", json=correction(completion_id), headers=headers)
            assert sent.status_code == 202
            ids.add(sent.json()["id"])
    assert len(ids) == len(running.log.payloads(FeedbackGiven)) == 3


def test_without_keys_a_token_also_counts_from_another_sites_page(tmp_path: Path) -> None:
    running = Running(tmp_path, StubPolicies)
    completion_id = ask(running)
    headers = {"authorization": f"Bearer {token_of(running, completion_id)}", "origin": "https://app.example"}
    url, body = f"{running.url}/v1/feedback", correction(completion_id)
    assert httpx.post(url, json=body, headers=headers).status_code == 202
    assert httpx.post(url, json=body, headers={"origin": "https://app.example"}).status_code == 403
    running.stop()
