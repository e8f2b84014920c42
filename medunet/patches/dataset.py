"""Training patches: which case, where in it, how large. `loader` makes batches of them.

Each patch has a number. Case, position and augmentation depend on the seed and that number alone, so the number of
worker processes changes nothing, and a resumed run sees the patches it would have seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from medunet.datasets.labels import IGNORE
from medunet.errors import ConfigError, DataError
from medunet.geometry.boxes import Box, read_box
from medunet.transforms.augment.augmentation import Augmentation
from medunet.transforms.augment.settings import Draw

_PLACE, _ORDER = 11, 12  # streams of a draw; those of the augmentation are below 10
_TRIES = 8
"""Places that are looked at for an annotated voxel before one is taken around such a voxel."""


@dataclass(frozen=True)
class PatchSettings:
    """The size and the sampling of patches.

    Attributes:
        size: the network's input size, one number per axis; two numbers make a 2-D network of 3-D cases, too.
        batch: patches per batch.
        oversample: share of patches that are made to contain foreground (a third, as in nnU-Net).
        slice_axis: for a 2-D network on 3-D cases, the axis across the slices.

    Raises:
        ConfigError: a number is out of its range.
    """

    size: tuple[int, ...] = (64, 64, 64)
    batch: int = 2
    oversample: float = 1 / 3
    slice_axis: int = 2

    def __post_init__(self) -> None:
        if len(self.size) not in (2, 3) or min(self.size) < 1:
            raise ConfigError(f"patches.size needs 2 or 3 positive numbers of voxels, found {self.size}")
        if self.batch < 1:
            raise ConfigError(f"patches.batch must be at least 1, found {self.batch}")
        if not 0 <= self.oversample <= 1:
            raise ConfigError(f"patches.oversample is a share from 0 to 1, found {self.oversample}")
        if self.slice_axis not in (0, 1, 2):
            raise ConfigError(f"patches.slice_axis must be 0, 1 or 2 (x, y or z), found {self.slice_axis}")


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """A case ready for training.

    Attributes:
        name: for messages.
        image: ``(channel, *spatial)`` float32 or float16, in memory or mapped from a file.
        label: ``(1, *spatial)`` class indices, uint8 or int16, IGNORE where nothing is known.
        foreground: class to voxels of it, ``(n, dimensions)`` int32; see `find_foreground`.
        weight: ``(1, *spatial)`` float16, by how much a voxel counts more in the loss than its class does; None where
            there is no weight map.

    Raises:
        DataError: image, label and weight differ in shape.
    """

    name: str
    image: NDArray[Any]
    label: NDArray[Any]
    foreground: Mapping[int, NDArray[np.int32]]
    weight: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        if self.weight is not None and self.weight.shape != self.label.shape:
            raise DataError(f"{self.name}: label {self.label.shape} and weight {self.weight.shape} do not fit")
        if self.image.shape[1:] != self.label.shape[1:] or self.label.shape[0] != 1 or 0 in self.image.shape:
            raise DataError(
                f"{self.name}: image {self.image.shape} and label {self.label.shape} do not fit; "
                "expected (channel, …) and (1, …) with equal, not empty spatial shapes"
            )

    @cached_property
    def annotated(self) -> NDArray[np.int32] | None:
        """Some voxels that are not IGNORE, ``(n, dimensions)`` in array order; None where that are all.

        They are a random choice of at most 10,000, found when they are first asked for.
        """
        known = self.label[0] != IGNORE
        if known.all():
            return None
        return find_foreground(known[None].view(np.uint8), [1]).get(1, np.empty((0, known.ndim), np.int32))


@dataclass(frozen=True, eq=False)
class RawPatch:
    """A patch before its augmentation, which happens on the GPU if there is a GPU.

    Attributes:
        image: ``(channel, *spatial)`` in the case's dtype; larger than a patch where its move needs surroundings. An
            array may be a view of the case, and is never written to.
        label: ``(1, *spatial)``, the same voxels.
        draw: decides the augmentation.
        case: its name.
        weight: ``(1, *spatial)``, the same voxels; None where there is no weight map.
    """

    image: NDArray[Any] | Tensor
    label: NDArray[Any] | Tensor
    draw: Draw
    case: str
    weight: NDArray[Any] | Tensor | None = None

    def to(self, device: torch.device) -> RawPatch:
        """The same patch on a device; arrays become tensors."""
        return self._with(lambda array: torch.as_tensor(_owned(array)).to(device, non_blocking=True))

    def pin_memory(self) -> RawPatch:
        """The patch in page-locked memory; the data loader calls this."""
        return self._with(lambda array: torch.as_tensor(_owned(array)).pin_memory())

    def owned(self) -> RawPatch:
        """The patch without views: a view would keep, and pinning would copy, what lies around it."""
        return self._with(_owned)

    def _with(self, change: Callable[[Any], Any]) -> RawPatch:
        weight = None if self.weight is None else change(self.weight)
        return replace(self, image=change(self.image), label=change(self.label), weight=weight)


@dataclass(frozen=True, eq=False)
class PatchBatch:
    """Patches side by side.

    Attributes:
        image: ``(batch, channel, *spatial)`` float32.
        label: ``(batch, 1, *spatial)`` class indices in the cases' dtype, of the network's output size.
        cases: one name per patch.
        weight: float32, one number per voxel in the label's shape, 0 where it is IGNORE; None weighs all alike.
    """

    image: Tensor
    label: Tensor
    cases: list[str]
    weight: Tensor | None = None

    def pin_memory(self) -> PatchBatch:
        """The batch in page-locked memory, from where a GPU copies it faster; the data loader calls this."""
        weight = None if self.weight is None else self.weight.pin_memory()
        return PatchBatch(self.image.pin_memory(), self.label.pin_memory(), self.cases, weight)


def collate(patches: Sequence[PatchBatch]) -> PatchBatch:
    """Join patches (batches of one or more) of equal size to one batch."""
    weights = [patch.weight for patch in patches if patch.weight is not None]
    return PatchBatch(
        torch.cat([patch.image for patch in patches]),
        torch.cat([patch.label for patch in patches]),
        [name for patch in patches for name in patch.cases],
        torch.cat(weights) if weights else None,
    )


def find_foreground(
    label: NDArray[Any], classes: Sequence[int], limit: int = 10_000, seed: int = 0
) -> dict[int, NDArray[np.int32]]:
    """The voxels of each class: a random choice of at most `limit` of them, drawn without replacement.

    Args:
        label: ``(1, *spatial)`` class indices.
        classes: which classes to look for; IGNORE is never foreground.
        limit: most voxels per class.
        seed: of the choice.

    Returns:
        Class to ``(n, dimensions)`` int32 voxel coordinates in array order, for the classes that have a voxel.
    """
    from scipy.ndimage import find_objects

    volume = label[0]
    wanted = [c for c in classes if c != IGNORE]
    boxes = find_objects(volume, max_label=max(wanted, default=0)) if max(wanted, default=0) > 0 else []
    found = {}
    for c in wanted:
        # scipy gives no box for 0, and None for classes without a voxel.
        box = boxes[c - 1] if c > 0 else (slice(None),) * volume.ndim
        if box is None:
            continue
        part = volume[box]
        places = np.flatnonzero(part == c)
        if len(places) > limit:
            places = np.sort(np.random.default_rng([seed, c]).choice(places, limit, replace=False))
        if len(places):
            corner = np.array([s.start or 0 for s in box])
            found[c] = (np.stack(np.unravel_index(places, part.shape), axis=1) + corner).astype(np.int32)
    return found


@dataclass(frozen=True, eq=False)
class PatchDataset(Dataset[PatchBatch]):
    """The endless sequence of training patches; ``dataset[n]`` is patch ``n % per_epoch`` of epoch ``n // per_epoch``.

    Cases take turns: each round of as many patches as there are cases visits every case once, in a random order.
    With probability `oversample` a patch contains a voxel of a random class of its case, somewhere in the patch's
    middle half; all other patches lie anywhere. What the network answers for holds at least one annotated voxel before
    it is augmented (a rotation may turn one that lies in a corner out), if the case has any. Patches stay within the
    scan where it is large enough, and centre it where it is not. What lies outside is IGNORE in the label; in the image
    it is 0 for padded networks, as their own padding is, and mirrored for unpadded ones, as in overlap-tile inference
    (Ronneberger et al. 2015).

    Attributes:
        cases: at least one.
        settings: size and kind of patches.
        per_epoch: patches in an epoch, at least 1.
        augmentation: of patches of as many dimensions as `settings.size` has.
        seed: of all draws.
        margin: voxels per axis by which an unpadded network's output is smaller on each side; () for padded networks.
        class_weights: for cases with a weight map, which all have or none, the weight of each class; what the map has
            is added to it. Maps are moved as images are, by linear interpolation, and 0 outside.

    Raises:
        ConfigError: there is no case, or size, margin and the cases' dimensions do not fit.
    """

    cases: Sequence[PreparedCase]
    settings: PatchSettings
    per_epoch: int
    augmentation: Augmentation
    seed: int = 0
    margin: tuple[int, ...] = ()
    class_weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        size = self.settings.size
        if not self.cases or self.per_epoch < 1:
            raise ConfigError(f"nothing to train on: {len(self.cases)} cases, {self.per_epoch} patches per epoch")
        self.augmentation.check_size(size)
        margin = self.margin or (0,) * len(size)
        if len(margin) != len(size) or min(n - 2 * m for n, m in zip(size, margin, strict=True)) < 1 or min(margin) < 0:
            raise ConfigError(f"a network with margin {self.margin} has no output for patches.size {size}")
        for case in self.cases:
            if case.label.ndim - 1 not in (len(size), len(size) + (len(size) == 2)):
                raise ConfigError(
                    f"{case.name}: a scan of {case.label.ndim - 1} dimensions gives no patches of size {size}\n"
                    "set patches.size to one number per axis of the scan"
                )

    def __getitem__(self, number: int) -> PatchBatch:
        """One patch as a batch of one."""
        return self.augmented([self.read(number)])

    def read(self, number: int) -> RawPatch:
        """One patch before its augmentation."""
        draw = Draw(self.seed, *divmod(number, self.per_epoch))
        turn, place = divmod(number, len(self.cases))
        case = self.cases[_round(self.seed, turn, len(self.cases))[place]]
        size = self.augmentation.read_size(self.settings.size, draw)
        return read_patch(case, self.settings, self.margin, draw, size)

    def augmented(self, patches: Sequence[RawPatch]) -> PatchBatch:
        """Augment patches, at least one, on their own device, each as if it were alone."""
        size, margin = self.settings.size, self.margin or (0,) * len(self.settings.size)
        weighted = patches[0].weight is not None
        images, labels = self.augmentation.batch(
            [patch.image if patch.weight is None else _joined(patch.image, patch.weight) for patch in patches],
            [patch.label for patch in patches],
            [patch.draw for patch in patches],
            size,
            moved_only=int(weighted),
        )
        inner = (slice(None), slice(None), *(slice(m, n - m) for m, n in zip(margin, size, strict=True)))
        labels, weights = labels[inner].contiguous(), None
        if weighted:
            images, added = images[:, :-1].contiguous(), images[:, -1:][inner]
            weights = self._weights(labels, added)
        return PatchBatch(images, labels, [patch.case for patch in patches], weights)

    def _weights(self, labels: Tensor, added: Tensor) -> Tensor:
        """The weight of each voxel: that of its class plus that of the map; 0 where the label is IGNORE."""
        table = torch.zeros(IGNORE + 1)
        table[: len(self.class_weights)] = torch.tensor(self.class_weights)
        return (table.to(added.device)[labels.long()] + added).masked_fill_(labels == IGNORE, 0)


def read_patch(
    case: PreparedCase, settings: PatchSettings, margin: tuple[int, ...], draw: Draw, size: tuple[int, ...]
) -> RawPatch:
    """A patch of a case, before its augmentation.

    Args:
        margin: see `PatchDataset`.
        draw: decides the place.
        size: what is read, around the place of a patch of `settings.size`; see `Augmentation.read_size`.
    """
    frame = _Frame.of(case, settings, margin)
    start = frame.place(case, settings.oversample, draw.generator(_PLACE))
    image, label, weight = frame.read(case, start, size)
    return RawPatch(image, label, draw, case.name, weight)


@lru_cache(maxsize=2)
def _round(seed: int, turn: int, count: int) -> tuple[int, ...]:
    """The order of the cases in one round; cached, as the next patches mostly belong to the same round."""
    return tuple(Draw(seed, 0, turn).generator(_ORDER).permutation(count).tolist())


@dataclass(frozen=True)
class _Frame:
    """The place of a patch, of the network's dimensions, in a case of two or three dimensions.

    Attributes:
        output: the network's output size, in the case's dimensions.
        margin: of the network, in the network's dimensions.
        across: the case's axis that patches lack, or None.
    """

    output: tuple[int, ...]
    margin: tuple[int, ...]
    across: int | None

    @classmethod
    def of(cls, case: PreparedCase, settings: PatchSettings, margin: tuple[int, ...]) -> _Frame:
        margins = margin or (0,) * len(settings.size)
        across = settings.slice_axis if case.label.ndim - 1 > len(settings.size) else None
        output = tuple(n - 2 * m for n, m in zip(settings.size, margins, strict=True))
        return cls(_widened(output, across, 1), margins, across)

    def place(self, case: PreparedCase, oversample: float, random: np.random.Generator) -> tuple[int, ...]:
        """The position of the output's first voxel."""
        present = sorted(c for c, voxels in case.foreground.items() if len(voxels))
        if random.random() >= oversample or not present:
            return self._anywhere(case, random)
        return self._around(case, case.foreground[present[random.integers(len(present))]], random)

    def _anywhere(self, case: PreparedCase, random: np.random.Generator) -> tuple[int, ...]:
        """Any place is as likely as any other, if it shows something annotated."""
        annotated, label = case.annotated, case.label[0]
        for _ in range(_TRIES):
            start = self._within(case, [int(random.integers(0, max(n - m, 0) + 1)) for n, m in self._axes(case)])
            if annotated is None or not len(annotated):
                return start
            # Outside of the scan lies nothing, and negative starts would count from its end.
            seen = Box.of_shape(self.output, start).intersection(Box.of_shape(label.shape))
            if (label[seen.slices] != IGNORE).any():
                return start
        assert annotated is not None, "a fully annotated case shows something annotated anywhere"
        return self._around(case, annotated, random)

    def _around(self, case: PreparedCase, voxels: NDArray[np.int32], random: np.random.Generator) -> tuple[int, ...]:
        """A place that shows one of these voxels."""
        voxel = voxels[random.integers(len(voxels))]
        # Somewhere in the middle half: a fixed place would teach the network where to expect the foreground.
        return self._within(case, voxel - np.array([random.integers(n // 4, n - n // 4) for n in self.output]))

    def _within(self, case: PreparedCase, wish: Sequence[int] | NDArray[Any]) -> tuple[int, ...]:
        return tuple(_start(int(w), n, m) for w, (n, m) in zip(wish, self._axes(case), strict=True))

    def read(
        self, case: PreparedCase, start: tuple[int, ...], size: tuple[int, ...]
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None]:
        """Image, label and weight of the patch of `size` (the network's dimensions) with the output's centre.

        Views of the case where the patch lies within it.
        """
        inner = [n for axis, n in enumerate(self.output) if axis != self.across]
        beyond = tuple((n - m) // 2 for n, m in zip(size, inner, strict=True))
        box = Box.of_shape(self.output, start).grown(_widened(beyond, self.across, 0))
        weight = case.weight
        if Box.of_shape(case.label.shape[1:]).contains(box):
            image, label = (array[(slice(None), *box.slices)] for array in (case.image, case.label))
            weight = None if weight is None else weight[(slice(None), *box.slices)]
        else:
            image = read_box(case.image, box, "reflect" if any(self.margin) else "constant")
            label = read_box(case.label, box, "constant", IGNORE)
            weight = None if weight is None else read_box(weight, box)
        if self.across is None:
            return image, label, weight
        across = self.across + 1
        return image.squeeze(across), label.squeeze(across), None if weight is None else weight.squeeze(across)

    def _axes(self, case: PreparedCase) -> list[tuple[int, int]]:
        return list(zip(case.label.shape[1:], self.output, strict=True))


def _start(wish: int, length: int, size: int) -> int:
    """The start nearest to `wish` that keeps `size` voxels within `length`; centred where they do not fit."""
    return min(max(wish, 0), length - size) if length >= size else -((size - length) // 2)


def _widened(values: tuple[int, ...], across: int | None, value: int) -> tuple[int, ...]:
    """Insert the value of the axis that patches lack."""
    return values if across is None else (*values[:across], value, *values[across:])


def _owned(array: NDArray[Any] | Tensor) -> NDArray[Any] | Tensor:
    """The array itself where it has memory of its own that may be written to, else a copy; tensors stay."""
    if isinstance(array, Tensor) or (array.flags.owndata and array.flags.writeable and array.flags.c_contiguous):
        return array
    return np.array(array, order="C")


def _joined(image: NDArray[Any] | Tensor, weight: NDArray[Any] | Tensor) -> NDArray[Any] | Tensor:
    """The image with the weight as one more channel, so that both move alike."""
    if isinstance(image, Tensor) and isinstance(weight, Tensor):
        return torch.cat([image, weight.to(image.dtype)])
    return np.concatenate([np.asarray(image), np.asarray(weight)])
