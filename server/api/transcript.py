"""What an answer said, from a whole reply or from the chunks of a stream: the record's content. Pure.

However an answer is cut into chunks, the transcript is the same as that of the whole reply.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from buffer.records import Choice, ExchangeClosed, ExchangeOpened, Message, Payload, Record
from server.identity import Endpoint

CUT_ABOVE_BYTES = 900_000
"""A record's data above this is cut down. Below every log's own limit."""


@dataclass(slots=True)
class _Answer:
    """One choice as far as it has come."""

    role: str = "assistant"
    content: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    tool_calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str | None = None

    def message(self) -> Message:
        content: str | None = "".join(self.content)
        more: dict[str, Any] = {}
        if self.tool_calls:
            more["tool_calls"] = [self.tool_calls[index] for index in sorted(self.tool_calls)]
            content = content or None
        if self.reasoning:
            more["reasoning"] = "".join(self.reasoning)
        return Message(role=self.role, content=content, **more)


class Transcript:
    """Feed it every chunk, or the whole reply, with `add`."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._answers: dict[int, _Answer] = {}
        self._prompt_token_ids: list[int] = []
        self._usage: dict[str, Any] = {}

    def add(self, answer: Mapping[str, Any]) -> None:
        """Take in a reply, or a chunk of one, as vLLM sends it."""
        self._take_prompt(answer)
        if answer.get("usage"):
            self._usage = {k: v for k, v in answer["usage"].items() if v is not None}
        for choice in answer.get("choices", []):
            self._take_prompt(choice)
            into = self._answers.setdefault(choice["index"], _Answer())
            into.token_ids += choice.get("token_ids") or []
            into.logprobs += _sampled_logprobs(choice.get("logprobs"))
            into.finish_reason = choice.get("finish_reason") or into.finish_reason
            if self._endpoint == "completions":
                into.content.append(choice.get("text") or "")
            else:
                _take_message(into, choice.get("delta") or choice.get("message") or {})

    def closed(
        self,
        completion_id: str,
        status: Literal["complete", "aborted", "failed"],
        sampling: Mapping[str, Any],
        error: str | None = None,
    ) -> ExchangeClosed:
        """The record of how the exchange ended."""
        return ExchangeClosed(
            completion_id=completion_id,
            status=status,
            prompt_token_ids=self._prompt_token_ids,
            choices=[self._choice(index) for index in sorted(self._answers)],
            sampling={**sampling, "logprobs_mode": "raw_logprobs"},
            usage=self._usage,
            error=error,
            untrainable=self._untrainable(),
        )

    def _take_prompt(self, source: Mapping[str, Any]) -> None:
        self._prompt_token_ids = self._prompt_token_ids or source.get("prompt_token_ids") or []

    def _choice(self, index: int) -> Choice:
        answer = self._answers[index]
        said: dict[str, Any] = (
            {"text": "".join(answer.content)}
            if self._endpoint == "completions"
            else {"message": answer.message()}
        )
        return Choice(
            index=index,
            token_ids=answer.token_ids,
            logprobs=answer.logprobs,
            finish_reason=answer.finish_reason,
            **said,
        )

    def _untrainable(self) -> str | None:
        answers = self._answers.values()
        if answers and not self._prompt_token_ids:
            return "the engine sent no token ids"
        if any(len(answer.token_ids) != len(answer.logprobs) for answer in answers):
            return "the engine's log-probabilities do not match its token ids"
        return None


def _take_message(into: _Answer, piece: Mapping[str, Any]) -> None:
    into.role = piece.get("role") or into.role
    into.content.append(piece.get("content") or "")
    if piece.get("reasoning"):
        into.reasoning.append(piece["reasoning"])
    for position, part in enumerate(piece.get("tool_calls") or []):
        call = into.tool_calls.setdefault(
            part.get("index", position),
            {"id": None, "type": "function", "function": {"name": "", "arguments": ""}},
        )
        function = part.get("function") or {}
        call["id"] = part.get("id") or call["id"]
        call["function"]["name"] = function.get("name") or call["function"]["name"]
        call["function"]["arguments"] += function.get("arguments") or ""


def _sampled_logprobs(logprobs: Mapping[str, Any] | None) -> list[float]:
    """Log-probabilities of the sampled tokens, from either route's form."""
    if not logprobs:
        return []
    if (content := logprobs.get("content")) is not None:
        return [token["logprob"] for token in content]
    return [one if one is not None else 0.0 for one in logprobs.get("token_logprobs") or []]


def to_record(payload: Payload, *, time: datetime, randomness: bytes, partition_key: str) -> Record:
    """Envelope an exchange's payload, cut down where it would pass the log's limit: tokens first."""
    record = Record.of(payload, time=time, randomness=randomness, partition_key=partition_key)
    for cut in (_without_tokens, _without_text):
        if record.data is not None and len(record.data) <= CUT_ABOVE_BYTES:
            break
        payload = cut(payload)
        record = Record.of(payload, time=time, randomness=randomness, partition_key=partition_key)
    return record


def _without_tokens(payload: Payload) -> Payload:
    if not isinstance(payload, ExchangeClosed):
        return payload
    bare = [choice.model_copy(update={"token_ids": [], "logprobs": []}) for choice in payload.choices]
    return payload.model_copy(
        update={"prompt_token_ids": [], "choices": bare, "untrainable": "too large: its tokens were dropped"}
    )


def _without_text(payload: Payload) -> Payload:
    """Keep that there was an exchange. Of what was asked, the caller's metadata and a note remain."""
    if isinstance(payload, ExchangeClosed):
        return payload.model_copy(
            update={"choices": [], "sampling": {}, "untrainable": "too large: its text was dropped"}
        )
    if isinstance(payload, ExchangeOpened):
        # names the exchange, so that no two such requests count as the same question
        note = f"(too large to keep: {payload.completion_id})"
        kept: dict[str, Any] = {k: v for k, v in payload.request.items() if k in ("model", "metadata")}
        kept |= {"messages": [{"role": "user", "content": note}]}
        return payload.model_copy(update={"request": kept})
    return payload
