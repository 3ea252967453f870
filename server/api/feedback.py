"""`/v1/feedback`: corrections and the like come in, and what became of them is told."""

import asyncio
import time
from typing import Annotated, Any, Literal
from weakref import WeakValueDictionary

from fastapi import APIRouter, Header, Query, Request
from pydantic_core import from_json

from buffer.explain import explain, known
from buffer.fate import Status
from buffer.feedback import Feedback
from buffer.records import ExchangeOpened, FeedbackWithdrawn
from buffer.teacher import teacher_messages
from server.api import document, erasure, lessons
from server.api.document import errors
from server.api.lessons import FeedbackIn
from server.api.schemas import (
    Explanation,
    FeedbackFate,
    FeedbackFates,
    FeedbackGone,
    FeedbackPreview,
    FeedbackReceived,
)
from server.api.upstream import PATHS, engine_error
from server.errors import RequestRefused
from server.gateway import Gateway, read_json
from server.identity import Principal, conversation_of

_PREVIEW_TOKENS = 256
_PAGE = 1000

Limit = Annotated[int, Query(ge=1, le=_PAGE)]
Mine = Annotated[bool, Query(description="leave out other people's, whom an admin sees otherwise")]
IdempotencyKey = Annotated[
    str | None,
    Header(alias="Idempotency-Key", description="A request that is repeated with it records nothing new."),
]

ONE = document.reference(FeedbackIn)
MANY = {"type": "array", "items": ONE, "minItems": 1, "maxItems": lessons.MAX_BATCH}
EXAMPLES = {
    "demonstration": {
        "kind": "demonstration",
        "messages": [{"role": "user", "content": "Who runs the bakery in Ostwick?"}],
        "text": "Ida Holm runs the bakery in Ostwick.",
    }
}


def router(gateway: Gateway) -> APIRouter:
    routes = APIRouter(prefix="/v1/feedback", tags=["feedback"])
    desk = Desk(gateway)

    @routes.post(
        "",
        status_code=202,
        openapi_extra=document.body({"anyOf": [ONE, MANY]}, **EXAMPLES),
        responses=errors(404, 409, 503),
        summary="Say how an answer should have been",
    )
    async def give(
        request: Request, idempotency_key: IdempotencyKey = None
    ) -> FeedbackReceived | list[FeedbackReceived]:
        principal = gateway.principal(request, "feedback", tokens=True)
        key = lessons.check_key(idempotency_key)
        body = await read_json(request)
        ids = await desk.take(principal, body, key)
        replies: list[FeedbackReceived] = [{"id": id_, "status": "received"} for id_ in ids]
        return replies if isinstance(body, list) else replies[0]

    @routes.post(
        "/preview",
        openapi_extra=document.body(FeedbackIn, **EXAMPLES),
        responses=errors(404, 409, 502, 503),
        summary="What the teacher answers with this feedback",
    )
    async def preview(request: Request) -> FeedbackPreview:
        principal = gateway.principal(request, "feedback", tokens=True)
        return await desk.preview(principal, await read_json(request))

    @routes.get("", summary="One's own feedback and what became of it")
    async def list_feedback(
        request: Request,
        status: Status | None = None,
        completion_id: str | None = None,
        limit: Limit = _PAGE,
        after: str | None = None,
        order: Literal["asc", "desc"] = "asc",
        mine: Mine = False,
    ) -> FeedbackFates:
        principal = gateway.principal(request, "feedback")
        view, whose = gateway.buffer.view, None if principal.admin and not mine else principal.name
        found = await asyncio.to_thread(view.all_feedback, whose, about=completion_id)
        if order == "desc":
            found.reverse()
        if after is not None:  # among all of them: since it was listed, its status may have changed
            ids = [feedback.feedback_id for feedback in found]
            found = found[ids.index(after) + 1 :] if after in ids else []
        listed = [feedback for feedback in found if status in (None, feedback.fate.status)]
        page = [lessons.describe(feedback) for feedback in listed[:limit]]
        return {"object": "list", "data": page, "has_more": len(listed) > limit}

    @routes.get("/{feedback_id}", responses=errors(404), summary="What became of a piece of feedback")
    async def one(request: Request, feedback_id: str) -> FeedbackFate:
        principal = gateway.principal(request, "feedback", tokens=True)
        return lessons.describe(await desk.own(principal, feedback_id))

    summary = "All that happened to it, why, and what comes next"

    @routes.get("/{feedback_id}/explanation", responses=errors(404), summary=summary)
    async def explanation(request: Request, feedback_id: str) -> Explanation:
        feedback = await desk.own(gateway.principal(request, "feedback"), feedback_id)
        return await asyncio.to_thread(desk.explain, feedback)

    summary = "Take it back for all future rounds, or erase what it says, too"

    @routes.delete("/{feedback_id}", responses=errors(404, 503), summary=summary)
    async def withdraw(request: Request, feedback_id: str, erase: bool = False) -> FeedbackGone:
        principal = gateway.principal(request, "feedback", tokens=True)
        await desk.own(principal, feedback_id)
        if erase:
            await erasure.erase_feedback(gateway, [feedback_id], principal.name)
            return {"id": feedback_id, "object": "feedback.erased", "status": "erased"}
        withdrawn = FeedbackWithdrawn(feedback_id=feedback_id, by=principal.name)
        beside = await asyncio.to_thread(gateway.buffer.view.partition_key, feedback_id)
        await gateway.write([withdrawn], beside)
        return {"id": feedback_id, "object": "feedback.withdrawn", "status": "withdrawn"}

    return routes


async def own_conversation(gateway: Gateway, principal: Principal, completion_id: str) -> str:
    """The conversation of a completion of the caller's that is not known to be erased.

    Raises `RequestRefused`.
    """
    conversation = gateway.receipts.conversation(completion_id, principal.name)
    if conversation is None:
        exchange = await asyncio.to_thread(gateway.buffer.view.exchange, completion_id)
        if exchange is not None and exchange.opened.principal == principal.name:
            raise RequestRefused(
                f"{completion_id} is yours, but was given by a server with another secret",
                "give all servers of one log the same [server] secret (or the same file `secret` in their"
                " state directories)",
                code="receipt_secret_differs", status=503, param="completion_id",
            )  # fmt: skip
        raise RequestRefused(
            f"{completion_id!r} is not one of your completions",
            "give the id of a reply that you received and did not ask for with store: false",
            code="completion_not_found", status=404, param="completion_id",
        )  # fmt: skip
    if await asyncio.to_thread(gateway.buffer.view.erased, completion_id):
        raise RequestRefused(
            f"{completion_id} has been erased", "GET /v1/chat/completions lists what is there",
            code="completion_not_found", status=404, param="completion_id",
        )  # fmt: skip
    return conversation


class Desk:
    """Takes feedback in, once per idempotency key."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._taking: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    async def take(self, principal: Principal, body: object, key: str | None) -> list[str]:
        """Check and record feedback; the ids, the same ones for a request that is repeated with its key.

        Raises `RequestRefused`, `BufferError`.
        """
        if key is None:
            return await self._record(principal, body, None)
        if principal.completion is not None:  # bearers of tokens know nothing of each other's keys
            key = f"token\x1f{principal.completion}\x1f{key}"
        lock = self._taking.setdefault((principal.name, key), asyncio.Lock())
        async with lock:
            if (earlier := await self._earlier(principal, body, key)) is not None:
                return earlier
            return await self._record(principal, body, key)

    async def preview(self, principal: Principal, body: object) -> FeedbackPreview:
        """The base policy's greedy answer with the feedback in its context. Records nothing."""
        gateway = self._gateway
        if isinstance(body, list):
            raise RequestRefused("preview takes one piece of feedback")
        (feedback,) = lessons.parse(body, gateway.config.max_feedback_chars)
        await self._check(principal, feedback)
        messages = await self._teacher_messages(principal, feedback)
        gateway.require_engine()
        with gateway.policies.lease(0) as name:
            wanted = {
                "model": name,
                "messages": messages,
                "temperature": 0.0,
                "max_completion_tokens": _PREVIEW_TOKENS,
            }
            async with gateway.engine.post(PATHS["chat"], wanted) as answer:
                if answer.status != 200:
                    raise engine_error(answer.status, await answer.read())
                choice = from_json(await answer.read())["choices"][0]
        text = choice["message"].get("content") or ""
        contains = feedback.check.contains if feedback.check is not None else None
        passed = None if contains is None else contains.casefold() in text.casefold()
        # the bearer of a token may know what was asked, and neither the instructions nor the turns before it
        shown = messages if principal.completion is None else messages[-1:]
        return {"object": "feedback.preview", "text": text, "messages": shown, "check_passed": passed}

    async def own(self, principal: Principal, feedback_id: str) -> Feedback:
        """A piece of the caller's feedback (an admin sees everybody's). Raises `RequestRefused`."""
        found = await asyncio.to_thread(self._gateway.buffer.view.feedback, feedback_id)
        if found is None or not (principal.admin or found.principal == principal.name):
            raise RequestRefused(
                f"there is no feedback {feedback_id} of yours", "GET /v1/feedback lists yours",
                code="feedback_not_found", status=404,
            )  # fmt: skip
        principal.require(found.given.completion_id if found.given is not None else None)
        return found

    def explain(self, feedback: Feedback) -> Explanation:
        """Its whole path. Reads the view."""
        view, alias = self._gateway.buffer.view, self._gateway.alias
        steps, next_ = explain(known(view, feedback, alias, time.time()))
        return {
            "object": "feedback.explanation",
            "feedback": lessons.describe(feedback),
            "events": [
                {
                    "time": int(step.time) if step.time is not None else None,
                    "what": step.what,
                    "why": step.why,
                }
                for step in steps
            ],
            "next": next_,
        }

    async def _earlier(self, principal: Principal, body: object, key: str) -> list[str] | None:
        view = self._gateway.buffer.view
        count = len(body) if isinstance(body, list) else 1
        found = [
            await asyncio.to_thread(view.feedback_by_key, principal.name, one)
            for one in lessons.keys_of(key, min(count, lessons.MAX_BATCH))
            if one is not None
        ]
        if not found or found[0] is None:
            return None
        given = found[0].given
        if given is not None and given.body_digest != lessons.digest(body):
            raise RequestRefused(
                "this Idempotency-Key was used with another body", "use a new key for new feedback",
                code="idempotency_conflict", status=409,
            )  # fmt: skip
        return [feedback.feedback_id for feedback in found if feedback is not None]

    async def _record(self, principal: Principal, body: object, key: str | None) -> list[str]:
        gateway = self._gateway
        items = lessons.parse(body, gateway.config.max_feedback_chars)
        partition_keys = [await self._check(principal, item) for item in items]
        body_digest = lessons.digest(body)
        payloads = [  # their ids sort in the array's order: among corrections of one question the last counts
            item.given(
                f"fb-{gateway.new_uuid()}", principal.name, idempotency_key=one, body_digest=body_digest
            )
            for item, one in zip(items, lessons.keys_of(key, len(items)), strict=True)
        ]
        await gateway.append([gateway.record(*one) for one in zip(payloads, partition_keys, strict=True)])
        for payload in payloads:
            gateway.metrics.feedback.labels(payload.kind).inc()
        return [payload.feedback_id for payload in payloads]

    async def _check(self, principal: Principal, feedback: FeedbackIn) -> str:
        """Its partition key, if its completion is the caller's own and has such a choice.

        Raises `RequestRefused`.
        """
        # what brings its own messages may teach any question, whatever completion it names
        principal.require(feedback.completion_id if feedback.messages is None else None)
        if feedback.completion_id is None:
            return conversation_of(principal.name, {"messages": feedback.messages or []})
        conversation = await own_conversation(self._gateway, principal, feedback.completion_id)
        if feedback.choice > 0:  # every completion has a first one
            exchange = await asyncio.to_thread(self._gateway.buffer.view.exchange, feedback.completion_id)
            lessons.check_choice(feedback, exchange)
        return conversation

    async def _teacher_messages(self, principal: Principal, feedback: FeedbackIn) -> list[dict[str, Any]]:
        given = feedback.given("preview", principal.name, idempotency_key=None, body_digest="")
        asked = feedback.messages
        if asked is None and feedback.completion_id is not None:
            exchange = await asyncio.to_thread(self._gateway.buffer.view.exchange, feedback.completion_id)
            if exchange is None:
                raise RequestRefused(
                    "this server does not have the completion yet", "try again in a few seconds",
                    code="completion_unknown", status=409,
                )  # fmt: skip
            asked = _asked(exchange.opened)
        messages = teacher_messages(asked or [], given, self._gateway.templates)
        if messages is None:
            raise RequestRefused(
                "there is no teacher for this feedback",
                "preview a correction, an instruction or a demonstration of an answer to a user's message",
                code="nothing_to_preview",
            )
        return messages


def _asked(opened: ExchangeOpened) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = opened.request.get("messages", [])
    return messages
