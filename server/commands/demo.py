"""`apprentice demo`: teach a running server eight facts, and show whether it learned them."""

import argparse
import time
from collections.abc import Sequence
from contextlib import ExitStack

from rich.console import Console
from rich.markup import escape

from server.commands import demo_report as report
from server.commands.client import Client, add_arguments
from server.commands.command import EXITS, FAILED, OK, parser, plain, print_json
from server.commands.demo_facts import load_facts

QUIET_S = 15.0
"""How often the changing line is repeated where it cannot change in place."""


def main(argv: Sequence[str]) -> int:
    """Teach the running server and say whether it learned. Raises `CommandError`."""
    arguments = _parse(argv)
    from server.commands.demo_run import Demo  # openai takes half a second, and --help needs none of it

    client = Client.of(arguments)
    console = Console(stderr=arguments.json, highlight=False)
    with ExitStack() as stack:
        screen = ConsoleScreen(console, stack)
        demo = Demo(client, arguments.model or _alias(client), screen, timeout_s=arguments.timeout)
        demo.check_learner()
        outcome = demo.run(load_facts(), rounds=arguments.rounds, shuffled=arguments.shuffled)
    why = report.shortcoming(outcome)
    if arguments.json:
        print_json(report.as_json(outcome, why))
        return OK if why is None else FAILED
    if outcome.rounds:
        console.print(report.table(outcome))
        console.print(report.summary(outcome), soft_wrap=True)
    console.print(
        "[green]It learned.[/]" if why is None else f"[red]It did not learn:[/] {escape(why)}.",
        soft_wrap=True,
    )
    return OK if why is None else FAILED


class ConsoleScreen:
    """Lines that stay, and a spinner's line below them; in a file or pipe that one comes now and then."""

    def __init__(self, console: Console, stack: ExitStack) -> None:
        self._console = console
        self._spinner = stack.enter_context(console.status("")) if console.is_terminal else None
        self._last = 0.0

    def say(self, text: str) -> None:
        self._console.print(plain(text), markup=False, soft_wrap=True)
        if self._spinner is not None:
            self._spinner.update("")

    def live(self, text: str) -> None:
        if self._spinner is not None:
            self._spinner.update(escape(text))
        elif time.monotonic() > self._last + QUIET_S:
            self._last = time.monotonic()
            self._console.print(f"  {text}", markup=False, soft_wrap=True)


def _alias(client: Client) -> str:
    """The name of the live policy: the one listed without a version."""
    names = [str(model["id"]) for model in client.get("/v1/models")["data"]]
    return next((name for name in names if "@" not in name), names[0])


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    exits = {**EXITS, OK: "it learned", FAILED: "it did not learn, or could not be tried"}
    made = parser(
        "demo", "Teach eight facts about an invented company to a running server; show if it learned.", exits
    )
    add_arguments(made)
    made.add_argument("--model", help="the model name to ask for (default: the server's alias)")
    made.add_argument("--rounds", type=int, default=3, metavar="N", help="rounds at most (default: 3)")
    made.add_argument(
        "--timeout",
        type=float,
        default=900,
        metavar="S",
        help="seconds for which the learner may stand still (default: 900)",
    )
    made.add_argument("--shuffled", action="store_true", help="control: teach wrong pairs, which must exit 1")
    return made.parse_args(argv)
