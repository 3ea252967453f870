"""The gate: what was measured on a candidate, and whether it may be served. Pure.

Paired tests against the served parent, never an absolute distance to base: that would stop all learning
after a few rounds. Distance to base (`drift`) is watched, not judged.
"""

from collections.abc import Container, Sequence

from pydantic import BaseModel, ConfigDict

from learner.config import GateConfig

FULL_AFTER = 2
"""Rounds in a row that must displace earlier lessons before the adapter is called full."""


class LessonResult(BaseModel):
    """How a candidate answers one lesson of the round."""

    model_config = ConfigDict(frozen=True)
    feedback_id: str
    asked: bool
    """Answered when asked as it was."""
    held_out: int
    held_out_of: int
    """Answered on how many of the phrasings that training never saw."""
    leaked: int = 0
    leaked_of: int = 0
    """Of the same question about so many others, of whom nothing was taught: where they are answered with the
    lesson. Watched, not judged."""
    answer: str = ""
    before: str = ""
    """The parent's answer to the same question. Both are empty once the lesson is erased."""


class KeptResult(BaseModel):
    """How an earlier lesson fares that the parent was asked as well."""

    model_config = ConfigDict(frozen=True)
    feedback_id: str
    parent: bool
    candidate: bool


class Evaluation(BaseModel):
    """Everything measured in a round. Divergences are nats per token on general prompts."""

    model_config = ConfigDict(frozen=True)
    lessons: list[LessonResult] = []
    kept: list[KeptResult] = []
    drift: float = 0.0
    """KL(base || candidate), on base's own greedy answers."""
    parent_drift: float = 0.0
    kl_to_parent: float = 0.0
    """KL(parent || candidate), on the same answers."""
    degenerate: float = 0.0
    parent_degenerate: float = 0.0
    """Share of answers to general prompts that are empty or loop."""
    loss_first: float = 0.0
    loss_last: float = 0.0
    steps: int = 0
    seconds: dict[str, float] = {}
    rows: dict[str, int] = {}
    left_out: dict[str, int] = {}
    """Rows that were not trained on, by reason."""


def verdict(evaluation: Evaluation, gate: GateConfig) -> list[str]:
    """The reasons against serving the candidate; none means it passes."""
    against = []
    if not evaluation.lessons:
        against.append("there was nothing to learn")
    asked = _share(sum(r.asked for r in evaluation.lessons), len(evaluation.lessons))
    if asked < gate.min_asked:
        against.append(f"answers {asked:.0%} of its lessons, under {gate.min_asked:.0%}")
    held_out = _share(
        sum(r.held_out for r in evaluation.lessons), sum(r.held_out_of for r in evaluation.lessons)
    )
    if held_out < gate.min_held_out:
        against.append(f"answers {held_out:.0%} of held-out phrasings, under {gate.min_held_out:.0%}")
    known = [k for k in evaluation.kept if k.parent]
    kept = _share(sum(k.candidate for k in known), len(known))
    if kept < gate.min_kept:
        against.append(f"keeps {kept:.0%} of earlier lessons, under {gate.min_kept:.0%}")
    if not evaluation.kl_to_parent <= gate.max_kl_to_parent:
        against.append(
            f"moves {evaluation.kl_to_parent:.3f} nats per token from the served policy on general prompts,"
            f" over {gate.max_kl_to_parent:.3f}"
        )
    if evaluation.degenerate > evaluation.parent_degenerate + gate.max_degenerate:
        against.append(
            f"{evaluation.degenerate:.0%} of general answers are empty or loop, the parent's"
            f" {evaluation.parent_degenerate:.0%}"
        )
    return against


def full(evaluations: Sequence[Evaluation]) -> str | None:
    """Words about an adapter that has no room left, from the evaluations of ended rounds, oldest first.

    It is full when new lessons displace old ones: each of the last `FULL_AFTER` rounds that rehearsed
    anything lost at least half as many earlier lessons as it taught new ones. None while there is room.
    """
    judged = [e for e in evaluations if any(k.parent for k in e.kept)][-FULL_AFTER:]
    lost = [sum(k.parent and not k.candidate for k in e.kept) for e in judged]
    learned = [sum(r.asked for r in e.lessons) for e in judged]
    displaced = [2 * gone >= max(new, 1) for gone, new in zip(lost, learned, strict=True)]
    if len(judged) < FULL_AFTER or not all(displaced):
        return None
    return (
        f"the adapter seems full: the last {FULL_AFTER} rounds taught {sum(learned)} lessons and lost"
        f" {sum(lost)} earlier ones. A larger one learns all again: raise [learner] rank, promote policy 0,"
        ' and ask for a round with {"include": ["held"]}'
    )


def degenerate(ids: Sequence[int], stops: Container[int]) -> bool:
    """Whether an answer is empty, or half of its 4-grams repeat earlier ones."""
    body = [i for i in ids if i not in stops]
    grams = [tuple(body[i : i + 4]) for i in range(len(body) - 3)]
    return not body or (len(grams) >= 8 and len(set(grams)) * 2 < len(grams))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 1.0
