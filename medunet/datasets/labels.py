"""Label tables: which value in a file means which class.

Networks see class indices 0, 1, 2, …; files hold whatever the data set declared (0/32/255, floats, gaps).
`LabelTable` is the only translation between the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medunet.datasets.regions import DeclaredRegions, Region, alike, combinations
from medunet.errors import DataError

IGNORE = 255
"""The class index of voxels that no loss, sampler or metric uses."""


@dataclass(frozen=True)
class LabelTable:
    """Class names and their values in files; the position in the tuples is the class index.

    A background class, where there is one, has index 0; the others follow by value.

    Attributes:
        names: one name per class.
        values: the integer that stands for the class in label files.
        ignore: the value of unannotated voxels, or None.
        kind: `classes`, or `instances` when label files hold object ids: every id above 0 is then class 1.
        regions: unions of classes that are learned and scored in the classes' place; none for most data sets.
    """

    names: tuple[str, ...]
    values: tuple[int, ...]
    ignore: int | None = None
    kind: Literal["classes", "instances"] = "classes"
    regions: tuple[Region, ...] = ()

    def __post_init__(self) -> None:
        if len(self.names) != len(self.values) or len(set(self.values)) != len(self.values):
            raise DataError(f"labels need one distinct value each, found names {self.names} and values {self.values}")
        if not 2 <= len(self.names) < IGNORE:
            raise DataError(
                f"a segmentation needs 2 to {IGNORE - 1} labels, background included; found {len(self.names)}"
            )
        if len(set(self.names)) != len(self.names):
            raise DataError(f"label names must differ, found {', '.join(self.names)}")
        if self.ignore is not None and self.ignore in self.values:
            raise DataError(f"value {self.ignore} is declared both as a label and as the ignore value")
        if self.regions:
            self._check_regions()

    def _check_regions(self) -> None:
        names = [region.name for region in self.regions]
        if self.kind != "classes" or not self.has_background:
            raise DataError("regions need labels with a background, for the voxels that are in no region")
        if len(set(names)) != len(names) or len(names) >= IGNORE:
            raise DataError(f"regions need different names, at most {IGNORE - 1}; found {', '.join(names[:20])}")
        for region in self.regions:
            if not set(region.indices) <= set(range(1, self.classes)) or region.paints not in (None, *region.indices):
                raise DataError(f'region "{region.name}" must be made of foreground labels, and write one of them')
        if len({region.paints is None for region in self.regions}) > 1 or (not self.painted and alike(self.combined)):
            raise DataError("regions write one label each, or every label is in a combination of regions of its own")

    @property
    def classes(self) -> int:
        return len(self.names)

    @property
    def has_background(self) -> bool:
        return self.names[0].lower() == "background"

    @property
    def outputs(self) -> int:
        """Channels of a network: one per region where there are regions, else one per class."""
        return len(self.regions) or self.classes

    @property
    def foreground(self) -> tuple[int, ...]:
        """Indices of the classes that are learned as more than background, and oversampled."""
        if self.regions:
            return tuple(sorted({index for region in self.regions for index in region.indices}))
        return tuple(range(1 if self.has_background else 0, self.classes))

    @property
    def scored(self) -> dict[str, tuple[int, ...]]:
        """The scored structures with the classes that they are made of: each region, or each foreground class."""
        if self.regions:
            return {region.name: region.indices for region in self.regions}
        return {self.names[index]: (index,) for index in self.foreground}

    @property
    def painted(self) -> bool:
        """True if regions write a label each, in their order; if not, the combination of regions decides."""
        return all(region.paints is not None for region in self.regions)

    @property
    def combined(self) -> dict[int, tuple[int, ...]]:
        """The places of the regions that each class is in; empty without regions."""
        return combinations([region.indices for region in self.regions])

    @property
    def unlearned(self) -> tuple[str, ...]:
        """Labels that no region holds; they are background to a network that learns regions."""
        return tuple(self.names[i] for i in range(1, self.classes) if self.regions and i not in self.foreground)

    def to_indices(self, values: NDArray[Any], where: str) -> NDArray[np.uint8]:
        """Translate file values to class indices, `IGNORE` for the ignore value.

        Args:
            values: any shape; integers, or floats that hold integers.
            where: the case or file, for the message.

        Raises:
            DataError: a value is not integral or not declared; the message lists the values and their counts.
        """
        integers = whole_numbers(values, where)
        if self.kind == "instances":
            return self._binarised(integers, where)
        found, inverse = np.unique(integers, return_inverse=True)
        known = {value: index for index, value in enumerate(self.values)}
        if self.ignore is not None:
            known[self.ignore] = IGNORE
        unknown = [int(v) for v in found if int(v) not in known]
        if unknown:
            counts = np.bincount(inverse.ravel())
            listed = ", ".join(f"{v} ({counts[np.searchsorted(found, v)]} voxels)" for v in unknown[:5])
            raise DataError(
                f"{where}: holds label values that are not declared: {listed}{' …' if len(unknown) > 5 else ''}\n"
                f"declared are {self.describe()}; declare them in dataset.json, or correct the file"
            )
        table = np.array([known[int(v)] for v in found], dtype=np.uint8)
        return table[inverse].reshape(values.shape)

    def _binarised(self, ids: NDArray[np.integer[Any]], where: str) -> NDArray[np.uint8]:
        if ids.size and int(ids.min()) < 0:
            raise DataError(f"{where}: instance ids must not be negative, found {int(ids.min())}")
        result = (ids > 0).astype(np.uint8)
        if self.ignore is not None:
            result[ids == self.ignore] = IGNORE
        return result

    def to_values(self, indices: NDArray[np.integer[Any]]) -> NDArray[Any]:
        """Translate class indices back to file values, in the smallest integer type that holds them all."""
        smallest = np.result_type(np.min_scalar_type(min(self.values)), np.min_scalar_type(max(self.values)))
        found: NDArray[Any] = np.asarray(self.values, dtype=smallest)[indices]
        return found

    def describe(self) -> str:
        """`0 background, 1 anterior, …` for messages."""
        pairs = [f"{v} {n}" for n, v in zip(self.names, self.values, strict=True)]
        if self.ignore is not None:
            pairs.append(f"{self.ignore} ignored")
        text = ", ".join(pairs if len(pairs) <= 12 else [*pairs[:11], f"… ({len(pairs)} in all)"])
        return f"{text}; regions {self._described_regions()}" if self.regions else text

    def _described_regions(self) -> str:
        """`core (2+3, writes 2), …`, or `a (1+3), b (2+3), decided together`; in file values."""
        parts = [
            f"{region.name} ({'+'.join(str(self.values[i]) for i in region.indices)}"
            + ("" if region.paints is None else f", writes {self.values[region.paints]}")
            + ")"
            for region in self.regions
        ]
        return ", ".join(parts) + ("" if self.painted else ", decided together")


def whole_numbers(values: NDArray[Any], where: str) -> NDArray[np.integer[Any]]:
    """Label values as integers, which they may be stored as floats for.

    Raises:
        DataError: a value is no whole number.
    """
    if np.issubdtype(values.dtype, np.integer):
        return values
    if values.dtype == bool:
        return values.astype(np.uint8)
    rounded = np.rint(values)
    if not np.array_equal(rounded, values):
        wrong = values[rounded != values]
        raise DataError(
            f"{where}: label values must be whole numbers, found {float(wrong.flat[0]):g} "
            f"and {wrong.size - 1} more such voxels\nthe mask was probably interpolated; save it with nearest neighbour"
        )
    found: NDArray[np.integer[Any]] = rounded.astype(np.int64)
    return found


def table_from_names(named: Mapping[str, int], ignore: int | None, kind: str = "classes") -> LabelTable:
    """A table from declared names: the class called background first, then by value.

    Where no label has the value 0, unlabelled voxels do: that background need not be declared. Instance sets are
    binary whatever they declare: background and one class.
    """
    if kind == "classes" and ignore != 0 and 0 not in named.values() and "background" not in map(str.lower, named):
        named = {"background": 0, **named}
    ordered = sorted(named.items(), key=lambda item: (item[0].lower() != "background", item[1]))
    if kind == "instances":
        inside = [name for name, _ in ordered if name.lower() != "background"] or ["object"]
        return LabelTable(("background", inside[0]), (0, 1), ignore, "instances")
    return LabelTable(tuple(n for n, _ in ordered), tuple(v for _, v in ordered), ignore)


def table_from_values(values: Sequence[int]) -> LabelTable:
    """A table from the values that were found; 0 is the background, the others are named after their value."""
    named = {("background" if value == 0 else f"label_{value}"): int(value) for value in values}
    return table_from_names(named, None)


def with_regions(table: LabelTable, declared: DeclaredRegions) -> LabelTable:
    """A table whose regions are those declared by file values.

    Raises:
        DataError: a region holds a value that is no label, or the background's; or see `DeclaredRegions.written`.
    """
    known = {value: index for index, value in enumerate(table.values)}
    for name, values in declared.values.items():
        unknown = [value for value in values if value not in known or value == table.values[0]]
        if unknown:
            raise DataError(
                f'region "{name}" holds {", ".join(map(str, unknown))}; expected values of foreground labels, '
                f"which are {table.describe()}"
            )
    written = declared.written()
    regions = tuple(
        Region(name, tuple(sorted(known[value] for value in values)), None if written is None else known[written[n]])
        for n, (name, values) in enumerate(declared.values.items())
    )
    return replace(table, regions=regions)
