import io
import json
from typing import Any

from server.commands.terminal import Terminal


def lines(out: io.StringIO) -> list[Any]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_lines_stand_behind_the_name_of_their_process() -> None:
    out = io.StringIO()
    terminal = Terminal(out=out)
    terminal.output("gateway", "listening")
    terminal.say("gateway", "stopping")
    assert out.getvalue().split("\n") == ["   gateway │ listening", "apprentice │ gateway stopping", ""]


def test_as_json_there_are_events_alone() -> None:
    out = io.StringIO()
    terminal = Terminal(as_json=True, log_format="json", out=out)
    terminal.output("gateway", "listening")
    terminal.event("ready", "ready: there", url="http://here")
    assert lines(out) == [{"event": "ready", "url": "http://here", "text": "ready: there"}]


def test_with_json_logs_every_line_is_a_json_object() -> None:
    out = io.StringIO()
    terminal = Terminal(log_format="json", out=out)
    terminal.output("gateway", '{"level": "INFO", "message": "listening"}')
    terminal.output("learner", "a library's own print")
    terminal.event("ready", "ready: there\nask so", url="http://here")
    given, wrapped, own = lines(out)
    assert given == {"level": "INFO", "message": "listening", "process": "gateway"}
    assert (wrapped["message"], wrapped["process"]) == ("a library's own print", "learner")
    assert (own["message"], own["event"], own["url"]) == ("ready: there\nask so", "ready", "http://here")
    assert own["time"] and own["level"] == "INFO"
