"""The table of objects against scikit-image's region properties."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import regionprops_table

from medunet.instances import table as table_module
from medunet.instances.table import measure_objects
from medunet.system.files import write_text


@settings(deadline=None, max_examples=60)
@given(
    shape=st.lists(st.integers(1, 9), min_size=2, max_size=3),
    seed=st.integers(0, 2**20),
    top=st.sampled_from([1, 3, 70000]),
    slab=st.sampled_from([1, 30, 2**22]),
    channels=st.integers(0, 2),
)
def test_agrees_with_scikit_image(shape: list[int], seed: int, top: int, slab: int, channels: int) -> None:
    """Scattered objects with ids that are not consecutive, in slabs of any thickness."""
    rng = np.random.default_rng(seed)
    ids = (rng.integers(0, 4, shape) * top).astype(np.int32)
    image = rng.normal(100, 30, (channels, *shape))
    spacing = rng.uniform(0.1, 3, len(shape))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_module, "_SLAB", slab)
        table = measure_objects(ids, np.diag([*spacing, 1, 1][:3] + [1]), "um", image)
    names = ("label", "num_pixels", "bbox", "centroid") + (("intensity_mean",) if channels else ())
    wanted = regionprops_table(ids, np.moveaxis(image, 0, -1) if channels else None, names)
    d = len(shape)
    np.testing.assert_array_equal(table.ids, wanted["label"])
    np.testing.assert_array_equal(table.voxels, wanted["num_pixels"])
    np.testing.assert_allclose(table.sizes, wanted["num_pixels"] * np.prod(spacing))
    for axis in range(d):
        np.testing.assert_array_equal(table.starts[:, axis], wanted[f"bbox-{axis}"])
        np.testing.assert_array_equal(table.stops[:, axis], wanted[f"bbox-{axis + d}"])
        np.testing.assert_allclose(table.centroids[:, axis], wanted[f"centroid-{axis}"] * spacing[axis], atol=1e-12)
    for channel in range(channels):
        np.testing.assert_allclose(table.intensities[:, channel], wanted[f"intensity_mean-{channel}"])


def test_by_hand(tmp_path: Path) -> None:
    """A box of 2×3×4 voxels of 0.5×0.25×2 µm, and one voxel."""
    ids = np.zeros((10, 10, 10), np.uint16)
    ids[2:4, 3:6, 4:8] = 7
    ids[0, 0, 9] = 9
    image = np.stack([np.full(ids.shape, 5), ids]).astype(np.uint16)
    table = measure_objects(ids, np.diag([0.5, 0.25, 2, 1]), "um", image, ["DAPI", "GFP"])
    write_text(tmp_path / "objects.csv", table.csv_text())
    first, second = csv.DictReader((tmp_path / "objects.csv").read_text().splitlines())
    assert first == {
        "id": "7", "centroid_x_um": "1.25", "centroid_y_um": "1", "centroid_z_um": "11", "volume_um3": "6",
        "voxels": "24", "box_x_start": "2", "box_x_stop": "4", "box_y_start": "3", "box_y_stop": "6",
        "box_z_start": "4", "box_z_stop": "8", "mean_DAPI": "5", "mean_GFP": "7",
    }  # fmt: skip
    assert (second["id"], second["volume_um3"], second["mean_GFP"]) == ("9", "0.25", "9")
    with pytest.raises(OSError, match="exists already"):
        write_text(tmp_path / "objects.csv", table.csv_text())


def test_without_objects_there_is_the_header_alone() -> None:
    table = measure_objects(np.zeros((4, 5), np.uint8), np.eye(4), "pixel", np.ones((2, 4, 5)), ["grey", "grey"])
    assert table.csv_text() == (
        "id,centroid_x_pixel,centroid_y_pixel,area_pixel2,pixels,"
        "box_x_start,box_x_stop,box_y_start,box_y_stop,mean_grey_0,mean_grey_1\n"
    )


def test_a_turned_scan_has_its_own_positions_and_volumes() -> None:
    turn = np.array([[0, -2, 0, 10], [3, 0, 0, 20], [0, 0, 4, 30], [0, 0, 0, 1]], float)
    ids = np.zeros((5, 5, 5), np.uint8)
    ids[1, 2, 3] = 1
    table = measure_objects(ids, turn, "mm")
    np.testing.assert_array_equal(table.centroids, [[10 - 4, 20 + 3, 30 + 12]])
    assert table.sizes == [pytest.approx(24)]
