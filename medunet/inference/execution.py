"""Execution of a network: device, precision, and always without gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from medunet.errors import ConfigError
from medunet.geometry.boxes import Box

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
    """A tensor's memory as an array (MONAI's tensors lose their metadata); anything else unchanged."""
    return image.detach().as_subclass(torch.Tensor).numpy() if isinstance(image, torch.Tensor) else image


@dataclass(frozen=True)
class Execution:
    """Device and precision of a network.

    Attributes:
        device: the network's; images and results stay in the host's memory.
        dtype: float32, or the lower precision (bfloat16, float16) of autocast.
    """

    device: str = "cpu"
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Passage:
    """One way of a scan through a network: where its rows begin, and how the network sees it.

    Attributes:
        axis: the spatial axis along which results come, row by row.
        mirror: spatial axes along which the network sees the scan mirrored; what comes out is turned back.
        region: the box of the scan that is asked for, complete along the axis; None for the whole scan. What it needs
            around it is read and computed as well.
        exchanged: two axes that have changed places in what the network sees; sizes that were chosen for the scan's
            own order change places with them.
    """

    axis: int = 0
    mirror: tuple[int, ...] = ()
    region: Box | None = None
    exchanged: tuple[int, int] | None = None

    def lengths(self, lengths: Sequence[int]) -> tuple[int, ...]:
        """One number per axis of the scan, in the network's order of axes."""
        order = list(lengths)
        if self.exchanged is not None:
            first, second = self.exchanged
            order[first], order[second] = order[second], order[first]
        return tuple(order)

    def check(self, dimensions: int) -> None:
        """Refuse axes that the scan has not.

        Raises:
            ConfigError: an axis is no spatial axis, or named twice.
        """
        if any(axis not in range(dimensions) for axis in (self.axis, *self.mirror)):
            raise ConfigError(
                f"cannot mirror axes {self.mirror} or go along axis {self.axis} of a scan with {dimensions} axes"
            )
        if len(set(self.mirror)) != len(self.mirror):
            raise ConfigError(f"cannot mirror axes {self.mirror}: one is named twice")


WHOLE = Passage()


class Runner:
    """A network with the place and precision in which it runs, for any number of scans.

    Args:
        network: see `run_network`.
        execution: where and how; float32 on the CPU by default.
    """

    def __init__(self, network: Any, execution: Execution | None = None) -> None:
        self.network, self.execution = network, execution or Execution()


@contextmanager
def computing(execution: Execution) -> Iterator[None]:
    """Without gradients; and what is called float32 is, where on recent GPUs cuDNN would round to 10 bits (TF32)."""
    lower = execution.dtype not in (torch.float32, torch.float64)
    cudnn = torch.backends.cudnn
    with torch.inference_mode(), cudnn.flags(enabled=True, benchmark=cudnn.benchmark, allow_tf32=lower):
        yield


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
    autocast = torch.autocast(device.type, dtype=execution.dtype if lower else None, enabled=lower)
    with computing(execution), autocast:
        logits = network(batch.to(device))
    if not isinstance(logits, torch.Tensor):
        raise ConfigError(f"the network answered with a {type(logits).__name__}, expected one tensor of logits")
    return logits.to("cpu", torch.float64 if logits.dtype == torch.float64 else torch.float32)


def floating(image: torch.Tensor) -> torch.Tensor:
    """The image as a plain tensor (MONAI's lose their metadata) in float32, or in float64 if it is so already."""
    plain = image.as_subclass(torch.Tensor)
    return plain if plain.dtype in (torch.float32, torch.float64) else plain.to(torch.float32)
