"""`python -m server`: the gateway process. Start, ready, drain, stop; a second signal ends it at once."""

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from buffer import files, logs
from buffer.adapters import base_digest
from buffer.backend import open_log
from buffer.client import Buffer
from buffer.config import BufferConfig, ConfigError, Shared, load
from buffer.log import BufferError
from buffer.models import model_directory
from buffer.store import AdapterStore
from buffer.teacher import Templates
from buffer.view import View
from server import traffic
from server.api.app import create_app
from server.commands.client import RUN_FILE
from server.config import EngineConfig, ServerConfig, is_loopback
from server.engine.engine import Engine
from server.engine.zero import ModelUnusable, write_zero
from server.fetch import Fetcher
from server.follow import Follower
from server.gateway import Gateway
from server.identity import SECRET_BYTES, Receipts
from server.metrics import Metrics
from server.news import News
from server.policies import Policies
from server.webhook import Webhook

logger = logging.getLogger("server")

RETRY_S = 2.0
ADAPTERS = "adapters"
"""In the state directory, shared with the learner."""


@dataclass(frozen=True)
class Settings:
    shared: Shared
    server: ServerConfig
    engine: EngineConfig
    buffer: BufferConfig
    templates: Templates


def main(arguments: list[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT. Exit status: 0 stopped, 1 cannot go on, 2 configuration."""
    parser = argparse.ArgumentParser(prog="python -m server", description="Serve the model behind a gateway.")
    parser.add_argument("--config", type=Path, help="instead of ./apprentice.toml")
    parser.add_argument("--state", type=Path, help="the state directory")
    options = parser.parse_args(arguments)
    try:
        shared = load(Shared, file=options.config, flags={"state": options.state})
        logs.configure(shared.log_format)
        settings = Settings(
            shared.model_copy(update={"state": shared.state.absolute()}),
            load(ServerConfig, "server", file=options.config),
            load(EngineConfig, "engine", file=options.config),
            load(BufferConfig, "buffer", file=options.config),
            load(Templates, "teacher", file=options.config),
        )
        model = model_directory(settings.shared)
        store = AdapterStore(settings.shared.state / ADAPTERS, settings.buffer.adapters)
    except ConfigError as error:
        return _fail(error, error.hint, 2)
    state = settings.shared.state
    owned = files.lock(state / "run" / "server.lock")
    if owned is None:
        return _fail(f"another gateway owns {state}", "stop it, or use another state directory", 1)
    try:
        asyncio.run(serve(settings, model, store))
    except (ConfigError, ModelUnusable) as error:
        return _fail(error, error.hint, 2)
    except (BufferError, OSError) as error:
        return _fail(error, getattr(error, "hint", ""), 1)
    finally:
        os.close(owned)
    return 0


async def serve(settings: Settings, model: Path, store: AdapterStore) -> None:
    """start → ready → drain → stop. Raises `BufferError`, `ConfigError`, `OSError` when it cannot start."""
    state, config = settings.shared.state, settings.server
    listening = listen(config.host, config.port)
    news = News()
    news.listen()
    log = open_log(settings.shared, settings.buffer, name="server")
    buffer = Buffer(log, View(state / "server" / "view.db"), news.tell)
    await asyncio.to_thread(buffer.recall)
    alias = settings.shared.alias
    engine = Engine(settings.engine, model=model, alias=alias, state_dir=state)
    base = await asyncio.to_thread(base_digest, model)
    policies = Policies(
        engine,
        alias=alias,
        adapters=store.root,
        zero=write_zero(store.root, model, alias=alias, base=base),
        max_rank=settings.engine.max_lora_rank,
        base=base,
    )
    engine.on_ready = policies.reload
    metrics = Metrics(buffer, alias=alias, state=state)
    fetcher = Fetcher(store, metrics.store_failures, news.ring)
    gateway = Gateway(
        alias=alias,
        config=config,
        engine=engine,
        policies=policies,
        buffer=buffer,
        receipts=Receipts(receipt_secret(config, state / "secret")),
        metrics=metrics,
        news=news,
        fetcher=fetcher,
        templates=settings.templates,
    )
    await require_keys(gateway)
    server = http_server(gateway)
    working = asyncio.create_task(follow(gateway))
    working.add_done_callback(lambda _: setattr(server, "should_exit", True))
    tasks = [working, asyncio.create_task(sample(gateway))]
    if config.webhook.url is not None:
        webhook = Webhook(gateway, config.webhook, state / "server" / "webhook.json")
        tasks.append(asyncio.create_task(webhook.run()))
    run_file = state / RUN_FILE
    try:
        await engine.start()
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        write_run_file(run_file, listening)
        logger.info("listening on %s; the model is starting", url_of(listening))
        await serving
        # left over only where a second signal ended the draining
        left = set(server.server_state.tasks)
        for unfinished in left:
            unfinished.cancel()
        if left:
            await asyncio.wait(left, timeout=RETRY_S)
    finally:
        async with contextlib.AsyncExitStack() as closing:  # all of it, the last first, whatever one raises
            closing.push_async_callback(asyncio.to_thread, buffer.close)
            closing.push_async_callback(engine.stop)
            closing.callback(fetcher.close)
            for task in reversed(tasks):
                closing.push_async_callback(end, task)
            closing.callback(run_file.unlink, missing_ok=True)


async def end(task: asyncio.Task[None]) -> None:
    """Cancel it and wait for that. Raises what it ended with before."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def require_keys(gateway: Gateway) -> None:
    """Serve only whom the keys say, or this machine alone. Raises `BufferError`, `ConfigError`."""
    config, callers = gateway.config, gateway.callers

    def nobody() -> bool:
        return not is_loopback(config.host) and not len(callers.keys)

    def twice() -> list[str]:
        return sorted({key.principal for key, _ in gateway.buffer.view.keys().added} & config.keys.keys())

    if nobody() or twice():
        # the view may be new here, or old: what the log says by now counts
        await asyncio.to_thread(gateway.buffer.start)
        gateway.behind = None
    if nobody():
        raise ConfigError(
            f"host {config.host} can be reached from elsewhere, and nobody has a key",
            "make one with `apprentice keys add NAME --scope admin`, or listen on 127.0.0.1",
        )
    if names := twice():
        raise ConfigError(
            f"{', '.join(names)}: both in [server.keys] and among the keys of `apprentice keys`",
            f"take it out of [server.keys], or `apprentice keys revoke {names[0]}`",
        )


def http_server(gateway: Gateway) -> uvicorn.Server:
    """The gateway's HTTP server; `serve` runs it on the sockets that it is given."""
    return _Uvicorn(
        uvicorn.Config(
            create_app(gateway),
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=round(gateway.config.drain_s),
            server_header=False,
        )
    )


async def follow(gateway: Gateway) -> None:
    """Read the log up to its end, then follow it.

    While it cannot be read, what the view knows from earlier is served: an outage fails no request.
    """
    follower = Follower(gateway)
    async with asyncio.TaskGroup() as tasks:
        following = None
        while gateway.behind is not None:
            try:
                await asyncio.to_thread(gateway.buffer.start)
                gateway.behind = None
            except BufferError as error:
                if following is None:
                    following = tasks.create_task(follower.run())
                gateway.behind = f"the log cannot be read: {error}"
                logger.warning("%s; trying again", gateway.behind)
                await asyncio.sleep(RETRY_S)
        if not gateway.callers.keys.ever:
            logger.info("no keys: only programs on this machine may call")
        gateway.news.ring()
        following = following or tasks.create_task(follower.run())


async def sample(gateway: Gateway) -> None:
    """Remember what the gateway does, for the operators' page."""
    while True:
        ready = gateway.engine.state == "ready"
        gateway.traffic.add(traffic.read(gateway.metrics, time.time(), engine_ready=ready))
        await asyncio.sleep(traffic.EVERY_S)


def listen(host: str, port: int) -> socket.socket:
    """Bind now, so that a taken port is found out before anything else starts. Raises `OSError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.create_server((host, port), family=family, backlog=2048)
    # connections inherit it; asyncio sets it only on sockets made with a protocol number, and without it
    # every second small write waits for the caller's delayed acknowledgement, 40 ms
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def url_of(listening: socket.socket) -> str:
    """Where a client on this machine finds it."""
    host, port = listening.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def write_run_file(path: Path, listening: socket.socket) -> None:
    content = {"url": url_of(listening), "pid": os.getpid()}
    files.write_durably(path, json.dumps(content).encode())


def receipt_secret(config: ServerConfig, path: Path) -> bytes:
    """The secret of completion ids: the configured one, or the state's own, made at the first start."""
    if config.secret is not None:
        return bytes.fromhex(config.secret.get_secret_value())
    if not path.exists():
        files.write_durably(path, os.urandom(SECRET_BYTES).hex().encode())
    return bytes.fromhex(path.read_text().strip())


class _Uvicorn(uvicorn.Server):
    """uvicorn with our signals: the first drains, the second ends."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()

        def stop(number: int) -> None:
            if self.should_exit:
                self.force_exit = True
                return
            logger.info("%s: draining; once more ends it at once", signal.Signals(number).name)
            self.should_exit = True

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop, number)
        yield


def _fail(message: object, hint: str, status: int) -> int:
    print(f"server: {message}" + (f"\n  → {hint}" if hint else ""), file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
