"""The augmentation of a patch or a batch: one move, then changes of values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medunet.errors import ConfigError
from medunet.transforms.augment.intensity import change_values
from medunet.transforms.augment.monai_steps import check_exchanges, monai_steps
from medunet.transforms.augment.moves import Move, draw_field, draw_move
from medunet.transforms.augment.settings import MOVES, VALUES, AugmentSettings, Draw, described

Array: TypeAlias = NDArray[Any] | Tensor

Step: TypeAlias = Callable[[Mapping[str, Any]], dict[str, Any]]
"""A change of one patch, see `RandMoved` for its entries."""

_STREAM, _FIELD = 1, 2  # of a draw


@dataclass(frozen=True)
class RandMoved:
    """The change of shape of a patch, in one resampling; the first step of the augmentation.

    A patch is a dictionary: `image` ``(channel, *spatial)``, `label` ``(1, *spatial)``, `weight` ``(1, *spatial)``
    where there is a weight map, `draw`, which decides everything, and `size`, that of the patch that comes out.
    `random` is the draw's generator after the move.
    """

    settings: AugmentSettings
    dimensions: int

    def move(self, draw: Draw) -> Move:
        """The change of shape that this draw makes."""
        return draw_move(self.settings, self.dimensions, draw.generator(_STREAM))

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The moved patch; `size` is cut out of its middle."""
        random, image, weight = data["draw"].generator(_STREAM), data["image"], data.get("weight")
        move = draw_move(self.settings, self.dimensions, random)
        joined = image if weight is None else torch.cat([image, weight.to(image.dtype)])
        moved, label = move.apply(joined, data["label"], data["size"], self._field(move, data, image))
        if weight is None:
            return {**data, "image": moved, "label": label, "random": random}
        return {**data, "image": moved[:-1], "label": label, "weight": moved[-1:], "random": random}

    def _field(self, move: Move, data: Mapping[str, Any], image: Tensor) -> Tensor | None:
        if not move.amplitude:
            return None
        return draw_field(self.settings, data["draw"].generator(_FIELD), data["size"]).to(image.device)

    def __str__(self) -> str:
        return f"RandMoved({described(self.settings, MOVES)})"


@dataclass(frozen=True)
class RandValuesd:
    """The changes of a patch's values: noise, blur, brightness, contrast, gamma, haze; of the image alone."""

    settings: AugmentSettings
    dimensions: int

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        random = data.get("random")
        if random is None:  # the move was left out, whose numbers come first in the same stream
            random = data["draw"].generator(_STREAM)
            draw_move(self.settings, self.dimensions, random)
        return {**data, "image": change_values(data["image"].float(), self.settings, random)}

    def __str__(self) -> str:
        return f"RandValuesd({described(self.settings, VALUES)})"


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
        steps: what is done in place of what the settings say; see `RandMoved` for what a step takes and gives.

    Attributes:
        steps: one after the other; each patch goes through all.

    Raises:
        ConfigError: the settings name an axis that patches do not have, or a transform of MONAI that does not take
            such patches.
    """

    def __init__(self, settings: AugmentSettings, dimensions: int, steps: Sequence[Step] | None = None) -> None:
        self._settings = settings
        self._dimensions = dimensions
        own: list[Step] = [RandMoved(settings, dimensions), RandValuesd(settings, dimensions)]
        more: Sequence[Step] = monai_steps(settings.monai, dimensions)
        self.steps: tuple[Step, ...] = (*own, *more) if steps is None else tuple(steps)
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
        check_exchanges(self._settings.monai, size)
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
        moved = next((step for step in self.steps if isinstance(step, RandMoved)), None)
        return tuple(size) if moved is None else moved.move(draw).read_size(size)

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
        patch, still = _plain(image), len(image) - moved_only
        data: dict[str, Any] = {"image": patch[:still], "label": _plain(label), "draw": draw, "size": target}
        if moved_only:
            data["weight"] = patch[still:]
        for step in self.steps:
            data = step(data)
        return torch.cat([data["image"], data["weight"]]) if moved_only else data["image"], data["label"]

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


def _plain(array: Array) -> Tensor:
    """A tensor without metadata, sharing the array's memory unless that is read-only, which torch cannot express."""
    if isinstance(array, Tensor):
        return array.detach().as_subclass(Tensor)
    shareable = array.flags.writeable and min(array.strides, default=0) >= 0
    return torch.from_numpy(array if shareable else np.array(array, order="C"))
