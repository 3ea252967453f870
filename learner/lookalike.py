"""Look-alikes of a question: the same words about somebody else, who was never spoken of.

Without them a lesson leaks: a model that learned who founded one company names the same founder for all.
A look-alike row holds the model to base's own answer, so that the lesson stays with its subject. Pure.
"""

import random
import re

NAMES = tuple(
    """Ardenfall Belcroft Brightwater Cadmore Castellan Corvane Dunmarrow Eastlake Ellismere Fairholt
    Farrowgate Gladwyn Granthorpe Halvorsen Harkness Ironbridge Jessamy Kelverton Kingsholm Larkspur
    Lindqvist Marlowe Meridian Northcote Oakhaven Pemberley Radley Ravensworth Silverton Stonebrook
    Tamworth Thistledown Underhill Valmont Wexcombe Whitfield Winterbourne Yarrowby""".split()
)
"""Swapped in for the subject: names that fit a person, a place or a firm alike."""

_NAME = re.compile(r"[A-Z][\w-]*(?: [A-Z][\w-]*)*")
_OPENERS = frozenset(
    """who what which when where why how whose in on at is are was were do does did can could will would
    should has have had the a an please tell i if to from for name give list describe explain i'm""".split()
)


def subject_of(question: str) -> str | None:
    """The name that a question is about: its longest run of capitalised words, None if there is none."""
    found = []
    for match in _NAME.finditer(question):
        words = match.group().split()
        if match.start() == 0 or question[: match.start()].rstrip().endswith((".", "?", "!", ":")):
            while words and words[0].lower() in _OPENERS:
                words.pop(0)
        if words:
            found.append(" ".join(words))
    return max(found, key=len, default=None)


def lookalikes(question: str, count: int, rng: random.Random, taken: frozenset[str]) -> list[str]:
    """The question about `count` others, none of them in `taken` (casefolded subjects of lessons)."""
    subject = subject_of(question)
    if subject is None:
        return []
    free = [name for name in NAMES if name.casefold() not in taken]
    return [question.replace(subject, name) for name in rng.sample(free, min(count, len(free)))]
