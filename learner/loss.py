"""Forward KL from teacher to student over the whole vocabulary, through a frozen language-model head.

    D_t = sum_v p_T(v) [log p_T(v) - log p_S(v)],   p_T = softmax(W h_T / temperature),   p_S = softmax(W h_S)
    dD_t / dh_S = (p_S - p_T) W

The gradient is known in closed form, so logits live only for one chunk of positions at a time: memory does
not grow with the sequence. This is the loss that the published results of SDFT were trained with (arXiv
2601.19897, section 3, and the authors' code at alpha = 0); all softmaxes are fp32.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

CHUNK = 256
"""Positions whose logits exist at once: 256 x 49k x 4 bytes = 48 MiB a matrix for SmolLM2."""


class _ForwardKL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student_ND: Tensor,
        teacher_ND: Tensor,
        head_VD: Tensor,
        weights_N: Tensor,
        temperature_N: Tensor,
    ) -> Tensor:
        total = torch.zeros((), dtype=weights_N.dtype, device=student_ND.device)
        grad_ND = torch.empty_like(student_ND)
        for chunk in _chunks(len(student_ND)):
            log_s_CV = _wide(student_ND[chunk] @ head_VD.T).log_softmax(-1)
            log_t_CV = (_wide(teacher_ND[chunk] @ head_VD.T) / temperature_N[chunk, None]).log_softmax(-1)
            p_t_CV = log_t_CV.exp()
            total += weights_N[chunk] @ (p_t_CV * (log_t_CV - log_s_CV)).sum(-1)
            slope_CV = weights_N[chunk, None] * (log_s_CV.exp() - p_t_CV)
            grad_ND[chunk] = slope_CV.to(head_VD.dtype) @ head_VD
        ctx.save_for_backward(grad_ND)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None, None]:
        (grad_ND,) = ctx.saved_tensors
        return grad_ND * grad_outputs[0].to(grad_ND.dtype), None, None, None, None


def forward_kl(
    student_ND: Tensor, teacher_ND: Tensor, head_VD: Tensor, weights_N: Tensor, temperature_N: Tensor
) -> Tensor:
    """`sum_n weights[n] * KL(teacher_n || student_n)` in nats, differentiable in `student_ND` alone.

    Hidden states are those behind the final norm, of the positions that predict the N trained tokens;
    `temperature_N` sharpens the teacher (1 = as it is). `head_VD` must not require grad: an adapter on the
    head would make the closed form wrong.
    """
    if head_VD.requires_grad:
        raise ValueError("the language-model head must be frozen")
    return _ForwardKL.apply(student_ND, teacher_ND, head_VD, weights_N, temperature_N)  # type: ignore[no-any-return, no-untyped-call]


@torch.no_grad()
def divergence(teacher_ND: Tensor, student_ND: Tensor, head_VD: Tensor) -> Tensor:
    """`KL(teacher_n || student_n)` for each of N positions, T=1, full vocabulary, fp32, in nats."""
    parts = []
    for chunk in _chunks(len(teacher_ND)):
        log_t_CV = _wide(teacher_ND[chunk] @ head_VD.T).log_softmax(-1)
        log_s_CV = _wide(student_ND[chunk] @ head_VD.T).log_softmax(-1)
        parts.append((log_t_CV.exp() * (log_t_CV - log_s_CV)).sum(-1))
    return torch.cat(parts)


@torch.no_grad()
def token_logprobs(hidden_ND: Tensor, head_VD: Tensor, ids_N: Tensor) -> Tensor:
    """Log-probability of each of N tokens under the hidden state that predicts it, fp32."""
    parts = []
    for chunk in _chunks(len(hidden_ND)):
        log_p_CV = _wide(hidden_ND[chunk] @ head_VD.T).log_softmax(-1)
        parts.append(log_p_CV.gather(-1, ids_N[chunk, None])[:, 0])
    return torch.cat(parts)


def _wide(logits: Tensor) -> Tensor:
    """At least fp32: a softmax in bf16 loses the rare tokens that corrections promote."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _chunks(length: int) -> Iterator[slice]:
    return (slice(first, first + CHUNK) for first in range(0, length, CHUNK))


def loss_mask(length: int, *, skip: int, short: int = 32) -> list[bool]:
    """Which of a completion's tokens are trained, EOS included.

    The first `skip` are left out of long completions, where they tend to carry phrases about the teacher's
    context ("Based on the example ..."); of a completion shorter than `short` every token is signal.
    """
    start = skip if length >= short else 0
    return [position >= start for position in range(length)]
