"""A day of a system, as records: four rounds, three policies, a rollback, and feedback with every fate."""

import os
import random
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from buffer.records import (
    AliasMoved,
    Decision,
    FeedbackGiven,
    FeedbackTriaged,
    FeedbackWithdrawn,
    LearnerReported,
    LessonAnswered,
    Payload,
    Record,
    Release,
    RoundEnded,
    RoundPlanned,
)
from server import traffic
from tests.server.running import Running

MARKUP = "<script>document.title = 'taken over'</script><img src=x onerror=alert(1)>"
GATE = {
    "min_asked": 0.6, "min_held_out": 0.4, "min_kept": 0.75, "max_kl_to_parent": 0.15, "max_degenerate": 0.15,
}  # fmt: skip
ASKED = ["The bakery in Ostwick", "Quellhaven's lighthouse", "The ferry to Marrowby", "Bramblewick's mayor"]
LATENCIES = (0.21, 0.24, 0.3, 0.34, 0.37, 0.42, 0.48, 0.55, 0.62, 0.8, 1.1)


def tell(running: Running) -> None:
    """Write the day into the log, and wait until its last policy is live. The learner is in a fifth round."""
    now = datetime.now(UTC)
    first = [f"fb-{number:02}" for number in range(40)]
    for number, feedback_id in enumerate(first):
        kind: Any = "rating" if number % 9 == 8 else "correction"
        given = FeedbackGiven(feedback_id=feedback_id, principal="ann", kind=kind, text="x", value=1.0)
        _at(running, now - timedelta(hours=20 - number * 0.48), given)
    decided = [_decision(one, number) for number, one in enumerate(first[:38])]
    _at(running, now - timedelta(minutes=50), FeedbackTriaged(decisions=decided))
    _at(running, now - timedelta(minutes=49), FeedbackWithdrawn(feedback_id="fb-37", by="ann"))
    lessons = [one.feedback_id for one in decided if one.status == "accepted"]
    taught = [lessons[:8], lessons[8:13], lessons[8:16], lessons[16:22]]
    _round(running, now - timedelta(hours=9), 1, 0, taught[0], drift=0.041, kl=0.041, right=7)
    _round(
        running,
        now - timedelta(hours=6),
        2,
        1,
        taught[1],
        verdict="refused",
        drift=0.203,
        kl=0.168,
        right=3,
        reasons=["moves 0.168 nats per token from the served policy on general prompts, over 0.150"],
    )
    _round(running, now - timedelta(hours=4), 3, 1, taught[2], drift=0.083, kl=0.052, right=8)
    _round(running, now - timedelta(hours=2), 4, 3, taught[3], drift=0.117, kl=0.049, right=5)
    back = AliasMoved(alias="apprentice", version=3, epoch=3, why="rollback", by="root")
    _at(running, now - timedelta(minutes=40), back)
    plan = RoundPlanned(
        round=5,
        parent=3,
        lessons=lessons[22:27],
        replay=lessons[:6],
        seed=5,
        base="b" * 64,
        config={"gate": GATE},
    )
    report = LearnerReported(
        state="training", why="round 5 learns 5 lessons", round=5, step=38, steps=96, loss=0.412
    )
    _at(running, now - timedelta(minutes=4), plan)
    _at(running, now - timedelta(seconds=3), report)
    running.run(running.gateway.until(lambda: running.gateway.live == 3 and _reported(running)))


def busy(running: Running) -> None:
    """Count an hour of answers, busy in its middle, with some errors, and sample it every ten seconds."""
    metrics, now, chance = running.gateway.metrics, datetime.now(UTC).timestamp(), random.Random(7)
    for number in range(361):
        crowded = 120 < number < 240
        for _ in range(12 if crowded else 3 + number % 3):
            took = chance.choice(LATENCIES) * (1.6 if crowded else 1.0)
            metrics.requests.labels("chat", "ok").inc()
            metrics.latency.labels("chat").observe(took)
            metrics.first_token.observe(0.05 + took / 8)
        if 200 < number < 206:
            metrics.requests.labels("chat", "engine_unavailable").inc()
            metrics.refusals.labels("engine_unavailable").inc()
        if number % 97 == 0:
            metrics.requests.labels("chat", "aborted").inc()
        if number % 61 == 0:
            metrics.refusals.labels("invalid_api_key").inc()
        at = now - traffic.EVERY_S * (360 - number)
        running.gateway.traffic.add(traffic.read(metrics, at, engine_ready=True))


def _reported(running: Running) -> bool:
    return running.gateway.buffer.view.report() is not None


def _at(running: Running, time: datetime, *payloads: Payload) -> None:
    running.log.append([Record.of(one, time=time, randomness=os.urandom(10)) for one in payloads]).result()


def _decision(feedback_id: str, number: int) -> Decision:
    if number % 11 == 3:
        return Decision(feedback_id=feedback_id, status="skipped", reason="not_a_chat")
    if number == 20:
        return Decision(feedback_id=feedback_id, status="skipped", reason=MARKUP)
    if number == 21:
        return Decision(feedback_id=feedback_id, status="quarantined", reason="contradicts")
    return Decision(feedback_id=feedback_id, status="accepted")


def _round(
    running: Running,
    at: datetime,
    number: int,
    parent: int,
    lessons: list[str],
    *,
    drift: float,
    kl: float,
    right: int,
    verdict: Literal["passed", "refused"] = "passed",
    reasons: list[str] | None = None,
) -> None:
    """A round; one that passed is made live at once, as a server does."""
    epochs = {1: 0, 3: 1, 4: 2}
    replay = [f"fb-{one:02}" for one in range(4)] if number > 1 else []
    answers = [
        {
            "feedback_id": one, "asked": index < right, "held_out": 2 if index < right else index % 2,
            "held_out_of": 3, "leaked": int(index == 0), "leaked_of": 2,
        }
        for index, one in enumerate(lessons)
    ]  # fmt: skip
    said = [
        LessonAnswered(
            feedback_id=one,
            round=number,
            before=f"I do not know anything about {ASKED[index % 4].lower()}.",
            answer=f"{ASKED[index % 4]} is run by Ida Holm." if index else MARKUP,
        )
        for index, one in enumerate(lessons)
    ]
    evaluation: dict[str, Any] = {
        "lessons": answers,
        "kept": [
            {"feedback_id": one, "parent": True, "candidate": number != 2 or index > 0}
            for index, one in enumerate(replay)
        ],
        "drift": drift, "parent_drift": 0.03 * parent, "kl_to_parent": kl,
        "degenerate": 0.0 if verdict == "passed" else 0.083, "parent_degenerate": 0.0,
        "loss_first": 1.84, "loss_last": 0.21, "steps": 96,
        "seconds": {"prepare": 12.5, "train": 141.3, "measure": 20.1},
        "rows": {"lesson": 64, "replay": 24, "lookalike": 64}, "left_out": {"too_long": 1},
    }  # fmt: skip
    plan = RoundPlanned(
        round=number,
        parent=parent,
        lessons=lessons,
        replay=replay,
        seed=7,
        base="b" * 64,
        config={"gate": GATE},
    )
    release = None
    moved: list[Payload] = []
    if verdict == "passed":
        release = Release(version=number, digest="d" * 64, directory=f"{number:06d}-{'d' * 12}")
        moved.append(
            AliasMoved(alias="apprentice", version=number, epoch=epochs[number], why="release", by="server")
        )
    ended = RoundEnded(
        round=number, verdict=verdict, reasons=reasons or [], evaluation=evaluation, release=release
    )
    _at(running, at - timedelta(minutes=4), plan)
    _at(running, at, *said, ended, *moved)
