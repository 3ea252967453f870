"""`python -m learner`: the learner process. Start, ready, drain, stop; a second signal ends it at once."""

import argparse
import json
import logging
import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

from buffer import files, logs
from buffer.backend import open_log
from buffer.client import Buffer
from buffer.config import BufferConfig, ConfigError, Shared, load, resolved
from buffer.log import BufferError, LogMisconfigured, LogUnavailable
from buffer.models import model_directory
from buffer.store import AdapterStore
from buffer.teacher import Templates
from buffer.view import View
from learner.config import LearnerConfig
from learner.cores import device_of, use_cores
from learner.reporter import Reporter

logger = logging.getLogger("learner")

NICE = 10
"""Serving comes first: the learner takes what processor time is left."""
RETRY_S = 2.0


def main(arguments: list[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT. Exit status: 0 stopped, 1 cannot go on, 2 configuration."""
    options = _parse(arguments)
    try:
        flags = {"state": options.state, "model": options.model, "alias": options.alias}
        shared = load(Shared, file=options.config, flags=flags)
        logs.configure(shared.log_format)
        shared = shared.model_copy(update={"state": shared.state.absolute()})
        config = load(LearnerConfig, "learner", file=options.config)
        buffer_config = load(BufferConfig, "buffer", file=options.config)
        templates = load(Templates, "teacher", file=options.config)
        if options.dry_run:
            tables = {
                "learner": resolved(config),
                "buffer": resolved(buffer_config),
                "teacher": resolved(templates),
            }
            print(json.dumps({**resolved(shared), **tables}, indent=2))
            return 0
        directory = model_directory(shared)
        store = AdapterStore(shared.state / "adapters", buffer_config.adapters)
    except ConfigError as error:
        return _fail(error, error.hint, 2)
    owned = files.lock(shared.state / "run" / "learner.lock")
    if owned is None:
        return _fail(f"another learner owns {shared.state}", "stop it, or use another state directory", 1)
    _clear(shared.state)
    os.nice(NICE)
    stopping = _stop_on_signals()
    try:
        buffer = Buffer(
            open_log(shared, buffer_config, name="learner"), View(shared.state / "learner" / "view.db")
        )
        try:
            _serve(shared, config, templates, directory, store, buffer, stopping)
        finally:
            buffer.close()
    except (ConfigError, LogMisconfigured) as error:
        return _fail(error, error.hint, 2)
    except (BufferError, OSError) as error:
        return _fail(error, getattr(error, "hint", ""), 1)
    finally:
        os.close(owned)
    return 0


def _clear(state: Path) -> None:
    """Delete what a learner that was killed has left half-written, or half-deleted."""
    for left in (state / "learner").glob(".*.tmp"):
        left.unlink()
    for pattern in (".*.new", ".*.deleted"):
        for left in (state / "adapters").glob(pattern):
            shutil.rmtree(left, ignore_errors=True)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="apprentice learn",
        description="Learn from the log in the background: triage, train, judge, publish. Ctrl-C stops it.",
        epilog="exit codes:\n  0  stopped by Ctrl-C or SIGTERM\n  1  it cannot go on\n  2  wrong settings",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration (apprentice.toml)")
    parser.add_argument("--state", type=Path, metavar="DIR", help="the one directory that holds all state")
    parser.add_argument("--model", help="the built-in name, a directory, or a hub id")
    parser.add_argument("--alias", help="the model name that clients ask for")
    parser.add_argument("--dry-run", action="store_true", help="print what is configured, and start nothing")
    parser.add_argument(
        "--json", action="store_true", help="JSON for programs (what --dry-run prints always is)"
    )
    return parser.parse_args(arguments)


def _serve(
    shared: Shared,
    config: LearnerConfig,
    templates: Templates,
    directory: Path,
    store: AdapterStore,
    buffer: Buffer,
    stopping: threading.Event,
) -> None:
    """start → ready → drain → stop."""
    while not stopping.is_set():
        try:
            buffer.start()
            break
        except LogUnavailable as error:
            logger.warning("the log cannot be read yet: %s (%s)", error, error.hint)
            stopping.wait(RETRY_S)
    if stopping.is_set():
        return
    if others := buffer.view.aliases() - {shared.alias}:
        raise ConfigError(
            f"the policies in this log are those of {', '.join(sorted(others))}, not of {shared.alias}",
            "set `alias` back, or give the new one a log of its own: another `state`, and another"
            " `topic_prefix` in [buffer.kafka]",
        )
    reporter = Reporter(buffer)
    try:
        reporter.say("starting", "loading the base model and its reference answers")
        _learn(shared, config, templates, directory, store, buffer, reporter, stopping)
    finally:
        reporter.close()


def _learn(
    shared: Shared,
    config: LearnerConfig,
    templates: Templates,
    directory: Path,
    store: AdapterStore,
    buffer: Buffer,
    reporter: Reporter,
    stopping: threading.Event,
) -> None:
    """Load the model, then work until stopped."""
    use_cores(config.threads)
    import transformers  # the slow imports come last, when everything cheap has been checked

    from learner.measure import load_reference
    from learner.model import Model
    from learner.service import Service

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    device = device_of(config.device)
    model = Model.load(directory, rank=config.rank, alpha=config.alpha, device=device)
    longest = config.max_prompt_tokens + config.max_completion_tokens
    if model.window is not None and model.window < longest:
        raise ConfigError(
            f"the learner cannot train {shared.model} on rows of {longest} tokens: its attention slides over"
            f" {model.window}",
            "lower max_prompt_tokens and max_completion_tokens in [learner]: together at most that",
        )
    reference = load_reference(model, shared.state / "learner")
    logger.info("ready: %s on %s, %d anchors", shared.model, device, len(reference.anchors))
    Service(
        buffer=buffer,
        model=model,
        reference=reference,
        config=config,
        store=store,
        scratch=shared.state / "learner",
        base_name=shared.model,
        alias=shared.alias,
        reporter=reporter,
        stopping=stopping,
        templates=templates,
    ).run()


def _stop_on_signals() -> threading.Event:
    stopping = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        if stopping.is_set():
            os._exit(1)
        logger.info("%s: stopping after this step; once more ends it at once", signal.Signals(number).name)
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    return stopping


def _fail(error: object, hint: str, status: int) -> int:
    print(f"learner: {error}", file=sys.stderr)
    if hint:
        print(f"  → {hint}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
