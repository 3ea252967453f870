"""What every route works with: the parts of one running gateway."""

import asyncio
import contextlib
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Literal

from fastapi import Request
from pydantic_core import from_json

from buffer.client import Buffer
from buffer.log import BufferError, LogUnavailable, RecordTooLarge
from buffer.records import AliasMoved, Payload, Record, Release, uuid7
from buffer.rounds import Alias
from buffer.teacher import DEFAULT, Templates
from server.api import transcript, translate
from server.callers import Callers
from server.config import ServerConfig
from server.engine.engine import Engine
from server.errors import EngineUnavailable, ReleaseForeign, RequestRefused
from server.fetch import Fetcher
from server.identity import Principal, Receipts
from server.metrics import Metrics
from server.news import News
from server.policies import Policies
from server.traffic import Traffic

CONFIRM_S = 15.0
"""How long an own control record may take to come back from the log."""


@dataclass
class Gateway:
    """One alias, its engine and its log."""

    alias: str
    config: ServerConfig
    engine: Engine
    policies: Policies
    buffer: Buffer
    receipts: Receipts
    metrics: Metrics
    news: News
    fetcher: Fetcher | None = None
    """Gets releases from the adapter store; without it all must be on this machine."""
    templates: Templates = DEFAULT
    """Of the teacher's context that a preview shows."""
    name: str = "server"
    """Who moved the alias, where no person did."""
    live: int | None = None
    """The version that the alias stands for here: the log's, once the follower has loaded it."""
    behind: str | None = "the log has not been read yet"
    """Why what the view knows may be old."""
    not_ready: str | None = "the live policy has not been loaded yet"
    """Why the live policy does not answer, apart from the engine."""
    foreign: ReleaseForeign | None = None
    """Why the live policy, or the next one, will never be served here as it is set up."""
    traffic: Traffic = field(default_factory=Traffic)
    """What it did in the last hour."""
    callers: Callers = field(init=False)
    _moving: AliasMoved | None = field(init=False, default=None)
    """The last move that was written here."""

    def __post_init__(self) -> None:
        self.callers = Callers(self)

    # --- callers -------------------------------------------------------------------------------------

    def principal(self, request: Request, *scopes: str, tokens: bool = False) -> Principal:
        """Who calls, with a key that has one of the scopes, if any are named. Raises `RequestRefused`.

        With `tokens` also who comes with a feedback token; the route must then keep to its `completion`.
        """
        return self.callers.principal(request, *scopes, tokens=tokens)

    def admin(self, request: Request) -> Principal:
        """Who calls, if an admin. Raises `RequestRefused`."""
        return self.callers.principal(request, "admin")

    # --- the log -------------------------------------------------------------------------------------

    async def write(self, payloads: Sequence[Payload], partition_key: str = "") -> None:
        """Append records atomically; returns once they are on disk. Raises `BufferError`."""
        await self.append([self.record(one, partition_key) for one in payloads])

    async def append(self, records: Sequence[Record]) -> None:
        """Append ready-made records. They stay appended if the caller is cancelled meanwhile."""
        writable = self.metrics.log_writable
        with self.metrics.timed(self.metrics.append_seconds):
            try:
                await asyncio.wrap_future(self.buffer.append(records))
            except RecordTooLarge:  # the caller's doing: it says nothing about the log
                raise
            except BufferError:
                writable.set(0)
                raise
        writable.set(1)

    def record(self, payload: Payload, partition_key: str) -> Record:
        """Envelope a payload, cut down to the log's limit where it is an exchange's."""
        return transcript.to_record(
            payload, time=self.buffer.now(), randomness=os.urandom(10), partition_key=partition_key
        )

    def new_uuid(self) -> str:
        """Sorts behind every earlier one that was made here."""
        return uuid7(self.buffer.now(), os.urandom(8))

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until the view says so. Raises `LogUnavailable` when it does not in `CONFIRM_S`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CONFIRM_S):
                while True:
                    heard = self.news.bell()
                    if await asyncio.to_thread(holds):
                        return
                    await heard.wait()
        raise LogUnavailable(
            f"the log took the record but did not bring it back within {CONFIRM_S:.0f} s",
            "check that the broker can be reached; the record will take effect when it can",
        )

    # --- policies ------------------------------------------------------------------------------------

    def resolve(self, model: str) -> int:
        """The version that a model name stands for. Raises `RequestRefused`, `EngineUnavailable`."""
        resident = self.policies.resident
        if model == self.alias and self.live not in resident:
            raise EngineUnavailable(self.not_ready or f"policy {self.live} is being loaded")
        return translate.resolve(model, alias=self.alias, live=self.live or 0, resident=resident)

    def alias_now(self) -> Alias:
        """Where the log says the alias points. Reads the view: not for the event loop."""
        return self.buffer.view.alias(self.alias)

    async def release(self, version: int) -> Release:
        """The release of a version. Raises `RequestRefused` when no round made it."""
        made_by = await asyncio.to_thread(self.buffer.view.release, version)
        if made_by is None or made_by.release is None:
            raise no_policy(version)
        return made_by.release

    async def install(self, version: int) -> None:
        """Have a policy fetched and loaded.

        Raises `RequestRefused` when there is none, `StoreUnavailable`, `ReleaseRefused` and so on.
        """
        if version in self.policies.resident:
            return
        release = await self.release(version)
        if self.fetcher is not None:
            self.fetcher.require_kept(release)
            await self.fetcher.fetch(release)
        await self.policies.install(release)

    def hold(self, version: int) -> AbstractAsyncContextManager[None]:
        """Within it the version's release is not deleted from this machine."""
        return self.fetcher.hold(version) if self.fetcher is not None else contextlib.nullcontext()

    async def move(
        self, version: int, *, expected: Alias, why: Literal["release", "promote", "rollback"], by: str
    ) -> None:
        """Point the alias elsewhere, unless it has moved since `expected`; returns when the log confirms it.

        Raises `RequestRefused` (409) when another move won, and `BufferError`.
        """
        move = AliasMoved(alias=self.alias, version=version, epoch=expected.epoch, why=why, by=by)
        if move != self._moving:  # else it is on its way
            await self.write([move])
            self._moving = move
            if why == "release":
                self.metrics.releases.labels("promoted").inc()
        try:
            await self.until(lambda: self.alias_now().epoch > expected.epoch)
        except LogUnavailable as error:
            raise LogUnavailable(
                str(error),
                "check that the broker can be reached; then it counts, unless another move came before it",
            ) from None
        won = (await asyncio.to_thread(self.alias_now)).moves[expected.epoch]
        if won != move:
            raise RequestRefused(
                f"{won.by} moved {self.alias} to {won.version:06d} at the same time ({won.why})",
                "look at GET /v1/policies, then decide again", code="alias_moved", status=409,
            )  # fmt: skip

    # --- the engine ----------------------------------------------------------------------------------

    def require_engine(self) -> None:
        """Raises `EngineUnavailable` while vLLM cannot answer."""
        if self.engine.state != "ready":
            raise EngineUnavailable(f"the model is not ready: {self.engine.why}", self.engine.hint)

    def require_ready(self) -> None:
        """Raises `EngineUnavailable` while this gateway should get no requests.

        An engine is ready once the base policy is loaded and warm.
        """
        self.require_engine()
        for reason in (self.behind, self.not_ready):
            if reason is not None:
                raise EngineUnavailable(reason)


def no_policy(version: int) -> RequestRefused:
    return RequestRefused(
        f"there is no policy {version}", "GET /v1/policies lists them", code="policy_not_found", status=404
    )


async def read_json(request: Request) -> Any:
    """The request's body. Raises `RequestRefused` when it is not JSON as RFC 8259 has it."""
    try:
        return from_json(await request.body(), allow_inf_nan=False)
    except ValueError as error:
        raise RequestRefused(
            f"the body is not valid JSON: {error}", "send a JSON object in UTF-8", code="invalid_json"
        ) from None
