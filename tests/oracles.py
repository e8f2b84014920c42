"""Slow and simple versions that tests compare with: one pass over a whole scan, one interpolation of a whole array."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from medunet.geometry.boxes import Box
from medunet.geometry.grids import Resampling
from medunet.inference.execution import Execution, Network, floating, run_network
from medunet.transforms.preprocess import Undo
from medunet.transforms.restore import Part, restored


def whole_pass(
    network: Network, image: torch.Tensor, stride: Sequence[int], execution: Execution | None = None
) -> torch.Tensor:
    """Logits of a whole scan in one pass of a padded network.

    The far sides are zero-padded to multiples of the stride, and the answer is cropped again.

    Args:
        network: keeps the spatial size; see `run_network`.
        image: ``(channel, *spatial)``; not changed.
        stride: the network's, per spatial axis.
        execution: device and precision; float32 on the CPU by default.

    Returns:
        ``(class, *spatial)`` float32 (float64 for a float64 image).
    """
    shape = tuple(image.shape[1:])
    sides = [side for n, s in zip(reversed(shape), reversed(tuple(stride)), strict=True) for side in (0, -n % s)]
    padded = torch.nn.functional.pad(floating(image), sides)
    logits = run_network(network, padded[None], execution or Execution())[0]
    assert logits.shape[1:] == padded.shape[1:]
    return logits[(slice(None), *Box.of_shape(shape).slices)]


def resample_linear(array: NDArray, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """`(channel, *spatial)` by bi- or trilinear interpolation, one axis after another, in float32."""
    resampling = Resampling(tuple(array.shape[1:]), tuple(shape))
    return resampling.apply(array, (0,) * len(shape), Box.of_shape(shape))


def restore_scores(scores: NDArray[np.float32], undo: Undo) -> NDArray[np.float32]:
    """Probabilities `(class, *spatial)` on the scan's own grid; voxels that were cut away are background for sure."""
    blank = np.zeros((len(scores), *undo.oriented), dtype=np.float32)
    blank[0] = 1.0
    whole = undo.orientation.undo(blank)
    kept = undo.kept_part(whole)
    for piece in restored([(0, scores.shape[1], scores)], undo, Part.of(undo, 0)):
        for index in range(piece.classes):
            kept[index][piece.box.slices] = piece.scores(index)
    return np.ascontiguousarray(whole)
