"""`apprentice keys`: who may call. Keys live in the log, so all servers know them and none is restarted."""

import argparse
import getpass
import os
import secrets
import sys
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from server.commands.command import OK, CommandError, parser, plain, print_json
from server.commands.state import add_state, keys_of, log_of, settings_of

if TYPE_CHECKING:
    from buffer.config import BufferConfig
    from buffer.log import Log
    from buffer.records import KeyAdded, Payload
    from server.config import ServerConfig

ABOUT = """\
Make, list and revoke API keys, in this state directory's log: a server need not run, and one that runs obeys
at once, as do all that share the log. As soon as there is a key, nobody may call without one."""

SCOPES = {
    "infer": "ask, and read and erase what one asked",
    "feedback": "correct one's own answers, read them, and give feedback tokens away",
    "learn": "ask for a round, pause and resume learning",
    "admin": "everything, and everybody's data",
    "none": "read models, policies, what the learner does, and /metrics, as every key may",
}


def main(argv: Sequence[str]) -> int:
    """Do it and print it. Raises `BufferError`, `CommandError`, `ConfigError`."""
    arguments = _parse(argv)
    done: dict[str, Any] = {"add": _add, "list": _list, "revoke": _revoke}[arguments.action](arguments)
    if arguments.json:
        print_json(done)
    return OK


def _add(arguments: argparse.Namespace) -> dict[str, Any]:
    from buffer.backend import open_log
    from buffer.records import KeyAdded
    from server.identity import CONFIGURED, KEY_PREFIX, digest_of

    name, given = arguments.name, arguments.scope
    shared, buffer = settings_of(arguments)
    if name in _server(arguments).keys:
        raise CommandError(f"{name} has a key in [server.keys]", "choose another name, or take it out there")
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    scopes = list(dict.fromkeys(one for one in given or CONFIGURED if one != "none"))
    adding = KeyAdded(principal=name, digest=digest_of(key).hex(), scopes=scopes, by=_operator())
    with closing(open_log(shared, buffer, name="keys")) as log:
        if name in _by_name(log):
            raise _there_already(name)
        _append(log, adding)
        if _by_name(log).get(name) != adding:  # somebody else added one at the same time
            raise _there_already(name)
        has_admin = any("admin" in one.scopes for one in _by_name(log).values())
    if not arguments.json:
        print(key, flush=True)  # alone on standard output, for scripts
        print(f"{name} may call with this key, which is shown this once: {_scopes(scopes)}", file=sys.stderr)
        if not has_admin and not _server(arguments).admins:
            print("nobody is an admin yet: apprentice keys add NAME --scope admin", file=sys.stderr)
        _tell_when(buffer)
    return {"name": name, "scopes": scopes, "key": key}


def _list(arguments: argparse.Namespace) -> dict[str, Any]:
    from server.identity import configured_scopes

    shared, buffer = settings_of(arguments)
    server = _server(arguments)
    with log_of(shared, buffer, name="keys") as log:
        logged = keys_of(log)
    found: list[dict[str, Any]] = [
        {"name": key.principal, "scopes": key.scopes, "added": int(at), "by": key.by}
        for key, at in logged.added
    ]
    found += [
        {"name": name, "scopes": configured_scopes(server, name), "added": None, "by": "[server.keys]"}
        for name in server.keys
    ]
    if not arguments.json:
        width = max((len(one["name"]) for one in found), default=0)
        for one in found:
            added = f"{datetime.fromtimestamp(one['added'], UTC):%Y-%m-%d} " if one["added"] else ""
            print(plain(f"{one['name']:{width}}  {_scopes(one['scopes'])}  ({added}by {one['by']})"))
        if not found and logged.ever:
            print("every key was revoked, so nobody may call: apprentice keys add NAME")
        elif not found:
            print("no keys: only programs on this machine may call")
    return {"keys": found, "open_to_this_machine": not found and not logged.ever}


def _revoke(arguments: argparse.Namespace) -> dict[str, Any]:
    from buffer.records import KeyRevoked

    name = arguments.name
    shared, buffer = settings_of(arguments)
    configured = _server(arguments).keys
    with log_of(shared, buffer, name="keys") as log:
        if name not in _by_name(log):
            hint = f"take {name} out of [server.keys]" if name in configured else "see `apprentice keys list`"
            raise CommandError(f"there is no key of {name} in the log", hint)
        _append(log, KeyRevoked(principal=name, by=_operator()))
        left = {*_by_name(log), *configured}
    if not arguments.json:
        print(f"the key of {name} opens nothing any more, nor do the feedback tokens that it gave away")
        if not left:
            print("nobody may call now: apprentice keys add NAME", file=sys.stderr)
        _tell_when(buffer)
    return {"name": name, "revoked": True}


def _by_name(log: "Log") -> "dict[str, KeyAdded]":
    return {key.principal: key for key, _ in keys_of(log).added}


def _append(log: "Log", payload: "Payload") -> None:
    from buffer.records import Record

    log.append([Record.of(payload, time=datetime.now(UTC), randomness=os.urandom(10))]).result()


def _server(arguments: argparse.Namespace) -> "ServerConfig":
    from buffer.config import load
    from server.config import ServerConfig

    return load(ServerConfig, "server", file=arguments.config)


def _there_already(name: str) -> CommandError:
    return CommandError(
        f"{name} has a key already", f"choose another name, or `apprentice keys revoke {name}`"
    )


def _tell_when(buffer: "BufferConfig") -> None:
    if buffer.backend == "kafka":
        print("servers obey as soon as the relay has carried it to the broker", file=sys.stderr)


def _scopes(scopes: Sequence[str]) -> str:
    return ", ".join(scopes) or "no scope"


def _operator() -> str:
    """Who types, as the system knows them."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in containers
        return "operator"


def _name(text: str) -> str:
    if not (0 < len(text) <= 100 and all(c.isalnum() or c in "._@+-" for c in text)):
        raise argparse.ArgumentTypeError("a name has 1 to 100 letters, digits and ._@+-")
    return text


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    made = parser("keys", ABOUT)
    add_state(made)
    actions = made.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, what: str) -> argparse.ArgumentParser:
        one = actions.add_parser(name, help=what, description=what, argument_default=argparse.SUPPRESS)
        one.add_argument("--json", action="store_true", help="JSON for programs instead of text for people")
        add_state(one)
        return one

    add = action("add", "make a key and print it, this once")
    add.add_argument("name", type=_name, help="of the principal: what it asks and teaches is its own")
    add.add_argument(
        "--scope", action="append", choices=list(SCOPES), default=None,
        help="what it opens, any number of times (default: infer and feedback): "
        + "; ".join(f"{scope}: {opens}" for scope, opens in SCOPES.items()),
    )  # fmt: skip
    action("list", "who has a key, and what it opens")
    revoke = action("revoke", "let a key open nothing any more, at once")
    revoke.add_argument("name", type=_name, help="whose key")
    return made.parse_args(argv)
