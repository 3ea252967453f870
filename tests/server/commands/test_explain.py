import json

import pytest

from server import cli
from server.commands.command import FAILED, OK
from tests.server.api.test_learning import seed_feedback
from tests.server.running import Running


def explain(running: Running, *arguments: str, key: str = "ann-key") -> int:
    return cli.main(["explain", *arguments, "--url", running.url, "--key", key])


def test_it_prints_what_happened_and_what_comes_next(
    running: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    running.run(seed_feedback(running))
    assert explain(running, "fb-1") == OK
    shown = capsys.readouterr().out
    assert shown.startswith("fb-1 is received\n")
    assert "next: it waits for the record" in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert explain(running, "fb-1", "--json") == OK
    found = json.loads(capsys.readouterr().out)
    assert found["object"] == "feedback.explanation"
    assert (found["feedback"]["id"], found["events"][0]["what"]) == ("fb-1", "received")
    assert isinstance(found["events"][0]["time"], int)


def test_only_ones_own_feedback_is_explained_except_to_admins(
    running: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    running.run(seed_feedback(running))
    assert explain(running, "fb-1", key="ben-key") == FAILED
    assert "no feedback fb-1 of yours" in capsys.readouterr().err
    assert explain(running, "fb-1", key="root-key") == OK
