"""Colours of labels: read back tag by tag, shown by ImageJ's own arithmetic, and unseen by other readers."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from medunet.formats.dispatch import read_volume, write_volume
from medunet.formats.tiff import lookup_table
from medunet.volume import Volume


def drawn(page: np.ndarray, low: float, high: float) -> np.ndarray:
    """The index into the lookup table, as ImageJ's ByteProcessor (as it is) and ShortProcessor.create8BitImage have it.

    ``scale = 256.0 / (max - min + 1); value = (pixel - min) * scale + 0.5``, cut off at 255.
    """
    if page.dtype == np.uint8:
        assert (low, high) == (0, 255)
        return page.astype(int)
    return np.minimum(((page - low) * (256.0 / (high - low + 1)) + 0.5).astype(int), 255)


@pytest.mark.parametrize("top", [1, 255, 256, 511, 60000])
def test_imagej_draws_no_object_in_the_background_s_black(tmp_path: Path, top: int) -> None:
    labels = np.linspace(0, top, 4 * 5 * 3).astype(np.int64).reshape(1, 5, 4, 3)
    labels[0, 0, 0] = (0, 1, top)
    spacing = np.diag([0.2, 0.3, 1.5, 1])
    write_volume(Volume(labels, spacing, "um"), tmp_path / "labels.tif", labels=True)
    with tifffile.TiffFile(tmp_path / "labels.tif") as file:
        described = file.imagej_metadata
        assert file.is_imagej and described is not None
        assert (described["slices"], described["spacing"], described["unit"]) == (3, 1.5, "um")
        for page in file.pages:
            # ImageJ opens one page alone if only that has a colour map (seen with its source of June 2026)
            assert page.tags["PhotometricInterpretation"].value == 1
            table = np.array(page.tags["ColorMap"].value).reshape(3, 256) >> 8
            np.testing.assert_array_equal(table, lookup_table())
            index = drawn(page.asarray(), described["min"], described["max"])
            assert ((index > 0) == (page.asarray() > 0)).all()
    back = read_volume(tmp_path / "labels.tif")
    np.testing.assert_array_equal(back.array, labels)
    assert back.array.dtype == (np.uint8 if top < 256 else np.uint16)
    with Image.open(tmp_path / "labels.tif") as picture:
        assert picture.mode in ("L", "I;16")
        np.testing.assert_array_equal(np.array(picture), labels[0, :, :, 0].T)


def test_itk_reads_the_labels_and_no_colours(tmp_path: Path) -> None:
    labels = np.arange(60, dtype=np.uint8).reshape(1, 5, 4, 3)
    write_volume(Volume(labels, unit="um"), tmp_path / "labels.tif", labels=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from SWIG; as an error it crashes the interpreter
        import itk

        read = itk.array_from_image(itk.imread(str(tmp_path / "labels.tif")))
    np.testing.assert_array_equal(read, labels[0].T)


def test_images_and_wide_labels_have_no_colours(tmp_path: Path) -> None:
    write_volume(Volume(np.ones((1, 4, 5), np.uint8)), tmp_path / "image.tif")
    write_volume(Volume(np.full((1, 4, 5), 70000)), tmp_path / "wide.tif", labels=True)
    for name in ("image.tif", "wide.tif"):
        with tifffile.TiffFile(tmp_path / name) as file:
            assert "ColorMap" not in file.pages[0].tags


def test_the_table_starts_black_and_neighbours_differ() -> None:
    table = lookup_table().T.astype(int)
    assert table[0].tolist() == [0, 0, 0]
    assert table[1:].max(axis=1).min() > 100
    assert np.abs(np.diff(table, axis=0)).sum(axis=1).min() > 60
    assert len({tuple(colour) for colour in table}) == 256
