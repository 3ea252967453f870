"""`POST /v1/feedback/tokens`: one completion given away to be corrected, from a page or an e-mail, say."""

import time

from fastapi import APIRouter, Request

from server.api import document, lessons
from server.api.document import errors
from server.api.feedback import own_conversation
from server.api.lessons import TokenWanted
from server.api.schemas import FeedbackToken
from server.gateway import Gateway, read_json
from server.identity import Token


def router(gateway: Gateway) -> APIRouter:
    routes = APIRouter(prefix="/v1/feedback/tokens", tags=["feedback"])

    @routes.post(
        "",
        openapi_extra=document.body(TokenWanted),
        responses=errors(404),
        summary="Let somebody without a key correct one completion",
    )
    async def give_away(request: Request) -> FeedbackToken:
        principal = gateway.principal(request, "feedback")
        wanted = lessons.validated(TokenWanted, await read_json(request))
        await own_conversation(gateway, principal, wanted.completion_id)
        token = Token(wanted.completion_id, principal.name, int(time.time()) + wanted.expires_in)
        return {
            "object": "feedback.token",
            "token": gateway.receipts.token(token),
            "completion_id": token.completion_id,
            "expires_at": token.expires,
        }

    return routes
