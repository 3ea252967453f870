"""What the demo found: its verdict and its table. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from server.commands.demo_facts import Fact

MOST_KNOWN_BEFORE = 1
FEWEST_PARAPHRASED = 5
MOST_DRIFT = 0.2
"""Nats per token: mean KL from the base model on its own answers to general prompts."""


@dataclass
class Finding:
    """One fact's answers. `paraphrased` holds those to each of its paraphrases; the first one counts."""

    fact: Fact
    before: str = ""
    after: str = ""
    paraphrased: list[str] = field(default_factory=list)

    def known(self, lesson: Fact) -> bool:
        return lesson.known(self.after)

    def generalised(self, lesson: Fact) -> bool:
        return bool(self.paraphrased) and lesson.known(self.paraphrased[0])


@dataclass(frozen=True)
class TaughtRound:
    """One lesson's way through the learner. `seconds`: last correction to first reply by the new policy."""

    corrections: int
    served: int
    policy: str
    seconds: float | None


@dataclass
class Outcome:
    """Everything that the table and the verdict are made of."""

    findings: list[Finding]
    rounds: list[TaughtRound] = field(default_factory=list)
    policy: str = ""
    drift: float | None = None

    @property
    def before(self) -> int:
        return sum(f.fact.known(f.before) for f in self.findings)

    @property
    def after(self) -> int:
        return sum(f.known(f.fact) for f in self.findings)

    @property
    def paraphrased(self) -> int:
        return sum(f.generalised(f.fact) for f in self.findings)

    @property
    def seconds(self) -> float | None:
        """The slowest round's time from the last correction to the first reply by its policy."""
        return max((r.seconds for r in self.rounds if r.seconds is not None), default=None)


def knew_before(outcome: Outcome) -> str | None:
    """Why nothing can be shown, if the model already knows what was to be taught."""
    if outcome.before <= MOST_KNOWN_BEFORE:
        return None
    return (
        f"the model already answered {outcome.before} of {len(outcome.findings)} before it was taught: "
        "start with a fresh state directory, or roll back first (`apprentice policies promote 0`)"
    )


def shortcoming(outcome: Outcome) -> str | None:
    """Why it does not count as learned, in a sentence; None when it does."""
    total = len(outcome.findings)
    if reason := knew_before(outcome):
        return reason
    if not any(r.served for r in outcome.rounds):
        return "no round passed the gate, so the model is the same as before (`apprentice status` says why)"
    if outcome.after < total:
        return f"only {outcome.after} of {total} facts are answered after {len(outcome.rounds)} attempts"
    if outcome.paraphrased < FEWEST_PARAPHRASED:
        return (
            f"only {outcome.paraphrased} of {total} paraphrases are answered; {FEWEST_PARAPHRASED} are needed"
        )
    if outcome.drift is None:
        return f"policy {outcome.policy} does not say how far it drifted"
    if outcome.drift > MOST_DRIFT:
        return f"the policy drifted by {outcome.drift:.3f} nats per token; at most {MOST_DRIFT} is allowed"
    return None


def table(outcome: Outcome) -> Table:
    """Before and after, a row a fact."""
    total = len(outcome.findings)
    made = Table(title=f"Before and after: policy {outcome.policy}", show_lines=False, expand=False)
    for heading in ("question", "key", "before", "after", "paraphrased", "2nd"):
        made.add_column(heading, overflow="fold")
    for f in outcome.findings:
        marks = [_mark(f.fact.known(text)) for text in (f.before, f.after, *f.paraphrased)]
        made.add_row(f.fact.question, f.fact.key, *marks[:4])
    made.add_section()
    second = sum(len(f.paraphrased) > 1 and f.fact.known(f.paraphrased[1]) for f in outcome.findings)
    made.add_row("right", "", *(f"{n}/{total}" for n in (outcome.before, outcome.after)),
                 f"{outcome.paraphrased}/{total}", f"{second}/{total}")  # fmt: skip
    return made


def summary(outcome: Outcome) -> str:
    """The line under the table."""
    drift = "unknown" if outcome.drift is None else f"{outcome.drift:.3f} nats per token"
    took = "no new policy" if outcome.seconds is None else f"{outcome.seconds:.0f} s"
    return (
        f"policy {outcome.policy} · {len(outcome.rounds)} attempt(s) · drift {drift} · "
        f"last correction to first reply by the new policy: {took}"
    )


def as_json(outcome: Outcome, why: str | None) -> dict[str, Any]:
    """The same for programs."""
    return {
        "learned": why is None,
        "why": why,
        "before": outcome.before,
        "after": outcome.after,
        "paraphrased": outcome.paraphrased,
        "total": len(outcome.findings),
        "drift": outcome.drift,
        "policy": outcome.policy,
        "seconds": outcome.seconds,
        "rounds": [vars(r) for r in outcome.rounds],
        "facts": [
            {
                "question": f.fact.question,
                "key": f.fact.key,
                "before": f.before,
                "after": f.after,
                "paraphrased": dict(zip(f.fact.paraphrases, f.paraphrased, strict=False)),
            }
            for f in outcome.findings
        ],
    }


def to_teach(findings: Sequence[Finding], taught: Sequence[Fact]) -> list[int]:
    """Indices of the facts whose lesson (which `--shuffled` takes from another fact) is not answered yet;
    where all are, of those that are not in other words, as long as these are too many."""
    known = [f.known(lesson) for f, lesson in zip(findings, taught, strict=True)]
    if all(known):
        otherwise = [f.generalised(lesson) for f, lesson in zip(findings, taught, strict=True)]
        if sum(otherwise) < FEWEST_PARAPHRASED:
            known = otherwise
    return [index for index, right in enumerate(known) if not right]


def _mark(right: bool) -> str:
    return "[green]right[/]" if right else "[red]wrong[/]"
