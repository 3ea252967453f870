"""vLLM as a part that is kept running.

    starting ─(answers /health, on_ready)─► ready ─(exits, hangs, forgets adapters)─► down ─(pause)─► starting

One task walks this circle until `stop`. The process itself hangs on a leash (`leash.py` beside this file), so
that nothing of vLLM outlives the gateway.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import aiohttp

from buffer.files import make_directory
from server.config import EngineConfig
from server.engine import leash, vllm_args, vllm_log
from server.engine.client import EngineClient
from server.errors import EngineUnavailable, ServerError

log = logging.getLogger(__name__)

State = Literal["starting", "ready", "down"]
Argv = Callable[[Path], list[str]]

_SOCKET_PATH_BYTES = 100
_KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the watch waits for what, in seconds."""

    poll: float = 2.0
    answer: float = 10.0
    misses: int = 3
    """Unanswered health checks in a row before a process that still lives is taken for hung."""
    stall: float = 180.0
    """Requests running and not one token more, for so long: hung, although its front end answers."""
    first_pause: float = 1.0
    longest_pause: float = 60.0


class Engine(EngineClient):
    """vLLM, started and kept alive by this process, or attached to (`config.url`).

    `state` is "starting", "ready" or "down"; `why` and `hint` say why it is not ready and what to do.
    `on_ready` runs after each start, before the state becomes ready: the resident adapters are loaded there.
    While the state is not ready `post` raises `EngineUnavailable`; the other calls are for `on_ready` and
    only need a vLLM that answers.

    `model` is the base model's directory, `state_dir` the one directory for all state. `argv` makes the
    command from the socket's path.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        model: Path,
        alias: str,
        state_dir: Path,
        on_ready: Callable[[], Awaitable[object]] | None = None,
        argv: Argv | None = None,
        patience: Patience | None = None,
    ) -> None:
        key = config.api_key.get_secret_value() if config.api_key and config.url else None
        super().__init__(config.url or "", api_key=key, load_timeout_s=config.load_timeout_s)
        self.on_ready = on_ready
        self.state: State = "starting"
        self.why = "vLLM has not been started yet"
        self.hint = ""
        self.starts = 0
        """How often it became ready."""
        self._config = config
        self._model = model.absolute()
        self._alias = alias
        self._state_dir = state_dir.absolute()
        self._log = self._state_dir / "logs" / "vllm.log"
        self._argv = argv or self._vllm
        self._patience = patience or Patience()
        self._ready = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._exit: asyncio.Task[int] | None = None
        self._log_start = 0
        self._socket_dir: Path | None = None

    @property
    def pid(self) -> int | None:
        """The process that holds vLLM's; its session is theirs. None while none runs, or when attached."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Begin; returns at once. `wait_ready` waits."""
        if self._task is None:
            self._task = asyncio.create_task(self._keep_running(), name="engine")

    async def stop(self) -> None:
        """End it, with every process that it started. What still runs in it is aborted: drain before."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._become("down", "the server is stopping")
        await self._end()
        if self._socket_dir is not None:
            shutil.rmtree(self._socket_dir, ignore_errors=True)

    async def wait_ready(self, timeout_s: float | None = None) -> None:
        """Return when the state is ready. Raises `EngineUnavailable` with the reason after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._ready.wait()
        except TimeoutError:
            raise self._unavailable() from None

    @asynccontextmanager
    async def post(
        self, path: str, json: Any, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """`EngineClient.post` while the state is ready, else `EngineUnavailable`."""
        if self.state != "ready":
            raise self._unavailable()
        async with super().post(path, json, headers) as response:
            yield response

    def _unavailable(self) -> EngineUnavailable:
        return EngineUnavailable(f"the engine is {self.state}: {self.why}", self.hint, retry_after_s=5)

    def _become(self, state: State, why: str = "", hint: str = "") -> None:
        self.state, self.why, self.hint = state, why, hint
        if state == "ready":
            self._ready.set()
        else:
            self._ready.clear()
        log.log(logging.WARNING if state == "down" else logging.INFO, "engine %s %s", state, why)

    # --- the circle --------------------------------------------------------------------------------------

    async def _keep_running(self) -> None:
        pause = self._patience.first_pause
        while True:
            self._become("starting", "vLLM is loading the model")
            try:
                await self._begin()
                await self._until_it_answers()
                if self.on_ready is not None:
                    self.why = "vLLM runs; the resident policies are being loaded"
                    await self.on_ready()
                self.starts += 1
                self._become("ready")
                came_up = asyncio.get_running_loop().time()
                why, hint = await self._until_it_fails()
                if asyncio.get_running_loop().time() - came_up > self._patience.longest_pause:
                    pause = self._patience.first_pause
            except ServerError as error:
                why, hint = error.message, error.hint
            except Exception as error:  # whatever it is, the circle must go on
                log.exception("starting the engine failed")
                why, hint = f"{type(error).__name__}: {error}", ""
            self._become("down", why, hint)
            await self._end()
            await asyncio.sleep(pause)
            pause = min(2 * pause, self._patience.longest_pause)

    async def _begin(self) -> None:
        if self._config.url is None:
            if not self._model.is_dir():
                raise EngineUnavailable(
                    f"the model directory {self._model} does not exist",
                    "Set `model`, or fetch it with `make up`.",
                )
            self._process = await self._spawn()
            self._exit = asyncio.create_task(self._process.wait())
        await self.open()

    async def _until_it_answers(self) -> None:
        try:
            async with asyncio.timeout(self._config.start_timeout_s):
                while True:
                    if (ended := self._ended()) is not None:
                        raise EngineUnavailable(*ended)
                    with contextlib.suppress(EngineUnavailable):
                        return await self.healthy(self._patience.answer)
                    await asyncio.sleep(min(0.25, self._patience.poll))
        except TimeoutError:
            raise EngineUnavailable(
                f"vLLM did not answer within {self._config.start_timeout_s:.0f} s of its start",
                "Raise `start_timeout_s` in [engine], or see logs/vllm.log.",
            ) from None

    async def _until_it_fails(self) -> tuple[str, str]:
        """Why it is not ready any more, and the next step."""
        patience, misses = self._patience, 0
        progress, since = "", asyncio.get_running_loop().time()
        while True:
            if self._exit is None:
                await asyncio.sleep(patience.poll)
            else:
                await asyncio.wait({self._exit}, timeout=patience.poll)
            if (ended := self._ended()) is not None:
                return ended
            await self._rotate_log()
            try:
                await self.healthy(patience.answer)
                seen = _progress(await self.metrics_text())
                misses = 0
            except ServerError as error:
                misses += 1
                if misses >= patience.misses:
                    return f"vLLM does not answer: {error.message}", "It is being restarted."
                continue
            now = asyncio.get_running_loop().time()
            if seen is None or seen != progress:
                progress, since = seen or "", now
            elif now - since > patience.stall:
                return f"vLLM has made no token for {patience.stall:.0f} s", "It is being restarted."

    # --- the process -------------------------------------------------------------------------------------

    async def _spawn(self) -> asyncio.subprocess.Process:
        make_directory(self._log.parent)
        socket = self._socket()
        socket.unlink(missing_ok=True)
        self.url = f"unix:{socket}"
        vllm_log.rotate(self._log)
        with self._log.open("ab") as output:
            self._log_start = output.tell()
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", leash.__file__, "--", *self._argv(socket)),
                stdin=asyncio.subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=vllm_args.environment(self._config, inherited=os.environ, threads=_threads()),
                cwd=self._log.parent,
                start_new_session=True,
            )

    async def _rotate_log(self) -> None:
        """Bound the log of a vLLM that runs for months. On a full disk it stays as it is."""
        if self._process is None:
            return
        with contextlib.suppress(OSError):
            if await asyncio.to_thread(vllm_log.rotate, self._log):
                self._log_start = 0

    def _vllm(self, socket: Path) -> list[str]:
        return vllm_args.arguments(
            self._config, model=self._model, alias=self._alias, socket=socket, cpu=vllm_args.is_cpu_build()
        )

    def _socket(self) -> Path:
        """In a directory that only we may enter; a unix socket's path has room for about 100 bytes."""
        path = self._state_dir / "run" / "vllm.sock"
        if len(os.fsencode(path)) > _SOCKET_PATH_BYTES:
            self._socket_dir = self._socket_dir or Path(tempfile.mkdtemp(prefix="apprentice-"))
            return self._socket_dir / "vllm.sock"
        make_directory(path.parent)
        path.parent.chmod(0o700)
        return path

    def _ended(self) -> tuple[str, str] | None:
        """Why the process is gone, or None while it lives (or is not ours)."""
        if self._process is None or self._process.returncode is None:
            return None
        if self._process.returncode in _KILLED:
            return "vLLM was killed", "If nobody did that, the machine ran out of memory: see `dmesg`."
        line, hint = vllm_log.explain(vllm_log.tail(self._log, self._log_start))
        return f"vLLM ended with code {self._process.returncode}: {line}", hint or f"See {self._log}."

    async def _end(self) -> None:
        process = self._process
        if process is not None:
            if process.stdin is not None:
                process.stdin.close()
            try:
                async with asyncio.timeout(2 * leash.GRACE_S + 5):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
            await asyncio.to_thread(leash.kill_session, process.pid)
            self._process, self._exit = None, None  # only now: `stop` may have cut this short, and goes on
        await self.close()


def _threads() -> int | None:
    """Half of the cores for a vLLM that computes on them, the other half for the learner; None on a GPU."""
    return max(1, len(os.sched_getaffinity(0)) // 2) if vllm_args.is_cpu_build() else None


def _progress(metrics: str) -> str | None:
    """What changes with every token while requests run; None when none do."""
    lines = [
        line
        for line in metrics.splitlines()
        if line.startswith(("vllm:num_r", "vllm:gen", "vllm:prompt_tok"))
    ]
    running = any(
        line.startswith("vllm:num_requests_running{") and not line.endswith(" 0.0") for line in lines
    )
    return "\n".join(lines) if running else None
