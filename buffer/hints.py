"""What a user's next turn says about the answer before it: whether it corrects it, and what would be right.

By English phrases, and with reserve: a correction that goes unnoticed can still be posted, while a remark
that is taken for one would be taught. A correction without its lead-in is a hint of one to three sentences;
where nothing is left there is none, and the sample is dropped (as in OpenClaw-RL, arXiv 2603.10165). Pure.
"""

import re

MAX_CHARS = 500
"""A longer turn is a new task or a text, not a correction."""
MAX_SENTENCES = 3

_STOP = r"(?=[ \t]*(?:[,;:!…—–\n]|[.-](?!\w)|$))"  # noqa: RUF001
"""What follows a word that is a verdict only where it stands alone: "No, …", but not "No bakery …"."""
_BAD = (
    r"(?:wrong|incorrect|false|mistaken|not[ ](?:quite[ ]|really[ ]|at[ ]all[ ])?(?:right|correct|true|it))"
)
_LEAD = re.compile(
    rf"""(?P<no> (?:no+|nope|nah) (?:{_STOP} | (?=[ ](?:it|that|this|he|she|they|you|the|its|thats)\b)) )
      | (?P<aside> (?:actually|in[ ]fact) \b )
      | (?P<verdict>
          (?:that|this|it|you|(?:your|the)[ ]answer) (?:'s|s|'re|[ ](?:is|are|was|were))
            (?:[ ](?:just|simply|still|completely|totally))? [ ] {_BAD} \b
        | (?:that|this|it) [ ] (?:is|was)n'?t [ ] (?:quite[ ]|really[ ])? (?:right|correct|true|it) \b
        | you[ ]got[ ](?:it|that|this)[ ]wrong \b
        | (?:{_BAD} | not[ ]quite | correction) {_STOP}
        | (?:i[ ](?:think|guess|believe)[ ])? you[ ]mean \b )""",
    re.IGNORECASE | re.VERBOSE,
)
_FILLER = re.compile(
    r"(?:oh|ah|hmm+|um|uh|sorry|but|and|because|since|rather|i think)\b|(?:so|well|ok(?:ay)?),", re.I
)
_BETWEEN = re.compile(r"(?:[\s,;:!…—–]|[.-](?!\w))*")  # noqa: RUF001
_CONTRAST = re.compile(r"(?:it|he|she|they|this|that|its|his|her|their|the)\b[^.!?\n]*\w,\s*not\s+\w", re.I)
"""A statement that sets what is right against what was said: "It's called Bramblewick, not Quillmoor."."""
_ASSERTION = re.compile(
    r"(?i:it|he|she|they|this|that|there|the|its|his|her|their|an?|our|my|your)\b|[A-Z\d\"'“]"
)
"""What "actually" must go on with: "actually, make it shorter" changes the question, not the answer."""
_SMALL_TALK = re.compile(
    r"""(?:thank|(?:no\s+)?(?:problem|worries|need|idea|rush)\b|never\s?mind|forget|nothing|not\s(?:now|yet|today))
      | i\s(?:agree|see|like|love|prefer|understand|meant?|asked|said|found|got|have|had|did|don't|didn't)\b
      | (?:that|this|it|i|you)(?:'s|'m|'re|\s(?:is|am|are|was))?\s(?:(?:a|all|really|very|so|quite|pretty)\s)*
        (?:good|great|fine|ok|okay|nice|cool|perfect|right|correct|true|helpful|enough|done|it|all|interesting|helps
          |works|makes\ssense)(?=\s*(?:[,.!;…]|$)|\s(?:and|but|for|now)\b)""",
    re.IGNORECASE | re.VERBOSE,
)
_REQUEST = re.compile(
    r"""(?:(?:please|just|now|then)[,\s]+)*
      (?:what|who|whose|why|how|when|where|which|can|could|would|will|should|do|does|did|is|are|was|were
        |let|let's|tell|give|show|explain|describe|make|use|write|rewrite|try|retry|answer|say|keep|be|stop|don't
        |redo|fix|check|look|think|add|remove|translate|summari[sz]e|shorten|start|go|focus|put|include|change
        |correct|update|read|remember|i\s(?:want|need|would)|i'd)\b""",
    re.IGNORECASE | re.VERBOSE,
)
_WHAT_IT_IS_NOT = re.compile(
    r"""(?: (?:[\w-]+\s){0,3} [\w-]+ (?:'s|'re|\s(?:is|are|was|were)) \s not
          | (?:[\w-]+\s){1,4} (?:is|are|was|were)n't
          | not ) \b [^,;]*? (?: [,;]\s* | \sbut\s+ | [.!]*$ )""",
    re.IGNORECASE | re.VERBOSE,
)
"""The first clause of "It isn't Quillmoor, it's Bramblewick"."""
_RATHER_THAN = re.compile(
    r"""(?: ,\s*(?:and\s|but\s)?not\b | ,?\s(?:instead\sof|rather\sthan)\b | \snot\s(?=(?-i:[A-Z"'“])) )
        [^,;]*? (?= [.!]*$ | [,;] )""",
    re.IGNORECASE | re.VERBOSE,
)
"""The last one of "It's called Bramblewick, not Quillmoor"."""
_SENTENCE = re.compile(r"(?<=\w{3}[.!?])\s+|\n+")
"""After three letters: "Dr. Holm" is not two sentences."""
_ASKS = re.compile(r"\?|\b(?:let me know|tell me)\b", re.IGNORECASE)
_SAYS_NOTHING = frozenset(
    """a an the it its s is are was were be that thats this these he she they i you your my answer response
    wrong incorrect false mistaken right correct true not no nope never again still just really quite
    completely totally at all either though so very please sorry thanks ok okay bad called named name sure yes
    t isn wasn""".split()
)


def is_correction(turn: str, answer: str) -> bool:
    """Whether a user's turn says that the answer before it was wrong.

    A question is no correction, and after an answer that asks at its end "no" is the reply to it.
    """
    said = _plain(turn)
    if not 0 < len(said) <= MAX_CHARS or "?" in said:
        return False
    leads, rest = _without_lead(said)
    if _SMALL_TALK.match(rest):
        return False
    if "verdict" in leads:
        return True
    if _REQUEST.match(rest):
        return False
    if "no" in leads:
        return not any(map(_ASKS.search, _SENTENCE.split(answer.strip())[-2:]))
    return bool(_ASSERTION.match(rest) if "aside" in leads else _CONTRAST.match(rest))


def hint_of(turn: str) -> str | None:
    """What a correcting turn says of the right answer, in the user's words; None where it says nothing of it.

    What the answer should *not* have been is left out: it repeats the rejected answer.
    """
    kept = []
    for sentence in _SENTENCE.split(_plain(turn)):
        rest = _without_lead(sentence)[1]
        if (not_this := _WHAT_IT_IS_NOT.match(rest)) is not None:
            rest = _without_lead(rest[not_this.end() :])[1]
        rest = _RATHER_THAN.sub("", rest).strip()
        words = set(re.findall(r"[^\W_]+", rest.casefold()))
        if words - _SAYS_NOTHING and not rest.endswith("?") and not _REQUEST.match(rest):
            kept.append(rest)
    return " ".join(kept) if 1 <= len(kept) <= MAX_SENTENCES else None


def _plain(turn: str) -> str:
    return turn.strip().replace("’", "'")  # noqa: RUF001 - as phones write it


def _without_lead(said: str) -> tuple[set[str], str]:
    """The kinds of lead-in at the start, and what comes after them."""
    leads: set[str] = set()
    while found := _LEAD.match(said) or _FILLER.match(said):
        leads.update(kind for kind, part in found.groupdict().items() if part)
        said = _BETWEEN.sub("", said[found.end() :], count=1)
    return leads, said
