"""`python -m buffer`: the relay process. Start, ready, drain, stop; a second signal ends it at once."""

import argparse
import logging
import signal
import sys
from pathlib import Path

from buffer import files, logs
from buffer.backend import journal_path
from buffer.config import BufferConfig, ConfigError, Shared, load
from buffer.journal import Journal
from buffer.log import BufferError, LogMisconfigured

logger = logging.getLogger("buffer")


def main(arguments: list[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT. Exit status: 0 stopped, 1 cannot go on, 2 configuration."""
    parser = argparse.ArgumentParser(prog="python -m buffer", description="Relay the journal to Kafka.")
    parser.add_argument("--config", type=Path, help="instead of ./apprentice.toml")
    parser.add_argument("--state", type=Path, help="the state directory")
    parser.add_argument("--drain", type=float, default=10.0, metavar="S", help="seconds to finish in")
    options = parser.parse_args(arguments)
    try:
        shared = load(Shared, file=options.config, flags={"state": options.state})
        logs.configure(shared.log_format)
        config = load(BufferConfig, "buffer", file=options.config)
    except ConfigError as error:
        return _fail(error, 2)
    if config.backend == "journal":
        logger.info("the log is the journal itself: there is nothing to relay")
        return 0
    try:
        return _relay(shared, config, options.drain)
    except LogMisconfigured as error:
        return _fail(error, 2)
    except BufferError as error:
        return _fail(error, 1)


def _relay(shared: Shared, config: BufferConfig, drain_s: float) -> int:
    from buffer.relay import Relay  # kafka-python is not loaded where it is not used

    owned = files.lock(journal_path(shared).with_name("relay.lock"))
    if owned is None:
        logger.error("another relay owns %s", journal_path(shared))
        return 1
    journal = Journal(journal_path(shared), max_bytes=config.max_bytes)
    relay = Relay(journal, config)

    def stop(number: int, _: object) -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_DFL)  # the next one ends the process; the journal keeps the rest
        logger.info("%s: draining for at most %.0f s", signal.Signals(number).name, drain_s)
        relay.stop(drain_s)

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, stop)
    servers = ", ".join(config.kafka.bootstrap_servers)
    logger.info("relaying %s to %s", journal.path, servers)
    try:
        relay.run(ready=lambda: logger.info("ready: %s reached", servers))
    finally:
        journal.close()
    logger.info("stopped")
    return 0


def _fail(error: BufferError | ConfigError, status: int) -> int:
    logger.error("%s%s", error, f" ({error.hint})" if error.hint else "")
    return status


if __name__ == "__main__":
    sys.exit(main())
