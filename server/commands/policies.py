"""`apprentice policies list | show | promote | rollback`: what was learned, and which version is live."""

import argparse
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from server.commands.client import Client, add_action, add_arguments, segment
from server.commands.command import OK, parser, plain, print_json


def main(argv: Sequence[str]) -> int:
    """Do one thing with policies. Raises `CommandError`."""
    arguments = _parse(argv)
    client = Client.of(arguments)
    if arguments.action == "promote":
        answer = client.post(f"/v1/policies/{segment(arguments.version)}/promote")
    elif arguments.action == "rollback":
        answer = client.post("/v1/policies/rollback")
    elif arguments.action == "show":
        answer = client.get(f"/v1/policies/{segment(arguments.version)}")
    else:
        answer = client.get("/v1/policies")
    if arguments.json or arguments.action == "show":
        print_json(answer)
    elif arguments.action == "list":
        Console(highlight=False).print(_table(answer))
    else:
        print(f"policy {answer['version']} is live, and {answer['was']} was before")
    return OK


def _table(answer: dict[str, Any]) -> Table:
    rows = Table(box=None)
    for heading in ("policy", "parent", "round", "lessons", "drift", ""):
        rows.add_column(heading)
    for one in answer["data"]:
        drift = (one.get("evaluation") or {}).get("drift")
        cells = [one["id"], *(one.get(name) for name in ("parent", "round", "lessons"))]
        cells.append(None if drift is None else f"{drift:.3f}")
        cells.append(
            "live" if one["live"] else f"rejected: {one['rejected']}" if one.get("rejected") else None
        )
        rows.add_row(*(Text("" if cell is None else plain(str(cell))) for cell in cells))
    return rows


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    made = parser("policies", "List or show policies, promote one, or go back to the one before.")
    add_arguments(made)
    actions = made.add_subparsers(dest="action", required=True, metavar="ACTION")
    add_action(actions, "list", "all versions, and which is live")
    add_action(actions, "rollback", "make the live policy's predecessor live again (admin)")
    for name, what in (("show", "its lineage and evaluation"), ("promote", "make it live (admin)")):
        add_action(actions, name, what).add_argument("version", help="such as 3; 0 is the base model")
    return made.parse_args(argv)
