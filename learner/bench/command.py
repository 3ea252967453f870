"""`apprentice bench WHAT`: measures on this machine, beside what it is compared to."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from learner.cores import device_of, use_cores

PARTS = ("facts", "sequence", "ablations", "cost")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 measured, 2 wrong arguments."""
    options = _parse(arguments)
    return {"learning": _learning, "step": _step}[options.what](options)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="apprentice bench",
        description="Benchmarks: each prints a table of ratios to what it is compared to.",
        epilog="exit codes:\n  0  measured\n  2  wrong arguments or settings",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print JSON for programs instead of tables")
    what = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")
    common.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")

    learning = what.add_parser(
        "learning",
        parents=[common],
        help="what is learned, kept and leaked, and at what cost, with controls (hours on 2 cores)",
    )
    learning.add_argument("--quick", action="store_true", help="four facts and the cost: minutes")
    learning.add_argument("--seeds", type=_at_least(1), default=3, metavar="N", help="runs of each arm (3)")
    learning.add_argument("--only", choices=PARTS, action="append", help="this part alone; may be repeated")
    learning.add_argument("--out", type=Path, default=Path("bench-learning"), metavar="DIR",
                          help="results; a benchmark that was cut short goes on there")  # fmt: skip
    learning.add_argument("--config", type=Path, metavar="FILE", help="configuration (apprentice.toml)")
    learning.add_argument("--state", type=Path, metavar="DIR", help="where the model is kept")
    learning.add_argument("--model", help="the built-in name, a directory, or a hub id")
    learning.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads; 0 takes all")

    step = what.add_parser(
        "step", parents=[common], help="one optimiser step on random weights of a published shape"
    )
    step.add_argument("--shape", default="smollm2-135m", help="qwen2.5-7b, qwen2.5-0.5b, smollm2-135m")
    step.add_argument(
        "--lengths", default="128+64,512+128,1024+512", metavar="P+C,…", help="prompt and completion tokens"
    )
    step.add_argument(
        "--repeat", type=_at_least(2), default=5, metavar="N", help="timed steps of each kind (5)"
    )
    return parser.parse_args(arguments)


def _at_least(least: int) -> Callable[[str], int]:
    """An argument's type."""

    def number(text: str) -> int:
        if (value := int(text)) < least:
            raise argparse.ArgumentTypeError(f"at least {least} is wanted")
        return value

    return number


def _learning(options: argparse.Namespace) -> int:
    use_cores(options.threads)
    import transformers

    from buffer.config import ConfigError, Shared, load
    from buffer.models import model_directory
    from learner.bench import report
    from learner.bench.learning import Bench
    from learner.bench.step import as_json, step_costs
    from learner.config import LearnerConfig
    from learner.measure import load_reference
    from learner.model import Model

    try:
        shared = load(Shared, file=options.config, flags={"state": options.state, "model": options.model})
        config = load(LearnerConfig, "learner", file=options.config)
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        device = device_of(options.device)
        model = Model.load(model_directory(shared), rank=config.rank, alpha=config.alpha, device=device)
    except ConfigError as error:
        return _fail(error, error.hint, 2)
    reference = load_reference(model, shared.state / "learner")
    parts = tuple(options.only or (("facts", "cost") if options.quick else PARTS))
    bench = Bench(
        model, reference, options.out, 1 if options.quick else options.seeds, options.quick, config, _say
    )
    results = bench.run([part for part in parts if part != "cost"])
    if "cost" in parts:
        model.reset_adapter(0, {})
        lengths = [(48, 16)] if options.quick else [(48, 16), (48, 64), (256, 128)]
        repeat = 2 if options.quick else 9
        results["cost"] = as_json(list(step_costs(model, lengths, config, repeat=repeat, on_progress=_say)))
    (options.out / "results.json").write_text(json.dumps(results, indent=1))
    made = report.tables(results)
    (options.out / "report.md").write_text(report.markdown(made))
    try:
        shown = report.pictures(results, options.out)
    except ModuleNotFoundError:
        shown = []
        print("bench: no pictures: `.venv/bin/pip install matplotlib` draws them", file=sys.stderr)
    _print(options, results, made)
    print(
        f"\nkept in {options.out}: results.json, report.md, {', '.join(p.name for p in shown)}",
        file=sys.stderr,
    )
    return 0


def _step(options: argparse.Namespace) -> int:
    import torch

    from learner.bench import report
    from learner.bench.step import SHAPES, as_json, random_model, step_costs
    from learner.config import LearnerConfig

    if options.shape not in SHAPES:
        return _fail(f"there is no shape {options.shape}", f"one of {', '.join(SHAPES)}", 2)
    try:
        lengths = [(int(p), int(c)) for p, c in (pair.split("+") for pair in options.lengths.split(","))]
    except ValueError:
        return _fail(f"{options.lengths} are no lengths", "as in --lengths 128+64,512+128", 2)
    device = device_of(options.device)
    _say(f"making random weights of {options.shape} on {device}")
    model = random_model(options.shape, device)
    costs = as_json(
        list(step_costs(model, lengths, LearnerConfig(), repeat=options.repeat, on_progress=_say))
    )
    machine = torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} CPU cores"
    results = {"shape": options.shape, "machine": machine, "cost": costs}
    _print(options, results, report.tables(results))
    return 0


def _print(options: argparse.Namespace, results: dict[str, Any], made: Sequence[Any]) -> None:
    if options.json:
        print(json.dumps(results, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for title, heads, rows in made:
        table = Table(*heads, title=title, title_justify="left")
        for row in rows:
            table.add_row(*row)
        console.print(table)


_said = ""


def _say(what: str) -> None:
    """Progress: one line that is overwritten on a terminal; elsewhere a line for every run."""
    global _said
    run = what.partition(":")[0]
    if sys.stderr.isatty():
        print(f"\r\x1b[K{what[:110]}", end="", file=sys.stderr, flush=True)
    elif run != _said:
        print(f"bench: {what}", file=sys.stderr, flush=True)
    _said = run


def _fail(error: object, hint: str, status: int) -> int:
    print(f"bench: {error}" + (f"\n  → {hint}" if hint else ""), file=sys.stderr)
    return status
