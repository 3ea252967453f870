"""AdamW on an adapter, with the steps of A in whitened coordinates (`learner.whitening`)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from learner.config import LearnerConfig
from learner.whitening import Whitening

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class Optimiser:
    """Moves `parameters`, an adapter's weights by PEFT's names. Layers without a whitening are moved as they
    are."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        whitenings: Mapping[str, Whitening],
        config: LearnerConfig,
    ) -> None:
        for parameter in parameters.values():
            parameter.grad = None  # a round that broke off may have left one
        self._parameters = parameters
        self._whitenings = whitenings
        self._max_norm = config.max_grad_norm
        self._steps = {name: torch.zeros_like(p) for name, p in parameters.items()}
        """What AdamW moves: the step from where a parameter is, in its own coordinates."""
        self._adam = torch.optim.AdamW(self._steps.values(), betas=(0.9, 0.95), weight_decay=0.0)

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One step against the parameters' gradients, which are used up."""
        for name, parameter in self._parameters.items():
            if parameter.grad is None:
                raise ValueError(f"{name} has no gradient")
            self._steps[name].grad = self._whitened(name, parameter.grad)
            self._steps[name].zero_()
            parameter.grad = None
        torch.nn.utils.clip_grad_norm_(self._steps.values(), self._max_norm)
        for group in self._adam.param_groups:
            group["lr"] = rate
        self._adam.step()
        for name, parameter in self._parameters.items():
            parameter.add_(self._whitened(name, self._steps[name]))

    def _whitened(self, name: str, rows: Tensor) -> Tensor:
        layer, is_a, _ = name.partition(".lora_A.")
        whitening = self._whitenings.get(layer) if is_a else None
        return whitening(rows) if whitening else rows

    def state(self) -> dict[str, Tensor]:
        """A copy of what a step changes, by the parameters' order."""
        tensors = {}
        for index, (name, parameter) in enumerate(self._parameters.items()):
            moments = self._adam.state[self._steps[name]]
            for key, tensor in {"weight": parameter, **{m: moments[m] for m in _MOMENTS}}.items():
                tensors[f"{index}.{key}"] = tensor.detach().cpu().clone()
        return tensors

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `state` returned."""
        for index, (name, parameter) in enumerate(self._parameters.items()):
            parameter.copy_(tensors[f"{index}.weight"])
            self._adam.state[self._steps[name]] = {
                "step": tensors[f"{index}.step"].clone(),
                **{m: tensors[f"{index}.{m}"].to(parameter.device, copy=True) for m in _MOMENTS[:2]},
            }
