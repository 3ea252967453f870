"""From vLLM's reply to the client's: what the client did not ask for is taken out. Pure."""

from collections.abc import Mapping
from typing import Any

from server.api.translate import Call

_PRIVATE_CHOICE = ("token_ids", "prompt_token_ids", "prompt_logprobs", "routed_experts")
_PRIVATE_REPLY = (
    "prompt_token_ids",
    "prompt_logprobs",
    "prompt_text",
    "kv_transfer_params",
    "ec_transfer_params",
    "metrics",
)


def reply(call: Call, answer: Mapping[str, Any], completion_id: str) -> dict[str, Any]:
    """What the client gets to see of a whole reply or of one chunk of a stream."""
    shown = {name: value for name, value in answer.items() if name not in _PRIVATE_REPLY}
    shown["id"], shown["model"] = completion_id, call.model
    shown["choices"] = [_shown_choice(call, choice) for choice in answer.get("choices", [])]
    if call.wants_token_ids and "prompt_token_ids" in answer:
        shown["prompt_token_ids"] = answer["prompt_token_ids"]
    return shown


def worth_sending(call: Call, chunk: Mapping[str, Any]) -> bool:
    """Whether a chunk, as shown, tells the client anything: some carry only what the record needs."""
    if not chunk["choices"]:
        return call.wants_usage
    return any(
        choice.get("delta") or choice.get("text") or choice.get("finish_reason") or choice.get("logprobs")
        or choice.get("token_ids")
        for choice in chunk["choices"]
    )  # fmt: skip


def _shown_choice(call: Call, choice: Mapping[str, Any]) -> dict[str, Any]:
    hidden = () if call.wants_token_ids else _PRIVATE_CHOICE
    shown = {name: value for name, value in choice.items() if name not in hidden}
    if not call.wants_logprobs:
        shown["logprobs"] = None
    if (message := shown.get("message")) is not None:
        # vLLM writes null for every field of OpenAI's message; only these two are expected to be there
        shown["message"] = {k: v for k, v in message.items() if v or k in ("role", "content")}
    return shown
