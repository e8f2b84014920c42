"""Optimisers: Muon, AdamW, Adam and SGD, each with a rate of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from medunet.errors import ConfigError

# Highest rates. Muon's was measured on planned networks (`benchmarks/README.md`, "What short trainings gain"), as was
# Adam's; SGD's is nnU-Net's.
_RATES = {"muon": 6e-3, "adamw": 2e-3, "adam": 2e-3, "sgd": 1e-2}
MOMENTUM = 0.95
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Jordan's iteration, which brings singular values from (0, 1] to 0.7 to 1.2 in five rounds."""
_ROUNDS = 5
_ADAM_SIZE = 0.2
"""Root mean square of Adam's steps, in learning rates, as Liu et al. measured it."""


@dataclass(frozen=True)
class OptimiserSettings:
    """Kind and settings of the optimiser.

    Attributes:
        kind: `muon` (for hidden layers' kernels, with `adamw` for all else), `adamw`, `adam` or `sgd` (Nesterov).
        rate: highest learning rate; None takes the kind's own: 0.006 for `muon`, 0.002 for `adamw` and `adam`, 0.01 for
            `sgd`.
        weight_decay: for weights of more than one axis; biases and norms' scales are left alone.
        momentum: of `sgd`; that of `muon` is 0.95.
        betas: of `adam` and `adamw`.

    Raises:
        ConfigError: a number is out of its range.
    """

    kind: Literal["muon", "adamw", "adam", "sgd"] = "muon"
    rate: float | None = None
    weight_decay: float = 1e-2
    momentum: float = 0.99
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        if self.kind not in _RATES:
            raise ConfigError(f"optimiser.kind {self.kind!r} is unknown; choose one of {', '.join(_RATES)}")
        if not 0 < self.highest_rate < math.inf or not 0 <= self.weight_decay < math.inf:
            raise ConfigError(
                f"optimiser.rate must be above 0 and optimiser.weight_decay not below; "
                f"found {self.highest_rate} and {self.weight_decay}"
            )
        if not all(0 <= share < 1 for share in (self.momentum, *self.betas)):
            raise ConfigError(
                f"optimiser.momentum and optimiser.betas lie from 0 to below 1; found {self.momentum} and {self.betas}"
            )

    @property
    def highest_rate(self) -> float:
        """The learning rate at the top of the schedule."""
        return _RATES[self.kind] if self.rate is None else self.rate


def make_optimiser(settings: OptimiserSettings, network: nn.Module) -> torch.optim.Optimizer:
    """An optimiser of the network's trainable weights, on the device where they are now.

    Raises:
        ValueError: the network has no trainable weight.
    """
    groups = _groups(network, settings.weight_decay, settings.kind == "muon")
    if not groups:
        raise ValueError("the network has no trainable weight")
    if settings.kind == "muon":
        return Muon(groups, settings.highest_rate, settings.betas)
    # The fused kernels update all weights in one call; other devices than these have none.
    fused = all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])
    if settings.kind == "sgd":
        momentum = settings.momentum
        return torch.optim.SGD(groups, settings.highest_rate, momentum, nesterov=momentum > 0, fused=fused)
    kind = torch.optim.AdamW if settings.kind == "adamw" else torch.optim.Adam
    return kind(groups, settings.highest_rate, betas=settings.betas, fused=fused)


def _groups(network: nn.Module, weight_decay: float, muon: bool) -> list[dict[str, Any]]:
    """The groups of a network's trainable weights: norms and biases do not decay.

    With Muon, hidden layers' kernels and matrices are a group of their own. Jordan et al. leave the ends of a network
    to Adam, where the axes mean channels of a picture and classes.
    """
    trainable = [weight for weight in network.parameters() if weight.requires_grad]
    decayed = [weight for weight in trainable if weight.ndim > 1]
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": weight_decay}]
    if muon:
        groups.insert(0, {"params": decayed[1:-1], "weight_decay": weight_decay, "orthogonal": True})
        groups[1]["params"] = [*decayed[:1], *decayed[1:][-1:]]
    groups.append({"params": [weight for weight in trainable if weight.ndim <= 1], "weight_decay": 0.0})
    return [group for group in groups if group["params"]]


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are made orthogonal before each step; AdamW for what is no matrix.

    Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024), with steps of the size that Adam's
    have (Liu et al., "Muon is scalable for LLM training", arXiv 2502.16982), so that Adam's learning rates hold. Torch
    has a `torch.optim.Muon`, but for weights of two axes alone, and it computes in bfloat16, which many CPUs are slow
    at. A kernel is a matrix here, too: a row for each first channel.

    Args:
        groups: as torch's optimisers take them; those with `orthogonal: True` hold weights of two axes or more and go
            by Muon, the others by AdamW.
        rate: learning rate of all groups.
        betas: of AdamW.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], rate: float, betas: tuple[float, float]) -> None:
        defaults = {"lr": rate, "betas": betas, "eps": 1e-8, "weight_decay": 0.0, "orthogonal": False}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "no search along a line"
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if group["orthogonal"]:
                for weight in weights:
                    self._move_matrix(weight, group)
            elif weights:
                self._move_by_adamw(weights, group)

    def _move_matrix(self, weight: nn.Parameter, group: dict[str, Any]) -> None:
        assert weight.grad is not None
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        momentum: Tensor = state["momentum"].lerp_(weight.grad, 1 - MOMENTUM)
        matrix = torch.lerp(weight.grad, momentum, MOMENTUM).reshape(len(weight), -1)
        size = _ADAM_SIZE * math.sqrt(max(matrix.shape))
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(orthogonal(matrix).reshape(weight.shape), alpha=-group["lr"] * size)

    def _move_by_adamw(self, weights: list[nn.Parameter], group: dict[str, Any]) -> None:
        for weight in weights:
            state = self.state[weight]
            if not state:
                state["step"] = torch.zeros((), device=weight.device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        states = [self.state[weight] for weight in weights]
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        fused = all(weight.device.type in ("cpu", "cuda") for weight in weights)  # elsewhere there are no such kernels
        adamw(
            list(weights), gradients, [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states], [],
            [s["step"] for s in states], fused=fused, amsgrad=False, beta1=group["betas"][0], beta2=group["betas"][1],
            lr=group["lr"], weight_decay=group["weight_decay"], eps=group["eps"], maximize=False,
        )  # fmt: skip


def orthogonal(matrix: Tensor) -> Tensor:
    """Nearly the orthogonal matrix nearest to this one: the same singular vectors, all values about 1 (0.7 to 1.2).

    Args:
        matrix: ``(rows, columns)``. A matrix of zeros stays one.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    near = matrix.T if tall else matrix
    near = near / (near.norm() + 1e-7)
    first, third, fifth = _COEFFICIENTS
    for _ in range(_ROUNDS):
        gram = near @ near.T
        near = torch.addmm(near, torch.addmm(gram, gram, gram, beta=third, alpha=fifth), near, beta=first)
    return near.T if tall else near
