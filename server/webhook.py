"""The webhook: an address of the operator's is told what the log decided, in order and at least once.

    view: rounds that ended, moves of the alias ─► POST, signed ─► 2xx ─► state/server/webhook.json

Nothing that is served waits for it. After a restart it goes on behind the last event whose 2xx is on disk, so
one event at most comes twice; of several servers with this setting each sends. A receiver knows an event by
its id, which is its record's in the log.
Headers and signature: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
Body: CloudEvents 1.0.2, structured JSON mode.
"""

import asyncio
import base64
import hmac
import json
import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp

from buffer.files import write_durably
from buffer.records import timestamp
from buffer.rounds import Move, Round
from server.config import WebhookConfig
from server.gateway import Gateway

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds."""

    attempt: float = 10.0
    first_pause: float = 1.0
    """After a failure; it doubles with each in a row."""
    longest_pause: float = 60.0
    give_up: float = 3 * 24 * 3600.0
    """An event that is older and fails once more is dropped, so that those behind it get through."""
    look: float = 0.5
    """News come with every exchange: the view is looked at no more often than this."""


@dataclass(frozen=True, slots=True)
class Position:
    """The last round and the last move of the alias that were told."""

    round: int = 0
    epoch: int = -1


@dataclass(frozen=True, slots=True)
class Event:
    """`position` is where one stands after it; `at` is Unix seconds."""

    id: str
    type: str
    at: float
    data: dict[str, Any]
    position: Position


def events(rounds: Sequence[Round], moves: Sequence[Move], after: Position) -> list[Event]:
    """What there is to tell behind a position: rounds and moves each in their own order, together by time.

    A policy is never told before the round that made it, of which another stream of the log brings word.
    """
    ended = deque(r for r in rounds if r.ended is not None and r.planned.round > after.round)
    made_in = {0: 0} | {r.release.version: r.planned.round for r in rounds if r.release is not None}
    told, position = list[Event](), after

    def tell_round() -> None:
        nonlocal position
        one = ended.popleft()
        position = replace(position, round=one.planned.round)
        told.append(_of_round(one, position))

    for move in moves:
        if move.moved.epoch <= after.epoch:
            continue
        if (made := made_in.get(move.moved.version)) is None:
            break
        while ended and ((ended[0].ended_at or 0.0) <= move.at or ended[0].planned.round <= made):
            tell_round()
        position = replace(position, epoch=move.moved.epoch)
        told.append(_of_move(move, position))
    while ended:
        tell_round()
    return told


def _of_round(one: Round, position: Position) -> Event:
    assert one.ended is not None  # noqa: S101 - `events` chose it so
    data = {
        "round": one.planned.round,
        "verdict": one.ended.verdict,
        "reasons": one.ended.reasons,
        "lessons": len(one.planned.lessons),
        "parent": one.planned.parent,
        "policy": one.release.version if one.release is not None else None,
    }
    return Event(one.ended_id or "", "apprentice.round.ended.v1", one.ended_at or 0.0, data, position)


def _of_move(move: Move, position: Position) -> Event:
    moved = move.moved
    type_ = "rolled_back" if moved.why == "rollback" else "served"
    data = {"alias": moved.alias, "policy": moved.version, "why": moved.why, "by": moved.by}
    return Event(move.record_id, f"apprentice.policy.{type_}.v1", move.at, data, position)


def body_of(event: Event, alias: str) -> bytes:
    """The event as CloudEvents' structured JSON: the same bytes at every attempt."""
    told = {
        "specversion": "1.0",
        "id": event.id,
        "source": f"/apprentice/{alias}",
        "type": event.type,
        "time": timestamp(datetime.fromtimestamp(event.at, UTC)),
        "datacontenttype": "application/json",
        "data": event.data,
    }
    return json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode()


def signature(secret: bytes, id_: str, seconds: int, body: bytes) -> str:
    """`webhook-signature`: HMAC-SHA256 over id, time of the attempt and body."""
    mac = hmac.digest(secret, f"{id_}.{seconds}.".encode() + body, "sha256")
    return f"v1,{base64.b64encode(mac).decode()}"


class Webhook:
    """Run `run` as a task. It ends by being cancelled."""

    def __init__(
        self, gateway: Gateway, config: WebhookConfig, path: Path, patience: Patience | None = None
    ) -> None:
        """`path` is the file that holds the position."""
        self._gateway = gateway
        self._url, self._secret = config.url or "", config.key
        self._path = path
        self._patience = patience or Patience()
        self._pause = self._patience.first_pause

    async def run(self) -> None:
        """Tell what is to be told, then wait for more."""
        timeout = aiohttp.ClientTimeout(total=self._patience.attempt)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            position = await self._begin()
            while True:
                heard = self._gateway.news.bell()
                try:
                    pending = await asyncio.to_thread(self._pending, position)
                    self._gateway.metrics.webhook_pending.set(len(pending))
                    if pending and await self._tell(session, pending[0]):
                        position = pending[0].position
                        await self._remember(position)
                        self._pause = self._patience.first_pause
                    elif pending:
                        await self._rest()
                    else:
                        await heard.wait()
                        await asyncio.sleep(self._patience.look)
                except Exception:
                    # It must outlive any fault, and never ends the server.
                    logger.exception("the webhook failed")
                    self._gateway.metrics.webhook_failures.labels("internal").inc()
                    await self._rest()

    async def _rest(self) -> None:
        await asyncio.sleep(self._pause)
        self._pause = min(2 * self._pause, self._patience.longest_pause)

    async def _remember(self, position: Position) -> None:
        """Returns once it is on disk: nothing more is told before, lest a restart repeats several events."""
        while True:
            try:
                return await asyncio.to_thread(
                    write_durably, self._path, json.dumps(asdict(position)).encode()
                )
            except OSError as error:
                logger.warning("the webhook waits: %s cannot be written: %s", self._path, error)
                self._gateway.metrics.webhook_failures.labels("position").inc()
                await self._rest()

    async def _begin(self) -> Position:
        """Where it was left; at first the log's present end, once that is known."""
        try:
            return Position(**json.loads(await asyncio.to_thread(self._path.read_bytes)))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError) as error:
            logger.warning(
                "%s cannot be used, so what happened before now is not told: %s", self._path, error
            )
        while self._gateway.behind is not None:
            await self._gateway.news.bell().wait()
        past = await asyncio.to_thread(self._pending, Position())
        position = past[-1].position if past else Position()
        await self._remember(position)
        return position

    def _pending(self, after: Position) -> list[Event]:
        view = self._gateway.buffer.view
        return events(view.rounds(), view.moves(self._gateway.alias), after)

    async def _tell(self, session: aiohttp.ClientSession, event: Event) -> bool:
        """Whether it is done with: taken, or given up."""
        failed = await self._post(session, event)
        if failed is None:
            return True
        reason, why = failed
        failures = self._gateway.metrics.webhook_failures
        failures.labels(reason).inc()
        if time.time() - event.at > self._patience.give_up:
            failures.labels("given_up").inc()
            logger.error("the webhook's %s %s is given up: %s", event.type, event.id, why)
            return True
        logger.warning("the webhook's %s %s: %s; again in %g s", event.type, event.id, why, self._pause)
        return False

    async def _post(self, session: aiohttp.ClientSession, event: Event) -> tuple[str, str] | None:
        """One attempt: None when it was taken, else the reason and its words."""
        body, seconds = body_of(event, self._gateway.alias), int(time.time())
        headers = {
            "content-type": "application/cloudevents+json; charset=utf-8",
            "webhook-id": event.id,
            "webhook-timestamp": str(seconds),
            "webhook-signature": signature(self._secret, event.id, seconds, body),
        }
        try:
            async with session.post(self._url, data=body, headers=headers, allow_redirects=False) as answer:
                status = answer.status
        except TimeoutError:
            return "timeout", f"no answer within {self._patience.attempt:g} s"
        except (aiohttp.ClientError, OSError) as error:
            return "unreachable", str(error) or type(error).__name__
        if 200 <= status < 300:
            return None
        if 300 <= status < 400:
            return "redirected", f"{status}: redirects are not followed; set url to where it leads"
        return f"status_{status // 100}xx", f"the receiver answered {status}"
