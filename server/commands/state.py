"""How the commands work on a state directory without its server: its log, and whether anything runs on it."""

import argparse
import os
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from server.commands.command import CommandError

if TYPE_CHECKING:
    from collections import Counter

    from buffer.config import BufferConfig, Shared
    from buffer.log import Log
    from buffer.taught import Taught
    from buffer.view import Keys

LOCKS = {
    "a supervisor (`apprentice up`)": "run/up.lock",
    "a server": "run/server.lock",
    "a learner": "run/learner.lock",
    "a relay": "relay.lock",
}
"""Who runs on a state directory, and the file that it locks."""


def add_state(parser: argparse.ArgumentParser) -> None:
    """The arguments from which `settings_of` finds the state directory and its log."""
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="configuration (default: apprentice.toml)"
    )
    parser.add_argument("--state", type=Path, metavar="DIR", help="the state directory")


def settings_of(arguments: argparse.Namespace) -> "tuple[Shared, BufferConfig]":
    """Raises `ConfigError`."""
    from buffer.config import BufferConfig, Shared, load

    shared = load(Shared, file=arguments.config, flags={"state": arguments.state})
    return shared, load(BufferConfig, "buffer", file=arguments.config)


@contextmanager
def log_of(shared: "Shared", config: "BufferConfig", *, name: str) -> "Iterator[Log]":
    """The state's log, for reading; processes may go on with it. Raises `CommandError` if there is none."""
    from buffer.backend import journal_path, open_log

    if config.backend == "journal" and not journal_path(shared).exists():
        raise CommandError(
            f"there is no log in {shared.state}",
            "name the right state directory with --state DIR",
        )
    with closing(open_log(shared, config, name=name)) as log:
        yield log


def lessons_of(log: "Log", principal: str | None = None) -> "tuple[list[Taught], Counter[str]]":
    """What was taught, and how much is left out, from the log alone. Raises `LogUnavailable`."""
    from buffer.taught import collect
    from buffer.view import View

    with TemporaryDirectory(prefix="apprentice-") as folder, closing(View(Path(folder) / "view.db")) as view:
        return collect(log, view, principal)


def keys_of(log: "Log") -> "Keys":
    """The keys of a log: as its readers know them, and with what was appended here that they do not have yet.

    Raises `LogUnavailable`.
    """
    from buffer.log import read_to_end
    from buffer.view import View

    passed_over = {stream: at for stream, at in log.ends().items() if stream != "control"}
    with closing(View(":memory:")) as view:
        for records, positions in read_to_end(log, passed_over):
            view.apply(records, positions)
        last = log.last("control")
        after = view.seen(last.source, "control") if last is not None else 0
        while records := log.appended("control", after):
            view.apply(records, {})
            after = records[-1].sequence
        return view.keys()


@contextmanager
def alone(shared: "Shared") -> Iterator[None]:
    """Nothing runs on the state directory meanwhile. Raises `CommandError` naming what does, or what is wrong
    with the directory."""
    from buffer.files import lock

    with ExitStack() as held:
        for who, name in LOCKS.items():
            try:
                fd = lock(shared.state / name)
            except OSError as error:
                raise CommandError(
                    f"{shared.state} cannot be used: {error}",
                    "name a state directory of your own with --state DIR",
                ) from None
            if fd is None:
                raise CommandError(f"{who} runs on {shared.state}", "stop it first, then run this again")
            held.callback(os.close, fd)
        yield
