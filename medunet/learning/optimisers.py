"""Optimisers: Muon, AdamW, Adam and SGD, each with a rate of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from medunet.errors import ConfigError
from medunet.learning.muon import Muon, muon_groups

# Highest rates. Muon's was measured on planned networks (`benchmarks/README.md`, "What short trainings gain"), as was
# Adam's; SGD's is nnU-Net's.
_RATES = {"muon": 6e-3, "adamw": 2e-3, "adam": 2e-3, "sgd": 1e-2}


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
    if settings.kind == "muon":
        return Muon(_trained(muon_groups(network, settings.weight_decay)), settings.highest_rate, settings.betas)
    groups = _decay_groups(network, settings.weight_decay)
    # The fused kernels update all weights in one call; other devices than these have none.
    fused = all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])
    if settings.kind == "sgd":
        momentum = settings.momentum
        return torch.optim.SGD(groups, settings.highest_rate, momentum, nesterov=momentum > 0, fused=fused)
    kind = torch.optim.AdamW if settings.kind == "adamw" else torch.optim.Adam
    return kind(groups, settings.highest_rate, betas=settings.betas, fused=fused)


def _trained(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if not groups:
        raise ValueError("the network has no trainable weight")
    return groups


def _decay_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in trainable if parameter.ndim > 1]
    spared = [parameter for parameter in trainable if parameter.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    return _trained([group for group in groups if group["params"]])
