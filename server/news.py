"""From the buffer's thread to the event loop."""

import asyncio
import contextlib
from collections.abc import Sequence

from buffer.records import Payload, Stream

AWAITED: frozenset[Stream] = frozenset({"control", "rounds"})


class News:
    """Carries the buffer's news from its thread to the tasks that wait for it."""

    def __init__(self) -> None:
        self._bell = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def listen(self) -> None:
        """From now on bells ring in the running loop."""
        self._loop = asyncio.get_running_loop()

    def tell(self, payloads: Sequence[Payload]) -> None:
        """As `ring`, from the buffer's thread, for what is waited for: no exchange, and no feedback."""
        if self._loop is not None and any(one.stream in AWAITED for one in payloads):
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
                self._loop.call_soon_threadsafe(self.ring)

    def bell(self) -> asyncio.Event:
        """Is set at the next piece of news. Take it before looking, so that nothing is missed."""
        return self._bell

    def ring(self) -> None:
        """Ring for everybody who waits. Called in the loop."""
        self._bell.set()
        self._bell = asyncio.Event()
