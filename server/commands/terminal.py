"""What the supervisor shows: its children's lines behind their names, its own words, or JSON events."""

import json
import sys
from typing import Any, TextIO

_COLORS = {"gateway": "36", "learner": "35", "relay": "33", "model": "34", "apprentice": "1;32"}
_WIDTH = max(map(len, _COLORS))


class Terminal:
    """Writes to `out`. As JSON there is one event a line, and children's output goes to their logs only."""

    def __init__(self, *, as_json: bool = False, out: TextIO | None = None) -> None:
        self._as_json = as_json
        self._out = out or sys.stdout
        self._color = self._out.isatty()

    def output(self, name: str, line: str) -> None:
        """One line that a child printed."""
        if not self._as_json:
            self._print(name, line)

    def say(self, name: str, text: str) -> None:
        """Something that happened to a child."""
        self.event("child", f"{name} {text}", child=name)

    def event(self, event: str, text: str, **fields: Any) -> None:
        """Something to tell: `text` for people; `event`, `fields` and the same text for programs."""
        if self._as_json:
            print(json.dumps({"event": event, **fields, "text": text}), file=self._out, flush=True)
            return
        for line in text.splitlines():
            self._print("apprentice", line)

    def _print(self, name: str, line: str) -> None:
        label = f"{name:>{_WIDTH}} │"
        if self._color:
            label = f"\x1b[{_COLORS.get(name, '0')}m{label}\x1b[0m"
        print(label, line, file=self._out, flush=True)
