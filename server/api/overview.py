"""`GET /v1/overview`: health, what to do, traffic, feedback and the log, for the operators' page."""

import asyncio
import contextlib
import time
from collections import Counter
from dataclasses import asdict
from typing import cast

from fastapi import APIRouter, Request

from buffer.fate import Status
from buffer.feedback import by_status
from buffer.log import Backlog, BufferError, Space
from buffer.rounds import made_by
from server import traffic
from server.api.learning import describe_learner
from server.api.schemas import Overview, ToDo, Traffic
from server.gateway import Gateway
from server.health import Facts, Learner, sentence, what_to_do
from server.identity import Principal
from server.log_metrics import lag

LOG_ANSWERS_S = 1.0
"""A page waits no longer for a broker that is away."""
HOURS = 24
HOUR_S = 3600


def router(gateway: Gateway) -> APIRouter:
    routes = APIRouter(tags=["operations"])
    reader = _LogReader(gateway)

    @routes.get("/v1/overview", summary="Whether it serves and learns, what to do, and what happened of late")
    async def overview(request: Request) -> Overview:
        principal = gateway.principal(request)
        behind = await reader.lag()
        return await asyncio.to_thread(describe, gateway, principal, behind, time.time())

    return routes


def describe(gateway: Gateway, principal: Principal, behind: int | str, now: float) -> Overview:
    """The reply. `behind`: how many records the view lags, or why the log cannot be read. Reads the view."""
    view = gateway.buffer.view
    sample = traffic.read(gateway.metrics, now, engine_ready=gateway.engine.state == "ready")
    counted = view.count_feedback()
    statuses = by_status(counted)
    facts = gather(gateway, sample, behind, statuses["held"])
    todo = what_to_do(facts)
    since = (int(now) // HOUR_S - HOURS + 1) * HOUR_S
    arrived = view.feedback_arrived(since, HOUR_S)
    reasons: Counter[tuple[Status, str]] = Counter()
    for group, count in counted.items():
        reasons[group.status, group.reason] += count
    return {
        "object": "overview",
        "at": int(now),
        "alias": gateway.alias,
        "caller": {"name": principal.name, "admin": principal.admin},
        "health": {"level": todo[0].level if todo else "good", "says": sentence(facts)},
        "todo": [cast(ToDo, asdict(one)) for one in todo],
        "traffic": cast(Traffic, gateway.traffic.describe(sample)),
        "feedback": {
            "by_status": dict(statuses),
            "by_reason": [
                {"status": status, "reason": reason, "count": count}
                for (status, reason), count in reasons.most_common()
                if reason
            ],
            "arrived": [
                {"at": at, "count": arrived.get(at, 0)} for at in range(since, since + HOURS * HOUR_S, HOUR_S)
            ],
        },
        "log": {
            "unreadable": facts.unreadable,
            "writable": facts.writable,
            "lag": facts.lag,
            "used": facts.space.used,
            "limit": facts.space.limit,
            "free": facts.space.free,
            "pending": facts.backlog.pending,
            "pending_since": facts.backlog.oldest.timestamp() if facts.backlog.oldest else None,
            "set_aside": facts.backlog.set_aside,
            "unreadable_messages": facts.backlog.unreadable,
            "passed_over": dict(facts.passed_over),
        },
    }


def gather(gateway: Gateway, sample: traffic.Sample, behind: int | str, held: int) -> Facts:
    """What health is judged by."""
    view, engine, history = gateway.buffer.view, gateway.engine, gateway.traffic
    learner, switched = describe_learner(view, sample.at), view.switched()
    paused = switched if switched is not None and switched[0].paused else None
    rounds = view.rounds()
    made = made_by(rounds, gateway.alias_now().version)
    unreadable = gateway.behind or (behind if isinstance(behind, str) else None)
    space, backlog = Space(), Backlog()
    with contextlib.suppress(BufferError):  # then the log's own error is in `behind`
        space, backlog = gateway.buffer.log.space(), gateway.buffer.log.backlog()
    served = gateway.live in gateway.policies.resident and not gateway.not_ready
    fetcher = gateway.fetcher
    return Facts(
        now=sample.at,
        policy=gateway.policies.name(gateway.live) if served and gateway.live is not None else None,
        engine=engine.state, engine_why=engine.why, engine_hint=engine.hint,
        engine_since=history.since(lambda s: not s.engine_ready),
        not_ready=gateway.not_ready,
        unreadable=unreadable,
        lag=behind if isinstance(behind, int) else 0,
        writable=sample.log_writable,
        unwritable_since=history.since(lambda s: not s.log_writable),
        space=space, backlog=backlog,
        passed_over=dict(Counter(type_ for _, type_, _ in view.poison())),
        learner=Learner(
            learner["state"], learner["why"], learner.get("reported"),
            learner.get("round"), learner.get("step"), learner.get("steps"),
        ),
        paused_by=paused[0].by if paused is not None else None,
        paused_at=paused[1] if paused is not None else None,
        foreign=gateway.foreign,
        waits_for={
            gateway.policies.name(r.release.version): why
            for r in rounds
            if fetcher is not None and r.release is not None and (why := fetcher.waits_for(r.release.version))
        },
        rounds=rounds,
        held=held,
        drift=made.ended.evaluation.get("drift") if made is not None and made.ended is not None else None,
        round_limit=made.planned.config.get("gate", {}).get("max_kl_to_parent") if made is not None else None,
    )  # fmt: skip


class _LogReader:
    """Asks the log for its end, once at a time for all pages: a broker that is away holds one thread."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._asking: asyncio.Task[int | str] | None = None

    async def lag(self) -> int | str:
        """Records that the view has not read yet; or why that cannot be known."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(asyncio.to_thread(self._ask))
        done, _ = await asyncio.wait({self._asking}, timeout=LOG_ANSWERS_S)
        return self._asking.result() if done else f"the log has not answered for {LOG_ANSWERS_S:.0f} s"

    def _ask(self) -> int | str:
        try:
            buffer = self._gateway.buffer
            return lag(buffer.view.positions(), buffer.log.ends())
        except BufferError as error:
            return f"the log cannot be read: {error}"
