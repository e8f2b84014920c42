"""Muon: momentum whose matrices are made orthogonal before each step; AdamW for what is no matrix.

Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024), with steps of the size that Adam's have
(Liu et al., "Muon is scalable for LLM training", arXiv 2502.16982), so that Adam's learning rates hold. Torch has a
`torch.optim.Muon`, but for weights of two axes alone, and it computes in bfloat16, which many CPUs are slow at. A
kernel is a matrix here, too: a row for each first channel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

MOMENTUM = 0.95
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Jordan's iteration, which brings singular values from (0, 1] to 0.7 to 1.2 in five rounds."""
_ROUNDS = 5
_ADAM_SIZE = 0.2
"""Root mean square of Adam's steps, in learning rates, as Liu et al. measured it."""


class Muon(torch.optim.Optimizer):
    """One optimiser with groups of both kinds.

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


def muon_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The groups of a network: hidden layers' kernels and matrices by Muon; first and last layer, norms, biases not.

    Jordan et al. leave the ends of a network to Adam, where the axes mean channels of a picture and classes.
    """
    trainable = [weight for weight in network.parameters() if weight.requires_grad]
    matrices = [weight for weight in trainable if weight.ndim > 1]
    hidden, ends = matrices[1:-1], [*matrices[:1], *matrices[1:][-1:]]
    others = [weight for weight in trainable if weight.ndim <= 1]
    groups = [
        {"params": hidden, "weight_decay": weight_decay, "orthogonal": True},
        {"params": ends, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
