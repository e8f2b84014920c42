"""`medunet convert` of one mask per structure, as a user runs it."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import medunet
import medunet.cli as cli
from medunet.datasets.catalogue import read_data_set, with_labels
from medunet.datasets.loading import load_image, load_label
from medunet.formats import dicom
from medunet.volume import Grid, Volume
from tests.formats.test_dicom import write_series
from tests.test_convert import refused, said

AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])
SHAPE = (6, 5, 4)


def masks_of(number: int, overlap: bool = True) -> dict[str, np.ndarray]:
    """Liver and lesion overlap, a vessel lies in the liver, the bladder is empty in some cases."""
    liver, lesion, vessel, bladder = np.zeros((4, *SHAPE), bool)
    liver[:3], lesion[2 if overlap else 3 : 5, :2], vessel[:2, 3], bladder[5, 4, number:] = True, True, overlap, True
    return {"liver": liver, "lesion": lesion, "vessel": vessel, "bladder": bladder & (number != 1)}


def write(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    medunet.write_volume(Volume(array[None] if array.ndim == 3 else array, affine), path, overwrite=True)
    return path


def make_source(folder: Path, form: str = "beside", overlap: bool = True) -> Path:
    places = {
        "beside": ("images/{}.nii.gz", "labels/{}/{}.nii.gz"),
        "inside": ("{}/ct.nii.gz", "{}/segmentations/{}.nii.gz"),
    }
    for number in range(3):
        image, mask = places[form]
        scan = np.random.default_rng(number).integers(0, 99, SHAPE).astype(np.int16)
        write(folder / image.format(f"s{number}"), scan)
        for name, inside in masks_of(number, overlap).items():
            kind = (np.uint8, np.int16, np.float32)[number]
            write(folder / mask.format(f"s{number}", name), (inside * (255 if number == 1 else 1)).astype(kind))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("form", ["beside", "inside"])
def test_structures_that_overlap_become_regions(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, data = make_source(tmp_path / "masks", form), tmp_path / "data"
    assert cli.run(["convert", str(source), "-o", str(data)]) == 0
    text = said(capsys)
    assert (
        "masks: one for each of 4 structures (bladder, lesion, liver, vessel), which overlap in 2 combinations" in text
    )
    assert "voxels are in several structures, so each structure becomes a region" in text
    declared = json.loads((data / "dataset.json").read_text())
    assert declared["labels"] == {
        "background": 0, "bladder": 1, "lesion": 2, "liver": 3, "lesion+liver": 4, "liver+vessel": 5,
    }  # fmt: skip
    assert declared["regions"] == {"liver": [3, 4, 5], "lesion": [2, 4], "bladder": [1], "vessel": [5]}
    read = read_data_set(data)
    table = with_labels(read, read.labelled)
    assert not table.painted and [case.name for case in read.labelled] == ["s0", "s1", "s2"]
    for number, case in enumerate(read.labelled):
        image = load_image(case)
        label = load_label(case, table, image)
        for region, inside in zip(
            table.regions, (masks_of(number)[region.name] for region in table.regions), strict=True
        ):
            np.testing.assert_array_equal(np.isin(label[0], region.indices), inside)
        np.testing.assert_allclose(image.affine, AFFINE)


def test_structures_apart_become_plain_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And masks that are always empty become nothing."""
    source, data = make_source(tmp_path / "masks", overlap=False), tmp_path / "data"
    (source / "labels" / "s2" / "lesion.nii.gz").unlink()
    assert cli.run(["convert", str(source), "-o", str(data)]) == 0
    text = said(capsys)
    assert "left out, as all their masks are empty: vessel" in text
    assert "without a mask in up to 1 of 3 cases, where they are taken for absent: lesion" in text
    declared = json.loads((data / "dataset.json").read_text())
    assert declared["labels"] == {"background": 0, "bladder": 1, "lesion": 2, "liver": 3} and "regions" not in declared


def test_channels_of_a_file_are_structures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(2):
        write(tmp_path / "set" / "images" / f"s{number}.nii.gz", np.zeros(SHAPE, np.int16))
        stack = np.stack(list(masks_of(number).values())[:3]).astype(np.uint8)
        write(tmp_path / "set" / "labels" / f"s{number}.nii.gz", stack)
    assert cli.run(["convert", str(tmp_path / "set"), "-o", str(tmp_path / "data")]) == 0
    assert "images/ with labels/, one channel per structure, 2 pairs" in said(capsys)
    declared = json.loads((tmp_path / "data" / "dataset.json").read_text())
    assert list(declared["regions"]) == ["structure_1", "structure_2", "structure_3"]
    found = medunet.read_volume(tmp_path / "data" / "labels" / "s1.nii.gz").array[0]
    for name, inside in zip(declared["regions"], masks_of(1).values(), strict=False):
        np.testing.assert_array_equal(np.isin(found, declared["regions"][name]), inside)


@pytest.mark.parametrize("first", [True, False])
def test_masks_with_and_without_channels_do_not_mix(
    first: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whichever comes first; two channels had been taken for grey with alpha."""
    stack = np.stack(list(masks_of(0).values())[:2]).astype(np.uint8)
    for name, mask in (("a", stack if first else stack[0]), ("b", stack[0] if first else stack)):
        write(tmp_path / "set" / "images" / f"{name}.nii.gz", np.zeros(SHAPE, np.int16))
        write(tmp_path / "set" / "labels" / f"{name}.nii.gz", mask)
    text = refused([tmp_path / "set", "-o", tmp_path / "data"], tmp_path, capsys)
    several, one = ("a", "b") if first else ("b", "a")
    assert "in 1 of 2 cases the mask has a channel for each structure" in text
    assert f"(labels/{several}.nii.gz), in others not (labels/{one}.nii.gz)" in text


def test_a_file_of_channels_among_folders_of_masks_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_source(tmp_path / "masks")
    for path in (source / "labels" / "s1").iterdir():
        path.unlink()
    write(source / "labels" / "s1" / "all.nii.gz", np.stack(list(masks_of(1).values())).astype(np.uint8))
    text = refused([source, "-o", tmp_path / "data"], tmp_path, capsys)
    assert "(labels/s1/all.nii.gz), in others not (labels/s0/bladder.nii.gz)" in text


def test_pictures(tmp_path: Path) -> None:
    inside = np.zeros((2, 8, 9), bool)
    inside[0, :5], inside[1, 3:, 2:] = True, True
    for name, array in (
        ("images/a", np.zeros((8, 9), np.uint8)),
        *zip(("masks/a/x", "masks/a/y"), inside, strict=True),
    ):
        (tmp_path / "set" / f"{name}.png").parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(tmp_path / "set" / f"{name}.png")
    assert cli.run(["convert", str(tmp_path / "set"), "-o", str(tmp_path / "data")]) == 0
    found = np.array(Image.open(tmp_path / "data" / "labels" / "a.png"))
    np.testing.assert_array_equal(found, inside[0] + 2 * inside[1])


def test_a_label_map_for_each_image_in_a_folder_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where one of them holds nothing but 0 and 1."""
    maps = [np.random.default_rng(number).integers(0, 3, SHAPE).astype(np.uint8) for number in range(3)]
    maps[1] = np.minimum(maps[1], 1)
    for number, labels in enumerate(maps):
        write(tmp_path / "set" / f"s{number}" / "image.nii.gz", np.zeros(SHAPE, np.int16))
        write(tmp_path / "set" / f"s{number}" / (f"s{number}_label.nii.gz"), labels)
    assert cli.run(["convert", str(tmp_path / "set"), "-o", str(tmp_path / "data")]) == 0
    text = said(capsys)
    assert "one folder per image, one label map each, 3 pairs" in text and "masks: label values" in text
    declared = json.loads((tmp_path / "data" / "dataset.json").read_text())
    assert declared["labels"] == {"background": 0, "label_1": 1, "label_2": 2}
    for number, labels in enumerate(maps):
        found = medunet.read_volume(tmp_path / "data" / "labels" / f"s{number}.nii.gz").array[0]
        np.testing.assert_array_equal(found, labels)


def test_masks_in_colours_in_folders_of_their_own(tmp_path: Path) -> None:
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]], np.uint8)
    labels = np.random.default_rng(0).integers(0, 3, (4, 5)).repeat(4, 0)
    for name, pixels in (("a/image", np.zeros((16, 5), np.uint8)), ("a/label", colours[labels])):
        (tmp_path / "set" / "a").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "set" / f"{name}.png")
    (tmp_path / "set" / "colours.json").write_text(
        json.dumps({"background": [0, 0, 0], "r": [255, 0, 0], "g": [0, 255, 0]})
    )
    assert cli.run(["convert", str(tmp_path / "set"), "-o", str(tmp_path / "data")]) == 0
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "data" / "labels" / "a.png")), labels)


def test_one_binary_mask_for_each_image_stays_a_structure(tmp_path: Path) -> None:
    for number in range(2):
        write(tmp_path / "set" / f"s{number}" / "ct.nii.gz", np.zeros(SHAPE, np.int16))
        write(tmp_path / "set" / f"s{number}" / "liver.nii.gz", masks_of(number)["liver"].astype(np.uint8))
    assert cli.run(["convert", str(tmp_path / "set"), "-o", str(tmp_path / "data")]) == 0
    assert json.loads((tmp_path / "data" / "dataset.json").read_text())["labels"] == {"background": 0, "liver": 1}


def test_folders_that_are_passed_over_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = np.random.default_rng(0).integers(0, 3, SHAPE).astype(np.uint8)
    for name, array in (("images/a", labels * 9), ("masks/a", labels), ("old/ct", labels), ("old/liver", labels > 1)):
        write(tmp_path / "set" / f"{name}.nii.gz", array.astype(np.uint8))
    write(tmp_path / "set" / "lone.nii.gz", labels)
    assert cli.run(["convert", str(tmp_path / "set"), "-o", str(tmp_path / "data")]) == 0
    text = said(capsys)
    assert "images/ with masks/, 1 pair" in text
    assert "left out, folders with an image and masks of their own: 1: old" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "expected"),
    [
        (
            "shape",
            "labels/s1/lesion.nii.gz: has shape (5, 5, 4), the first mask of this case, bladder.nii.gz, (6, 5, 4)",
        ),
        ("place", "labels/s1/lesion.nii.gz: lies on another grid than bladder.nii.gz: corners differ by up to 3 mm"),
        ("first", "labels/s1/bladder.nii.gz: label and image lie on different grids: corners differ by up to 3 mm"),
        ("fractions", "labels/s1/lesion.nii.gz: holds 0.5 on "),
        ("label map", "labels/s1/lesion.nii.gz: holds 2 on "),
        ("empty folder", "labels/s1: holds no mask; expected a file per structure"),
        ("all empty", "all masks of its 4 structures are empty"),
        ("background", "labels/s1/background.nii.gz: a structure cannot be called background"),
        ("twice", "labels/s1/lesion.nrrd: is a second mask of lesion beside lesion.nii.gz"),
        ("damaged", "labels/s1/lesion.nii.gz"),
    ],
)
def test_what_is_refused(what: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_source(tmp_path / "masks")
    folder, mask = source / "labels" / "s1", masks_of(1)["lesion"].astype(np.float32)
    path = folder / "lesion.nii.gz"
    if what == "shape":
        write(path, mask[1:])
    elif what in ("place", "first"):
        path = path if what == "place" else folder / "bladder.nii.gz"
        write(path, mask, np.array([[2.0, 0, 0, 3], [0, 2, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]]))
    elif what in ("fractions", "label map"):
        write(path, mask * (0.5 if what == "fractions" else 2))
    elif what == "empty folder":
        shutil.rmtree(folder)
        folder.mkdir()
    elif what == "all empty":
        for one in source.glob("labels/*/*"):
            write(one, mask * 0)
    elif what == "background":
        path.rename(folder / "background.nii.gz")
    elif what == "twice":
        write(folder / "lesion.nrrd", mask)
    else:
        path.write_bytes(path.read_bytes()[:60])
    assert expected in refused([source, "-o", tmp_path / "data"], tmp_path, capsys)


def test_options_of_other_masks_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_source(tmp_path / "masks")
    text = refused([source, "-o", tmp_path / "data", "--foreground", "x", "--ignore", "liver"], tmp_path, capsys)
    assert "--ignore, --foreground: not for masks of one structure each" in text
    assert "exists already" in refused([source, "-o", source], tmp_path, capsys)


def test_the_header_of_an_image_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of a DICOM series is read from every slice, and there may be a hundred masks."""
    looked = Counter[str]()
    real = dicom.look

    def look(folder: Path) -> Grid:
        looked[folder.parent.name] += 1
        return real(folder)

    for case in ("s1", "s2"):
        (tmp_path / "set" / case).mkdir(parents=True)
        array = write_series(tmp_path / "set" / case / "ct")
        grid = medunet.read_volume(tmp_path / "set" / case / "ct")
        for place in range(4):
            inside = (array[None] > 50 * place).astype(np.uint8)
            medunet.write_volume(grid.with_array(inside), tmp_path / "set" / case / "masks" / f"m{place}.nii.gz")
    monkeypatch.setattr(dicom, "look", look)
    assert cli.run(["convert", str(tmp_path / "set"), "-o", str(tmp_path / "data")]) == 0
    assert looked == {"s1": 1, "s2": 1}


def test_training_on_such_a_folder_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_source(tmp_path / "masks")
    assert cli.run(["plan", str(source), "-o", str(tmp_path / "c.yaml")]) == 1
    assert f"with: medunet convert {source} -o NEW_FOLDER" in capsys.readouterr().err
