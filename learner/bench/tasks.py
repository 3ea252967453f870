"""What the benchmark teaches and asks: invented facts, and three skills with exact checkers.

Test items are never trained on, but for `asked`: the facts' own questions. Pure but for reading `data/`.
"""

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from buffer.records import FeedbackKind

_DATA = Path(__file__).parent / "data"

Checker = Callable[[str], bool]


@dataclass(frozen=True)
class Item:
    """A question and whether an answer to it is right. `told` is the correction that belongs to it."""

    question: str
    told: str
    right: Checker


@dataclass(frozen=True)
class Task:
    """Something to learn: `lessons` are trained on, given as one `kind` of feedback; `tests` are asked."""

    name: str
    kind: FeedbackKind
    lessons: tuple[Item, ...]
    tests: Mapping[str, tuple[Item, ...]]

    @property
    def digest(self) -> str:
        """Of what is taught and asked."""
        asked = [(name, i.question, i.told) for name, items in self.tests.items() for i in items]
        whole = json.dumps([self.kind, [(i.question, i.told) for i in self.lessons], asked])
        return hashlib.sha256(whole.encode()).hexdigest()[:12]

    def first(self, count: int) -> "Task":
        """The task with its first lessons alone, and the tests that belong to them, where they do."""
        kept = {item.told for item in self.lessons[:count]}
        tests = {
            name: tuple(i for i in items if i.told in kept) if name in _FACT_TESTS else items
            for name, items in self.tests.items()
        }
        return replace(self, lessons=self.lessons[:count], tests=tests)

    def shuffled(self, others: Sequence[Item]) -> "Task":
        """The same questions, each with the correction of one of `others`, none of which is asked about: what
        is said in the wrong place would teach the right one, too."""
        lessons = [replace(own, told=other.told) for own, other in zip(self.lessons, others, strict=True)]
        return replace(self, lessons=tuple(lessons))


_FACT_TESTS = ("asked", "paraphrased", "indirect", "lookalike")


def contains(key: str) -> Checker:
    return lambda answer: key.casefold() in answer.casefold()


def facts() -> Task:
    """Invented facts, four about each of twelve subjects. `lookalike` asks the same about others, where the
    lesson would be wrong: there `right` means that it leaked."""
    lines = (_DATA / "facts.jsonl").read_text(encoding="utf-8").splitlines()
    asked: list[Item] = []
    others: dict[str, list[Item]] = {"paraphrased": [], "indirect": [], "lookalike": []}
    for one in map(json.loads, lines):
        has_key = contains(one["key"])
        asked.append(Item(one["question"], one["answer"], has_key))
        others["paraphrased"] += [Item(q, one["answer"], has_key) for q in one["paraphrases"]]
        others["indirect"].append(Item(one["indirect"], one["answer"], has_key))
        others["lookalike"] += [Item(q, one["answer"], has_key) for q in one["lookalike"]]
    return Task(
        "facts",
        "correction",
        tuple(asked),
        {"asked": tuple(asked), **{name: tuple(items) for name, items in others.items()}},
    )


# --- calls to an invented API ----------------------------------------------------------------------------

_ROOMS = "kitchen hall attic cellar study nursery porch garage bathroom pantry".split()
_DEVICES = "lamp fan heater blind radio".split()
_STATES = {
    "on": ("Switch on the {device} in the {room}.", "Please turn the {device} in the {room} on."),
    "off": ("Switch off the {device} in the {room}.", "Please turn the {device} in the {room} off."),
}


def same_json(told: str) -> Checker:
    def right(answer: str) -> bool:
        try:
            return bool(json.loads(answer) == json.loads(told))
        except ValueError:
            return False

    return right


def api_calls(lessons: int = 16, tests: int = 100) -> Task:
    """Requests about a house, answered by a call to an API that nobody has seen: exact JSON."""
    items = []
    for room in _ROOMS:
        for device in _DEVICES:
            for state, forms in _STATES.items():
                for form in forms:
                    call: dict[str, Any] = {"do": f"nim.{state}", "what": device, "where": room}
                    told = json.dumps(call)
                    items.append(Item(form.format(device=device, room=room), told, same_json(told)))
    return _split("api calls", items, lessons, tests)


# --- a labelling policy ----------------------------------------------------------------------------------

_TICKETS = {
    "K7": (
        "The invoice for my {thing} is wrong.",
        "I was charged twice for the {thing}.",
        "I want my money back for the {thing}.",
        "The price of the {thing} was higher than I was told.",
    ),
    "B2": (
        "My {thing} is broken.",
        "The {thing} stopped working yesterday.",
        "The {thing} makes a strange noise.",
        "My {thing} does not start any more.",
    ),
    "T4": (
        "My {thing} has not arrived yet.",
        "Where is the {thing} that I ordered?",
        "The {thing} was sent to the wrong address.",
        "When will my {thing} be delivered?",
    ),
    "M9": (
        "How do I clean the {thing}?",
        "Is there a manual for the {thing}?",
        "What can I use the {thing} for?",
        "How do I set up the {thing}?",
    ),
}
_THINGS = "kettle printer camera drill mixer toaster scooter phone".split()


def exactly(told: str) -> Checker:
    return lambda answer: answer.strip().rstrip(".").casefold() == told.casefold()


def labels(lessons: int = 16, tests: int = 100) -> Task:
    """Customers' messages, sorted by a policy into four classes with names that say nothing."""
    items = [
        Item(f"Ticket: {form.format(thing=thing)}", f"Class {label}", exactly(f"Class {label}"))
        for label, forms in _TICKETS.items()
        for form in forms
        for thing in _THINGS
    ]
    return _split("labels", items, lessons, tests)


def _split(name: str, items: Sequence[Item], lessons: int, tests: int) -> Task:
    """Taught and tested items, apart, in an order that is the same in every run."""
    shuffled = list(items)
    random.Random(name).shuffle(shuffled)  # noqa: S311 - reproducible, not secret
    held_out = tuple(shuffled[lessons : lessons + tests])
    return Task(name, "demonstration", tuple(shuffled[:lessons]), {"held out": held_out})
