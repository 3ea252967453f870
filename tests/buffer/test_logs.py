import json
import logging
import subprocess
import sys
from datetime import datetime

import pytest

from buffer.config import ConfigError, Shared, load
from buffer.logs import JsonFormatter, TextFormatter, request_id

SAID = logging.LogRecord("server.app", logging.WARNING, "app.py", 7, "%d left\nof 3", (2,), None)


def failed() -> logging.LogRecord:
    try:
        raise ValueError("no such thing")
    except ValueError:
        return logging.LogRecord("x", logging.ERROR, "x.py", 1, "failed", (), sys.exc_info())


def test_a_line_of_json_says_when_how_grave_who_and_what() -> None:
    line = JsonFormatter().format(SAID)
    told = json.loads(line)
    assert "\n" not in line
    assert (told["level"], told["logger"], told["message"]) == ("WARNING", "server.app", "2 left\nof 3")
    assert told["time"].endswith("Z")
    assert abs(datetime.fromisoformat(told["time"]).timestamp() - SAID.created) <= 0.001
    assert told.keys() == {"time", "level", "logger", "message"}


def test_an_exception_is_a_field_of_the_same_line() -> None:
    line = JsonFormatter().format(failed())
    assert "\n" not in line
    assert json.loads(line)["exception"].endswith("ValueError: no such thing")


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
def test_what_is_logged_for_a_request_names_it(formatter: logging.Formatter) -> None:
    assert "req-7" not in formatter.format(SAID)
    token = request_id.set("req-7")
    try:
        assert "req-7" in formatter.format(SAID)
    finally:
        request_id.reset(token)


def test_the_format_is_a_setting_of_all_processes() -> None:
    assert load(Shared, env={"APPRENTICE_LOG_FORMAT": "json"}).log_format == "json"
    with pytest.raises(ConfigError, match="log_format"):
        load(Shared, env={"APPRENTICE_LOG_FORMAT": "xml"})


@pytest.mark.parametrize(("form", "start"), [("json", "{"), ("text", "2")])
def test_a_process_logs_in_the_form_that_is_set(form: str, start: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "buffer"], env={"APPRENTICE_LOG_FORMAT": form}, capture_output=True, text=True
    )
    assert done.stderr.startswith(start) and "nothing to relay" in done.stderr
