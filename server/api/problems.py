"""How errors look over HTTP: OpenAI's `{"error": {"message", "type", "param", "code"}}`, with a `hint`.

Pure.
"""

from collections.abc import Mapping
from typing import Any

from buffer.log import BufferError, RecordTooLarge
from server.errors import EngineUnavailable, RequestRefused, ServerError

TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
}
RETRY_LATER_S = 5.0

Problem = tuple[int, dict[str, Any], dict[str, str]]
"""Status, body, headers."""


def problem(error: ServerError | BufferError) -> Problem:
    """What a client is told about one of our errors."""
    if isinstance(error, RecordTooLarge):
        return shape(413, error.code, str(error), "say less in one piece: no record of the log may hold more")
    if isinstance(error, BufferError):
        hint = error.hint or "free disk space, or try again; with store: false nothing has to be written"
        return shape(503, error.code, str(error), hint, retry_after_s=RETRY_LATER_S)
    return shape(
        error.status,
        error.code,
        error.message,
        error.hint,
        param=error.param if isinstance(error, RequestRefused) else None,
        retry_after_s=error.retry_after_s if isinstance(error, EngineUnavailable | RequestRefused) else None,
    )


def shape(
    status: int,
    code: str,
    message: str,
    hint: str = "",
    *,
    param: str | None = None,
    retry_after_s: float | None = None,
) -> Problem:
    """Status, body and headers of an error reply."""
    headers = {"retry-after": f"{max(1, round(retry_after_s))}"} if retry_after_s is not None else {}
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    body = {"message": message, "type": kind, "param": param, "code": code, "hint": hint or None}
    return status, {"error": body}, headers
