"""One pass over a whole scan, which streams, tiles and windows are compared with."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from medunet.geometry.boxes import Box
from medunet.inference.execution import Execution, Network, floating, run_network


def whole_pass(
    network: Network, image: torch.Tensor, stride: Sequence[int], execution: Execution | None = None
) -> torch.Tensor:
    """Logits ``(class, *spatial)`` of a whole scan in one pass of a padded network.

    The far sides are zero-padded to multiples of the stride, and the answer is cropped again.
    """
    shape = tuple(image.shape[1:])
    sides = [side for n, s in zip(reversed(shape), reversed(tuple(stride)), strict=True) for side in (0, -n % s)]
    padded = torch.nn.functional.pad(floating(image), sides)
    logits = run_network(network, padded[None], execution or Execution())[0]
    assert logits.shape[1:] == padded.shape[1:], "a padded network keeps the size"
    return logits[(slice(None), *Box.of_shape(shape).slices)]
