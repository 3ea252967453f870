"""Look-alikes of a question: the same words about somebody else, who was never spoken of.

Without them a lesson leaks: a model that learned who founded one company names the same founder for all.
A look-alike row puts the lesson's answer, with the other's name in it, behind the question about them, and
holds the model to base wherever base would hardly say that (`learner.sdft`). Pure.
"""

import random
import re
from collections.abc import Iterable, Sequence

_HEADS = """Al Ar Bel Bor Bran Cal Car Dal Del Dor Ed El Fal Fen Gar Gil Hal Har Ing Jor Kel Kor Lan
    Lor Mal Mer Mor Nor Or Pel Per Ral Ros Sal Sel Tal Tor Ul Val Vor Wal Wes Yar Zan""".split()
_TAILS = """ber burn by croft dale den dine don fax ford gate ham ka lace ley line lo mar mere mont na
    nor ox port quist ra rick rose sen shaw son stead ster ta ton tov vale vin wick wood worth""".split()
_MADE = tuple(head + tail for head in _HEADS for tail in _TAILS)
HELD_OUT = _MADE[::10]
"""Names that training never sees: with them it is measured what leaks."""
NAMES = tuple(name for name in _MADE if name not in HELD_OUT)
"""Swapped in for the subject: over a thousand, since a handful would be learned as exceptions."""

_KEEPS_KIND = 0.7
"""Share of the others that keep all words of a longer name but its first."""

_NAME = re.compile(r"\b[A-Z][\w-]*(?: [A-Z][\w-]*)*")
_OPENERS = frozenset(
    """who what which when where why how whose in on at is are was were do does did can could will would
    should has have had the a an please tell if to from for name give list describe explain""".split()
)
_ACTS = re.compile(r"(?:'s| (?:is|are|was|were|has|had|does|did|can|will|would)) ")
"""What follows a name that begins a sentence, and rarely another word in that place."""


def subject_of(question: str) -> str | None:
    """The name that a question is about: its longest run of capitalised words, None if there is none.

    Any word is capitalised where a sentence begins: alone it counts there only if it acts as a name does.
    """
    found = []
    for match in _NAME.finditer(question):
        words = [word for word in match.group().split() if word != "I"]
        if match.start() == 0 or question[: match.start()].rstrip().endswith((".", "?", "!", ":")):
            while words and words[0].lower() in _OPENERS:
                words.pop(0)
            if len(words) == 1 == len(match.group().split()) and not _ACTS.match(question, match.end()):
                continue
        if words:
            found.append(" ".join(words))
    return max(found, key=len, default=None)


def subjects_of(questions: Iterable[str]) -> frozenset[str]:
    """Whom questions are about, casefolded: nobody may be swapped for them."""
    return frozenset((subject_of(question) or "").casefold() for question in questions)


def lookalikes(
    question: str,
    answer: str,
    count: int,
    rng: random.Random,
    taken: frozenset[str],
    names: Sequence[str] = NAMES,
) -> list[tuple[str, str]]:
    """Question and answer about `count` others, none of them in `taken` (casefolded subjects of lessons)."""
    subject = subject_of(question)
    if subject is None:
        return []
    free = [name for name in names if name.casefold() not in taken]
    kind = subject.split()[1:]  # what may say what it is: Foods, Rovers
    drawn = rng.sample(free, min(count, len(free)))
    others = [" ".join([name, *kind]) if rng.random() < _KEEPS_KIND else name for name in drawn]
    return [(question.replace(subject, other), answer.replace(subject, other)) for other in others]
