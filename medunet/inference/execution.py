"""One run of a network: where, in which precision, and always without gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from medunet.errors import ConfigError

Network = Callable[[torch.Tensor], Any]
Progress = Callable[[int, int], None]
"""Called after each window or tile with the number done and the number of all."""


@dataclass(frozen=True)
class Execution:
    """Where and how a network runs.

    Attributes:
        device: the network's; images and results stay in the host's memory.
        dtype: float32, or the lower precision (bfloat16, float16) of autocast.
    """

    device: str = "cpu"
    dtype: torch.dtype = torch.float32


def run_network(network: Network, batch: torch.Tensor, execution: Execution) -> torch.Tensor:
    """Logits of a batch, in float32 on the host (float64 for a float64 batch).

    Args:
        network: takes ``(batch, channel, *spatial)``, gives logits ``(batch, class, *spatial)``; in evaluation mode.
        batch: ``(batch, channel, *spatial)``; never changed.
        execution: where and how.

    Raises:
        ConfigError: the network is in training mode, or its answer is not one tensor.
    """
    if getattr(network, "training", False):
        raise ConfigError("the network is in training mode, with dropout and batch statistics; call network.eval()")
    lower = execution.dtype not in (torch.float32, torch.float64)
    device = torch.device(execution.device)
    # What is called float32 must be: on recent GPUs cuDNN would round to 10 bits (TF32) on its own.
    exact = torch.backends.cudnn.flags(enabled=True, benchmark=torch.backends.cudnn.benchmark, allow_tf32=lower)
    autocast = torch.autocast(device.type, dtype=execution.dtype if lower else None, enabled=lower)
    with torch.inference_mode(), autocast, exact:
        logits = network(batch.to(device))
    if not isinstance(logits, torch.Tensor):
        raise ConfigError(f"the network answered with a {type(logits).__name__}, expected one tensor of logits")
    return logits.to("cpu", torch.float64 if logits.dtype == torch.float64 else torch.float32)


def floating(image: torch.Tensor) -> torch.Tensor:
    """The image as a plain tensor (MONAI's lose their metadata) in float32, or in float64 if it is so already."""
    plain = image.as_subclass(torch.Tensor)
    return plain if plain.dtype in (torch.float32, torch.float64) else plain.to(torch.float32)
