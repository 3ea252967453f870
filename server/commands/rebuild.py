"""`apprentice rebuild --base NEW --to DIR`: the lessons alone, for another model to learn."""

import argparse
import os
import shlex
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from server.commands.command import OK, CommandError, parser, print_json
from server.commands.state import add_state, lessons_of, log_of, settings_of

if TYPE_CHECKING:
    from buffer.config import BufferConfig
    from buffer.records import Record
    from buffer.taught import Taught

ABOUT = """\
Take everything that was taught to another base model: a new state directory whose log has the lessons, each
with what was asked, and nothing else. Started on it, the system learns them in rounds and serves the result.
Answers, token ids and policies are left behind, since they mean nothing to another model.

Erased, withdrawn, superseded, quarantined, skipped and held feedback and mere ratings are left out and
counted. What is there is not changed, and may go on running."""

BATCH = 500


def main(argv: Sequence[str]) -> int:
    """Make the state. Raises `CommandError`, `ConfigError`, `BufferError`."""
    arguments = _parse(argv)
    from server.commands.model_choice import check_model

    shared, config = settings_of(arguments)
    check_model(shared.model_copy(update={"model": arguments.base}))
    target: Path = arguments.to.absolute()
    if target.exists():
        raise CommandError(f"{target} exists already", "name a directory that does not exist yet")
    with log_of(shared, config, name="rebuild") as log:
        lessons, left_out = lessons_of(log)
    if not lessons:
        raise CommandError(
            f"there is nothing to learn again; left out: {_counts(left_out)}",
            "`apprentice feedback list` shows what became of each piece",
        )
    make_state(target, lessons)
    told = {
        "state": str(target),
        "lessons": len(lessons),
        "without_tools": sum(lesson.without_tools for lesson in lessons),
        "left_out": dict(left_out),
        "next": next_command(target, arguments.base, config),
    }
    if arguments.json:
        print_json(told)
    else:
        print(f"lessons taken along: {told['lessons']}; left out: {_counts(left_out)}")
        if told["without_tools"]:
            print(f"  of them without the tools that they were asked with: {told['without_tools']}")
        print(f"next, to learn and serve them:\n  {told['next']}")
    return OK


def make_state(target: Path, lessons: Sequence["Taught"]) -> None:
    """A new state directory with these lessons in its log, whole or not at all. Raises `BufferError`."""
    from buffer.backend import JOURNAL
    from buffer.files import make_directory, publish_directory
    from buffer.journal import Journal

    make_directory(target.parent)
    with TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        making = Path(folder) / "state"
        with closing(Journal(making / JOURNAL)) as journal:
            for first in range(0, len(lessons), BATCH):
                journal.append([record_of(one) for one in lessons[first : first + BATCH]]).result()
        publish_directory(making, target)


def record_of(lesson: "Taught") -> "Record":
    """The lesson as a record of its own: the feedback's id and time, and where its question belongs."""
    from buffer.records import Record
    from server.identity import conversation_of

    given = lesson.alone()
    return Record.of(
        given,
        time=datetime.fromtimestamp(lesson.feedback.received, UTC),
        randomness=os.urandom(10),
        partition_key=conversation_of(given.principal, {"messages": lesson.messages}),
    )


def next_command(target: Path, base: str, config: "BufferConfig") -> str:
    """What starts the system on the new state; under Kafka not on the topics of the old one."""
    prefix = f"{config.kafka.topic_prefix}{target.name}."
    topics = f"APPRENTICE_BUFFER_KAFKA_TOPIC_PREFIX={prefix} " if config.backend == "kafka" else ""
    return f"{topics}apprentice up {shlex.join(['--state', str(target), '--model', base])}"


def _counts(left_out: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items())) or "none"


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    made = parser("rebuild", ABOUT)
    made.add_argument(
        "--base",
        required=True,
        metavar="MODEL",
        help="the new base: built in, a directory, or a hub id",
    )
    made.add_argument("--to", required=True, type=Path, metavar="DIR", help="the new state directory")
    add_state(made)
    return made.parse_args(argv)
