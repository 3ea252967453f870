"""Which log a process uses: the one place where the choice of `[buffer] backend` is made."""

from pathlib import Path

from buffer.config import BufferConfig, Shared
from buffer.journal import Journal
from buffer.log import Log

JOURNAL = "journal.db"
"""In the state directory."""


def journal_path(shared: Shared) -> Path:
    """The journal of this machine, which all of its processes share."""
    return shared.state / JOURNAL


def open_log(shared: Shared, config: BufferConfig, *, name: str) -> Log:
    """Open the configured log for the process called `name`. Raises `LogMisconfigured`.

    A broker that is away is no error here: appending works without it, and reading says `LogUnavailable`.
    """
    journal = Journal(journal_path(shared), max_bytes=config.max_bytes)
    if config.backend == "journal":
        return journal
    from buffer.kafka import KafkaLog  # kafka-python is not loaded where it is not used

    return KafkaLog(journal, config.kafka, name=name)
