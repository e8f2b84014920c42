"""TIFF, with tifffile used directly as the independent writer and reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from medunet.errors import DataError, OutputError
from medunet.formats import tiff
from medunet.formats.dispatch import read_grid, read_volume, write_volume
from medunet.volume import Volume
from tests.formats.agreement import check_label_grid, read_checked, refused_or_right, write_and_read


def counted(shape: tuple[int, ...], dtype: str = "uint16") -> np.ndarray:
    return (np.arange(np.prod(shape)).reshape(shape) % 251).astype(dtype)


def save(path: Path, array: np.ndarray, **options: Any) -> Path:
    tifffile.imwrite(path, array, **({"photometric": "minisblack"} | options))
    return path


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(
    dtype=st.sampled_from(["uint8", "int8", "int16", "uint16", "int32", "uint32", "float32", "float64"]),
    shape=st.lists(st.integers(2, 6), min_size=2, max_size=3),
    channels=st.sampled_from([1, 1, 2, 3, 4]),
    suffix=st.sampled_from([".tif", ".tiff", ".ome.tif", ".ome.tiff"]),
    spacing=st.tuples(*[st.floats(1e-3, 1e3)] * 3),
    unit=st.sampled_from(["um", "mm", "nm", "pixel"]),
)
def test_written_is_read_back_and_a_second_time_exactly(
    tmp_path_factory: pytest.TempPathFactory,
    dtype: str,
    shape: list[int],
    channels: int,
    suffix: str,
    spacing: tuple[float, float, float],
    unit: str,
) -> None:
    folder = tmp_path_factory.mktemp("tiff")
    x, y, z = spacing if unit != "pixel" else (1.0, 1.0, 1.0)
    array = counted((channels, *shape), dtype)
    back = write_and_read(Volume(array, np.diag([x, y, z, 1]), unit), folder / f"scan{suffix}")
    np.testing.assert_array_equal(back.array, array)
    assert back.array.dtype == array.dtype
    assert back.unit == ("pixel" if unit == "pixel" else "um")
    factor = {"um": 1.0, "mm": 1e3, "nm": 1e-3, "pixel": 1.0}[unit]
    np.testing.assert_allclose(back.spacing, [factor * s for s in (x, y, z)[: len(shape)]], rtol=1e-6)
    again = write_and_read(back, folder / f"again{suffix}")
    np.testing.assert_array_equal(again.affine, back.affine)


LAYOUTS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "YX": ((6, 7), {"metadata": {"axes": "YX"}}),
    "ZYX": ((5, 6, 7), {"metadata": {"axes": "ZYX"}}),
    "CYX": ((3, 6, 7), {"metadata": {"axes": "CYX"}}),
    "CZYX ome": ((2, 5, 6, 7), {"ome": True, "metadata": {"axes": "CZYX"}}),
    "ZCYX ome": ((5, 2, 6, 7), {"ome": True, "metadata": {"axes": "ZCYX"}}),
    "ZCYX imagej": ((5, 2, 6, 7), {"imagej": True, "metadata": {"axes": "ZCYX"}}),
    "CYX imagej": ((2, 6, 7), {"imagej": True, "metadata": {"axes": "CYX"}}),
    "YXS": ((6, 7, 3), {"photometric": "rgb"}),
    "SYX": ((3, 6, 7), {"photometric": "rgb", "planarconfig": "separate"}),
    "ZYXS": ((5, 6, 7, 3), {"photometric": "rgb", "metadata": {"axes": "ZYXS"}}),
    "ZYX tiled": ((5, 40, 50), {"tile": (16, 16), "metadata": {"axes": "ZYX"}}),
    "ZYX big": ((5, 6, 7), {"bigtiff": True, "metadata": {"axes": "ZYX"}}),
    "ZYX lzw": ((5, 6, 7), {"compression": "lzw", "metadata": {"axes": "ZYX"}}),
    "ZYX deflate, predictor": ((5, 6, 7), {"compression": "zlib", "predictor": True, "metadata": {"axes": "ZYX"}}),
    "ZYX zstd": ((5, 6, 7), {"compression": "zstd", "metadata": {"axes": "ZYX"}}),
    "ZYX >": ((5, 6, 7), {"byteorder": ">", "metadata": {"axes": "ZYX"}}),
    "YXZ": ((6, 7, 5), {"metadata": {"axes": "YXZ"}}),
    "XZY": ((7, 5, 6), {"metadata": {"axes": "XZY"}}),
}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "float32"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_becomes_channel_x_y_z(tmp_path: Path, name: str, dtype: str) -> None:
    shape, options = LAYOUTS[name]
    if options.get("imagej") and dtype == "uint32":
        options = {**options, "imagej": False}
    array = counted(shape, dtype)
    path = save(tmp_path / "scan.tif", array, **options)
    axes = name.split()[0].replace("S", "C")
    volume = read_checked(path)
    by_hand = array.transpose([axes.index(letter) for letter in "CXYZ" if letter in axes])
    np.testing.assert_array_equal(volume.array, by_hand if "C" in axes else by_hand[np.newaxis])
    check_label_grid(path, tmp_path / "labels.tif")
    with tifffile.TiffFile(tmp_path / "labels.tif") as file:
        assert file.series[0].axes == axes.replace("C", "")


@pytest.mark.parametrize("dtype", ["bool", "int64", "float16", "float64"])
def test_rare_types_are_read(tmp_path: Path, dtype: str) -> None:
    array = counted((5, 6, 7), dtype)
    volume = read_checked(save(tmp_path / "scan.tif", array, metadata={"axes": "ZYX"}))
    np.testing.assert_array_equal(volume.array[0], array.T)
    assert volume.array.dtype == dtype


SIZES: list[tuple[dict[str, Any], tuple[float, ...], str]] = [
    ({"ome": True, "metadata": {"axes": "ZYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.25, "PhysicalSizeZ": 2}},
     (0.5, 0.25, 2), "um"),
    ({"ome": True, "metadata": {"axes": "ZYX", "PhysicalSizeX": 4, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 5,
      "PhysicalSizeYUnit": "nm", "PhysicalSizeZ": 0.03, "PhysicalSizeZUnit": "mm"}}, (0.004, 0.005, 30), "um"),
    ({"ome": True, "metadata": {"axes": "ZYX", "PhysicalSizeX": 0.5}}, (0.5, 0.5, 0.5), "um"),
    ({"ome": True, "metadata": {"axes": "ZYX", "PhysicalSizeX": 5, "PhysicalSizeXUnit": "pixel"}}, (1, 1, 1), "pixel"),
    ({"ome": True, "metadata": {"axes": "ZYX"}}, (1, 1, 1), "pixel"),
    ({"imagej": True, "resolution": (4, 2), "metadata": {"axes": "ZYX", "unit": "um", "spacing": 3}},
     (0.25, 0.5, 3), "um"),
    ({"imagej": True, "resolution": (4, 4), "metadata": {"axes": "ZYX", "unit": "\\u00B5m", "spacing": 3}},
     (0.25, 0.25, 3), "um"),
    ({"imagej": True, "resolution": (4, 4), "metadata": {"axes": "ZYX", "unit": "micron"}}, (0.25, 0.25, 1), "um"),
    ({"imagej": True, "resolution": (0.25, 0.25), "metadata": {"axes": "ZYX", "unit": "nm", "spacing": 30}},
     (0.004, 0.004, 0.03), "um"),
    ({"imagej": True, "resolution": (4, 4), "metadata": {"axes": "ZYX", "unit": "mm", "spacing": -1}},
     (250, 250, 1000), "um"),
    ({"imagej": True, "resolution": (4, 4), "metadata": {"axes": "ZYX", "unit": "pixel", "spacing": 3}},
     (1, 1, 3), "pixel"),
    ({"imagej": True, "metadata": {"axes": "ZYX"}}, (1, 1, 1), "pixel"),
    ({"resolution": (20000, 10000), "resolutionunit": "CENTIMETER", "metadata": {"axes": "ZYX"}}, (0.5, 1, 1), "um"),
    ({"resolution": (50800, 25400), "resolutionunit": "INCH", "metadata": {"axes": "ZYX"}}, (0.5, 1, 1), "um"),
    ({"resolution": (72, 72), "resolutionunit": "INCH", "metadata": {"axes": "ZYX"}}, (1, 1, 1), "pixel"),
    ({"resolution": (300, 300), "resolutionunit": "INCH", "metadata": {"axes": "ZYX"}}, (1, 1, 1), "pixel"),
    ({"resolution": (28.346, 28.346), "resolutionunit": "CENTIMETER", "metadata": {"axes": "ZYX"}}, (1, 1, 1), "pixel"),
    ({"resolution": (20000, 20000), "resolutionunit": "NONE", "metadata": {"axes": "ZYX"}}, (1, 1, 1), "pixel"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("options", "spacing", "unit"), SIZES)
def test_pixel_sizes(tmp_path: Path, options: dict[str, Any], spacing: tuple[float, ...], unit: str) -> None:
    path = save(tmp_path / "scan.tif", counted((5, 6, 7)), **options)
    volume = read_checked(path)
    np.testing.assert_allclose(volume.spacing, spacing, rtol=1e-6)
    assert volume.unit == unit
    check_label_grid(path, tmp_path / "labels.tif")
    # what was written for ImageJ must also say so to ImageJ's own rules
    with tifffile.TiffFile(tmp_path / "labels.tif") as file:
        assert file.is_ome == bool(options.get("ome")) and file.is_imagej != file.is_ome


def test_label_types_choose_the_kind_of_file(tmp_path: Path) -> None:
    for top, kind, dtype in [(255, "imagej", "uint8"), (256, "imagej", "uint16"), (2**16, "ome", "int32")]:
        labels = np.full((1, 4, 5, 6), top, np.int64)
        back = write_and_read(Volume(labels, np.diag([0.1, 0.1, 0.3, 1]), "um"), tmp_path / "labels.tif")
        assert back.array.dtype == dtype and (back.array == top).all()
        with tifffile.TiffFile(tmp_path / "labels.tif") as file:
            assert file.series[0].kind == kind and file.pages[0].compression == 8
    with pytest.raises(OutputError, match="do not fit"):
        write_volume(Volume(np.full((1, 4, 5), 2**40)), tmp_path / "wide.tif")
    assert not (tmp_path / "wide.tif").exists()


def test_wide_labels_of_an_imagej_stack_keep_its_grid(tmp_path: Path) -> None:
    path = save(
        tmp_path / "scan.tif",
        counted((5, 6, 7)),
        imagej=True,
        resolution=((98591, 12500), (98591, 12500)),
        metadata={"axes": "ZYX", "unit": "um", "spacing": 0.28371836501901143},
    )
    volume = read_volume(path)
    labels = np.full((1, 7, 6, 5), 70000, np.int32)
    back = write_and_read(volume.with_array(labels), tmp_path / "labels.tif")
    np.testing.assert_array_equal(back.array, labels)
    np.testing.assert_array_equal(back.affine, volume.affine)


def test_beyond_the_limit_of_classic_tiff_a_file_is_big(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiff, "LARGEST_CLASSIC", 100)
    array = counted((1, 7, 6, 5))
    back = write_and_read(Volume(array, unit="um"), tmp_path / "scan.tif")
    np.testing.assert_array_equal(back.array, array)
    with tifffile.TiffFile(tmp_path / "scan.tif") as file:
        assert file.is_bigtiff and file.is_ome


def test_probabilities_keep_their_channels_for_fiji(tmp_path: Path) -> None:
    scores = np.random.default_rng(0).random((3, 7, 6, 5)).astype(np.float32)
    for suffix, axes in ((".tif", "ZCYX"), (".ome.tif", "CZYX")):
        path = tmp_path / f"scores{suffix}"
        np.testing.assert_array_equal(write_and_read(Volume(scores, unit="pixel"), path).array, scores)
        with tifffile.TiffFile(path) as file:
            assert file.series[0].axes == axes


def test_bare_pages_are_refused_until_their_axes_are_stated(tmp_path: Path) -> None:
    array = counted((5, 6, 7))
    with tifffile.TiffWriter(tmp_path / "scan.tif") as file:
        for page in array:
            file.write(page, metadata=None, photometric="minisblack", contiguous=False)
    for look in (read_volume, read_grid):
        with pytest.raises(DataError, match=r"--axes ZYX"):
            look(tmp_path / "scan.tif")
    np.testing.assert_array_equal(read_checked(tmp_path / "scan.tif", axes="ZYX").array, array.T[np.newaxis])
    np.testing.assert_array_equal(read_checked(tmp_path / "scan.tif", axes="cyx").array, array.transpose(0, 2, 1))
    check_label_grid(tmp_path / "scan.tif", tmp_path / "labels.tif", axes="ZYX")
    bare = save(tmp_path / "one.tif", array[0], metadata=None)
    assert read_checked(bare).shape == (7, 6)


@pytest.mark.parametrize("axes", ["", "YX", "ZZX", "CZYX", "ZYQ", "ABC", "ZCX", "TYX"])
def test_stated_axes_must_fit(tmp_path: Path, axes: str) -> None:
    path = save(tmp_path / "scan.tif", counted((5, 6, 7)), metadata={"axes": "ZYX"})
    with pytest.raises(DataError, match=f"--axes {axes}") as caught:
        read_volume(path, axes=axes)
    assert str(caught.value).count("\n") < 3


def test_stated_axes_override_the_files(tmp_path: Path) -> None:
    """Slices that a program has saved as time points: a common mistake in microscopy."""
    array = counted((5, 6, 7))
    path = save(tmp_path / "scan.tif", array, imagej=True, metadata={"axes": "TYX"})
    with pytest.raises(DataError, match="5 time points"):
        read_volume(path)
    np.testing.assert_array_equal(read_checked(path, axes="ZYX").array[0], array.T)


def test_a_missing_slice_distance_is_said(tmp_path: Path) -> None:
    path = save(tmp_path / "scan.tif", counted((5, 6, 7)), ome=True, metadata={"axes": "ZYX", "PhysicalSizeX": 0.5})
    assert "distance of slices not said" in read_grid(path).details["pixel size"]


def test_ome_xml_with_entities_is_refused(tmp_path: Path) -> None:
    bomb = '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaa">]><OME xmlns="x"><Image/></OME>'
    path = save(tmp_path / "scan.tif", counted((6, 7)), description=bomb, metadata=None)
    with pytest.raises(DataError, match="document type"):
        read_volume(path)


def test_complex_pixels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="complex64"):
        read_volume(save(tmp_path / "scan.tif", np.zeros((6, 7), np.complex64)))


@pytest.mark.slow
@settings(deadline=None, max_examples=150)
@given(
    kind=st.sampled_from(["imagej", "ome", "plain", "tiled", "pages"]),
    compression=st.sampled_from([None, "zlib"]),
    part=st.floats(0, 0.999),
)
def test_no_cut_file_passes_unseen(
    tmp_path_factory: pytest.TempPathFactory, kind: str, compression: str | None, part: float
) -> None:
    array = np.random.default_rng(0).integers(0, 255, (5, 32, 32), dtype=np.uint8)
    options: dict[str, Any] = {"metadata": {"axes": "ZYX"}, "compression": compression}
    if kind in ("imagej", "ome"):
        options[kind] = True
    elif kind == "tiled":
        options["tile"] = (16, 16)
    path = tmp_path_factory.mktemp("cut") / "bad.tif"
    save(path, array, **options)
    content = path.read_bytes()
    path.write_bytes(content[: max(1, int(part * len(content)))])
    refused_or_right(path, array.T)


def test_a_damaged_strip_is_refused(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 255, (5, 32, 32), dtype=np.uint8)
    path = save(tmp_path / "bad.tif", array, compression="zlib", metadata={"axes": "ZYX"})
    with tifffile.TiffFile(path) as file:
        at = file.pages[2].dataoffsets[0] + 20
    content = bytearray(path.read_bytes())
    content[at : at + 200] = bytes(200)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.tif"):
        read_volume(path)


def test_what_is_no_tiff_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.tif").write_bytes(b"certainly not a TIFF file, but long enough to look")
    with pytest.raises(DataError, match="not a TIFF"):
        read_volume(tmp_path / "bad.tif")


@pytest.mark.slow
@settings(deadline=None, max_examples=150)
@given(kind=st.sampled_from(["imagej", "ome", "plain"]), at=st.floats(0, 0.999), bit=st.integers(0, 7))
def test_an_altered_byte_is_never_a_crash(
    tmp_path_factory: pytest.TempPathFactory, kind: str, at: float, bit: int
) -> None:
    """TIFF has no checksum over its headers, so the result may differ, but only our own error may come out."""
    array = np.random.default_rng(0).integers(0, 255, (5, 6, 7), dtype=np.uint8)
    options: dict[str, Any] = {"metadata": {"axes": "ZYX"}, "compression": "zlib"} | (
        {} if kind == "plain" else {kind: True}
    )
    path = save(tmp_path_factory.mktemp("flip") / "bad.tif", array, **options)
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 1 << bit
    path.write_bytes(content)
    try:
        read_volume(path)
    except DataError as error:
        assert "bad.tif" in str(error)
