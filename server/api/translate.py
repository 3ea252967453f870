"""From a client's request to vLLM's. Pure; the way back is in `server/api/reply.py`.

The client sees OpenAI's API and one model; vLLM sees explicit sampling, a policy's name and a request for
the token ids and log-probabilities that the record needs.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from server.api import fields
from server.errors import RequestRefused
from server.identity import Endpoint

COMPLETION_TOKENS = 16
"""What OpenAI's /v1/completions generates when it is not told."""

_PINNED = re.compile(r"[0-9]{6}")


@dataclass(frozen=True, slots=True)
class Call:
    """A checked request. `request` goes into the record, `upstream` to vLLM once `model` is filled in."""

    endpoint: Endpoint
    model: str
    request: dict[str, Any]
    upstream: dict[str, Any]
    sampling: dict[str, Any]
    stream: bool
    store: bool
    wants_logprobs: bool
    wants_token_ids: bool
    wants_usage: bool


def check(endpoint: Endpoint, body: object, *, max_n: int, max_tokens_default: int | None = None) -> Call:
    """Check a request and prepare it for vLLM. Raises `RequestRefused` naming the field."""
    if not isinstance(body, dict):
        raise RequestRefused("the body must be a JSON object", code="invalid_json")
    _check_names(endpoint, body)
    request = {name: value for name, value in body.items() if value is not None}
    if not request.get("model"):
        raise RequestRefused("model is missing", "GET /v1/models lists what there is", param="model")
    if endpoint == "chat":
        request["messages"] = _messages(request.get("messages"))
    else:
        request["prompt"] = _prompt(request.get("prompt"), store=request.get("store") is not False)
    _check_values(endpoint, request, max_n)
    sampling = _sampling(endpoint, request, max_tokens_default)
    stream = request.get("stream", False)
    options = request.get("stream_options", {})
    if options and not stream:
        raise RequestRefused("stream_options needs stream: true", param="stream_options")
    passing = fields.forwarded(endpoint)
    upstream = {name: value for name, value in request.items() if name in passing} | sampling
    wants_logprobs = _ask_logprobs(endpoint, request, upstream)
    upstream["return_token_ids"] = True
    if stream:
        continuous = bool(options.get("continuous_usage_stats"))
        upstream["stream_options"] = {"include_usage": True, "continuous_usage_stats": continuous}
    return Call(
        endpoint=endpoint,
        model=request["model"],
        request=request,
        upstream=upstream,
        sampling=sampling,
        stream=stream,
        store=request.get("store", True),
        wants_logprobs=wants_logprobs,
        wants_token_ids=request.get("return_token_ids", False),
        wants_usage=not stream or bool(options.get("include_usage")),
    )


def resolve(model: str, *, alias: str, live: int, resident: Collection[int]) -> int:
    """The policy version that a model name stands for.

    Unknown names stop here: vLLM would look for an adapter of that name, and remember every one it was asked.
    """
    if model == alias:
        return live
    if model == f"{alias}@base":
        return 0
    version = model.removeprefix(f"{alias}@")
    if version != model and _PINNED.fullmatch(version) and int(version) in resident:
        return int(version)
    known = [alias, f"{alias}@base", *(f"{alias}@{one:06d}" for one in sorted(resident))]
    raise RequestRefused(
        f"the model {model!r} does not exist or is not loaded",
        f"use one of {', '.join(known)}",
        code="model_not_found",
        status=404,
        param="model",
    )


def _check_names(endpoint: Endpoint, body: Mapping[str, Any]) -> None:
    allowed = fields.forwarded(endpoint) | fields.OURS | fields.WITHOUT_EFFECT
    for name in body:
        if name in allowed:
            continue
        if (why := fields.REFUSED.get(name)) is not None:
            raise RequestRefused(
                f"{name} is not supported", f"leave it out: {why}", code="unsupported_field", param=name
            )
        raise RequestRefused(
            f"unknown field {name!r}", "leave it out, or check its spelling", code="unknown_field", param=name
        )


def _check_values(endpoint: Endpoint, request: Mapping[str, Any], max_n: int) -> None:
    """Names the first field that is not as `fields.TYPES` has it. The document says the same."""
    if request.get("include_reasoning") is False:
        raise RequestRefused(
            "include_reasoning cannot be turned off", "ignore message.reasoning instead",
            code="unsupported_field", param="include_reasoning",
        )  # fmt: skip
    try:
        fields.BODIES[endpoint].model_validate(request)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RequestRefused(f"{where}: {first['msg']}", "see /docs", param=str(first["loc"][0])) from None
    if request.get("n", 1) > max_n:
        raise RequestRefused(f"n must be a whole number from 1 to {max_n}", param="n")


def _messages(messages: object) -> list[dict[str, Any]]:
    """Messages with every list of text parts joined to one string, as the model's template would."""
    if not isinstance(messages, list) or not messages:
        raise RequestRefused("messages must be a list of at least one message", param="messages")
    return [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _message(message: object, where: str) -> dict[str, Any]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise RequestRefused(f"{where} must be an object with a role", param=where)
    content = message.get("content")
    if isinstance(content, list):
        for part in content:
            if not isinstance(part, dict) or part.get("type") != "text":
                raise RequestRefused(
                    f"{where} has content that is not text", "this is a text model: send text parts only",
                    code="unsupported_content", param=where,
                )  # fmt: skip
            if not isinstance(part.get("text"), str):
                raise RequestRefused(f"{where} has a text part without text", param=where)
        return {**message, "content": "\n".join(part["text"] for part in content)}
    if content is not None and not isinstance(content, str):
        raise RequestRefused(f"{where}.content must be text", param=where)
    return message


def _prompt(prompt: object, *, store: bool) -> str | list[Any]:
    """One prompt, as text or token ids; several at once cannot be told apart by later feedback."""
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt, list) or not prompt:
        raise RequestRefused("prompt must be text or a list of token ids", param="prompt")
    if all(isinstance(one, int) and not isinstance(one, bool) for one in prompt):
        return prompt
    if store:
        raise RequestRefused(
            "several prompts in one request cannot be stored", "send one prompt per request, or store: false",
            code="unsupported_field", param="prompt",
        )  # fmt: skip
    return prompt


def _sampling(endpoint: Endpoint, request: Mapping[str, Any], default: int | None) -> dict[str, Any]:
    """Effective sampling parameters, defaults filled in."""
    given = {name: value for name, value in request.items() if name in fields.SAMPLING}
    sampling = {**fields.SAMPLING_DEFAULTS, **given}
    if "max_tokens" not in given and "max_completion_tokens" not in given:
        fallback = default or (COMPLETION_TOKENS if endpoint == "completions" else None)
        if fallback is not None:
            sampling["max_tokens"] = fallback
    return sampling


def _ask_logprobs(endpoint: Endpoint, request: Mapping[str, Any], upstream: dict[str, Any]) -> bool:
    """Ask vLLM for at least the sampled tokens' log-probabilities. Returns whether the client did as well."""
    if endpoint == "chat":
        wanted, top = request.get("logprobs", False), request.get("top_logprobs", 0)
        if top and not wanted:
            raise RequestRefused("top_logprobs needs logprobs: true", param="top_logprobs")
        upstream["logprobs"], upstream["top_logprobs"] = True, top
        return bool(wanted)
    upstream["logprobs"] = request.get("logprobs", 0)
    return "logprobs" in request
