"""Parts of a cross-validation; the whole of it is in `tests/flows/test_folds.py`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medunet.cli import run
from medunet.crossvalidate import _copy
from medunet.formats.dispatch import files_of, read_volume, write_volume
from medunet.volume import Volume
from tests.formats.agreement import files_in
from tests.formats.omezarr.zarrfiles import save_array

pytestmark = pytest.mark.usefixtures("plain_runs")


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


@pytest.mark.slow
def test_stated_axes_and_declared_sizes_are_not_those_of_results(tmp_path: Path, rng: np.random.Generator) -> None:
    """A scan of one slice has results of two dimensions, in which there is no Z; its file knows no voxel size."""
    labels = (np.indices((1, 40, 24)).sum(axis=0) % 16 < 8).astype(np.uint8)
    save_array(tmp_path / "data" / "images" / "a.zarr", (labels * 100 + rng.integers(0, 50, labels.shape)).astype("u1"))
    save_array(tmp_path / "data" / "labels" / "a.zarr", labels)
    declared = {"labels": {"background": 0, "cell": 1}, "spacing": [0.5, 0.5], "spacing_units": "um"}
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(declared))
    said = {"data.path": tmp_path / "data", "data.axes": "ZYX", "data.folds": 2, "network.dimensions": 2,
            "network.channels": "[4, 8]", "network.kernels": 3, "network.strides": 2, "patches.size": "[16, 16]",
            "training.minutes": "null", "training.epochs": 1, "training.iterations": 2,
            "training.workers": 0}  # fmt: skip
    (tmp_path / "c.yaml").write_text("")
    sets = [word for key, value in said.items() for word in ("--set", f"{key}={value}")]
    out = tmp_path / "run"
    assert run(["train", str(tmp_path / "c.yaml"), "-o", str(out), "--fold", "all", "--device", "cpu", *sets]) == 0
    for folder in (out / "fold_0", out / "fold_1", out):
        result = read_volume(folder / "validation" / "a.zarr")
        assert result.shape == (24, 40) and result.unit == "pixel"
        assert (folder / "report.html").exists()
