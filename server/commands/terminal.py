"""What the supervisor shows: its children's lines behind their names, and its own words.

As JSON, a line each, where `log_format` says so; with `--json` its own events alone.
"""

import json
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

from buffer.config import LogFormat
from buffer.logs import as_json as log_line

_COLORS = {"gateway": "36", "learner": "35", "relay": "33", "model": "34", "apprentice": "1;32"}
_WIDTH = max(map(len, _COLORS))


class Terminal:
    """Writes to `out`. With `as_json` one event a line, and children's output goes to their logs only."""

    def __init__(
        self, *, as_json: bool = False, log_format: LogFormat = "text", out: TextIO | None = None
    ) -> None:
        self._as_json = as_json
        self._log_format = log_format
        self._out = out or sys.stdout
        self._color = self._out.isatty()

    def output(self, name: str, line: str) -> None:
        """One line that a child printed."""
        if self._as_json:
            return
        if self._log_format == "json":
            self._write(_labelled(name, line))
        else:
            self._print(name, line)

    def say(self, name: str, text: str) -> None:
        """Something that happened to a child."""
        self.event("child", f"{name} {text}", child=name)

    def event(self, event: str, text: str, **fields: Any) -> None:
        """Something to tell: `text` for people; `event`, `fields` and the same text for programs."""
        if self._as_json:
            self._write(json.dumps({"event": event, **fields, "text": text}))
        elif self._log_format == "json":
            self._write(log_line(datetime.now(UTC), "INFO", "apprentice", text, event=event, **fields))
        else:
            for line in text.splitlines():
                self._print("apprentice", line)

    def _print(self, name: str, line: str) -> None:
        label = f"{name:>{_WIDTH}} │"
        if self._color:
            label = f"\x1b[{_COLORS.get(name, '0')}m{label}\x1b[0m"
        self._write(f"{label} {line}")

    def _write(self, line: str) -> None:
        print(line, file=self._out, flush=True)


def _labelled(name: str, line: str) -> str:
    """A child's line with its name in it; one that is no JSON, a library's own say, becomes a message."""
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    if isinstance(found, dict):
        return json.dumps({**found, "process": name}, ensure_ascii=False)
    return log_line(datetime.now(UTC), "INFO", name, line, process=name)
