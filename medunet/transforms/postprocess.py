"""Post-processing of finished label maps: largest component, holes, smallest size; slab by slab, in place.

Binary masks of regions are made from them as well, so that masks and label map cannot disagree.

Voxels of a component share faces, edges or corners (8 neighbours in 2-D, 26 in 3-D). What surrounds a hole is closed
in this sense, so voxels of a hole share faces (4 and 6 neighbours).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import generate_binary_structure, label
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from medunet.datasets.labels import LabelTable
from medunet.errors import ConfigError, DataError
from medunet.system.blocks import BLOCK, Empty, as_stored, spans
from medunet.system.scratch import release
from medunet.transforms.preprocess import bounding_box
from medunet.volume import MILLIMETRES, UNITS, Volume

Action = Literal["keep_largest", "fill_holes", "remove_small"]

_CHUNK = 2**22
"""Voxels that are looked at together; each needs about 10 bytes then."""

_RESERVED = ("probabilities",)
"""What else is written beside a label map under its name."""

_Mask = Callable[[NDArray[Any]], NDArray[np.bool_]]
"""Where, in a part of a label map, the structure is whose components are asked for."""


@dataclass(frozen=True)
class PostStep:
    """One step of post-processing; it changes voxels of its label and of the background only.

    Attributes:
        action: `keep_largest` makes all but the largest component background (several of one size are all kept),
            `remove_small` those smaller than `size`; `fill_holes` gives the label to background that it encloses.
        label: the label's name; None takes all foreground together (not for `fill_holes`).
        size: of the smallest component that stays; area or volume, in `unit` squared or cubed.
        unit: `mm`, `um`, `nm`, or `pixel`, which counts voxels.
    """

    action: Action
    label: str | None = None
    size: float | None = None
    unit: str = "pixel"

    def __post_init__(self) -> None:
        if (self.action == "remove_small") != (self.size is not None) or (self.size is not None and not self.size > 0):
            raise ConfigError(f"post-processing: remove_small needs a positive size, found {self.action} {self.size}")
        if self.unit not in UNITS:
            raise ConfigError(f"post-processing: the unit is one of {', '.join(UNITS)}, found {self.unit!r}")
        if self.action == "fill_holes" and self.label is None:
            raise ConfigError("post-processing: holes are filled for one label, and none is named")

    def describe(self, dimensions: int = 3) -> str:
        """The step in words."""
        name = self.label or "all foreground together"
        if self.action == "keep_largest":
            return f"keep the largest component of {name}"
        if self.action == "fill_holes":
            return f"fill the holes of {name}"
        return f"remove components of {name} below {self.size:.4g} {unit_text(self.unit, dimensions)}"


def unit_text(unit: str, dimensions: int) -> str:
    """The unit of an area or volume: `mm³`, `µm²`, `pixels`, `voxels`."""
    if unit == "pixel":
        return "voxels" if dimensions == 3 else "pixels"
    return {"um": "µm"}.get(unit, unit) + {2: "²", 3: "³"}[dimensions]


def postprocess(labels: NDArray[Any], grid: Volume, table: LabelTable, steps: Sequence[PostStep]) -> list[int]:
    """Apply steps, one after the other, to a label map, in place.

    Each looks only at the bounding box of its label, in slabs, so that an array that lives in a file is never in
    memory as a whole.

    Args:
        labels: `(1, *spatial)`, values as in `table`.
        grid: whose voxel size sizes refer to; its shape is that of `labels`.

    Returns:
        How many voxels each step changed.

    Raises:
        DataError: a step's label is unknown or the background, or a size in physical units meets voxels of unknown
            size (or the other way round).
    """
    view = as_stored(labels[0])
    changed = []
    for step in steps:
        inside, values = _structure(step, table)
        least = _least_voxels(step, grid)
        box = _bounding_box(view, inside)
        if box is None:
            changed.append(0)
        elif step.action == "fill_holes":
            changed.append(_fill_holes(view[box], values))
        else:
            changed.append(_remove(view[box], inside, values[1], least))
        release(labels)
    return changed


def mask_values(labels: LabelTable) -> dict[str, tuple[int, ...]]:
    """The label values that make up each region, by what its mask's file is called after `CASE_`; empty without any.

    Whatever is no letter, digit, dot or hyphen in a region's name becomes `_`; names that are then alike, for file
    systems that know no capitals as well, are numbered.
    """
    named: dict[str, tuple[int, ...]] = {}
    taken = set(_RESERVED)
    for name, indices in labels.scored.items() if labels.regions else ():
        plain = re.sub(r"[^\w.-]+", "_", name).strip("._") or "region"
        unique, number = plain, 1
        while unique.casefold() in taken:
            number += 1
            unique = f"{plain}_{number}"
        taken.add(unique.casefold())
        named[unique] = tuple(labels.values[index] for index in indices)
    return named


def region_mask(labels: NDArray[Any], values: Sequence[int], empty: Empty) -> NDArray[np.uint8]:
    """1 where a label map holds one of the values, else 0; made part by part.

    Args:
        labels: `(1, *spatial)`; may live in a file.
        empty: makes the array.

    Returns:
        `(1, *spatial)`, in the order of memory that the label map has.
    """
    order = sorted(range(1, labels.ndim), key=lambda axis: -abs(labels.strides[axis]))
    stored = labels.transpose(0, *order)[0]
    mask = empty((1, *stored.shape), np.uint8)
    for rows in spans(len(stored), stored.nbytes // len(stored), BLOCK):
        mask[0, rows] = np.isin(stored[rows], values)
        release(labels)
        release(mask)
    return mask.transpose(0, *(order.index(axis) + 1 for axis in range(1, labels.ndim)))


def component_sizes(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The sizes in voxels of the components of a mask `(*spatial)`, in no order; empty for an empty mask."""
    view = as_stored(mask)
    return _trace(view, lambda part: part.astype(bool), _touching(view.ndim)).sizes


def _bounding_box(view: NDArray[Any], inside: _Mask) -> tuple[slice, ...] | None:
    return bounding_box(view[np.newaxis], lambda part: inside(part[0]))


def _structure(step: PostStep, table: LabelTable) -> tuple[_Mask, tuple[Any, Any]]:
    """The mask of a step's label, and the values of label and background."""
    if not table.has_background:
        raise DataError(f"{step.describe()}: there is no background that voxels could be given to")
    background = table.values[0]
    if step.label is None:
        return lambda part: part != background, (background, background)
    if step.label not in table.names[1:]:
        raise DataError(f"{step.describe()}: the labels are {table.describe()}")
    value = table.values[table.names.index(step.label)]
    return lambda part: part == value, (value, background)


def _least_voxels(step: PostStep, grid: Volume) -> float | None:
    """The size below which a component goes, in voxels; None keeps the largest."""
    if step.size is None:
        return None
    if (step.unit == "pixel") != (grid.unit == "pixel"):
        raise DataError(
            f"{grid.name}: its voxel size is in {grid.unit}, but post-processing would {step.describe(grid.dimensions)}"
            "\nstore the voxel size in the file, or say --no-postprocess"
        )
    edge = MILLIMETRES[grid.unit] / MILLIMETRES[step.unit] if grid.unit != "pixel" else 1.0
    # A component of exactly this size stays, whatever rounding does.
    return step.size / float(np.prod([edge * length for length in grid.spacing])) * (1 - 1e-6)


def _touching(ndim: int) -> NDArray[np.bool_]:
    """Neighbours that share faces, edges or corners."""
    return np.asarray(generate_binary_structure(ndim, ndim))


@dataclass(frozen=True)
class _Slab:
    """Rows of a mask with its components numbered from 1, on their own; `lead` is the row before them, if any."""

    start: int
    ids: NDArray[np.int32]
    lead: NDArray[np.int32]
    count: int


def _slabs(view: NDArray[Any], inside: _Mask, neighbours: NDArray[np.bool_]) -> Iterator[_Slab]:
    """Slab by slab; a slab's rows may be changed once it has been given."""
    before = np.empty((0, *view.shape[1:]), dtype=bool)
    for rows in spans(len(view), view.size // max(1, len(view)), _CHUNK):
        mask = inside(view[rows])
        ids, count = label(np.concatenate([before, mask]) if len(before) else mask, neighbours)
        lead = len(before)
        before = mask[-1:].copy()
        yield _Slab(rows.start, ids[lead:], ids[:lead], count)
        release(view)


@dataclass(frozen=True)
class _Trace:
    """The components of a whole mask.

    Attributes:
        of: the component that each slab's number belongs to; slab after slab, each slab's numbers from 1 on.
        sizes: voxels of each component.
        open: true for components that reach the border of the array.
    """

    of: NDArray[np.int64]
    sizes: NDArray[np.int64]
    open: NDArray[np.bool_]


def _trace(view: NDArray[Any], inside: _Mask, neighbours: NDArray[np.bool_]) -> _Trace:
    """Number the components of every slab, and join those that meet in a row that two slabs have in common."""
    sizes, at_border, joined = [], [], [np.empty((2, 0), dtype=np.int64)]
    offset, last = 0, np.empty((0, *view.shape[1:]), dtype=np.int64)
    for slab in _slabs(view, inside, neighbours):
        sizes.append(np.bincount(slab.ids.ravel(), minlength=slab.count + 1)[1:])
        ends = (slab.start == 0, slab.start + len(slab.ids) == len(view))
        at_border.append(at_edges(slab.ids, slab.count, ends)[1:])
        meeting = slab.lead > 0
        joined.append(np.unique([last[meeting], slab.lead[meeting] + offset - 1], axis=1).astype(np.int64))
        last = slab.ids[-1:].astype(np.int64) + offset - 1
        offset += slab.count
    first, second = np.concatenate(joined, axis=1)
    graph = coo_array((np.ones(len(first), dtype=bool), (first, second)), shape=(offset, offset))
    count, of = connected_components(graph, directed=False) if offset else (0, np.empty(0, dtype=np.int64))
    totals = np.bincount(of, weights=np.concatenate(sizes) if sizes else None, minlength=count)
    reached = np.zeros(count, dtype=bool)
    reached[of[np.concatenate(at_border)]] = True
    return _Trace(of.astype(np.int64), totals.astype(np.int64), reached)


def at_edges(slab: NDArray[Any], count: int, ends: tuple[bool, bool]) -> NDArray[np.bool_]:
    """For each number from 0 to `count`, whether it occurs in a slab's voxels on the border of the array.

    Args:
        ends: whether the slab's first and last row are the array's.
    """
    found = np.zeros(count + 1, dtype=bool)
    for axis in range(slab.ndim):
        for end, counts in zip((0, -1), ends if axis == 0 else (True, True), strict=True):
            if counts:
                found[slab.take(end, axis).ravel()] = True
    return found


def _remove(view: NDArray[Any], inside: _Mask, background: Any, least: float | None) -> int:
    """Make components background: all but the largest, or those of fewer than `least` voxels."""
    neighbours = _touching(view.ndim)
    trace = _trace(view, inside, neighbours)
    goes = trace.sizes < (trace.sizes.max() if least is None else least)
    return _paint(view, _slabs(view, inside, neighbours), goes[trace.of], background) if goes.any() else 0


def _fill_holes(view: NDArray[Any], values: tuple[Any, Any]) -> int:
    """`view` is the label's bounding box: what reaches its border is not enclosed."""
    value, background = values

    def outside(part: NDArray[Any]) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = part != value
        return found

    neighbours = np.asarray(generate_binary_structure(view.ndim, 1))
    trace = _trace(view, outside, neighbours)
    if trace.open.all():
        return 0
    return _paint(view, _slabs(view, outside, neighbours), ~trace.open[trace.of], value, only=background)


def _paint(view: NDArray[Any], slabs: Iterator[_Slab], painted: NDArray[np.bool_], value: Any, only: Any = None) -> int:
    """Give the components that are `painted` a value (where they have the value `only`); count the voxels."""
    offset = changed = 0
    for slab in slabs:
        chosen = np.concatenate([[False], painted[offset : offset + slab.count]])[slab.ids]
        rows = view[slab.start : slab.start + len(slab.ids)]
        if only is not None:
            chosen &= rows == only
        rows[chosen] = value
        changed += int(np.count_nonzero(chosen))
        offset += slab.count
    return changed
