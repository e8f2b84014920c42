"""Parts of a cross-validation; the whole of it is in `tests/flows/test_folds.py`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medunet.crossvalidate import _copy
from medunet.data.formats import files_of, read_volume, write_volume
from medunet.data.volume import Volume
from tests.data.formats.agreement import files_in


@pytest.mark.parametrize("suffix", [".nii.gz", ".mha", ".mhd", ".nhdr", ".hdr", ".ome.zarr", ".tif"])
def test_a_copy_of_a_label_map_is_whole_and_stands_alone(tmp_path: Path, suffix: str, rng: np.random.Generator) -> None:
    """Also where it is a folder or several files, and where one of an earlier time is replaced."""
    affine = np.diag([0.5, 0.75, 2.0, 1.0])
    source, target = tmp_path / "fold_0" / f"case{suffix}", tmp_path / "validation" / f"case{suffix}"
    for top in (1, 3):
        array = rng.integers(0, top + 1, (1, 7, 6, 5)).astype(np.uint8)
        write_volume(Volume(array, affine), source, overwrite=True, labels=True)
        _copy(source, target)
    expected = read_volume(source)
    for path in files_of(source):
        path.unlink()
    found = read_volume(target)
    np.testing.assert_array_equal(found.array, array)
    np.testing.assert_array_equal(found.affine, expected.affine)
    assert all(name.startswith("case") for name in files_in(target.parent))
