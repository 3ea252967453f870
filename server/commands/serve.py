"""`apprentice serve`: the gateway process with flags, for a server without a learner beside it."""

import os
from collections.abc import Sequence

from server.commands.command import EXITS, OK, parser, print_json
from server.commands.model_choice import check_model
from server.commands.settings import add_flags, read_settings


def main(argv: Sequence[str]) -> int:
    """Serve until a signal. Raises `CommandError`, `ConfigError`."""
    made = parser(
        "serve",
        "Start vLLM and the gateway in front of it, without a learner. Ctrl-C drains and stops.",
        {**EXITS, OK: "stopped by Ctrl-C or SIGTERM"},
    )
    add_flags(made)
    arguments = made.parse_args(argv)
    settings = read_settings(arguments)
    if arguments.dry_run:
        print_json(settings.masked())
        return OK
    check_model(settings.shared)
    os.environ.update(settings.env)
    from server.__main__ import main as serve  # the web framework loads here, and not for --help

    return serve([])
