"""Data sets: layouts, channels, label declarations, checks of pairs, splits."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medunet.datasets.catalogue import Case, group_cases, read_data_set, with_labels
from medunet.datasets.loading import check_pairs, load_image, load_label, load_label_values
from medunet.errors import DataError
from medunet.formats.dispatch import write_volume
from medunet.system.blocks import slowest_axis
from medunet.system.scratch import Scratch, lives_in_file
from medunet.volume import Volume


def write(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)


def make_set(folder: Path, cases: int = 3, layout: tuple[str, str] = ("images", "labels")) -> Path:
    for n in range(cases):
        write(folder / layout[0] / f"case_{n}.nii.gz", np.full((4, 5, 6), n, np.int16))
        write(folder / layout[1] / f"case_{n}.nii.gz", np.arange(120).reshape(4, 5, 6).astype(np.uint8) % 3)
    return folder


def declare(folder: Path, **content: object) -> None:
    (folder / "dataset.json").write_text(json.dumps(content))


@pytest.mark.parametrize("layout", [("images", "labels"), ("imagesTr", "labelsTr")])
def test_both_layouts(tmp_path: Path, layout: tuple[str, str]) -> None:
    data = read_data_set(make_set(tmp_path, layout=layout))
    assert [c.name for c in data.cases] == ["case_0", "case_1", "case_2"]
    assert len(data.labelled) == 3 and data.labels is None
    assert with_labels(data, data.labelled).values == (0, 1, 2)


@pytest.mark.parametrize(
    "content",
    [
        {"channels": ["T1"], "labels": {"background": 0, "b": 2, "a": 1}},
        {"channel_names": {"0": "T1"}, "labels": {"background": 0, "a": 1, "b": 2}},
        {"modality": {"0": "T1"}, "labels": {"0": "background", "1": "a", "2": "b"}},
    ],
)
def test_all_three_ways_to_declare(tmp_path: Path, content: dict) -> None:
    declare(make_set(tmp_path), **content)
    data = read_data_set(tmp_path)
    assert data.channels == ("T1",)
    assert data.labels and data.labels.names == ("background", "a", "b") and data.labels.values == (0, 1, 2)


def test_nnunets_ignore_label_and_medunets(tmp_path: Path) -> None:
    declare(make_set(tmp_path), labels={"background": 0, "a": 1, "ignore": 2})
    assert read_data_set(tmp_path).labels.ignore == 2
    declare(tmp_path, labels={"background": 0, "a": 1}, ignore=2)
    assert read_data_set(tmp_path).labels.ignore == 2


def test_channels_by_number(tmp_path: Path) -> None:
    for channel in range(2):
        write(tmp_path / "images" / f"p1_{channel:04d}.nii.gz", np.full((3, 3, 3), channel, np.uint8))
    write(tmp_path / "labels" / "p1.nii.gz", np.zeros((3, 3, 3), np.uint8))
    (case,) = read_data_set(tmp_path).cases
    assert case.name == "p1" and len(case.images) == 2
    assert load_image(case).array[:, 0, 0, 0].tolist() == [0, 1]


@pytest.mark.parametrize("shape", [(4, 5, 6), (4, 5)])
def test_channels_are_joined_in_a_file_as_in_memory(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Files of different types and a different number of channels, each array in a file of its own."""
    files = []
    for number, (dtype, channels) in enumerate([("int16", 1), ("uint8", 3), ("float32", 1)]):
        array = np.arange(np.prod(shape) * channels).reshape(channels, *shape) + 7 * number
        files.append(tmp_path / f"p1_{number:04d}.nrrd")
        write_volume(Volume(array.astype(dtype)), files[-1])
    plain = load_image(Case("p1", tuple(files)))
    found = load_image(Case("p1", tuple(files)), scratch=Scratch(tmp_path / "scratch", limit=0))
    np.testing.assert_array_equal(found.array, plain.array, strict=True)
    assert plain.channels == 5 and lives_in_file(found.array) and not list((tmp_path / "scratch").iterdir())
    np.testing.assert_array_equal(found.affine, plain.affine)
    assert slowest_axis(found.array) == len(shape) - 1


def test_channels_on_different_grids_are_refused_with_and_without_a_file(tmp_path: Path) -> None:
    files = (tmp_path / "p1_0000.nii", tmp_path / "p1_0001.nii")
    write(files[0], np.zeros((3, 3, 3), np.uint8))
    write(files[1], np.zeros((3, 3, 4), np.uint8))
    for scratch in (None, Scratch(tmp_path, limit=0)):
        with pytest.raises(DataError, match="p1: channel and image have different shapes"):
            load_image(Case("p1", files), scratch=scratch)


def test_four_digits_in_a_name_are_no_channel_where_the_label_has_them_too() -> None:
    cases = group_cases(
        [Path("slice_0000.png"), Path("slice_0001.png")], {"slice_0000": Path("l"), "slice_0001": Path("m")}
    )
    assert [c.name for c in cases] == ["slice_0000", "slice_0001"]


def test_a_missing_channel_is_named() -> None:
    with pytest.raises(DataError, match="p1: channels must be numbered"):
        group_cases([Path("p1_0000.nii"), Path("p1_0002.nii")], {"p1": Path("l")})


def test_a_file_and_a_numbered_one_of_the_same_case_are_refused(tmp_path: Path) -> None:
    """Whichever is read first; neither is taken silently."""
    for name in ("images/a.nii", "images/a_0000.nii", "labels/a.nii"):
        write(tmp_path / name, np.zeros((2, 2, 2), np.uint8))
    with pytest.raises(DataError, match=r"a\.nii and a_0000\.nii: both are channel 0 of the case a\n"):
        read_data_set(tmp_path)
    with pytest.raises(DataError, match=r"a_0000\.nii and a\.nii: both are channel 0"):
        group_cases([Path("a_0000.nii"), Path("a.nii")], {"a": Path("l")})


def test_folders_of_sections_may_be_links_to_others_of_other_names(tmp_path: Path) -> None:
    for kind in ("images", "labels"):
        for z in range(2):
            write_volume(Volume(np.ones((1, 4, 3), np.uint8), unit="pixel"), tmp_path / f"{kind}_of_7" / f"z{z}.png")
        (tmp_path / "set" / kind).mkdir(parents=True)
        (tmp_path / "set" / kind / "s0").symlink_to(tmp_path / f"{kind}_of_7")
    declare(tmp_path / "set", stack=True)
    (case,) = read_data_set(tmp_path / "set").labelled
    assert (case.name, case.label) == ("s0", tmp_path / "set" / "labels" / "s0")


def test_two_files_of_one_case_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "images" / "a.nii.gz", np.zeros((2, 2, 2), np.uint8))
    write(tmp_path / "images" / "a.nii", np.zeros((2, 2, 2), np.uint8))
    with pytest.raises(DataError, match=r"same name as a\.nii"):
        read_data_set(tmp_path)


def test_files_of_macos_are_not_cases(tmp_path: Path) -> None:
    make_set(tmp_path, 1)
    (tmp_path / "images" / "._case_0.nii.gz").write_bytes(b"junk")
    assert len(read_data_set(tmp_path).cases) == 1


@pytest.mark.parametrize("what", ["missing", "no layout", "no scans", "orphan label", "bad json", "colours", "regions"])
def test_what_is_no_data_set_says_why(tmp_path: Path, what: str) -> None:
    expected = {
        "missing": "no such folder",
        "no layout": "expected images/ and labels/",
        "no scans": "holds no scan",
        "orphan label": "without an image of the same name, first: x",
        "bad json": "not valid JSON",
        "colours": "become label maps with: medunet convert",
        "regions": "not clear which one is written",
    }[what]
    if what == "no scans":
        (tmp_path / "images").mkdir()
    elif what not in ("missing", "no layout"):
        make_set(tmp_path)
    if what == "orphan label":
        write(tmp_path / "labels" / "x.nii.gz", np.zeros((2, 2, 2), np.uint8))
    if what == "bad json":
        (tmp_path / "dataset.json").write_text("{")
    if what == "colours":
        declare(tmp_path, labels={"sky": [128, 128, 128], "road": [1, 2, 3]})
    if what == "regions":
        declare(tmp_path, labels={"background": 0, "whole": [1, 2]})
    with pytest.raises(DataError, match=expected):
        read_data_set(tmp_path / "nowhere" if what == "missing" else tmp_path)


def test_pairs_on_one_grid_pass_with_noise_below_the_tolerance(tmp_path: Path) -> None:
    make_set(tmp_path, 1)
    noisy = np.eye(4) + 1e-6
    write(tmp_path / "labels" / "case_0.nii.gz", np.zeros((4, 5, 6), np.uint8), noisy)
    check_pairs(read_data_set(tmp_path).cases)


def test_a_label_on_another_grid_is_refused_with_the_distance(tmp_path: Path) -> None:
    make_set(tmp_path, 2)
    write(tmp_path / "labels" / "case_1.nii.gz", np.zeros((4, 5, 6), np.uint8), np.diag([1, 1, 1.01, 1.0]))
    with pytest.raises(DataError, match=r"case_1: .*corners differ by up to 0\.05 mm"):
        check_pairs(read_data_set(tmp_path).cases)


@pytest.mark.parametrize("factor", [1e-3, 1.0])
def test_units_are_converted_before_grids_are_compared(factor: float, tmp_path: Path) -> None:
    """An image of 0.5 um lies on the grid of a label of 0.0005 mm, and not on that of one of 0.5 mm."""
    array, size = np.ones((1, 6, 5, 4), np.uint8), np.array([0.5, 0.5, 2.0])
    write_volume(Volume(array, np.diag([*size, 1.0]), "um"), tmp_path / "images" / "a.tif")
    write_volume(Volume(array, np.diag([*factor * size, 1.0]), "mm"), tmp_path / "labels" / "a.mha")
    (case,) = read_data_set(tmp_path).labelled
    checks = (lambda: check_pairs([case]), lambda: load_label_values(case, load_image(case)))
    for check in checks:
        if factor == 1e-3:
            check()
            continue
        with pytest.raises(DataError, match=r"corners differ by up to 6\d{3} um .*\n.*\(0\.5, 0\.5, 2\) mm"):
            check()


def test_a_label_of_another_shape_is_refused(tmp_path: Path) -> None:
    make_set(tmp_path, 2)
    write(tmp_path / "labels" / "case_0.nii.gz", np.zeros((4, 5, 7), np.uint8))
    with pytest.raises(DataError, match="case_0: label and image have different shapes: image 4×5×6, label 4×5×7"):
        check_pairs(read_data_set(tmp_path).cases)


def test_float_labels_are_read_exactly(tmp_path: Path) -> None:
    make_set(tmp_path, 1)
    declare(tmp_path, labels={"background": 0, "a": 1, "b": 2})
    stored = (np.arange(120).reshape(4, 5, 6) % 3).astype(np.float64)
    write(tmp_path / "labels" / "case_0.nii.gz", stored)
    data = read_data_set(tmp_path)
    label = load_label(data.cases[0], data.labels, load_image(data.cases[0]))
    np.testing.assert_array_equal(label[0], stored)


@pytest.mark.data
def test_every_real_set_with_labels_is_read_and_checked(real_data: Path) -> None:
    sets = [p for p in sorted(real_data.iterdir()) if (p / "labels").is_dir() and p.name != "camvid_rgb"]
    assert len(sets) >= 10
    for folder in sets:
        data = read_data_set(folder)
        check_pairs(data.labelled)
        case = data.labelled[0]
        label = load_label(case, with_labels(data, data.labelled), load_image(case))
        assert label.dtype == np.uint8 and label.any()
