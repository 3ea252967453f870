"""Who calls, and whether it may: by key, by feedback token, or as a program on this machine.

A key or its revocation counts as soon as the view has it from the log. Until the log was once read to its
end, as while a new view is built, only keys of the settings count. Where anybody ever had a key, nobody is
trusted without one, least of all after the last was revoked.
"""

import time
from typing import TYPE_CHECKING

from fastapi import Request

from buffer.view import Keys as Logged
from server.api.problems import RETRY_LATER_S
from server.config import is_loopback
from server.errors import RequestRefused
from server.identity import LOCAL, Keys, Principal, Token, bearer, digest_of, is_from_here
from server.limits import Limits

if TYPE_CHECKING:
    from server.gateway import Gateway


class Callers:
    """The callers of one gateway. Every refusal is a `RequestRefused`."""

    def __init__(self, gateway: "Gateway") -> None:
        self._gateway = gateway
        self._limits = Limits(gateway.config.requests_per_minute)
        self._keys: tuple[Logged, Keys] | None = None

    @property
    def keys(self) -> Keys:
        """Who has a key, as far as the log has been read."""
        logged = self._gateway.buffer.view.keys()
        if self._keys is None or self._keys[0] is not logged:
            self._keys = logged, Keys.of(self._gateway.config, logged)
        return self._keys[1]

    def principal(self, request: Request, *scopes: str, tokens: bool = False) -> Principal:
        """As `Gateway.principal`."""
        found = self.identify(request, tokens=tokens)
        if scopes and not found.may(*scopes):
            raise RequestRefused(
                f"the key of {found.name} lacks the scope {' or '.join(scopes)}",
                self._granting(found, scopes[0]), code="missing_scope", status=403,
            )  # fmt: skip
        if (wait_s := self._limits.request(found.name, found.completion or "")) is not None:
            raise RequestRefused(
                f"more than {self._gateway.config.requests_per_minute} requests in a minute",
                "wait as Retry-After says, or raise requests_per_minute in [server]",
                code="rate_limited", status=429, retry_after_s=wait_s,
            )  # fmt: skip
        return found

    def identify(self, request: Request, *, tokens: bool = False) -> Principal:
        """Who calls, whatever it may do, and however often it does."""
        keys, sent = self.keys, bearer(request.headers.get("authorization"))
        if sent is not None and (found := keys.principal(sent)) is not None:
            return found
        if not keys.complete:  # others may have one, or have had one
            raise RequestRefused(
                f"who may call is not known yet: {self._gateway.behind}", "try again in a few seconds",
                code="keys_unknown", status=503, retry_after_s=RETRY_LATER_S,
            )  # fmt: skip
        if sent is not None and (token := self._gateway.receipts.opened(sent)) is not None:
            bearer_ = self._bearer_of(token, keys)
            if not tokens:
                raise RequestRefused(
                    "a feedback token does not open this", "call with an API key",
                    code="token_not_enough", status=403,
                )  # fmt: skip
            return bearer_
        if not keys.ever and is_loopback(self._gateway.config.host):
            return self._local(request)
        if sent is not None:
            self._count_wrong(request, sent)
        raise RequestRefused(
            "no valid API key", "send Authorization: Bearer KEY; `apprentice keys add NAME` makes one",
            code="invalid_api_key", status=401,
        )  # fmt: skip

    def _count_wrong(self, request: Request, sent: str) -> None:
        """Raise `RequestRefused` where too many wrong keys come from one address.

        Only they are held up: behind a load balancer others may share the address, and no random key is ever
        guessed.
        """
        address = request.client.host if request.client is not None else ""
        if (wait_s := self._limits.attempt(address)) is not None:
            raise RequestRefused(
                f"too many wrong keys came from {address}", "wait as Retry-After says, and correct the key",
                code="too_many_wrong_keys", status=429, retry_after_s=wait_s,
            )  # fmt: skip
        self._limits.wrong(address, digest_of(sent).hex())

    def _local(self, request: Request) -> Principal:
        if not is_from_here(request.headers.get("host"), request.headers.get("origin")):
            raise RequestRefused(
                "without keys only programs on this machine may call, and not other sites' pages",
                "make a key with `apprentice keys add NAME`, or call http://127.0.0.1 directly",
                code="not_local", status=403,
            )  # fmt: skip
        return LOCAL

    def _bearer_of(self, token: Token, keys: Keys) -> Principal:
        giver = keys.named(token.principal)
        if keys.ever and (giver is None or not giver.may("feedback")):
            raise RequestRefused(
                "whoever gave this feedback token away may not give feedback any more", "ask for a new one",
                code="token_revoked", status=401,
            )  # fmt: skip
        if token.expires <= time.time():
            raise RequestRefused(
                "this feedback token has expired", "ask for a new one", code="token_expired", status=401
            )
        return Principal(token.principal, frozenset({"feedback"}), token.completion_id)

    def _granting(self, principal: Principal, scope: str) -> str:
        """What gives it a scope."""
        name = principal.name
        if name in self._gateway.config.keys:
            return f"list {name} in [server] admins"
        wanted = " ".join(f"--scope {one}" for one in (*sorted(principal.scopes), scope))
        return f"`apprentice keys revoke {name}`, then `apprentice keys add {name} {wanted}` for a new key"
