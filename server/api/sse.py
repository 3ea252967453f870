"""Server-sent events, as far as OpenAI's streams use them: `data: ...` lines, one event each. Pure."""

import json
from collections.abc import Iterator
from typing import Any

DONE = b"data: [DONE]\n\n"


class Events:
    """Cuts a byte stream into the data of its events, whatever pieces it comes in."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[str]:
        """The data of each event that is complete now."""
        self._rest += data
        *lines, self._rest = self._rest.split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip().decode()


def event(value: Any) -> bytes:
    """One event."""
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
