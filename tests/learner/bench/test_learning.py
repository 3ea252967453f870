"""The benchmark of learning on a tiny random model: it runs, goes on, and teaches what it says."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from learner.bench import report
from learner.bench.learning import Bench, Run
from learner.bench.pupil import Pupil
from learner.bench.tasks import Item, exactly, facts
from learner.config import LearnerConfig
from learner.measure import Reference
from learner.model import Model
from learner.rows import Pools, Row

pytestmark = pytest.mark.train

CONFIG = LearnerConfig(
    rank=4,
    alpha=8,
    min_steps=2,
    max_steps=2,
    lookalikes_per_lesson=2,
    scrambled_questions=1,
    max_lessons=2,
    max_answer_tokens=4,
)


def test_it_measures_every_arm_once_and_goes_on_where_it_was_cut(
    tiny: Model, reference: Reference, tmp_path: Path
) -> None:
    said: list[str] = []
    bench = Bench(tiny, reference, tmp_path, seeds=1, quick=True, config=CONFIG, say=said.append)
    results = bench.run(["facts"])
    arms = [run["arm"] for run in results["facts"]]
    assert arms == ["sdft", "sft 0.0005", "shuffled"]
    sdft = results["facts"][0]
    assert sdft["steps"] == 2 * 2  # four facts are two rounds of two
    assert sdft["tokens"] > 500
    assert set(sdft["stages"][-1]["scores"]["facts"]) == {"asked", "paraphrased", "indirect", "lookalike"}
    assert len(report.tables(results)) == 2

    said.clear()
    assert bench.run(["facts"]) == results
    assert said == []
    (tmp_path / "runs" / "facts--shuffled--0.json").unlink()
    again = bench.run(["facts"])
    assert {line.split(":")[0] for line in said} == {"facts--shuffled--0"}
    assert again["facts"][2]["stages"] == results["facts"][2]["stages"]


def test_what_a_model_thinks_before_its_answer_is_not_examined(
    tiny: Model, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = tiny.chat.encode("<think>\nClass K7? No.\n</think>\n\nClass B2.")
    pupil = Pupil(tiny, reference, CONFIG, 0)
    monkeypatch.setattr(tiny, "generate", lambda prompts, **_: [said for _ in prompts])
    tests = {name: [Item("Which?", name, exactly(name))] for name in ("Class B2", "Class K7")}
    assert pupil.examine(tests) == {"Class B2": 1.0, "Class K7": 0.0}


@pytest.mark.parametrize("count", [2, 4, 8])
def test_an_empty_context_teaches_no_correction_and_shuffled_ones_teach_others(
    tiny: Model, reference: Reference, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    task, every = facts().first(count), facts().lessons
    seen: list[Pools] = []

    def look(
        model: Model, pools: Pools, _: object, rollout: Callable[[int], list[Row]], **__: object
    ) -> list[object]:
        pools.lessons += rollout(10)
        seen.append(pools)
        return []

    monkeypatch.setattr("learner.bench.pupil.train", look)
    # a random teacher never answers right
    monkeypatch.setattr("learner.curriculum.Curriculum._right_teachers", lambda _, lessons: list(lessons))
    config = CONFIG.model_copy(update={"max_lessons": 8})
    for taught, blind in [(task, False), (task.shuffled(every[count : 2 * count]), False), (task, True)]:
        assert list(Pupil(tiny, reference, config, 0, blind).study(taught)) == []
    own, shuffled, none = seen
    assert all(row.student == row.teacher for row in none.lessons)
    assert {row.kind for row in none.lessons} == {"reuse", "fresh"}
    assert any(row.kind == "fresh" and row.student != row.teacher for row in own.lessons)
    pairs = [
        {(row.student, row.completion) for row in pools.lessons if row.kind == "target"}
        for pools in (own, shuffled)
    ]
    assert {student for student, _ in pairs[0]} & {student for student, _ in pairs[1]}
    assert not {completion for _, completion in pairs[0]} & {completion for _, completion in pairs[1]}


def test_an_early_stop_ends_at_the_best_point(
    tiny: Model, reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recalls = iter([0.2, 0.9, 0.9, 0.1])
    states = []

    def examine(pupil: Pupil, tests: object) -> dict[str, float]:
        states.append(tiny.adapter_state())
        return {"paraphrased": next(recalls, 0.0)}

    monkeypatch.setattr(Pupil, "examine", examine)
    config = CONFIG.model_copy(update={"min_steps": 4, "max_steps": 4})
    bench = Bench(tiny, reference, tmp_path, config=config)
    run = Run("facts", "sft 1", 0, (facts().first(2),), config, curve=1, early_stop=True)
    done = bench._do(run)
    assert [point["scores"]["paraphrased"] for point in done["curve"]] == [0.2, 0.9, 0.9, 0.1]
    *points, end = states
    same = [all(torch.equal(end[name], point[name]) for name in end) for point in points]
    assert same == [False, True, False, False]


def test_results_are_plain_json(tiny: Model, reference: Reference, tmp_path: Path) -> None:
    bench = Bench(tiny, reference, tmp_path, seeds=1, quick=True, config=CONFIG)
    kept = bench.run([])["ceiling"]
    assert list(kept) == ["facts"]
    assert json.loads((tmp_path / "runs" / "ceiling--facts.json").read_text()) == kept["facts"]
    assert kept["facts"]["lessons"] == 4
