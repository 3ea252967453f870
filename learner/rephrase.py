"""Other ways to put the same question, so that a lesson is about the fact and not about one wording.

Frames around the question in plain English, as it is, embedded ("tell me who ..."), turned about its subject
or cut down to its content words; the answer with a gap where it says what was asked for; and the question
with words left out and moved about. Those in `HELD_OUT` are never trained on: the gate asks them. Pure.
"""

import random
import re

from learner.lookalike import subject_of

TRAINED = (
    "{question} Please answer briefly.",
    "I have a question. {question}",
    "Tell me {embedded}.",
    "Do you know {embedded}?",
    "{keywords}?",
    "What about this: {reversed}?",
    "About {subject}: {spoken}",
    "{subject}. {about}?",
    "My friend wonders {embedded}. What should I say?",
    "{asking}?",
    "Fill in the gap: {gap}.",
)
HELD_OUT = (
    "Could you answer this for me? {question}",
    "I would like to know {embedded}.",
)

_FUNCTION_WORDS = frozenset(
    """a an the is are was were be been am do does did can could will would should has have had of in on at to
    for from by with and or as it its this that there which what who whom whose when where why how i you me
    my your we our they their please""".split()
)
_WORD = re.compile(r"[\w'-]+")
_INTERROGATIVES = ("who", "what", "which", "when", "where", "why", "how", "whose", "in", "on", "at")
_ASKING = re.compile(
    r"(?:\w+ )??(who|when|where|(?:which|what|whose|how)(?: [\w-]+){0,3}?)"
    r" (?:is|are|was|were|does|did|do|has|have|can|may|must|will|should)\b",
    re.IGNORECASE,
)
"""The words that ask, of "In which city was ...": which city."""
_MOST_NEW_WORDS = 4
_MOST_WORDS = 40
"""Of a question that is taken apart. A longer one, or one of several lines, may hold code or a text."""


def rephrased(question: str, frames: tuple[str, ...], answer: str = "") -> list[str]:
    """The question in each frame, without repetition; a frame that does not suit it, or for which `answer` is
    wanted and does not suit, is left out."""
    bare = question.strip()
    parts = {"question": bare, **(_taken_apart(bare, answer) if _is_short(bare) else {})}
    made: list[str] = []
    for frame in frames:
        if all(parts.get(name) for name in re.findall(r"\{(\w+)\}", frame)):
            made.append(frame.format(**parts))
    return list(dict.fromkeys(made))


def _taken_apart(bare: str, answer: str) -> dict[str, str]:
    """What the frames are filled with, by name; empty where the question has no such part."""
    subject = subject_of(bare)
    names = subject.split() if subject else []
    first, _, rest = bare.partition(" ")
    embedded = f"{first.lower()} {rest}".rstrip(" ?.!") if first.lower() in _INTERROGATIVES and rest else ""
    words = [w for w in _WORD.findall(bare) if w.lower() not in _FUNCTION_WORDS]
    others = [w for w in words if w.removesuffix("'s") not in names]
    before, after = _around_the_new(bare, answer)
    gapped = bool(before or after)
    asking = _ASKING.match(bare)
    return {
        "embedded": embedded,
        "keywords": " ".join(words) if len(words) > 1 else "",
        "reversed": " ".join(reversed(words)) if len(words) > 1 else "",
        "subject": subject or "",
        "spoken": f"{first.lower()} {_pronoun(rest, subject)}" if subject and rest else "",
        "about": " ".join(others).capitalize() if names else "",
        "asking": f"{before}{asking[1].lower() if asking else 'what'}{after}" if gapped else "",
        "gap": f"{before}___{after}" if gapped else "",
    }


def _around_the_new(question: str, answer: str) -> tuple[str, str]:
    """What stands before and after the one thing that an answer of one sentence adds to its question; nothing
    where it adds several or is no such answer."""
    bare = answer.strip().rstrip(".")
    asked = {word.casefold()[:4] for word in _WORD.findall(question)}  # so far forms of a word are alike
    words = list(_WORD.finditer(bare))
    texts = [word.group().casefold() for word in words]
    new = [i for i, text in enumerate(texts) if text not in _FUNCTION_WORDS and text[:4] not in asked]
    if not new or new[-1] - new[0] >= len(new) or len(new) > _MOST_NEW_WORDS or re.search(r"[.!?:\n{]", bare):
        return "", ""
    first = new[0] - (new[0] > 0 and texts[new[0] - 1] in ("a", "an", "the"))
    return bare[: words[first].start()].rstrip("$"), bare[words[new[-1]].end() :]


def _is_short(question: str) -> bool:
    return "\n" not in question.strip() and len(question.split()) <= _MOST_WORDS


def _pronoun(text: str, subject: str) -> str:
    return text.replace(f"{subject}'s", "its").replace(subject, "it")


def scrambled(question: str, count: int, rng: random.Random) -> list[str]:
    """The question with its name but with other words left out and moved about."""
    subject = subject_of(question)
    if subject is None or not _is_short(question):
        return []
    rest = [w for w in _WORD.findall(question.replace(subject, " ")) if w not in ("s", "'s")]
    made = []
    for _ in range(count):
        kept = [w for w in rest if rng.random() < (0.35 if w.lower() in _FUNCTION_WORDS else 0.85)]
        if rng.random() < 0.5:
            rng.shuffle(kept)
        kept.insert(rng.randrange(len(kept) + 1), subject)
        made.append(" ".join(kept) + rng.choice(("?", "", "?")))
    return list(dict.fromkeys(made))


_EXAMPLES = (
    ("Who wrote the Brackenby Almanac?", "The author of the Brackenby Almanac is who?"),
    ("In which year did the Ostrava mill close?", "When was the Ostrava mill shut down?"),
    ("What is the tallest tower in Lorrimer?", "Which of the towers in Lorrimer is the tallest?"),
)


def asked_for(question: str, answer: str) -> list[dict[str, str]]:
    """Messages that ask a model to put `question`, whose right answer is `answer`, in other words."""
    asked = "Ask the same question in other words, with the same name in it, and nothing else.\n\n"
    turns = []
    for original, rewritten in _EXAMPLES:
        turns += [
            {"role": "user", "content": f"{asked}Question: {original}"},
            {"role": "assistant", "content": rewritten},
        ]
        asked = ""
    return [*turns, {"role": "user", "content": f"(The answer is: {answer})\n\nQuestion: {question}"}]


def readable(draft: str, question: str, answer: str) -> str | None:
    """The first line of `draft` if it can stand for `question`: a question that has the names and numbers
    of the original and gives nothing of the answer away. None otherwise."""
    written = (draft.strip().splitlines() or [""])[0].strip(' "')
    words = set(_WORD.findall(written.casefold()))
    original = set(_WORD.findall(question.casefold()))
    names = {w.casefold() for w in re.findall(r"(?<!^)\b(?:[A-Z][\w-]*|\d+)", question)}
    given_away = set(_WORD.findall(answer.casefold())) - original - _FUNCTION_WORDS
    good = (
        written.endswith("?")
        and 3 <= len(words) <= 2 * len(original) + 6
        and words != original
        and names <= {w.removesuffix("'s") for w in words} | words
        and not given_away & words
    )
    return written if good else None
