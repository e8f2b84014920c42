"""One run of a network: where, in which precision, and always without gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from medunet.errors import ConfigError

Network = Callable[[torch.Tensor], Any]
Progress = Callable[[int, int], None]
"""Called after each slab, window or tile with the number done and the number of all."""
Slab = tuple[int, int, torch.Tensor]
"""Rows `start` to `stop` of the scan along one axis, and their logits or scores ``(class, *spatial)``."""


class Image(Protocol):
    """A scan ``(channel, *spatial)``: a tensor, an array, or what is computed when a box of it is asked for."""

    @property
    def shape(self) -> Any: ...
    def __getitem__(self, key: Any) -> Any: ...


class ImageSlice:
    """One slice of a scan, as an array is seen: `(channel, *spatial)` with an axis less."""

    def __init__(self, view: Image, axis: int, index: int) -> None:
        self._view, self._axis, self._index = view, axis, index
        self.shape = tuple(n for a, n in enumerate(view.shape) if a != axis + 1)
        self.ndim = len(self.shape)
        self.dtype = getattr(view, "dtype", np.dtype(np.float32))

    def __getitem__(self, key: tuple[slice, ...]) -> NDArray[Any]:
        place = list(key)
        place.insert(self._axis + 1, slice(self._index, self._index + 1))
        return np.asarray(self._view[tuple(place)]).squeeze(self._axis + 1)


def as_array(image: Any) -> NDArray[Any]:
    """A tensor's memory as an array (MONAI's tensors lose their metadata); anything else as it is."""
    return image.detach().as_subclass(torch.Tensor).numpy() if isinstance(image, torch.Tensor) else image


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
