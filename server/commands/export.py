"""`apprentice export FILE`: the whole log as a file, or the lessons alone, for training elsewhere."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.commands.command import OK, CommandError, parser, print_json
from server.commands.state import add_state, lessons_of, log_of, settings_of

if TYPE_CHECKING:
    from buffer.log import Log
    from buffer.taught import Taught

ABOUT = """\
Write the log to a file: a backup. The system may go on running. A line is one record, as CloudEvents has it
in JSON; what was erased is there without its content. `apprentice import --log FILE` restores it into a new
state directory. Copy beside it what is not in the log:

  adapters/        in the state directory: the policies that were learned
  secret           without it no feedback can be given on earlier answers
  apprentice.toml  the settings, keys and all

With --lessons only what was taught, in the columns of TRL's SDFT trainer (prompt, privileged_context), for
training elsewhere or `apprentice import FILE`. Erased, withdrawn, superseded, quarantined, skipped and held
feedback and mere ratings are left out and counted."""


def main(argv: Sequence[str]) -> int:
    """Write the file. Raises `CommandError`, `ConfigError`, `BufferError`."""
    arguments = _parse(argv)
    with log_of(*settings_of(arguments), name="export") as log:
        try:
            with _target(arguments.file) as write:
                told = _lessons(log, write, arguments.principal) if arguments.lessons else _log(log, write)
        except OSError as error:
            raise CommandError(
                f"{arguments.file} cannot be written: {error.strerror or error}", "name another file"
            ) from None
    sys.stdout.flush()
    if arguments.json:
        print_json(told, sys.stderr if arguments.file == "-" else sys.stdout)
    else:
        print(_text(told), file=sys.stderr if arguments.file == "-" else sys.stdout)
    return OK


def _log(log: "Log", write: Callable[[bytes], Any]) -> dict[str, Any]:
    from rich.console import Console
    from rich.progress import Progress

    from buffer.backup import export

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("exporting")
        done = export(log, write, lambda done, of: progress.update(task, completed=done, total=of))
    return {
        "records": done.records,
        "erased": done.erased,
        "unknown": done.unknown,
        "unrelayed": list(done.unrelayed),
    }


def _lessons(log: "Log", write: Callable[[bytes], Any], principal: str | None) -> dict[str, Any]:
    from pydantic_core import to_json

    lessons, left_out = lessons_of(log, principal)
    for lesson in lessons:
        write(to_json(line(lesson)) + b"\n")
    without_tools = sum(lesson.without_tools for lesson in lessons)
    return {"lessons": len(lessons), "without_tools": without_tools, "left_out": dict(left_out)}


def line(lesson: "Taught") -> dict[str, Any]:
    """A lesson in TRL's columns, and ours."""
    given, fate = lesson.given, lesson.feedback.fate
    found: dict[str, Any] = {
        "prompt": lesson.messages,
        "privileged_context": lesson.context,
        "kind": lesson.kind,
        "status": fate.status,
        "feedback_id": given.feedback_id,
        "completion_id": given.completion_id,
        "principal": given.principal,
    }
    return found | ({"check": given.check.model_dump()} if given.check is not None else {})


def _text(told: dict[str, Any]) -> str:
    if "lessons" in told:
        lines = [f"lessons exported: {told['lessons']}"]
        lines += [f"  left out, {reason}: {count}" for reason, count in sorted(told["left_out"].items())]
        if told["without_tools"]:
            lines.append(f"  exported without the tools that they were asked with: {told['without_tools']}")
        return "\n".join(lines)
    lines = [f"records exported: {told['records']}, of them {told['erased']} erased (without content)"]
    if told["unknown"]:
        lines.append(f"  of types that this release does not know, exported as they are: {told['unknown']}")
    if told["unrelayed"]:
        streams = ", ".join(told["unrelayed"])
        lines.append(
            f"  MISSING: the last records of {streams}, which the broker does not have yet\n"
            "  → start the relay (`apprentice up`), then export again"
        )
    lines.append("copy adapters/, secret and apprentice.toml beside it; --help says why")
    return "\n".join(lines)


@contextmanager
def _target(file: str) -> Iterator[Callable[[bytes], Any]]:
    """Where the lines go: a file that appears when it is whole and on disk, or standard output."""
    from buffer.files import writing

    if file == "-":
        yield sys.stdout.buffer.write
    else:
        with writing(Path(file)) as out:
            yield out.write


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    made = parser("export", ABOUT)
    made.add_argument("file", metavar="FILE", help="where to write it, or - for standard output")
    made.add_argument("--lessons", action="store_true", help="only what was taught, for training elsewhere")
    made.add_argument("--principal", metavar="NAME", help="with --lessons: only what this principal taught")
    add_state(made)
    arguments = made.parse_args(argv)
    if arguments.principal is not None and not arguments.lessons:
        made.error("--principal goes with --lessons: a log is exported whole")
    return arguments
