"""The webhook, with a real receiver that is down, slow, wrong, and back."""

import base64
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import pytest

from buffer.config import ConfigError, load, resolved
from buffer.records import AliasMoved, Release, RoundEnded, RoundPlanned
from buffer.rounds import Move, Round
from server.config import ServerConfig, WebhookConfig
from server.webhook import Event, Patience, Position, Webhook, body_of, events, signature
from tests.server.api.test_learning import planned, release, write
from tests.server.running import Running
from tests.server.test_fetch import wait_for
from tests.server.test_main import Processes, processes

__all__ = ["processes"]

SECRET = "whsec_" + base64.b64encode(bytes(32)).decode()
QUICK = Patience(attempt=0.5, first_pause=0.02, longest_pause=0.05, look=0.01)


class Receiver:
    """Takes what comes; `answers` holds what it says to the next requests, before 204 again."""

    def __init__(self, port: int = 0) -> None:
        self.answers: list[int] = []
        self.slow_s = 0.0
        self.got: list[tuple[dict[str, str], bytes]] = []
        """All attempts: headers and body."""
        self.taken: list[Any] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.got.append(({name.lower(): text for name, text in self.headers.items()}, body))
                time.sleep(outer.slow_s)
                status = outer.answers.pop(0) if outer.answers else 204
                if status == 204:
                    outer.taken.append(json.loads(body))
                self.send_response(status)
                if status == 307:
                    self.send_header("location", "/elsewhere")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/hook"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def told(self) -> list[str]:
        """What it took, by type and number."""
        return [
            f"{one['type'].removeprefix('apprentice.').removesuffix('.v1')} "
            f"{one['data'].get('round', one['data']['policy'])}"
            for one in self.taken
        ]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    one = Receiver()
    yield one
    one.close()


@pytest.fixture
def hooks(running: Running, tmp_path: Path) -> Iterator["Hooks"]:
    one = Hooks(running, tmp_path / "webhook.json")
    yield one
    one.stop()


class Hooks:
    """The running gateway's webhook, started and killed at will."""

    def __init__(self, running: Running, path: Path) -> None:
        self.running, self.path = running, path
        self._task: Future[None] | None = None

    def start(self, url: str, patience: Patience = QUICK) -> None:
        config = WebhookConfig.model_validate({"url": url, "secret": SECRET})
        self._task = self.running.start(Webhook(self.running.gateway, config, self.path, patience).run())
        wait_for(self.path.exists)

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def failures(self, reason: str) -> float:
        return self.metric("webhook_failures_total", reason=reason) or 0.0

    def metric(self, name: str, **labels: str) -> float | None:
        return self.running.gateway.metrics.registry.get_sample_value(f"apprentice_{name}", labels)


# --- what is told ------------------------------------------------------------------------------------


def ended(number: int, at: float, *, passes: bool = True) -> Round:
    plan = RoundPlanned(round=number, parent=0, lessons=[], seed=1, base="b" * 64, config={})
    made = Release(version=number, digest="d" * 64, directory=f"{number:06d}-{'d' * 12}") if passes else None
    end = RoundEnded(round=number, verdict="passed" if passes else "refused", release=made)
    return Round(plan, 0.0, end, at, f"r{number}")


def moved(epoch: int, version: int, at: float, why: Literal["release", "rollback"] = "release") -> Move:
    move = AliasMoved(alias="apprentice", version=version, epoch=epoch, why=why, by="root")
    return Move(move, f"m{epoch}", at)


def ids(found: list[Event]) -> list[str]:
    return [event.id for event in found]


def test_rounds_and_moves_are_told_by_time_from_any_position() -> None:
    rounds = [ended(1, 10), ended(2, 30, passes=False)]
    moves = [moved(0, 1, 20), moved(1, 0, 40, "rollback")]
    found = events(rounds, moves, Position())
    assert ids(found) == ["r1", "m0", "r2", "m1"]
    assert [event.type for event in found] == [
        "apprentice.round.ended.v1", "apprentice.policy.served.v1",
        "apprentice.round.ended.v1", "apprentice.policy.rolled_back.v1",
    ]  # fmt: skip
    for told, event in enumerate(found, 1):
        assert ids(events(rounds, moves, event.position)) == ["r1", "m0", "r2", "m1"][told:]


def test_a_policy_is_not_told_before_its_round_whatever_the_clocks_say() -> None:
    assert ids(events([ended(1, 50)], [moved(0, 1, 20)], Position())) == ["r1", "m0"]
    assert ids(events([], [moved(0, 1, 20)], Position())) == [], "its round has not been read yet"


def test_a_round_that_runs_is_not_told() -> None:
    assert events([Round(ended(1, 1).planned, 0.0, None, None)], [], Position()) == []


def test_what_is_signed_is_as_standard_webhooks_has_it() -> None:
    key = WebhookConfig.model_validate({"secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}).key
    signed = signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_the_body_is_a_cloudevent() -> None:
    told = json.loads(body_of(events([], [moved(0, 0, 1.5)], Position())[0], "apprentice"))
    assert told == {
        "specversion": "1.0", "id": "m0", "source": "/apprentice/apprentice",
        "type": "apprentice.policy.served.v1", "time": "1970-01-01T00:00:01.500Z",
        "datacontenttype": "application/json",
        "data": {"alias": "apprentice", "policy": 0, "why": "release", "by": "root"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"),
    [("url", "ftp://here/hook"), ("url", "hook"), ("secret", "whsec_c2hvcnQ="), ("secret", "not base64!")],
)
def test_a_webhook_that_cannot_work_is_a_wrong_setting(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"webhook.{key}"):
        load(ServerConfig, "server", env={f"APPRENTICE_SERVER_WEBHOOK_{key}".upper(): value})


def test_what_is_sent_must_be_signed_and_the_secret_is_not_shown() -> None:
    env = {"APPRENTICE_SERVER_WEBHOOK_URL": "https://example.org/hook"}
    with pytest.raises(ConfigError, match="secret is needed"):
        load(ServerConfig, "server", env=env)
    config = load(ServerConfig, "server", env={**env, "APPRENTICE_SERVER_WEBHOOK_SECRET": SECRET})
    assert SECRET not in str(resolved(config))


# --- how it is told ----------------------------------------------------------------------------------


def test_each_event_is_posted_once_signed_and_in_order(
    running: Running, hooks: Hooks, receiver: Receiver
) -> None:
    hooks.start(receiver.url)
    release(running, 1, 2)
    running.client("root-key").post("/v1/policies/rollback")
    wait_for(lambda: len(receiver.taken) == 5)
    assert receiver.told == [
        "round.ended 1", "policy.served 1", "round.ended 2", "policy.served 2", "policy.rolled_back 1",
    ]  # fmt: skip
    assert len(receiver.got) == 5
    for headers, body in receiver.got:
        seconds = int(headers["webhook-timestamp"])
        assert headers["webhook-id"] == json.loads(body)["id"]
        assert headers["webhook-signature"] == signature(bytes(32), headers["webhook-id"], seconds, body)
        assert headers["content-type"].startswith("application/cloudevents+json")
    wait_for(lambda: hooks.metric("webhook_pending") == 0)


def test_what_happened_before_it_was_set_up_is_not_told(
    running: Running, hooks: Hooks, receiver: Receiver
) -> None:
    release(running, 1)
    hooks.start(receiver.url)
    release(running, 2)
    wait_for(lambda: len(receiver.taken) == 2)
    assert receiver.told == ["round.ended 2", "policy.served 2"]


def test_a_receiver_that_is_down_is_told_when_it_is_back(running: Running, hooks: Hooks) -> None:
    gone = Receiver()
    gone.close()
    hooks.start(gone.url)
    release(running, 1)
    wait_for(lambda: hooks.failures("unreachable") >= 2)
    assert hooks.metric("webhook_pending") == 2
    back = Receiver(gone.port)
    wait_for(lambda: len(back.taken) == 2)
    assert back.told == ["round.ended 1", "policy.served 1"]
    back.close()


def test_errors_slowness_and_redirects_are_tried_again_with_the_same_id(
    running: Running, hooks: Hooks, receiver: Receiver
) -> None:
    receiver.answers = [500, 404, 307]
    hooks.start(receiver.url)
    write(running, planned(1, 0), RoundEnded(round=1, verdict="refused"))
    wait_for(lambda: len(receiver.taken) == 1)
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1
    assert len({body for _, body in receiver.got}) == 1
    reasons = ("status_5xx", "status_4xx", "redirected")
    assert [hooks.failures(reason) for reason in reasons] == [1, 1, 1], "and the redirect was not followed"
    assert len(receiver.got) == 4
    receiver.slow_s = 5
    write(running, planned(2, 0), RoundEnded(round=2, verdict="refused"))
    wait_for(lambda: hooks.failures("timeout") >= 1)
    assert running.client().get("/readyz").status_code == 200
    receiver.slow_s = 0
    wait_for(lambda: "round.ended 2" in receiver.told)


def test_an_event_that_is_refused_for_days_lets_the_next_one_through(
    running: Running, hooks: Hooks, receiver: Receiver
) -> None:
    receiver.answers = [500]
    hooks.start(receiver.url, Patience(first_pause=0.02, look=0.01, give_up=0))
    write(running, planned(1, 0), RoundEnded(round=1, verdict="refused"))
    wait_for(lambda: hooks.failures("given_up") == 1)
    write(running, planned(2, 0), RoundEnded(round=2, verdict="refused"))
    wait_for(lambda: len(receiver.taken) == 1)
    assert receiver.told == ["round.ended 2"]


def test_a_restart_neither_loses_nor_repeats(running: Running, hooks: Hooks, receiver: Receiver) -> None:
    hooks.start(receiver.url)
    release(running, 1)
    wait_for(lambda: json.loads(hooks.path.read_text()) == {"round": 1, "epoch": 0})
    hooks.stop()
    release(running, 2)
    hooks.start(receiver.url)
    wait_for(lambda: len(receiver.taken) == 4)
    assert receiver.told == ["round.ended 1", "policy.served 1", "round.ended 2", "policy.served 2"]


def test_without_room_for_the_position_nothing_more_is_told(
    running: Running, hooks: Hooks, receiver: Receiver
) -> None:
    hooks.path = hooks.path.parent / "folder" / "webhook.json"
    hooks.start(receiver.url)
    hooks.path.unlink()
    hooks.path.parent.rmdir()
    hooks.path.parent.write_text("in the way")
    release(running, 1)
    wait_for(lambda: hooks.failures("position") >= 2)
    assert receiver.told == ["round.ended 1"]
    hooks.path.parent.unlink()
    wait_for(lambda: len(receiver.taken) == 2)


def test_a_server_killed_between_sending_and_remembering_repeats_one_event(
    processes: Processes, receiver: Receiver
) -> None:
    env = {"APPRENTICE_SERVER_WEBHOOK_URL": receiver.url, "APPRENTICE_SERVER_WEBHOOK_SECRET": SECRET}
    first = processes.start(**env)
    processes.wait_until_ready()
    wait_for((processes.state / "server" / "webhook.json").exists)
    receiver.slow_s = 1.0  # it is taken, and the answer is on its way when the server dies
    write_rounds(processes.state, 3)
    wait_for(lambda: len(receiver.got) == 1)
    first.kill()
    first.wait()
    wait_for(lambda: receiver.told == ["round.ended 1"])
    receiver.slow_s = 0.0
    (processes.state / "run" / "server.json").unlink()
    processes.start(**env)
    wait_for(lambda: "round.ended 3" in receiver.told and receiver.told.count("round.ended 1") == 2)
    assert receiver.told == ["round.ended 1", "round.ended 1", "round.ended 2", "round.ended 3"]
    assert len({one["id"] for one in receiver.taken}) == 3


def write_rounds(state: Path, count: int) -> None:
    """As a learner would, into the log of a server that runs."""
    from buffer.backend import open_log
    from buffer.client import Buffer
    from buffer.config import BufferConfig, Shared
    from buffer.view import View

    buffer = Buffer(open_log(Shared(state=state), BufferConfig(), name="learner"), View(":memory:"))
    for number in range(1, count + 1):
        buffer.write([planned(number, 0), RoundEnded(round=number, verdict="refused")]).result()
    buffer.close()
