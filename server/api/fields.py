"""Which request fields a client may send, their types, and what to say about the rest.

vLLM ignores what it does not know, and obeys fields that would change other people's answers, the prompt's
template or what is captured. So nothing passes that is not listed here. Pure.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NotRequired

from pydantic import BaseModel, ConfigDict, Field, create_model, with_config
from typing_extensions import TypedDict

from server.identity import Endpoint

MAX_TOP_LOGPROBS = 20
METADATA_PAIRS, METADATA_KEY, METADATA_VALUE = 16, 64, 512
"""OpenAI's limits."""

SAMPLING_DEFAULTS: Mapping[str, float | int] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "n": 1,
}
"""Filled in where the client is silent, so that the record holds what was in effect."""

SAMPLING = frozenset(
    {
        *SAMPLING_DEFAULTS,
        "allowed_token_ids",
        "bad_words",
        "ignore_eos",
        "logit_bias",
        "max_completion_tokens",
        "max_tokens",
        "min_tokens",
        "response_format",
        "seed",
        "stop",
        "stop_token_ids",
        "structured_outputs",
        "thinking_token_budget",
    }
)
"""What decides which tokens come: kept with each record as its sampling."""

FORWARDED = SAMPLING - {"max_completion_tokens"} | {
    "include_stop_str_in_output",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "stream",
}
CHAT_ONLY = frozenset(
    {
        "include_reasoning",
        "max_completion_tokens",
        "messages",
        "parallel_tool_calls",
        "reasoning_effort",
        "tool_choice",
        "tools",
        "top_logprobs",
    }
)
COMPLETIONS_ONLY = frozenset({"prompt"})
OURS = frozenset(
    {"logprobs", "metadata", "modalities", "model", "return_token_ids", "store", "stream_options"}
)
"""Read or rewritten here on their way."""

WITHOUT_EFFECT = frozenset(
    {
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "user",
        "verbosity",
    }
)
"""OpenAI's fields that mean nothing here: accepted, recorded, not passed on."""

REFUSED: Mapping[str, str] = {
    "add_generation_prompt": "the prompt's form is fixed, so that what is captured can be learned from",
    "add_special_tokens": "the prompt's form is fixed, so that what is captured can be learned from",
    "audio": "this is a text model",
    "best_of": "use n and choose yourself",
    "cache_salt": "the prefix cache is the server's own",
    "chat_template": "the model's own template is used, as in training",
    "chat_template_kwargs": "the model's own template is used, as in training",
    "continue_final_message": "the prompt's form is fixed, so that what is captured can be learned from",
    "documents": "put the documents into a message",
    "echo": "put the prompt before the answer yourself",
    "function_call": "it was replaced by tool_choice",
    "functions": "it was replaced by tools",
    "guided_choice": "use structured_outputs or response_format",
    "guided_grammar": "use structured_outputs or response_format",
    "guided_json": "use structured_outputs or response_format",
    "guided_regex": "use structured_outputs or response_format",
    "kv_transfer_params": "it addresses other servers",
    "moderation": "no moderation model runs here",
    "prediction": "leave it out: answers are not predicted here",
    "priority": "all requests have the same priority",
    "prompt_embeds": "send text or token ids",
    "prompt_logprobs": "it costs memory that other requests need; use logprobs for the answer's tokens",
    "suffix": "the model cannot fill in the middle",
    "truncate_prompt_tokens": "shorten the prompt yourself, so that you know what was asked",
    "use_beam_search": "use n and choose yourself",
    "web_search_options": "no search runs here",
}
"""Fields that are refused for a reason; every other unlisted one is refused as unknown."""


def forwarded(endpoint: Endpoint) -> frozenset[str]:
    """What is passed on to vLLM as the client sent it."""
    return FORWARDED | (CHAT_ONLY if endpoint == "chat" else COMPLETIONS_ONLY)


# --- their types -----------------------------------------------------------------------------------------


@with_config(ConfigDict(extra="allow"))
class TextPart(TypedDict):
    type: Literal["text"]
    text: str


@with_config(ConfigDict(extra="allow"))
class ChatMessage(TypedDict):
    """A message as OpenAI shapes it: text only."""

    role: str
    content: NotRequired[str | list[TextPart] | None]


class StreamOptions(TypedDict):
    include_usage: NotRequired[bool | None]
    continuous_usage_stats: NotRequired[bool | None]


Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Share = Annotated[float, Field(ge=0, le=1)]
TopLogprobs = Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=METADATA_KEY)], Annotated[str, Field(max_length=METADATA_VALUE)]],
    Field(max_length=METADATA_PAIRS, description="`conversation_id` in it names the conversation"),
]

TYPES: Mapping[str, Any] = {
    "allowed_token_ids": list[Count],
    "bad_words": list[Text],
    "frequency_penalty": Penalty,
    "ignore_eos": bool,
    "include_reasoning": Literal[True],
    "include_stop_str_in_output": bool,
    "logit_bias": dict[str, float],
    "logprobs": bool,
    "max_completion_tokens": AtLeastOne,
    "max_tokens": AtLeastOne,
    "messages": Annotated[list[ChatMessage], Field(min_length=1)],
    "metadata": Metadata,
    "min_p": Share,
    "min_tokens": Count,
    "modalities": Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)],
    "model": Annotated[str, Field(min_length=1, description="one of GET /v1/models")],
    "n": Annotated[int, Field(ge=1, description="answers; at most `max_n` in [server]")],
    "parallel_tool_calls": bool,
    "presence_penalty": Penalty,
    "prompt": str | Annotated[list[int] | list[str] | list[list[int]], Field(min_length=1)],
    "reasoning_effort": Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"],
    "repetition_penalty": Annotated[float, Field(gt=0)],
    "response_format": dict[str, Any],
    "return_token_ids": bool,
    "seed": Annotated[int, Field(ge=-(2**63), lt=2**63)],
    "skip_special_tokens": bool,
    "spaces_between_special_tokens": bool,
    "stop": Text | list[Text],
    "stop_token_ids": list[Count],
    "store": Annotated[bool, Field(description="false: nothing is kept, so it cannot be corrected")],
    "stream": bool,
    "stream_options": Annotated[StreamOptions, Field(description="only with stream: true")],
    "structured_outputs": dict[str, Any],
    "temperature": Annotated[float, Field(ge=0, le=2)],
    "thinking_token_budget": int,
    "tool_choice": Literal["none", "auto", "required"] | dict[str, Any],
    "tools": list[dict[str, Any]],
    "top_k": Annotated[int, Field(ge=-1, description="0 or -1: all tokens")],
    "top_logprobs": Annotated[TopLogprobs, Field(description="only with logprobs: true")],
    "top_p": Annotated[float, Field(gt=0, le=1)],
}
"""What each may be; null is as good as absent. Limits are vLLM's, told here so that the field is named."""

_WITHOUT_EFFECT = Annotated[Any, Field(description="accepted and recorded, without effect")]


def _body(name: str, endpoint: Endpoint, required: str, **own: Any) -> type[BaseModel]:
    """The model of a request's body: what is checked, and what the OpenAPI document says of it."""
    types = {**TYPES, **dict.fromkeys(WITHOUT_EFFECT, _WITHOUT_EFFECT), **own}
    allowed = forwarded(endpoint) | OURS | WITHOUT_EFFECT
    described: dict[str, Any] = {
        field: (types[field], ...) if field in ("model", required) else (types[field] | None, None)
        for field in sorted(allowed, key=lambda field: (field not in ("model", required), field))
    }
    config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    return create_model(name, __config__=config, **described)


BODIES: Mapping[Endpoint, type[BaseModel]] = {
    "chat": _body("ChatRequest", "chat", "messages"),
    "completions": _body("CompletionRequest", "completions", "prompt", logprobs=TopLogprobs),
}
