"""How often one may call: requests of a principal, and wrong keys from an address, by the minute.

Counted in this server's memory; several servers each count for themselves.
"""

import time

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter

WRONG_KEYS = 30
"""Different ones from one address in a minute. A program that repeats the same one guesses nothing."""


class Limits:
    """Every answer is None, or the seconds after which the next try is welcome."""

    def __init__(self, requests_per_minute: int) -> None:
        self._window = FixedWindowRateLimiter(MemoryStorage())
        self._requests = RateLimitItemPerMinute(requests_per_minute) if requests_per_minute else None
        self._wrong = RateLimitItemPerMinute(WRONG_KEYS, namespace="wrong")
        self._same = RateLimitItemPerMinute(1, namespace="same")

    def request(self, *caller: str) -> float | None:
        """Count a request, which must wait if there were too many."""
        if self._requests is None or self._window.hit(self._requests, *caller):
            return None
        return self._until(self._requests, *caller)

    def attempt(self, address: str) -> float | None:
        """Before a wrong key is counted: its address must wait after too many of them."""
        return None if self._window.test(self._wrong, address) else self._until(self._wrong, address)

    def wrong(self, address: str, digest: str) -> None:
        """Count a wrong key, given by its digest."""
        if self._window.hit(self._same, address, digest):
            self._window.hit(self._wrong, address)

    def _until(self, limit: RateLimitItemPerMinute, *whom: str) -> float:
        return max(0.0, self._window.get_window_stats(limit, *whom).reset_time - time.time())
