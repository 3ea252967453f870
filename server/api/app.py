"""The HTTP application: all routes, one shape of errors, one limit on bodies."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from buffer.log import BufferError
from buffer.logs import request_id
from server.api import completions, document, erasure, feedback, learning, overview, pages, stored, tokens
from server.api.document import errors
from server.api.problems import Problem, problem, shape
from server.api.request_id import HEADER, RequestId
from server.api.schemas import Alive, Model, Models, Ready
from server.errors import EngineRefused, EngineUnavailable, RequestRefused, ServerError
from server.gateway import Gateway

logger = logging.getLogger(__name__)


def create_app(gateway: Gateway) -> FastAPI:
    """The application on a gateway's parts. It starts and stops nothing."""
    app = Documented(
        title="Apprentice", description=document.ABOUT, version="1", openapi_tags=document.TAGS,
        docs_url=None, redoc_url=None,
    )  # fmt: skip
    app.include_router(tokens.router(gateway))
    app.include_router(feedback.router(gateway))  # first, since routes are tried in turn
    # before completions: both routers own paths below /v1/chat/completions, with different methods
    app.include_router(stored.router(gateway))
    app.include_router(completions.router(gateway))
    app.include_router(erasure.router(gateway))
    app.include_router(learning.learning_router(gateway))
    app.include_router(learning.policies_router(gateway))
    app.include_router(overview.router(gateway))
    _add_models(app, gateway)
    _add_operations(app, gateway)
    app.include_router(pages.router())

    def refuse(found: Problem) -> Response:
        gateway.metrics.refusals.labels(str(found[1]["error"]["code"])).inc()
        return _respond(found)

    _add_error_handlers(app, refuse)
    app.add_middleware(BodyLimit, max_bytes=gateway.config.max_body_bytes, refuse=refuse)
    if gateway.config.browser_origins:  # around the one before, so that a page can read its refusals
        app.add_middleware(
            BrowserOrigins,
            allow_origins=gateway.config.browser_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["x-policy", "x-captured", "retry-after", HEADER],
        )
    app.add_middleware(RequestId)  # around all of them
    return app


class Documented(FastAPI):
    """FastAPI whose document is completed once it is asked for."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            document.complete(super().openapi())
        return super().openapi()


def _add_models(app: FastAPI, gateway: Gateway) -> None:
    def cards() -> list[Model]:
        alias = gateway.alias
        pinned = [f"{alias}@{version:06d}" for version in sorted(gateway.policies.resident)]
        return [
            {"id": name, "object": "model", "created": 0, "owned_by": "apprentice"}
            for name in (alias, f"{alias}@base", *pinned)
        ]

    @app.get("/v1/models", tags=["models"], summary="The alias, the base and the policies that are loaded")
    async def models(request: Request) -> Models:
        gateway.principal(request)
        return {"object": "list", "data": cards()}

    @app.get("/v1/models/{name}", tags=["models"], responses=errors(404), summary="One model name")
    async def model(request: Request, name: str) -> Model:
        gateway.principal(request)
        for card in cards():
            if card["id"] == name:
                return card
        raise RequestRefused(
            f"there is no model {name!r}", "GET /v1/models lists them", code="model_not_found", status=404
        )


def _add_operations(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/healthz", tags=["operations"], summary="The gateway's process lives")
    async def healthz() -> Alive:
        return {"status": "ok"}

    def why_not_ready() -> EngineUnavailable | None:
        try:
            gateway.require_ready()
        except EngineUnavailable as error:
            return error
        return None

    summary = "The model answers and the log has been read"

    @app.get("/readyz", tags=["operations"], response_model=Ready, responses=errors(503), summary=summary)
    async def readyz() -> Ready | Response:
        if (error := why_not_ready()) is not None:  # not counted as a refusal: being asked is its purpose
            return _respond(problem(error))
        return {"status": "ready", "policy": f"{gateway.alias}@{gateway.live:06d}"}

    summary = "Ours and vLLM's, in Prometheus' text format"

    @app.get("/metrics", tags=["operations"], response_class=PlainTextResponse, summary=summary)
    async def metrics(request: Request) -> Response:
        gateway.callers.identify(request)
        gateway.metrics.ready.set(why_not_ready() is None)
        gateway.metrics.engine_ready.set(gateway.engine.state == "ready")
        gateway.metrics.engine_starts.set(gateway.engine.starts)
        try:
            engine_text = await gateway.engine.metrics_text()
        except (EngineUnavailable, EngineRefused):
            engine_text = ""
        text = await asyncio.to_thread(gateway.metrics.render, engine_text)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_error_handlers(app: FastAPI, refuse: Callable[[Problem], Response]) -> None:
    """The boundary where errors become replies: `refuse` makes one, and counts it."""

    @app.exception_handler(ServerError)
    @app.exception_handler(BufferError)
    async def ours(request: Request, error: ServerError | BufferError) -> Response:
        return refuse(problem(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return refuse(shape(400, "invalid_json", "the body is not valid JSON", "send JSON in UTF-8"))
        param = ".".join(str(part) for part in first["loc"][1:]) or None
        message = f"{param}: {first['msg']}" if param else str(first["msg"])
        return refuse(shape(400, "invalid_request", message, "see /docs", param=param))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        path = request.url.path
        if error.status_code == 404:
            found = shape(404, "no_such_route", f"there is no {path}", "see /docs")
        elif error.status_code == 405:
            allowed = ", ".join(sorted(_methods(app, request.scope)))
            found = shape(405, "wrong_method", f"{request.method} does not work on {path}", f"use {allowed}")
            found[2]["allow"] = allowed
        else:
            found = shape(error.status_code, f"http_{error.status_code}", str(error.detail))
        return refuse(found)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        response = refuse(
            shape(500, "internal_error", "the server made a mistake", "its log has the details")
        )
        response.headers[HEADER] = request_id.get()  # this handler alone is outside of all middleware
        return response


def _methods(app: FastAPI, scope: Scope) -> set[str]:
    """What works on a path: each method has a route of its own, and the framework names only one."""
    routes = [route for route in app.routes if isinstance(route, Route)]
    found = next(route.path for route in routes if route.matches(scope)[0] != Match.NONE)
    return {method for route in routes if route.path == found for method in route.methods or ()}


def _respond(found: Problem) -> Response:
    status, body, headers = found
    return JSONResponse(body, status_code=status, headers=headers)


class BrowserOrigins(CORSMiddleware):
    """Lets pages of the configured sites call the API, and nothing else here."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        to_api = scope["type"] == "http" and scope["path"].startswith("/v1/")
        await (super().__call__ if to_api else self.app)(scope, receive, send)


class BodyLimit:
    """Refuses a body above `max_bytes`, announced or not, before anything holds all of it."""

    def __init__(self, app: ASGIApp, max_bytes: int, refuse: Callable[[Problem], Response]) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > self._max_bytes:
            await self._refuse(self._too_large())(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._max_bytes:
                status, body, _ = self._too_large()
                error = body["error"]
                raise RequestRefused(error["message"], error["hint"], code=error["code"], status=status)
            return message

        await self._app(scope, counted, send)

    def _too_large(self) -> Problem:
        return shape(
            413,
            "body_too_large",
            f"the body is above the limit of {self._max_bytes} bytes",
            "send less at once, or raise max_body_bytes in [server]",
        )
