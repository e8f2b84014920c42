"""The augmentation of a patch or a batch: one move, then changes of values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medunet.errors import ConfigError
from medunet.transforms.augment.intensity import change_values
from medunet.transforms.augment.monai_steps import MonaiSteps
from medunet.transforms.augment.moves import Move, draw_field, draw_move
from medunet.transforms.augment.settings import AugmentSettings, Draw

Array: TypeAlias = NDArray[Any] | Tensor

_STREAM, _FIELD, _MONAI = 1, 2, 3  # of a draw


class Augmentation:
    """Changes patches at random; what happens depends on the draw alone.

    It runs where the arrays are, on a CPU or a GPU, with the same draws. Patches of a batch are changed one after the
    other: on one core torch gains nothing from larger batches (`benchmarks/augment_speed.py --parts`), and patches that
    were read with their surroundings differ in size.

    Rotation, scaling, elastic displacement and mirrors are drawn with their own probabilities and share one
    resampling, or none where only mirrors were drawn. MONAI's RandAffined has one probability for all, shifts by half
    a voxel when an odd number of voxels is cropped and works in float64.

    Args:
        settings: what may happen.
        dimensions: 2 or 3.

    Raises:
        ConfigError: the settings name an axis that patches do not have, or a transform of MONAI that does not take
            such patches.
    """

    def __init__(self, settings: AugmentSettings, dimensions: int) -> None:
        self._settings = settings
        self._monai = MonaiSteps(settings.monai, dimensions)
        self._dimensions = dimensions
        if settings.flip_axes and max(settings.flip_axes) >= dimensions:
            raise ConfigError(f"augment.flip_axes names axis {max(settings.flip_axes)} of {dimensions}-D patches")
        if settings.coarse_axis is not None and dimensions == 2:
            raise ConfigError("augment.coarse_axis is for 3-D patches; leave it out for a 2-D network")

    def check_size(self, size: Sequence[int]) -> None:
        """Refuse sizes of patches whose axes cannot be exchanged by quarter turns without moving by half a voxel.

        Raises:
            ConfigError: quarter turns are asked for, and two axes differ by an odd number of voxels; or the elastic
                grid is too fine for its vectors.
        """
        self._settings.check_elastic(size)
        self._monai.check_size(size)
        turned = [n for axis, n in enumerate(size) if axis != self._settings.coarse_axis]
        if self._settings.quarter_turns and len({n % 2 for n in turned}) > 1:
            raise ConfigError(
                f"augment.quarter_turns exchanges axes, but patches.size {tuple(size)} mixes odd and even lengths\n"
                "choose all odd or all even lengths (the coarse axis is free), or set augment.quarter_turns to 0"
            )

    def read_size(self, size: Sequence[int], draw: Draw) -> tuple[int, ...]:
        """The patch to read so that this draw fills an output of `size` with real surroundings.

        Each axis is longer than `size` by an even number, often 0, so that both have the same centre.
        """
        return self.move(draw).read_size(size)

    def move(self, draw: Draw) -> Move:
        """The change of shape that this draw makes."""
        return draw_move(self._settings, self._dimensions, draw.generator(_STREAM))

    def __call__(
        self, image: Array, label: Array, draw: Draw, size: Sequence[int] | None = None, moved_only: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Change one patch.

        Voxels that a rotation brings in from outside the patch become 0 in the image, which is what padding gives,
        and IGNORE in the label: the network never learns anatomy that it did not see.

        Args:
            image: ``(channel, *spatial)``, float; not written to.
            label: ``(1, *spatial)`` class indices, uint8 or int16, on the same device; not written to.
            draw: names the random draw.
            size: the output's spatial size; cropped from the centre, without shifting by half a voxel. Default: all.
            moved_only: so many of the image's last channels are moved, but keep their values, such as weights.

        Returns:
            Image ``(channel, *size)`` float32 and label ``(1, *size)`` of the label's dtype, which holds no value that
            it did not hold before, except IGNORE: it is only ever indexed, cropped and mirrored. Plain tensors on the
            inputs' device, sharing no memory with them.

        Raises:
            ValueError: image and label differ in shape, or are smaller than `size`.
            ConfigError: `check_size` refuses the size, or a registered transform changes the set of labels.
        """
        target = tuple(size) if size is not None else tuple(label.shape[1:])
        if image.shape[1:] != label.shape[1:] or not len(target) == label.ndim - 1 == self._dimensions:
            raise ValueError(f"image {tuple(image.shape)}, label {tuple(label.shape)} and size {target} do not fit")
        if any(n > m for n, m in zip(target, label.shape[1:], strict=True)):
            raise ValueError(f"a patch of {tuple(label.shape[1:])} voxels cannot give an output of {target}")
        self.check_size(target)
        random = draw.generator(_STREAM)
        move = draw_move(self._settings, self._dimensions, random)
        moved, after = move.apply(_plain(image), _plain(label), target, self._field(move, draw, target, image))
        still = len(moved) - moved_only
        values = change_values(moved[:still], self._settings, random)
        weight = moved[still:] if moved_only else None
        if self._monai:
            values, weight, after = self._monai(values, weight, after, draw.generator(_MONAI))
        return values if weight is None else torch.cat([values, weight]), after

    def batch(
        self,
        images: Sequence[Array],
        labels: Sequence[Array],
        draws: Sequence[Draw],
        size: Sequence[int],
        moved_only: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """Change several patches, which may differ in size (see `read_size`), each as if it were alone.

        Args:
            images: ``(channel, *spatial)`` each, see `__call__`.
            labels: ``(1, *spatial)`` each.
            draws: one per patch.
            size: the spatial size of all outputs.
            moved_only: see `__call__`.

        Returns:
            Images ``(batch, channel, *size)`` float32, labels ``(batch, 1, *size)``.

        Raises:
            ValueError: there is no patch, or a patch does not fit its label or `size`.
        """
        if not images:
            raise ValueError("a batch needs at least one patch")
        pairs = [self(i, label, draw, size, moved_only) for i, label, draw in zip(images, labels, draws, strict=True)]
        if len(pairs) == 1:
            return pairs[0][0][None], pairs[0][1][None]
        return torch.stack([image for image, _ in pairs]), torch.stack([label for _, label in pairs])

    def _field(self, move: Move, draw: Draw, size: tuple[int, ...], image: Array) -> Tensor | None:
        if not move.amplitude:
            return None
        field = draw_field(self._settings, draw.generator(_FIELD), size)
        return field.to(image.device) if isinstance(image, Tensor) else field


def _plain(array: Array) -> Tensor:
    """A tensor without metadata, sharing the array's memory unless that is read-only, which torch cannot express."""
    if isinstance(array, Tensor):
        return array.detach().as_subclass(Tensor)
    shareable = array.flags.writeable and min(array.strides, default=0) >= 0
    return torch.from_numpy(array if shareable else np.array(array, order="C"))
