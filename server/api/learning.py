"""`/v1/learning` and `/v1/policies`: what the learner does, what it made, and who decides about it."""

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Annotated, Any, Literal, cast

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, ConfigDict

from buffer.feedback import by_status, pending, rehearsed
from buffer.next_step import absent
from buffer.records import LearningSwitched, RoundRequested
from buffer.rounds import Move, Round
from buffer.view import View
from server.api.document import errors
from server.api.schemas import AliasMove, Learner, Learning, Policies, Policy, RoundAsked
from server.api.schemas import Move as MoveShown
from server.api.schemas import Round as RoundShown
from server.errors import RequestRefused
from server.gateway import Gateway, no_policy
from server.identity import Principal

ROUNDS_SHOWN = 20
QUOTES = frozenset({"before", "answer"})
"""What a round's evaluation quotes of each lesson: the model's answers to it."""
Version = Annotated[int, Path(ge=0, le=999_999)]


class RoundWanted(BaseModel):
    """Body of `POST /v1/learning/rounds`: what to learn beside what is accepted."""

    model_config = ConfigDict(extra="forbid")
    include: list[Literal["held", "refused"]] = []


class Switch(BaseModel):
    """Body of pause and resume."""

    model_config = ConfigDict(extra="forbid")
    why: str = ""


def learning_router(gateway: Gateway) -> APIRouter:
    routes = APIRouter(prefix="/v1/learning", tags=["learning"])

    @routes.get("", summary="What the learner does, and why it does not train when it does not")
    async def learning(request: Request) -> Learning:
        by = gateway.principal(request)
        return await asyncio.to_thread(describe_learning, gateway, by, time.time())

    @routes.post("/rounds", status_code=202, responses=errors(503), summary="Ask for a round now")
    async def ask_for_round(request: Request, wanted: RoundWanted | None = None) -> RoundAsked:
        by = gateway.principal(request, "learn")
        asked = RoundRequested(
            request_id=f"round-request-{gateway.new_uuid()}",
            by=by.name,
            include=wanted.include if wanted else [],
        )
        await gateway.write([asked])
        return {"id": asked.request_id, "object": "round.requested", "include": asked.include}

    async def switch(request: Request, why: Switch | None, *, paused: bool) -> Learning:
        by = gateway.principal(request, "learn")
        await gateway.write([LearningSwitched(paused=paused, by=by.name, why=why.why if why else "")])
        await gateway.until(lambda: (gateway.buffer.view.paused() is not None) is paused)
        return await asyncio.to_thread(describe_learning, gateway, by, time.time())

    @routes.post("/pause", responses=errors(503), summary="Start no further round; one that trains waits")
    async def pause(request: Request, why: Switch | None = None) -> Learning:
        return await switch(request, why, paused=True)

    @routes.post("/resume", responses=errors(503), summary="Learn again")
    async def resume(request: Request, why: Switch | None = None) -> Learning:
        return await switch(request, why, paused=False)

    return routes


def policies_router(gateway: Gateway) -> APIRouter:
    routes = APIRouter(prefix="/v1/policies", tags=["policies"])

    @routes.get("", summary="All policies and where they come from")
    async def policies(request: Request) -> Policies:
        by = gateway.principal(request)
        return {"object": "list", "data": await asyncio.to_thread(describe_policies, gateway, by)}

    async def move(request: Request, version: int | None, why: Literal["promote", "rollback"]) -> AliasMove:
        by = gateway.admin(request)
        alias = await asyncio.to_thread(gateway.alias_now)
        to = alias.previous if version is None else version
        if to is None:
            raise RequestRefused(
                "there is no earlier policy to roll back to", "nothing but the base has been live",
                code="nothing_to_roll_back", status=409,
            )  # fmt: skip
        if to != alias.version:
            async with gateway.hold(to):
                await gateway.install(to)
                await gateway.move(to, expected=alias, why=why, by=by.name)
            await gateway.until(lambda: gateway.live == to or gateway.alias_now().version != to)
        return {"object": "alias", "id": gateway.alias, "version": to, "was": alias.version, "why": why}

    @routes.post(
        "/rollback", responses=errors(409, 410, 503), summary="Back to the policy that was live before"
    )
    async def rollback(request: Request) -> AliasMove:
        return await move(request, None, "rollback")

    @routes.post("/{version:int}/promote", responses=errors(404, 409, 410, 503), summary="Make a policy live")
    async def promote(request: Request, version: Version) -> AliasMove:
        return await move(request, version, "promote")

    summary = "One policy: parent, round, records, config, evaluation, verdict"

    @routes.get("/{version:int}", responses=errors(404), summary=summary)
    async def policy(request: Request, version: Version) -> Policy:
        by = gateway.principal(request)
        for one in await asyncio.to_thread(describe_policies, gateway, by, details=True):
            if one["version"] == version:
                return one
        raise no_policy(version)

    return routes


def describe_learning(gateway: Gateway, by: Principal, now: float) -> Learning:
    """The learner's last word, and what waits for it, as far as the caller may know. Reads the view."""
    view, may_read = gateway.buffer.view, _reader(gateway.buffer.view, by)
    counted = view.count_feedback()
    rounds = view.rounds()
    ended = next((r for r in reversed(rounds) if r.ended is not None), None)
    paused = view.paused()
    return {
        "object": "learning",
        **describe_learner(view, now),
        "paused": paused is not None,
        "paused_by": paused.by if paused is not None else None,
        "feedback": dict(by_status(counted)),
        "pending": pending(counted),
        "rehearsed": rehearsed(counted),
        "requests": [asked.request_id for asked in view.requests()],
        "last_round": describe_round(ended, may_read) if ended is not None else None,
        "rounds": [describe_round(r, may_read) for r in reversed(rounds[-ROUNDS_SHOWN:])],
    }


def describe_learner(view: View, now: float) -> Learner:
    """What the learner said last, or why nothing is to be expected of it."""
    heard = view.report()
    told: Learner = {"state": None, "why": ""}
    if heard is not None:
        report, at = heard
        told = cast(Learner, report.model_dump() | {"reported": int(at)})
    if (why := absent(heard, now)) is not None:
        told["state"] = "silent" if heard is not None else None
        told["why"] = why
    return told


def _reader(view: View, by: Principal) -> Callable[[str], bool]:
    """Whether the caller may read what was answered to a lesson, given by its id: an admin, or its author."""

    @cache
    def wrote(feedback_id: str) -> bool:
        found = view.feedback(feedback_id)
        return found is not None and found.principal == by.name

    return (lambda _: True) if by.admin else wrote


def describe_round(one: Round, may_read: Callable[[str], bool]) -> RoundShown:
    """A round, with the quotes of those lessons that may be read."""
    planned, ended = one.planned, one.ended
    return {
        "round": planned.round,
        "parent": planned.parent,
        "lessons": len(planned.lessons),
        "replay": len(planned.replay),
        "started": int(one.planned_at),
        "ended": int(one.ended_at) if one.ended_at is not None else None,
        "verdict": ended.verdict if ended is not None else None,
        "reasons": ended.reasons if ended is not None else [],
        "evaluation": _evaluation(ended.evaluation, may_read) if ended is not None else {},
        "gate": planned.config.get("gate", {}),
        "policy": one.release.version if one.release is not None else None,
    }


def _evaluation(measured: dict[str, Any], may_read: Callable[[str], bool]) -> dict[str, Any]:
    """What was measured; quotes that may not be read are empty."""
    lessons = measured.get("lessons")
    if not isinstance(lessons, list):
        return measured

    def shown(one: dict[str, Any]) -> dict[str, Any]:
        if QUOTES.isdisjoint(one) or may_read(one["feedback_id"]):
            return one
        return {name: "" if name in QUOTES else value for name, value in one.items()}

    return measured | {"lessons": [shown(one) for one in lessons]}


def describe_policies(gateway: Gateway, by: Principal, *, details: bool = False) -> list[Policy]:
    """Every policy, oldest first, beginning with the base, as far as the caller may know. Reads the view."""
    view, may_read = gateway.buffer.view, _reader(gateway.buffer.view, by)
    rejected, resident, moves = view.rejected(), gateway.policies.resident, view.moves(gateway.alias)
    live = moves[-1].moved.version if moves else 0
    found = [_policy(gateway, 0, moves, live=live == 0, resident=0 in resident)]
    for one in view.rounds():
        if one.release is None or one.ended is None:
            continue
        version, planned = one.release.version, one.planned
        policy = _policy(gateway, version, moves, live=live == version, resident=version in resident)
        policy |= cast(Policy, describe_round(one, may_read))
        policy |= {
            "digest": one.release.digest,
            "directory": one.release.directory,
            "rejected": rejected.get(version),
        }
        if details:
            policy |= {
                "lessons": planned.lessons, "replay": planned.replay, "config": planned.config,
                "seed": planned.seed, "base": planned.base,
            }  # fmt: skip
        found.append(policy)
    return found


def _policy(gateway: Gateway, version: int, moves: Sequence[Move], *, live: bool, resident: bool) -> Policy:
    return {
        "id": f"{gateway.alias}@{version:06d}",
        "object": "policy",
        "version": version,
        "live": live,
        "resident": resident,
        "waits_for": gateway.fetcher.waits_for(version) if gateway.fetcher is not None else None,
        "moves": [_move(move) for move in moves if move.moved.version == version],
        "parent": None,
        "round": None,
        "verdict": None,
    }


def _move(move: Move) -> MoveShown:
    moved = move.moved
    return {
        "version": moved.version, "epoch": moved.epoch, "why": moved.why, "by": moved.by, "at": int(move.at)
    }  # fmt: skip
