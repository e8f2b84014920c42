"""Rules of interpretation: classes by colour, black and white, object ids, or label values unchanged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from medunet.conversion.colours import ColourTable, Decoded, first_of, tallied, written
from medunet.conversion.masks import Mask
from medunet.errors import DataError
from medunet.instances.watershed import connected

MOST_OBJECTS = np.iinfo(np.uint16).max
_FEW = 5
"""Pixels: smaller objects are rare, but smooth edges consist of colours that few pixels have."""


class Rule(Protocol):
    """Makes the label map of one case from its mask, or its masks where each object has one."""

    unchanged: bool = False
    """True if label maps hold the values of the masks, so that files can be copied."""

    def apply(self, masks: Sequence[Mask]) -> Decoded:
        """Label values ``(*spatial)``, and what was odd."""
        ...


@dataclass(frozen=True)
class Coloured(Rule):
    """Each class has a colour."""

    table: ColourTable
    tolerance: float = 0.0

    def apply(self, masks: Sequence[Mask]) -> Decoded:
        (mask,) = masks
        return self.table.decode(mask.as_colours, self.tolerance)


@dataclass(frozen=True)
class BlackAndWhite(Rule):
    """0 is background, `white` the one class; values up to `tolerance` away from either count as it."""

    white: int = 255
    tolerance: float = 0.0

    def apply(self, masks: Sequence[Mask]) -> Decoded:
        (mask,) = masks
        values = grey_of(mask).astype(np.int64)
        bright = 2 * values > self.white
        far = np.abs(values - np.where(bright, self.white, 0))
        strange = far > self.tolerance
        changed = int(((far > 0) & ~strange).sum())
        return Decoded((bright & ~strange).astype(np.uint8), changed, tallied(values[strange]))

    def describe(self, unknown: Mapping[int, int]) -> str:
        """Unknown values for a message."""
        ordered = sorted(unknown, key=lambda value: (-unknown[value], value))
        return first_of([f"grey {value} {unknown[value]:,} px" for value in ordered])

    def farthest(self, unknown: Mapping[int, int]) -> float:
        """The tolerance that would take all of them."""
        return float(max(min(value, abs(self.white - value)) for value in unknown))


@dataclass(frozen=True)
class Unchanged(Rule):
    """The values are label values or object ids already."""

    unchanged = True

    def apply(self, masks: Sequence[Mask]) -> Decoded:
        (mask,) = masks
        return Decoded(values_of(mask))


@dataclass(frozen=True)
class Connected(Rule):
    """Every connected part of one value is an object; 0 is background."""

    def apply(self, masks: Sequence[Mask]) -> Decoded:
        (mask,) = masks
        return Decoded(_fitting(parts_of(values_of(mask)), mask))


@dataclass(frozen=True)
class ColouredObjects(Rule):
    """Every colour but the background's is an object, or every connected part of a colour is.

    Attributes:
        background: the code of its colour.
    """

    background: int = 0
    connected: bool = False

    def apply(self, masks: Sequence[Mask]) -> Decoded:
        (mask,) = masks
        codes = mask.as_colours
        found, first, inverse, counts = np.unique(codes, return_index=True, return_inverse=True, return_counts=True)
        objects = found != self.background
        if int((counts[objects] < _FEW).sum()) * 2 > int(objects.sum()):
            raise DataError(
                f"{mask.path}: {int(objects.sum()):,} colours, more than half of them on fewer than {_FEW} pixels: its "
                "edges are smooth or it was saved as JPEG\nobjects cannot be told apart; save it without anti-aliasing"
            )
        order = np.argsort(np.where(objects, first, codes.size))  # ids follow the first pixel of each colour
        ids = np.zeros(len(found), np.int64)
        ids[order[: int(objects.sum())]] = np.arange(1, int(objects.sum()) + 1)
        labels = ids[inverse.reshape(codes.shape)]
        return Decoded(_fitting(parts_of(labels) if self.connected else labels, mask))


@dataclass(frozen=True)
class OneMaskPerObject(BlackAndWhite):
    """Each mask is one object; ids follow the order of the masks, and where two overlap the first keeps its voxels."""

    def apply(self, masks: Sequence[Mask]) -> Decoded:
        if len(masks) > MOST_OBJECTS:
            raise DataError(f"{masks[0].path.parent}: {len(masks):,} objects; at most {MOST_OBJECTS:,} fit a label map")
        shape = masks[0].volume.shape
        ids = np.zeros(shape, np.uint16)
        overlap = np.zeros(shape, bool)
        changed, unknown = 0, Counter[int]()
        for number, mask in enumerate(masks, 1):
            if mask.volume.shape != shape:
                raise DataError(
                    f"{mask.path}: has shape {mask.volume.shape}, the first mask of this image {shape}\n"
                    "all masks of an image need its size; make this one again"
                )
            white = int(grey_of(mask).max())
            part = BlackAndWhite(1 if white == 1 else 255, self.tolerance).apply([mask])
            inside = part.labels > 0
            overlap |= inside & (ids > 0)
            ids[inside & (ids == 0)] = number
            changed += part.changed
            unknown.update(part.unknown)
        left = np.count_nonzero(np.bincount(ids.ravel(), minlength=len(masks) + 1)[1:])
        return Decoded(ids, changed, unknown, int(overlap.sum()), len(masks) - int(left))


def values_of(mask: Mask) -> NDArray[Any]:
    """Label values of a grey or palette mask.

    Raises:
        DataError: colours, fractions, NaN, negative numbers, or a format that changes values.
    """
    if mask.values is None:
        raise DataError(f"{mask.path}: is in colours, while label values were expected; say --colours or --instances")
    if mask.lossy:
        raise DataError(f"{mask.path}: JPEG changes label values and ids; make the mask again as PNG or TIFF")
    values = mask.values
    if values.dtype.kind == "f":
        if not np.isfinite(values).all() or not np.array_equal(values, np.rint(values)):
            raise DataError(f"{mask.path}: label values must be whole numbers, found fractions or NaN")
        values = values.astype(np.int64)
    if values.min() < 0:
        raise DataError(f"{mask.path}: label values must not be negative, found {values.min()}")
    return values


def grey_of(mask: Mask) -> NDArray[Any]:
    """Grey values; those of the palette where its colours are grey.

    Raises:
        DataError: the mask is in colours.
    """
    if mask.colours is not None:
        red, green, blue = mask.colours >> 16, mask.colours >> 8 & 255, mask.colours & 255
        if np.array_equal(red, green) and np.array_equal(green, blue):
            return red
    if mask.values is None:
        raise DataError(f"{mask.path}: is in colours, while black and white were expected; say --colours TABLE")
    return mask.values


def parts_of(labels: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Ids ``(*spatial)`` of the connected parts of each value but 0; across faces, edges and corners."""
    from scipy.ndimage import find_objects

    _, inverse = np.unique(np.append(labels.ravel(), 0), return_inverse=True)  # the 0 makes background the first one
    ranks = inverse[:-1].reshape(labels.shape).astype(np.int32)
    parts = np.zeros(labels.shape, np.int64)
    count = 0
    for rank, box in enumerate(find_objects(ranks), 1):
        inside, found = connected(ranks[box] == rank)
        parts[box] += np.where(inside > 0, inside + count, 0)
        count += found
    return parts


def _fitting(ids: NDArray[np.int64], mask: Mask) -> NDArray[np.uint16]:
    if int(ids.max()) > MOST_OBJECTS:
        raise DataError(f"{mask.path}: {int(ids.max()):,} objects; at most {MOST_OBJECTS:,} fit a label map of 16 bits")
    return ids.astype(np.uint16)


@dataclass
class Census:
    """Counts of values and colours over all masks of a set; it changes while masks are counted.

    Attributes:
        values: grey values, palette indices or label values that were found, with their pixels.
        codes: colours that were found, with their pixels.
        coloured: masks in RGB.
        palettes: masks with a palette of colours.
        lossy: JPEG masks.
        sightings: number of masks that have each colour.
    """

    values: Counter[int] = field(default_factory=Counter)
    codes: Counter[int] = field(default_factory=Counter)
    masks: int = 0
    coloured: int = 0
    palettes: int = 0
    lossy: int = 0
    sightings: Counter[int] = field(default_factory=Counter)

    def add(self, mask: Mask) -> None:
        """Count one mask."""
        self.masks += 1
        self.lossy += mask.lossy
        self.coloured += mask.values is None
        self.palettes += mask.values is not None and mask.colours is not None
        if mask.colours is not None:
            found = tallied(mask.colours)
            self.codes.update(found)
            self.sightings.update(list(found))
        if mask.values is not None:
            # JPEG is looked at as it is: whether it can be used is decided later.
            self.values.update(tallied(values_of(mask) if not mask.lossy else mask.values))

    @property
    def white(self) -> int | None:
        """The value that stands for white where there are two values at most, one of them 0; None for other masks."""
        found = set(self.values) - {0}
        return found.pop() if len(found) == 1 and found <= {1, 255, 65535} else None

    @property
    def black_palette(self) -> bool:
        """True if all masks are palettes of black and white: colours mean more than indices then."""
        return self.palettes == self.masks and 0xFFFFFF in self.codes and set(self.codes) <= {0, 0xFFFFFF}

    @property
    def smeared(self) -> bool:
        """True for black and white masks with values between, as JPEG and smooth edges make them."""
        return bool(self.values) and min(self.values) <= 16 and 239 <= max(self.values) <= 255 and len(self.values) > 16

    def frequent(self, most: int = 6) -> str:
        """The most frequent colours for a message."""
        return first_of([f"({written(code)}) {count:,} px" for code, count in self.codes.most_common()], most)

    @property
    def like_objects(self) -> bool:
        """True if there are many colours, most of them in one mask only: random colours, one per object."""
        once = sum(count == 1 for code, count in self.sightings.items() if code)
        return self.masks > 1 and len(self.codes) > 8 and 2 * once > len(self.codes)

    @property
    def with_smooth_edges(self) -> bool:
        """True if most colours are on few pixels, as smooth edges and JPEG make them."""
        few = sum(count < _FEW * self.sightings[code] for code, count in self.codes.items())
        return len(self.codes) > 16 and 2 * few > len(self.codes)
