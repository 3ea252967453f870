"""The losses against closed forms, plain autograd and TRL's, in fp64."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from learner import loss
from learner.loss import (
    Divergence,
    cross_entropy,
    distil,
    divergence,
    forward_kl,
    loss_mask,
    reverse_kl,
    token_logprobs,
)

BOTH = pytest.mark.parametrize("kind", [forward_kl, reverse_kl])


def make(
    n: int = 11, d: int = 6, v: int = 29, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    student = torch.randn(n, d, generator=g, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(n, d, generator=g, dtype=torch.float64)
    head = torch.randn(v, d, generator=g, dtype=torch.float64)
    weights = torch.rand(n, generator=g, dtype=torch.float64)
    temperature = 0.5 + torch.rand(n, generator=g, dtype=torch.float64)
    return student, teacher, head, weights, temperature


def plain(
    kind: Divergence, student: Tensor, teacher: Tensor, head: Tensor, weights: Tensor, temperature: Tensor
) -> Tensor:
    """The definitions, left to autograd."""
    log_s = (student @ head.T).log_softmax(-1)
    log_t = (teacher @ head.T / temperature[:, None]).log_softmax(-1)
    first, second = (log_t, log_s) if kind is forward_kl else (log_s, log_t)
    return (weights * (first.exp() * (first - second)).sum(-1)).sum()


@BOTH
def test_value_and_gradient_are_those_of_the_definition(kind: Divergence) -> None:
    student, *rest = make()
    expected = plain(kind, student, *rest)
    (expected_grad,) = torch.autograd.grad(expected, student)
    actual = distil(kind, student, *rest)
    (actual_grad,) = torch.autograd.grad(actual, student)
    assert torch.allclose(actual, expected, rtol=0, atol=1e-12)
    assert torch.allclose(actual_grad, expected_grad, rtol=0, atol=1e-12)


@BOTH
def test_the_slope_is_the_closed_form(kind: Divergence) -> None:
    g = torch.Generator().manual_seed(1)
    logits = torch.randn(5, 29, generator=g, dtype=torch.float64, requires_grad=True)
    log_s, log_t = (
        logits.log_softmax(-1),
        torch.randn(5, 29, generator=g, dtype=torch.float64).log_softmax(-1),
    )
    value, slope = kind(log_s, log_t)
    (grad,) = torch.autograd.grad(value.sum(), logits)
    assert torch.allclose(grad, slope, rtol=0, atol=1e-12)


def test_cross_entropy_is_torch_s() -> None:
    student, _, head, weights, _ = make()
    ids = torch.arange(len(student)) * 2
    per_token = torch.nn.functional.cross_entropy(student @ head.T, ids, reduction="none")
    (expected,) = torch.autograd.grad((weights * per_token).sum(), student)
    actual = cross_entropy(student, ids, head, weights)
    (grad,) = torch.autograd.grad(actual, student)
    assert torch.allclose(actual, (weights * per_token).sum(), rtol=0, atol=1e-12)
    assert torch.allclose(grad, expected, rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore")
def test_values_and_gradients_are_those_of_trl(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL's loss utilities of its SDFT trainer, alpha 0 and 1, on one batch in fp32."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.sdft import loss_utils

    student, teacher, head, _, _ = (t.detach().float() for t in make(n=40, d=24, v=301))
    student.requires_grad_()
    ones = torch.ones(len(student))
    for kind, alpha in ((forward_kl, 0.0), (reverse_kl, 1.0)):
        theirs = loss_utils.compute_full_logit_self_distillation_loss(
            student @ head.T, teacher @ head.T, distillation_alpha=alpha
        ).sum()
        ours = distil(kind, student, teacher, head, ones, ones)
        (their_grad,), (our_grad,) = (torch.autograd.grad(one, student) for one in (theirs, ours))
        assert torch.allclose(ours, theirs, rtol=1e-6)
        assert torch.allclose(our_grad, their_grad, rtol=1e-4, atol=1e-5)


def losses(student: Tensor, rest: list[Tensor]) -> list[Callable[[], Tensor]]:
    teacher, head, weights, temperature = rest
    ids = torch.arange(len(student))
    return [
        lambda: distil(forward_kl, student, teacher, head, weights, temperature),
        lambda: distil(reverse_kl, student, teacher, head, weights, temperature),
        lambda: cross_entropy(student, ids, head, weights),
    ]


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    student, *rest = make()
    for one in losses(student, rest):
        monkeypatch.setattr(loss, "CHUNK", 256)
        (whole,) = torch.autograd.grad(one(), student)
        monkeypatch.setattr(loss, "CHUNK", chunk)
        (parts,) = torch.autograd.grad(one(), student)
        assert torch.allclose(whole, parts, rtol=0, atol=1e-12)


@BOTH
def test_equal_states_have_no_loss_and_no_gradient(kind: Divergence) -> None:
    student, _, head, weights, _ = make()
    same = distil(kind, student, student.detach(), head, weights, torch.ones_like(weights))
    (grad,) = torch.autograd.grad(same, student)
    assert abs(same.item()) < 1e-12
    assert grad.abs().max() < 1e-12


def test_a_rare_token_that_the_teacher_promotes_rises_at_full_strength_by_forward_kl_alone() -> None:
    """A token of student rank ~2500 (what a correction is): reverse KL would hardly see it."""
    v, rare = 4096, 2500
    head = torch.eye(v, dtype=torch.float64)
    student = torch.linspace(20.0, -20.0, v, dtype=torch.float64)[None].clone().requires_grad_()
    teacher = student.detach().clone()
    teacher[0, rare] = 40.0
    one = torch.ones(1, dtype=torch.float64)
    (forward,) = torch.autograd.grad(distil(forward_kl, student, teacher, head, one, one), student)
    (reverse,) = torch.autograd.grad(distil(reverse_kl, student, teacher, head, one, one), student)
    wanted = student.detach().softmax(-1) - teacher.softmax(-1)
    assert torch.nn.functional.cosine_similarity(forward, wanted) > 0.999
    assert forward[0, rare] < -0.99
    assert abs(reverse[0, rare]) < 1e-3


def test_sampled_reverse_kl_has_the_gradient_of_the_closed_form_in_the_mean() -> None:
    """The estimator of policy-gradient methods, `(log p_S - log p_T)(y) * grad log p_S(y)`, y from p_S."""
    g = torch.Generator().manual_seed(2)
    logits = torch.randn(1, 12, generator=g, dtype=torch.float64)
    log_t = torch.randn(1, 12, generator=g, dtype=torch.float64).log_softmax(-1)
    log_s = logits.log_softmax(-1)
    _, exact = reverse_kl(log_s, log_t)
    drawn = torch.multinomial(log_s[0].exp(), 400_000, replacement=True, generator=g)
    advantage = (log_s - log_t)[0][drawn]
    score = torch.nn.functional.one_hot(drawn, 12).double() - log_s[0].exp()
    estimate = (advantage[:, None] * score).mean(0)
    assert (estimate - exact[0]).norm() / exact.norm() < 0.01


def test_a_position_without_weight_does_not_matter() -> None:
    student, teacher, head, weights, temperature = make()
    weights[4] = 0.0
    before = distil(forward_kl, student, teacher, head, weights, temperature)
    teacher[4] += 100.0
    assert torch.equal(before, distil(forward_kl, student, teacher, head, weights, temperature))


def test_a_trainable_head_is_refused() -> None:
    student, teacher, head, weights, temperature = make()
    with pytest.raises(ValueError, match="frozen"):
        distil(forward_kl, student, teacher, head.requires_grad_(), weights, temperature)


def test_divergence_and_logprobs_are_those_of_the_definition() -> None:
    student, teacher, head, _, _ = make()
    ones = torch.ones(len(student), dtype=torch.float64)
    per_token = divergence(teacher, student.detach(), head)
    assert torch.allclose(per_token.sum(), plain(forward_kl, student.detach(), teacher, head, ones, ones))
    ids = torch.arange(len(student))
    expected = (student.detach() @ head.T).log_softmax(-1)[ids, ids]
    assert torch.allclose(token_logprobs(student.detach(), head, ids), expected)


def test_only_long_completions_lose_their_first_tokens() -> None:
    assert loss_mask(5, skip=3) == [True] * 5
    assert loss_mask(40, skip=3) == [False] * 3 + [True] * 37


PEAK = """
import resource, sys, torch
from learner.loss import distil, forward_kl
torch.set_num_threads(1)
n, d, v = int(sys.argv[1]), 64, 49152
head = torch.randn(v, d, dtype=torch.bfloat16)
student = torch.randn(n, d, dtype=torch.bfloat16, requires_grad=True)
teacher = torch.randn(n, d, dtype=torch.bfloat16)
distil(forward_kl, student[:1], teacher[:1], head, torch.ones(1), torch.ones(1)).backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
distil(forward_kl, student, teacher, head, torch.ones(n), torch.ones(n)).backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_peak_memory_does_not_grow_with_the_sequence() -> None:
    """512 against 4096 positions, each in a process of its own: eight times the logits would be 1.4 GiB."""
    short, long = (
        int(subprocess.run([sys.executable, "-c", PEAK, n], check=True, capture_output=True).stdout)
        for n in ("512", "4096")
    )
    assert long < 1.1 * short + 4096
