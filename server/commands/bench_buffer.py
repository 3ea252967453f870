"""`apprentice bench buffer`: what the log takes on this machine, each figure beside its floor or its rival.

The disk's flush under the journal's appends, `NORMAL` beside `FULL`, feedback over HTTP, the relay beside
kafka-python's own producer where a broker is configured. Everything is written into the state directory,
whose disk is the one that counts, and deleted afterwards.
"""

import argparse
import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from server.commands.command import OK, CommandError, parser, print_json

SHAPES = ((1, 1), (1, 16), (1, 64), (10, 16), (100, 8))
"""Records in an append, and how many appends are under way."""
FEEDBACK = ((1, 1), (16, 1), (64, 1), (16, 16))
"""Requests under way, and corrections in each."""
NO_BROKER = 'set backend = "kafka" in [buffer] and bootstrap_servers in [buffer.kafka] to measure the relay'


class BenchFailed(CommandError):
    """Something that was to be measured does not work."""

    code = "bench_failed"


def main(argv: Sequence[str]) -> int:
    """Measure and print. Raises `BenchFailed`, `ConfigError`."""
    options = _parse(argv)
    from buffer.config import BufferConfig, Shared, load
    from buffer.files import make_directory
    from buffer.log import BufferError
    from server.commands.bench_gateway import Refused

    state = load(Shared, file=options.config, flags={"state": options.state}).state.absolute()
    config = load(BufferConfig, "buffer", file=options.config)
    make_directory(state)
    try:
        with tempfile.TemporaryDirectory(dir=state, prefix="bench-") as directory:
            found = measure(Path(directory), config, records=options.records, size=options.size)
    except (BufferError, Refused) as error:
        raise BenchFailed(str(error), getattr(error, "hint", "")) from error
    if options.json:
        print_json(found)
    else:
        show(found)
    return OK


def measure(directory: Path, config: Any, *, records: int, size: int) -> dict[str, Any]:
    """All figures, as JSON. `directory` is empty and on the disk that is asked about."""
    from buffer.bench import Timing, appends, flushes
    from server.commands.bench_gateway import gateway, load

    def row(timing: Timing, **about: Any) -> dict[str, Any]:
        return {**about, **asdict(timing), "per_second": timing.per_second}

    flush = flushes(directory, size, max(records // 50, 1))
    journal = [
        row(
            # alone each append waits for a flush of its own, so a tenth of them says as much
            appends(
                directory,
                records=records if batch * appenders > 1 else max(records // 10, 1),
                size=size,
                batch=batch,
                appenders=appenders,
                durability=durability,
            ),
            batch=batch,
            appenders=appenders,
            durability=durability,
        )
        for batch, appenders in SHAPES
        for durability in ("FULL", "NORMAL")
    ]
    with gateway(directory) as (url, completions):
        feedback = [
            row(
                asyncio.run(load(url, completions, count=max(records // 5, 1), callers=callers, array=array)),
                callers=callers,
                array=array,
            )
            for callers, array in FEEDBACK
        ]
    found: dict[str, Any] = {"size": size, "fsync": row(flush), "journal": journal, "feedback": feedback}
    if config.backend == "kafka":
        from buffer.bench_relay import compare

        found["relay"] = compare(directory, config, records=records, size=size)
    return found


def show(found: dict[str, Any]) -> None:
    """The figures as tables of ratios."""
    from rich.console import Console
    from rich.table import Table

    def table(title: str, *heads: str) -> Table:
        made = Table(title=title, title_justify="left")
        for head in heads:
            made.add_column(head, justify="right")
        return made

    console, flush = Console(highlight=False, markup=False), found["fsync"]
    journal = table(
        f"journal, records of {found['size']} bytes; one fsync of this disk: "
        f"p50 {flush['p50_ms']:.2f} ms, p99 {flush['p99_ms']:.2f} ms",
        "batch", "appenders", "durability", "records/s", "p50 ms", "p99 ms", "p50 / fsync", "of NORMAL",
    )  # fmt: skip
    loose = {
        (one["batch"], one["appenders"]): one for one in found["journal"] if one["durability"] == "NORMAL"
    }
    for one in found["journal"]:
        share = one["per_second"] / loose[one["batch"], one["appenders"]]["per_second"]
        journal.add_row(
            str(one["batch"]), str(one["appenders"]), one["durability"], *_speed(one),
            f"{one['p50_ms'] / flush['p50_ms']:.1f}", f"{share:.0%}",
        )  # fmt: skip
    feedback = table(
        "POST /v1/feedback, to the 202 after the flush",
        "callers",
        "in a request",
        "accepted/s",
        "p50 ms",
        "p99 ms",
        "p50 / fsync",
    )
    for one in found["feedback"]:
        over_flush = f"{one['p50_ms'] / flush['p50_ms']:.1f}"
        feedback.add_row(str(one["callers"]), str(one["array"]), *_speed(one), over_flush)
    console.print(journal, feedback)
    if "relay" not in found:
        console.print(f"relay: not measured\n  → {NO_BROKER}")
        return
    relay = table("to the broker, idempotent, acks=all", "producer", "records/s", "of plain")
    for name, per_second in found["relay"].items():
        relay.add_row(name, f"{per_second:.0f}", f"{per_second / found['relay']['plain']:.0%}")
    console.print(relay)


def _speed(one: dict[str, Any]) -> tuple[str, str, str]:
    return f"{one['per_second']:.0f}", f"{one['p50_ms']:.1f}", f"{one['p99_ms']:.1f}"


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    made = parser("bench buffer", "What the log takes on this machine, beside the disk and plain clients.")
    made.add_argument("what", choices=["buffer"], help=argparse.SUPPRESS)
    made.add_argument("--records", type=int, default=20_000, metavar="N", help="of each measurement (20000)")
    made.add_argument("--size", type=int, default=2048, metavar="BYTES", help="of a record's data (2048)")
    made.add_argument("--config", type=Path, metavar="FILE", help="configuration (apprentice.toml)")
    made.add_argument("--state", type=Path, metavar="DIR", help="measure the disk of this directory")
    options = made.parse_args(argv)
    if options.records < 1 or not 1 <= options.size <= 1_000_000:
        made.error("--records is at least 1, --size 1 to 1000000")
    return options
