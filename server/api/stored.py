"""Stored chat completions, as OpenAI's API lists, reads and deletes them. DELETE also ends their teaching."""

import asyncio
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request

from buffer.records import Choice
from buffer.view import Exchange
from server.api import erasure
from server.errors import RequestRefused
from server.gateway import Gateway
from server.identity import Principal

READING = ("infer", "feedback")
"""Who asks may read its answers, and who corrects them, too."""
MAX_LIMIT = 100
_SCANNED = 200
"""Exchanges read at a time while those that match are collected."""


def router(gateway: Gateway) -> APIRouter:
    routes = APIRouter(prefix="/v1/chat/completions", tags=["stored completions"])

    @routes.get("", summary="One's own stored completions")
    async def list_stored(
        request: Request,
        limit: int = 20,
        after: str | None = None,
        order: str = "asc",
        model: str | None = None,
    ) -> dict[str, Any]:
        principal = gateway.principal(request, *READING)
        if not 1 <= limit <= MAX_LIMIT:
            raise RequestRefused(f"limit must be 1 to {MAX_LIMIT}", param="limit")
        if order not in ("asc", "desc"):
            raise RequestRefused("order must be asc or desc", param="order")
        wanted = {
            name[len("metadata[") : -1]: value
            for name, value in request.query_params.items()
            if name.startswith("metadata[") and name.endswith("]")
        }
        found = await asyncio.to_thread(
            _matching, gateway, principal, limit + 1, after, order == "desc", model, wanted
        )
        page = [describe(exchange) for exchange in found[:limit]]
        return {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": len(found) > limit,
        }

    @routes.get("/{completion_id}", summary="A stored completion")
    async def one(request: Request, completion_id: str) -> dict[str, Any]:
        principal = gateway.principal(request, *READING, tokens=True)
        return describe(await own(gateway, principal, completion_id))

    @routes.get("/{completion_id}/messages", summary="What a stored completion was asked")
    async def messages(
        request: Request, completion_id: str, limit: int = 20, after: str | None = None, order: str = "asc"
    ) -> dict[str, Any]:
        exchange = await own(gateway, gateway.principal(request, *READING), completion_id)
        asked = [
            {"id": f"{completion_id}-{index}", **message}
            for index, message in enumerate(exchange.opened.request.get("messages", []))
        ]
        if order == "desc":
            asked.reverse()
        ids = [message["id"] for message in asked]
        start = ids.index(after) + 1 if after in ids else 0
        page = asked[start : start + limit]
        return {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": len(asked) > start + limit,
        }

    @routes.delete("/{completion_id}", summary="Erase a completion and all feedback on it")
    async def erase(request: Request, completion_id: str) -> dict[str, Any]:
        principal = gateway.principal(request, "infer")
        await own(gateway, principal, completion_id)
        await erasure.erase_exchanges(gateway, [completion_id], principal.name)
        return {"id": completion_id, "object": "chat.completion.deleted", "deleted": True}

    return routes


async def own(gateway: Gateway, principal: Principal, completion_id: str) -> Exchange:
    """A stored exchange of the caller's (an admin sees everybody's). Raises `RequestRefused` (403, 404)."""
    principal.require(completion_id)
    found = await asyncio.to_thread(gateway.buffer.view.exchange, completion_id)
    if found is None or not (principal.admin or found.opened.principal == principal.name):
        raise RequestRefused(
            f"there is no stored completion {completion_id!r} of yours",
            "GET /v1/chat/completions lists yours",
            code="completion_not_found", status=404,
        )  # fmt: skip
    return found


def describe(exchange: Exchange) -> dict[str, Any]:
    """OpenAI's chat.completion, with the metadata it was stored with."""
    opened, closed = exchange.opened, exchange.closed
    chat = opened.endpoint == "chat"
    return {
        "id": opened.completion_id,
        "object": "chat.completion" if chat else "text_completion",
        "created": int(exchange.created),
        "model": opened.request.get("model"),
        "choices": [_choice(choice, chat=chat) for choice in closed.choices] if closed is not None else [],
        "usage": (closed.usage or None) if closed is not None else None,
        "metadata": opened.request.get("metadata") or {},
        "policy": opened.policy,
        "status": closed.status if closed is not None else "unfinished",
    }


def _choice(choice: Choice, *, chat: bool) -> dict[str, Any]:
    said = choice.message.model_dump() if chat and choice.message is not None else None
    answer = {"message": said} if chat else {"text": choice.text}
    return {"index": choice.index, "finish_reason": choice.finish_reason, "logprobs": None, **answer}


def _matching(
    gateway: Gateway,
    principal: Principal,
    count: int,
    after: str | None,
    newest_first: bool,
    model: str | None,
    metadata: Mapping[str, str],
) -> list[Exchange]:
    """The first `count` stored chats behind `after` that match. Reads the view."""
    whose, found = None if principal.admin else principal.name, list[Exchange]()
    while len(found) < count:
        page = gateway.buffer.view.exchanges(whose, limit=_SCANNED, after=after, newest_first=newest_first)
        for exchange in page:
            request = exchange.opened.request
            stored = request.get("metadata") or {}
            if (
                exchange.opened.endpoint == "chat"
                and model in (None, request.get("model"))
                and all(stored.get(name) == value for name, value in metadata.items())
            ):
                found.append(exchange)
        if len(page) < _SCANNED:
            break
        after = page[-1].opened.completion_id
    return found[:count]
