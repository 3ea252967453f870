"""Who is calling, and completion ids that prove themselves.

    chatcmpl-<uuid7, 32 hex><conversation, 16 hex><mac, 32 hex>

The MAC covers the rest of the id and the caller, so every replica that has the secret can tell a caller's
own completions from everybody else's without a look-up, also before their records have arrived. Pure.
"""

import hashlib
import hmac
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from server.config import is_loopback

Endpoint = Literal["chat", "completions"]
PREFIXES: Mapping[Endpoint, str] = {"chat": "chatcmpl", "completions": "cmpl"}
SECRET_BYTES = 32

_RECEIPT = re.compile(r"((?:chatcmpl|cmpl)-[0-9a-f]{32})([0-9a-f]{16})([0-9a-f]{32})")


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller. What one principal asks and teaches is its own; an admin may see and do everything."""

    name: str
    admin: bool = False


LOCAL = Principal("local", admin=True)
"""Everybody, where no keys are configured: such a server listens on loopback only."""


class Keys:
    """The callers and the SHA-256 of their bearer keys."""

    def __init__(self, keys: Mapping[str, str], admins: list[str]) -> None:
        self._keys = [(Principal(name, name in admins), bytes.fromhex(key)) for name, key in keys.items()]

    def principal(self, authorization: str | None) -> Principal | None:
        """Who sends this `Authorization` header; None for a stranger.

        Takes the same time whichever key matches, if any.
        """
        if not self._keys:
            return LOCAL
        scheme, _, key = (authorization or "").partition(" ")
        digest = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        found = None
        for principal, expected in self._keys:
            if hmac.compare_digest(digest, expected):
                found = principal
        return found if scheme.lower() == "bearer" else None


def is_from_here(host: str | None, origin: str | None) -> bool:
    """Whether a request to a server without keys may be trusted, by its `Host` and `Origin` headers.

    A page of any web site can make a browser on this machine send requests to loopback: with the site's
    origin, or, after it has pointed its own name at 127.0.0.1, with that name as the host.
    """
    try:
        name = urlsplit(f"//{host or ''}").hostname or ""
        return is_loopback(name) and (origin is None or urlsplit(origin).netloc == host)
    except ValueError:
        return False


class Receipts:
    """Mints and checks completion ids with a secret that all replicas share."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) < SECRET_BYTES:
            raise ValueError(f"the secret must have at least {SECRET_BYTES} bytes")
        self._secret = secret

    def mint(self, endpoint: Endpoint, uuid: str, principal: str, conversation: str) -> str:
        """The id of a captured completion."""
        head = f"{PREFIXES[endpoint]}-{uuid}"
        return f"{head}{conversation}{self._mac(head, principal, conversation)}"

    def conversation(self, completion_id: str, principal: str) -> str | None:
        """The conversation of a completion that `principal` was given; None if it was not."""
        if (parts := _RECEIPT.fullmatch(completion_id)) is None:
            return None
        head, conversation, mac = parts.groups()
        return conversation if hmac.compare_digest(mac, self._mac(head, principal, conversation)) else None

    def _mac(self, head: str, principal: str, conversation: str) -> str:
        """HMAC-SHA256 cut to 128 bits. Head and conversation have fixed forms, so `|` is unambiguous."""
        message = f"{head}|{principal}|{conversation}".encode()
        return hmac.digest(self._secret, message, "sha256")[:16].hex()


def conversation_of(principal: str, body: Mapping[str, Any]) -> str:
    """Names the conversation that a request belongs to: 16 hex digits.

    `metadata.conversation_id` where the client gives one. Otherwise all turns up to the first of the user,
    which stay the same while a conversation grows.
    """
    metadata = body.get("metadata") or {}
    if (given := metadata.get("conversation_id")) is not None:
        return _digest([principal, "id", given])
    if (messages := body.get("messages")) is None:
        return _digest([principal, "prompt", body.get("prompt")])
    first_user = next((i for i, m in enumerate(messages) if m.get("role") == "user"), len(messages))
    return _digest([principal, "messages", messages[: first_user + 1]])


def _digest(value: object) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
