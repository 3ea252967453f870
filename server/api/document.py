"""The OpenAPI document: what the routes do not say of themselves. Pure.

Routes name their reply's shape, and with `errors` the statuses that are theirs alone; what holds for all of a
kind (keys, limits, mistakes) is added here. So the document grows with the routes.
"""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from server.api.fields import BODIES, REFUSED
from server.api.lessons import FeedbackIn, TokenWanted
from server.api.schemas import ErrorReply

ABOUT = """An OpenAI-compatible model server that learns from corrections.

Any OpenAI client works with `/v1` of this address as its base URL. The `id` of a completion is the receipt
that `POST /v1/feedback` names; `GET /v1/feedback/{id}` says whether the model has learned from it.
Completions are stored unless a request says `"store": false`."""

TAGS = [
    {"name": "completions", "description": "Answers, as OpenAI's API gives them; captured for learning."},
    {"name": "stored completions", "description": "What was asked and answered."},
    {"name": "feedback", "description": "What an answer should have been, and what became of that."},
    {"name": "learning", "description": "What the learner does. Steering it takes the scope `learn`."},
    {
        "name": "policies",
        "description": "What has been learned, by version. Changing it takes the scope `admin`.",
    },
    {"name": "models", "description": "The names that `model` may be."},
    {"name": "principals", "description": "Everything of one caller. Takes the scope `admin`."},
    {
        "name": "operations",
        "description": "For who runs the server. `/healthz` and `/readyz` take no key.",
    },
]

REASONS = {
    400: "The request is wrong; `param` names the field.",
    401: "No valid API key or feedback token.",
    403: "This key lacks the scope for that; without keys, only programs on this machine may call.",
    404: "There is no such thing, or it is somebody else's.",
    409: "It does not fit what is there now.",
    410: "It was deleted: old policies are, once nothing needs them.",
    413: "The body is too large.",
    429: "Too many requests, or too many wrong keys from this address. Try again after `Retry-After`.",
    500: "The server made a mistake; its log has the details.",
    502: "vLLM answered with an error.",
    503: "Not now: the model is not ready, or the log cannot be read or written. Try again later.",
}

SECURITY = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "A key of `apprentice keys` or [server.keys], or a feedback token for one completion."
        " A server without keys needs none; it listens on loopback.",
    }
}
BODY_MODELS: list[type[BaseModel]] = [*BODIES.values(), FeedbackIn, TokenWanted]
_SCHEMAS = "#/components/schemas/"
_METHODS = {"get", "post", "put", "patch", "delete"}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may answer with these statuses of its own."""
    return {status: {"model": ErrorReply, "description": REASONS[status]} for status in statuses}


def body(schema: dict[str, Any] | type[BaseModel], **examples: Any) -> dict[str, Any]:
    """The `openapi_extra` of a route that reads its body by itself. Examples are by name."""
    if isinstance(schema, type):
        schema = reference(schema)
    told = {name: {"value": value} for name, value in examples.items()}
    content = {"application/json": {"schema": schema, "examples": told}}
    return {"requestBody": {"required": True, "content": content}}


def reference(model: type) -> dict[str, str]:
    """A schema of the document's components."""
    return {"$ref": _SCHEMAS + model.__name__}


def refused_fields() -> str:
    """For people: which fields are refused, and why."""
    lines = [f"* `{name}`: {why}" for name, why in sorted(REFUSED.items())]
    return "\n".join(["These fields of OpenAI's or vLLM's are refused:", "", *lines])


def complete(document: dict[str, Any]) -> None:
    """Add to the framework's document, in place, what holds for all operations of a kind."""
    _, definitions = models_json_schema(
        [(model, "validation") for model in BODY_MODELS], ref_template=_SCHEMAS + "{model}"
    )
    components = document["components"]
    components["schemas"] |= definitions["$defs"]
    for unused in ("HTTPValidationError", "ValidationError"):  # such errors have the one shape, and are 400
        components["schemas"].pop(unused, None)
    components["securitySchemes"] = SECURITY
    for path, operation in operations(document):
        for parameter in operation.get(
            "parameters", []
        ):  # left out is None to us, but nothing in a URL is null
            if (choices := parameter["schema"].pop("anyOf", None)) is not None:
                parameter["schema"] |= choices[0]
        responses = operation["responses"]
        responses.pop("422", None)
        for status in _general(path, operation):
            content = {"application/json": {"schema": reference(ErrorReply)}}
            responses.setdefault(str(status), {"description": REASONS[status], "content": content})
        operation["responses"] = dict(sorted(responses.items()))
        if _guarded(path):
            operation["security"] = [{"bearer": []}]


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if method in _METHODS:
                yield path, operation


def _guarded(path: str) -> bool:
    """Whether it takes a key, where there are keys."""
    return path.startswith("/v1/") or path == "/metrics"


def _general(path: str, operation: dict[str, Any]) -> Iterator[int]:
    if _guarded(path):
        yield from (401, 403, 429, 503)
    if "parameters" in operation or "requestBody" in operation:
        yield 400
    if "requestBody" in operation:
        yield 413
    yield 500
