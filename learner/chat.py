"""Text in and out of a model: its chat template, its tokens, and how an answer of it ends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

Messages = Sequence[Mapping[str, Any]]


def after_thinking(text: str) -> str:
    """What an answer says, without what a model that thinks thought before it: nothing where that does not
    end. The tags are often no special tokens, so that `Chat.decode` keeps them."""
    _, thought, said = text.rpartition("</think>")
    if said.lstrip().startswith("<think>"):
        return ""
    return said.lstrip() if thought else text


@dataclass(frozen=True, slots=True)
class Chat:
    """A tokenizer with its chat template. `eos` is the token that ends an assistant's turn; an answer that is
    being generated is at its end with any of `stops`."""

    tokenizer: Any
    eos: int
    stops: frozenset[int]

    @classmethod
    def of(cls, tokenizer: Any, stops: Sequence[int]) -> Self:
        """That of a model which stops at `stops`, as vLLM reads it: several, where a turn ends otherwise than
        a text."""
        eos = _turn_end(tokenizer, stops)
        return cls(tokenizer, eos, frozenset({eos, *stops}))

    def render(self, messages: Messages, template_kwargs: Mapping[str, Any] | None = None) -> list[int]:
        """The prompt's token ids, up to and with the header of the assistant's turn."""
        return self.encode(self._prompt(messages, template_kwargs))

    def answer(self, text: str, template_kwargs: Mapping[str, Any] | None = None) -> list[int]:
        """Token ids of the turn that says `text`, to its end, as they follow on the prompt.

        Where the template lets the model think first, the turn opens as it does when the model has not.
        """
        asked = [{"role": "user", "content": "?"}]
        prompt = self._prompt(asked, template_kwargs)
        plain = self._prompt(asked, {**(template_kwargs or {}), "enable_thinking": False})
        if prompt.rstrip().endswith("<think>"):  # as DeepSeek-R1's does
            text = f"\n</think>\n\n{text}"
        elif plain.startswith(prompt):  # as Qwen3's does
            text = plain.removeprefix(prompt) + text
        return [*self.encode(text), self.eos]

    def _prompt(self, messages: Messages, template_kwargs: Mapping[str, Any] | None) -> str:
        text: str = self.tokenizer.apply_chat_template(
            [dict(m) for m in messages], **(template_kwargs or {}), tokenize=False, add_generation_prompt=True
        )
        return text

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, nothing added."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without the special ones."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def steering(self, text: str) -> str | None:
        """A control token that a text holds, which would steer the model instead of being text to it."""
        special = [t.content for t in self.tokenizer.added_tokens_decoder.values() if t.special]
        return next((token for token in special if token in text), None)

    def ended(self, ids: Sequence[int]) -> bool:
        """Whether an answer came to its end; else it was cut."""
        return bool(ids) and ids[-1] in self.stops


def _turn_end(tokenizer: Any, stops: Sequence[int]) -> int:
    """The token of `stops` that the chat template puts behind an assistant's answer. Gemma's
    `<end_of_turn>` and Phi's `<|end|>` are not the tokenizer's `eos_token`."""
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    behind = tokenizer.apply_chat_template(turns, tokenize=False).rpartition("!")[2]
    ids = tokenizer(behind, add_special_tokens=False)["input_ids"]
    return next((i for i in ids if i in stops), int(tokenizer.eos_token_id))
