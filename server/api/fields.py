"""Which request fields a client may send, and what to say about the rest.

vLLM ignores what it does not know, and obeys fields that would change other people's answers, the prompt's
template or what is captured. So nothing passes that is not listed here. Pure.
"""

from collections.abc import Mapping

from server.identity import Endpoint

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
