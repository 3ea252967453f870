"""Tables and pictures from results made by hand."""

from pathlib import Path
from typing import Any

import pytest

from learner.bench import report


def fact_run(arm: str, seed: int, asked: float, drift: float, curve: Any = ()) -> dict[str, Any]:
    scores = {"asked": asked, "paraphrased": asked / 2, "indirect": 0.25, "lookalike": 0.1}
    stage = {"task": "facts", "scores": {"facts": scores}, "drift": drift}
    run = {"arm": arm, "seed": seed, "steps": 80, "seconds": 96.0, "stages": [stage], "curve": list(curve)}
    return {**run, "lessons": [48], "tokens": 96_000}


def point(steps: int, asked: float, paraphrased: float, drift: float) -> dict[str, Any]:
    return {"steps": steps, "scores": {"asked": asked, "paraphrased": paraphrased}, "drift": drift}


def stage(task: str, **held_out: float) -> dict[str, Any]:
    return {"task": task, "drift": 0.1, "scores": {name: {"held out": v} for name, v in held_out.items()}}


def sequence_run(arm: str, *stages: dict[str, Any]) -> dict[str, Any]:
    return {"arm": arm, "seed": 0, "steps": 9, "seconds": 1.0, "stages": list(stages), "curve": []}


CURVE = [point(20, 0.5, 0.2, 0.4), point(40, 0.95, 0.3, 0.9), point(60, 1.0, 0.25, 1.2)]
RESULTS: dict[str, Any] = {
    "ceiling": {
        "a": {"base": {"held out": 0.0}, "teacher": {"held out": 0.92}},
        "b": {"base": {"held out": 0.1}, "teacher": {"held out": 1.0}},
        "facts": {
            "base": dict.fromkeys(report.GROUPS, 0.0),
            "teacher": {"asked": 1.0, "paraphrased": 0.9, "indirect": 0.8, "lookalike": 0.5},
        },
    },
    "facts": [
        fact_run("sdft", 0, 0.9, 0.05, [point(60, 0.5, 0.2, 0.04)]),
        fact_run("sdft", 1, 1.0, 0.07, [point(60, 0.7, 0.4, 0.06)]),
        fact_run("sft+", 0, 0.9, 0.09, [point(60, 0.8, 0.3, 0.08)]),
        fact_run("sft 0.0005", 0, 0.9, 1.5, [point(20, 0.4, 0.1, 0.1)]),
        fact_run("sft 0.001", 0, 0.9, 1.5, CURVE),
        fact_run("sft 0.001", 1, 0.9, 1.5, CURVE),
    ],
    "sequence": [
        sequence_run("sdft", stage("a", a=0.9, b=0.1), stage("b", a=0.8, b=0.7)),
        sequence_run("separate b", stage("b", b=0.75)),
    ],
    "adapter_mb": 19.5,
    "ablations": [fact_run("no anchors", 0, 0.9, 0.6)],
    "cost": [
        {"prompt": 8, "completion": 4, "arm": "reuse", "rows": 8, "seconds": 1.1, "spread": 0.0,
         "tera_flops": 0.2, "peak_gib": None, "to_sft+": {"time": 1.1, "flops": 1.05}},
    ],
}  # fmt: skip


def rows(title: str) -> list[list[str]]:
    (found,) = [made for made in report.tables(RESULTS) if made[0].startswith(title)]
    return found[2]


def test_arms_are_told_with_their_spread_and_only_the_tuned_rate() -> None:
    told = {row[0]: row for row in rows("Facts")}
    assert set(told) == {"base", "teacher in context", "sdft", "sft+", "sft 0.001"}
    assert told["sdft"][1:3] == ["48", "95 ± 7"]
    assert told["sdft"][6] == "0.060 ± 0.014"
    assert told["sdft"][9:] == ["2.1 ± 0.2"] * 2  # 96 s, and thousand tokens, for 43.2 and for 48 facts


def test_sdft_stands_beside_fine_tuning_with_the_same_rows_on_the_way() -> None:
    assert rows("On the way") == [["60", "60 ± 14", "30 ± 14", "0.050 ± 0.014", "80", "30", "0.080"]]


def test_plain_sft_is_compared_where_it_recalls_as_much() -> None:
    first, second = rows("Drift at the same recall")
    assert first[3:] == ["95 (step 40)", "0.900", "1 / 18.0"]
    assert second[3:] == ["100 (step 60)", "1.200", "1 / 17.1"]


def test_the_sequence_is_a_matrix_and_stands_beside_separate_adapters() -> None:
    assert rows("Three skills") == [
        ["base", "", "0", "10", "0"],
        ["teacher in context", "", "92", "100", "0"],
        ["sdft", "after a", "90", "10", "0.100"],
        ["sdft", "after b", "80", "70", "0.100"],
    ]
    assert rows("One adapter") == [["a", "80", "90"], ["b", "70", "75"], ["memory, MB", "20", "39"]]


def test_it_is_written_as_markdown_and_pictures(tmp_path: Path) -> None:
    text = report.markdown(report.tables(RESULTS))
    assert "| no anchors | 48 | 90 |" in text
    assert "| 8+4 | reuse | 8 | 1.100 |" in text
    pytest.importorskip("matplotlib")
    made = report.pictures(RESULTS, tmp_path)
    assert [p.name for p in made] == ["learning-against-forgetting.png", "sequence.png", "cost.png"]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in made)
