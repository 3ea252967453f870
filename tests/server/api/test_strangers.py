"""Whose key is good, but whose data it is not: every route, with the ids of somebody else."""

import json
from typing import Any

import pytest

from buffer.records import FeedbackWithdrawn
from server.api.app import create_app
from tests.server.api.test_next_turn import CORRECTED, chat, given
from tests.server.running import Running

SECRET = "the harbour of Quennet is called Bramblewick"
OWN = {
    ("GET", "/v1/chat/completions"), ("GET", "/v1/feedback"), ("GET", "/v1/models"), ("GET", "/v1/learning"),
    ("GET", "/v1/policies"), ("GET", "/v1/overview"), ("GET", "/metrics"),
    ("GET", "/healthz"), ("GET", "/readyz"),
}  # fmt: skip
"""Routes that answer everybody, with what is one's own or nobody's."""


def ask(running: Running, key: str, text: str) -> str:
    messages: Any = [{"role": "user", "content": text}]
    return str(running.openai(key).chat.completions.create(model="apprentice", messages=messages).id)


def bodies(completion_id: str) -> list[dict[str, Any]]:
    return [
        {"completion_id": completion_id, "kind": "correction", "text": "x"},
        {"completion_id": completion_id, "kind": "instruction", "text": "x"},
        {"completion_id": completion_id, "kind": "rating", "value": 1},
        {"completion_id": completion_id},
    ]


def test_a_foreign_key_sees_and_changes_nothing(running: Running) -> None:
    completion_id = ask(running, "ann-key", SECRET)
    running.openai("ann-key").completions.create(model="apprentice", prompt=SECRET)
    ann = running.client("ann-key")
    feedback_id = ann.post(
        "/v1/feedback",
        json={"completion_id": completion_id, "kind": "correction", "text": SECRET},
        headers={"idempotency-key": "k"},
    ).json()["id"]
    examples = {"completion_id": completion_id, "feedback_id": feedback_id, "name": "ann", "version": "1"}
    ben = running.client("ben-key")
    tried = set()
    for path, methods in create_app(running.gateway).openapi()["paths"].items():
        for method in map(str.upper, methods):
            tried.add((method, path))
            if (method, path) in OWN:
                told = ben.get(f"{path}?after={completion_id}" if path != "/metrics" else path)
                assert told.status_code in (200, 400), (path, told.text)
                assert feedback_id not in told.text
            elif (method, path) in (("POST", "/v1/chat/completions"), ("POST", "/v1/completions")):
                continue  # asked below
            elif method == "POST" and path.startswith("/v1/feedback"):
                for body in bodies(completion_id):
                    told = ben.post(path, json=body, headers={"idempotency-key": "k"})
                    assert told.status_code in (400, 404), (path, body, told.text)
                    assert SECRET not in told.text
            else:
                told = ben.request(method, path.format(**examples))
                assert told.status_code in (401, 403, 404), (method, path, told.text)
            assert SECRET not in told.text, (method, path)
    assert len(tried) > 25
    assert [one.principal for one in given(running)] == ["ann"]
    assert running.log.payloads(FeedbackWithdrawn) == []
    assert SECRET in ann.get(f"/v1/chat/completions/{completion_id}").text
    assert ann.get(f"/v1/feedback/{feedback_id}").json()["text"] == SECRET


def test_a_next_turn_corrects_no_answer_of_somebody_else(running: Running) -> None:
    """Although it repeats the whole conversation, under the same name."""
    named: Any = {"metadata": {"conversation_id": "c"}}
    chat(running, CORRECTED[:1], **named)
    chat(running, CORRECTED, "ben-key", **named)
    assert given(running) == []
    chat(running, CORRECTED, **named)
    assert [one.principal for one in given(running)] == ["ann"]


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/feedback"])
def test_lists_show_ones_own(running: Running, route: str) -> None:
    for key in ("ann-key", "ben-key"):
        id_ = ask(running, key, f"{key} asked")
        body = {"completion_id": id_, "kind": "correction", "text": f"{key} taught"}
        assert running.client(key).post("/v1/feedback", json=body).status_code == 202
    told = json.dumps(running.client("ben-key").get(route).json())
    assert "ben-key" in told and "ann-key" not in told
    everything = json.dumps(running.client("root-key").get(route).json())
    assert "ben-key" in everything and "ann-key" in everything
