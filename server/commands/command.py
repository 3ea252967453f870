"""What all commands share: the parser's shape, exit codes, errors, and how results are printed.

Light: nothing here imports more than the standard library, so that `--help` stays quick.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from typing import Any, TextIO

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

EXITS: Mapping[int, str] = {
    OK: "done",
    FAILED: "it could not be done; the message says why and what to do next",
    USAGE: "wrong arguments or configuration",
}


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


def print_json(value: Any, out: TextIO | None = None) -> None:
    """One JSON document, on standard output where nothing else is given."""
    print(json.dumps(value, indent=2, ensure_ascii=False), file=out, flush=True)


def print_error(message: str, hint: str, code: str, *, as_json: bool) -> None:
    """An error on standard error, as text or in the HTTP interface's shape."""
    if as_json:
        print(json.dumps({"error": {"code": code, "message": message, "hint": hint}}), file=sys.stderr)
    else:
        print(f"apprentice: {message}" + (f"\n  → {hint}" if hint else ""), file=sys.stderr)
