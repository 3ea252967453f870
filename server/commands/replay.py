"""`apprentice replay`: the views rebuilt from the log alone, and compared with those that are there."""

import argparse
import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.commands.command import FAILED, OK, USAGE, parser, plain, print_json
from server.commands.restore import VIEWS
from server.commands.state import add_state, log_of, settings_of

if TYPE_CHECKING:
    from buffer.log import Log
    from buffer.replay import From, Replayed

ABOUT = """\
Build the look-ups of the server and the learner anew from the log alone, and say what differs from those
that are there: nothing should. One that differs is replaced if its process does not run; while it runs,
they are only compared.

With --from, what is known from before is kept and the log is applied once more from there on:
  --from 2026-05-01T12:00        records of that time (UTC) or later
  --from '{"rounds": {"0": 40}}' from these positions on, of streams not named from the start"""

EXITS = {
    OK: "nothing differs",
    FAILED: "something differs, or it could not be done; the message says what",
    USAGE: "wrong arguments or configuration",
}


def main(argv: Sequence[str]) -> int:
    """Replay. Raises `CommandError`, `ConfigError`, `BufferError`."""
    arguments = _parse(argv)
    shared, config = settings_of(arguments)
    with log_of(shared, config, name="replay") as log:
        views = {who: shared.state / name for who, name in VIEWS.items()}
        found = [
            _replay(log, who, view, shared.state / "run" / f"{who}.lock", arguments.begin)
            for who, view in views.items()
            if view.exists()
        ]
    if arguments.json:
        print_json(found)
    else:
        text = "\n".join(map(_text, found))
        print(plain(text or "no process has kept a view here yet: nothing to compare"))
    return OK if all(one["same"] for one in found) else FAILED


def _replay(log: "Log", who: str, view: Path, lock_file: Path, begin: "From | None") -> dict[str, Any]:
    """Of one view. Its process can't start while it is replaced."""
    from buffer.files import lock, scratch
    from buffer.replay import put_in_place, replay

    owned = lock(lock_file)
    try:
        with scratch(view.parent, ".replay-") as folder:
            built = folder / "view.db"
            result = replay(log, view, built, begin)
            replaced = owned is not None and not result.same
            if replaced:
                put_in_place(built, view)
    finally:
        if owned is not None:
            os.close(owned)
    return {"view": who, "same": result.same, "replaced": replaced, **_told(result)}


def _told(result: "Replayed") -> dict[str, Any]:
    differences = [
        {
            "table": one.table,
            "only_there": one.only_there,
            "only_from_log": one.only_from_log,
            "examples": list(one.examples),
        }
        for one in result.differences
    ]
    return {"records": result.records, "unusable": result.unusable or None, "differences": differences}


def _text(one: dict[str, Any]) -> str:
    told = f"{one['view']}: {one['records']} records replayed"
    if one["same"]:
        return f"{told}, nothing differs"
    lines = [f"{told}, and the view that was there differs"]
    if one["unusable"]:
        lines.append(f"  {one['unusable']}")
    lines += [
        f"  {found['table']}: {found['only_there']} rows only there,"
        f" {found['only_from_log']} only from the log ({', '.join(found['examples'])})"
        for found in one["differences"]
    ]
    lines.append(
        "  it was replaced by the one from the log"
        if one["replaced"]
        else "  it was left alone, because its process runs: stop it, then replay again to replace it"
    )
    return "\n".join(lines)


def beginning(text: str) -> "From":
    """What --from says. Raises `ValueError`."""
    from buffer.records import STREAMS
    from buffer.replay import From

    if not text.startswith("{"):
        time = datetime.fromisoformat(text)
        return From(time=time if time.tzinfo else time.replace(tzinfo=UTC))
    positions = {
        stream: {int(partition): int(offset) for partition, offset in partitions.items()}
        for stream, partitions in json.loads(text).items()
    }
    if unknown := sorted(positions.keys() - set(STREAMS)):
        raise ValueError(f"there is no stream {unknown[0]}; there are {', '.join(STREAMS)}")
    return From(positions)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    made = parser("replay", ABOUT, EXITS)
    made.add_argument("--from", dest="begin", metavar="TIME|POSITIONS", help="where to begin")
    add_state(made)
    arguments = made.parse_args(argv)
    if arguments.begin is not None:
        try:
            arguments.begin = beginning(arguments.begin)
        except (ValueError, AttributeError, TypeError) as error:
            made.error(f"--from takes a time or positions, as --help shows: {error}")
    return arguments
