"""`apprentice erase`: out of all reading and training, and its content out of the log."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from server.commands.client import Client, add_arguments, segment
from server.commands.command import OK, CommandError, parser, plain, print_json

ABOUT = """\
Erase an exchange with all feedback on it (the id of a reply), one piece of feedback (an id of
`apprentice feedback list`), or everything of a principal (as admin). It leaves all reading and all future
training at once, and its content is erased from the log. It cannot be taken back.

Policies that learned from it keep what they learned; `apprentice policies` goes back to one from before.
Exports that were made earlier still hold it."""

SHOWN = 60
"""Characters of what is to be erased that are shown."""


def main(argv: Sequence[str]) -> int:
    """Say what is there, ask, erase it. Raises `CommandError`."""
    arguments = _parse(argv)
    client = Client.of(arguments)
    if arguments.principal is not None:
        path, what = _principal(client, arguments.principal)
    elif arguments.id.startswith("fb-"):
        path, what = _feedback(client, arguments.id)
    else:
        path, what = _exchange(client, arguments.id)
    if not arguments.yes:
        confirm(what)
    gone = client.delete(path)
    if arguments.json:
        print_json(gone)
    else:
        print(f"erased {what}")
    return OK


def confirm(what: str) -> None:
    """Ask. Raises `CommandError` unless the answer is yes."""
    print(f"erase {what}? It cannot be taken back. [y/N] ", end="", file=sys.stderr, flush=True)
    try:
        answer = input()
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise CommandError("nothing was erased", "answer y, or give --yes")


def _principal(client: Client, name: str) -> tuple[str, str]:
    path = f"/v1/principals/{segment(name)}"
    there = client.get(path)
    if not there["exchanges"] and not there["feedback"]:
        raise CommandError(
            f"there is nothing of {name}", "a principal is a name of `apprentice keys list`, or local"
        )
    return path, f"of {name}: {there['exchanges']} exchanges, {there['feedback']} pieces of feedback"


def _feedback(client: Client, id_: str) -> tuple[str, str]:
    path = f"/v1/feedback/{segment(id_)}"
    there = client.get(path)
    if there["status"] == "erased":
        raise CommandError(f"{id_} is erased already")
    return f"{path}?erase=true", f"{there['kind']} {id_}{_said(there['text'])}"


def _exchange(client: Client, id_: str) -> tuple[str, str]:
    path = f"/v1/chat/completions/{segment(id_)}"
    choices = client.get(path)["choices"]
    first = choices[0] if choices else {}
    answer = first.get("text") or (first.get("message") or {}).get("content")
    return path, f"exchange {id_}{_said(answer)} and all feedback on it"


def _said(text: Any) -> str:
    if not isinstance(text, str) or not text.strip():
        return ""
    line = plain(" ".join(text.split()))
    return f" ({line if len(line) <= SHOWN else line[:SHOWN] + '…'})"


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    made = parser("erase", ABOUT)
    which = made.add_mutually_exclusive_group(required=True)
    which.add_argument("id", nargs="?", help="of a reply, or of feedback")
    which.add_argument("--principal", metavar="NAME", help="everything that this principal asked and taught")
    made.add_argument("--yes", action="store_true", help="do not ask")
    add_arguments(made)
    return made.parse_args(argv)
