"""OME-Zarr, with the library zarr used directly as the independent writer and reader."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec, TransposeCodec, ZstdCodec

from medunet.errors import DataError, MissingExtra, OutputError
from medunet.formats.dispatch import (
    case_stem,
    default_suffix,
    files_of,
    is_dicom_series,
    is_readable,
    read_grid,
    read_volume,
    stack_files,
    write_volume,
)
from medunet.formats.omezarr import chunks
from medunet.volume import Volume
from tests.formats.agreement import check_label_grid, files_in, read_checked, write_and_read
from tests.formats.omezarr.zarrfiles import multiscale, save_array, save_group, save_image


def counted(shape: tuple[int, ...], dtype: str = "uint16") -> np.ndarray:
    return (np.arange(np.prod(shape)).reshape(shape) % 251).astype(dtype)


def change(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Edit a metadata file in place."""
    found = json.loads(path.read_text())
    edit(found)
    path.write_text(json.dumps(found))


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(
    dtype=st.sampled_from(["uint8", "int8", "int16", "uint16", "int32", "uint32", "float32", "float64"]),
    shape=st.lists(st.integers(2, 6), min_size=2, max_size=3),
    channels=st.sampled_from([1, 1, 2, 3]),
    suffix=st.sampled_from([".zarr", ".ome.zarr"]),
    spacing=st.tuples(*[st.floats(1e-3, 1e3)] * 3),
    offset=st.tuples(*[st.floats(-1e3, 1e3)] * 3),
    unit=st.sampled_from(["um", "mm", "nm", "pixel"]),
)
def test_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    dtype: str,
    shape: list[int],
    channels: int,
    suffix: str,
    spacing: tuple[float, ...],
    offset: tuple[float, ...],
    unit: str,
) -> None:
    folder = tmp_path_factory.mktemp("zarr")
    affine = np.eye(4)
    if unit != "pixel":
        for axis in range(len(shape)):
            affine[axis, axis], affine[axis, 3] = spacing[axis], offset[axis]
    array = counted((channels, *shape), dtype)
    back = write_and_read(Volume(array, affine, unit), folder / f"scan{suffix}")
    np.testing.assert_array_equal(back.array, array)
    assert (back.array.dtype, back.unit) == (array.dtype, unit)
    np.testing.assert_array_equal(back.affine, affine)
    again = write_and_read(back, folder / f"again{suffix}")
    np.testing.assert_array_equal(again.affine, affine)
    assert read_grid(folder / f"again{suffix}").details["Zarr"] == "version 3, OME-NGFF 0.5"


AXES = ["YX", "ZYX", "CYX", "CZYX", "TCZYX", "TYX", "ZCYX", "YXC", "XYZ", "XZYC"]


@pytest.mark.slow
@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("axes", AXES)
def test_every_order_of_axes_becomes_channel_x_y_z(tmp_path: Path, axes: str, zarr_format: int) -> None:
    lengths = {"T": 1, "C": 2, "Z": 5, "Y": 6, "X": 7}
    sizes = {"T": 3.0, "C": 1.0, "Z": 2.0, "Y": 0.5, "X": 0.25}
    array = counted(tuple(lengths[a] for a in axes))
    moved = [0.0 if a in "TC" else 10.0 + sizes[a] for a in axes]
    path = tmp_path / "scan.zarr"
    save_image(path, array, axes, zarr_format, scale=[sizes[a] for a in axes], translation=moved)
    volume = read_checked(path)
    by_hand = array.squeeze(axis=0) if axes[0] == "T" else array
    letters = axes.replace("T", "")
    by_hand = by_hand.transpose([letters.index(a) for a in "CXYZ" if a in letters])
    np.testing.assert_array_equal(volume.array, by_hand if "C" in axes else by_hand[np.newaxis])
    spatial = [a for a in "XYZ" if a in axes]
    assert (volume.spacing, volume.unit) == (tuple(sizes[a] for a in spatial), "um")
    assert [volume.affine["XYZ".index(a), 3] for a in spatial] == [10 + sizes[a] for a in spatial]
    check_label_grid(path, tmp_path / "labels.zarr")
    written = zarr.open_group(tmp_path / "labels.zarr", mode="r")
    assert written.metadata.zarr_format == zarr_format
    ome = written.attrs.get("ome", written.attrs)
    kept = [a for a in letters if a != "C"]
    assert [axis["name"].upper() for axis in ome["multiscales"][0]["axes"]] == kept
    assert {axis["unit"] for axis in ome["multiscales"][0]["axes"]} == {"micrometer"}
    assert written["0"].shape == tuple(lengths[a] for a in kept)
    version = ome.get("version") or ome["multiscales"][0]["version"]
    assert version == {2: "0.4", 3: "0.5"}[zarr_format]


def test_both_levels_of_transformations_count(tmp_path: Path) -> None:
    whole = [{"type": "scale", "scale": [2.0, 3.0, 4.0]}, {"type": "translation", "translation": [1.0, 2.0, 3.0]}]
    path = tmp_path / "scan.zarr"
    save_image(path, counted((5, 6, 7)), "zyx", scale=[1.0, 0.5, 0.25], translation=[10.0, 20.0, 30.0], whole=whole)
    volume = read_checked(path)
    assert volume.spacing == (1.0, 1.5, 2.0)
    assert volume.affine[:3, 3].tolist() == [4 * 30 + 3, 3 * 20 + 2, 2 * 10 + 1]
    check_label_grid(path, tmp_path / "labels.zarr")


UNITS: list[tuple[list[str | None], tuple[float, ...], str]] = [
    (["micrometer"] * 3, (0.25, 0.5, 2), "um"),
    (["nanometer"] * 3, (0.25, 0.5, 2), "nm"),
    (["millimeter"] * 3, (0.25, 0.5, 2), "mm"),
    (["micrometer", "nanometer", "nanometer"], (0.00025, 0.0005, 2), "um"),
    (["meter"] * 3, (250000, 500000, 2000000), "um"),
    (["angstrom"] * 3, (0.000025, 0.00005, 0.0002), "um"),
    ([None] * 3, (1, 2, 8), "pixel"),
    (["furlong"] * 3, (1, 2, 8), "pixel"),
    ([None, "micrometer", "micrometer"], (1, 2, 8), "pixel"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("units", "spacing", "unit"), UNITS)
def test_units(tmp_path: Path, units: list[str | None], spacing: tuple[float, ...], unit: str) -> None:
    path = tmp_path / "scan.zarr"
    save_image(path, counted((5, 6, 7)), "zyx", scale=[2.0, 0.5, 0.25], translation=[2.0, 0.0, 0.5], unit=None)

    def name(found: dict[str, Any]) -> None:
        for axis, said in zip(found["attributes"]["ome"]["multiscales"][0]["axes"], units, strict=True):
            axis |= {"unit": said} if said else {}

    change(path / "zarr.json", name)
    volume = read_checked(path)
    np.testing.assert_allclose(volume.spacing, spacing, rtol=1e-12)
    assert volume.unit == unit
    check_label_grid(path, tmp_path / "labels.zarr")
    written = json.loads((tmp_path / "labels.zarr" / "zarr.json").read_text())["attributes"]["ome"]["multiscales"][0]
    assert [axis.get("unit") for axis in written["axes"]] == units, "the file's own words and numbers are repeated"
    steps = written["datasets"][0]["coordinateTransformations"]
    assert (steps[0]["scale"], steps[1]["translation"]) == ([2.0, 0.5, 0.25], [2.0, 0.0, 0.5])
    assert ("pixel size" in read_grid(path).details) == (unit == "pixel")


def test_without_a_scale_no_size_is_invented(tmp_path: Path) -> None:
    path = save_image(tmp_path / "scan.zarr", counted((5, 6, 7)), "zyx")
    change(path / "zarr.json", lambda found: drop_transformations(found["attributes"]["ome"]))
    volume = read_checked(path)
    assert (volume.unit, volume.spacing) == ("pixel", (1, 1, 1))


def drop_transformations(ome: dict[str, Any]) -> None:
    del ome["multiscales"][0]["datasets"][0]["coordinateTransformations"]


@pytest.mark.slow
@pytest.mark.parametrize("version", ["0.1", "0.2", "0.3"])
def test_old_versions_are_read_and_answered_in_the_first_with_sizes(tmp_path: Path, version: str) -> None:
    image: dict[str, Any] = {"version": version, "datasets": [{"path": "0"}]}
    shape = (1, 2, 5, 6, 7) if version != "0.3" else (2, 6, 7)
    if version == "0.3":
        image["axes"] = ["c", "y", "x"]
    path = save_group(tmp_path / "scan.zarr", {"multiscales": [image]}, 2)
    save_array(path / "0", counted(shape), 2)
    volume = read_checked(path)
    assert (volume.channels, volume.dimensions, volume.unit) == (2, 2 if version == "0.3" else 3, "pixel")
    check_label_grid(path, tmp_path / "labels.zarr")
    assert read_grid(tmp_path / "labels.zarr").details["Zarr"] == "version 2, OME-NGFF 0.4"


def test_one_plane_is_a_picture(tmp_path: Path) -> None:
    path = save_image(tmp_path / "scan.zarr", counted((1, 6, 7)), "zyx", scale=[9.0, 0.5, 0.25])
    volume = read_checked(path)
    assert (volume.dimensions, volume.spacing) == (2, (0.25, 0.5))
    check_label_grid(path, tmp_path / "labels.zarr")


def test_time_is_chosen(tmp_path: Path) -> None:
    array = counted((3, 2, 6, 7))
    path = save_image(tmp_path / "scan.zarr", array, "tcyx")
    for read in (read_volume, read_grid):
        with pytest.raises(DataError, match=r"3 time points(.|\n)*--frame 1 to --frame 3"):
            read(path)
        with pytest.raises(DataError, match="has the frames 1 to 3"):
            read(path, frame=4)
    np.testing.assert_array_equal(read_volume(path, frame=2).array, array[1].transpose(0, 2, 1))
    still = save_image(tmp_path / "still.zarr", array[0], "cyx")
    with pytest.raises(DataError, match="no time axis"):
        read_volume(still, frame=1)


def test_channels_have_the_names_of_omero(tmp_path: Path) -> None:
    omero = {"omero": {"channels": [{"label": "DAPI"}, {"label": "membrane\n488"}]}}
    path = save_image(tmp_path / "a.zarr", counted((2, 6, 7)), "cyx", more=omero)
    assert read_grid(path).channel_names == ("DAPI", "membrane 488")
    fewer = save_image(tmp_path / "b.zarr", counted((3, 6, 7)), "cyx", 2, more=omero)
    assert read_grid(fewer).channel_names == ()


DTYPES = ["bool", "uint8", "int64", "uint64", "float16", "float64"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [*DTYPES, ">u2", ">f4"])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_types_are_read_in_native_order(tmp_path: Path, zarr_format: int, dtype: str) -> None:
    array = counted((5, 6, 7), dtype)
    serializer = {"serializer": BytesCodec(endian="big")} if zarr_format == 3 and dtype[0] == ">" else {}
    given = array if zarr_format == 2 else array.astype(np.dtype(dtype).newbyteorder("="))
    path = save_array(tmp_path / "scan.zarr", given, zarr_format, dimension_names=None, **serializer)
    volume = read_volume(path, axes="ZYX")
    np.testing.assert_array_equal(volume.array[0], array.T)
    assert volume.array.dtype == np.dtype(dtype).newbyteorder("=")


PACKED: dict[str, tuple[int, dict[str, Any]]] = {
    "none 2": (2, {"compressors": None}),
    "none 3": (3, {"compressors": None}),
    "blosc lz4 2": (2, {"compressors": numcodecs.Blosc(cname="lz4")}),
    "zlib 2": (2, {"compressors": numcodecs.Zlib()}),
    "lz4 2": (2, {"compressors": numcodecs.LZ4()}),
    "delta 2": (2, {"filters": numcodecs.Delta(dtype="<u2"), "compressors": numcodecs.GZip()}),
    "F 2": (2, {"order": "F"}),
    "gzip 3": (3, {"compressors": GzipCodec()}),
    "transposed 3": (3, {"filters": TransposeCodec(order=(2, 0, 1)), "compressors": ZstdCodec()}),
    "shards 3": (3, {"shards": (8, 8, 8)}),
    "dots 3": (3, {"chunk_key_encoding": {"name": "default", "separator": "."}}),
    "dots 2": (2, {"chunk_key_encoding": {"name": "v2", "separator": "."}}),
    "v2 keys 3": (3, {"chunk_key_encoding": {"name": "v2", "separator": "/"}}),
    "numcodecs 3": (3, {"compressors": {"name": "numcodecs.zlib", "configuration": {"level": 2}}}),
}


BLOSC = BloscCodec(cname="lz4")
PACKED |= {
    "blosc 3": (3, {"compressors": BLOSC}),
    "blosc and checksum 3": (3, {"compressors": [BLOSC, Crc32cCodec()]}),
    "blosc in shards 3": (3, {"shards": (8, 8, 8), "compressors": BLOSC}),
    "blosc in shards, index first 3": (
        3,
        {
            "chunks": (8, 8, 8),
            "compressors": None,
            "serializer": ShardingCodec(
                chunk_shape=(4, 4, 4), codecs=[BytesCodec(), BLOSC, Crc32cCodec()], index_location="start"
            ),
        },
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKED)
def test_usual_codecs_and_layouts_are_read(tmp_path: Path, name: str) -> None:
    zarr_format, options = PACKED[name]
    array = counted((9, 10, 11))
    path = save_array(tmp_path / "scan.zarr", array, zarr_format, **options)
    np.testing.assert_array_equal(read_checked(path, "zyx").array[0], array.T)
    stored = read_grid(path, axes="ZYX").details["stored"]
    assert stored == ("8 of 8 files" if "shards" in name else "27 of 27 chunks")


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKED)
def test_a_cut_chunk_is_noticed_whatever_it_is_packed_with(tmp_path: Path, name: str) -> None:
    zarr_format, options = PACKED[name]
    random = np.random.default_rng(0).integers(0, 2**16, (9, 10, 11)).astype(np.uint16)
    path = save_array(tmp_path / "scan.zarr", random, zarr_format, **options)
    chunks = [p for p in path.rglob("*") if p.is_file() and p.name not in ("zarr.json", ".zarray", ".zattrs")]
    largest = max(chunks, key=lambda p: p.stat().st_size)
    content = largest.read_bytes()
    for end in (0, 1, 15, 16, 40, len(content) // 2, len(content) - 1):
        largest.write_bytes(content[:end])
        with pytest.raises(DataError, match=r"a chunk is damaged"):
            read_volume(path, axes="ZYX")


def test_blosc_below_another_codec_is_refused_as_its_length_is_not_known(tmp_path: Path) -> None:
    path = save_array(tmp_path / "scan.zarr", counted((8, 8, 8)), 3, compressors=[BLOSC, GzipCodec()])
    with pytest.raises(DataError, match="blosc and then gzip"):
        read_volume(path, axes="ZYX")


@pytest.mark.slow
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_plain_array_must_say_its_axes(tmp_path: Path, zarr_format: int) -> None:
    array = counted((5, 6, 7))
    path = save_array(tmp_path / "scan.zarr", array, zarr_format)
    with pytest.raises(DataError, match=r"plain Zarr array(.|\n)*--axes ZYX"):
        read_volume(path)
    with pytest.raises(DataError, match="names 2 axes"):
        read_volume(path, axes="YX")
    with pytest.raises(DataError, match="colour samples"):
        read_volume(path, axes="SYX")
    np.testing.assert_array_equal(read_checked(path, "CYX").array, array.transpose(0, 2, 1))
    check_label_grid(path, tmp_path / "labels.zarr", axes="ZYX")
    named = save_array(tmp_path / "named.zarr", array, 3, dimension_names=("z", "y", "x"))
    np.testing.assert_array_equal(read_checked(named).array[0], array.T)
    assert read_checked(named).unit == "pixel"


def test_stated_axes_are_those_of_the_image_but_its_sizes_stay(tmp_path: Path) -> None:
    path = save_image(tmp_path / "scan.zarr", counted((5, 6, 7)), "cyx", scale=[1.0, 0.5, 0.25])
    assert read_volume(path).channels == 5
    assert read_volume(path, axes="ZYX").shape == (7, 6, 5)


@pytest.mark.parametrize(
    ("axes", "stated", "spacing", "at"),
    [
        ("zyx", "YX", (0.25, 0.5), (8, 9, 0)),
        ("czyx", "ZYX", (0.25, 0.5, 2), (8, 9, 7)),
        ("tczyx", "CYX", (0.25, 0.5), (8, 9, 0)),
        ("cyx", "YX", (0.25, 0.5), (8, 9, 0)),
    ],
)
def test_sizes_of_stated_axes_are_found_by_name_where_metadata_name_more(
    tmp_path: Path, axes: str, stated: str, spacing: tuple[float, ...], at: tuple[float, ...]
) -> None:
    scale, moved = {"z": 2.0, "y": 0.5, "x": 0.25}, {"z": 7.0, "y": 9.0, "x": 8.0}
    said = [[numbers.get(axis, default) for axis in axes] for numbers, default in ((scale, 1.0), (moved, 0.0))]
    array = counted((4, 5, 6)[-len(stated) :])
    path = save_image(tmp_path / "scan.zarr", array, axes, scale=said[0], translation=said[1])
    volume = read_checked(path, stated)
    assert volume.spacing == spacing and volume.unit == "um" and tuple(volume.affine[:3, 3]) == at


def test_sizes_that_no_stated_axis_is_sure_of_are_refused(tmp_path: Path) -> None:
    path = save_image(tmp_path / "scan.zarr", counted((4, 5, 6)), "yx", scale=[0.5, 0.25])
    with pytest.raises(DataError, match=r"sizes of the axes YX, of which --axes ZYX cannot be told: Z is not among"):
        read_volume(path, axes="ZYX")
    unsized = save_group(tmp_path / "old.zarr", {"multiscales": [{"version": "0.1", "datasets": [{"path": "0"}]}]}, 2)
    save_array(unsized / "0", counted((4, 5, 6)), 2, chunk_key_encoding={"name": "v2", "separator": "/"})
    assert read_volume(unsized, axes="ZYX").unit == "pixel"


def test_the_full_resolution_is_read_and_only_its_files_count(tmp_path: Path) -> None:
    path = save_image(tmp_path / "scan.zarr", counted((8, 8, 8)), "zyx")
    save_array(path / "1", counted((4, 4, 4)))
    scale = {"coordinateTransformations": [{"type": "scale", "scale": [2.0] * 3}]}
    change(
        path / "zarr.json",
        lambda found: found["attributes"]["ome"]["multiscales"][0]["datasets"].append({"path": "1"} | scale),
    )
    assert read_checked(path).shape == (8, 8, 8)
    assert read_grid(path).details["resolutions"] == "2, the full one (0) is read"
    assert {file.relative_to(path).parts[0] for file in files_of(path)} == {"zarr.json", "0"}
    assert len(files_of(path)) == 1 + 1 + 8
    with pytest.raises(DataError, match=r"is one resolution of .*scan\.zarr"):
        read_volume(path / "1")


def test_a_missing_chunk_has_the_fill_value(tmp_path: Path) -> None:
    array = counted((8, 8, 8)) + 1
    path = save_image(tmp_path / "scan.zarr", array, "zyx")
    (path / "0" / "c" / "0" / "1" / "1").unlink()
    array[:4, 4:, 4:] = 0
    np.testing.assert_array_equal(read_checked(path).array[0], array.T)
    assert read_grid(path).details["stored"] == "7 of 8 chunks; the others have the fill value"


def test_chunks_under_other_names_are_not_an_empty_scan(tmp_path: Path) -> None:
    path = save_image(tmp_path / "scan.zarr", counted((8, 8, 8)), "zyx", 2)
    change(path / "0" / ".zarray", lambda found: found.update(dimension_separator="."))
    with pytest.raises(DataError, match=r"none of its 8 files has the name of a chunk.*'0\.0\.0'"):
        read_volume(path)


def test_label_images_are_read_by_their_paths(tmp_path: Path) -> None:
    path = save_image(tmp_path / "scan.zarr", counted((5, 6, 7)), "zyx")
    save_group(path / "labels", {"labels": ["nuclei"]})
    labels = save_image(path / "labels" / "nuclei", counted((5, 6, 7), "int32"), "zyx", more={"image-label": {}})
    assert read_grid(path).details["label images"] == "labels/nuclei"
    for place in (labels, path / "labels"):
        assert read_checked(place).array.dtype == np.int32
    assert case_stem(labels) == "scan_labels_nuclei" and default_suffix(read_volume(labels)) == ".zarr"
    np.testing.assert_array_equal(read_volume(path).array, read_volume(labels).array)


def test_of_a_plate_or_a_series_the_only_image_is_read(tmp_path: Path) -> None:
    plate = save_group(tmp_path / "plate.zarr", {"plate": {"wells": [{"path": "A/1"}]}}, 2)
    well = save_group(plate / "A" / "1", {"well": {"images": [{"path": "0"}]}}, 2)
    save_image(well / "0", counted((6, 7)), "yx", 2)
    series = save_group(tmp_path / "series.zarr", {"bioformats2raw.layout": 3})
    save_image(series / "0", counted((6, 7)), "yx")
    for path in (plate, well, series):
        np.testing.assert_array_equal(read_checked(path).array[0], counted((6, 7)).T)
    change(plate / ".zattrs", lambda found: found["plate"]["wells"].append({"path": "B/1"}))
    save_image(save_group(plate / "B" / "1", {"well": {"images": [{"path": "0"}]}}, 2) / "0", counted((6, 7)), "yx", 2)
    save_image(series / "1", counted((6, 7)), "yx")
    with pytest.raises(DataError, match=r"a plate of 2 images(.|\n)*plate\.zarr/A/1/0, .*plate\.zarr/B/1/0"):
        read_volume(plate)
    with pytest.raises(DataError, match=r"2 images(.|\n)*series\.zarr/0, .*series\.zarr/1"):
        read_volume(series)
    assert case_stem(plate / "A" / "1" / "0") == "plate_A_1_0"
    assert read_checked(plate / "B" / "1" / "0").shape == (7, 6)


def test_a_folder_counts_as_one_scan(tmp_path: Path) -> None:
    path = save_image(tmp_path / "scan.ome.zarr", counted((5, 6, 7)), "zyx", 2)
    assert is_readable(path) and not is_dicom_series(path) and not stack_files(path)
    bare = path.rename(tmp_path / "bare")
    assert is_readable(bare) and read_volume(bare).shape == (7, 6, 5) and case_stem(bare) == "bare"
    (tmp_path / "file.zarr").write_text("x")
    with pytest.raises(DataError, match="Zarr is a folder"):
        read_volume(tmp_path / "file.zarr")


@pytest.mark.slow
def test_labels_are_marked_chunked_and_have_lower_resolutions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "SMALL", 8)
    monkeypatch.setattr(chunks, "CHUNK", {2: 8, 3: 8})
    monkeypatch.setattr(chunks, "BOX", 1000)
    array = np.random.default_rng(0).choice(np.array([0, 3, 77], np.uint8), (1, 33, 30, 7))
    affine = np.diag([0.5, 0.5, 2.0, 1.0])
    affine[:3, 3] = 1, 2, 3
    write_volume(Volume(array, affine, "um"), tmp_path / "a.zarr", labels=True)
    group = zarr.open_group(tmp_path / "a.zarr", mode="r")
    ome = group.attrs["ome"]
    assert ome["version"] == "0.5" and "image-label" in ome
    levels = ome["multiscales"][0]["datasets"]
    scales = [level["coordinateTransformations"][0]["scale"] for level in levels]
    assert scales == [[2, 0.5, 0.5], [2, 1, 1], [2, 2, 2], [4, 4, 4]]
    full = array[0].transpose(2, 1, 0)
    for level, scale in zip(levels, scales, strict=True):
        steps = [round(s / whole) for s, whole in zip(scale, scales[0], strict=True)]
        np.testing.assert_array_equal(group[level["path"]][:], full[tuple(slice(None, None, n) for n in steps)])
        assert level["coordinateTransformations"][1]["translation"] == [3, 2, 1]
        assert max(group[level["path"]].chunks) <= 8
    read_checked(tmp_path / "a.zarr")


def test_orientation_is_lost_and_nothing_false_said_of_the_position(tmp_path: Path) -> None:
    turned = np.array([[0, -2, 0, 5], [1, 0, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1.0]])
    back = write_and_read(Volume(counted((1, 5, 6, 7)), turned, "mm"), tmp_path / "a.zarr")
    np.testing.assert_array_equal(back.affine, np.diag([1.0, 2.0, 3.0, 1.0]))


def test_wide_integers_are_kept_where_they_are_needed(tmp_path: Path) -> None:
    array = np.array([[[0, 2**40]]], np.int64)
    back = write_and_read(Volume(array), tmp_path / "a.zarr")
    np.testing.assert_array_equal(back.array, array)
    assert write_and_read(Volume(array // 2**39), tmp_path / "a.zarr").array.dtype == np.uint8


def test_an_old_folder_is_replaced_whole_and_other_folders_never(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_image(tmp_path / "a.zarr", counted((8, 8, 8)), "zyx")
    before, new = files_in(tmp_path), Volume(counted((1, 3, 4), "uint8"))
    with pytest.raises(OutputError, match="exists already"):
        write_volume(new, path)
    with monkeypatch.context() as patch:
        patch.setattr(chunks, "copy_in_tiles", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(OutputError, match="No space left"):
            write_volume(new, path, overwrite=True)
    assert files_in(tmp_path) == before
    write_volume(new, path, overwrite=True)
    np.testing.assert_array_equal(read_volume(path).array, new.array)
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]
    shutil.rmtree(path)
    (path / "pictures").mkdir(parents=True)
    (path / "pictures" / "mine.png").write_text("x")
    with pytest.raises(OutputError, match="no Zarr, and is not replaced"):
        write_volume(new, path, overwrite=True)
    assert (path / "pictures" / "mine.png").read_text() == "x"


BROKEN: dict[str, tuple[int, Callable[[Path], Any], str]] = {
    "cut .zarray": (2, lambda p: cut(p / "0" / ".zarray"), "damaged Zarr metadata"),
    "cut .zattrs": (2, lambda p: cut(p / ".zattrs"), "damaged Zarr metadata"),
    "cut zarr.json": (3, lambda p: cut(p / "zarr.json"), "damaged Zarr metadata"),
    "cut array": (3, lambda p: cut(p / "0" / "zarr.json"), "damaged Zarr metadata"),
    "no metadata": (3, lambda p: (p / "zarr.json").unlink(), "neither zarr.json nor .zgroup"),
    "a list": (3, lambda p: (p / "zarr.json").write_text("[]"), "expected a JSON object"),
    "no text": (3, lambda p: (p / "zarr.json").write_bytes(b"\xff\xfe\x00"), "damaged Zarr metadata"),
    "deep": (3, lambda p: (p / "zarr.json").write_text("[" * 10**6), "damaged Zarr metadata"),
    "no level": (3, lambda p: shutil.rmtree(p / "0"), "full resolution '0' is missing"),
    "empty level": (2, lambda p: (p / "0" / ".zarray").unlink(), "its .zarray is missing"),
    "a way out": (3, lambda p: edit(p, lambda m: m["datasets"][0].update(path="../b")), "none below this folder"),
    "absolute": (3, lambda p: edit(p, lambda m: m["datasets"][0].update(path="/tmp")), "none below this folder"),
    "no datasets": (3, lambda p: edit(p, lambda m: m.update(datasets=[])), "without datasets"),
    "other axes": (3, lambda p: edit(p, lambda m: m["axes"].pop()), "scale of 2 positive numbers"),
    "twice x": (3, lambda p: edit(p, lambda m: m["axes"][1].update(name="x")), "name the axes ZXX"),
    "angles": (3, lambda p: edit(p, lambda m: m["axes"][0].update(name="angle", type="angle")), r"\?YX.*--axes"),
    "zero": (3, lambda p: rescale(p, [0.0, 1, 1]), "scale of 3 positive numbers"),
    "nan": (3, lambda p: rescale(p, [float("nan"), 1, 1]), "scale of 3 positive numbers"),
    "text": (3, lambda p: rescale(p, ["1", 1, 1]), "scale of 3 positive numbers"),
    "another version": (3, lambda p: reversion(p, "0.6"), r"version 0\.6 is not read"),
    "no data type": (3, lambda p: change(p / "0" / "zarr.json", lambda m: m.pop("data_type")), "data_type"),
    "negative": (2, lambda p: change(p / "0" / ".zarray", lambda m: m.update(shape=[-1, 8, 8])), "shape"),
    "absurd": (3, lambda p: change(p / "0" / "zarr.json", lambda m: m.update(shape=[8, 2**31, 2**32])), "more bytes"),
    "absurd chunks": (2, lambda p: change(p / "0" / ".zarray", lambda m: m.update(chunks=[2**62, 4, 4])), "more bytes"),
    "cut chunk": (3, lambda p: cut(p / "0" / "c" / "0" / "0" / "0"), "a chunk is damaged"),
    "empty chunk": (2, lambda p: (p / "0" / "0" / "0" / "0").write_bytes(b""), "a chunk is damaged"),
    "noise": (3, lambda p: (p / "0" / "c" / "1" / "0" / "0").write_bytes(b"noise" * 9), "a chunk is damaged"),
}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def edit(path: Path, how: Callable[[dict[str, Any]], Any]) -> None:
    change(path / "zarr.json", lambda found: how(found["attributes"]["ome"]["multiscales"][0]))


def rescale(path: Path, scale: list[Any]) -> None:
    edit(path, lambda m: m["datasets"][0]["coordinateTransformations"][0].update(scale=scale))


def reversion(path: Path, version: str) -> None:
    change(path / "zarr.json", lambda found: found["attributes"]["ome"].update(version=version))


@pytest.mark.slow
@pytest.mark.parametrize("name", BROKEN)
def test_what_is_damaged_is_named(tmp_path: Path, name: str) -> None:
    zarr_format, harm, said = BROKEN[name]
    path = save_image(tmp_path / "scan.zarr", counted((8, 8, 8)), "zyx", zarr_format)
    harm(path)
    with pytest.raises(DataError, match=said) as caught:
        read_volume(path)
    assert "scan.zarr" in str(caught.value) and str(caught.value).count("\n") < 3


@pytest.mark.parametrize(
    "codec",
    [
        {"id": "pickle", "protocol": 5},
        {"id": "json2"},
        {"id": "vlen-utf8"},
        {"id": "unheard-of"},
        {"id": "delta", "dtype": "|O"},
    ],
)
def test_objects_and_their_codecs_never_run(tmp_path: Path, codec: dict[str, Any]) -> None:
    """A chunk that would write a file if it were unpickled."""
    path = save_image(tmp_path / "scan.zarr", counted((8, 8, 8)), "zyx", 2)
    told = tmp_path / "executed"
    bomb = f"cpathlib\nPath.touch\n(cpathlib\nPath\n(V{told}\ntRtR.".encode()
    (path / "0" / "0" / "0" / "0").write_bytes(bomb)
    change(path / "0" / ".zarray", lambda m: m.update(filters=[codec], compressor=None))
    for read in (read_volume, read_grid):
        with pytest.raises(DataError, match=codec["id"]):
            read(path)
    change(path / "0" / ".zarray", lambda m: m.update(dtype="|O"))
    for read in (read_volume, read_grid):
        with pytest.raises(DataError):
            read(path)
    change(path / "0" / ".zarray", lambda m: m.update(filters=None))
    with pytest.raises(DataError, match="objects are never read"):
        read_volume(path)
    assert not told.exists()


def test_codecs_inside_shards_are_looked_at(tmp_path: Path) -> None:
    path = save_array(tmp_path / "scan.zarr", counted((8, 8, 8)), serializer=ShardingCodec(chunk_shape=(2, 2, 2)))
    inner = [{"name": "pickle", "configuration": {}}]
    change(path / "zarr.json", lambda m: m["codecs"][0]["configuration"].update(codecs=inner))
    with pytest.raises(DataError, match="'pickle', which medunet does not run"):
        read_volume(path, axes="ZYX")
    strings = save_array(tmp_path / "b.zarr", counted((8, 8, 8)))
    change(strings / "zarr.json", lambda m: m.update(data_type="string"))
    with pytest.raises(DataError, match="'string'; expected real numbers"):
        read_volume(strings, axes="ZYX")


def test_without_the_library_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_image(tmp_path / "scan.zarr", counted((8, 8, 8)), "zyx")
    monkeypatch.setitem(sys.modules, "zarr", None)
    for work in (
        lambda: read_volume(path),
        lambda: read_grid(path),
        lambda: write_volume(Volume(counted((1, 4, 5))), tmp_path / "new.zarr"),
    ):
        with pytest.raises(MissingExtra, match=r"pip install 'medunet\[zarr\]'"):
            work()
    assert is_readable(path)


def test_several_images_in_one_group_are_told(tmp_path: Path) -> None:
    path = save_image(tmp_path / "scan.zarr", counted((8, 8, 8)), "zyx")
    change(path / "zarr.json", lambda m: m["attributes"]["ome"]["multiscales"].append(multiscale("zyx")))
    assert "2 multiscale images" in read_grid(path).details["warning"]
