"""`apprentice explain FEEDBACK_ID`: all that happened to one piece of feedback, why, and what comes next."""

import argparse
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from server.commands.client import Client, add_arguments, segment
from server.commands.command import OK, parser, plain, print_json


def main(argv: Sequence[str]) -> int:
    """Print it. Raises `CommandError`."""
    arguments = _parse(argv)
    found = Client.of(arguments).get(f"/v1/feedback/{segment(arguments.id)}/explanation")
    if arguments.json:
        print_json(found)
    else:
        Console(highlight=False).print(timeline(found))
    return OK


def timeline(found: dict[str, Any]) -> Group:
    """For people: a line an event, in the local time."""
    feedback, rows = found["feedback"], Table.grid(padding=(0, 2))
    for style in ("dim", "bold"):
        rows.add_column(style=style, no_wrap=True)
    rows.add_column(overflow="fold")
    for event in found["events"]:
        rows.add_row(_when(event["time"]), event["what"].replace("_", " "), Text(plain(event["why"])))
    head = Text.assemble(feedback["id"], " is ", (feedback["status"], "bold"))
    return Group(head, rows, Text(plain(f"next: {found['next']}")))


def _when(time: int | None) -> str:
    return f"{datetime.fromtimestamp(time):%Y-%m-%d %H:%M:%S}" if time is not None else ""


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    made = parser(
        "explain",
        "Tell all that happened to one piece of feedback: who gave it, how it was judged, which rounds\n"
        "learned it and what their gate found, which policy serves it, and what comes next or is to be done.",
    )
    made.add_argument("id", metavar="FEEDBACK_ID", help="as POST /v1/feedback and `feedback list` give it")
    add_arguments(made)
    return made.parse_args(argv)
