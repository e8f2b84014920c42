"""Files of objects: a table and ImageJ's ROIs, which `predict --instances` writes beside an id map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medunet.formats.dispatch import case_stem
from medunet.volume import Volume


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
        from medunet.instances.table import measure_objects, write_table

        written = [target.with_name(name) for name in self.names(case_stem(target))]
        for path in written:
            if path.suffix == ".csv":
                table = measure_objects(ids.array[0], image.affine, image.unit, image.array, channels)
                write_table(table, path, overwrite)
            else:
                write_rois(path, ids.array[0], overwrite=overwrite)
        return written
