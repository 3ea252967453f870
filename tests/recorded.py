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
KEYS = RECORDED.with_name("records-keys.jsonl")
"""What came later: who may call. It goes on where the story ends."""
ANSWERS = RECORDED.with_name("records-answers.jsonl")
"""And then: what was said to a lesson."""
TAUGHT = ["fb-1", "fb-2", "fb-7", "fb-8", "fb-12"]
"""What of it teaches something."""


def records() -> list[Record]:
    return [from_line(line) for line in LINES]


def everything() -> list[Record]:
    """The story, and what later releases added to it."""
    later = KEYS.read_bytes() + ANSWERS.read_bytes()
    return [*records(), *map(from_line, later.splitlines(keepends=True))]


def restored(state: Path) -> Path:
    """A state directory with this log."""
    from buffer.backup import restore

    restore(Shared(state=state), BufferConfig(), lambda: LINES)
    return state
