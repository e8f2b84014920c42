"""Blended windows, for networks that cannot be exact and for networks of others: MONAI's sliding window."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from medunet.errors import ConfigError
from medunet.inference.execution import Execution, Network, Progress, floating, run_network


@dataclass(frozen=True)
class Windows:
    """How a scan is cut into windows.

    Attributes:
        size: spatial, one number per axis; the network must take it and keep it.
        overlap: share of a window that its neighbour covers too, along each axis.
        batch: windows per run of the network.

    Raises:
        ConfigError: a number is out of range.
    """

    size: tuple[int, ...]
    overlap: float = 0.5
    batch: int = 1

    def __post_init__(self) -> None:
        if min(self.size) < 1 or self.batch < 1:
            raise ConfigError(f"windows of {self.size}, {self.batch} at a time: expected numbers of at least 1")
        if not 0.0 <= self.overlap < 1.0:
            raise ConfigError(f"windows overlap by {self.overlap}, expected a share from 0 to below 1")

    def count(self, shape: Sequence[int]) -> int:
        """How many windows MONAI lays over a scan of this spatial shape."""
        total = 1
        for length, size in zip(shape, self.size, strict=True):
            step = max(int(size * (1 - self.overlap)), 1)
            total *= 1 + math.ceil(max(length - size, 0) / step)
        return total


def blended_windows(
    network: Network,
    image: torch.Tensor,
    windows: Windows,
    execution: Execution | None = None,
    progress: Progress | None = None,
) -> torch.Tensor:
    """Logits of a whole scan, averaged over overlapping windows with Gaussian weights.

    Any network that keeps the spatial size of the window. The result depends on the window grid. Scans smaller than a
    window are zero-padded on both sides.

    Args:
        network: see `run_network`.
        image: ``(channel, *spatial)``; not changed.
        windows: their size, overlap and number per run.
        execution: where and how; float32 on the CPU by default.
        progress: called after each run with the number of windows done and of all windows.

    Returns:
        ``(class, *spatial)`` float32 (float64 for a float64 image).

    Raises:
        ConfigError: the network changes the size, as unpadded networks do; windows and image differ in dimensions; or
            see `run_network`.
    """
    from monai.inferers.utils import sliding_window_inference  # three seconds of import

    if len(windows.size) != image.ndim - 1:
        raise ConfigError(f"windows of {windows.size} do not fit an image of shape {tuple(image.shape)}")
    total, done = windows.count(image.shape[1:]), 0

    def predictor(batch: torch.Tensor) -> torch.Tensor:
        nonlocal done
        # MONAI hands out views of the scan and multiplies the answer in place: an identity network, or one that works
        # in place, would change the scan without the copy
        logits = run_network(network, batch.clone(), execution or Execution())
        if logits.shape[2:] != batch.shape[2:]:
            raise ConfigError(
                f"the network turns windows of {tuple(batch.shape[2:])} into {tuple(logits.shape[2:])}; blending "
                "needs the same size.\nUnpadded networks are run by overlapping tiles instead"
            )
        done += len(batch)
        if progress:
            progress(done, total)
        return logits

    with torch.inference_mode():
        blended = sliding_window_inference(
            floating(image)[None],
            windows.size,
            windows.batch,
            predictor,
            overlap=windows.overlap,
            mode="gaussian",
        )
    return blended[0]
