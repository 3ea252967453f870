"""Divergences of a student from its teacher over the whole vocabulary, through a frozen language-model head.

    forward KL      D_t = sum_v p_T [log p_T - log p_S]     dD_t/dlogits = p_S - p_T
    reverse KL      D_t = sum_v p_S [log p_S - log p_T]     dD_t/dlogits = p_S (log p_S - log p_T - D_t)
    cross entropy   D_t = -log p_S(y_t)                     dD_t/dlogits = p_S - [v = y_t]

The slopes are known in closed form, so logits live only for one chunk of positions at a time: memory does not
grow with the sequence. Forward KL is the loss that the published results of SDFT were trained with (arXiv
2601.19897, section 3, and the authors' code at alpha = 0); cross entropy is plain fine-tuning (SFT), for
comparison. All softmaxes are fp32.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

CHUNK = 256
"""Positions whose logits exist at once: 256 x 49k x 4 bytes = 48 MiB a matrix for SmolLM2."""

Divergence = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Log-probabilities of student and teacher, both `[C, V]`, to the value `[C]` at each position in nats and
its slope `[C, V]` with respect to the student's logits."""


def forward_kl(log_s_CV: Tensor, log_t_CV: Tensor) -> tuple[Tensor, Tensor]:
    """KL(teacher || student): a token that the teacher promotes from nowhere pulls at full strength."""
    p_t_CV = log_t_CV.exp()
    value_C = (p_t_CV * (log_t_CV - log_s_CV)).sum(-1)
    return value_C, log_s_CV.exp() - p_t_CV


def reverse_kl(log_s_CV: Tensor, log_t_CV: Tensor) -> tuple[Tensor, Tensor]:
    """KL(student || teacher): it hardly sees what the student would never say."""
    p_s_CV, ratio_CV = log_s_CV.exp(), log_s_CV - log_t_CV
    value_C = (p_s_CV * ratio_CV).sum(-1)
    return value_C, p_s_CV * (ratio_CV - value_C[:, None])


def distil(
    divergence: Divergence,
    student_ND: Tensor,
    teacher_ND: Tensor,
    head_VD: Tensor,
    weights_N: Tensor,
    temperature_N: Tensor,
) -> Tensor:
    """`sum_n weights[n] * divergence_n` in nats, differentiable in `student_ND` alone.

    Hidden states are those behind the final norm, of the positions that predict the N trained tokens;
    `temperature_N` sharpens the teacher (1 = as it is). Raises `ValueError` if `head_VD` requires grad: an
    adapter on the head would make the closed form wrong.
    """

    def rule(chunk: slice, log_s_CV: Tensor) -> tuple[Tensor, Tensor]:
        log_t_CV = (_logits(teacher_ND[chunk], head_VD) / temperature_N[chunk, None]).log_softmax(-1)
        return divergence(log_s_CV, log_t_CV)

    return _through_head(rule, student_ND, head_VD, weights_N)


def cross_entropy(student_ND: Tensor, ids_N: Tensor, head_VD: Tensor, weights_N: Tensor) -> Tensor:
    """`sum_n weights[n] * -log p_S(ids[n])` in nats, differentiable in `student_ND` alone."""

    def rule(chunk: slice, log_s_CV: Tensor) -> tuple[Tensor, Tensor]:
        told_C1 = ids_N[chunk, None]
        value_C = -log_s_CV.gather(-1, told_C1)[:, 0]
        slope_CV = log_s_CV.exp()
        return value_C, slope_CV.scatter_add_(-1, told_C1, -torch.ones_like(value_C)[:, None])

    return _through_head(rule, student_ND, head_VD, weights_N)


Rule = Callable[[slice, Tensor], tuple[Tensor, Tensor]]


class _ThroughHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student_ND: Tensor, head_VD: Tensor, weights_N: Tensor, rule: Rule) -> Tensor:
        total = torch.zeros((), dtype=weights_N.dtype, device=student_ND.device)
        grad_ND = torch.empty_like(student_ND)
        for chunk in _chunks(len(student_ND)):
            value_C, slope_CV = rule(chunk, _logits(student_ND[chunk], head_VD).log_softmax(-1))
            total += weights_N[chunk] @ value_C
            grad_ND[chunk] = slope_CV.mul_(weights_N[chunk, None]).to(head_VD.dtype) @ head_VD
        ctx.save_for_backward(grad_ND)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        (grad_ND,) = ctx.saved_tensors
        return grad_ND * grad_outputs[0].to(grad_ND.dtype), None, None, None


def _through_head(rule: Rule, student_ND: Tensor, head_VD: Tensor, weights_N: Tensor) -> Tensor:
    if head_VD.requires_grad:
        raise ValueError("the language-model head must be frozen")
    return _ThroughHead.apply(student_ND, head_VD, weights_N, rule)  # type: ignore[no-any-return, no-untyped-call]


@torch.no_grad()
def divergence(
    teacher_ND: Tensor, student_ND: Tensor, head_VD: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """`KL(teacher_n || student_n)` for each of N positions, full vocabulary, fp32, in nats; `temperature`
    sharpens the teacher, as in `distil`."""
    parts = []
    for chunk in _chunks(len(teacher_ND)):
        log_s_CV = _logits(student_ND[chunk], head_VD).log_softmax(-1)
        log_t_CV = (_logits(teacher_ND[chunk], head_VD) / temperature).log_softmax(-1)
        parts.append(forward_kl(log_s_CV, log_t_CV)[0])
    return torch.cat(parts)


@torch.no_grad()
def token_logprobs(hidden_ND: Tensor, head_VD: Tensor, ids_N: Tensor) -> Tensor:
    """Log-probability of each of N tokens under the hidden state that predicts it, fp32."""
    parts = []
    for chunk in _chunks(len(hidden_ND)):
        log_p_CV = _logits(hidden_ND[chunk], head_VD).log_softmax(-1)
        parts.append(log_p_CV.gather(-1, ids_N[chunk, None])[:, 0])
    return torch.cat(parts)


def _logits(hidden_CD: Tensor, head_VD: Tensor) -> Tensor:
    """At least fp32: a softmax in bf16 loses the rare tokens that corrections promote."""
    logits_CV = hidden_CD @ head_VD.T
    return logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32))


def _chunks(length: int) -> Iterator[slice]:
    return (slice(first, first + CHUNK) for first in range(0, length, CHUNK))


def loss_mask(length: int, *, skip: int, short: int = 32) -> list[bool]:
    """Which of a completion's tokens are trained, EOS included.

    The first `skip` are left out of long completions, where they tend to carry phrases about the teacher's
    context ("Based on the example ..."); of a completion shorter than `short` every token is signal.
    """
    start = skip if length >= short else 0
    return [position >= start for position in range(length)]
