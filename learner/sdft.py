"""Self-distillation fine-tuning of one adapter: the steps of a round.

    for each step:  rows  = lessons' rows + anchor rows
                    loss  = mean over rows of the mean over tokens of KL(teacher || student)
                    AdamW on the adapter alone

The teacher is the frozen base with the correction in its context, sharpened; for anchors it is the base as it
is. Its hidden states are kept per row, so its forward pass is paid once a round. Everything here is a
function of the arguments: on one CPU with one thread count the same arguments give the same bits.
"""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from learner.config import LearnerConfig
from learner.loss import forward_kl, loss_mask
from learner.model import Model
from learner.plan import Step
from learner.rows import Row, endless


@dataclass
class TeacherStates:
    """The teacher's hidden states by row, computed in batches on first need and kept."""

    model: Model
    kept: dict[Row, Tensor]
    batch: int = 8

    def __call__(self, rows: Sequence[Row]) -> list[Tensor]:
        missing = sorted(dict.fromkeys(r for r in rows if r not in self.kept), key=lambda r: len(r.teacher))
        with torch.no_grad(), self.model.base():
            for first in range(0, len(missing), self.batch):
                part = missing[first : first + self.batch]
                states = self.model.hidden([r.teacher for r in part], [r.completion for r in part])
                self.kept.update((r, s.clone()) for r, s in zip(part, states, strict=True))
        return [self.kept[r] for r in rows]


def learning_rate(step: int, steps: int, config: LearnerConfig) -> float:
    """Linear warm-up, then a cosine down to a tenth. `step` counts from 0."""
    warm = min(1.0, (step + 1) / (config.warmup_steps + 1))
    return config.learning_rate * warm * (0.55 + 0.45 * math.cos(math.pi * step / steps))


def train(
    model: Model,
    rows: Sequence[Row],
    anchors: Mapping[Row, Tensor],
    rollout: Callable[[int], list[Row]],
    *,
    config: LearnerConfig,
    steps: int,
    seed: int,
) -> Iterator[Step]:
    """Train the model's adapter in place, yielding after every step.

    `anchors` come with base's hidden states. `rollout(step)` returns fresh rows from the student as it is
    now; it is called `config.fresh_rollouts` times, spread evenly, and its rows stand beside `rows` until
    the next call.
    """
    torch.manual_seed(seed)
    teacher = TeacherStates(model, dict(anchors))
    teacher(rows)
    optimiser = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.0)
    fresh: list[Row] = []
    rng = random.Random(seed)  # noqa: S311 - reproducible order, not secrecy
    lessons = endless(lambda: [*rows, *fresh], rng)
    general = endless(lambda: list(anchors), rng)
    refresh = {steps * (k + 1) // (config.fresh_rollouts + 1) for k in range(config.fresh_rollouts)}
    held = min(config.anchors_per_step, config.rows_per_step - 1) if anchors else 0
    for step in range(steps):
        if step in refresh:
            fresh = rollout(step)
        batch = [next(lessons) for _ in range(config.rows_per_step - held)]
        batch += [next(general) for _ in range(held)]
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, steps, config)
        loss = batch_loss(model, batch, teacher(batch), config)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimiser.step()
        yield Step(step + 1, steps, loss.item())


def batch_loss(
    model: Model, batch: Sequence[Row], teacher: Sequence[Tensor], config: LearnerConfig
) -> Tensor:
    """Mean over rows of the mean over a row's trained tokens of KL(teacher || student), in nats.

    Rows go through the model by length and in halves, so that short ones are not padded to the longest.
    """
    order = sorted(range(len(batch)), key=lambda b: len(batch[b].student) + len(batch[b].completion))
    student, target, weights, temperatures = [], [], [], []
    for part in (order[: len(order) // 2], order[len(order) // 2 :]):
        rows = [batch[b] for b in part]
        student += model.hidden([r.student for r in rows], [r.completion for r in rows])
        for b, row in zip(part, rows, strict=True):
            mask = torch.tensor(loss_mask(len(row.completion), skip=config.skip_tokens), dtype=torch.float32)
            sharpness = 1.0 if row.kind == "anchor" else config.teacher_temperature
            target.append(teacher[b])
            weights.append(mask / mask.sum() / len(batch))
            temperatures.append(torch.full_like(mask, sharpness))
    return forward_kl(
        torch.cat(student),
        torch.cat(target),
        model.head_VD,
        torch.cat(weights).to(model.device),
        torch.cat(temperatures).to(model.device),
    )
