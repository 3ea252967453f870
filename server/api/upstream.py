"""vLLM's completion routes: where they are, their streams, and what their errors mean to a client."""

from collections.abc import AsyncIterator
from typing import Any

from aiohttp import ClientError, ClientResponse
from pydantic_core import from_json

from server.api import sse
from server.errors import EngineRefused, EngineUnavailable, RequestRefused, ServerError
from server.identity import Endpoint

PATHS: dict[Endpoint, str] = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}


async def chunks(answer: ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """vLLM's chunks up to its `[DONE]`. Raises `EngineRefused`, `EngineUnavailable`."""
    events = sse.Events()
    try:
        async for piece in answer.content.iter_any():
            for data in events.feed(piece):
                if data == "[DONE]":
                    return
                chunk = from_json(data)
                if "error" in chunk:
                    raise EngineRefused(str(chunk["error"].get("message", chunk["error"])), answer=200)
                yield chunk
    except (ClientError, OSError, TimeoutError) as error:
        raise EngineUnavailable(f"the model stopped in the middle of its answer: {error}") from error
    except ValueError as error:
        raise EngineRefused(f"the model sent what is not JSON: {error}", answer=200) from error
    raise EngineUnavailable("the model stopped in the middle of its answer")


def engine_error(status: int, body: bytes) -> ServerError:
    """vLLM's answer as an error of ours: a request that it finds wrong is the client's to correct."""
    try:
        error: Any = from_json(body)["error"]
        message, param = str(error["message"]), error.get("param")
    except (ValueError, KeyError, TypeError, AttributeError):
        message, param = body[:500].decode(errors="replace"), None
    if status in (400, 413, 422):
        too_long = "context length" in message
        hint = "shorten the prompt or lower max_tokens" if too_long else "correct the request"
        code = "context_length_exceeded" if too_long else "invalid_request"
        return RequestRefused(message, hint, code=code, param=param)
    if status in (429, 503):
        return EngineUnavailable(f"the model cannot take more requests now: {message}")
    return EngineRefused(
        f"the model answered with status {status}: {message}", "see the server's log", answer=status
    )
