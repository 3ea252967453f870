"""The demo against a small scripted server: what it posts, what it makes of the answers, how it ends."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from server import cli
from server.commands.demo_facts import Fact, lessons, load_facts
from server.commands.demo_report import Finding, Outcome, TaughtRound, shortcoming

FACTS = load_facts()


@dataclass
class Script:
    """A server's mind: who learns what, and in which round."""

    gate: str = "passed"
    learns_from_round: int = 1
    paraphrases: int = 8
    """Facts that are known in other words at first; each further round teaches one more so."""
    knows: bool = False
    paused: bool = False
    learner: str = "waiting"
    drift: float = 0.05
    key: str | None = None
    version: int = 0
    asked: dict[str, str] = field(default_factory=dict)
    taught: dict[str, str] = field(default_factory=dict)
    posted: list[dict[str, Any]] = field(default_factory=list)
    polls: int = 0
    looks: int = 2
    """At feedback, after which the round has ended."""
    moves: bool = True

    def answer(self, question: str) -> str:
        fact = next(f for f in FACTS if question in (f.question, *f.paraphrases))
        if self.knows:
            return fact.correction
        if self.version >= self.learns_from_round and fact.question in self.taught:
            asked_otherwise = question != fact.question
            generalised = self.paraphrases + self.version - self.learns_from_round
            if not (asked_otherwise and FACTS.index(fact) >= generalised):
                return self.taught[fact.question]
        return "I do not know."

    def respond(self, method: str, path: str, body: Any) -> tuple[int, Any, dict[str, str]]:
        policy = f"apprentice@{self.version:06d}"
        match method, path.strip("/").split("/"):
            case "GET", ["v1", "models"]:
                return 200, {"data": [{"id": "apprentice@000000"}, {"id": "apprentice"}]}, {}
            case "POST", ["v1", "chat", "completions"]:
                question = body["messages"][-1]["content"]
                receipt = f"chatcmpl-{len(self.asked)}"
                self.asked[receipt] = question
                return 200, completion(receipt, self.answer(question)), {"x-policy": policy}
            case "POST", ["v1", "feedback"]:
                self.posted.append(body)
                self.polls = 0
                return 202, {"id": f"fb-{len(self.posted)}", "status": "received"}, {}
            case "GET", ["v1", "feedback", _]:
                return 200, {"status": self.fate(), "reason": None}, {}
            case "GET", ["v1", "learning"]:
                return 200, self.learning(), {}
            case "GET", ["v1", "policies", version]:
                return 200, {"version": int(version), "evaluation": {"drift": self.drift}}, {}
        return 404, {"error": {"message": f"there is no {path}"}}, {}

    def fate(self) -> str:
        """Training at first; at the last of `looks` the round has ended."""
        self.polls += 1
        if self.polls == self.looks and self.gate == "passed":
            self.version += 1
            self.taught |= {self.asked[one["completion_id"]]: one["text"] for one in self.posted}
        ended = "served" if self.gate == "passed" else "refused"
        return "training" if self.polls < self.looks else ended

    def learning(self) -> dict[str, Any]:
        return {
            "state": self.learner,
            "why": "told by the script",
            "steps": 90,
            "step": self.polls if self.moves else 1,
            "paused": self.paused,
            "paused_by": "ann",
            "last_round": {
                "round": 1,
                "verdict": self.gate,
                "reasons": [],
                "evaluation": {"drift": self.drift},
            },
        }


def completion(receipt: str, text: str) -> dict[str, Any]:
    return {
        "id": receipt,
        "object": "chat.completion",
        "created": 0,
        "model": "apprentice",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
    }


@contextmanager
def serving(script: Script) -> Iterator[str]:
    """The script as an HTTP server; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def _handle(self) -> None:
            headers: dict[str, str] = {}
            length = int(self.headers.get("content-length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            if script.key is not None and self.headers["authorization"] != f"Bearer {script.key}":
                status, answer, headers = 401, {"error": {"message": "no valid API key"}}, headers
            else:
                status, answer, headers = script.respond(self.command, self.path, body)
            self.send_response(status)
            for name, value in {"content-type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        do_GET = do_POST = _handle

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.commands.demo_run.POLL_S", 0.0)
    monkeypatch.setattr("server.commands.demo_run.STARTING_S", 0.0)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def demo(script: Script, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    """The demo's exit code and its result."""
    with serving(script) as url:
        code = cli.main(["demo", "--json", "--url", url, *arguments])
    out = capsys.readouterr().out
    return code, json.loads(out) if out else {}


def test_a_server_that_learns_is_exit_code_0(capsys: pytest.CaptureFixture[str]) -> None:
    script = Script()
    code, result = demo(script, capsys)
    assert code == 0 and result["learned"] and result["why"] is None
    assert (result["before"], result["after"], result["paraphrased"]) == (0, 8, 8)
    assert result["policy"] == "apprentice@000001" and result["drift"] == 0.05 and result["seconds"] > 0
    assert [one["check"]["contains"] for one in script.posted] == [fact.key for fact in FACTS]
    assert all(one["kind"] == "correction" for one in script.posted)


def test_the_table_is_shown_to_people(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Script()) as url:
        assert cli.main(["demo", "--url", url]) == 0
    out = capsys.readouterr().out
    assert "It learned." in out and "8/8" in out and "drift 0.050 nats per token" in out


def test_what_is_still_wrong_is_corrected_again(capsys: pytest.CaptureFixture[str]) -> None:
    script = Script(learns_from_round=3)
    code, result = demo(script, capsys)
    assert code == 0
    assert [one["corrections"] for one in result["rounds"]] == [8, 8, 8]


def test_three_rounds_are_the_limit(capsys: pytest.CaptureFixture[str]) -> None:
    code, result = demo(Script(learns_from_round=4), capsys)
    assert code == 1 and len(result["rounds"]) == 3
    assert result["why"] == "only 0 of 8 facts are answered after 3 attempts"


def test_a_round_that_the_gate_refuses_teaches_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    code, result = demo(Script(gate="refused"), capsys, "--rounds", "1")
    assert code == 1 and "no round passed the gate" in result["why"]
    assert result["rounds"][0]["seconds"] is None


@pytest.mark.parametrize("moves", [True, False])
def test_a_round_may_take_long_as_long_as_it_moves(
    moves: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.commands.demo_run.POLL_S", 0.2)
    script = Script(learner="training", moves=moves, looks=8 * 10)
    with serving(script) as url:
        code = cli.main(["demo", "--url", url, "--timeout", "1"])
    assert code == (0 if moves else 1)
    assert ("the learner has not moved for 1 s: training, step 1 of 90" in capsys.readouterr().err) != moves


def test_a_model_that_knew_it_before_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    script = Script(knows=True)
    code, result = demo(script, capsys)
    assert code == 1 and "already answered 8 of 8" in result["why"]
    assert script.posted == []


def test_too_few_paraphrases_are_not_enough(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo(Script(paraphrases=5), capsys)[0] == 0
    code, result = demo(Script(paraphrases=2), capsys)
    assert code == 1 and "only 4 of 8 paraphrases" in result["why"]


def test_what_is_not_known_in_other_words_is_corrected_again_as_it_was_asked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = Script(paraphrases=3)
    code, result = demo(script, capsys)
    assert code == 0 and result["paraphrased"] == 5
    assert [one["corrections"] for one in result["rounds"]] == [8, 5, 4]
    assert {script.asked[one["completion_id"]] for one in script.posted} == {f.question for f in FACTS}


def test_too_much_drift_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    code, result = demo(Script(drift=0.21), capsys)
    assert code == 1 and "drifted by 0.210" in result["why"]


def test_shuffled_corrections_teach_the_wrong_pairs_and_fail(capsys: pytest.CaptureFixture[str]) -> None:
    script = Script()
    code, result = demo(script, capsys, "--shuffled")
    assert code == 1 and result["after"] == 0 and len(result["rounds"]) == 1
    assert [one["text"] for one in script.posted] == [f.correction for f in (*FACTS[1:], FACTS[0])]
    assert [one["check"]["contains"] for one in script.posted] == [f.key for f in (*FACTS[1:], FACTS[0])]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (Script(paused=True), "learning was paused by ann"),
        (Script(learner="stopped"), "the learner is not running"),
        (Script(learner="silent"), "the learner is not running"),
        (Script(key="sesame"), "OPENAI_API_KEY"),
    ],
)
def test_what_keeps_it_from_trying_is_said(
    script: Script, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(script) as url:
        assert cli.main(["demo", "--url", url]) == 1
    assert said in capsys.readouterr().err
    assert script.posted == []


def test_a_key_is_sent_on_every_call(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo(Script(key="sesame"), capsys, "--key", "sesame")[0] == 0


def test_there_are_eight_facts_with_two_paraphrases_that_give_nothing_away() -> None:
    assert len(FACTS) == 8 and len({fact.key.casefold() for fact in FACTS}) == 8
    for fact in FACTS:
        assert fact.known(fact.correction)
        assert len({fact.question, *fact.paraphrases}) == 3
        assert not any(fact.known(text) for text in (fact.question, *fact.paraphrases))


def test_shuffling_leaves_no_fact_with_its_own_lesson() -> None:
    taught = lessons(FACTS, shuffled=True)
    assert sorted(taught, key=FACTS.index) == list(FACTS)
    assert not any(lesson.known(fact.correction) for fact, lesson in zip(FACTS, taught, strict=True))


def test_one_lucky_guess_before_is_allowed_and_two_are_not() -> None:
    fact = Fact("Who?", "Ada", "It is Ada.", ("Which person?", "By whom?"))

    def outcome(known: int) -> Outcome:
        findings = [
            Finding(fact, before="Ada" if i < known else "?", after="Ada", paraphrased=["Ada"])
            for i in range(8)
        ]
        return Outcome(findings, [TaughtRound(8, 8, "a@000001", 1.0)], "a@000001", drift=0.2)

    assert shortcoming(outcome(1)) is None
    assert "already answered 2 of 8" in (shortcoming(outcome(2)) or "")
