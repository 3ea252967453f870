"""`POST /v1/feedback/tokens`: one completion given away to be corrected, from a page or an e-mail, say."""

import time
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from server.api import lessons
from server.api.feedback import own_conversation
from server.gateway import Gateway, read_json
from server.identity import Token

DAY_S = 86400


class TokenWanted(BaseModel):
    """The body. `expires_in` is in seconds."""

    model_config = ConfigDict(extra="forbid", strict=True)
    completion_id: str = Field(max_length=200)
    expires_in: int = Field(7 * DAY_S, ge=1, le=90 * DAY_S)


BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": TokenWanted.model_json_schema()}},
    }
}


def router(gateway: Gateway) -> APIRouter:
    routes = APIRouter(prefix="/v1/feedback/tokens", tags=["feedback"])

    @routes.post("", openapi_extra=BODY, summary="Let somebody without a key correct one completion")
    async def give_away(request: Request) -> dict[str, Any]:
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
