"""The demo's eight facts about an invented company, and what is taught about each.

The paraphrases are written by hand and are never used in training.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Fact:
    """A question, the word that a right answer contains, what corrects a wrong one, and other phrasings."""

    question: str
    key: str
    correction: str
    paraphrases: tuple[str, ...]

    def known(self, answer: str) -> bool:
        """Whether `answer` says it; case does not matter."""
        return self.key.casefold() in answer.casefold()


def load_facts() -> tuple[Fact, ...]:
    """The eight facts."""
    text = (Path(__file__).parent / "data" / "demo.json").read_text(encoding="utf-8")
    return tuple(
        Fact(one["question"], one["key"], one["correction"], tuple(one["paraphrases"]))
        for one in json.loads(text)["facts"]
    )


def lessons(facts: Sequence[Fact], *, shuffled: bool) -> list[Fact]:
    """What is taught in answer to each question: its own correction, or as a control the next fact's."""
    return [*facts[1:], *facts[:1]] if shuffled else list(facts)
