"""Who may call what: keys of the log and of the configuration, their scopes, and how often."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from buffer.client import Buffer
from buffer.journal import Journal
from buffer.records import KeyAdded, KeyRevoked, LearnerReported, Payload
from buffer.view import View
from server.__main__ import http_server
from server.callers import Callers
from server.identity import Token, digest_of
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


class Start:
    """A server's start on a state of its own: HTTP is up, and how far the log is read is up to the test."""

    def __init__(self, running: Running, state: Path, *payloads: Payload) -> None:
        self._running, self._gateway, self._state = running, running.gateway, state
        self._running.stop_following()
        self._before = self._gateway.buffer
        self._open()
        self._gateway.buffer.write(payloads).result()

    def _open(self) -> None:
        log = Journal(self._state / "journal.db")
        self._gateway.buffer = Buffer(log, View(self._state / "server" / "view.db"))
        self._gateway.behind = "the log has not been read yet"
        self._gateway.callers = Callers(self._gateway)

    def read_one(self) -> None:
        """Of the log's records."""
        log, view = self._gateway.buffer.log, self._gateway.buffer.view
        view.apply(*log.read(view.positions(), limit=1))

    def read_all(self) -> None:
        """As the start does that ends well."""
        self._gateway.buffer.start()
        self._gateway.behind = None

    def again(self) -> None:
        """Another process, as after a crash; this time the log is away."""
        self._gateway.buffer.close()
        self._open()

    def close(self) -> None:
        self._gateway.buffer.close()
        self._gateway.buffer = self._before

    def asked(self, key: str, path: str = "/v1/models") -> tuple[int, str]:
        """What a call with this key gets: its status, and the code of a refusal."""
        reply = self._running.client(key).get(path)
        return reply.status_code, "" if reply.status_code == 200 else code(reply)


UNKNOWN, WRONG = (503, "keys_unknown"), (401, "invalid_api_key")
WAITS = LearnerReported(state="waiting", why="x")


@pytest.fixture
def starts(open_to_this_machine: Running, tmp_path: Path) -> Iterator[Callable[..., Start]]:
    """A start of a server without [server.keys], given the payloads of its log."""
    with ExitStack() as stack:

        def start(*payloads: Payload) -> Start:
            made = Start(open_to_this_machine, tmp_path / "state", *payloads)
            stack.callback(made.close)
            return made

        yield start


def test_before_the_log_is_read_nobody_is_trusted_without_a_key_of_the_settings(
    starts: Callable[..., Start], open_to_this_machine: Running
) -> None:
    start, client = starts(), open_to_this_machine.client()
    for reply in (client.get("/v1/models"), client.post("/v1/feedback", json=TAUGHT), client.get("/metrics")):
        assert (reply.status_code, code(reply)) == UNKNOWN
        assert reply.headers["retry-after"]
    assert client.get("/healthz").status_code == 200
    start.read_all()
    assert start.asked("whatever") == (200, "")


def test_while_the_view_is_built_no_key_of_the_log_counts_and_none_is_wrong(
    starts: Callable[..., Start], open_to_this_machine: Running
) -> None:
    """One that was read may be revoked in what is not, and one that is unknown may be added there."""
    revoked = KeyRevoked(principal="mal", by="test")
    start = starts(key_added("mal", "admin"), WAITS, revoked, key_added("cay", "feedback"))
    token = open_to_this_machine.gateway.receipts.token(Token("chatcmpl-1", "cay", 2**40))
    for _ in range(3):
        start.read_one()
        assert {start.asked(key) for key in ("mal-key", "cay-key", token)} == {UNKNOWN}
    assert {start.asked(f"guess-{number}") for number in range(WRONG_KEYS + 1)} == {UNKNOWN}
    start.read_all()
    assert (start.asked("mal-key"), start.asked("cay-key")) == (WRONG, (200, ""))
    assert start.asked(token) == (403, "token_not_enough"), "it is known again"


def test_a_server_that_died_while_the_view_was_built_leaves_nothing_to_go_by(
    starts: Callable[..., Start],
) -> None:
    start = starts(WAITS, key_added("cay", "infer"), KeyRevoked(principal="cay", by="test"))
    for _ in range(3):  # the last time it died at the log's end, before it knew that
        start.read_one()
        start.again()
        assert {start.asked("cay-key"), start.asked("whatever")} == {UNKNOWN}


def test_where_the_log_is_away_what_an_earlier_server_read_of_it_counts(starts: Callable[..., Start]) -> None:
    start = starts(key_added("cay", "infer"))
    start.read_all()
    start.again()
    assert (start.asked("cay-key"), start.asked("whatever")) == ((200, ""), WRONG)


def test_where_the_log_is_away_and_an_earlier_server_read_of_no_key_this_machine_is_trusted(
    starts: Callable[..., Start],
) -> None:
    start = starts(WAITS)
    start.read_all()
    start.again()
    assert start.asked("whatever") == (200, "")


def test_while_the_view_of_another_log_is_built_anew_this_machine_is_not_trusted(
    starts: Callable[..., Start], open_to_this_machine: Running
) -> None:
    start = starts(WAITS)
    start.read_all()
    start.again()
    open_to_this_machine.gateway.buffer.view.forget()  # as the start does that finds this out
    assert start.asked("whatever") == UNKNOWN


def test_keys_of_the_settings_count_before_the_log_is_read(running: Running, tmp_path: Path) -> None:
    start = Start(running, tmp_path / "state", key_added("cay", "infer"))
    assert (start.asked("ann-key"), start.asked("cay-key")) == ((200, ""), UNKNOWN)
    start.read_all()
    assert (start.asked("ann-key"), start.asked("cay-key")) == ((200, ""), (200, ""))
    assert start.asked("wrong") == WRONG
    start.close()


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
