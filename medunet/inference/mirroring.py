"""Test-time mirroring: the average of what a network says about a scan and its mirror images."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch

from medunet.errors import ConfigError


def mirrored(
    scores: Callable[[torch.Tensor], torch.Tensor], image: torch.Tensor, axes: Sequence[int] = ()
) -> torch.Tensor:
    """Class probabilities averaged over all mirror images of a scan along some axes.

    Works with each way of inference: `scores` is `whole_pass`, `overlap_tile` or `blended_windows` with everything but
    the image filled in. It runs 2 to the power of ``len(axes)`` times; one result beside the average is held.

    Args:
        scores: ``(channel, *spatial)`` to logits ``(class, *spatial)``.
        image: ``(channel, *spatial)``; not changed.
        axes: spatial axes to mirror, 0 for the first; none gives the plain softmax.

    Returns:
        ``(class, *spatial)`` probabilities, which add up to 1 over the classes.

    Raises:
        ConfigError: an axis is no spatial axis of the image, or named twice.
    """
    if len(set(axes)) != len(axes) or any(axis not in range(image.ndim - 1) for axis in axes):
        raise ConfigError(f"cannot mirror axes {tuple(axes)} of an image with {image.ndim - 1} spatial axes")
    choices = [flips for count in range(len(axes) + 1) for flips in itertools.combinations(axes, count)]
    total: torch.Tensor | None = None
    with torch.inference_mode():
        for flips in choices:
            where = [axis + 1 for axis in flips]
            probabilities = scores(image.flip(where) if where else image).softmax(dim=0)
            probabilities = probabilities.flip(where) if where else probabilities
            total = probabilities if total is None else total.add_(probabilities)
        assert total is not None, "there is always the scan itself"
        return total.div_(len(choices))
