"""What `GET /v1/learning` says, in words. Pure."""

from typing import Any

from server.commands.command import plain


def progress(learning: dict[str, Any]) -> str:
    """What the learner does, in a line."""
    line = str(learning["state"])
    if learning.get("round") is not None:
        line += f" round {learning['round']}"
    if learning.get("steps"):
        line += f", step {learning.get('step') or 0} of {learning['steps']}"
    if learning.get("loss") is not None:
        line += f", loss {learning['loss']:.3f}"
    return plain(line + (f": {learning['why']}" if learning.get("why") else ""))


def verdict(last: dict[str, Any]) -> str:
    """How a round ended, with the gate's numbers."""
    line = f"round {last.get('round', '?')} {last.get('verdict') or 'not ended'}"
    numbers = ", ".join(_numbers(last.get("evaluation") or {}))
    reasons = "; ".join(last.get("reasons") or [])
    return plain(line + (f": {numbers}" if numbers else "") + (f" ({reasons})" if reasons else ""))


def _numbers(evaluation: dict[str, Any]) -> list[str]:
    """What the gate judged, as far as it was measured."""
    shown = []
    if lessons := evaluation.get("lessons"):
        shown.append(f"answers {sum(one['asked'] for one in lessons)} of {len(lessons)} lessons")
        if total := sum(one["held_out_of"] for one in lessons):
            shown.append(f"{sum(one['held_out'] for one in lessons)} of {total} in other words")
        if others := sum(one.get("leaked_of", 0) for one in lessons):
            shown.append(f"says {sum(one['leaked'] for one in lessons)} of {others} about others, too")
    if known := [one for one in evaluation.get("kept") or [] if one["parent"]]:
        shown.append(f"keeps {sum(one['candidate'] for one in known)} of {len(known)} earlier ones")
    if (distance := evaluation.get("kl_to_parent")) is not None:
        shown.append(f"KL to the policy before {distance:.3f}")
    if (drift := evaluation.get("drift")) is not None:
        shown.append(f"drift from base {drift:.3f} nats per token")
    if (loops := evaluation.get("degenerate")) is not None:
        shown.append(f"{loops:.0%} of general answers empty or looping")
    return shown
