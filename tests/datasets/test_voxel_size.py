"""Voxel sizes declared in `dataset.json`: their order and units, and which files take them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medunet.datasets.catalogue import read_data_set
from medunet.datasets.loading import check_pairs, image_grid, load_image, load_label_values, size_notes
from medunet.datasets.voxel_size import VoxelSize, declared_size
from medunet.errors import DataError
from medunet.formats.dispatch import write_volume
from medunet.volume import Volume


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ({}, None),
        ({"spacing_units": "um"}, None),
        ({"spacing": [1, 1], "spacing_units": "pixel"}, None),
        ({"spacing": [4, 4], "spacing_units": "nm"}, VoxelSize((4.0, 4.0), "nm")),
        ({"spacing": 0.5, "spacing_units": "um"}, VoxelSize((0.5, 0.5, 0.5), "um")),
        ({"spacing": [0.5], "spacing_units": "µm"}, VoxelSize((0.5, 0.5, 0.5), "um")),
        ({"spacing": [3, 2, 1], "spacing_units": "mm", "axes": "ZYX"}, VoxelSize((1.0, 2.0, 3.0), "mm")),
        ({"spacing": [3, 2, 1], "spacing_units": "micrometers", "axes": "CXYZ"}, VoxelSize((3.0, 2.0, 1.0), "um")),
        ({"spacing": [2, 1], "spacing_units": "um", "axes": "ZYX"}, VoxelSize((1.0, 2.0), "um")),
        ({"spacing": [2, 1], "spacing_units": "um"}, VoxelSize((2.0, 1.0), "um")),
        ({"spacing": [2, 2, 2], "spacing_units": "cm"}, VoxelSize((2e4, 2e4, 2e4), "um")),
    ],
)
def test_what_is_declared_in_any_order_and_unit(declared: dict[str, object], expected: VoxelSize | None) -> None:
    assert declared_size(declared, "d.json") == expected


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ({"spacing": [0.5, 0.5]}, 'expected "mm", "um" or "nm"'),
        ({"spacing": [0.5, 0.5], "spacing_units": "furlong"}, "'furlong'"),
        ({"spacing": [0.5, -0.5], "spacing_units": "um"}, "positive numbers, found"),
        ({"spacing": "0.5", "spacing_units": "um"}, "positive numbers, found '0.5'"),
        ({"spacing": [], "spacing_units": "um"}, "positive numbers"),
        ({"spacing": [0.5, True], "spacing_units": "um"}, "positive numbers"),
        ({"spacing": [3, 1, 1], "spacing_units": "um"}, "the order of .* is not said"),
        ({"spacing": [3, 1, 1], "spacing_units": "um", "axes": "YX"}, "do not fit"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(declared: dict[str, object], words: str) -> None:
    with pytest.raises(DataError, match=f"d.json: .*{words}"):
        declared_size(declared, "d.json")


def image(shape: tuple[int, ...], unit: str = "pixel", spacing: tuple[float, float, float] = (1, 1, 1)) -> Volume:
    array = np.arange(np.prod(shape)).reshape(1, *shape) % 251
    return Volume(array.astype(np.uint8), np.diag([*spacing, 1.0]), unit)


def made(folder: Path, files: dict[str, Volume], **declared: object) -> Path:
    for name, volume in files.items():
        write_volume(volume, folder / "images" / name)
    (folder / "dataset.json").write_text(json.dumps(declared))
    return folder


def sizes(folder: Path, axes: str | None = None) -> dict[str, tuple[tuple[float, ...], str]]:
    """As voxels are read, which headers must agree with."""
    found = {}
    for case in read_data_set(folder).cases:
        volume, grid = load_image(case, axes), image_grid(case, axes)
        assert (grid.spacing, grid.unit, grid.shape) == (volume.spacing, volume.unit, volume.shape)
        found[case.name] = tuple(round(s, 6) for s in volume.spacing), volume.unit
    return found


def test_files_without_a_size_take_it_and_others_keep_theirs(tmp_path: Path) -> None:
    files = {
        "png.png": image((6, 5)),
        "bare.tif": image((6, 5)),
        "own.tif": image((6, 5), "um", (0.7, 0.7, 1.0)),
        "alike.tif": image((6, 5), "um", (0.502, 0.502, 1.0)),
        "scan.nii.gz": image((6, 5), "mm", (0.5, 0.5, 1.0)),
    }
    folder = made(tmp_path, files, spacing=[0.5, 0.5], spacing_units="um")
    assert sizes(folder) == {
        "png": ((0.5, 0.5), "um"), "bare": ((0.5, 0.5), "um"), "own": ((0.7, 0.7), "um"),
        "alike": ((0.502, 0.502), "um"), "scan": ((0.5, 0.5), "mm"),
    }  # fmt: skip
    (note,) = size_notes(read_data_set(folder))
    assert note.startswith("NOTE: 2 of 5 images state another voxel size than dataset.json (0.5×0.5 um): own has")
    assert size_notes(replace(read_data_set(folder), size=None)) == []


@pytest.mark.parametrize(
    ("spacing", "axes", "expected"), [([50, 4, 3], "ZYX", (3.0, 4.0, 50.0)), ([3, 4], None, (3.0, 4.0, 4.0))]
)
def test_a_stack_of_pictures_gets_the_distance_of_its_sections(
    tmp_path: Path, spacing: list[float], axes: str | None, expected: tuple[float, ...]
) -> None:
    files = {f"s/z{n}.png": image((6, 5)) for n in range(3)}
    given = {} if axes is None else {"axes": axes}
    folder = made(tmp_path, files, stack=True, spacing=spacing, spacing_units="nm", **given)
    assert sizes(folder) == {"s": (expected, "nm")}


def test_sections_with_a_pixel_size_still_take_their_distance(tmp_path: Path) -> None:
    files = {f"s/z{n}.tif": image((6, 5), "um", (0.004, 0.004, 1.0)) for n in range(3)}
    folder = made(tmp_path, files, stack=True, spacing=[50, 4, 4], axes="ZYX", spacing_units="nm")
    assert sizes(folder) == {"s": ((0.004, 0.004, 0.05), "um")}
    assert size_notes(read_data_set(folder)) == []


def labelled_stack(folder: Path, label: Volume | None, **declared: object) -> Path:
    """Sections of 4 nm, 50 nm apart, which only `dataset.json` says; the label is a volume, or None for sections."""
    pixel = image((6, 5), "um", (0.004, 0.004, 1.0))
    for z in range(3):
        write_volume(pixel, folder / "images" / "s" / f"z{z}.tif")
        if label is None:
            write_volume(pixel, folder / "labels" / "s" / f"z{z}.tif")
    if label is not None:
        write_volume(label, folder / "labels" / ("s.tif" if label.unit == "um" else "s.nrrd"))
    size = {"spacing": [50, 4, 4], "axes": "ZYX", "spacing_units": "nm"}
    (folder / "dataset.json").write_text(json.dumps({"stack": True, **size, **declared}))
    return folder


@pytest.mark.parametrize(
    "label",
    [
        None,
        image((6, 5, 3), "um", (0.004, 0.004, 0.05)),
        image((6, 5, 3), "mm", (4e-6, 4e-6, 5e-5)),
    ],
    ids=["sections", "volume in um", "volume in mm"],
)
def test_labels_of_sections_take_their_distance_as_images_do(label: Volume | None, tmp_path: Path) -> None:
    """Sections of labels cannot state it either, and a volume that states it lies on the same grid."""
    (case,) = read_data_set(labelled_stack(tmp_path, label)).labelled
    check_pairs([case])
    assert load_label_values(case, load_image(case)).shape == (1, 6, 5, 3)


@pytest.mark.parametrize("check", ["headers", "voxels"])
def test_a_label_that_states_another_distance_of_sections_is_refused(check: str, tmp_path: Path) -> None:
    label = image((6, 5, 3), "um", (0.004, 0.004, 0.06))
    (case,) = read_data_set(labelled_stack(tmp_path, label)).labelled
    words = r"s: label and image .* up to 0\.02 um .*\n.*\(0\.004, 0\.004, 0\.05\) um, .*\(0\.004, 0\.004, 0\.06\) um"
    with pytest.raises(DataError, match=words):
        check_pairs([case]) if check == "headers" else load_label_values(case, load_image(case))


def test_a_label_or_channel_without_a_size_says_nothing_beside_an_image_with_another_than_the_declared_one(
    tmp_path: Path,
) -> None:
    own, none = image((6, 5), "um", (0.7, 0.7, 1.0)), image((6, 5))
    folder = made(tmp_path, {"a_0000.tif": own, "a_0001.png": none}, spacing=[0.5, 0.5], spacing_units="um")
    write_volume(none, folder / "labels" / "a.png")
    (case,) = read_data_set(folder).labelled
    check_pairs([case])
    volume = load_image(case)
    assert volume.spacing == pytest.approx((0.7, 0.7)) and volume.channels == 2
    load_label_values(case, volume)


def test_a_label_that_contradicts_what_is_declared_of_its_image_is_refused_by_its_header(tmp_path: Path) -> None:
    folder = made(tmp_path, {"a.png": image((6, 5))}, spacing=[0.5, 0.5], spacing_units="um")
    write_volume(image((6, 5), "um", (0.7, 0.7, 1.0)), folder / "labels" / "a.tif")
    (case,) = read_data_set(folder).labelled
    for check in (lambda: check_pairs([case]), lambda: load_label_values(case, load_image(case))):
        with pytest.raises(DataError, match=r"a: label and image lie on different grids"):
            check()


def test_headers_name_the_volume_that_needs_three_lengths(tmp_path: Path) -> None:
    folder = made(tmp_path, {"v.tif": image((6, 5, 4))}, spacing=[4, 4], spacing_units="nm")
    with pytest.raises(DataError, match=r"v.tif: is a volume without voxel size, and .* two numbers"):
        check_pairs(read_data_set(folder).cases, "ZYX")


def test_a_volume_needs_three_lengths(tmp_path: Path) -> None:
    folder = made(tmp_path, {"v.tif": image((6, 5, 4))}, spacing=[4, 4], spacing_units="nm")
    with pytest.raises(DataError, match=r"v.tif: is a volume without voxel size, and .* two numbers"):
        load_image(read_data_set(folder).cases[0], "ZYX")
