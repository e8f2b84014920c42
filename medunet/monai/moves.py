"""Moves: mirrors, turns, rotation, scaling and elastic displacement, in the one resampling of `medunet train`."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import InvertibleTransform, MapTransform, Randomizable
from torch import Tensor

from medunet.datasets.labels import IGNORE
from medunet.errors import DataError
from medunet.monai.grids import GridTransform, as_label, returned, stays_whole
from medunet.monai.scans import label_keys
from medunet.transforms.augment.augmentation import Augmentation, RandMoved
from medunet.transforms.augment.moves import Move
from medunet.transforms.augment.settings import AugmentSettings, Chance, Draw
from medunet.volume import Volume

_SEED = "seed"
_NEVER = Chance(0, 1, 1)


class RandAffineElastic(Randomizable, GridTransform):  # type: ignore[misc]
    """Moves a scan at random: mirrors, quarter turns, rotation, scaling and elastic displacement.

    Each change is drawn with its own chance. All share one resampling, or none where voxels stay whole. Images are
    interpolated linearly, with 0 from outside; label maps are taken from the nearest voxel, with `outside` from
    outside, and hold no other new value. The size stays.

    Args:
        rotation: degrees about each axis.
        scaling: factor for all axes; above 1 enlarges.
        elastic: root-mean-square displacement per axis in voxels, at most half of `elastic_sigma`.
        elastic_sigma: smoothness of the displacement in voxels.
        flip_axes: spatial axes that are mirrored with probability one half each.
        quarter_turns: probability of a turn by 90, 180 or 270 degrees in a random plane.
        coarse_axis: the axis of thick slices, which all but mirrors leave alone.
        outside: the label of voxels from outside; 255 is what medunet's losses ignore.

    Raises:
        ConfigError: a range makes no sense for its change.
    """

    def __init__(
        self,
        rotation: Chance = _NEVER,
        scaling: Chance = _NEVER,
        elastic: Chance = _NEVER,
        elastic_sigma: float = 8,
        flip_axes: tuple[int, ...] = (),
        quarter_turns: float = 0,
        coarse_axis: int | None = None,
        outside: int = IGNORE,
    ) -> None:
        self.outside = outside
        self._settings = replace(
            AugmentSettings.none(),
            rotation=rotation,
            scaling=scaling,
            elastic=elastic if elastic.probability else replace(elastic, low=0, high=0),
            elastic_sigma=elastic_sigma,
            flip_axes=flip_axes,
            flip_probability=0.5,
            quarter_turns=quarter_turns,
            coarse_axis=coarse_axis,
        )
        self._seed = 0

    def randomize(self, data: Any = None) -> None:
        """Draw the next move, which all calls with `randomize=False` repeat."""
        self._seed = int(self.R.randint(2**31 - 1))

    def __call__(self, scan: Tensor, randomize: bool = True) -> Tensor:
        """The moved scan `(channel, *spatial)`: float32, or the label map's own type.

        Raises:
            ConfigError: the scan's size or axes do not fit the settings.
            DataError: a label map holds the value that stands for outside, or values below 0 or above 255.
        """
        if randomize:
            self.randomize()
        volume = Volume.from_metatensor(scan)
        augmentation, draw = Augmentation(self._settings, volume.dimensions), Draw(self._seed, 0, 0)
        plain, size = scan.detach().as_subclass(Tensor), tuple(scan.shape[1:])
        if stays_whole(scan):
            self._require_classes(plain, volume.name)
            moved = augmentation(torch.zeros(1, *size, device=plain.device), plain.to(torch.int16), draw)[1]
            moved = torch.where(moved == IGNORE, self.outside, moved).to(scan.dtype)
        else:
            moved = augmentation(plain.float(), torch.zeros(1, *size, dtype=torch.uint8, device=plain.device), draw)[0]
        affine = volume.affine @ _about_centres(RandMoved(self._settings, volume.dimensions).move(draw), size)
        return self.remembered(scan, moved, affine, **{_SEED: self._seed})

    def inverse(self, data: Tensor) -> Tensor:
        """The tensor moved back; what had left the scan is 0, or `outside` in a label map.

        Raises:
            DataError: the move was elastic, which nobody can take back exactly.
        """
        facts, size, whole = self.taken_back(data)
        move = RandMoved(self._settings, len(size)).move(Draw(facts[_SEED], 0, 0))
        if move.amplitude:
            raise DataError("RandAffineElastic: this move was elastic, which cannot be taken back; set elastic aside")
        plain = data.detach().as_subclass(Tensor)
        nothing = torch.zeros(1, *plain.shape[1:], dtype=torch.int16, device=plain.device)
        if whole:
            labels = [move.inverse().apply(nothing, one[None].to(torch.int16), size)[1] for one in plain]
            values = torch.cat(labels)
            values = torch.where(values == IGNORE, self.outside, values)
        else:
            values = move.inverse().apply(plain.float(), nothing, size)[0]
        return returned(data, values.to(data.dtype), facts)

    def _require_classes(self, label: Tensor, name: str) -> None:
        low, high = int(label.min()), int(label.max())
        if low < 0 or high > IGNORE or (self.outside != IGNORE and high == IGNORE):
            raise DataError(
                f"{name}: the label map holds {low} to {high}, but moves need classes of 0 to {IGNORE - 1}, "
                f"and {IGNORE} only as what is ignored"
            )


class RandAffineElasticd(MapTransform, Randomizable, InvertibleTransform):  # type: ignore[misc]
    """`RandAffineElastic` for some keys, all moved alike.

    Args:
        labels: those of the keys that are label maps; `LoadScand` has marked its own already.
        options: see `RandAffineElastic`.
    """

    def __init__(
        self, keys: KeysCollection, labels: KeysCollection = (), allow_missing_keys: bool = False, **options: Any
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.labels = label_keys(self.keys, labels)
        self.transform = RandAffineElastic(**options)

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> RandAffineElasticd:
        """Let this seed or state decide all that follows."""
        super().set_random_state(seed, state)
        self.transform.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The data with moved tensors.

        Raises:
            DataError: the tensors differ in size; and see `RandAffineElastic`.
        """
        found = dict(data)
        keys = list(self.key_iterator(found))
        sizes = {tuple(found[key].shape[1:]) for key in keys}
        if len(sizes) > 1:
            raise DataError(f"{', '.join(map(repr, keys))} differ in size, {sizes}; one move cannot fit all")
        self.transform.randomize()
        for key in keys:
            tensor = as_label(found[key], str(key)) if key in self.labels else found[key]
            found[key] = self.transform(tensor, randomize=False)
        return found

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The data with the tensors moved back."""
        found = dict(data)
        for key in self.key_iterator(found):
            found[key] = self.transform.inverse(found[key])
        return found


def _about_centres(move: Move, size: tuple[int, ...]) -> Any:
    """From voxel indices of the output to those of the input, `(4, 4)`; both have one size."""
    count = len(size)
    matrix, centre = np.eye(4), (np.array(size) - 1) / 2
    matrix[:count, :count] = move.offsets()
    matrix[:count, 3] = centre - matrix[:count, :count] @ centre
    return matrix
