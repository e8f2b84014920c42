"""ROI sets: read back with roifile and drawn again by scikit-image, pixel centres against polygons."""

from __future__ import annotations

from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from roifile import ImagejRoi
from skimage.draw import polygon

from medunet.errors import DataError, OutputError
from medunet.formats.dispatch import read_volume
from medunet.instances.rois import outlines, rois, write_rois


def inside(roi: ImagejRoi, shape: tuple[int, int]) -> np.ndarray:
    """The pixels ``(x, y)`` whose centres lie inside by the even-odd rule."""
    mask = np.zeros(shape, bool)
    for line in roi.coordinates(multi=True):
        # a pixel's centre lies half a pixel from its first corner
        mask[polygon(line[:, 0] - 0.5, line[:, 1] - 0.5, shape)] ^= True
    return mask


def drawn_again(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    ids = np.zeros(shape, np.int64)
    with ZipFile(path) as archive:
        for name in archive.namelist():
            roi = ImagejRoi.frombytes(archive.read(name))
            assert name == f"{roi.name}.roi"
            plane = ids if len(shape) == 2 else ids[:, :, roi.position - 1]
            mask = inside(roi, plane.shape)
            assert not plane[mask].any()
            plane[mask] = int(roi.name.split("_")[0])
    return ids


@pytest.mark.slow
@settings(deadline=None, max_examples=80)
@given(ids=arrays(np.uint32, st.tuples(*[st.integers(1, 8)] * 3), elements=st.sampled_from([0, 1, 2, 4_000_000_000])))
def test_outlines_drawn_again_are_the_objects(tmp_path_factory: pytest.TempPathFactory, ids: np.ndarray) -> None:
    """Noise has parts, holes, islands in holes and touching corners."""
    path = tmp_path_factory.mktemp("roi") / "objects.zip"
    for part in (ids, ids[:, :, 0]):
        write_rois(path, part, overwrite=True)
        slices = [part[:, :, z] for z in range(part.shape[2])] if part.ndim == 3 else [part]
        assert len(ZipFile(path).namelist()) == sum(len(np.unique(plane[plane > 0])) for plane in slices)
        np.testing.assert_array_equal(drawn_again(path, part.shape), part)


def test_a_square_has_four_corners_and_its_slice(tmp_path: Path) -> None:
    ids = np.zeros((9, 8, 7), np.uint16)
    ids[3:6, 1:5, 4] = 12
    (roi,) = rois(ids)
    assert (roi.name, roi.position, roi.left, roi.top, roi.right, roi.bottom) == ("12_z005", 5, 3, 1, 6, 5)
    np.testing.assert_array_equal(roi.coordinates(), [[3, 1], [6, 1], [6, 5], [3, 5]])


def test_touching_corners_are_one_line_and_a_hole_is_a_second() -> None:
    corners = np.eye(2, dtype=bool)
    assert len(outlines(corners)) == 1 and len(outlines(corners[::-1])) == 1
    ring = np.ones((3, 3), bool)
    ring[1, 1] = False
    assert [len(line) for line in outlines(ring)] == [4, 4]
    assert outlines(np.zeros((3, 3), bool)) == []


def test_without_objects_the_archive_is_empty(tmp_path: Path) -> None:
    ignored = np.full((4, 5), 255, np.uint8)
    write_rois(tmp_path / "none.zip", ignored, ignore=255)
    assert ZipFile(tmp_path / "none.zip").namelist() == []
    with pytest.raises(OutputError, match="exists already"):
        write_rois(tmp_path / "none.zip", ignored)


def test_what_cannot_be_said_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="float64"):
        list(rois(np.zeros((3, 3))))
    with pytest.raises(DataError, match="negative"):
        list(rois(np.full((3, 3), -1)))
    with pytest.raises(OutputError, match="60535"):
        write_rois(tmp_path / "wide.zip", np.zeros((60536, 1), np.uint8))
    assert not (tmp_path / "wide.zip").exists()


@pytest.mark.data
def test_real_cells_come_back(tmp_path: Path, real_data: Path) -> None:
    for name in ("ctc_dic_hela", "stardist_nuclei3d"):
        first = sorted((real_data / name / "labels").iterdir())[0]
        ids = read_volume(first).array[0]
        write_rois(tmp_path / f"{name}.zip", ids)
        np.testing.assert_array_equal(drawn_again(tmp_path / f"{name}.zip", ids.shape), ids)
