"""The fingerprint against numbers known from how a data set was made, maps drawn by hand, and scikit-image."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from skimage.measure import label as label_parts

from medunet.datasets.catalogue import read_data_set
from medunet.datasets.labels import table_from_names
from medunet.errors import DataError
from medunet.planning.fingerprint import Objects, connected_parts, instance_objects, take_fingerprint

LABELS = table_from_names({"background": 0, "organ": 1, "rare": 2}, 9)


def write(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def make(folder: Path, rng: np.random.Generator) -> Path:
    for n, spacing in enumerate((1.0, 2.0)):
        image = np.zeros((10, 8, 6), np.float32)
        image[2:8, 2:6, 1:5] = rng.normal(100, 5, (6, 4, 4))
        label = np.zeros(image.shape, np.uint8)
        label[2:8, 2:6, 1:5] = 1
        label[2, 2, 1] = 2
        label[0, 0, 0] = 9
        # Stored as (z, y, x): the facts must be about right, anterior, superior.
        affine = np.eye(4)
        affine[:3, :3] = np.array([[0, 0, 1.0], [0, 1, 0], [1, 0, 0]]) * spacing
        write(folder / "images" / f"c{n}.nii", image, affine)
        write(folder / "labels" / f"c{n}.nii", label, affine)
    return folder


def test_facts(tmp_path: Path, rng: np.random.Generator) -> None:
    found = take_fingerprint(read_data_set(make(tmp_path, rng)).cases, LABELS)
    assert [case.name for case in found.cases] == ["c0", "c1"]
    first = found.cases[0]
    assert first.shape == (6, 8, 10) and first.spacing == (1, 1, 1)
    assert first.voxels == (480 - 96 - 1, 95, 1) and first.ignored == 1
    assert first.content == pytest.approx(96 / 480)
    assert first.zeros == pytest.approx(1 - 96 / 480)
    assert found.median_spacing() == (1.5, 1.5, 1.5)
    assert sum(found.class_frequencies()) == pytest.approx(1)
    values = found.intensities[0]
    assert 80 < values.low < values.mean < values.high < 120 and values.std == pytest.approx(5, rel=0.3)


def test_cases_that_differ_in_channels_are_named(tmp_path: Path, rng: np.random.Generator) -> None:
    make(tmp_path, rng)
    write(
        tmp_path / "images" / "c1.nii", np.zeros((10, 8, 6, 2), np.float32), nib.load(tmp_path / "labels/c1.nii").affine
    )
    with pytest.raises(DataError, match=r"c1: has 2 channel\(s\) and 3 dimensions, c0 has 1 and 3"):
        take_fingerprint(read_data_set(tmp_path).cases, LABELS)


def test_parts_by_hand() -> None:
    label = np.zeros((6, 6), np.uint8)
    label[0, 0] = label[1, 1] = 1  # corners connect
    label[4:6, 4:6] = 1
    label[3, 0] = 3
    assert connected_parts(label, (1, 2, 3)) == (Objects(2, 2, 3), Objects(0, 0, 0), Objects(1, 1, 1))
    assert connected_parts(label, (0,))[0].count == 1
    assert connected_parts(label, ()) == ()


def test_parts_are_scikit_images(rng: np.random.Generator) -> None:
    label = rng.integers(0, 3, (9, 10, 11)).astype(np.uint8) * (rng.random((9, 10, 11)) < 0.1).astype(np.uint8)
    for c, found in zip((0, 1, 2), connected_parts(label, (0, 1, 2)), strict=True):
        sizes = np.bincount(label_parts(label == c, connectivity=3).ravel())[1:]
        assert (found.count, found.smallest, found.median) == (sizes.size, sizes.min(), int(np.median(sizes)))


def test_objects_touch_across_faces_only() -> None:
    ids = np.zeros((5, 7), np.int64)
    ids[0, 0:2] = 10
    ids[0, 2] = 20  # touches 10
    ids[1, 3] = 30  # a corner of 20
    ids[4, 6] = 99
    assert instance_objects(ids, None) == Objects(4, 1, 1, 2)
    assert instance_objects(ids, 20) == Objects(3, 1, 1, 0)
    assert instance_objects(np.zeros((3, 3), int), None) == Objects(0, 0, 0)
    assert instance_objects(np.array([[1, 2]]), None).touching == 2
