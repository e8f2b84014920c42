"""Synchronised batch norm: its statistics are those of the whole batch of several processes.

On GPUs this is PyTorch's SyncBatchNorm. It refuses tensors on a CPU, so there the same is computed here: sums over all
processes, the mean before the squares, as one process would find them but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Sum = Callable[[Tensor], Tensor]
"""Adds a tensor up over all processes, in a way that gradients go through."""


def synced_norms(network: nn.Module, total: Sum, device: torch.device) -> None:
    """Replace a network's batch norms within it; weights, running statistics and their names stay.

    Args:
        total: see `Sum`.
        device: where the network is.
    """
    for name, child in list(network.named_children()):
        if isinstance(child, nn.BatchNorm2d | nn.BatchNorm3d):
            on_gpu = device.type == "cuda"
            synced = nn.SyncBatchNorm.convert_sync_batchnorm(child) if on_gpu else SyncedBatchNorm(child, total)
            setattr(network, name, synced.train(child.training))
        else:
            synced_norms(child, total, device)


class SyncedBatchNorm(nn.Module):
    """Batch norm over the batches of all processes; in evaluation mode just like any other.

    Args:
        norm: whose weights and running statistics it takes over; these are the same tensors, not copies.
        total: see `Sum`; called equally often in each process.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, norm: nn.BatchNorm2d | nn.BatchNorm3d, total: Sum) -> None:
        super().__init__()
        assert norm.momentum is not None and norm.running_mean is not None, "with running statistics"
        self.weight, self.bias = norm.weight, norm.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(norm, name))
        self._eps, self._momentum, self._total = norm.eps, norm.momentum, total

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return nn.functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self._eps
            )
        exact = x.to(self.weight.dtype)  # float32 also where autocast computes in less
        axes, along = (0, *range(2, x.ndim)), (1, -1) + (1,) * (x.ndim - 2)
        count = exact.new_full((1,), x.numel() / x.shape[1])
        sums = self._total(torch.cat([exact.sum(axes), count]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = exact - mean.view(along)
        variance = self._total(centred.square().sum(axes)) / count
        self._remember(mean.detach(), variance.detach() * count / (count - 1))
        scale = torch.rsqrt(variance + self._eps) * self.weight
        return (centred * scale.view(along) + self.bias.view(along)).to(x.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        self.running_mean.lerp_(mean, self._momentum)
        self.running_var.lerp_(variance, self._momentum)
        self.num_batches_tracked.add_(1)
