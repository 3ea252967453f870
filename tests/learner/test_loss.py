"""The loss against closed forms and plain autograd, in fp64."""

import pytest
import torch
from torch import Tensor

from learner import loss
from learner.loss import divergence, forward_kl, loss_mask, token_logprobs


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


def plain(student: Tensor, teacher: Tensor, head: Tensor, weights: Tensor, temperature: Tensor) -> Tensor:
    """The definition, left to autograd."""
    log_s = (student @ head.T).log_softmax(-1)
    p_t = (teacher @ head.T / temperature[:, None]).softmax(-1)
    return (weights * (p_t * (p_t.log() - log_s)).sum(-1)).sum()


def test_value_and_gradient_are_those_of_the_definition() -> None:
    student, *rest = make()
    expected = plain(student, *rest)
    (expected_grad,) = torch.autograd.grad(expected, student)
    actual = forward_kl(student, *rest)
    (actual_grad,) = torch.autograd.grad(actual, student)
    assert torch.allclose(actual, expected, rtol=0, atol=1e-12)
    assert torch.allclose(actual_grad, expected_grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    student, *rest = make()
    (whole,) = torch.autograd.grad(forward_kl(student, *rest), student)
    monkeypatch.setattr(loss, "CHUNK", chunk)
    (parts,) = torch.autograd.grad(forward_kl(student, *rest), student)
    assert torch.allclose(whole, parts, rtol=0, atol=1e-12)


def test_equal_states_have_no_loss_and_no_gradient() -> None:
    student, _, head, weights, _ = make()
    same = forward_kl(student, student.detach(), head, weights, torch.ones_like(weights))
    (grad,) = torch.autograd.grad(same, student)
    assert abs(same.item()) < 1e-12
    assert grad.abs().max() < 1e-12


def test_the_direction_is_teacher_to_student() -> None:
    """A token that the teacher promotes from nowhere must rise at full strength: reverse KL would not."""
    head = torch.eye(8, dtype=torch.float64)
    student = torch.zeros(1, 8, dtype=torch.float64)
    student[0, 0] = 20.0
    student.requires_grad_()
    teacher = torch.zeros(1, 8, dtype=torch.float64)
    teacher[0, 5] = 20.0
    one = torch.ones(1, dtype=torch.float64)
    (grad,) = torch.autograd.grad(forward_kl(student, teacher, head, one, one), student)
    assert grad[0, 5] < -0.99
    assert grad[0, 0] > 0.99


def test_a_position_without_weight_does_not_matter() -> None:
    student, teacher, head, weights, temperature = make()
    weights[4] = 0.0
    before = forward_kl(student, teacher, head, weights, temperature)
    teacher[4] += 100.0
    assert torch.equal(before, forward_kl(student, teacher, head, weights, temperature))


def test_a_trainable_head_is_refused() -> None:
    student, teacher, head, weights, temperature = make()
    with pytest.raises(ValueError, match="frozen"):
        forward_kl(student, teacher, head.requires_grad_(), weights, temperature)


def test_divergence_and_logprobs_are_those_of_the_definition() -> None:
    student, teacher, head, _, _ = make()
    ones = torch.ones(len(student), dtype=torch.float64)
    per_token = divergence(teacher, student.detach(), head)
    assert torch.allclose(per_token.sum(), plain(student.detach(), teacher, head, ones, ones))
    ids = torch.arange(len(student))
    expected = (student.detach() @ head.T).log_softmax(-1)[ids, ids]
    assert torch.allclose(token_logprobs(student.detach(), head, ids), expected)


def test_only_long_completions_lose_their_first_tokens() -> None:
    assert loss_mask(5, skip=3) == [True] * 5
    assert loss_mask(40, skip=3) == [False] * 3 + [True] * 37
