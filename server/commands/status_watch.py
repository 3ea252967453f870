"""`apprentice status --watch`: the same on a screen that stays, refreshed until Ctrl-C."""

import re
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from server.commands.command import CommandError, plain
from server.commands.learning_text import progress, verdict

EVERY_S = 1.0
ROUNDS_SHOWN = 3

_GAUGE = re.compile(
    r"^apprentice_(view_lag_records|log_\w+_records|log_pending_seconds|log_writable|webhook_pending) (\S+)$",
    re.MULTILINE,
)


def watch(collect: Callable[[], dict[str, Any]], console: Console) -> None:
    """Show what `collect` gives, again and again. Ctrl-C ends it and gives the terminal back as it was.

    While `collect` raises `CommandError`, it says so above what was known last.
    """
    found: dict[str, Any] | None = None
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                problem = ""
                try:
                    found = collect()
                except CommandError as error:
                    problem = plain(str(error))
                live.update(screen(found, problem, datetime.now()), refresh=True)
                time.sleep(EVERY_S)
    except KeyboardInterrupt:
        return


def screen(found: dict[str, Any] | None, problem: str, now: datetime) -> RenderableType:
    """One picture, the most important first: what does not fit a low terminal is cut off below."""
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="bold", no_wrap=True)
    rows.add_column(overflow="fold")
    state = Text(f"{problem}; trying again", style="red") if problem else None
    if state is not None:
        rows.add_row("server", state)
    if found is not None:
        for name, shown in _rows(found):
            if not (name == "server" and problem):
                rows.add_row(name, shown)
    stale = " (what was known last)" if problem and found is not None else ""
    return Group(Text(f"apprentice, {now:%H:%M:%S}{stale}; Ctrl-C ends this", style="dim"), rows)


def _rows(found: dict[str, Any]) -> Iterator[tuple[str, RenderableType]]:
    learning, policies = found["learning"], found["policies"]
    ready = found["engine"] == "ready"
    yield "server", Text(f"{found['engine']}, {found['url']}/v1", style="green" if ready else "yellow")
    live = next((one["id"] for one in policies if one["live"]), "none")
    yield "policy", Text(f"{live} is live, of {len(policies)} with the base")
    yield "learner", Text(progress(learning))
    if learning.get("steps"):
        yield "", ProgressBar(total=learning["steps"], completed=learning.get("step") or 0, width=40)
    counts = ", ".join(f"{count} {status}" for status, count in sorted(learning["feedback"].items()))
    yield "feedback", Text(f"{counts or 'none yet'}; {learning['pending']} to be learned")
    yield "log", Text(log_line(gauges(found.get("metrics", ""))))
    if changed := _changed(learning, policies):
        yield "changed", Text(plain(changed))
    ended = [one for one in learning["rounds"] if one["verdict"] is not None]
    for index, one in enumerate(ended[:ROUNDS_SHOWN]):
        style = {"passed": "green", "failed": "red"}.get(one["verdict"], "yellow")
        yield "" if index else "rounds", Text(verdict(one), style=style)


def gauges(metrics: str) -> dict[str, float]:
    """What the metrics say of the log and of what waits, by name."""
    return {name: float(value) for name, value in _GAUGE.findall(metrics)}


def log_line(found: dict[str, float]) -> str:
    """How far what is recorded has got, in words."""
    if not found:
        return "its metrics cannot be read"
    said = []
    if found.get("log_writable") == 0:
        said.append("IT TAKES NO RECORDS (is the disk full?)")
    lag = found.get("view_lag_records")
    said.append(
        "it cannot be read now" if lag is None else f"{lag:.0f} records behind" if lag else "read to its end"
    )
    if waiting := found.get("log_pending_records"):
        said.append(f"{waiting:.0f} wait for the broker, {found.get('log_pending_seconds', 0):.0f} s at most")
    if aside := found.get("log_set_aside_records"):
        said.append(f"{aside:.0f} that the broker refused")
    if events := found.get("webhook_pending"):
        said.append(f"{events:.0f} events wait for the webhook")
    return "; ".join(said)


def _changed(learning: dict[str, Any], policies: list[dict[str, Any]]) -> str:
    """What was decided last, and when."""
    moves = [
        (move["at"], f"{one['id']} went live by {move['by']} ({move['why']})")
        for one in policies
        for move in one["moves"]
    ]
    ends = [
        (one["ended"], f"round {one['round']} {one['verdict']}") for one in learning["rounds"] if one["ended"]
    ]
    at, what = max([*moves, *ends], default=(0, ""))
    return f"{what}, {datetime.fromtimestamp(at):%Y-%m-%d %H:%M:%S}" if what else ""
