"""The steps of a round: gradients, what is masked, batches and passes, teachers, checkpoints."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from learner import sdft
from learner.checkpoint import CheckpointFile
from learner.config import LearnerConfig
from learner.loss import token_logprobs
from learner.model import Model
from learner.rows import Pools, Row
from learner.sdft import Teacher, batch_loss, learning_rate, train
from learner.whitening import whitenings_of

ROWS = [
    Row("target", (1, 500, 501), (1, 900, 901, 902, 500, 501), (30, 31, 2)),
    Row("target", (1, 9, 10, 11, 12, 13), (1, 900, 9, 10, 11, 12, 13), (40, 41, 42, 43, 2)),
    Row("elicited", (1, 500, 501), (1, 902, 500, 501), (33, 34, 2)),
    Row("reuse", (1, 500, 501), (1, 900, 901, 902, 500, 501), (77, 78)),
    Row("lookalike", (1, 600, 601), (1, 600, 601), (50, 51, 52)),
    Row("anchor", (1, 77), (1, 77), (60, 61, 62, 63, 64, 2)),
]
CONFIG = LearnerConfig(rank=4, alpha=8, fresh_rollouts=0, checkpoint_steps=2)
SOFT = CONFIG.model_copy(update={"hard_labels": False})
"""A teacher for every row."""


class ExactNorm(torch.nn.Module):
    """transformers' RMSNorm computes in fp32 whatever it is given: too coarse for finite differences."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.epsilon = norm.weight, norm.variance_epsilon

    def forward(self, states: Tensor) -> Tensor:
        scale = (states.square().mean(-1, keepdim=True) + self.epsilon).rsqrt()
        scaled: Tensor = self.weight * states * scale
        return scaled


@pytest.fixture
def exact(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> Model:
    """In fp64, with an adapter that does something."""
    monkeypatch.setattr("learner.model.PLAIN_ATTENTION", 0)  # its softmax is fp32
    tiny.peft.double()
    for module in list(tiny.peft.modules()):
        for name, child in module.named_children():
            if hasattr(child, "variance_epsilon"):
                setattr(module, name, ExactNorm(child))
    randomise(tiny)
    return tiny


def randomise(model: Model, seed: int = 3) -> None:
    g = torch.Generator().manual_seed(seed)
    state = {k: 0.3 * torch.randn(v.shape, generator=g) for k, v in model.adapter_state().items()}
    model.load_adapter(state)


def teacher_of(model: Model, config: LearnerConfig = CONFIG) -> Teacher:
    return Teacher(model, {}, model.adapter_state(), config)


def gradient(model: Model, rows: list[Row], config: LearnerConfig, states: list[Tensor]) -> list[Tensor]:
    for parameter in model.parameters().values():
        parameter.grad = None
    batch_loss(model, rows, states, config).backward()  # type: ignore[no-untyped-call]
    return [p.grad.clone() for p in model.parameters().values() if p.grad is not None]


@pytest.mark.train
@pytest.mark.parametrize("objective", ["forward_kl", "reverse_kl", "cross_entropy"])
def test_the_gradient_is_that_of_finite_differences(exact: Model, objective: Any) -> None:
    config = CONFIG.model_copy(update={"objective": objective})
    states = teacher_of(exact, config)(ROWS)
    grads = gradient(exact, ROWS, config, states)
    checked, step = 0, 1e-5
    for parameter, grad in zip(exact.parameters().values(), grads, strict=True):
        where = int(grad.abs().argmax())
        if grad.flatten()[where].abs() < 1e-4:
            continue
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.view(-1)[where] += sign * step
                values.append(batch_loss(exact, ROWS, states, config).item())
                parameter.view(-1)[where] -= sign * step
        numeric = (values[0] - values[1]) / (2 * step)
        assert numeric == pytest.approx(float(grad.flatten()[where]), rel=1e-6)
        checked += 1
    assert checked >= 14


@pytest.mark.train
@pytest.mark.parametrize("hard_labels", [True, False])
@pytest.mark.parametrize("objective", ["forward_kl", "reverse_kl", "cross_entropy"])
def test_the_loss_is_that_of_the_formula_under_each_one_s_own_prompt(
    exact: Model, objective: Any, hard_labels: bool
) -> None:
    config = CONFIG.model_copy(update={"objective": objective, "hard_labels": hard_labels})

    def logits(prompt: tuple[int, ...], completion: tuple[int, ...]) -> Tensor:
        ids = torch.tensor([[*prompt, *completion]])
        of_all: Tensor = exact.peft(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        return of_all

    losses = []
    with torch.no_grad():
        for row in ROWS:
            student = logits(row.student, row.completion).log_softmax(-1)
            with exact.base():
                given = logits(row.teacher, row.completion)
            taught = row.kind in ("target", "elicited", "reuse")
            teacher = (given / (config.teacher_temperature if taught else 1.0)).log_softmax(-1)
            said = torch.tensor(row.completion)[:, None]
            told = -student.gather(1, said)[:, 0]
            if objective == "reverse_kl" and taught:  # the others are held to base by forward KL
                loss = (student.exp() * (student - teacher)).sum(-1)
            else:
                loss = (teacher.exp() * (teacher - student)).sum(-1)
            if (taught and objective == "cross_entropy") or (row.kind == "target" and hard_labels):
                loss = told
            if row.kind == "lookalike":
                loss = loss[teacher.gather(1, said)[:, 0] < -sdft.SURPRISING]
            losses.append(loss.mean() * (config.anchor_weight if row.kind == "anchor" else 1.0))
    found = batch_loss(exact, ROWS, teacher_of(exact, config)(ROWS), config)
    assert found.item() == pytest.approx(float(torch.stack(losses).mean()), rel=1e-9)


@pytest.mark.train
@pytest.mark.parametrize(
    ("more", "kinds"),
    [
        ({"hard_labels": False}, {"target", "elicited", "reuse", "lookalike", "anchor"}),
        ({}, {"elicited", "reuse", "lookalike", "anchor"}),
        ({"objective": "cross_entropy"}, {"lookalike", "anchor"}),
    ],
)
def test_rows_that_are_taught_by_their_own_tokens_cost_no_teacher(
    tiny: Model, more: dict[str, Any], kinds: set[str]
) -> None:
    teacher = teacher_of(tiny, CONFIG.model_copy(update=more))
    assert [len(states) for states in teacher(ROWS)] == [
        len(row.completion) if row.kind in kinds else 0 for row in ROWS
    ]
    assert {row.kind for row in teacher.kept} == kinds


@pytest.mark.train
def test_a_long_prompt_is_read_from_its_first_token(exact: Model) -> None:
    text = "The first of " + "many " * 1800 + "words"
    ids = exact.chat.render([{"role": "user", "content": text}])
    assert text in exact.chat.decode(ids)
    with torch.no_grad():
        (state,), (other,) = (exact.hidden([[first, *ids[1:]]], [[30, 2]]) for first in (ids[0], 900))
    assert not torch.equal(state, other)


@pytest.mark.train
def test_a_loss_is_the_mean_of_its_rows_whatever_the_passes(exact: Model) -> None:
    states = teacher_of(exact)(ROWS)
    whole = gradient(exact, ROWS, CONFIG, states)
    loss = batch_loss(exact, ROWS, states, CONFIG)
    alone = [batch_loss(exact, [r], [s], CONFIG) for r, s in zip(ROWS, states, strict=True)]
    assert torch.allclose(torch.stack(alone).mean(), loss, atol=1e-10)
    parts = [gradient(exact, [r], CONFIG, [s]) for r, s in zip(ROWS, states, strict=True)]
    for together, *singly in zip(whole, *parts, strict=True):
        assert torch.allclose(torch.stack(singly).mean(0), together, atol=1e-10)


@pytest.mark.train
def test_anchors_count_as_often_as_it_is_set(exact: Model) -> None:
    states = teacher_of(exact)(ROWS)
    twice, five_times = (
        batch_loss(exact, ROWS, states, CONFIG.model_copy(update={"anchor_weight": weight})).item()
        for weight in (2.0, 5.0)
    )
    once = CONFIG.model_copy(update={"anchor_weight": 1.0})
    of_anchor = batch_loss(exact, ROWS[-1:], states[-1:], once).item()
    assert five_times - twice == pytest.approx(3 * of_anchor / len(ROWS))


@pytest.mark.train
def test_the_same_context_and_weights_have_nothing_to_learn(exact: Model) -> None:
    exact.reset_adapter(1, {})
    rows = [Row("target", r.student, r.student, r.completion) for r in ROWS]
    config = SOFT.model_copy(update={"teacher_temperature": 1.0})
    states = teacher_of(exact, config)(rows)
    assert batch_loss(exact, rows, states, config).item() == pytest.approx(0.0, abs=1e-9)
    assert max(float(g.abs().max()) for g in gradient(exact, rows, config, states)) < 1e-9


@pytest.mark.train
def test_the_end_of_the_answer_is_trained_and_the_prompt_is_not(exact: Model) -> None:
    (row,) = rows = ROWS[:1]
    states = teacher_of(exact, SOFT)(rows)
    before = batch_loss(exact, rows, states, SOFT)
    (predicts_eos,) = [states[0].clone()]
    predicts_eos[-1] += 1.0
    assert batch_loss(exact, rows, [predicts_eos], SOFT) != before
    assert len(states[0]) == len(row.completion)


@pytest.mark.train
@pytest.mark.parametrize(("kind", "skipped"), [("target", 3), ("reuse", 3), ("rated", 0), ("anchor", 0)])
def test_the_first_tokens_of_a_long_answer_to_a_lesson_are_skipped(
    exact: Model, kind: Any, skipped: int
) -> None:
    row = Row(kind, (1, 5), (1, 7, 5), tuple(range(100, 140)))
    (states,) = teacher_of(exact, SOFT)([row])
    before = batch_loss(exact, [row], [states], SOFT)
    trained = []
    for position in range(5):
        other = states.clone()
        other[position] += 1.0
        trained.append(not torch.equal(batch_loss(exact, [row], [other], SOFT), before))
    assert trained == [position >= skipped for position in range(5)]


@pytest.mark.train
@torch.no_grad()
def test_of_an_answer_that_is_its_own_label_every_token_is_trained(exact: Model) -> None:
    row = Row("target", (1, 5), (1, 7, 5), (*range(100, 140), 2))
    (said,) = exact.hidden([row.student], [row.completion])
    nats = -token_logprobs(said, exact.head_VD, torch.tensor(row.completion))
    loss = batch_loss(exact, [row], teacher_of(exact)([row]), CONFIG)
    assert loss.item() == pytest.approx(float(nats.mean()), rel=1e-6)


@pytest.mark.train
def test_of_a_lookalike_only_what_base_would_hardly_say_is_trained(
    exact: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = (1, 600, 601)
    with exact.base():
        (likely,) = exact.generate([prompt], max_tokens=2)
    row = Row("lookalike", prompt, prompt, (*likely, 40_000))
    (states,) = teacher_of(exact)([row])
    likely_nats, _, unlikely_nats = -token_logprobs(states, exact.head_VD, torch.tensor(row.completion))
    assert likely_nats < unlikely_nats
    monkeypatch.setattr(sdft, "SURPRISING", float(likely_nats + unlikely_nats) / 2)
    before = batch_loss(exact, [row], [states], CONFIG)
    for position, trained in ((0, False), (2, True)):
        other = states.clone()
        other[position] *= 1.01
        assert torch.equal(batch_loss(exact, [row], [other], CONFIG), before) is not trained


@pytest.mark.train
@torch.no_grad()
def test_each_teacher_has_its_weights_and_its_context(exact: Model) -> None:
    """`base` is the model without its adapter; `last-promoted` the parent, whatever the student has become;
    anchors and look-alikes are held to base by either."""
    parent = exact.adapter_state()

    def expected(row: Row) -> Tensor:
        return exact.hidden([row.teacher], [row.completion])[0]

    by_parent = [expected(row) for row in ROWS]
    with exact.base():
        by_base = [expected(row) for row in ROWS]
    config = SOFT.model_copy(update={"teacher": "last-promoted"})
    base, last = Teacher(exact, {}, parent, SOFT), Teacher(exact, {}, parent, config)
    randomise(exact, seed=9)
    student = exact.adapter_state()
    for rows, states in ((base(ROWS), by_base), (last(ROWS), by_parent[:4] + by_base[4:])):
        assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(rows, states, strict=True))
    rated = Row("rated", (1, 5), (1, 5), (6, 7))
    (kept,) = base([rated])
    with exact.holding(parent):
        assert torch.allclose(kept, expected(rated), atol=1e-10)
    assert all(torch.equal(student[k], v) for k, v in exact.adapter_state().items())


def run(
    model: Model, config: LearnerConfig = CONFIG, checkpoints: CheckpointFile | None = None
) -> Iterator[Any]:
    pools = Pools(lessons=ROWS[:4], lookalikes=ROWS[4:5], anchors=ROWS[5:])
    whitenings = {name: one for names, one in whitenings_of(model, ROWS).items() for name in names}
    model.reset_adapter(1, whitenings)
    with model.base():
        states = {row: model.hidden([row.student], [row.completion])[0].detach() for row in ROWS[5:]}

    def rollout(step: int) -> list[Row]:
        (ids,) = model.generate([ROWS[0].student], max_tokens=4, temperature=1.0, seed=step)
        return [Row("fresh", ROWS[0].student, ROWS[0].teacher, tuple(ids))]

    return train(
        model,
        pools,
        states,
        rollout,
        whitenings=whitenings,
        config=config,
        steps=9,
        seed=5,
        checkpoints=checkpoints,
    )


@pytest.mark.train
def test_training_moves_the_student_to_its_teacher_and_nothing_else(tiny: Model) -> None:
    frozen = {n: p.detach().clone() for n, p in tiny.peft.named_parameters() if not p.requires_grad}
    steps = list(run(tiny, SOFT.model_copy(update={"learning_rate": 2e-2})))
    assert [s.number for s in steps] == list(range(1, 10))
    assert steps[-1].loss < 0.7 * steps[0].loss
    assert all(torch.equal(frozen[n], p) for n, p in tiny.peft.named_parameters() if n in frozen)


@pytest.mark.train
@pytest.mark.parametrize("cut", [1, 2, 3, 5, 8, 9])
def test_cut_short_at_any_step_it_ends_in_the_same_bits(tiny: Model, tmp_path: Path, cut: int) -> None:
    config = CONFIG.model_copy(update={"fresh_rollouts": 2})
    whole = list(run(tiny, config))
    expected = tiny.adapter_state()
    file = CheckpointFile(tmp_path / "round.safetensors", "this round")
    for step in run(tiny, config, file):
        if step.number == cut:
            break
    again = list(run(tiny, config, file))
    assert [s.loss for s in again] == [s.loss for s in whole]
    assert all(torch.equal(expected[k], v) for k, v in tiny.adapter_state().items())


@pytest.mark.train
def test_a_round_that_broke_off_leaves_no_gradient_to_the_next(tiny: Model) -> None:
    whole = list(run(tiny))
    expected = tiny.adapter_state()
    for parameter in tiny.parameters().values():
        parameter.grad = torch.ones_like(parameter)
    assert list(run(tiny)) == whole
    assert all(torch.equal(expected[k], v) for k, v in tiny.adapter_state().items())


@pytest.mark.train
def test_a_loss_that_is_not_finite_ends_the_round_with_its_reason(
    tiny: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, steps = batch_loss, iter([1.0, math.nan])
    monkeypatch.setattr("learner.sdft.batch_loss", lambda *given: real(*given) * next(steps))
    with pytest.raises(FloatingPointError, match="step 2 is nan"):
        list(run(tiny))


@pytest.mark.train
def test_another_round_s_checkpoint_and_a_damaged_one_are_not_taken_up(tiny: Model, tmp_path: Path) -> None:
    file = CheckpointFile(tmp_path / "round.safetensors", "this round")
    list(run(tiny, CONFIG, file))
    assert len(file.load().losses) == 8
    assert CheckpointFile(file.path, "another").load().losses == []
    file.path.write_bytes(file.path.read_bytes()[:-100])
    assert file.load().losses == []
    file.delete()
    assert file.load().losses == []


def test_the_learning_rate_warms_up_and_falls_to_a_tenth() -> None:
    rates = [learning_rate(step, 40, CONFIG) for step in range(40)]
    top = CONFIG.learning_rate
    assert rates[0] == pytest.approx(top / 5, rel=0.01)
    assert max(rates) == rates[4] == pytest.approx(top, rel=0.03)
    assert rates[-1] == pytest.approx(top / 10, rel=0.1)
