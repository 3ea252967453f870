"""`apprentice erase` against a real gateway: what went is gone from reading and from the log."""

import io
import json
from typing import Any

import pytest

from buffer.records import FeedbackGiven
from server import cli
from server.api.erasure import BATCH
from tests.server.running import Running


def ask(running: Running, text: str, key: str = "ann-key") -> str:
    messages: Any = [{"role": "user", "content": text}]
    return str(running.openai(key).chat.completions.create(model="apprentice", messages=messages).id)


def teach(running: Running, completion_id: str | None, text: str, key: str = "ann-key") -> str:
    body: dict[str, Any] = {"kind": "correction", "completion_id": completion_id, "text": text}
    if completion_id is None:
        body = {"kind": "demonstration", "messages": [{"role": "user", "content": text}], "text": text}
    return str(running.client(key).post("/v1/feedback", json=body).json()["id"])


def erase(running: Running, *arguments: str, key: str = "ann-key") -> int:
    return cli.main(["erase", *arguments, "--url", running.url, "--key", key])


def content(running: Running) -> bytes:
    records, positions = running.log.read({}, limit=10_000)
    assert running.log.read(positions)[0] == []
    return b"".join(record.data or b"" for record in records)


def test_an_exchange_goes_with_its_feedback(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    gone, kept = ask(running, "a secret"), ask(running, "a mill")
    feedback = teach(running, gone, "the secret again")
    assert erase(running, gone, "--yes") == 0
    assert capsys.readouterr().out == f"erased exchange {gone} (a secret) and all feedback on it\n"
    assert b"secret" not in content(running) and b"a mill" in content(running)
    client = running.client()
    assert client.get(f"/v1/feedback/{feedback}").json()["status"] == "erased"
    assert client.get(f"/v1/chat/completions/{gone}").status_code == 404
    assert client.get(f"/v1/chat/completions/{kept}").status_code == 200


@pytest.mark.parametrize("about_an_answer", [True, False])
def test_feedback_goes_and_its_exchange_stays(
    running: Running, about_an_answer: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ask(running, "a mill")
    feedback = teach(running, asked if about_an_answer else None, "the secret")
    assert erase(running, feedback, "--yes", "--json") == 0
    assert json.loads(capsys.readouterr().out)["status"] == "erased"
    assert b"secret" not in content(running)
    assert running.client().get(f"/v1/feedback/{feedback}").json()["status"] == "erased"
    assert running.client().get(f"/v1/chat/completions/{asked}").status_code == 200
    assert erase(running, feedback, "--yes") == 1
    assert "erased already" in capsys.readouterr().err


def test_everything_of_a_principal_goes_and_nothing_of_others(
    running: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = [ask(running, f"secret {number}") for number in range(3)]
    teach(running, ids[0], "secret correction")
    teach(running, None, "secret demonstration")
    running.openai().completions.create(model="apprentice", prompt="secret prompt")
    theirs = ask(running, "a mill", "ben-key")
    kept = teach(running, theirs, "no mill", "ben-key")
    assert erase(running, "--principal", "ann", "--yes", key="root-key") == 0
    assert "of ann: 4 exchanges, 2 pieces of feedback" in capsys.readouterr().out
    assert b"secret" not in content(running) and b"no mill" in content(running)
    assert running.client().get("/v1/chat/completions").json()["data"] == []
    assert running.client("ben-key").get(f"/v1/feedback/{kept}").json()["status"] == "received"
    assert erase(running, "--principal", "ann", "--yes", key="root-key") == 1
    assert "nothing of ann" in capsys.readouterr().err


def test_more_than_one_batch_goes(running: Running) -> None:
    bodies = [
        {"kind": "demonstration", "messages": [{"role": "user", "content": f"secret {n}"}], "text": "s"}
        for n in range(2 * BATCH + 1)
    ]
    running.client().post("/v1/feedback", json=bodies).raise_for_status()
    gone = running.client("root-key").delete("/v1/principals/ann").json()
    assert (gone["exchanges"], gone["feedback"]) == (0, 2 * BATCH + 1)
    assert running.log.payloads(FeedbackGiven) == []


def test_only_an_admin_erases_a_principal(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    ask(running, "a mill")
    assert erase(running, "--principal", "ann", "--yes") == 1
    assert "lacks the scope admin" in capsys.readouterr().err
    assert running.client().delete("/v1/principals/ann").status_code == 403
    assert b"a mill" in content(running)


def test_what_is_somebody_elses_is_not_erased(running: Running) -> None:
    asked = ask(running, "a mill")
    feedback = teach(running, asked, "no mill")
    assert erase(running, asked, "--yes", key="ben-key") == 1
    assert erase(running, feedback, "--yes", key="ben-key") == 1
    assert b"no mill" in content(running)


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 1), ("\n", 1), ("", 1)])
def test_it_asks_first(
    running: Running, answer: str, code: int, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    asked = ask(running, "a mill")
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    assert erase(running, asked) == code
    err = capsys.readouterr().err
    assert f"erase exchange {asked} (a mill)" in err
    assert (b"a mill" in content(running)) == bool(code)
    assert ("nothing was erased" in err) == bool(code)
