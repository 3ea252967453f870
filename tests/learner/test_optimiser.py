"""AdamW in whitened coordinates: what it is equal to, and that it can be put down and taken up."""

import torch
from torch import Tensor, nn

from learner.config import LearnerConfig
from learner.optimiser import Optimiser
from learner.whitening import Whitening, whitening_of

CONFIG = LearnerConfig(max_grad_norm=0.5)
X, Y = (torch.randn(n, d, generator=torch.Generator().manual_seed(d)) for n, d in ((64, 12), (64, 8)))


def adapter() -> dict[str, nn.Parameter]:
    g = torch.Generator().manual_seed(0)
    shapes = {"layer.lora_A.default.weight": (4, 12), "layer.lora_B.default.weight": (8, 4)}
    return {name: nn.Parameter(torch.randn(shape, generator=g)) for name, shape in shapes.items()}


def loss(a: Tensor, b: Tensor) -> Tensor:
    return (X @ a.T @ b.T - Y).square().mean()


def whitened() -> Whitening:
    return whitening_of(X * torch.logspace(0, -1, 12))


def take(steps: int, optimiser: Optimiser, parameters: dict[str, nn.Parameter]) -> None:
    for _ in range(steps):
        loss(*parameters.values()).backward()  # type: ignore[no-untyped-call]
        optimiser.step(0.05)


def test_it_is_adamw_on_the_factor_that_whitened_inputs_see() -> None:
    """A = Ã W: the same losses and the same A as if Ã were the parameter."""
    parameters, w = adapter(), whitened()(torch.eye(12))
    start_a, b = (nn.Parameter(p.detach().clone()) for p in parameters.values())
    a_white = nn.Parameter(start_a.detach() @ torch.linalg.inv(w))
    adam = torch.optim.AdamW([a_white, b], lr=0.05, betas=(0.9, 0.95), weight_decay=0.0)
    for _ in range(12):
        adam.zero_grad()
        loss(a_white @ w, b).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_([a_white, b], CONFIG.max_grad_norm)
        adam.step()
    take(12, Optimiser(parameters, {"layer": whitened()}, CONFIG), parameters)
    found_a, found_b = parameters.values()
    assert torch.allclose(found_a, a_white @ w, atol=1e-4)
    assert torch.allclose(found_b, b, atol=1e-4)
    assert not torch.allclose(found_a, start_a, atol=0.1)


def test_a_layer_without_coordinates_is_moved_by_adamw_as_it_is() -> None:
    parameters, other = adapter(), adapter()
    adam = torch.optim.AdamW(other.values(), lr=0.05, betas=(0.9, 0.95), weight_decay=0.0)
    for _ in range(5):
        adam.zero_grad()
        loss(*other.values()).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(other.values(), CONFIG.max_grad_norm)
        adam.step()
    take(5, Optimiser(parameters, {"another": whitened()}, CONFIG), parameters)
    assert all(torch.allclose(p, other[name], atol=1e-6) for name, p in parameters.items())


def test_taken_up_from_its_state_it_goes_on_in_the_same_bits() -> None:
    whole, whitenings = adapter(), {"layer": whitened()}
    take(6, Optimiser(whole, whitenings, CONFIG), whole)
    first, second = adapter(), adapter()
    one, other = Optimiser(first, whitenings, CONFIG), Optimiser(second, whitenings, CONFIG)
    take(3, one, first)
    other.restore(one.state())
    take(3, other, second)
    assert all(torch.equal(second[name], p) for name, p in whole.items())
