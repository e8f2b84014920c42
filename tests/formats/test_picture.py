"""PNG and JPEG, with Pillow and imagecodecs as independent writers."""

from __future__ import annotations

import io
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from medunet.errors import DataError, OutputError
from medunet.formats.dispatch import read_volume, write_volume
from medunet.volume import Volume
from tests.formats.agreement import check_label_grid, read_checked, write_and_read


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(
    width=st.integers(1, 9),
    height=st.integers(1, 9),
    kind=st.sampled_from([("uint8", 1), ("uint16", 1), ("uint8", 3)]),
    seed=st.integers(0, 99),
)
def test_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, width: int, height: int, kind: tuple[str, int], seed: int
) -> None:
    dtype, channels = kind
    array = np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, (channels, width, height), dtype, True)
    path = tmp_path_factory.mktemp("png") / "picture.png"
    back = write_and_read(Volume(array, unit="pixel"), path)
    np.testing.assert_array_equal(back.array, array)
    assert back.array.dtype == array.dtype
    with Image.open(path) as picture:
        assert picture.size == (width, height)
        np.testing.assert_array_equal(np.array(picture).T, array[0] if channels == 1 else array)


def test_x_is_the_column(tmp_path: Path) -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)  # three rows of four columns
    Image.fromarray(pixels).save(tmp_path / "a.png")
    volume = read_checked(tmp_path / "a.png")
    assert volume.shape == (4, 3)
    assert volume.array[0, 3, 1] == pixels[1, 3]
    assert volume.unit == "pixel" and volume.spacing == (1, 1)


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA"])
def test_unusual_modes(tmp_path: Path, mode: str) -> None:
    rng = np.random.default_rng(0)
    indices = rng.integers(0, 5, (3, 4), dtype=np.uint8)
    expected: np.ndarray = indices.T[np.newaxis]
    if mode == "1":
        picture = Image.fromarray(indices > 2)
        expected = (indices > 2).astype(np.uint8).T[np.newaxis]
    elif mode == "P":
        picture = Image.frombytes("P", (4, 3), indices.tobytes())
        picture.putpalette(list(range(255, 240, -1)))
    elif mode == "LA":
        picture = Image.merge("LA", [Image.fromarray(indices), Image.new("L", (4, 3), 255)])
    else:
        colours = rng.integers(0, 255, (3, 4, 3), dtype=np.uint8)
        picture = Image.merge("RGBA", [*Image.fromarray(colours).split(), Image.new("L", (4, 3), 255)])
        expected = colours.transpose(2, 1, 0)
    picture.save(tmp_path / "a.png")
    volume = read_checked(tmp_path / "a.png")
    np.testing.assert_array_equal(volume.array, expected)
    assert volume.array.dtype == np.uint8


@pytest.mark.parametrize("channels", [3, 4])
def test_sixteen_bit_colour_keeps_its_bits(tmp_path: Path, channels: int) -> None:
    """Pillow alone would silently return the upper eight."""
    pixels = np.random.default_rng(0).integers(0, 65535, (3, 4, channels), dtype=np.uint16)
    pixels[..., 3:] = 65535
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(pixels))
    volume = read_checked(tmp_path / "a.png")
    np.testing.assert_array_equal(volume.array, pixels[..., :3].transpose(2, 1, 0))


def test_jpeg_is_read_and_its_labels_become_png(tmp_path: Path) -> None:
    pixels = np.full((30, 40, 3), 117, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=95)
    volume = read_checked(tmp_path / "a.jpg")
    assert volume.array.shape == (3, 40, 30) and np.abs(volume.array.astype(int) - 117).max() <= 2
    check_label_grid(tmp_path / "a.jpg", tmp_path / "a.png")
    with pytest.raises(OutputError, match="JPEG changes values"):
        write_volume(volume, tmp_path / "b.jpg")
    assert not (tmp_path / "b.jpg").exists()


def test_transparency_is_refused(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 3), (1, 2, 3, 200)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="100% of its pixels are transparent"):
        read_volume(tmp_path / "a.png")


def test_cmyk_and_animation_are_refused(tmp_path: Path) -> None:
    Image.new("CMYK", (4, 3)).save(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="CMYK"):
        read_volume(tmp_path / "a.jpg")
    frames = [Image.new("L", (4, 3), grey) for grey in (0, 100)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match="animated"):
        read_volume(tmp_path / "a.png")


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (40, 30)).save(tmp_path / "a.png")
    for limit in (1000, 100):  # Pillow only warns up to twice its limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(DataError, match="decompression bomb"):
            read_volume(tmp_path / "a.png")


@settings(deadline=None, max_examples=80)
@given(data=st.data())
def test_no_damaged_png_passes_unseen(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (9, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, format="PNG")
    good = buffer.getvalue()
    if data.draw(st.booleans()):
        bad = good[: data.draw(st.integers(1, len(good) - 13))]  # the last 12 bytes, IEND, say nothing
    else:
        at = data.draw(st.integers(0, len(good) - 13))
        bad = good[:at] + bytes([good[at] ^ (1 << data.draw(st.integers(0, 7)))]) + good[at + 1 :]
    path = tmp_path_factory.mktemp("png") / "bad.png"
    path.write_bytes(bad)
    with pytest.raises(DataError, match=r"bad\.png"):
        read_volume(path)


def test_a_cut_jpeg_is_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 40), dtype=np.uint8)).save(tmp_path / "a.jpg")
    good = (tmp_path / "a.jpg").read_bytes()
    for part in (10, len(good) // 2, len(good) - 100):
        (tmp_path / "a.jpg").write_bytes(good[:part])
        with pytest.raises(DataError, match=r"a\.jpg"):
            read_volume(tmp_path / "a.jpg")


def test_another_format_under_a_png_name_is_not_guessed(tmp_path: Path) -> None:
    Image.new("L", (4, 3)).save(tmp_path / "a.bmp")
    (tmp_path / "a.bmp").rename(tmp_path / "a.png")
    with pytest.raises(DataError, match="not a PNG or JPEG"):
        read_volume(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((1, 4, 4, 2), np.uint8), "two dimensions"),
        (np.zeros((2, 4, 4), np.uint8), "2 channels"),
        (np.zeros((1, 4, 4), np.float32), "whole numbers"),
        (np.full((1, 4, 4), 70000), "do not fit"),
        (np.full((1, 4, 4), -1), "do not fit"),
        (np.zeros((3, 4, 4), np.uint16), "8 bits"),
    ],
)
def test_what_a_png_cannot_hold_is_refused(tmp_path: Path, array: np.ndarray, said: str) -> None:
    with pytest.raises(OutputError, match=said):
        write_volume(Volume(array), tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_wide_integers_take_the_smallest_type(tmp_path: Path) -> None:
    back = write_and_read(Volume(np.full((1, 4, 4), 255, np.int64), unit="pixel"), tmp_path / "a.png")
    assert back.array.dtype == np.uint8
    back = write_and_read(Volume(np.full((1, 4, 4), 256, np.int32), unit="pixel"), tmp_path / "a.png")
    assert back.array.dtype == np.uint16
