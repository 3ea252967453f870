"""`apprentice status`: on one screen what is served, what the learner does and why, and feedback's fate."""

import argparse
import contextlib
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from server.commands.client import CallFailed, Client, add_arguments
from server.commands.command import OK, CommandError, parser, plain, print_json
from server.commands.learning_text import progress, verdict
from server.commands.status_watch import watch


def main(argv: Sequence[str]) -> int:
    """Print it. Raises `CommandError` when no server answers."""
    arguments = _parse(argv)
    if arguments.watch:
        return _watch(arguments)
    found = collect(Client.of(arguments))
    if arguments.json:
        print_json(found)
    else:
        Console(highlight=False).print(screen(found))
    return OK


def _watch(arguments: argparse.Namespace) -> int:
    console = Console(highlight=False)
    if not console.is_terminal:
        raise CommandError("--watch needs a terminal", "ask again and again for --json instead")

    def now() -> dict[str, Any]:
        client = Client.of(arguments, timeout_s=5.0)  # found anew: a server that restarts may move
        found = collect(client)
        with contextlib.suppress(CallFailed):
            found["metrics"] = client.text("/metrics")
        return found

    watch(now, console)
    return OK


def collect(client: Client) -> dict[str, Any]:
    """What the server says about itself."""
    try:
        client.get("/readyz")
        engine = "ready"
    except CallFailed as error:
        engine = plain(f"not ready: {error}")
    return {
        "url": client.url,
        "engine": engine,
        "policies": client.get("/v1/policies")["data"],
        "learning": client.get("/v1/learning"),
    }


def screen(found: dict[str, Any]) -> Table:
    """The same for people."""
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="bold", no_wrap=True)
    rows.add_column(overflow="fold")
    learning, policies = found["learning"], found["policies"]
    color = "green" if found["engine"] == "ready" else "yellow"
    rows.add_row("server", Text.assemble((found["engine"], color), f", {found['url']}/v1"))
    live = next((one["id"] for one in policies if one["live"]), "none")
    rows.add_row("policy", f"{live} is live, of {len(policies)} with the base")
    rows.add_row("learner", Text(progress(learning)))
    feedback = ", ".join(f"{count} {status}" for status, count in sorted(learning["feedback"].items()))
    rows.add_row("feedback", feedback or "none yet")
    if last := learning["last_round"]:
        rows.add_row("last round", Text(verdict(last)))
    return rows


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    made = parser(
        "status", "Show what is served, what the learner does and why, and what became of feedback."
    )
    made.add_argument(
        "-w", "--watch", action="store_true", help="stay and refresh every second, until Ctrl-C"
    )
    add_arguments(made)
    arguments = made.parse_args(argv)
    if arguments.watch and arguments.json:
        made.error("--watch is for people: ask again and again for --json instead")
    return arguments
