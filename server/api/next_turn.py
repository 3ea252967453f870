"""The next user turn as feedback: recognised, joined to the answer that it corrects, recorded.

All of it happens beside the reply, which waits for none of it and goes out whether it succeeds or not.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from buffer.hints import is_correction
from buffer.records import FeedbackGiven
from server.api import lessons
from server.gateway import Gateway
from server.identity import Principal

logger = logging.getLogger(__name__)

TASK = "follow-up"
"""The name of what works beside the replies."""
_LOOKED_AT = 20
"""Exchanges of one question, newest first, among which the corrected answer is looked for."""


def corrects(messages: Sequence[Mapping[str, Any]], max_chars: int) -> bool:
    """Whether a conversation ends with a user's correction of the assistant's plain answer before it."""
    if len(messages) < 3:
        return False
    before, last = messages[-2:]
    return (
        (before["role"], last["role"]) == ("assistant", "user")
        and not before.get("tool_calls")
        and isinstance(answer := before.get("content"), str)
        and isinstance(turn := last.get("content"), str)
        and is_correction(turn, answer)
        and len(turn) <= max_chars
        and lessons.steering(turn) is None
    )


class NextTurns:
    """Watches the captured chats of one gateway for corrections of earlier answers."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._tasks: set[asyncio.Task[None]] = set()
        self._recording: set[str] = set()

    def notice(self, principal: Principal, conversation: str, request: Mapping[str, Any]) -> None:
        """Look at a request that has been captured. Returns at once."""
        messages = request.get("messages", [])
        config = self._gateway.config
        may_teach = config.follow_ups and principal.may("feedback")
        if may_teach and corrects(messages, config.max_feedback_chars):
            task = asyncio.create_task(self._take(principal, conversation, messages), name=TASK)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _take(self, principal: Principal, conversation: str, messages: list[dict[str, Any]]) -> None:
        try:
            found = await asyncio.to_thread(self._corrected, principal, conversation, messages)
            if found is not None:
                await self._record(principal, conversation, *found, str(messages[-1]["content"]))
        except Exception as error:
            # The boundary of this work: nobody waits for it, and the reply must not suffer from it.
            self._gateway.metrics.follow_up_failures.inc()
            logger.warning("a follow-up could not be recorded: %s", error)

    def _corrected(
        self, principal: Principal, conversation: str, messages: list[dict[str, Any]]
    ) -> tuple[str, int] | None:
        """The completion and choice that gave the answer before the last turn. Reads the view."""
        answer = messages[-2]["content"].strip()
        for exchange in self._gateway.buffer.view.asked(principal.name, messages[:-2], limit=_LOOKED_AT):
            if exchange.opened.conversation != conversation or exchange.closed is None:
                continue
            for choice in exchange.closed.choices:
                said = choice.message.content if choice.message is not None else None
                if isinstance(said, str) and said.strip() == answer:
                    return exchange.opened.completion_id, choice.index
        return None

    async def _record(
        self, principal: Principal, conversation: str, completion_id: str, choice: int, text: str
    ) -> None:
        """Once for each completion and text, however often a client sends the request."""
        gateway = self._gateway
        key = f"follow_up\x1f{lessons.digest([completion_id, text])}"  # no header can hold the separator
        if key in self._recording:
            return
        self._recording.add(key)
        try:
            known = await asyncio.to_thread(gateway.buffer.view.feedback_by_key, principal.name, key)
            if known is None:
                given = FeedbackGiven(
                    feedback_id=f"fb-{gateway.new_uuid()}",
                    principal=principal.name,
                    kind="follow_up",
                    completion_id=completion_id,
                    choice=choice,
                    text=text,
                    idempotency_key=key,
                )
                await gateway.write([given], conversation)
                gateway.metrics.feedback.labels(given.kind).inc()
        finally:
            self._recording.discard(key)
