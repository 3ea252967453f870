"""Who may call what: keys of the log and of the configuration, their scopes, and how often."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from buffer.records import KeyAdded, KeyRevoked, Payload
from server.__main__ import http_server
from server.callers import Callers
from server.identity import digest_of
from server.limits import WRONG_KEYS
from tests.server.running import KEYS, Running, hashed
from tests.server.stub_policies import StubPolicies

ASKED = {"model": "apprentice", "messages": [{"role": "user", "content": "x"}]}
TAUGHT = {"kind": "demonstration", "messages": ASKED["messages"], "text": "y"}

OPENED: dict[str, list[tuple[str, str]]] = {
    "": [("GET", "/v1/models"), ("GET", "/v1/learning"), ("GET", "/v1/policies"), ("GET", "/v1/policies/0"),
         ("GET", "/v1/overview"), ("GET", "/metrics")],
    "infer": [("POST", "/v1/chat/completions"), ("POST", "/v1/completions"), ("GET", "/v1/chat/completions"),
              ("GET", "/v1/chat/completions/x"), ("DELETE", "/v1/chat/completions/x")],
    "feedback": [("POST", "/v1/feedback"), ("POST", "/v1/feedback/preview"), ("POST", "/v1/feedback/tokens"),
                 ("GET", "/v1/feedback"), ("GET", "/v1/feedback/x"), ("DELETE", "/v1/feedback/x"),
                 ("GET", "/v1/feedback/x/explanation"),
                 ("GET", "/v1/chat/completions"), ("GET", "/v1/chat/completions/x")],
    "learn": [("POST", "/v1/learning/rounds"), ("POST", "/v1/learning/pause"),
              ("POST", "/v1/learning/resume")],
    "admin": [("POST", "/v1/policies/rollback"), ("POST", "/v1/policies/9/promote"),
              ("GET", "/v1/principals/x"), ("DELETE", "/v1/principals/x")],
}  # fmt: skip
"""What each scope opens, beside what every key does."""
ROUTES = sorted({route for routes in OPENED.values() for route in routes})


@pytest.fixture
def open_to_this_machine(tmp_path: Path) -> Any:
    started = Running(tmp_path, StubPolicies)
    yield started
    started.stop()


def key_added(name: str, *scopes: str) -> KeyAdded:
    digest = digest_of(f"{name}-key").hex()
    return KeyAdded(principal=name, digest=digest, scopes=list(scopes), by="test")


def decide(running: Running, *payloads: Payload) -> None:
    """Write to the log, and wait until the view has it."""
    before = running.gateway.buffer.view.keys()
    running.run(running.gateway.write(payloads))
    running.run(running.gateway.until(lambda: running.gateway.buffer.view.keys() is not before))


def code(reply: httpx.Response) -> str:
    return str(reply.json()["error"]["code"])


@pytest.mark.parametrize("scope", OPENED)
def test_a_scope_opens_what_it_says_and_nothing_else(running: Running, scope: str) -> None:
    decide(running, key_added("cay", *([scope] if scope else [])))
    client = running.client("cay-key")
    for method, path in ROUTES:
        reply = client.request(method, path)
        opened = scope == "admin" or (method, path) in OPENED[scope] or (method, path) in OPENED[""]
        assert opened == (reply.status_code != 403), (method, path, reply.text)
        if not opened:
            assert code(reply) == "missing_scope"
            assert "apprentice keys add cay" in reply.json()["error"]["hint"]


def test_the_missing_scope_is_named_with_what_grants_it(running: Running) -> None:
    decide(running, key_added("cay", "infer"))
    for key, hint in (
        ("cay-key", "apprentice keys revoke cay`, then `apprentice keys add cay --scope infer --scope learn"),
        ("ann-key", "list ann in [server] admins"),
    ):
        refused = running.client(key).post("/v1/learning/pause")
        assert "lacks the scope learn" in refused.json()["error"]["message"]
        assert hint in refused.json()["error"]["hint"]


def test_a_key_counts_from_its_record_to_its_revocation(running: Running) -> None:
    client = running.client("cay-key")
    assert client.get("/v1/models").status_code == 401
    decide(running, key_added("cay", "infer"))
    assert client.post("/v1/chat/completions", json=ASKED).status_code == 200
    decide(running, KeyRevoked(principal="cay", by="test"))
    assert (client.get("/v1/models").status_code, client.get("/metrics").status_code) == (401, 401)
    assert running.client().get("/v1/models").status_code == 200, "that of the configuration stays"


def test_a_configured_name_cannot_be_taken_over_through_the_log(running: Running) -> None:
    taken = KeyAdded(principal="ann", digest=digest_of("thief").hex(), scopes=["admin"], by="test")
    decide(running, taken)
    assert running.client("thief").get("/v1/models").status_code == 401
    assert running.client("ann-key").get("/v1/models").status_code == 200


def test_the_first_key_ends_the_trust_in_this_machine_and_revoking_it_does_not_bring_it_back(
    open_to_this_machine: Running,
) -> None:
    running = open_to_this_machine
    client = running.client("whatever")
    assert client.get("/v1/models").status_code == client.get("/metrics").status_code == 200
    decide(running, key_added("cay", "infer"))
    assert client.get("/v1/models").status_code == client.get("/metrics").status_code == 401
    assert running.client("cay-key").get("/v1/models").status_code == 200
    decide(running, KeyRevoked(principal="cay", by="test"))
    for key in ("whatever", "cay-key"):
        refused = running.client(key).get("/v1/models")
        assert (refused.status_code, code(refused)) == (401, "invalid_api_key")


def test_before_the_log_is_read_nobody_is_trusted_without_a_known_key(open_to_this_machine: Running) -> None:
    running = open_to_this_machine
    running.gateway.behind = "the log has not been read yet"
    client = running.client()
    for reply in (client.get("/v1/models"), client.post("/v1/feedback", json=TAUGHT), client.get("/metrics")):
        assert (reply.status_code, code(reply)) == (503, "keys_unknown")
        assert reply.headers["retry-after"]
    assert running.client().get("/healthz").status_code == 200


def test_where_the_log_is_away_what_an_earlier_server_read_of_it_counts(
    open_to_this_machine: Running,
) -> None:
    running = open_to_this_machine
    running.gateway.behind = "the log cannot be read"
    running.gateway.callers = Callers(running.gateway)  # as of a server that starts on this view
    assert running.client().get("/v1/models").status_code == 200
    decide(running, key_added("cay", "infer"))
    assert running.client().get("/v1/models").status_code == 401


def test_before_the_log_is_read_the_keys_that_are_known_count(running: Running) -> None:
    running.gateway.behind = "the log cannot be read"
    assert running.client().get("/v1/models").status_code == 200
    assert running.client("wrong").get("/v1/models").status_code == 401


def test_a_server_that_others_can_reach_trusts_no_host_header(tmp_path: Path) -> None:
    """As after its log, with its keys, was lost while it ran."""
    running = Running(tmp_path, StubPolicies, host="0.0.0.0")  # noqa: S104
    refused = running.client("whatever").get("/v1/models", headers={"host": "127.0.0.1"})
    assert (refused.status_code, code(refused)) == (401, "invalid_api_key")
    running.stop()


# --- how often ---------------------------------------------------------------------------------------


def test_requests_of_a_principal_are_limited_and_others_are_not_held_up(tmp_path: Path) -> None:
    running = Running(tmp_path, StubPolicies, keys=hashed(KEYS), requests_per_minute=3)
    client = running.client()
    assert [client.get("/v1/models").status_code for _ in range(3)] == [200] * 3
    refused = client.post("/v1/chat/completions", json=ASKED)
    assert (refused.status_code, code(refused)) == (429, "rate_limited")
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    for path in ("/healthz", "/readyz", "/metrics", "/dashboard"):
        assert client.get(path).status_code == 200
    assert running.client("ben-key").get("/v1/models").status_code == 200
    counted = client.get("/metrics").text
    assert 'apprentice_refusals_total{reason="rate_limited"} 1.0' in counted.splitlines()
    running.stop()


def test_after_many_wrong_keys_an_address_has_to_wait_and_valid_ones_come_through(running: Running) -> None:
    """Behind a load balancer all callers have its address."""
    client, path = running.client(), "/v1/chat/completions"
    completion_id = client.post(path, json=ASKED).json()["id"]
    token = client.post("/v1/feedback/tokens", json={"completion_id": completion_id}).json()["token"]
    for number in range(WRONG_KEYS):
        wrong = client.get("/v1/models", headers={"authorization": f"Bearer guess-{number}"})
        assert wrong.status_code == 401
    refused = client.get("/v1/models", headers={"authorization": "Bearer guess"})
    assert (refused.status_code, code(refused)) == (429, "too_many_wrong_keys")
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert client.get("/v1/models").status_code == 200
    assert running.client(token).get(f"{path}/{completion_id}").status_code == 200
    assert httpx.get(f"{running.url}/v1/models").status_code == 401


@pytest.mark.parametrize(("trusted", "others"), [("10.0.0.0/8", 401), ("127.0.0.1", 429)])
def test_whom_a_trusted_load_balancer_calls_for_is_told_apart(
    running: Running, monkeypatch: pytest.MonkeyPatch, trusted: str, others: int
) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", trusted)
    served = http_server(running.gateway).config
    served.load()
    transport = httpx.ASGITransport(served.loaded_app, client=("10.0.0.9", 4711))

    async def guess(key: str, caller: str) -> int:
        headers = {"authorization": f"Bearer {key}", "x-forwarded-for": caller}
        async with httpx.AsyncClient(transport=transport, base_url="http://balancer") as client:
            return (await client.get("/v1/models", headers=headers)).status_code

    for number in range(WRONG_KEYS):
        assert running.run(guess(f"guess-{number}", "203.0.113.5")) == 401
    assert running.run(guess("guess", "203.0.113.5")) == 429
    assert running.run(guess("guess", "203.0.113.6")) == others


def test_a_program_that_repeats_its_old_key_or_sends_none_holds_up_nobody(running: Running) -> None:
    client = running.client("old-key")
    for _ in range(WRONG_KEYS + 1):
        assert client.get("/v1/models").status_code == 401
        assert httpx.get(f"{running.url}/v1/models").status_code == 401
    assert running.client().get("/v1/models").status_code == 200
