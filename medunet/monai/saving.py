"""Saving: label maps are written on exactly their scan's grid."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from numpy.typing import NDArray

from medunet.datasets.labels import whole_numbers
from medunet.errors import ConfigError, DataError, OutputError
from medunet.formats.dispatch import WRITABLE, case_stem, default_suffix, read_volume
from medunet.formats.results import write_together
from medunet.monai.scans import CASE
from medunet.system.wording import times_text
from medunet.volume import Volume, corners_apart, tolerance


class SaveLabelsd(MapTransform):  # type: ignore[misc]
    """Writes label maps on exactly the grid of the scan's file, with its header: affine, codes, units.

    A file appears whole or not at all; several keys of one scan together. The scan's file is read once more for its
    header. A label map that lies on another grid is refused: `Invertd` takes it back first.

    Args:
        keys: of label maps `(1, *spatial)`, in whole numbers.
        like: the key of the scan.
        output_dir: made if it is missing; files are called `CASE`, `postfix` and `suffix`.
        postfix: of each key's files, such as `_seg`; one text for one key.
        suffix: such as `.nii.gz`; by default the scan's own where it can be written.
        overwrite: whether files that exist are replaced; a scan never is.

    Raises:
        ConfigError: two keys would write one file, or the suffix cannot be written.
    """

    def __init__(
        self,
        keys: KeysCollection,
        like: Hashable,
        output_dir: Path | str,
        postfix: str | tuple[str, ...] = "",
        suffix: str | None = None,
        overwrite: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self._postfixes = (postfix,) if isinstance(postfix, str) else tuple(postfix)
        if len(self._postfixes) != len(self.keys) or len(set(self._postfixes)) != len(self.keys):
            raise ConfigError(f"the keys {self.keys!r} need a different postfix each, found {self._postfixes!r}")
        if suffix is not None and suffix not in WRITABLE:
            raise ConfigError(f"suffix={suffix!r} cannot be written; choose one of {', '.join(WRITABLE)}")
        self._like, self._folder, self._suffix, self._overwrite = like, Path(output_dir), suffix, overwrite

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The data as they are, after the files are written.

        Raises:
            DataError: the key of the scan is missing, a label map lies on another grid, has several channels or holds
                fractions.
            OutputError: a file exists, or cannot be written.
        """
        found = dict(data)
        if not isinstance(found.get(self._like), torch.Tensor):
            raise DataError(f"{self._like!r} is no scan among {', '.join(map(repr, found))}; SaveLabelsd needs it")
        shown, scan = Volume.from_metatensor(found[self._like]), _scan_of(found[self._like])
        name = getattr(found[self._like], "meta", {}).get(CASE) or case_stem(scan.name)
        results = {}
        for key, postfix in self.key_iterator(found, self._postfixes):
            values = _values(found[key], str(key), shown, scan)
            path = self._folder / f"{name}{postfix}{self._suffix or default_suffix(scan.with_array(values))}"
            if scan.origin is not None and path.resolve() == scan.origin.path.resolve():
                raise OutputError(f"{path}: is the scan itself; choose another output_dir, or a postfix")
            results[path] = partial(_same, values)
        if results:
            write_together(scan, results, self._overwrite)
        return found


def _scan_of(tensor: torch.Tensor) -> Volume:
    """The scan as its file has it, or as the tensor is where there is no file."""
    given = Volume.from_metatensor(tensor)
    if given.origin is None or not given.origin.path.exists():
        return given
    return read_volume(given.origin.path)


def _values(labels: Any, key: str, shown: Volume, scan: Volume) -> NDArray[Any]:
    """The label values `(1, *spatial)` on the scan's grid, in the smallest integer type.

    Args:
        shown: the scan as it is in the data, which a label map without a grid of its own belongs to.
    """
    given = Volume.from_metatensor(labels if isinstance(labels, torch.Tensor) else torch.as_tensor(labels))
    if given.channels != 1:
        raise DataError(
            f"{key!r} has {given.channels} channels, expected one of label values; take the largest first, "
            "by AsDiscreted(argmax=True)"
        )
    if not isinstance(labels, MetaTensor):
        given = replace(given, affine=shown.affine)
    given = replace(given, unit=shown.unit)
    if given.shape != scan.shape or corners_apart(scan, given) > tolerance(scan):
        raise DataError(
            f"{scan.name}: {key!r} lies on another grid ({times_text(given.shape)}) than the scan's file "
            f"({times_text(scan.shape)})\ntake it back first, by Invertd({key!r}, transform=…, orig_keys=…)"
        )
    values = whole_numbers(given.array, repr(key))
    smallest = np.result_type(np.min_scalar_type(int(values.min())), np.min_scalar_type(int(values.max())))
    return values.astype(smallest)


def _same(values: NDArray[Any]) -> NDArray[Any]:
    return values
