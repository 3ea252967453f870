"""Coordinates in which a layer's inputs are white: against the closed form, and where they come from."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from learner import whitening
from learner.model import Model
from learner.rows import Row
from learner.whitening import RIDGE, Whitening, load_whitenings, save_whitenings, whitening_of, whitenings_of

WIDTH = 24
ROWS = [Row("anchor", (1, 5, 6), (1, 5, 6), (7, 8)), Row("anchor", (1, 9), (1, 9), tuple(range(20, 60)))]


def inputs(count: int = 400) -> Tensor:
    """Some directions have a thousand times the weight of others, and the mean is far from 0."""
    g = torch.Generator().manual_seed(1)
    mixed = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=g))[0]
    spread = torch.randn(count, WIDTH, generator=g) * torch.logspace(0, -1.5, WIDTH)
    turned: Tensor = (spread + 0.7) @ mixed
    return turned


def matrix(one: Whitening) -> Tensor:
    return one(torch.eye(WIDTH))


def test_it_is_the_inverse_root_of_the_inputs_covariance_with_a_ridge() -> None:
    x = inputs()
    covariance = (x.T @ x / len(x)).double()
    ridge = RIDGE * covariance.trace() / WIDTH
    values, vectors = torch.linalg.eigh(covariance + ridge * torch.eye(WIDTH))
    root = vectors @ torch.diag(values**-0.5) @ vectors.T
    root *= (covariance.trace() / (root @ covariance @ root).trace()).sqrt()
    assert torch.allclose(matrix(whitening_of(x)), root.float(), rtol=1e-3, atol=1e-3)


def test_inputs_keep_their_mean_square_and_lose_their_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whitening, "RIDGE", 1e-4)
    x = inputs()
    white = whitening_of(x)(x)
    assert white.square().sum().item() == pytest.approx(x.square().sum().item(), rel=1e-3)
    spread = torch.linalg.eigvalsh(white.T @ white)
    before = torch.linalg.eigvalsh(x.T @ x)
    assert before[-1] / before[0] > 1000
    assert spread[-1] / spread[0] < 1.2


def test_directions_beyond_the_leading_ones_count_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whitening, "LEADING", 6)
    one = whitening_of(inputs())
    weights = torch.linalg.eigvalsh(matrix(one))
    assert torch.allclose(weights[6:], one.scale.expand(WIDTH - 6), rtol=1e-3)
    assert (weights[:6] < one.scale).all()


def test_a_layer_is_measured_where_base_reads_and_layers_that_read_the_same_share_it(tiny: Model) -> None:
    found = whitenings_of(tiny, ROWS)
    names = [name for group in found for name in group]
    assert sorted(names) == sorted({name.partition(".lora_")[0] for name in tiny.parameters()})
    assert {len(group) for group in found} == {1, 2, 3}  # o and down; gate and up; q, k and v
    seen = tiny.layer_inputs([(*r.student, *r.completion) for r in ROWS], most=10**9)
    assert {len(x) for x in seen.values()} == {47}
    fewer = tiny.layer_inputs([(*r.student, *r.completion) for r in ROWS], most=12)
    assert {len(x) for x in fewer.values()} == {16}
    assert all(torch.equal(fewer[group], seen[group][::3]) for group in seen)


def test_what_is_kept_is_what_was_found(tiny: Model, tmp_path: Path) -> None:
    found = whitenings_of(tiny, ROWS)
    save_whitenings(found, tmp_path / "whitening.safetensors")
    kept = load_whitenings(tmp_path / "whitening.safetensors", tiny.device)
    assert set(kept) == {name for group in found for name in group}
    for group, one in found.items():
        for name in group:
            assert torch.equal(kept[name].basis_DK, one.basis_DK)
            assert torch.equal(kept[name].gain_K, one.gain_K)
            assert torch.equal(kept[name].scale, one.scale)
