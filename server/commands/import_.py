"""`apprentice import FILE`: demonstrations from a JSONL file, given to a running server as feedback.

(`--log FILE` restores an exported log instead: `server.commands.restore`.)

A line is a chat that ends with the right answer, or has the columns of TRL's SDFT trainer:

    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}
    {"prompt": "…" or messages, "privileged_context": "…" or ["…", "…"]}

The second may have `"kind": "instruction"`: its text says how to answer. Either may have a `check`, as in
`POST /v1/feedback`. All lines are checked before any is sent. Each is a request of its own, whose
`Idempotency-Key` is the digest of what it says: a line that was taken is not taken twice, after a cut or when
the file has grown since.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.commands.client import CallFailed, Client, add_arguments
from server.commands.command import OK, CommandError, parser, print_json

ABOUT = """\
Give demonstrations from a JSONL file to a running server, to learn from. A line is one of:

  {"messages": [..., {"role": "assistant", "content": "the right answer"}]}
  {"prompt": TEXT or [messages], "privileged_context": TEXT or [TEXT, ...]}    as TRL's SDFT has it

with an optional "check": {"contains": TEXT}; with "kind": "instruction" the text says how to answer instead
of being the answer. Other keys are ignored. Of one question the last line counts. Nothing is sent unless all
lines are right, and running it again takes no line twice, also when lines were added since. One that was
withdrawn or superseded meanwhile is not given again either, unless its words change.

With --log the file is an exported log (`apprentice export`), restored into a state directory that has no
log yet, while nothing runs on it. Copy adapters/, secret and apprentice.toml from where it was, then start.
A file that was exported before an erasure still holds what was erased."""

SHOWN = 5
"""Lines that cannot be imported and are named, of however many there are."""
LIMITED_S = 2.0
"""Between tries while the server lets no more requests of a minute through."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the file as feedback."""

    number: int
    body: dict[str, Any]


class FileRefused(CommandError):
    """The file cannot be read, or some of its lines are no demonstrations. Nothing was sent."""

    code = "file_refused"


class ImportStopped(CommandError):
    """The server did not take a line; those before it are taken. `code` is the cause's."""

    def __init__(self, cause: CommandError, line: Line, taken: int) -> None:
        again = "run the same command again: what was taken is not taken twice"
        super().__init__(
            f"line {line.number}: {cause} (demonstrations taken before that: {taken})",
            f"{cause.hint}; then {again}" if cause.hint else again,
        )
        self.code = cause.code


def main(argv: Sequence[str]) -> int:
    """Check the file, then send it. Raises `CommandError`, `ConfigError`."""
    arguments = _parse(argv)
    if arguments.log:
        return _restore(arguments)
    from buffer.config import load  # pydantic, which --help needs nothing of
    from server.config import ServerConfig

    config = load(ServerConfig, "server", file=arguments.config)
    lines = check(_read(arguments.file), config.max_feedback_chars, config.max_body_bytes)
    ids = send(Client.of(arguments), lines)
    if arguments.json:
        print_json({"imported": len(ids), "ids": ids})
    else:
        print(
            f"demonstrations imported: {len(ids)}; `apprentice status` tells what the learner does with them"
        )
    return OK


def _restore(arguments: argparse.Namespace) -> int:
    from server.commands.restore import restore_log

    records = restore_log(arguments)
    if arguments.json:
        print_json({"restored": records})
    else:
        print(
            f"records restored: {records}\ncopy adapters/, secret and apprentice.toml, then `apprentice up`"
        )
    return OK


def check(data: bytes, max_chars: int, max_bytes: int) -> list[Line]:
    """All lines of a file, blank ones left out. Raises `FileRefused` naming those that will not do."""
    lines, wrong = [], []
    for number, text in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not text.strip():
            continue
        try:
            body = demonstration(text, max_chars)
            size = len(json.dumps(body))
            if size > max_bytes:
                raise ValueError(f"takes {size} bytes, above the limit of {max_bytes} of a request")
            lines.append(Line(number, body))
        except ValueError as error:
            wrong.append(f"line {number}: {error}")
    if wrong:
        count, more = len(lines) + len(wrong), len(wrong) - SHOWN
        shown = [*wrong[:SHOWN], *([f"and {more} more"] if more > 0 else [])]
        raise FileRefused(
            f"{len(wrong)} of {count} lines cannot be imported, so nothing was sent:\n    "
            + "\n    ".join(shown),
            "correct or remove them, then run it again; `apprentice import --help` shows what a line may be",
        )
    if not lines:
        raise FileRefused("the file is empty", "give one with a demonstration on each line")
    return lines


def demonstration(text: bytes, max_chars: int) -> dict[str, Any]:
    """The body of `POST /v1/feedback` that a line stands for. Raises `ValueError` saying what is wrong."""
    from pydantic_core import from_json  # what the server reads a body with

    from server.api import lessons
    from server.errors import RequestRefused

    try:
        line = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise ValueError(f"is not JSON: {error}".replace("line 1 column", "column")) from None
    if not isinstance(line, dict):
        raise ValueError("is not a JSON object")
    if "specversion" in line and "stream" in line:
        raise ValueError("is a record of an exported log, which `apprentice import --log` restores")
    if line.get("messages") is not None:
        messages, answer = _of_chat(line["messages"])
    elif line.get("prompt") is not None and line.get("privileged_context") is not None:
        messages, answer = _of_columns(line["prompt"], line["privileged_context"])
    else:
        raise ValueError("has neither messages, nor prompt and privileged_context")
    kind = "instruction" if line.get("kind") == "instruction" else "demonstration"
    body = {"kind": kind, "messages": messages, "text": answer}
    if line.get("check") is not None:
        body["check"] = line["check"]
    try:
        lessons.parse(body, max_chars)
    except RequestRefused as error:
        raise ValueError(str(error)) from None
    return body


def send(client: Client, lines: Sequence[Line]) -> list[str]:
    """Give them to the server; their ids in order. Raises `ImportStopped`."""
    from rich.console import Console
    from rich.progress import Progress

    from server.api.lessons import digest

    ids: list[str] = []
    said: Counter[str] = Counter()
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("importing", total=len(lines))
        for line in lines:
            what = digest(line.body)
            said[what] += 1  # said again below another answer to the question, it counts again
            try:
                ids.append(_give(client, line.body, f"import-{what}-{said[what]}"))
            except CommandError as cause:
                raise ImportStopped(cause, line, len(ids)) from None
            progress.update(task, completed=len(ids))
    return ids


def _give(client: Client, body: dict[str, Any], key: str) -> str:
    """The id of what was taken, as soon as the server lets another request through."""
    while True:
        try:
            return str(client.post("/v1/feedback", body, {"Idempotency-Key": key})["id"])
        except CallFailed as refused:
            if refused.code != "rate_limited":
                raise
        time.sleep(LIMITED_S)


def _of_chat(messages: Any) -> tuple[Any, Any]:
    """What was asked, and the answer: the last message."""
    last = messages[-1] if isinstance(messages, list) and messages else None
    if not isinstance(last, dict) or last.get("role") != "assistant":
        raise ValueError("messages must be a list whose last one is the assistant's")
    if last.get("tool_calls"):
        raise ValueError("the last message calls tools: only text can be taught")
    if len(messages) == 1:
        raise ValueError("messages must hold what was asked before the assistant's message")
    return messages[:-1], last.get("content")


def _of_columns(prompt: Any, context: Any) -> tuple[Any, Any]:
    """What was asked, and the answer that the teacher is shown; several texts are joined by a blank line."""
    parts = [context] if isinstance(context, str) else context
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise ValueError("privileged_context must be a text or a list of texts")
    if not isinstance(prompt, str | list):
        raise ValueError("prompt must be a text or a list of messages")
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt, "\n\n".join(parts)


def _read(file: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise FileRefused(
            f"{file} cannot be read: {error.strerror}", "name a JSONL file, or - for stdin"
        ) from None


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    made = parser("import", ABOUT)
    made.add_argument("file", metavar="FILE", help="a JSONL file, or - for standard input")
    made.add_argument("--log", action="store_true", help="FILE is an exported log: restore it")
    add_arguments(made)
    return made.parse_args(argv)
