"""How the commands talk to a running server: find it, call it, and say clearly when that cannot be done."""

import argparse
import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, urlencode

from server.commands.command import CommandError

RUN_FILE = Path("run/server.json")
"""In the state directory, written by the gateway: `{"url", "pid"}`."""

START_HINT = "start it in another terminal with `make up` (or `apprentice up`), and wait until it says ready"


class ServerSilent(CommandError):
    """No server answers."""

    code = "server_unreachable"


class CallFailed(CommandError):
    """The server answered with an error; `status` is the HTTP one, `code` and `hint` are the server's."""

    def __init__(self, message: str, hint: str, *, status: int, code: str) -> None:
        super().__init__(message, hint)
        self.status = status
        self.code = code


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments from which `Client.of` finds the server."""
    parser.add_argument("--url", help="where it listens (default: $APPRENTICE_URL, else this state's server)")
    parser.add_argument("--key", help="bearer key, where the server has keys (default: $OPENAI_API_KEY)")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="configuration (default: apprentice.toml)"
    )
    parser.add_argument("--state", type=Path, metavar="DIR", help="state directory, to find the server by")


def add_action(actions: Any, name: str, what: str) -> argparse.ArgumentParser:
    """One action of a command. The command's own arguments may also stand behind the action's name."""
    made: argparse.ArgumentParser = actions.add_parser(
        name, help=what, description=what, argument_default=argparse.SUPPRESS
    )
    made.add_argument("--json", action="store_true", help="JSON for programs instead of text for people")
    add_arguments(made)
    return made


class Client:
    """A server and the key to call it with. Every call raises `ServerSilent` or `CallFailed`."""

    def __init__(self, url: str, key: str | None = None, *, timeout_s: float = 30.0) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self.key = key
        self._timeout_s = timeout_s

    @classmethod
    def of(cls, arguments: argparse.Namespace, *, timeout_s: float = 30.0) -> Self:
        """The server that the arguments, the environment or the state directory name."""
        url = arguments.url or os.environ.get("APPRENTICE_URL") or _running(arguments.config, arguments.state)
        return cls(url, arguments.key or os.environ.get("OPENAI_API_KEY"), timeout_s=timeout_s)

    def get(self, path: str, **query: str | None) -> Any:
        """GET; parameters that are None are left out."""
        given = {name: value for name, value in query.items() if value is not None}
        return self.call("GET", path + (f"?{urlencode(given)}" if given else ""))

    def pages(self, path: str, **query: str | None) -> Iterator[Any]:
        """All items of a listing, page after page."""
        after: str | None = None
        while True:
            page = self.get(path, after=after, **query)
            yield from page["data"]
            if not page.get("has_more") or not page["data"]:
                return
            after = str(page["data"][-1]["id"])

    def post(self, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Any:
        return self.call("POST", path, {} if body is None else body, headers)

    def delete(self, path: str) -> Any:
        return self.call("DELETE", path)

    def call(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Any:
        """One request; the parsed JSON of a 2xx answer (None when it is empty)."""
        text = self._send(method, path, body, headers)
        try:
            return json.loads(text) if text else None
        except ValueError as error:
            raise ServerSilent(f"{self.url} does not answer like an Apprentice server: {error}") from None

    def text(self, path: str) -> str:
        """GET of what is not JSON."""
        return self._send("GET", path).decode(errors="replace")

    def _send(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> bytes:
        request = urllib.request.Request(  # noqa: S310 - the URL is the user's own
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"content-type": "application/json", **(headers or {})},
        )
        if self.key:
            request.add_header("authorization", f"Bearer {self.key}")
        try:
            with urllib.request.urlopen(request, timeout=self._timeout_s) as answer:  # noqa: S310
                text: bytes = answer.read()
            return text
        except urllib.error.HTTPError as error:
            with error:
                raise _failure(error.code, error.read()) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise ServerSilent(f"no server answers at {self.url} ({reason})", START_HINT) from None


def segment(value: str) -> str:
    """`value` as one segment of a path."""
    return quote(value, safe="")


def read_run_file(state: Path) -> str | None:
    """The URL of the server that this state directory belongs to, while its file is there."""
    try:
        return str(json.loads((state / RUN_FILE).read_text())["url"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _running(config: Path | None, state: Path | None) -> str:
    from buffer.config import Shared, load

    directory = load(Shared, file=config, flags={"state": state}).state
    if url := read_run_file(directory):
        return url
    raise ServerSilent(f"no server runs on the state directory {directory}", f"{START_HINT}; or give --url")


def _failure(status: int, text: bytes) -> CallFailed:
    try:
        error = json.loads(text)["error"]
        message, hint, code = (
            str(error["message"]),
            str(error.get("hint") or ""),
            str(error.get("code") or ""),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        message, hint, code = f"the server answered {status}: {text[:200]!r}", "", ""
    if status == 401 and not hint:
        hint = "give a key: --key, or OPENAI_API_KEY in the environment"
    return CallFailed(message, hint, status=status, code=code or f"http_{status}")
