from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from buffer.records import LearningSwitched, Record
from server.api.app import create_app
from server.metrics import without_hidden
from tests.server.running import KEYS, Running, hashed
from tests.server.stub_policies import StubPolicies

ASKED = {"model": "apprentice", "messages": [{"role": "user", "content": "x"}]}


def error_of(response: Any) -> dict[str, Any]:
    """Every error has OpenAI's shape and a hint."""
    (error,) = response.json().values()
    assert set(error) == {"message", "type", "param", "code", "hint"}
    assert error["message"] and error["code"] and error["type"]
    return dict(error)


GUARDED = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("GET", "/v1/chat/completions"),
    ("GET", "/v1/chat/completions/x"),
    ("GET", "/v1/chat/completions/x/messages"),
    ("GET", "/v1/principals/x"),
    ("DELETE", "/v1/principals/x"),
    ("DELETE", "/v1/chat/completions/x"),
    ("GET", "/v1/models"),
    ("POST", "/v1/feedback"),
    ("POST", "/v1/feedback/preview"),
    ("POST", "/v1/feedback/tokens"),
    ("GET", "/v1/feedback"),
    ("GET", "/v1/feedback/x"),
    ("GET", "/v1/feedback/x/explanation"),
    ("DELETE", "/v1/feedback/x"),
    ("GET", "/v1/learning"),
    ("GET", "/v1/overview"),
    ("POST", "/v1/learning/rounds"),
    ("POST", "/v1/learning/pause"),
    ("POST", "/v1/learning/resume"),
    ("GET", "/v1/policies"),
    ("GET", "/v1/policies/1"),
    ("POST", "/v1/policies/1/promote"),
    ("POST", "/v1/policies/rollback"),
    ("GET", "/v1/models/x"),
]


@pytest.mark.parametrize(("method", "path"), GUARDED)
def test_strangers_get_nowhere(running: Running, method: str, path: str) -> None:
    refused = running.client("wrong-key").request(method, path)
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == "Bearer"
    assert error_of(refused)["code"] == "invalid_api_key"


def test_every_route_is_tried_by_a_stranger(running: Running) -> None:
    examples = {"{completion_id}": "x", "{feedback_id}": "x", "{name}": "x", "{version}": "1"}
    found = set()
    for path, methods in create_app(running.gateway).openapi()["paths"].items():
        for placeholder, example in examples.items():
            path = path.replace(placeholder, example)
        found |= {(method.upper(), path) for method in methods if path.startswith("/v1/")}
    assert found == set(GUARDED)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/feedback",
        "/v1/feedback/preview",
        "/v1/feedback/tokens",
    ],
)
@pytest.mark.parametrize("body", [b"", b"{", b"[1,", b'{"a": NaN}', b'"\\ud800"', b"\xff", b"[" * 5000])
def test_bad_json_is_refused(running: Running, path: str, body: bytes) -> None:
    refused = running.client().post(path, content=body)
    assert refused.status_code == 400
    assert error_of(refused)["code"] == "invalid_json"


@pytest.mark.parametrize("path", ["/v1/learning/pause", "/v1/learning/rounds"])
def test_bad_json_is_refused_where_the_framework_reads_it(running: Running, path: str) -> None:
    refused = running.client("root-key").post(
        path, content=b"{", headers={"content-type": "application/json"}
    )
    assert refused.status_code == 400
    assert error_of(refused)["code"] == "invalid_json"


def test_a_body_above_the_limit_is_refused_announced_or_not(running: Running) -> None:
    big = b'{"x": "' + b"x" * 300_000 + b'"}'

    def piecemeal() -> Any:
        yield from (big[i : i + 50_000] for i in range(0, len(big), 50_000))

    for times, content in enumerate((big, piecemeal()), start=1):
        refused = running.client().post("/v1/chat/completions", content=content)
        assert refused.status_code == 413
        assert error_of(refused)["code"] == "body_too_large"
        counted = running.client().get("/metrics").text.splitlines()
        assert f'apprentice_refusals_total{{reason="body_too_large"}} {times}.0' in counted
    assert running.client().post("/v1/chat/completions", json=ASKED).status_code == 200


PAGE = {"origin": "https://app.example"}


def test_pages_of_the_listed_sites_may_call_the_api_and_read_refusals(tmp_path: Path) -> None:
    running = Running(
        tmp_path, StubPolicies, keys=hashed(KEYS), browser_origins=[PAGE["origin"]], max_body_bytes=1000
    )
    client, path = running.client(), "/v1/chat/completions"
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,x-any"}
    allowed = client.options(path, headers=PAGE | asks)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == PAGE["origin"]
    assert allowed.headers["access-control-allow-headers"] == "authorization,x-any"
    elsewhere = {"origin": "https://elsewhere.example"}
    assert "access-control-allow-origin" not in client.options(path, headers=elsewhere | asks).headers
    answers = [
        client.post(path, json=ASKED, headers=PAGE),
        client.post(path, content=b"x" * 2000, headers=PAGE),
        client.post(path, content=iter([b"x" * 2000]), headers=PAGE),
        running.client("wrong").get("/v1/models", headers=PAGE),
        client.get("/v1/nothing", headers=PAGE),
    ]
    assert [answer.status_code for answer in answers] == [200, 413, 413, 401, 404]
    for answer in answers:
        assert answer.headers["access-control-allow-origin"] == PAGE["origin"]
        assert answer.status_code == 200 or error_of(answer)["code"]
    assert "x-policy" in answers[0].headers["access-control-expose-headers"]
    for other in (client.post(path, json=ASKED, headers=elsewhere), client.get("/healthz", headers=PAGE)):
        assert other.status_code == 200
        assert "access-control-allow-origin" not in other.headers
    running.stop()


def test_no_page_of_another_site_may_call_where_none_is_listed(running: Running) -> None:
    client = running.client()
    asks = {"access-control-request-method": "POST"}
    assert client.options("/v1/chat/completions", headers=PAGE | asks).status_code == 405
    assert "access-control-allow-origin" not in client.get("/v1/models", headers=PAGE).headers


def test_unknown_routes_and_methods_have_the_same_shape(running: Running) -> None:
    client = running.client()
    assert error_of(client.get("/v1/nothing"))["code"] == "no_such_route"
    wrong = client.put("/v1/models")
    assert (wrong.status_code, error_of(wrong)["code"]) == (405, "wrong_method")
    assert wrong.headers["allow"]


def test_a_mistake_of_the_server_is_told_without_its_details(running: Running) -> None:
    running.policies.lease = None
    refused = running.client().post("/v1/chat/completions", json=ASKED)
    assert refused.status_code == 500
    error = error_of(refused)
    assert error["code"] == "internal_error"
    assert "NoneType" not in refused.text


def test_models_are_the_alias_the_base_and_what_is_loaded(running: Running) -> None:
    running.stop_following()
    running.policies.resident |= {3}
    found = running.openai().models.list()
    assert [m.id for m in found] == [
        "apprentice", "apprentice@base", "apprentice@000000", "apprentice@000003",
    ]  # fmt: skip
    assert running.openai().models.retrieve("apprentice@000003").id == "apprentice@000003"
    assert running.client().get("/v1/models/gpt-4").status_code == 404


def test_health_is_the_process_and_readiness_is_everything(running: Running) -> None:
    client = running.client("nobody")
    assert client.get("/healthz").status_code == 200
    assert client.get("/readyz").json() == {"status": "ready", "policy": "apprentice@000000"}
    running.gateway.behind = "the log cannot be read"
    refused = client.get("/readyz")
    assert (refused.status_code, error_of(refused)["message"]) == (503, "the log cannot be read")
    running.gateway.behind = None
    running.run(running.engine.stop())
    refused = client.get("/readyz")
    assert refused.status_code == 503
    assert "retry-after" in refused.headers
    assert client.get("/healthz").status_code == 200


def test_the_api_describes_itself(running: Running) -> None:
    client = running.client("nobody")
    paths = client.get("/openapi.json").json()["paths"]
    assert "text" in str(paths["/v1/feedback"]["post"]["requestBody"])
    assert client.get("/docs").status_code == 200


def test_metrics_are_ours_and_vllms_without_the_one_that_grows(running: Running) -> None:
    client = running.client()
    completion_id = client.post("/v1/chat/completions", json=ASKED).json()["id"]
    feedback = {"completion_id": completion_id, "kind": "correction", "text": "y"}
    assert client.post("/v1/feedback", json=feedback).status_code == 202
    client.post("/v1/feedback", json={**feedback, "text": " "})
    client.post("/v1/chat/completions", json={**ASKED, "n": 99})
    text = client.get("/metrics").text
    for line in (
        'apprentice_requests_total{outcome="ok",route="chat"} 1.0',
        'apprentice_captures_total{status="complete"} 1.0',
        'apprentice_feedback_total{kind="correction"} 1.0',
        'apprentice_feedback_status{status="received"} 1.0',
        'apprentice_refusals_total{reason="invalid_request"} 2.0',
        "apprentice_live_policy_version 0.0",
        "apprentice_engine_ready 1.0",
        "apprentice_log_append_seconds_count 2.0",
        "apprentice_log_pending_records 0.0",
        "apprentice_log_pending_seconds 0.0",
        "apprentice_log_set_aside_records 0.0",
        "apprentice_log_unreadable_messages_total 0.0",
        'vllm:num_requests_running{model_name="x"} 0.0',
    ):
        assert line in text.splitlines()
    assert "apprentice_view_lag_records" in text
    assert "lora_requests_info" not in text
    assert "@0000" not in text, "a version is never a label"


def test_metrics_are_there_while_the_engine_is_not(running: Running) -> None:
    running.run(running.engine.stop())
    text = running.client().get("/metrics").text
    assert "apprentice_engine_ready 0.0" in text


def test_records_of_a_newer_release_are_counted_by_type(running: Running) -> None:
    newer = Record("rounds", "apprentice.dream.had.v1", "n-1", datetime.now(UTC), b"{}")
    known = running.gateway.record(LearningSwitched(paused=True, by="root"), "")
    running.run(running.gateway.append([newer, known]))
    running.run(running.gateway.until(lambda: running.gateway.buffer.view.paused() is not None))
    text = running.client().get("/metrics").text
    assert 'apprentice_records_passed_over{type="apprentice.dream.had.v1"} 1.0' in text.splitlines()


def test_only_the_hidden_family_is_taken_out() -> None:
    kept = "# HELP vllm:x X.\nvllm:x 1.0\n"
    hidden = (
        "# HELP vllm:lora_requests_info Info.\n# TYPE vllm:lora_requests_info gauge\n"
        'vllm:lora_requests_info{a="b"} 1.0\n'
    )
    assert without_hidden(hidden + kept + hidden) == kept
