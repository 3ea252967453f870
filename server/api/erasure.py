"""Erasing: an exchange, feedback, or all of a principal leaves all reading and training, its content the log.

Who erased it stays in the log, and so do ids. Policies that learned from it keep what they learned.
"""

import asyncio
from collections.abc import Sequence

from fastapi import APIRouter, Request

from buffer.records import ExchangeErased, FeedbackWithdrawn, Payload
from server.api.document import errors
from server.api.schemas import PrincipalCount
from server.gateway import Gateway

BATCH = 100
"""Exchanges or pieces of feedback that are erased atomically."""


def router(gateway: Gateway) -> APIRouter:
    routes = APIRouter(prefix="/v1/principals", tags=["principals"])

    @routes.get("/{name}", summary="How much there is of a principal (admin)")
    async def count(request: Request, name: str) -> PrincipalCount:
        gateway.admin(request)
        exchanges, feedback = await asyncio.to_thread(gateway.buffer.view.belonging, name)
        return {"id": name, "object": "principal", "exchanges": len(exchanges), "feedback": len(feedback)}

    summary = "Erase all exchanges and feedback of a principal (admin)"

    @routes.delete("/{name}", responses=errors(503), summary=summary)
    async def erase(request: Request, name: str) -> PrincipalCount:
        by = gateway.admin(request).name
        exchanges, feedback = await asyncio.to_thread(gateway.buffer.view.belonging, name)
        await erase_feedback(gateway, feedback, by)
        await erase_exchanges(gateway, exchanges, by)
        return {
            "id": name,
            "object": "principal.erased",
            "exchanges": len(exchanges),
            "feedback": len(feedback),
        }

    return routes


async def erase_exchanges(gateway: Gateway, ids: Sequence[str], by: str) -> None:
    """Erase exchanges and all feedback on them. Raises `BufferError`; then some may be left."""
    await _erase(gateway, [(one, ExchangeErased(completion_id=one, by=by)) for one in ids])


async def erase_feedback(gateway: Gateway, ids: Sequence[str], by: str) -> None:
    """Withdraw feedback and erase what it says. Raises `BufferError`; then some may be left."""
    await _erase(gateway, [(one, FeedbackWithdrawn(feedback_id=one, by=by)) for one in ids])


async def _erase(gateway: Gateway, these: Sequence[tuple[str, Payload]]) -> None:
    view = gateway.buffer.view
    for first in range(0, len(these), BATCH):
        records = []
        for subject, said in these[first : first + BATCH]:
            tombstones = await asyncio.to_thread(view.tombstones, subject, gateway.buffer.now())
            key = await asyncio.to_thread(view.partition_key, subject)  # of feedback; others have none
            records += [*tombstones, gateway.record(said, key)]  # so they make room in a full journal
        await gateway.append(records)
