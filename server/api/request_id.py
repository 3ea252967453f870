"""A name for every request, `x-request-id`: the caller's own or a new one, in the reply and in log lines."""

import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from buffer.logs import request_id

HEADER = "x-request-id"
_FORM = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


class RequestId:
    """The outermost middleware. The name stays with the request's task, so that the server's own line about
    an error that nobody caught carries it, too."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        named = given if _FORM.fullmatch(given) else f"req-{uuid.uuid4().hex}"
        request_id.set(named)

        async def labelled(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = named
            await send(message)

        await self._app(scope, receive, labelled)
