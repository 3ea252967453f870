"""The benchmark's results as tables and pictures. Pure but for writing the PNGs."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Runs = Sequence[Mapping[str, Any]]
Table = tuple[str, Sequence[str], list[list[str]]]
"""Title, column heads, rows."""

GROUPS = ("asked", "paraphrased", "indirect", "lookalike")
UNTAUGHT = {"base": "base", "teacher": "teacher in context"}
"""What stands above those that were taught."""


def tables(results: Mapping[str, Any]) -> list[Table]:
    """Every table that the results allow."""
    made = []
    if "facts" in results:
        made.append(_facts("Facts: share of right answers, and drift", results["facts"], results["ceiling"]))
        made += [_along(results["facts"]), _against_plain(results["facts"])]
    if "sequence" in results:
        matrix = _matrix(results["sequence"], results["ceiling"])
        made += [matrix, _separate(results["sequence"], results["adapter_mb"])]
    if "ablations" in results:
        title = "Ablations: one part switched off, half of the facts"
        made.append(_facts(title, results["ablations"], results["ceiling"]))
    if "cost" in results:
        made.append(_cost(results["cost"]))
    return [table for table in made if table[2]]


def by_arm(runs: Runs) -> dict[str, list[Mapping[str, Any]]]:
    """Runs that differ in their seed alone. Plain SFT's learning rate is part of its name: the rates that
    were tried on the first seed and not chosen are left out."""
    plain = [r for r in runs if r["arm"].startswith("sft ")]
    chosen = max((r["arm"] for r in plain), key=lambda arm: sum(r["arm"] == arm for r in plain), default="")
    if plain and len({r["seed"] for r in plain}) == 1:
        chosen = max(plain, key=lambda r: _best(r)["scores"]["paraphrased"])["arm"]
    arms: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        if not run["arm"].startswith("sft ") or run["arm"] == chosen:
            arms.setdefault(run["arm"], []).append(run)
    return arms


def spread(values: Iterable[float], digits: int = 0, scale: float = 100.0) -> str:
    """Mean and, of several, the standard deviation."""
    found = [v * scale for v in values]
    mean = f"{statistics.fmean(found):.{digits}f}"
    return f"{mean} ± {statistics.stdev(found):.{digits}f}" if len(found) > 1 else mean


def _points(run: Mapping[str, Any]) -> Runs:
    """A run's curve; its end, where it was examined at its end alone."""
    last = run["stages"][-1]
    end = {"steps": run["steps"], "scores": last["scores"]["facts"], "drift": last["drift"]}
    return run["curve"] or [end]


def _best(run: Mapping[str, Any]) -> Mapping[str, Any]:
    """The early stop: the curve's point with the best paraphrased recall, the earliest of equals."""
    return max(_points(run), key=lambda point: point["scores"]["paraphrased"])


def _facts(title: str, runs: Runs, known: Mapping[str, Any]) -> Table:
    paid = ("steps", "s", "s / fact", "k tokens / fact")
    heads = ["", "lessons", *(f"{group} %" for group in GROUPS), "drift", *paid]
    rows = []
    for name, who in UNTAUGHT.items():
        shares = [f"{100 * known['facts'][name][group]:.0f}" for group in GROUPS]
        rows.append([who, "0", *shares, "0", "", "", "", ""])
    for arm, same in by_arm(runs).items():
        last = [run["stages"][-1] for run in same]
        shares = [spread(stage["scores"]["facts"][group] for stage in last) for group in GROUPS]
        seconds = [run["seconds"] for run in same]
        asked = [s["scores"]["facts"]["asked"] * run["lessons"][0] for s, run in zip(last, same, strict=True)]
        learned = [(run, a) for run, a in zip(same, asked, strict=True) if a >= 1]
        rows.append(
            [
                arm,
                str(same[0]["lessons"][0]),
                *shares,
                spread((stage["drift"] for stage in last), 3, 1.0),
                str(same[0]["steps"]),
                spread(seconds, 0, 1.0),
                spread((run["seconds"] / facts for run, facts in learned), 1, 1.0) if learned else "",
                spread((run["tokens"] / facts for run, facts in learned), 1, 1e-3) if learned else "",
            ]
        )
    return title, heads, rows


def _along(runs: Runs) -> Table:
    """Recall and drift on the way, of SDFT and of fine-tuning with the same rows."""
    arms = {arm: same for arm, same in by_arm(runs).items() if arm in ("sdft", "sft+") and same[0]["curve"]}
    heads = ["steps", *(f"{arm} {what}" for arm in arms for what in ("asked %", "paraphrased %", "drift"))]
    by_steps: dict[int, list[str]] = {}
    for same in arms.values():
        for points in zip(*(run["curve"] for run in same), strict=True):
            cells = by_steps.setdefault(points[0]["steps"], [str(points[0]["steps"])])
            cells += [spread(p["scores"][name] for p in points) for name in ("asked", "paraphrased")]
            cells.append(spread((p["drift"] for p in points), 3, 1.0))
    return "On the way: SDFT beside fine-tuning with the same rows", heads, list(by_steps.values())


def _against_plain(runs: Runs) -> Table:
    """Drift at the same recall: plain SFT's earliest point that asks as well as SDFT ends, or its best."""
    arms = by_arm(runs)
    sdft = arms.get("sdft", [])
    plain = next((same for arm, same in arms.items() if arm.startswith("sft ")), [])
    rows = []
    for ours, theirs in zip(sdft, plain, strict=False):
        last = ours["stages"][-1]
        recall = last["scores"]["facts"]["asked"]
        reached = [p for p in _points(theirs) if p["scores"]["asked"] >= recall]
        point = reached[0] if reached else max(_points(theirs), key=lambda p: p["scores"]["asked"])
        rows.append(
            [
                str(ours["seed"]),
                f"{100 * recall:.0f}",
                f"{last['drift']:.3f}",
                f"{100 * point['scores']['asked']:.0f} (step {point['steps']})",
                f"{point['drift']:.3f}",
                f"1 / {point['drift'] / last['drift']:.1f}",
            ]
        )
    heads = ["seed", "SDFT asked %", "SDFT drift", "plain SFT asked %", "plain SFT drift", "ratio"]
    return "Drift at the same recall", heads, rows


def _matrix(runs: Runs, known: Mapping[str, Any]) -> Table:
    """Accuracy on every task after every stage."""
    tasks = [stage["task"] for stage in runs[0]["stages"]]
    rows = [
        [who, "", *(f"{100 * _accuracy(known[task][name]):.0f}" for task in tasks), "0"]
        for name, who in UNTAUGHT.items()
    ]
    for arm, same in by_arm(runs).items():
        if arm.startswith("separate"):
            continue
        for index, stage in enumerate(tasks):
            scores = [run["stages"][index] for run in same]
            shares = [spread(_accuracy(one["scores"][task]) for one in scores) for task in tasks]
            rows.append([arm, f"after {stage}", *shares, spread((o["drift"] for o in scores), 3, 1.0)])
    return "Three skills, one after another: accuracy %", ["", "", *tasks, "drift"], rows


def _separate(runs: Runs, adapter_mb: float) -> Table:
    """One adapter that learned all, beside one for each."""
    sdft = [run for run in runs if run["arm"] == "sdft"]
    rows = []
    for index, task in enumerate(stage["task"] for stage in sdft[0]["stages"]):
        alone = [run for run in runs if run["arm"] == f"separate {task}"] if index else sdft
        one = spread(_accuracy(run["stages"][-1]["scores"][task]) for run in sdft)
        own = spread(_accuracy(run["stages"][0]["scores"][task]) for run in alone)
        rows.append([task, one, own])
    rows.append(["memory, MB", f"{adapter_mb:.0f}", f"{adapter_mb * len(rows):.0f}"])
    return "One adapter beside three: accuracy %", ["task", "one for all", "one each"], rows


def _accuracy(scores: Mapping[str, float]) -> float:
    """A task's accuracy: of facts, asked and paraphrased as their items weigh (1 to 3)."""
    if "asked" in scores:
        return (scores["asked"] + 3 * scores["paraphrased"]) / 4
    return scores["held out"]


def _cost(costs: Runs) -> Table:
    heads = ["tokens", "arm", "rows", "s", "±", "TFLOP", "time / sft+", "FLOPs / sft+", "peak GiB"]
    rows = [
        [
            f"{c['prompt']}+{c['completion']}",
            c["arm"],
            str(c["rows"]),
            f"{c['seconds']:.3f}",
            f"{c['spread']:.3f}",
            f"{c['tera_flops']:.3f}",
            f"{c['to_sft+']['time']:.2f}",
            f"{c['to_sft+']['flops']:.2f}",
            "" if c["peak_gib"] is None else f"{c['peak_gib']:.1f}",
        ]
        for c in costs
    ]
    return "A step's cost", heads, rows


def markdown(made: Sequence[Table]) -> str:
    """The tables for a file."""
    lines = []
    for title, heads, rows in made:
        lines += [f"## {title}", "", _line(heads), _line("---" for _ in heads)]
        lines += [*(_line(row) for row in rows), ""]
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


# --- pictures --------------------------------------------------------------------------------------------


def pictures(results: Mapping[str, Any], out: Path) -> list[Path]:
    """Learning against forgetting, the sequence, and the cost, as PNG files in `out`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    made = []

    def keep(name: str) -> None:
        made.append(out / f"{name}.png")
        pyplot.tight_layout()
        pyplot.savefig(made[-1], dpi=130)
        pyplot.close()

    if "facts" in results:
        pyplot.figure(figsize=(6.4, 4.2))
        for index, (arm, same) in enumerate(by_arm(results["facts"]).items()):
            for number, run in enumerate(same):
                points = [(p["drift"], 100 * p["scores"]["paraphrased"]) for p in run["curve"]]
                last = run["stages"][-1]
                points.append((last["drift"], 100 * last["scores"]["facts"]["paraphrased"]))
                drift, recall = zip(*points, strict=True)
                label = arm if number == 0 else None
                pyplot.plot(drift, recall, "o-", ms=3, lw=1, color=f"C{index}", label=label)
        pyplot.xscale("log")
        pyplot.xlabel("drift: KL to base on general prompts, nats per token")
        pyplot.ylabel("paraphrased questions answered, %")
        pyplot.legend()
        keep("learning-against-forgetting")
    if "sequence" in results:
        arms = {a: s for a, s in by_arm(results["sequence"]).items() if not a.startswith("separate")}
        _, axes = pyplot.subplots(1, len(arms), figsize=(3.4 * len(arms), 3.4), sharey=True, squeeze=False)
        for axis, (arm, same) in zip(axes[0], arms.items(), strict=True):
            tasks = [stage["task"] for stage in same[0]["stages"]]
            for task in tasks:
                heights = [
                    100 * statistics.fmean(_accuracy(run["stages"][i]["scores"][task]) for run in same)
                    for i in range(len(tasks))
                ]
                axis.plot(range(1, len(tasks) + 1), heights, "o-", label=task)
            axis.set(title=arm, xlabel="skills learned", xticks=range(1, len(tasks) + 1), ylim=(-2, 102))
        axes[0][0].set_ylabel("accuracy, %")
        axes[0][0].legend()
        keep("sequence")
    if "cost" in results:
        pyplot.figure(figsize=(6.4, 3.4))
        labels = [f"{c['arm']}\n{c['prompt']}+{c['completion']}" for c in results["cost"]]
        pyplot.bar(labels, [c["to_sft+"]["time"] for c in results["cost"]])
        pyplot.axhline(1.0, lw=1, color="black")
        pyplot.ylabel("time of a step, SFT with anchors = 1")
        pyplot.xticks(fontsize=7)
        keep("cost")
    return made
