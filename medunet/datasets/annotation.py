"""Annotated voxels: the slices, pictures and rims that count, where the label values do not say so.

An ignore value in the files says it voxel by voxel. Two kinds of files cannot: volumes of which some slices were drawn
(the others hold 0, like background), and pictures of which some objects were. Both are declared, in `dataset.json` or
in the config, and become IGNORE here, for training, validation, plans and scores alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medunet.datasets.labels import IGNORE, LabelTable
from medunet.errors import ConfigError, DataError

AXES = ("x", "y", "z")
RIM = 2.0
"""Voxels around the objects of a partly annotated picture that are background, unless something else is said.

Without any, nothing would teach where these objects end. In a crowded picture some of it belongs to neighbours that
were not drawn; as little as this lies within the doubt about where two cells that touch meet.
"""


@dataclass(frozen=True)
class AnnotatedSlices:
    """Slices that were annotated; all others are unknown. What is given holds together (every 4th, if not empty).

    Attributes:
        axis: across the slices, as the file has it: `x`, `y` or `z`.
        every: every n-th slice, beginning with `first`.
        first: counted from 0.
        at: these slices, counted from 0.
        empty: `ignore` takes slices that hold nothing but background as not annotated.
        cases: names of the volumes that this is about, or patterns like `scan_1*`; None for all.

    Raises:
        ConfigError: nothing is said, or a number is out of its range.
    """

    axis: Literal["x", "y", "z"] = "z"
    every: int | None = None
    first: int = 0
    at: tuple[int, ...] | None = None
    empty: Literal["background", "ignore"] = "background"
    cases: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.axis not in AXES:
            raise ConfigError(f"annotated_slices: axis must be x, y or z, found {self.axis!r}")
        if self.empty not in ("background", "ignore"):
            raise ConfigError(f"annotated_slices: empty must be background or ignore, found {self.empty!r}")
        if self.every is None and self.at is None and self.empty == "background":
            raise ConfigError("annotated_slices: say which ones, by every: 4, at: [10, 20] or empty: ignore")
        if self.every is not None and self.at is not None:
            raise ConfigError("annotated_slices: every and at exclude each other; make two entries of them")
        if self.every is not None and self.every < 1:
            raise ConfigError(f"annotated_slices: every must be at least 1, found {self.every}")
        if self.first < 0 or (self.first and self.every is None):
            raise ConfigError(f"annotated_slices: first goes with every and counts from 0, found {self.first}")
        if self.at is not None and (not self.at or min(self.at) < 0):
            raise ConfigError(f"annotated_slices: at needs slices counted from 0, found {list(self.at)}")

    def lines(self, indices: NDArray[np.uint8], where: str) -> NDArray[np.bool_]:
        """The annotated slices of class indices `(1, *spatial)`, in a shape to be broadcast to them.

        Raises:
            DataError: there is no such axis, or no such slice.
        """
        axis = AXES.index(self.axis) + 1
        if axis >= indices.ndim:
            raise DataError(
                f"{where}: has {indices.ndim - 1} dimensions, but annotated_slices lie across {self.axis}\n"
                "declare pictures of which some objects were annotated by data.partial"
            )
        length = indices.shape[axis]
        chosen = np.ones(length, dtype=bool)
        if self.at is not None:
            if max(self.at) >= length:
                raise DataError(
                    f"{where}: annotated_slices name slice {max(self.at)} along {self.axis}, where there are {length}, "
                    "counted from 0\nsay by cases which volumes they are about"
                )
            chosen = np.isin(np.arange(length), self.at)
        if self.every is not None:
            chosen = (np.arange(length) >= self.first) & ((np.arange(length) - self.first) % self.every == 0)
        if self.empty == "ignore":
            others = tuple(a for a in range(indices.ndim) if a != axis)
            chosen &= ((indices != 0) & (indices != IGNORE)).any(axis=others)
        return chosen.reshape([-1 if a == axis else 1 for a in range(indices.ndim)])


@dataclass(frozen=True)
class Annotation:
    """The annotated part of one case.

    Attributes:
        slices: these, where there are any; a voxel is known if one of the entries holds it.
        partial: only some objects: background is unknown.
        rim: voxels around annotated objects in which it is known all the same.
    """

    slices: tuple[AnnotatedSlices, ...] = ()
    partial: bool = False
    rim: float = RIM

    @property
    def complete(self) -> bool:
        return not self.slices and not self.partial

    def marked(self, indices: NDArray[np.uint8], table: LabelTable, where: str) -> NDArray[np.uint8]:
        """Class indices `(1, *spatial)`, on the grid of the label file, with IGNORE for what was not annotated.

        The same array where all was. Also for class indices that were made from object ids.

        Raises:
            DataError: slices that there are not, or no background that could be unknown.
        """
        if self.complete:
            return indices
        known = np.ones(indices.shape, dtype=bool)
        if self.slices:
            known = np.zeros(indices.shape, dtype=bool)
            for entry in self.slices:
                known |= entry.lines(indices, where)
        if self.partial:
            if not table.has_background:
                raise DataError(f"{where}: is declared partial, but {table.describe()} has no background to be unknown")
            known &= (indices != 0) | _near(indices[0], self.rim)[None]
        return np.where(known, indices, np.uint8(IGNORE)).astype(np.uint8)


EVERYTHING = Annotation()


def _near(indices: NDArray[np.uint8], rim: float) -> NDArray[np.bool_]:
    """Voxels within `rim` voxels of an object."""
    from scipy.ndimage import distance_transform_edt

    objects = (indices != 0) & (indices != IGNORE)
    if rim <= 0 or not objects.any():
        found: NDArray[np.bool_] = objects
        return found
    distance: Any = distance_transform_edt(~objects)
    return np.asarray(distance <= rim)


@dataclass(frozen=True)
class AnnotationSettings:
    """The declaration of a data set's annotation.

    Attributes:
        partial: names of cases (or patterns) of which only some objects were annotated.
        rim: see `Annotation`; None leaves it open.
        slices: of volumes.

    Raises:
        ConfigError: a negative rim.
    """

    partial: tuple[str, ...] = ()
    rim: float | None = None
    slices: tuple[AnnotatedSlices, ...] = ()

    def __post_init__(self) -> None:
        if self.rim is not None and not 0 <= self.rim < math.inf:
            raise ConfigError(f"partial_rim must be a number of voxels, 0 or more, found {self.rim}")

    def over(self, declared: AnnotationSettings) -> AnnotationSettings:
        """These, and what the data set declares besides: its partial cases, and what is left open here."""
        rim = self.rim if self.rim is not None else declared.rim
        return AnnotationSettings((*declared.partial, *self.partial), rim, self.slices or declared.slices)

    def of(self, case: str) -> Annotation:
        """The annotated part of a case."""
        slices = tuple(entry for entry in self.slices if entry.cases is None or _named(case, entry.cases))
        return Annotation(slices, _named(case, self.partial), RIM if self.rim is None else self.rim)

    def check_names(self, cases: Sequence[str]) -> None:
        """Refuse names of cases that there are not: what they were to say would silently be lost.

        Raises:
            DataError: naming the one, and the cases that it may have meant.
        """
        for name in (*self.partial, *(name for entry in self.slices for name in entry.cases or ())):
            if not any(_named(case, (name,)) for case in cases):
                near = [case for case in cases if name in case] or list(cases)
                more = ", …" if len(near) > 3 else ""
                raise DataError(
                    f'"{name}" is declared as partly annotated, but no case has that name; '
                    f"did you mean {', '.join(near[:3])}{more}?\nname cases in full, or by a pattern like *{name}"
                )


NOTHING_SAID = AnnotationSettings()


def _named(case: str, names: Iterable[str]) -> bool:
    return any(case == name or fnmatchcase(case, name) for name in names)


def declared_annotation(declared: Mapping[str, Any], where: str) -> AnnotationSettings:
    """From the keys `partial`, `partial_rim` and `annotated_slices` of a `dataset.json`.

    Raises:
        DataError: a key holds something else than it should.
    """
    partial = _names(declared.get("partial", []), "partial", where)
    rim = declared.get("partial_rim")
    if rim is not None and (isinstance(rim, bool) or not isinstance(rim, (int, float))):
        raise DataError(f'{where}: "partial_rim" must be a number of voxels, found {rim!r}')
    given = declared.get("annotated_slices", [])
    entries = [given] if isinstance(given, dict) else given
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DataError(f'{where}: "annotated_slices" must be a list like [{{"axis": "z", "every": 4}}]')
    try:
        return AnnotationSettings(partial, rim, tuple(_entry(entry, where) for entry in entries))
    except ConfigError as error:
        raise DataError(f"{where}: {error}") from error


def _entry(given: Mapping[str, Any], where: str) -> AnnotatedSlices:
    known = [field.name for field in fields(AnnotatedSlices)]
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise DataError(f'{where}: "annotated_slices" knows no "{unknown[0]}"; known are {", ".join(known)}')
    values = dict(given)
    for key in ("every", "first"):
        if key in values and (isinstance(values[key], bool) or not isinstance(values[key], int)):
            raise DataError(f'{where}: "annotated_slices": "{key}" must be a whole number, found {values[key]!r}')
    if "at" in values:
        if not isinstance(values["at"], list) or not all(type(n) is int for n in values["at"]):
            raise DataError(f'{where}: "annotated_slices": "at" must be a list of slices, found {values["at"]!r}')
        values["at"] = tuple(values["at"])
    if "cases" in values:
        values["cases"] = _names(values["cases"], "cases", where)
    return AnnotatedSlices(**values)


def _names(given: Any, key: str, where: str) -> tuple[str, ...]:
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        raise DataError(f'{where}: "{key}" must be a list of case names, found {given!r}')
    return tuple(given)
