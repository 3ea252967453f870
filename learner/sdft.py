"""Self-distillation fine-tuning of one adapter: the steps of a round.

    for each step:  rows  = lessons' rows + replay + look-alikes + anchors
                    loss  = weighted mean over rows of the mean over tokens of KL(teacher || student),
                            or of cross entropy where the tokens are a correction's own (`is_label`)
                    AdamW on the adapter alone (learner.optimiser)

The teacher is frozen within a round: base, or the policy that the round starts from, with the correction in
its context, sharpened; for look-alikes and anchors it is base as it is. Its hidden states are kept per row,
so its forward pass is paid once a round. Everything here is a function of the arguments: on one CPU with
one thread count the same arguments give the same bits.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import compress

import torch
from torch import Tensor

from learner.checkpoint import Checkpoint, CheckpointFile
from learner.config import LearnerConfig
from learner.loss import (
    Divergence,
    cross_entropy,
    distil,
    forward_kl,
    loss_mask,
    reverse_kl,
    token_logprobs,
)
from learner.model import Model
from learner.optimiser import Optimiser
from learner.packing import packs
from learner.plan import Step
from learner.rows import TAUGHT, Pools, Row
from learner.whitening import Whitening

SURPRISING = 3.0
"""Nats of surprise at which base would hardly say a token."""


def is_label(row: Row, config: LearnerConfig) -> bool:
    """Whether a row's own tokens are learned as they stand; else what the teacher says in their place."""
    if config.objective == "cross_entropy":
        return row.kind in TAUGHT
    return config.hard_labels and row.kind == "target"


def divergence_of(row: Row, config: LearnerConfig) -> Divergence:
    """By which a row that is no label comes to its teacher. Only lessons' may be reverse KL: what holds the
    model where it was keeps forward KL."""
    return reverse_kl if config.objective == "reverse_kl" and row.kind in TAUGHT else forward_kl


def teaching(model: Model, config: LearnerConfig) -> AbstractContextManager[None]:
    """Within this context the model is the teacher: base, or the policy that the round starts from, whose
    adapter it must hold."""
    return model.base() if config.teacher == "base" else nullcontext()


@dataclass
class Teacher:
    """The teachers' hidden states by row, computed in batches on first need and kept; none for a row that is
    its own label.

    `parent` is the adapter of the policy that the round starts from.
    """

    model: Model
    kept: dict[Row, Tensor]
    parent: Mapping[str, Tensor]
    config: LearnerConfig

    def __call__(self, rows: Sequence[Row]) -> list[Tensor]:
        wanted = dict.fromkeys(row for row in rows if not is_label(row, self.config))
        missing = [row for row in wanted if row not in self.kept]
        if by_base := [row for row in missing if not self._by_parent(row)]:
            with self.model.base():
                self._keep(by_base)
        if by_parent := [row for row in missing if self._by_parent(row)]:
            with self.model.holding(self.parent):
                self._keep(by_parent)
        none = self.model.head_VD[:0]
        return [self.kept.get(row, none) for row in rows]

    def _by_parent(self, row: Row) -> bool:
        return row.kind == "rated" or (row.kind in TAUGHT and self.config.teacher == "last-promoted")

    def _keep(self, rows: list[Row]) -> None:
        states = self.model.states([r.teacher for r in rows], [r.completion for r in rows])
        self.kept.update(zip(rows, states, strict=True))


def learning_rate(step: int, steps: int, config: LearnerConfig) -> float:
    """Linear warm-up, then a cosine down to a tenth. `step` counts from 0."""
    warm = min(1.0, (step + 1) / (config.warmup_steps + 1))
    return config.learning_rate * warm * (0.55 + 0.45 * math.cos(math.pi * step / steps))


def train(
    model: Model,
    pools: Pools,
    anchor_states: Mapping[Row, Tensor],
    rollout: Callable[[int], list[Row]],
    *,
    whitenings: Mapping[str, Whitening],
    config: LearnerConfig,
    steps: int,
    seed: int,
    checkpoints: CheckpointFile | None = None,
) -> Iterator[Step]:
    """Train the model's adapter in place, yielding after every step.

    The model holds the parent's adapter. `anchor_states` are base's hidden states on the anchors,
    `whitenings` the coordinates that its layers' adapters move in.
    `rollout(step)` returns fresh rows from the student as it is now; it is called `config.fresh_rollouts`
    times, spread evenly, and its rows join the lessons'. With `checkpoints`, steps that an earlier call
    had done are not done again.

    Raises `FloatingPointError` at a loss that is not finite.
    """
    torch.manual_seed(seed)
    teacher = Teacher(model, dict(anchor_states), model.adapter_state(), config)
    optimiser = Optimiser(model.parameters(), whitenings, config)
    done = checkpoints.load() if checkpoints is not None else Checkpoint()
    if done.losses:
        optimiser.restore(done.tensors)
    refresh = {steps * (k + 1) // (config.fresh_rollouts + 1) for k in range(config.fresh_rollouts)}
    batches = pools.batches(config, seed)
    for step in range(steps):
        if step in refresh:
            if step not in done.rollouts:
                done.rollouts[step] = rollout(step)
            pools.lessons += done.rollouts[step]
        batch = next(batches)
        tokens = sum(row.tokens for row in batch)
        if step < len(done.losses):
            teacher(batch)  # as then: with which others a row is computed shows in its last bits
            yield Step(step + 1, steps, done.losses[step], tokens)
            continue
        loss = batch_gradient(model, batch, teacher, config)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss of step {step + 1} is {loss}: lower the learning rate")
        optimiser.step(learning_rate(step, steps, config))
        done.losses.append(loss)
        if checkpoints is not None and (step + 1) % config.checkpoint_steps == 0:
            done.tensors = optimiser.state()
            checkpoints.save(done)
        yield Step(step + 1, steps, loss, tokens)


def batch_gradient(model: Model, batch: Sequence[Row], teacher: Teacher, config: LearnerConfig) -> float:
    """A batch's loss, whose gradient is added up in as many passes as its tokens need."""
    loss = 0.0
    teacher(batch)
    for indices in packs([r.student + r.completion for r in batch], config.tokens_per_pass):
        part = [batch[i] for i in indices]
        part_loss = batch_loss(model, part, teacher(part), config) * (len(part) / len(batch))
        part_loss.backward()  # type: ignore[no-untyped-call]
        loss += part_loss.item()
    return loss


def batch_loss(
    model: Model, batch: Sequence[Row], teacher: Sequence[Tensor], config: LearnerConfig
) -> Tensor:
    """Mean over rows of the mean over a row's trained tokens of the objective, in nats; anchors count
    `config.anchor_weight` times."""
    states = model.hidden([r.student for r in batch], [r.completion for r in batch])
    wide = torch.promote_types(states[0].dtype, torch.float32)
    masks = [_mask(model, r, t, config).to(wide) for r, t in zip(batch, teacher, strict=True)]
    shares = [(config.anchor_weight if r.kind == "anchor" else 1.0) / len(batch) for r in batch]
    weights = [mask / mask.sum().clamp(min=1) * s for mask, s in zip(masks, shares, strict=True)]
    hard = [is_label(r, config) for r in batch]

    def joined(per_row: Sequence[Tensor], chosen: Sequence[bool]) -> Tensor:
        return torch.cat(list(compress(per_row, chosen))).to(model.device)

    total = torch.zeros((), dtype=wide, device=model.device)
    sharpness = [config.teacher_temperature if r.kind in TAUGHT else 1.0 for r in batch]
    temperatures = [torch.full_like(w, t) for w, t in zip(weights, sharpness, strict=True)]
    for divergence in (forward_kl, reverse_kl):
        soft = [not h and divergence_of(r, config) is divergence for r, h in zip(batch, hard, strict=True)]
        if any(soft):
            total = total + distil(
                divergence,
                joined(states, soft),
                joined(teacher, soft),
                model.head_VD,
                joined(weights, soft),
                joined(temperatures, soft),
            )
    if any(hard):
        told = joined([torch.tensor(r.completion) for r in batch], hard)
        total = total + cross_entropy(joined(states, hard), told, model.head_VD, joined(weights, hard))
    return total


def _mask(model: Model, row: Row, teacher: Tensor, config: LearnerConfig) -> Tensor:
    """Which of a row's tokens are trained: of a look-alike those that base would hardly say, where the lesson
    leaks; how the answer is phrased stays free. First tokens are skipped only where a correction in the
    teacher's context may show in them."""
    if row.kind == "lookalike":
        ids = torch.tensor(row.completion, device=teacher.device)
        return (token_logprobs(teacher, model.head_VD, ids) < -SURPRISING).cpu()
    skip = config.skip_tokens if row.kind in TAUGHT and not is_label(row, config) else 0
    return torch.tensor(loss_mask(len(row.completion), skip=skip))
