"""What all commands share: the parser's shape, exit codes, errors, and how results are printed.

Light: nothing here imports more than the standard library, so that `--help` stays quick.
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping
from typing import Any, TextIO

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

EXITS: Mapping[int, str] = {
    OK: "done",
    FAILED: "it could not be done; the message says why and what to do next",
    USAGE: "wrong arguments or configuration",
}


_STEERING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Control characters but for tabs and line ends, what turns the direction of writing, halves of a pair."""


class CommandError(Exception):
    """A command cannot go on; `hint` names the next step. Caught in `server.cli.main`."""

    code = "command_failed"
    exit_code = FAILED

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def parser(name: str, about: str, exits: Mapping[int, str] = EXITS) -> argparse.ArgumentParser:
    """The parser of `apprentice NAME`, with --json and its exit codes in the help."""
    made = argparse.ArgumentParser(
        prog=f"apprentice {name}",
        description=about,
        epilog="exit codes:\n" + "\n".join(f"  {code}  {meaning}" for code, meaning in exits.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument(
        "--json", action="store_true", help="print JSON for programs instead of text for people"
    )
    return made


def plain(text: str) -> str:
    """Somebody's words as a terminal may have them: what would steer it, an escape sequence say, is replaced.

    Everything from the log goes through it before it is printed.
    """
    return _STEERING.sub("\ufffd", text.replace("\r\n", "\n"))


def print_json(value: Any, out: TextIO | None = None) -> None:
    """One JSON document, on standard output where nothing else is given. What would steer is escaped."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    print(_STEERING.sub(lambda found: json.dumps(found[0])[1:-1], text), file=out, flush=True)


def print_error(message: str, hint: str, code: str, *, as_json: bool) -> None:
    """An error on standard error, as text or in the HTTP interface's shape."""
    if as_json:
        print(json.dumps({"error": {"code": code, "message": message, "hint": hint}}), file=sys.stderr)
    else:
        print(plain(f"apprentice: {message}" + (f"\n  → {hint}" if hint else "")), file=sys.stderr)
