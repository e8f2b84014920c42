"""Masks as other tools save them, written with Pillow and tifffile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from medunet.conversion.colours import packed
from medunet.conversion.masks import read_mask
from medunet.errors import DataError
from medunet.formats.dispatch import write_volume
from medunet.volume import Volume

INSIDE = np.zeros((5, 7), bool)
INSIDE[1:3, 2:6] = True
GREY = INSIDE.astype(np.uint8) * 255
RGB = np.stack([GREY, GREY // 2, np.full_like(GREY, 9)], axis=-1)


def saved(folder: Path, picture: Image.Image, name: str = "m.png") -> Path:
    picture.save(folder / name)
    return folder / name


def test_one_bit_and_grey_and_grey_as_rgb_are_the_same_values(tmp_path: Path) -> None:
    pictures = [
        Image.fromarray(GREY).convert("1"),
        Image.fromarray(GREY),
        Image.fromarray(np.dstack([GREY] * 3)),
        Image.fromarray(np.dstack([GREY, np.full_like(GREY, 255)])),
    ]
    for picture in pictures:
        mask = read_mask(saved(tmp_path, picture))
        assert mask.values is not None and mask.colours is None
        np.testing.assert_array_equal(mask.values, GREY.T)
    tifffile.imwrite(tmp_path / "m.tif", INSIDE)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.tif").values, GREY.T)


@pytest.mark.parametrize("name", ["m.png", "m.tif"])
def test_colours_are_codes(tmp_path: Path, name: str) -> None:
    mask = read_mask(saved(tmp_path, Image.fromarray(RGB), name))
    assert mask.values is None and not mask.lossy
    np.testing.assert_array_equal(mask.as_colours, packed(RGB.transpose(2, 1, 0)))


@pytest.mark.parametrize("name", ["m.png", "m.tif"])
def test_a_palette_has_indices_and_colours(tmp_path: Path, name: str) -> None:
    picture = Image.new("P", (7, 5))
    picture.putdata((INSIDE.astype(np.uint8) * 2).ravel().tolist())
    picture.putpalette([10, 20, 30, 0, 0, 0, 200, 100, 50])
    mask = read_mask(saved(tmp_path, picture, name))
    np.testing.assert_array_equal(mask.values, INSIDE.T * 2)
    colours = np.where(INSIDE.T, 200 << 16 | 100 << 8 | 50, 10 << 16 | 20 << 8 | 30)
    np.testing.assert_array_equal(mask.as_colours, colours)


@pytest.mark.parametrize("hidden", [0, 255])
def test_an_alpha_channel_over_one_colour_is_the_mask(tmp_path: Path, hidden: int) -> None:
    colour = np.where(INSIDE, 255, hidden).astype(np.uint8)
    mask = read_mask(saved(tmp_path, Image.fromarray(np.dstack([colour] * 3 + [GREY]))))
    np.testing.assert_array_equal(mask.values, GREY.T)


def test_an_opaque_alpha_channel_is_dropped(tmp_path: Path) -> None:
    opaque = np.dstack([RGB, np.full_like(GREY, 255)])
    for name in ("m.png", "m.tif"):
        np.testing.assert_array_equal(
            read_mask(saved(tmp_path, Image.fromarray(opaque), name)).as_colours, packed(RGB.transpose(2, 1, 0))
        )


def test_an_alpha_channel_that_says_something_else_is_refused(tmp_path: Path) -> None:
    several = np.dstack([RGB, np.where(np.arange(7) < 3, 0, 255) * np.ones((5, 1))]).astype(np.uint8)
    with pytest.raises(DataError, match="not clear what transparent pixels mean"):
        read_mask(saved(tmp_path, Image.fromarray(several)))
    half = np.dstack([RGB, GREY // 2])
    with pytest.raises(DataError, match=r"m\.png: 22\.9% of its pixels are half transparent"):
        read_mask(saved(tmp_path, Image.fromarray(half)))


def test_deep_colours_and_too_many_channels_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "deep.tif", RGB.astype(np.uint16) * 100, photometric="rgb")
    with pytest.raises(DataError, match="colours of type uint16"):
        read_mask(tmp_path / "deep.tif")
    tifffile.imwrite(tmp_path / "five.tif", np.zeros((5, 4, 6), np.uint8), metadata={"axes": "CYX"})
    with pytest.raises(DataError, match="has 5 channels"):
        read_mask(tmp_path / "five.tif")


def test_only_pictures_and_tiff_have_alpha_channels(tmp_path: Path) -> None:
    """The second of two structures is no transparency of the first one."""
    write_volume(Volume(np.stack([INSIDE, INSIDE]).astype(np.uint8)), tmp_path / "two.nii.gz")
    write_volume(Volume(np.stack([INSIDE] * 4).astype(np.uint8)), tmp_path / "four.nrrd")
    for name, count in (("two.nii.gz", 2), ("four.nrrd", 4)):
        with pytest.raises(DataError, match=f"{name}: has {count} channels; a mask has one"):
            read_mask(tmp_path / name)
    grey_alpha = np.stack([GREY, GREY], axis=-1)
    tifffile.imwrite(tmp_path / "m.tif", grey_alpha, photometric="minisblack", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(read_mask(tmp_path / "m.tif").values, GREY.T)


def test_a_damaged_mask_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(RGB))
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=r"m\.png: "):
        read_mask(path)


def test_values_beyond_8_bits_are_no_colours(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "ids.tif", np.full((4, 5), 300, np.uint16))
    with pytest.raises(DataError, match="a colour table needs 8-bit colours"):
        _ = read_mask(tmp_path / "ids.tif").as_colours
