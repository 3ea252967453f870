"""`apprentice doctor`: is everything as it must be, and what to do where it is not.

One line a check, each on its own: a check that cannot be made is itself a finding, and the others go on.
"""

import argparse
import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.commands.command import EXITS, FAILED, OK, parser, plain, print_json

if TYPE_CHECKING:
    from buffer.checkup import Finding
    from server.commands.settings import Settings

COLORS = {"ok": "green", "warning": "yellow", "wrong": "red"}
EXIT_CODES = {**EXITS, OK: "nothing is wrong; there may be warnings", FAILED: "something is wrong"}


def main(argv: Sequence[str]) -> int:
    """Print what was found."""
    options = _parse(argv)
    found = list(examine(options))
    if options.json:
        print_json([asdict(one) for one in found])
    else:
        from rich.console import Console
        from rich.text import Text

        console = Console(highlight=False)
        for one in found:
            said = plain(f"{one.check}: {one.says}")
            line = Text.assemble((f"{one.verdict:8}", COLORS[one.verdict]), said)
            console.print(line, soft_wrap=True)
            if one.todo:
                console.print(Text(plain(f"          → {one.todo}")), soft_wrap=True)
    return FAILED if any(one.verdict == "wrong" for one in found) else OK


def examine(options: argparse.Namespace) -> "Iterator[Finding]":
    """All findings, as they are made."""
    from buffer import checkup
    from buffer.backend import journal_path
    from buffer.checkup import Finding
    from buffer.config import ConfigError

    try:
        settings = _settings(options)
    except ConfigError as error:
        yield Finding("configuration", "wrong", str(error), error.hint)
        return
    yield Finding("configuration", "ok", f"{settings.buffer.backend} log, model {settings.shared.model}")
    state, journal = settings.shared.state, journal_path(settings.shared)

    def made(name: str, check: "Callable[..., Finding]", *arguments: Any) -> Finding:
        try:
            return check(*arguments)
        except Exception as error:
            return Finding(name, "wrong", f"it could not be checked: {error}", "see what is wrong above")

    yield made("state directory", checkup.check_state, state)
    if state.is_dir():
        yield made("size", checkup.check_size, state)
        yield made("fsync", checkup.check_fsync, state)
    yield (sound := made("journal", checkup.check_journal, journal, settings.buffer.max_bytes))
    readable = sound.verdict != "wrong" and journal.exists()
    if readable:
        yield made("clock", checkup.check_clock, journal, datetime.now(UTC))
        yield made("records set aside", checkup.check_set_aside, journal)
    if settings.buffer.backend == "kafka":
        broker, cluster = checkup.check_broker(settings.buffer.kafka)
        yield broker
        if readable and cluster is not None:
            target = f"{cluster}/{settings.buffer.kafka.topic_prefix}"
            yield made("relay", checkup.check_relay, journal, target)
    yield made("model", check_model_there, settings)
    yield made("adapters", check_adapters, state / "adapters", settings.engine.max_lora_rank)
    yield made("vLLM", check_vllm, settings.engine.url)
    yield made("keys", check_keys, settings, readable)
    yield made("server", check_server, state, options.key)


def check_model_there(settings: "Settings") -> "Finding":
    """The base model is here, or can be had."""
    from buffer.checkup import Finding
    from buffer.models import BUILT_IN, built_in_directory, is_model
    from server.commands.model_choice import ModelMissing, check_model

    shared = settings.shared
    if shared.model == BUILT_IN and not is_model(built_in_directory(shared.state)):
        return Finding("model", "warning", f"{BUILT_IN} has not been fetched", "`apprentice up` fetches it")
    try:
        check_model(shared)
    except ModelMissing as error:
        return Finding("model", "wrong", str(error), error.hint)
    return Finding("model", "ok", shared.model)


def check_adapters(adapters: Path, max_rank: int) -> "Finding":
    """Every release's files are those that its name and manifest promise."""
    from buffer.adapters import MANIFEST, AdapterInvalid, RankTooHigh, release_of, verify
    from buffer.checkup import Finding

    damaged, too_high, count = list[str](), list[str](), 0
    for directory in sorted(adapters.glob("[0-9]*-*")) if adapters.is_dir() else []:
        count += 1
        try:
            release = release_of((directory / MANIFEST).read_bytes())
            if release.directory != directory.name:
                raise AdapterInvalid(f"{directory}: its manifest was changed, or it was renamed")
            verify(adapters, release, max_rank=max_rank)
        except RankTooHigh as error:
            too_high.append(str(error))
        except (AdapterInvalid, OSError, ValueError) as error:
            damaged.append(str(error))
    if damaged:
        todo = "restore it from a backup; while it is damaged it is not served: promote another policy"
        return Finding("adapters", "wrong", f"{len(damaged)} of {count} damaged: {damaged[0]}", todo)
    if too_high:
        todo = "raise max_lora_rank in [engine] to the learner's rank"
        return Finding("adapters", "wrong", f"{len(too_high)} of {count}: {too_high[0]}", todo)
    return Finding("adapters", "ok", f"{count} verified")


def check_keys(settings: "Settings", readable: bool) -> "Finding":
    """Somebody may call where other machines can, and somebody is an admin."""
    from buffer.checkup import Finding
    from server.commands.state import keys_of, log_of
    from server.config import is_loopback

    config, names, ever = settings.server, set(settings.server.keys), bool(settings.server.keys)
    admins = names & set(config.admins)
    if readable:
        with log_of(settings.shared, settings.buffer, name="doctor") as log:
            logged = keys_of(log)
        if twice := sorted(names & {key.principal for key, _ in logged.added}):
            says = f"{', '.join(twice)}: both in [server.keys] and in the log"
            return Finding("keys", "wrong", says, f"`apprentice keys revoke {twice[0]}`")
        names |= {key.principal for key, _ in logged.added}
        admins |= {key.principal for key, _ in logged.added if "admin" in key.scopes}
        ever = ever or logged.ever
    add = "`apprentice keys add NAME --scope admin`"
    if not names and not is_loopback(config.host):
        return Finding("keys", "wrong", f"nobody has one, and {config.host} is open to others", add)
    if not names and ever:
        return Finding("keys", "wrong", "every key was revoked, so nobody may call", add)
    if not names:
        return Finding("keys", "ok", "none: only programs on this machine may call")
    if not admins:
        return Finding("keys", "warning", f"{len(names)}, none of an admin", add)
    return Finding("keys", "ok", f"{len(names)}; admin: {', '.join(sorted(admins))}")


def check_vllm(url: str | None) -> "Finding":
    """It is installed, unless the server attaches to one."""
    from buffer.checkup import Finding

    if url is not None:
        return Finding("vLLM", "ok", f"attached: {url}")
    if importlib.util.find_spec("vllm") is None:
        return Finding("vLLM", "wrong", "it is not installed", "make install, or set url in [engine]")
    return Finding("vLLM", "ok", "installed")


def check_server(state: Path, key: str | None) -> "Finding":
    """One that runs answers, its model too, and its learner has been heard of."""
    from buffer.checkup import Finding
    from server.commands.client import START_HINT, CallFailed, Client, ServerSilent, read_run_file

    name, url = "server", read_run_file(state)
    if url is None:
        return Finding(name, "ok", "none runs here")
    client = Client(url, key, timeout_s=10.0)
    try:
        client.get("/healthz")
    except (ServerSilent, CallFailed) as error:
        return Finding(name, "wrong", str(error), START_HINT)
    try:
        client.get("/readyz")
    except (ServerSilent, CallFailed) as error:
        return Finding(name, "warning", f"{url} is not ready: {error}", error.hint)
    try:
        learner = client.get("/v1/learning")
    except (ServerSilent, CallFailed) as error:
        return Finding(
            name, "warning", f"{url} is ready; what its learner does is not told: {error}", error.hint
        )
    told = f"{url} is ready, but its learner: {learner['why']}"
    if learner["state"] == "failed":
        return Finding(name, "wrong", told, "look at its log and mend the cause first")
    if learner["state"] in (None, "silent", "stopped"):
        return Finding(name, "warning", told, "`apprentice learn`")
    return Finding(name, "ok", f"{url} is ready, its learner {learner['state']}")


def _settings(options: argparse.Namespace) -> "Settings":
    """The configuration of all processes. Raises `ConfigError`."""
    from buffer.config import load
    from server.cli import resolve
    from server.commands.settings import read_settings

    learner: Any = resolve("learner.config:LearnerConfig")  # by name: the server imports no learner
    load(learner, "learner", file=options.config)
    return read_settings(options)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    made = parser("doctor", "Check the installation and its state, and say what to do.", EXIT_CODES)
    made.add_argument("--config", type=Path, metavar="FILE", help="configuration (apprentice.toml)")
    made.add_argument("--state", type=Path, metavar="DIR", help="the one directory that holds all state")
    made.add_argument("--key", help="bearer key, where the server has keys (default: $OPENAI_API_KEY)")
    made.set_defaults(model=None, alias=None, host=None, port=None)
    options = made.parse_args(argv)
    options.key = options.key or os.environ.get("OPENAI_API_KEY")
    return options
