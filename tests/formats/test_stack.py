"""Folders of sections as one volume."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from medunet.errors import DataError
from medunet.formats.dispatch import default_suffix, files_of, read_grid, read_volume, stack_files, write_volume
from medunet.volume import Volume
from tests.formats.agreement import read_checked


def sections(folder: Path, names: list[str], shape: tuple[int, ...] = (6, 7), dtype: str = "uint8") -> np.ndarray:
    folder.mkdir(parents=True)
    array = np.random.default_rng(0).integers(0, 200, (len(names), *shape)).astype(dtype)
    for name, plane in zip(names, array, strict=True):
        Image.fromarray(plane).save(folder / name)
    return array


def test_sections_are_ordered_as_people_count(tmp_path: Path) -> None:
    names = [f"slice_{n}.png" for n in (8, 9, 10, 11, 100)]
    array = sections(tmp_path / "s", [*names[:4]])
    volume = read_checked(tmp_path / "s")
    np.testing.assert_array_equal(volume.array, array.transpose(2, 1, 0)[np.newaxis])
    assert (volume.unit, volume.spacing, default_suffix(volume)) == ("pixel", (1, 1, 1), ".tif")
    assert [path.name for path in files_of(tmp_path / "s")] == names[:4]
    assert "slice_8.png to slice_11.png" in read_grid(tmp_path / "s").details["stack"]


def test_colour_and_tiff_sections_with_their_pixel_size(tmp_path: Path) -> None:
    array = sections(tmp_path / "rgb", ["a1.png", "a2.png"], (6, 7, 3))
    np.testing.assert_array_equal(read_checked(tmp_path / "rgb").array, array.transpose(3, 2, 1, 0))
    (tmp_path / "tiff").mkdir()
    planes = np.arange(3 * 6 * 7, dtype=np.uint16).reshape(3, 6, 7)
    for number, plane in enumerate(planes):
        path = tmp_path / "tiff" / f"z{number * 2}.tif"
        tifffile.imwrite(path, plane, imagej=True, resolution=(2, 4), metadata={"unit": "um"})
    volume = read_checked(tmp_path / "tiff")
    np.testing.assert_array_equal(volume.array[0], planes.T)
    assert (volume.unit, volume.spacing) == ("um", (0.5, 0.25, 0.25))
    labels = volume.with_array((volume.array > 50).astype(np.uint8))
    write_volume(labels, tmp_path / "labels.tif", labels=True)
    np.testing.assert_array_equal(read_volume(tmp_path / "labels.tif").affine, volume.affine)


def test_what_is_no_whole_stack_is_refused(tmp_path: Path) -> None:
    sections(tmp_path / "gap", ["s_01.png", "s_02.png", "s_04.png", "s_05.png"])
    with pytest.raises(DataError, match=r"s_02\.png is followed by s_04\.png"):
        read_volume(tmp_path / "gap")
    sections(tmp_path / "size", ["s_01.png", "s_02.png"])
    Image.fromarray(np.zeros((6, 8), np.uint8)).save(tmp_path / "size" / "s_03.png")
    with pytest.raises(DataError, match=r"s_03\.png: has 8×6 pixels.*7×6 pixels"):
        read_grid(tmp_path / "size")
    sections(tmp_path / "type", ["s_01.png", "s_02.png"])
    Image.fromarray(np.zeros((6, 7), np.uint16)).save(tmp_path / "type" / "s_03.png")
    with pytest.raises(DataError, match="uint16"):
        read_grid(tmp_path / "type")
    sections(tmp_path / "one", ["s_01.png"])
    with pytest.raises(DataError, match=r"1 section\(s\)"):
        read_volume(tmp_path / "one")
    (tmp_path / "none").mkdir()
    assert stack_files(tmp_path / "none") == []
    with pytest.raises(DataError, match="sections of one stack"):
        read_volume(tmp_path / "none")
    sections(tmp_path / "mixed", ["1.png", "2.png", "3.jpg"])
    assert stack_files(tmp_path / "mixed") == []
    with pytest.raises(DataError, match="only TIFF"):
        read_volume(tmp_path / "one", frame=1)
    (tmp_path / "deep").mkdir()
    for number in range(2):
        write_volume(Volume(np.zeros((1, 7, 6, 3), np.uint8)), tmp_path / "deep" / f"{number}.tif")
    with pytest.raises(DataError, match="is a volume"):
        read_volume(tmp_path / "deep")


@pytest.mark.data
def test_the_real_sections_of_a_fly_are_a_stack(real_data: Path) -> None:
    images = real_data / "vnc_sstem" / "images"
    volume = read_volume(images)
    assert volume.array.shape == (1, 1024, 1024, len(list(images.iterdir())))
    np.testing.assert_array_equal(volume.array[..., 3], read_volume(images / "slice_03.png").array)
