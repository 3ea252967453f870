"""A recorded log: one story with every type of record, as `apprentice export` wrote it.

It is never written anew. What a later release changes about records goes into a file of its own beside it,
and both must be readable.
"""

from pathlib import Path

from buffer.config import BufferConfig, Shared
from buffer.records import Record
from buffer.structured import from_line

RECORDED = Path(__file__).parent / "buffer" / "data" / "records-v1.jsonl"
LINES = RECORDED.read_bytes().splitlines(keepends=True)
KEYS = Path(__file__).parent / "buffer" / "data" / "records-keys.jsonl"
"""What came later: who may call. It goes on where the story ends."""
TAUGHT = ["fb-1", "fb-2", "fb-7", "fb-8", "fb-12"]
"""What of it teaches something."""


def records() -> list[Record]:
    return [from_line(line) for line in LINES]


def everything() -> list[Record]:
    """The story, and what later releases added to it."""
    return [*records(), *map(from_line, KEYS.read_bytes().splitlines(keepends=True))]


def restored(state: Path) -> Path:
    """A state directory with this log."""
    from buffer.backup import restore

    restore(Shared(state=state), BufferConfig(), lambda: LINES)
    return state
