"""Colour-coded masks: which colour means which class, and label maps from colours and back.

A colour is one number here, its code: ``red·65536 + green·256 + blue``; a grey value is its own code. So grey and
colour masks are looked up in the same way, and a mask of any shape is one integer array.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medunet.errors import DataError

Colour = tuple[int, int, int]
Codes = NDArray[np.uint32]

_COLOURS = 1 << 24
_NONE = np.iinfo(np.uint16).max


def packed(colours: NDArray[np.uint8]) -> Codes:
    """Codes ``(*spatial)`` of colours ``(3, *spatial)``; red is the first channel."""
    red, green, blue = colours.astype(np.uint32)
    found: Codes = red << 16 | green << 8 | blue
    return found


def unpacked(codes: NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
    """Colours ``(3, *spatial)`` of codes ``(*spatial)``."""
    return np.stack([codes >> 16, codes >> 8 & 255, codes & 255]).astype(np.uint8)


def code_of(colour: Colour) -> int:
    """The code of one colour."""
    red, green, blue = colour
    return red << 16 | green << 8 | blue


def written(code: int) -> str:
    """`128 64 0`, as tables and messages have colours."""
    return f"{code >> 16} {code >> 8 & 255} {code & 255}"


def tallied(values: NDArray[Any]) -> dict[int, int]:
    """The values that occur, ascending, with their pixels."""
    found, counts = np.unique(values, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def first_of(found: Sequence[str], most: int = 8) -> str:
    """The first of what was found, and the number of the others, for messages."""
    return "; ".join(found[:most]) + (f"; … {len(found) - most:,} more" if len(found) > most else "")


@dataclass(frozen=True)
class ColourTable:
    """Names, colours and label values of the classes; the three tuples are of one length.

    Attributes:
        names: in the order of the table.
        colours: red, green and blue of each, 0 to 255.
        values: of each class in label maps, 0 to 65535.
        ignore: the name whose pixels are not annotated, or None.

    Raises:
        DataError: no class, a name, a colour or a value twice, or `ignore` is no name.
    """

    names: tuple[str, ...]
    colours: tuple[Colour, ...]
    values: tuple[int, ...]
    ignore: str | None = None

    def __post_init__(self) -> None:
        if not self.names:
            raise DataError("a colour table needs at least one class")
        for what, found in (("name", self.names), ("colour", self.colours), ("value", self.values)):
            twice = [entry for entry, count in Counter(found).items() if count > 1]
            if twice:
                raise DataError(f"a colour table needs different {what}s, found {twice[0]} twice")
        if not all(0 <= value < _NONE for value in self.values):
            raise DataError(f"label values must lie between 0 and {_NONE - 1}, found {sorted(self.values)}")
        if self.ignore is not None and self.ignore not in self.names:
            raise DataError(f'no class is called "{self.ignore}"; the table has {", ".join(self.names)}')

    @property
    def classes(self) -> dict[str, int]:
        """Name and value of what is annotated."""
        return {name: value for name, value in zip(self.names, self.values, strict=True) if name != self.ignore}

    @property
    def ignored(self) -> int | None:
        """The value of pixels that are not annotated."""
        return None if self.ignore is None else self.values[self.names.index(self.ignore)]

    @cached_property
    def codes(self) -> NDArray[np.int64]:
        """The code of each class."""
        return np.array([code_of(colour) for colour in self.colours], dtype=np.int64)

    @cached_property
    def _entries(self) -> NDArray[np.uint16]:
        """The entry of each of all codes, `_NONE` where there is none: 32 MB, and one look-up per pixel."""
        entries = np.full(_COLOURS, _NONE, np.uint16)
        entries[self.codes] = np.arange(len(self.codes))
        return entries

    @property
    def closest(self) -> tuple[float, str, str]:
        """The smallest distance (see `decode`) between two of the colours, and their names; infinite for one colour."""
        best = (float("inf"), self.names[0], self.names[0])
        points = unpacked(self.codes).T.astype(float)
        for place in range(1, len(points)):
            distances = np.sqrt(((points[:place] - points[place]) ** 2).mean(axis=1))
            nearest = int(distances.argmin())
            best = min(best, (float(distances[nearest]), self.names[nearest], self.names[place]))
        return best

    def decode(self, codes: Codes, tolerance: float = 0.0) -> Decoded:
        """Label values of colours.

        Args:
            codes: ``(*spatial)``.
            tolerance: colours that are in no table become the nearest class's if its colour is at most this far away:
                the root mean square of the differences in red, green and blue, so that for greys it is the difference
                in grey. Of equally near classes the first one is taken.
        """
        values = np.array([*self.values, 0], dtype=np.min_scalar_type(max(self.values)))
        entries = self._entries[codes]
        strange = entries == _NONE
        if not strange.any():
            return Decoded(values[entries])
        found, inverse, counts = np.unique(codes[strange], return_inverse=True, return_counts=True)
        nearest, distances = self._nearest(found)
        near = distances <= tolerance
        entries[strange] = np.where(near, nearest, len(self.names)).astype(np.uint16)[inverse.reshape(-1)]
        unknown = dict(zip(found[~near].tolist(), counts[~near].tolist(), strict=True))
        return Decoded(values[entries], int(counts[near].sum()), unknown)

    def _nearest(self, codes: NDArray[np.integer[Any]]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The nearest entry of each code and its distance; squares of whole numbers, so that ties are exact."""
        points, own = unpacked(codes).T.astype(np.int64), unpacked(self.codes).T.astype(np.int64)
        best = np.zeros(len(points), np.int64)
        least = np.full(len(points), np.iinfo(np.int64).max)
        for entry, colour in enumerate(own):
            squares = ((points - colour) ** 2).sum(axis=1)
            closer = squares < least
            best[closer], least[closer] = entry, squares[closer]
        return best, np.sqrt(least / 3)

    def describe(self, unknown: Mapping[int, int]) -> str:
        """Unknown colours for a message, the most frequent first, each with its count and the nearest class."""
        ordered = sorted(unknown, key=lambda code: (-unknown[code], code))
        nearest, distances = self._nearest(np.array(ordered, dtype=np.int64))
        return first_of(
            [
                f"({written(code)}) {unknown[code]:,} px, {distances[place]:.1f} from {self.names[nearest[place]]}"
                for place, code in enumerate(ordered)
            ]
        )

    def farthest(self, unknown: Iterable[int]) -> float:
        """The largest distance of these codes to their nearest class; 0 for none."""
        return float(self._nearest(np.array(list(unknown), dtype=np.int64))[1].max(initial=0.0))

    def encode(self, labels: NDArray[np.integer[Any]], where: str) -> NDArray[np.uint8]:
        """Colours ``(3, *spatial)`` of label values ``(*spatial)``.

        Raises:
            DataError: a value that the table does not have; with its count.
        """
        found, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
        known = {value: int(code) for value, code in zip(self.values, self.codes, strict=True)}
        unknown = [f"{v} ({n:,} px)" for v, n in zip(found.tolist(), counts.tolist(), strict=True) if v not in known]
        if unknown:
            raise DataError(
                f"{where}: holds values without a colour: {', '.join(unknown[:8])}\n"
                f"colours are known for {', '.join(f'{v} {n}' for n, v in zip(self.names, self.values, strict=True))}"
            )
        codes = np.array([known[value] for value in found.tolist()], dtype=np.uint32)
        return unpacked(codes[inverse.reshape(labels.shape)])


@dataclass(frozen=True, eq=False)
class Decoded:
    """The label map made of one mask, and what was odd about it.

    Attributes:
        labels: ``(*spatial)`` label values; 0 where a colour is unknown.
        changed: pixels whose colour was near enough to a class's colour.
        unknown: codes of the colours that are no class's, with their counts.
        overlapping: pixels that more than one object's mask holds.
        hidden: objects that have no pixel left, because others lie over them or their mask is empty.
    """

    labels: NDArray[Any]
    changed: int = 0
    unknown: Mapping[int, int] = field(default_factory=dict)
    overlapping: int = 0
    hidden: int = 0


def numbered(names: Sequence[str], ignore: str | None) -> tuple[int, ...]:
    """Label values for names in the order of a table: the class called background is 0, others follow in order.

    What is ignored gets 255, or the first value after all others where there are more than 255.
    """
    ordered = [name for name in names if name != ignore]
    ordered.sort(key=lambda name: name.lower() != "background")  # stable
    values = {name: value for value, name in enumerate(ordered)}
    if ignore is not None:
        values[ignore] = max(255, len(ordered))
    return tuple(values[name] for name in names)
