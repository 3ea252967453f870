"""The command line: one table, resolved after the command is known.

A target is `module:function`; the function takes the arguments behind the command's name and returns the
exit code. Nothing else is imported before that, so that no wall is crossed and `--help` is quick.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence

from server.commands.command import FAILED, INTERRUPTED, USAGE, CommandError, print_error

COMMANDS: Mapping[str, tuple[str, str]] = {
    "up": ("server.commands.up:main", "start the server and the learner, and keep them running"),
    "serve": ("server.commands.serve:main", "the server alone: vLLM and the gateway in front of it"),
    "learn": ("learner.__main__:main", "the learner alone: trains on corrections in the background"),
    "demo": ("server.commands.demo:main", "teach eight facts to a running server, and show before and after"),
    "bench": (
        "server.commands.bench:main",
        "measure the log, learning and its cost, beside what they compare to",
    ),
    "doctor": ("server.commands.doctor:main", "check the installation and its state, and say what to do"),
    "status": ("server.commands.status:main", "what is served, what the learner does and why"),
    "keys": ("server.commands.keys:main", "make, list and revoke the keys with which programs call"),
    "feedback": ("server.commands.feedback:main", "list, show, send or withdraw feedback"),
    "explain": ("server.commands.explain:main", "all that happened to one piece of feedback, and why"),
    "import": (
        "server.commands.import_:main",
        "give demonstrations to a server, or restore an exported log",
    ),
    "export": ("server.commands.export:main", "write the log, or the lessons alone, to a file"),
    "replay": ("server.commands.replay:main", "rebuild the look-ups from the log, and say what differed"),
    "rebuild": ("server.commands.rebuild:main", "take all lessons to another base model, in a new state"),
    "erase": ("server.commands.erase:main", "erase an exchange, feedback, or all of a principal"),
    "policies": ("server.commands.policies:main", "list, show or promote policies, or roll back"),
    "merge": ("learner.merge:main", "write the base model with a policy merged in, for any program to load"),
}
"""Name: (`module:function`, one line of help)."""


def resolve(target: str) -> Callable[[Sequence[str]], int]:
    """The function that a `module:function` string names."""
    module, _, name = target.partition(":")
    function: Callable[[Sequence[str]], int] = getattr(importlib.import_module(module), name)
    return function


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. The boundary where a command's errors become a message and an exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] not in COMMANDS:
        _help().parse_args(arguments or ["--help"])  # prints help or the error, and exits
        return USAGE
    as_json = "--json" in arguments
    try:
        return resolve(COMMANDS[arguments[0]][0])(arguments[1:])
    except CommandError as error:
        print_error(str(error), error.hint, error.code, as_json=as_json)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # the reader (`| head`) has gone: what is still buffered must not raise again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        from buffer.config import ConfigError  # pydantic is loaded by then, and not for --help
        from buffer.log import BufferError

        if not isinstance(error, ConfigError | BufferError):
            raise
        print_error(str(error), error.hint, error.code, as_json=as_json)
        return USAGE if isinstance(error, ConfigError) else FAILED


def _help() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    parser = argparse.ArgumentParser(
        prog="apprentice",
        description="An OpenAI-compatible model server that learns on the job.",
        epilog="commands:\n"
        + "\n".join(f"  {name:{width}}  {about}" for name, (_, about) in COMMANDS.items())
        + "\n\n`apprentice COMMAND --help` shows a command's arguments and exit codes; all take --json.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=list(COMMANDS), metavar="COMMAND", help="one of those below")
    return parser


if __name__ == "__main__":
    sys.exit(main())
