"""What commands print of the log is text to the terminal, whatever somebody had the model say."""

import json

import pytest

from buffer.records import FeedbackGiven, LearnerReported, ReleaseRejected, RoundEnded
from server import cli
from server.commands.command import plain, print_error
from server.commands.learning_text import progress, verdict
from tests.server.api.test_learning import passed, planned, write
from tests.server.running import Running

EVIL = "\x1b]0;owned\x07\x9b2J\u202eevil [bold]"
SHOWN = "\ufffd]0;owned\ufffd\ufffd2J\ufffdevil [bold]"


@pytest.fixture
def told(running: Running) -> Running:
    """A gateway whose log says such things wherever somebody's words are in it. Its exchange is `fb-1`'s."""
    asked = {"model": "apprentice", "messages": [{"role": "user", "content": EVIL}]}
    completion = running.client().post("/v1/chat/completions", json=asked).json()["id"]
    running.stop_following()
    write(
        running,
        FeedbackGiven(
            feedback_id="fb-1", principal="ann", kind="correction", completion_id=completion, text=EVIL
        ),
        planned(1, 0, "fb-1"),
        passed(1),
        ReleaseRejected(version=1, why=EVIL, by="server"),
        planned(2, 0, "fb-1"),
        RoundEnded(round=2, verdict="refused", reasons=[EVIL]),
        LearnerReported(state="waiting", why=EVIL),
    )
    running.run(running.gateway.until(lambda: running.gateway.buffer.view.report() is not None))
    return running


@pytest.mark.parametrize(
    "command",
    [
        "explain fb-1",
        "feedback list",
        "feedback show fb-1",
        "policies list",
        "status",
        "erase fb-1 --yes",
        "erase COMPLETION --yes",
    ],
)
def test_nothing_that_is_printed_steers_the_terminal(
    told: Running, command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    given = told.gateway.buffer.view.feedback("fb-1")
    assert given is not None and given.given is not None and given.given.completion_id is not None
    words = command.replace("COMPLETION", given.given.completion_id).split()
    assert cli.main([*words, "--url", told.url, "--key", "ann-key"]) == 0
    printed = capsys.readouterr().out
    assert plain(printed) == printed
    assert SHOWN in printed, "what can be read is there"


@pytest.mark.parametrize("command", ["feedback list", "policies list", "status"])
def test_as_json_it_is_escaped_and_stays_what_it_is(
    told: Running, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*command.split(), "--json", "--url", told.url, "--key", "ann-key"]) == 0
    printed = capsys.readouterr().out
    assert plain(printed) == printed
    assert json.dumps(EVIL)[1:-1] in json.dumps(json.loads(printed))


def test_an_errors_words_are_the_servers_and_perhaps_somebody_elses(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_error(EVIL, EVIL, "x", as_json=False)
    assert capsys.readouterr().err == f"apprentice: {SHOWN}\n  → {SHOWN}\n"


def test_what_the_learner_says_is_plain_wherever_it_is_shown() -> None:
    assert progress({"state": "waiting", "why": EVIL}) == f"waiting: {SHOWN}"
    assert verdict({"round": 1, "verdict": "refused", "reasons": [EVIL]}) == f"round 1 refused ({SHOWN})"


def test_plain_text_stays_as_it_is() -> None:
    text = "tabs\tand\nlines, a\u00a0b, 日本\u3000語, क्\u200cष, emoji 👩\u200d💻"
    assert plain(text) == text
    assert plain("a\r\nb\rc") == "a\nb\ufffdc"
