"""Coordinates in which the inputs that a layer usually sees are white.

A LoRA layer adds B A x to what base answers. What A learns along directions that usual inputs x are full of
changes every answer (drift), and what it learns along those that they hardly have changes the lesson's. So
steps of A are taken in whitened coordinates (`learner.optimiser`):

    C = E[x xᵀ] over base's anchors      W = s (C + ridge · tr C / D)^(-1/2)      A = Ã W,  Ã is what moves

s keeps the mean square of inputs. A step along the gradient of Ã moves A along its own gradient times W²,
as in K-FAC's input factor (Martens & Grosse, arXiv 1503.05671) and in ROME's C⁻¹ k, by which a fact is
written where other inputs do not read it (Meng et al., arXiv 2202.05262, section 3.1).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from learner.model import Model
from learner.rows import Row

RIDGE = 0.1
LEADING = 128
"""Directions whose weight is known; that of the others is taken as equal."""
_TOKENS = 2048
"""Inputs that are looked at, spread over all rows."""
_FIELDS = ("scale", "gain_K", "basis_DK")


@dataclass(frozen=True, slots=True)
class Whitening:
    """W = scale · I + basis · diag(gain) · basisᵀ, symmetric, for one layer's inputs."""

    scale: Tensor
    """Scalar."""
    gain_K: Tensor
    basis_DK: Tensor

    def __call__(self, rows_RD: Tensor) -> Tensor:
        """rows · W."""
        along_RK = (rows_RD @ self.basis_DK) * self.gain_K
        return rows_RD * self.scale + along_RK @ self.basis_DK.T


def whitening_of(inputs_ND: Tensor) -> Whitening:
    """From N inputs of a layer. The same inputs always give the same."""
    count, width = inputs_ND.shape
    inputs_ND = inputs_ND.float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # a randomised method
        _, singular_K, basis_DK = torch.svd_lowrank(inputs_ND, q=min(LEADING, count, width))
    total = inputs_ND.square().sum() / count
    leading_K = singular_K.square() / count
    others = (total - leading_K.sum()).clamp(min=0) / max(width - len(leading_K), 1)
    ridge = RIDGE * total / width
    weights_K, weight = (leading_K + ridge) ** -0.5, (others + ridge) ** -0.5
    whitened = (leading_K * weights_K**2).sum() + others * weight**2 * (width - len(leading_K))
    size = (total / whitened).sqrt()
    return Whitening(size * weight, size * (weights_K - weight), basis_DK.contiguous())


def whitenings_of(model: Model, rows: Sequence[Row]) -> dict[tuple[str, ...], Whitening]:
    """By the names of the layers that read the same: from what they do when base reads `rows`."""
    with model.base():
        inputs = model.layer_inputs([(*r.student, *r.completion) for r in rows], _TOKENS)
    return {names: whitening_of(inputs_ND) for names, inputs_ND in inputs.items()}


def save_whitenings(whitenings: Mapping[tuple[str, ...], Whitening], path: Path) -> None:
    tensors = {
        f"{' '.join(names)}|{field}": getattr(one, field).cpu()
        for names, one in whitenings.items()
        for field in _FIELDS
    }
    save_file(tensors, path)


def load_whitenings(path: Path, device: torch.device) -> dict[str, Whitening]:
    """What was saved, by each layer's name."""
    tensors = load_file(path, device=str(device))
    joined = dict.fromkeys(key.partition("|")[0] for key in tensors)
    return {
        name: one
        for names in joined
        for one in [Whitening(*(tensors[f"{names}|{field}"] for field in _FIELDS))]
        for name in names.split()
    }
