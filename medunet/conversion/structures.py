"""One mask per structure, that may overlap: joined into one label map with a value for each combination that occurs."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from medunet.conversion.colours import Decoded
from medunet.conversion.layouts import FoundCase
from medunet.conversion.masks import Mask, read_mask
from medunet.conversion.rules import Rule, grey_of
from medunet.datasets.labels import IGNORE
from medunet.datasets.loading import refuse
from medunet.errors import DataError
from medunet.formats.dispatch import case_stem, read_grid, read_volume
from medunet.volume import Grid, corners_apart, tolerance

MOST_COMBINATIONS = IGNORE - 2
"""A label table has fewer than IGNORE labels, and the background is one of them."""

Combination = frozenset[str]
"""Names of the structures that a voxel is in."""

_WHITE = (1, 255, 65535)
_RESERVED = ("background", "ignore")


def has_structure_channels(path: Path, axes: str | None = None) -> bool:
    """True if a mask file has several channels that are no colours: each is a structure's mask then.

    ImageJ saves RGB stacks as three channels, so three or four of 8 bits in a TIFF are colours.

    Raises:
        DataError: the header cannot be read.
    """
    grid = read_grid(path, axes=axes)
    if grid.format == "tiff":
        letters = grid.details["TIFF axes"].split()[0]
        return "C" in letters and grid.channels > 1 and (grid.channels not in (3, 4) or grid.dtype != "uint8")
    return grid.channels > 1 and grid.format in ("nifti", "itk")


class StructureMasks(Sequence[Mask]):
    """The masks of a case. One is held at a time, besides the first one, which gives the grid.

    Args:
        paths: at least one; a file of one channel, or one with a channel for each structure.
        axes: states a TIFF's axes.
        names: of the structures, one for each file; empty where the files' names say it.
    """

    def __init__(self, paths: Sequence[Path], axes: str | None = None, names: Sequence[str] = ()) -> None:
        self._paths, self._axes, self._names = paths, axes, names

    def __len__(self) -> int:
        return len(self._paths) if self._channels is None else len(self._channels)

    @overload
    def __getitem__(self, index: int) -> Mask: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Mask]: ...
    def __getitem__(self, index: int | slice) -> Mask | Sequence[Mask]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if self._channels is not None:
            return self._channels[index]
        return self._first if index == 0 else self._read(index)

    @cached_property
    def _first(self) -> Mask:
        return self._read(0)

    def _read(self, index: int) -> Mask:
        mask = read_mask(self._paths[index], self._axes)
        return replace(mask, name=self._names[index]) if self._names else mask

    @cached_property
    def _channels(self) -> list[Mask] | None:
        if len(self._paths) > 1 or not has_structure_channels(self._paths[0], self._axes):
            return None
        path = self._paths[0]
        names = read_grid(path, axes=self._axes).channel_names
        volume = read_volume(path, axes=self._axes)
        names = names or tuple(f"structure_{number}" for number in range(1, volume.channels + 1))
        return [
            Mask(path, volume.with_array(one[np.newaxis]), one, None, name)
            for name, one in zip(names, volume.array, strict=True)
        ]


def check_masks(cases: Iterable[Sequence[Path]], axes: str | None = None) -> None:
    """Compare the grids of the masks of each case, by headers alone; that of the first one counts.

    Raises:
        DataError: naming the first mask that is wrong, and how many there are.
    """
    problems = []
    for masks in cases:
        first = read_grid(masks[0], axes=axes)
        for path in masks[1:]:
            try:
                _require_same_grid(path, read_grid(path, axes=axes), masks[0], first)
            except DataError as error:
                problems.append(str(error))
    refuse(problems, "masks")


def _require_same_grid(path: Path, grid: Grid, beside: Path, first: Grid) -> None:
    if grid.shape != first.shape:
        raise DataError(
            f"{path}: has shape {grid.shape}, the first mask of this case, {beside.name}, {first.shape}\n"
            "all masks of a case need the image's grid; make this one again"
        )
    distance = corners_apart(first, grid)
    if distance > tolerance(first):
        raise DataError(
            f"{path}: lies on another grid than {beside.name}: corners differ by up to {distance:.4g} {first.unit} "
            f"(allowed {tolerance(first):.3g})\nall masks of a case need the image's grid; resample this one onto it"
        )


def name_of(mask: Mask) -> str:
    """The name of a mask's structure: its own, or that of its file.

    Raises:
        DataError: a name that means something else in `dataset.json`.
    """
    name = mask.name or case_stem(mask.path)
    if name.lower() in _RESERVED:
        raise DataError(
            f"{mask.path}: a structure cannot be called {name}, which has a meaning of its own\n"
            "take this mask away if it shows what is in no structure, or rename it"
        )
    return name


def inside_of(mask: Mask) -> NDArray[np.bool_]:
    """The voxels of a structure, ``(*spatial)``; none for an empty mask.

    Raises:
        DataError: the mask is not binary: 0 and 1, 255 or 65535; or its format changes values.
    """
    if mask.lossy:
        raise DataError(f"{mask.path}: JPEG changes the values of masks; make the mask again as PNG or TIFF")
    values = grey_of(mask)
    inside, strange = _parted(values)
    if strange.size:
        found = ", ".join(f"{value:g}" for value in np.unique(strange)[:5])
        raise DataError(
            f"{mask.path}: holds {found} on {strange.size:,} voxels; the mask of one structure holds 0 and 1 (or 255)\n"
            "make it binary; if it is a label map, each case needs that one alone, called the same in all cases"
        )
    return inside


def _parted(values: NDArray[Any]) -> tuple[NDArray[np.bool_], NDArray[Any]]:
    """The white voxels of a mask, and its values that are neither white nor 0."""
    white = float(values.max())
    inside = values == white if white in _WHITE else np.zeros(values.shape, bool)
    return inside, values[(values != 0) & ~inside]


def are_label_maps(cases: Sequence[FoundCase], axes: str | None = None) -> bool:
    """True if masks in a folder per image are label maps: one in each, of the same name, and not all binary.

    Raises:
        DataError: a mask cannot be read.
    """
    if any(len(case.masks) > 1 for case in cases):
        return False
    names = {case_stem(case.masks[0]).replace(case.name, "").strip("_-. ").lower() for case in cases}
    masks = (read_mask(case.masks[0], axes) for case in cases)
    # A binary mask has no colours, and was not saved as JPEG.
    binary = (not m.lossy and m.values is not None and _parted(grey_of(m))[1].size == 0 for m in masks)
    return len(names) == 1 and not all(binary)


@dataclass
class Joined:
    """The masks of a case while they are joined.

    Attributes:
        codes: ``(*spatial)``, places in `combinations`.
        combinations: all that occurred on the way; the first is that of no structure.
        voxels: number of voxels that each combination has now.
        names: the structures joined so far.
    """

    codes: NDArray[np.uint32]
    combinations: list[Combination]
    voxels: list[int]
    names: list[str] = field(default_factory=list)

    def add(self, name: str, inside: NDArray[np.bool_], where: Path) -> None:
        """Put another structure's mask on top.

        Raises:
            DataError: more combinations than a label map has values.
        """
        self.names.append(name)
        before = self.codes[inside]
        moved = np.bincount(before, minlength=len(self.combinations))
        renamed = np.zeros(len(moved), np.uint32)
        for place in np.flatnonzero(moved).tolist():
            renamed[place] = len(self.combinations)
            self.combinations.append(self.combinations[place] | {name})
            self.voxels.append(int(moved[place]))
            self.voxels[place] -= int(moved[place])
        self.codes[inside] = renamed[before]
        # Combinations that differ keep differing, whatever is put on top, so it will not become fewer.
        refuse_too_many(len(self.counts), where.parent)

    @property
    def counts(self) -> dict[Combination, int]:
        """Voxels of each combination of at least one structure that is left."""
        return {one: n for one, n in zip(self.combinations, self.voxels, strict=True) if n and one}


def joined(masks: Iterable[Mask]) -> Joined:
    """Join the masks of a case, at least one.

    Raises:
        DataError: masks of different shapes or of one name, masks that are not binary, or too many combinations.
    """
    result: Joined | None = None
    seen: dict[str, Path] = {}
    for mask in masks:
        name, shape = name_of(mask), mask.volume.shape
        if name in seen:
            raise DataError(f"{mask.path}: is a second mask of {name} beside {seen[name].name}; remove one of them")
        seen[name] = mask.path
        if result is None:
            result = Joined(np.zeros(shape, np.uint32), [frozenset()], [int(np.prod(shape))])
        if shape != result.codes.shape:
            raise DataError(
                f"{mask.path}: has shape {shape}, the first mask of this case {result.codes.shape}\n"
                "all masks of a case need the image's grid; make this one again"
            )
        result.add(name, inside_of(mask), mask.path)
    assert result is not None, "a case has a mask"
    return result


def refuse_too_many(count: int, where: Path) -> None:
    """Raises:
    DataError: a label map cannot hold so many combinations.
    """
    if count > MOST_COMBINATIONS:
        raise DataError(
            f"{where}: its masks overlap in more than {MOST_COMBINATIONS} combinations, which is what a label map can "
            "hold\nleave out structures that overlap with many others; if each mask is one object, say --instances"
        )


@dataclass
class StructureCensus:
    """Counts of structures over the masks of all cases; it changes while they are counted.

    Attributes:
        cases: number of cases.
        named: number of cases in which each structure has a mask, empty or not; in the order of first sight.
        voxels: of each combination.
    """

    cases: int = 0
    named: dict[str, int] = field(default_factory=dict)
    voxels: Counter[Combination] = field(default_factory=Counter)

    def add(self, masks: Sequence[Mask], where: Path) -> None:
        """Look at the masks of a case.

        Raises:
            DataError: as `joined`, or all cases together have too many combinations.
        """
        found = joined(masks)
        self.voxels.update(found.counts)
        refuse_too_many(len(self.voxels), where)
        self.cases += 1
        for name in found.names:
            self.named[name] = self.named.get(name, 0) + 1

    @property
    def structures(self) -> list[str]:
        """The structures that have a voxel, by name."""
        return sorted({name for combination in self.voxels for name in combination})

    @property
    def empty(self) -> list[str]:
        """The structures whose masks are all empty."""
        return sorted(set(self.named) - set(self.structures))

    @property
    def incomplete(self) -> dict[str, int]:
        """The number of cases without a mask, of each structure that has one in other cases."""
        return {name: self.cases - count for name, count in sorted(self.named.items()) if count < self.cases}

    @property
    def shared(self) -> int:
        """Voxels that are in several structures."""
        return sum(count for combination, count in self.voxels.items() if len(combination) > 1)

    def values(self) -> dict[Combination, int]:
        """A label value for each combination, from 1 on: single structures by name, then pairs, and so on."""
        ordered = sorted(self.voxels, key=lambda combination: (len(combination), sorted(combination)))
        return {combination: value for value, combination in enumerate(ordered, start=1)}

    def declaration(self) -> dict[str, Any]:
        """`labels` for a `dataset.json`, and `regions` where structures overlap, the largest first.

        Largest first, because structures inside each other are then painted one over the other.
        """
        labels = {"background": 0}
        for combination, value in self.values().items():
            labels[_unused("+".join(sorted(combination)), value, labels)] = value
        if not self.shared:
            return {"labels": labels}
        held = {
            name: [value for combination, value in self.values().items() if name in combination]
            for name in self.structures
        }
        return {"labels": labels, "regions": dict(sorted(held.items(), key=lambda item: -len(item[1])))}


def _unused(name: str, number: int, taken: Container[str]) -> str:
    """The name, followed by the first number from `number` on that makes it unique where it is taken."""
    numbered = (f"{name} ({n})" for n in itertools.count(number))
    return name if name not in taken else next(one for one in numbered if one not in taken)


@dataclass(frozen=True)
class JoinedStructures(Rule):
    """Each mask is a structure; label values stand for combinations of them.

    Attributes:
        values: of each combination that occurs.
    """

    values: Mapping[Combination, int]

    def apply(self, masks: Sequence[Mask]) -> Decoded:
        result = joined(masks)
        table = [self.values.get(combination, 0) for combination in result.combinations]
        return Decoded(np.array(table, np.uint8)[result.codes])
