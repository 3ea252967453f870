"""The step's cost, on a tiny shape: what is counted, not how long it took."""

import pytest

from learner.bench import command
from learner.bench.step import SHAPES, as_json, random_model, step_costs
from learner.config import LearnerConfig
from learner.loss import divergence

CONFIG = LearnerConfig(lessons_per_step=2, anchors_per_step=1, max_lessons=4)


@pytest.mark.train
@pytest.mark.parametrize("teacher", ["base", "last-promoted"])
def test_arms_are_counted_and_compared_at_equal_lengths(teacher: str) -> None:
    config = CONFIG.model_copy(update={"teacher": teacher})
    model = random_model("tiny", "cpu")
    (state,) = model.states([(5, 6, 7)], [(8, 9)])
    assert divergence(state, state + 0.1, model.head_VD).isfinite().all()
    said: list[str] = []
    costs = list(step_costs(model, [(8, 4), (16, 8)], config, repeat=2, on_progress=said.append))
    assert [(c.arm, c.prompt) for c in costs] == [
        (arm, p) for p in (8, 16) for arm in ("sft", "sft+", "reuse", "round", "fresh")
    ]
    flops = {c.arm: c.tera_flops for c in costs[:5]}
    assert flops["sft"] < flops["sft+"] < flops["reuse"] < flops["round"] < flops["fresh"]
    assert all(c.seconds > 0 for c in costs)
    assert "8+4: fresh, 2 of 2" in said
    told = as_json(costs)
    assert [one["to_sft+"]["flops"] for one in told if one["arm"] == "sft+"] == [1.0, 1.0]


def test_every_shape_divides_into_heads() -> None:
    for shape in SHAPES.values():
        assert shape["hidden_size"] % shape["num_attention_heads"] == 0
        assert shape["num_attention_heads"] % shape["num_key_value_heads"] == 0


@pytest.mark.parametrize("wrong", [["learning", "--seeds", "0"], ["step", "--repeat", "1"]])
def test_too_few_runs_are_refused_before_anything_is_measured(
    wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        command.main(wrong)
    assert left.value.code == 2
    assert "is wanted" in capsys.readouterr().err
