"""Who is calling, and completion ids and feedback tokens that prove themselves.

    chatcmpl-<uuid7, 32 hex><conversation, 16 hex><mac, 32 hex>
    apf-<base64url of [completion id, principal, expiry]>.<mac, 64 hex>

The MAC of an id covers the rest of it and the caller, so every replica that has the secret can tell a
caller's own completions from everybody else's without a look-up, also before their records have arrived.

Pure.
"""

import base64
import hashlib
import hmac
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from buffer.records import SCOPES
from buffer.view import Keys as Logged
from server.config import ServerConfig, is_loopback
from server.errors import RequestRefused

Endpoint = Literal["chat", "completions"]
PREFIXES: Mapping[Endpoint, str] = {"chat": "chatcmpl", "completions": "cmpl"}
SECRET_BYTES = 32
KEY_PREFIX, TOKEN_PREFIX = "ap-", "apf-"
CONFIGURED = ("infer", "feedback")
"""The scopes of a key of [server.keys], and of a new one where none are named."""

_RECEIPT = re.compile(r"((?:chatcmpl|cmpl)-[0-9a-f]{32})([0-9a-f]{16})([0-9a-f]{32})")


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller. What one principal asks and teaches is its own; an admin may see and do everything."""

    name: str
    scopes: frozenset[str] = frozenset()
    completion: str | None = None
    """The one completion that it may see and correct, where it came with a token instead of a key."""

    @property
    def admin(self) -> bool:
        return "admin" in self.scopes

    def may(self, *scopes: str) -> bool:
        """Whether it has one of these scopes."""
        return self.admin or not self.scopes.isdisjoint(scopes)

    def require(self, completion_id: str | None) -> None:
        """Raise `RequestRefused` where a token is for another completion than this."""
        if self.completion not in (None, completion_id):
            raise RequestRefused(
                f"this feedback token is for {self.completion} alone", "call with an API key",
                code="token_not_enough", status=403,
            )  # fmt: skip


LOCAL = Principal("local", frozenset(SCOPES))
"""Everybody, where nobody ever had a key: such a server listens on loopback only."""


class Keys:
    """The callers and the SHA-256 of their bearer keys. `ever` says whether anybody ever had one.

    They are `complete` unless the log was never read to its end.
    """

    def __init__(self, keys: Iterable[tuple[Principal, str]], *, ever: bool, complete: bool) -> None:
        # the time of a look-up by digest tells nothing about any key
        self._by_digest = {bytes.fromhex(digest): principal for principal, digest in keys}
        self._by_name = {principal.name: principal for principal in self._by_digest.values()}
        self.ever = ever
        self.complete = complete

    @classmethod
    def of(cls, config: ServerConfig, logged: Logged) -> "Keys":
        """Those of the configuration, and those of the log that are not of the same name.

        Of a log that was never read to its end none: they may be revoked in what is still to be read.
        """
        configured = [
            (Principal(name, frozenset(configured_scopes(config, name))), digest)
            for name, digest in config.keys.items()
        ]
        added = [
            (Principal(key.principal, frozenset(key.scopes)), key.digest)
            for key, _ in logged.added
            if logged.complete and key.principal not in config.keys
        ]
        ever = logged.ever or bool(config.keys)
        return cls([*added, *configured], ever=ever, complete=logged.complete)

    def __len__(self) -> int:
        return len(self._by_digest)

    def principal(self, key: str) -> Principal | None:
        """Whose key it is; None for a stranger's."""
        return self._by_digest.get(digest_of(key))

    def named(self, name: str) -> Principal | None:
        """The principal of that name, if it has a key."""
        return self._by_name.get(name)


def configured_scopes(config: ServerConfig, name: str) -> list[str]:
    """What a key of [server.keys] opens."""
    return [*CONFIGURED, *(["admin"] if name in config.admins else [])]


def digest_of(key: str) -> bytes:
    """SHA-256 of a bearer key: all that anybody keeps of it."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def bearer(authorization: str | None) -> str | None:
    """The key or token of an `Authorization` header, if it holds one."""
    scheme, _, key = (authorization or "").partition(" ")
    return key.strip() or None if scheme.lower() == "bearer" else None


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


@dataclass(frozen=True, slots=True)
class Token:
    """What a feedback token says: who gave the completion away, and until when (Unix seconds)."""

    completion_id: str
    principal: str
    expires: int


class Receipts:
    """Mints and checks completion ids and feedback tokens with a secret that all replicas share."""

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

    def token(self, token: Token) -> str:
        """A text that proves that the principal lets its bearer correct the completion until then."""
        said = json.dumps([token.completion_id, token.principal, token.expires], separators=(",", ":"))
        body = base64.urlsafe_b64encode(said.encode()).decode().rstrip("=")
        return f"{TOKEN_PREFIX}{body}.{self._token_mac(body)}"

    def opened(self, text: str) -> Token | None:
        """What a token says; None if it is not one of ours. It may have expired."""
        body, _, mac = text.removeprefix(TOKEN_PREFIX).partition(".")
        if not (text.isascii() and text.startswith(TOKEN_PREFIX)):
            return None
        if not hmac.compare_digest(mac, self._token_mac(body)):
            return None
        return Token(*json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))))

    def _token_mac(self, body: str) -> str:
        """HMAC-SHA256. No completion id begins like this message, so neither MAC can stand for the other."""
        return hmac.digest(self._secret, f"{TOKEN_PREFIX}{body}".encode(), "sha256").hex()

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
