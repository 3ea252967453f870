"""`POST /v1/chat/completions` and `/v1/completions`: answered by a policy and captured for learning.

Order is the promise. A stream's opening record is on disk before its headers go out, and its closing record
before `[DONE]`; a whole reply goes out after both. So whoever holds a receipt can be sure of it.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future
from typing import Literal

from aiohttp import ClientResponse
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic_core import from_json
from starlette.types import Receive, Scope, Send

from buffer.log import BufferError
from buffer.records import ExchangeClosed, ExchangeOpened, Record
from server.api import document, sse, translate
from server.api.document import errors
from server.api.fields import BODIES
from server.api.next_turn import NextTurns
from server.api.problems import problem
from server.api.reply import reply, worth_sending
from server.api.schemas import Completion
from server.api.transcript import Transcript
from server.api.translate import Call
from server.api.upstream import PATHS, chunks, engine_error
from server.errors import ServerError
from server.gateway import Gateway, read_json
from server.identity import PREFIXES, Endpoint, Principal, conversation_of

logger = logging.getLogger(__name__)

_STREAM_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}

RESPONSES = errors(404, 502, 503) | {
    200: {
        "model": Completion,
        "content": {
            "text/event-stream": {
                # one event of the stream, as OpenAPI 3.2 has it and as FastAPI writes it into 3.1
                "itemSchema": {
                    "type": "object",
                    "properties": {"data": {"type": "string", "contentMediaType": "application/json"}},
                    "required": ["data"],
                    "description": "With stream: true, OpenAI's chunks as server-sent events, then `[DONE]`. "
                    "An error that comes later than the first of them is the last event instead.",
                }
            }
        },
        "headers": {
            "x-policy": {"description": "The policy that answered.", "schema": {"type": "string"}},
            "x-captured": {
                "description": "true: the receipt is good and on disk. Left out with store: false.",
                "schema": {"type": "string", "enum": ["true", "false"]},
            },
        },
    }
}


def router(gateway: Gateway) -> APIRouter:
    routes = APIRouter(tags=["completions"])
    next_turns = NextTurns(gateway)

    async def answer(endpoint: Endpoint, request: Request) -> Response:
        principal = gateway.principal(request, "infer")
        call = translate.check(
            endpoint,
            await read_json(request),
            max_n=gateway.config.max_n,
            max_tokens_default=gateway.config.max_tokens_default,
        )
        return Answer(gateway, call, principal, next_turns)

    asked = [{"role": "user", "content": "Who runs the bakery in Ostwick?"}]

    @routes.post(
        PATHS["chat"],
        openapi_extra=document.body(
            BODIES["chat"],
            whole={"model": gateway.alias, "messages": asked},
            stream={"model": gateway.alias, "messages": asked, "stream": True},
        ),
        responses=RESPONSES,
        summary="Answer a conversation; the reply's id is the receipt for feedback",
        description=document.refused_fields(),
    )
    async def chat(request: Request) -> Response:
        return await answer("chat", request)

    @routes.post(
        PATHS["completions"],
        openapi_extra=document.body(
            BODIES["completions"], whole={"model": gateway.alias, "prompt": "The bakery in Ostwick"}
        ),
        responses=RESPONSES,
        summary="Continue a text; the reply's id is the receipt for feedback",
        description=document.refused_fields(),
    )
    async def completions(request: Request) -> Response:
        return await answer("completions", request)

    return routes


class Answer(Response):
    """One call on its way: asks the engine, records the exchange, sends the reply.

    It is the response object itself, so that lease, engine connection and client live exactly as long as
    each other. When the client leaves, the engine stops and what came so far is recorded.
    """

    def __init__(self, gateway: Gateway, call: Call, principal: Principal, next_turns: NextTurns) -> None:
        super().__init__()
        self._gateway = gateway
        self._call = call
        self._principal = principal
        self._next_turns = next_turns
        self._began = time.perf_counter()
        self._reply_headers: dict[str, str] = {}
        self._ending = False
        """The last piece is on its way, so a connection that closes now is no client that left."""
        self._captures = call.store
        self._transcript = Transcript(call.endpoint)
        self._conversation = conversation_of(principal.name, call.request)
        uuid = gateway.new_uuid()
        self._plain_id = f"{PREFIXES[call.endpoint]}-{uuid}"
        self._id = (
            gateway.receipts.mint(call.endpoint, uuid, principal.name, self._conversation)
            if call.store
            else self._plain_id
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        metrics, outcome = self._gateway.metrics, "failed"
        work = asyncio.create_task(self._answer(scope, receive, send))
        gone = asyncio.create_task(_client_gone(receive))
        try:
            with metrics.in_flight.track_inprogress():
                await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not work.done() and not self._ending:
                    work.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await work
                outcome = "aborted" if work.cancelled() else work.result()
        except (ServerError, BufferError) as error:
            outcome = error.code
            raise
        finally:
            gone.cancel()
            if not work.done():  # the server is ending: what came so far is recorded all the same
                work.cancel()
                await asyncio.wait({work})
            metrics.requests.labels(self._call.endpoint, outcome).inc()
            metrics.latency.labels(self._call.endpoint).observe(time.perf_counter() - self._began)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> str:
        """Returns the outcome; raises only as long as nothing has been sent."""
        gateway, call = self._gateway, self._call
        gateway.require_engine()
        version = gateway.resolve(call.model)
        # no await between resolving and leasing: a version that was just resolved cannot be retired between
        with gateway.policies.lease(version) as name:
            self._reply_headers["x-policy"] = f"{gateway.alias}@{version:06d}"
            if call.store:
                self._reply_headers["x-captured"] = "true"
            async with gateway.engine.post(
                PATHS[call.endpoint], {**call.upstream, "model": name}, {"x-request-id": self._id}
            ) as answer:
                if answer.status != 200:
                    raise engine_error(answer.status, await answer.read())
                if call.stream:
                    return await self._stream(answer, version, send)
                whole = from_json(await answer.read())
        self._transcript.add(whole)
        if call.store and await self._recorded([self._opened(version), self._closed("complete")]):
            gateway.metrics.captures.labels("complete").inc()
            self._next_turns.notice(self._principal, self._conversation, call.request)
        shown = reply(call, whole, self._id)
        self._ending = True
        await JSONResponse(shown, headers=self._reply_headers)(scope, receive, send)
        return "ok"

    async def _stream(self, answer: ClientResponse, version: int, send: Send) -> str:
        try:
            # The engine is already at work on the prompt, so this costs the first token nothing.
            if self._call.store and await self._recorded([self._opened(version)]):
                self._next_turns.notice(self._principal, self._conversation, self._call.request)
            headers = {**self._reply_headers, **_STREAM_HEADERS}
            raw = [(name.encode(), value.encode()) for name, value in headers.items()]
            await send({"type": "http.response.start", "status": 200, "headers": raw})
            async for shown in self._shown(answer):
                await send({"type": "http.response.body", "body": shown, "more_body": True})
        except asyncio.CancelledError:
            self._capture_without_waiting("aborted")
            raise
        except ServerError as error:
            self._capture_without_waiting("failed", error.message)
            await self._finish(send, sse.event(problem(error)[1]))
            return error.code
        if self._captures and (lost := await self._capture()) is not None:
            await self._finish(send, sse.event(problem(lost)[1]))
            return lost.code
        await self._finish(send, sse.DONE)
        return "ok"

    async def _shown(self, answer: ClientResponse) -> AsyncIterator[bytes]:
        """The stream as the client sees it, without its end. Raises `EngineRefused`, `EngineUnavailable`."""
        first = True
        async for chunk in chunks(answer):
            self._transcript.add(chunk)
            shown = reply(self._call, chunk, self._id)
            if worth_sending(self._call, shown):
                if first:
                    self._gateway.metrics.first_token.observe(time.perf_counter() - self._began)
                    first = False
                yield sse.event(shown)

    async def _finish(self, send: Send, last: bytes) -> None:
        self._ending = True
        await send({"type": "http.response.body", "body": last, "more_body": False})

    # --- the record ----------------------------------------------------------------------------------

    def _opened(self, version: int) -> Record:
        opened = ExchangeOpened(
            completion_id=self._id,
            principal=self._principal.name,
            conversation=self._conversation,
            endpoint=self._call.endpoint,
            policy=version,
            request=self._call.request,
        )
        return self._gateway.record(opened, self._conversation)

    def _closed(self, status: Literal["complete", "aborted", "failed"], error: str | None = None) -> Record:
        closed: ExchangeClosed = self._transcript.closed(self._id, status, self._call.sampling, error)
        return self._gateway.record(closed, self._conversation)

    async def _recorded(self, records: list[Record]) -> bool:
        """Whether an exchange's first records are on disk. Where it may, it goes on as if not stored.

        Raises `BufferError`.
        """
        try:
            await self._gateway.append(records)
        except BufferError as error:
            if not self._gateway.config.serve_uncaptured:
                hint = f"{error.hint or 'try again'}; meanwhile ask with store: false"
                raise type(error)(str(error), hint) from error
            logger.warning("answering without a record: %s", error)
            self._gateway.metrics.uncaptured.labels(error.code).inc()
            self._captures, self._id = False, self._plain_id  # what is no receipt must not look like one
            self._reply_headers["x-captured"] = "false"
        return self._captures

    async def _capture(self) -> BufferError | None:
        """Write the end of a complete stream; the error if that failed."""
        try:
            await self._gateway.append([self._closed("complete")])
        except BufferError as error:
            self._gateway.metrics.capture_failures.inc()
            return error
        except asyncio.CancelledError:
            return None  # the client left; what was appended stays appended
        self._gateway.metrics.captures.labels("complete").inc()
        return None

    def _capture_without_waiting(self, status: Literal["aborted", "failed"], error: str = "") -> None:
        """For a client that is no longer there to wait, or whose stream is broken in any case."""
        if not self._captures:
            return
        metrics = self._gateway.metrics

        def counted(done: "Future[None]") -> None:
            if (failure := done.exception()) is not None:
                metrics.capture_failures.inc()
                logger.warning("the end of an %s exchange could not be recorded: %s", status, failure)
            else:
                metrics.captures.labels(status).inc()

        record = self._closed(status, error or None)
        self._gateway.buffer.append([record]).add_done_callback(counted)


async def _client_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
