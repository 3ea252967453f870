"""Stored chat completions, as OpenAI's API lists, reads and deletes them. DELETE also ends their teaching."""

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request

from buffer.exchanges import Exchange, Wanted
from buffer.projection import turn
from buffer.records import Choice
from buffer.view import View
from server.api import erasure
from server.api.document import errors
from server.api.feedback import Mine
from server.api.schemas import CompletionDeleted, StoredCompletion, StoredCompletions, StoredMessages
from server.errors import RequestRefused
from server.gateway import Gateway
from server.identity import Principal

READING = ("infer", "feedback")
"""Who asks may read its answers, and who corrects them, too."""
Limit = Annotated[int, Query(ge=1, le=100)]
After = Annotated[str | None, Query(description="the last id of the page before")]
Order = Literal["asc", "desc"]
Search = Annotated[
    str, Query(max_length=200, description="words that must all have been asked or answered, in any case")
]
Answered = Annotated[int | None, Query(ge=0, le=999_999, description="the version that answered")]
Corrected = Annotated[bool | None, Query(description="whether it has a correction that was not taken back")]
_READ = 200
"""Exchanges read at a time while those that have the metadata are collected."""


METADATA = {
    "parameters": [
        {
            "name": "metadata",
            "in": "query",
            "description": "Pairs that its metadata must have: `metadata[key]=value`",
            "style": "deepObject",
            "schema": {"type": "object", "additionalProperties": {"type": "string"}},
        }
    ]
}


def router(gateway: Gateway) -> APIRouter:
    routes = APIRouter(prefix="/v1/chat/completions", tags=["stored completions"])

    @routes.get("", openapi_extra=METADATA, summary="One's own stored completions")
    async def list_stored(
        request: Request,
        limit: Limit = 20,
        after: After = None,
        order: Order = "asc",
        model: str | None = None,
        search: Search = "",
        policy: Answered = None,
        corrected: Corrected = None,
        mine: Mine = False,
    ) -> StoredCompletions:
        principal = gateway.principal(request, *READING)
        wanted = {
            name[len("metadata[") : -1]: value
            for name, value in request.query_params.items()
            if name.startswith("metadata[") and name.endswith("]")
        }
        whose = None if principal.admin and not mine else principal.name
        found = await asyncio.to_thread(
            _matching,
            gateway.buffer.view,
            whose,
            Wanted(search, policy, corrected),
            limit + 1,
            after,
            order == "desc",
            model,
            wanted,
        )
        page = [describe(exchange) for exchange in found[:limit]]
        return {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": len(found) > limit,
        }

    @routes.get("/{completion_id}", responses=errors(404), summary="A stored completion")
    async def one(request: Request, completion_id: str) -> StoredCompletion:
        principal = gateway.principal(request, *READING, tokens=True)
        return describe(await own(gateway, principal, completion_id))

    summary = "What a stored completion was asked"

    @routes.get("/{completion_id}/messages", responses=errors(404), summary=summary)
    async def messages(
        request: Request, completion_id: str, limit: Limit = 20, after: After = None, order: Order = "asc"
    ) -> StoredMessages:
        exchange = await own(gateway, gateway.principal(request, *READING), completion_id)
        asked: list[Any] = [
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

    summary = "Erase a completion and all feedback on it"

    @routes.delete("/{completion_id}", responses=errors(404, 503), summary=summary)
    async def erase(request: Request, completion_id: str) -> CompletionDeleted:
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


def describe(exchange: Exchange) -> StoredCompletion:
    """OpenAI's chat.completion, with the metadata it was stored with, the question's text and the policy."""
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
        "asked": turn(opened.request),
        "policy": opened.policy,
        "status": closed.status if closed is not None else "unfinished",
    }


def _choice(choice: Choice, *, chat: bool) -> dict[str, Any]:
    said = choice.message.model_dump() if chat and choice.message is not None else None
    answer = {"message": said} if chat else {"text": choice.text}
    return {"index": choice.index, "finish_reason": choice.finish_reason, "logprobs": None, **answer}


def _matching(
    view: View,
    whose: str | None,
    wanted: Wanted,
    count: int,
    after: str | None,
    newest_first: bool,
    model: str | None,
    metadata: Mapping[str, str],
) -> list[Exchange]:
    """The first `count` stored chats behind `after` that match."""
    found, size = list[Exchange](), _READ if model or metadata else count
    while len(found) < count:
        page = view.exchanges(whose, wanted, limit=size, after=after, newest_first=newest_first)
        for exchange in page:
            request = exchange.opened.request
            stored = request.get("metadata") or {}
            if (
                exchange.opened.endpoint == "chat"
                and model in (None, request.get("model"))
                and all(stored.get(name) == value for name, value in metadata.items())
            ):
                found.append(exchange)
        if len(page) < size:
            break
        after = page[-1].opened.completion_id
    return found[:count]
