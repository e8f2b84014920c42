"""Table of objects (where each one is, how large, how bright in every channel), and the files beside an id map."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medunet.formats.dispatch import case_stem
from medunet.system.blocks import spans
from medunet.system.files import write_text
from medunet.volume import Volume

_SLAB = 2**22
"""Voxels that are looked at together, so that memory does not grow with the scan."""

_LETTERS = "xyz"


@dataclass(frozen=True)
class ObjectFiles:
    """The files that are wanted.

    Attributes:
        table: `CASE_objects.csv`: id, centroid, size, box and mean intensities of each object.
        rois: `CASE_rois.zip`: outlines that ImageJ's and Fiji's ROI Manager opens.
    """

    table: bool = False
    rois: bool = False

    def names(self, case: str) -> list[str]:
        """The names of the files of a case."""
        return [*([f"{case}_objects.csv"] if self.table else []), *([f"{case}_rois.zip"] if self.rois else [])]

    def write(self, target: Path, ids: Volume, image: Volume, channels: Sequence[str], overwrite: bool) -> list[Path]:
        """Write them beside the id map `target`, each whole or not at all; returned is where they are.

        Args:
            ids: of one channel, on the image's grid.
            channels: names of the image's channels, for the table's columns.

        Raises:
            OutputError: a file exists and `overwrite` is false, or cannot be written.
        """
        from medunet.instances.rois import write_rois

        written = [target.with_name(name) for name in self.names(case_stem(target))]
        for path in written:
            if path.suffix == ".csv":
                table = measure_objects(ids.array[0], image.affine, image.unit, image.array, channels)
                write_text(path, table.csv_text(), overwrite)
            else:
                write_rois(path, ids.array[0], overwrite=overwrite)
        return written


@dataclass(frozen=True)
class ObjectTable:
    """Measurements of objects, in the order of their ids; arrays have one row per object.

    Attributes:
        ids: ``(n,)`` int64.
        voxels: ``(n,)`` int64, pixels in two dimensions.
        centroids: ``(n, d)`` mean position of the voxels' centres, in `unit`, where the affine puts them; without a
            rotation that is index times spacing, so the centre of the first voxel is 0.
        sizes: ``(n,)`` volume in `unit` cubed, or area in `unit` squared.
        starts, stops: ``(n, d)`` bounding box in voxels; the first index, and the one after the last.
        intensities: ``(n, channels)`` mean of the image's own values.
        unit: of lengths: ``um``, ``mm``, ``nm``, or ``pixel`` where the scan has no physical size.
        channels: their names; `channel_0`, … where they have none.
    """

    ids: NDArray[np.int64]
    voxels: NDArray[np.int64]
    centroids: NDArray[np.float64]
    sizes: NDArray[np.float64]
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    intensities: NDArray[np.float64]
    unit: str
    channels: tuple[str, ...]

    @property
    def dimensions(self) -> int:
        return int(self.centroids.shape[1])

    def csv_text(self) -> str:
        """Comma-separated, one line per object below the names of the columns, which say their units."""
        letters = _LETTERS[: self.dimensions]
        what = "volume" if self.dimensions == 3 else "area"
        names = ["id", *(f"centroid_{letter}_{self.unit}" for letter in letters)]
        names += [f"{what}_{self.unit}{self.dimensions}", "voxels" if self.dimensions == 3 else "pixels"]
        names += [f"box_{letter}_{end}" for letter in letters for end in ("start", "stop")]
        names += [f"mean_{name}" for name in self.channels]
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(names)
        for row in range(len(self.ids)):
            box = np.stack([self.starts[row], self.stops[row]], axis=1).ravel()
            reals = [f"{value:.9g}" for value in (*self.centroids[row], self.sizes[row])]
            means = [f"{value:.9g}" for value in self.intensities[row]]
            writer.writerow([self.ids[row], *reals, self.voxels[row], *box, *means])
        return buffer.getvalue()


def measure_objects(
    ids: NDArray[Any],
    affine: NDArray[np.float64],
    unit: str,
    image: NDArray[Any] | None = None,
    channels: Sequence[str] = (),
) -> ObjectTable:
    """Measure every object of an id map; an object need not be connected. Without objects the table has no row.

    Args:
        ids: ``(x, y)`` or ``(x, y, z)`` whole numbers; 0 and what is below it are no objects.
        affine: ``(4, 4)``, voxel index to position in `unit`.
        image: ``(channel, *spatial)``; None measures no intensities.
        channels: one name per channel of the image; too few are made up, and equal ones get their number.
    """
    dimensions, count = ids.ndim, 0 if image is None else len(image)
    slabs = list(spans(len(ids), ids.size // max(1, len(ids)), _SLAB))
    known = np.unique(np.concatenate([np.unique(ids[slab]) for slab in slabs]))
    known = known[known > 0].astype(np.int64)
    n = len(known)
    voxels = np.zeros(n, np.int64)
    sums, brightness = np.zeros((n, dimensions)), np.zeros((n, count))
    starts = np.full((n, dimensions), np.iinfo(np.int64).max)
    stops = np.zeros((n, dimensions), np.int64)
    for slab in slabs:
        places = np.nonzero(ids[slab] > 0)
        if not places[0].size:
            continue
        rows = np.searchsorted(known, ids[slab][places].astype(np.int64))
        voxels += np.bincount(rows, minlength=n)
        order = np.argsort(rows, kind="stable")
        here, first = np.unique(rows[order], return_index=True)
        for axis, place in enumerate(places):
            index = place + (slab.start if axis == 0 else 0)
            sums[:, axis] += np.bincount(rows, index, n)
            starts[here, axis] = np.minimum(starts[here, axis], np.minimum.reduceat(index[order], first))
            stops[here, axis] = np.maximum(stops[here, axis], np.maximum.reduceat(index[order], first) + 1)
        for channel in range(count):
            assert image is not None
            brightness[:, channel] += np.bincount(rows, image[channel][slab][places].astype(np.float64), n)
    shares = 1.0 / voxels[:, np.newaxis]
    matrix, columns = affine[:dimensions, :dimensions], affine[:3, :dimensions]
    return ObjectTable(
        ids=known,
        voxels=voxels,
        centroids=sums * shares @ matrix.T + affine[:dimensions, 3],
        # the affine may turn and shear
        sizes=voxels.astype(np.float64) * float(np.sqrt(np.linalg.det(columns.T @ columns))),
        starts=starts,
        stops=stops,
        intensities=brightness * shares,
        unit=unit,
        channels=_channel_names(channels, count),
    )


def _channel_names(names: Sequence[str], count: int) -> tuple[str, ...]:
    full = [*names[:count], *("" for _ in range(count - len(names)))]
    return tuple(
        name if name and full.count(name) == 1 else f"{name or 'channel'}_{number}" for number, name in enumerate(full)
    )
