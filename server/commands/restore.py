"""`apprentice import --log FILE`: an exported log becomes the log of an empty state directory."""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from shutil import copyfileobj
from typing import BinaryIO

from server.commands.command import CommandError
from server.commands.state import alone, settings_of

VIEWS = {"server": "server/view.db", "learner": "learner/view.db"}
"""The view files of a state directory, by who keeps them."""


def restore_log(arguments: argparse.Namespace) -> int:
    """Restore it; how many records it holds. Raises `CommandError`, `ConfigError`, `BufferError`."""
    from buffer.backup import restore

    shared, config = settings_of(arguments)
    with _opened(arguments.file) as lines, alone(shared):
        for view in VIEWS.values():  # of a log that is gone: they would be taken for views of this one
            for suffix in ("", "-wal", "-shm"):
                Path(f"{shared.state / view}{suffix}").unlink(missing_ok=True)

        def read() -> Iterator[bytes]:
            lines.seek(0)
            return (line for line in lines if line.strip())

        return restore(shared, config, read)


def _opened(file: str) -> BinaryIO:
    """The file, to be read more than once. Raises `CommandError`."""
    try:
        if file != "-":
            return open(file, "rb")
        spooled = tempfile.TemporaryFile()  # noqa: SIM115
        copyfileobj(sys.stdin.buffer, spooled)
        return spooled
    except OSError as error:
        raise CommandError(
            f"{file} cannot be read: {error.strerror or error}", "name what `apprentice export` wrote"
        ) from None
