"""Folders in other forms become data sets, and label maps colours again, as a user runs it."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pydicom
import pytest
import tifffile
from PIL import Image

import medunet
import medunet.cli as cli
from medunet.conversion.write import place_file
from medunet.datasets.catalogue import read_data_set, with_labels
from medunet.datasets.loading import load_image, load_label
from medunet.errors import OutputError
from tests.formats.test_dicom import write_series

TABLE = {"sky": (0, 0, 255), "road": (128, 64, 128), "car": (200, 0, 0), "void": (0, 0, 0)}
LABELS = np.random.default_rng(1).integers(0, 4, (2, 3, 4)).repeat(5, 1).repeat(5, 2).astype(np.uint8)
"""Two label maps of 15 rows and 20 columns, in blocks of 5 pixels; numbers are places in the table."""


def saved(path: Path, pixels: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        tifffile.imwrite(path, pixels, **options)
    else:
        Image.fromarray(pixels).save(path, **options)
    return path


def photo(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (15, 20), np.uint8)


def pixels_of(path: Path) -> np.ndarray:
    return tifffile.imread(path) if path.suffix == ".tif" else np.array(Image.open(path))


def street(folder: Path, ending: str = "png", **options: object) -> Path:
    """Images, masks in colours and a table."""
    colours = np.array(list(TABLE.values()), np.uint8)
    for number, labels in enumerate(LABELS):
        saved(folder / "images" / f"s{number}.png", photo(number))
        saved(folder / "masks" / f"s{number}.{ending}", colours[labels], **options)
    lines = [f"{' '.join(map(str, colour))} {name}" for name, colour in TABLE.items()]
    (folder / "Labels.txt").write_text("\n".join(lines))
    return folder


def said(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    return captured.out + captured.err


def refused(arguments: list[object], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The message of a conversion that must fail, and that nothing is left of it."""
    before = sorted(folder.rglob("*"))
    assert cli.run(["convert", *map(str, arguments)]) == 1
    text = capsys.readouterr().err
    assert sorted(folder.rglob("*")) == before
    assert text.startswith("medunet: error: ") and len(text.splitlines()) <= 3
    return text


def check_images(source: Mapping[Path, Path]) -> None:
    for old, new in source.items():
        assert old.read_bytes() == new.read_bytes()


def test_colour_masks_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, data = street(tmp_path / "street"), tmp_path / "data"
    assert cli.run(["convert", str(source), "-o", str(data), "--ignore", "void"]) == 0
    text = said(capsys)
    assert "images/s0.png  <-  masks/s0.png" in text and "colours of 4 classes by Labels.txt" in text
    for number, labels in enumerate(LABELS):
        np.testing.assert_array_equal(pixels_of(data / "labels" / f"s{number}.png"), np.where(labels == 3, 255, labels))
    check_images({source / "images" / f"s{n}.png": data / "images" / f"s{n}.png" for n in (0, 1)})
    declared = json.loads((data / "dataset.json").read_text())
    assert declared["labels"] == {"sky": 0, "road": 1, "car": 2} and declared["ignore"] == 255
    read = read_data_set(data)
    table = with_labels(read, read.labelled)
    assert table.names == ("sky", "road", "car") and table.ignore == 255
    load_label(read.cases[0], table, load_image(read.cases[0]))

    assert cli.run(["convert", str(data), "-o", str(tmp_path / "colours"), "--to-colours"]) == 0
    for number in (0, 1):
        original = pixels_of(source / "masks" / f"s{number}.png")
        np.testing.assert_array_equal(pixels_of(tmp_path / "colours" / "labels" / f"s{number}.png"), original)
    assert cli.run(["convert", str(tmp_path / "colours"), "-o", str(tmp_path / "again")]) == 0
    for path in sorted(data.rglob("*.*")):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(data)).read_bytes()


def test_unknown_colours_are_listed_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = street(tmp_path / "street")
    pixels = pixels_of(source / "masks" / "s1.png")
    pixels[0, :3], pixels[1, 0] = (9, 9, 9), (1, 0, 254)
    saved(source / "masks" / "s1.png", pixels)
    text = refused([source, "-o", tmp_path / "data"], tmp_path, capsys)
    assert "4 pixels (0.667%) in 1 masks (first: s1.png) have 2 colours that mean nothing; nothing was written" in text
    assert "(9 9 9) 3 px, 9.0 from void; (1 0 254) 1 px, 0.8 from sky" in text and "--tolerance 9 or less" in text
    text = refused([source, "-o", tmp_path / "data", "--tolerance", "1"], tmp_path, capsys)
    assert "3 pixels" in text and "within a tolerance of 1" in text
    assert cli.run(["convert", str(source), "-o", str(tmp_path / "data"), "--tolerance", "9"]) == 0
    assert "changed to the nearest class: 4 pixels, 0.667%" in said(capsys)


@pytest.mark.parametrize("quality", [95, 60])
def test_masks_saved_as_jpeg_come_back(tmp_path: Path, quality: int, capsys: pytest.CaptureFixture[str]) -> None:
    source = street(tmp_path / "street", "jpg", quality=quality, subsampling=0)
    assert "--tolerance" in refused([source, "-o", tmp_path / "data"], tmp_path, capsys)
    assert cli.run(["convert", str(source), "-o", str(tmp_path / "data"), "--tolerance", "90"]) == 0
    for number, labels in enumerate(LABELS):
        wrong = pixels_of(tmp_path / "data" / "labels" / f"s{number}.png") != labels
        assert wrong.mean() < (0.001 if quality == 95 else 0.05)


def test_images_and_masks_in_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, data = tmp_path / "cells", tmp_path / "data"
    for number, labels in enumerate(LABELS):
        options = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}
        saved(source / f"c{number}.tif", photo(number), **options)
        saved(source / f"c{number}_mask.tif", (labels > 1).astype(np.uint8) * 255, **options)
    saved(source / "alone.tif", photo(5))
    (source / "notes.txt").write_text("x")
    command = ["convert", str(source), "-o", str(data), "--foreground", "cell"]
    assert cli.run([*command, "--dry-run"]) == 0
    text = said(capsys)
    assert "c0.tif  <-  c0_mask.tif" in text and "without a mask: 1: alone.tif" in text and "no scans: 1 .txt" in text
    assert "dry run: nothing written" in text and not data.exists()
    assert cli.run(command) == 0
    check_images({source / f"c{n}.tif": data / "images" / f"c{n}.tif" for n in (0, 1)})
    assert sorted(path.name for path in (data / "images").iterdir()) == ["c0.tif", "c1.tif"]
    for number, labels in enumerate(LABELS):
        np.testing.assert_array_equal(pixels_of(data / "labels" / f"c{number}.tif"), labels > 1)
    assert json.loads((data / "dataset.json").read_text())["labels"] == {"background": 0, "cell": 1}
    assert cli.run(["inspect", str(data)]) == 0
    assert "exists already" in refused(command[1:], tmp_path, capsys)


def test_links_share_the_bytes(tmp_path: Path) -> None:
    source = tmp_path / "ids"
    for number, labels in enumerate(LABELS):
        saved(source / f"c{number}.png", photo(number))
        saved(source / f"c{number}_label.png", labels)
    assert cli.run(["convert", str(source), "-o", str(tmp_path / "data"), "--link"]) == 0
    for new, old in (("images/c0.png", "c0.png"), ("labels/c0.png", "c0_label.png")):
        assert (tmp_path / "data" / new).stat().st_ino == (source / old).stat().st_ino


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def scans_of_slices(folder: Path, scans: Mapping[str, str]) -> dict[str, np.ndarray]:
    """DICOM series whose slices have the same names, each with a mask; what each series must be read as."""
    made = {}
    for number, (name, mask) in enumerate(scans.items()):
        (folder / name).mkdir(parents=True)
        made[name] = write_series(folder / name, 3, SeriesInstanceUID=f"1.2.{number}") + number
        for path in (folder / name).iterdir():
            data = pydicom.dcmread(path)
            data.PixelData = (data.pixel_array + number).astype(np.int16).tobytes()
            data.save_as(path)
        grid = medunet.read_volume(folder / name)
        inside = (made[name] > 100).astype(np.uint8)
        medunet.write_volume(grid.with_array(inside[None]), folder / mask)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("link", [True, False])
def test_a_dicom_series_stays_a_folder_and_the_originals_stay_as_they_are(tmp_path: Path, link: bool) -> None:
    source, data = tmp_path / "scans", tmp_path / "data"
    made = scans_of_slices(source, {f"images/{name}": f"masks/{name}.nii.gz" for name in ("s1", "s2")})
    (source / "images" / "s1" / "notes.txt").write_text("no slice")
    before = bytes_of(source)
    assert cli.run(["convert", str(source), "-o", str(data), *(["--link"] if link else [])]) == 0
    assert bytes_of(source) == before
    read = read_data_set(data)
    assert [case.name for case in read.labelled] == ["s1", "s2"]
    for case, (name, expected) in zip(read.labelled, made.items(), strict=True):
        np.testing.assert_array_equal(load_image(case).array[0], expected)
        np.testing.assert_array_equal(
            load_label(case, with_labels(read, read.labelled), load_image(case))[0], expected > 100
        )
        for path in (data / name).iterdir():
            assert path.samefile(source / name / path.name) == link
    assert not (data / "images" / "s1" / "notes.txt").exists()


def test_a_series_in_a_folder_for_each_image_gets_the_name_of_that_folder(tmp_path: Path) -> None:
    source, data = tmp_path / "scans", tmp_path / "data"
    made = scans_of_slices(source, {f"{name}/ct": f"{name}/masks/liver.nii.gz" for name in ("s1", "s2")})
    assert cli.run(["convert", str(source), "-o", str(data), "--link"]) == 0
    for case, expected in zip(read_data_set(data).labelled, made.values(), strict=True):
        np.testing.assert_array_equal(load_image(case).array[0], expected)


@pytest.mark.parametrize("link", [True, False])
def test_two_files_on_one_place_are_refused_and_the_first_is_untouched(tmp_path: Path, link: bool) -> None:
    for number, folder in enumerate("ab"):
        saved(tmp_path / folder / "x.png", photo(number))
        scans_of_slices(tmp_path / folder, {"s": "mask.nii.gz"})
    before = bytes_of(tmp_path / "a"), bytes_of(tmp_path / "b")
    for name in ("x.png", "s"):
        place_file(tmp_path / "a" / name, tmp_path / "out", "one", link)
        with pytest.raises(OutputError, match=r"out/one.*: two files would be written there"):
            place_file(tmp_path / "b" / name, tmp_path / "out", "one", link)
    assert (bytes_of(tmp_path / "a"), bytes_of(tmp_path / "b")) == before
    assert bytes_of(tmp_path / "out" / "one") == bytes_of(tmp_path / "a" / "s")
    assert (tmp_path / "out" / "one.png").read_bytes() == (tmp_path / "a" / "x.png").read_bytes()


@pytest.mark.parametrize("link", [True, False])
def test_all_of_a_zarr_is_placed(tmp_path: Path, link: bool) -> None:
    """Also what is not read of it, such as lower resolutions; folders of it may be linked from elsewhere."""
    source = tmp_path / "a.zarr"
    for name, text in ((".zattrs", "{}"), (".zgroup", "{}"), ("0/0/0", "chunk"), ("1/0/0", "smaller")):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text)
    (source / "1").rename(tmp_path / "elsewhere")
    (source / "1").symlink_to(tmp_path / "elsewhere")
    place_file(source, tmp_path / "out", "b", link)
    assert bytes_of(tmp_path / "out") == {
        "b.zarr/.zattrs": b"{}", "b.zarr/.zgroup": b"{}", "b.zarr/0/0/0": b"chunk", "b.zarr/1/0/0": b"smaller",
    }  # fmt: skip
    assert (tmp_path / "out" / "b.zarr" / "0" / "0" / "0").samefile(source / "0" / "0" / "0") == link


def test_a_link_becomes_a_copy_only_where_there_are_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = saved(tmp_path / "a.png", photo(0))

    def failing(number: int) -> Callable[[Path, Path], None]:
        def link(file: Path, target: Path) -> None:
            raise OSError(number, os.strerror(number), str(target))

        return link

    monkeypatch.setattr(os, "link", failing(errno.EXDEV))
    place_file(source, tmp_path / "out", "other disk", link=True)
    assert (tmp_path / "out" / "other disk.png").read_bytes() == source.read_bytes()
    monkeypatch.setattr(os, "link", failing(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        place_file(source, tmp_path / "out", "broken disk", link=True)
    assert not (tmp_path / "out" / "broken disk.png").exists()


def bowl(folder: Path) -> np.ndarray:
    """One folder per image; three nuclei, two of which share two pixels. Returns the ids that are expected."""
    ids = np.zeros((15, 20), np.uint8)
    for number, (rows, columns) in enumerate([((1, 5), (1, 6)), ((4, 9), (4, 9)), ((10, 14), (2, 18))], 1):
        inside = np.zeros((15, 20), bool)
        inside[slice(*rows), slice(*columns)] = True
        saved(folder / "ab12" / "masks" / f"{number}.png", inside.astype(np.uint8) * 255)
        ids[inside & (ids == 0)] = number
    saved(folder / "ab12" / "images" / "ab12.png", np.dstack([photo(0)] * 3 + [np.full_like(photo(0), 255)]))
    return ids


def test_one_mask_per_nucleus_becomes_one_map_of_ids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = bowl(tmp_path / "bowl")
    assert cli.run(["convert", str(tmp_path / "bowl"), "-o", str(tmp_path / "data")]) == 0
    text = said(capsys)
    assert "ab12/masks/1.png and 2 more" in text and "objects: 3 in all" in text
    assert "overlaps: 2 pixels belong to several objects (the first keeps them), 0 objects are empty" in text
    found = pixels_of(tmp_path / "data" / "labels" / "ab12.png")
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, ids)
    assert json.loads((tmp_path / "data" / "dataset.json").read_text())["label_kind"] == "instances"


def nuclei(folder: Path, **options: object) -> Path:
    rng = np.random.default_rng(0)
    for number in range(3):
        colours = np.append(rng.integers(40, 256, (6, 3)), [[0, 0, 0]], axis=0).astype(np.uint8)
        saved(folder / f"n{number}.png", photo(number))
        blocks = np.append(rng.permutation(6), rng.choice(7, 6)).reshape(3, 4)
        blocks[2, 3] = 6
        saved(folder / f"n{number}_mask.png", colours[blocks].repeat(5, 0).repeat(5, 1), **options)
    return folder


def test_objects_in_random_colours_need_to_be_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = nuclei(tmp_path / "nuclei")
    text = refused([source, "-o", tmp_path / "data"], tmp_path, capsys)
    assert "they seem to be objects in random colours: say --instances" in text
    command = ["convert", str(source), "--instances", "-o"]
    assert cli.run([*command, str(tmp_path / "data")]) == 0
    for number in range(3):
        colours = pixels_of(source / f"n{number}_mask.png").astype(int) @ (65536, 256, 1)
        ids = pixels_of(tmp_path / "data" / "labels" / f"n{number}.png")
        assert ((ids == 0) == (colours == 0)).all()
        assert len(np.unique(np.stack([ids.ravel(), colours.ravel()]), axis=1)[0]) == len(np.unique(ids)) == 7
    assert cli.run([*command, str(tmp_path / "parts"), "--connected"]) == 0
    parts = [pixels_of(tmp_path / "parts" / "labels" / f"n{number}.png").max() for number in range(3)]
    assert max(parts) > 6
    text = refused([source, "-o", tmp_path / "x", "--instances", "--background", "255 255 255"], tmp_path, capsys)
    assert "the background's colour" in text and "in no mask" in text


def test_masks_of_one_bit_with_alpha_and_with_a_palette_become_0_and_1(tmp_path: Path) -> None:
    inside = (LABELS[0] > 1).astype(np.uint8)
    folder = tmp_path / "bw"
    for name in ("bit", "alpha", "grey", "palette"):
        saved(folder / "img" / f"{name}.png", photo(0))
    (folder / "masks").mkdir()
    Image.fromarray(inside * 255).convert("1").save(folder / "masks" / "bit.png")
    saved(folder / "masks" / "alpha.png", np.dstack([np.full_like(inside, 255)] * 3 + [inside * 255]))
    saved(folder / "masks" / "grey.png", np.dstack([inside * 255] * 3))
    saved(folder / "masks" / "palette.png", inside * 255)
    assert cli.run(["convert", str(folder), "-o", str(tmp_path / "data")]) == 0
    for path in (tmp_path / "data" / "labels").iterdir():
        np.testing.assert_array_equal(pixels_of(path), inside)


def test_a_palette_of_black_and_white_counts_by_its_colours(tmp_path: Path) -> None:
    inside = LABELS[0] > 1
    saved(tmp_path / "p" / "a.png", photo(0))
    picture = Image.new("P", (20, 15))
    picture.putdata((~inside).astype(np.uint8).ravel().tolist())  # index 0 is white here
    picture.putpalette([255, 255, 255, 0, 0, 0])
    picture.save(tmp_path / "p" / "a_mask.png")
    assert cli.run(["convert", str(tmp_path / "p"), "-o", str(tmp_path / "data")]) == 0
    np.testing.assert_array_equal(pixels_of(tmp_path / "data" / "labels" / "a.png"), inside)


def test_the_value_255_may_mean_not_annotated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path / "v" / "a.png", photo(0))
    saved(tmp_path / "v" / "a_mask.png", np.where(LABELS[0] == 3, 255, LABELS[0]).astype(np.uint8))
    assert cli.run(["convert", str(tmp_path / "v"), "-o", str(tmp_path / "one")]) == 0
    assert "255 is taken as a class; if it means not annotated, say --ignore 255" in said(capsys)
    assert cli.run(["convert", str(tmp_path / "v"), "-o", str(tmp_path / "two"), "--ignore", "255"]) == 0
    declared = json.loads((tmp_path / "two" / "dataset.json").read_text())
    assert declared["labels"] == {"background": 0, "label_1": 1, "label_2": 2} and declared["ignore"] == 255


def test_masks_with_smooth_edges_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path / "s" / "a.png", np.kron(photo(0), np.ones((4, 4), np.uint8)))
    picture = Image.fromarray(((LABELS[0] > 1) * 255).astype(np.uint8)).resize((80, 60), Image.Resampling.BICUBIC)
    picture.save(tmp_path / "s" / "a_mask.png")
    text = refused([tmp_path / "s", "-o", tmp_path / "data"], tmp_path, capsys)
    assert "JPEG or smooth edges" in text and "--tolerance 127" in text
    assert "grey" in refused([tmp_path / "s", "-o", tmp_path / "data", "--tolerance", "20"], tmp_path, capsys)
    assert cli.run(["convert", str(tmp_path / "s"), "-o", str(tmp_path / "data"), "--tolerance", "127"]) == 0
    found = pixels_of(tmp_path / "data" / "labels" / "a.png")
    np.testing.assert_array_equal(found, np.array(picture) > 127)


def broken(folder: Path, how: str) -> Path:
    """A source with one thing wrong."""
    source = street(folder / "street")
    mask = source / "masks" / "s1.png"
    if how == "size":
        saved(mask, pixels_of(mask)[:, :-1])
    elif how == "no table":
        (source / "Labels.txt").unlink()
    elif how == "two tables":
        (source / "colors.csv").write_text("1 2 3 a")
    elif how == "no image":
        mask.write_text("not an image")
    elif how == "truncated":
        mask.write_bytes(mask.read_bytes()[:-30])
    elif how == "empty table":
        (source / "Labels.txt").write_text("0 0 0 a\n0 0 0 b\n")
    elif how == "two masks":
        saved(source / "masks" / "s1_mask.png", pixels_of(mask))
    elif how == "one class":
        for path in (source / "masks").iterdir():
            saved(path, np.zeros_like(pixels_of(path)))
    return source


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("size", "s1: label and image have different shapes: image 20×15, label 19×15"),
        ("no table", "masks are in colours (4 different), and no table says what they mean"),
        ("two tables", "which colour table is meant"),
        ("no image", "s1.png: not a PNG or JPEG"),
        ("truncated", "s1.png: "),
        ("empty table", "Labels.txt, line 2: the colour 0 0 0 stands there already, line 1 (a)"),
        ("two masks", "s1.png: has 2 masks"),
    ],
)
def test_bad_input_is_one_error_and_nothing_is_written(
    tmp_path: Path, how: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = broken(tmp_path, how)
    assert expected in refused([source, "-o", tmp_path / "data"], tmp_path, capsys)


def test_masks_of_one_class_teach_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = broken(tmp_path, "one class")
    text = refused([source, "-o", tmp_path / "data", "--colours", source / "Labels.txt"], tmp_path, capsys)
    assert "all masks hold the single value 3" in text


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--connected"], 2),
        (["--tolerance", "300"], 2),
        (["--instances", "--colours", "t.txt"], 1),
        (["--instances", "--ignore", "void"], 1),
        (["--instances", "--background", "1 2"], 1),
        (["--to-colours", "--tolerance", "3"], 1),
        (["--ignore", "nothing"], 1),
        (["--masks", "*_none.png"], 1),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, options: list[str], code: int) -> None:
    source = street(tmp_path / "street")
    assert cli.run(["convert", str(source), "-o", str(tmp_path / "data"), *options]) == code
    assert not (tmp_path / "data").exists()


def test_an_empty_folder_and_a_data_set_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert "no images with masks" in refused([tmp_path / "empty", "-o", tmp_path / "data"], tmp_path, capsys)
    for number, labels in enumerate(LABELS):
        saved(tmp_path / "set" / "images" / f"{number}.png", photo(number))
        saved(tmp_path / "set" / "labels" / f"{number}.png", labels)
    assert "is a data set already" in refused([tmp_path / "set", "-o", tmp_path / "data"], tmp_path, capsys)


def test_ids_in_the_own_layout_only_need_to_be_declared(tmp_path: Path) -> None:
    for number, labels in enumerate(LABELS):
        saved(tmp_path / "set" / "images" / f"{number}.png", photo(number))
        saved(tmp_path / "set" / "labels" / f"{number}.png", labels)
    command = ["convert", str(tmp_path / "set"), "-o", str(tmp_path / "data"), "--instances", "--foreground", "cell"]
    assert cli.run(command) == 0
    assert with_labels(read_data_set(tmp_path / "data"), ()).kind == "instances"
    check_images({tmp_path / "set" / "labels" / f"{n}.png": tmp_path / "data" / "labels" / f"{n}.png" for n in (0, 1)})


def test_what_dataset_json_says_is_kept_and_must_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path / "v" / "a.png", photo(0))
    saved(tmp_path / "v" / "a_mask.png", LABELS[0])
    declared = {"name": "mine", "licence": "CC0", "labels": {"background": 0, "a": 1, "b": 2, "c": 3}}
    (tmp_path / "v" / "dataset.json").write_text(json.dumps(declared))
    assert cli.run(["convert", str(tmp_path / "v"), "-o", str(tmp_path / "data")]) == 0
    assert json.loads((tmp_path / "data" / "dataset.json").read_text()) == declared
    del declared["labels"]["c"]
    (tmp_path / "v" / "dataset.json").write_text(json.dumps(declared))
    text = refused([tmp_path / "v", "-o", tmp_path / "x"], tmp_path, capsys)
    assert f"values that dataset.json does not name: 3 ({(LABELS[0] == 3).sum()} px)" in text
    (tmp_path / "v" / "dataset.json").write_bytes(b'{"name": "\xe9"}')
    assert "is no text in UTF-8" in refused([tmp_path / "v", "-o", tmp_path / "x"], tmp_path, capsys)


def test_a_stack_in_colours_keeps_its_axes_and_pixel_size(tmp_path: Path) -> None:
    colours = np.array(list(TABLE.values()), np.uint8)
    size = {"imagej": True, "resolution": (4.0, 4.0), "metadata": {"spacing": 0.5, "unit": "um", "axes": "ZYX"}}
    saved(tmp_path / "z" / "a.tif", np.stack([photo(0), photo(1)]), **size)
    rgb = size | {"metadata": size["metadata"] | {"axes": "ZYXS"}}
    saved(tmp_path / "z" / "a_mask.tif", colours[LABELS], **rgb)
    (tmp_path / "z" / "colours.json").write_text(json.dumps(TABLE))
    assert cli.run(["convert", str(tmp_path / "z"), "-o", str(tmp_path / "data")]) == 0
    read = read_data_set(tmp_path / "data")
    image = load_image(read.cases[0])
    assert image.unit == "um" and image.spacing == pytest.approx((0.25, 0.25, 0.5))
    label = load_label(read.cases[0], with_labels(read, read.labelled), image)
    np.testing.assert_array_equal(label[0].transpose(2, 1, 0), LABELS)
    assert cli.run(["convert", str(tmp_path / "data"), "-o", str(tmp_path / "seen"), "--to-colours"]) == 0
    assert cli.run(["convert", str(tmp_path / "seen"), "-o", str(tmp_path / "back")]) == 0
    np.testing.assert_array_equal(
        pixels_of(tmp_path / "back" / "labels" / "a.tif"), pixels_of(tmp_path / "data" / "labels" / "a.tif")
    )


@pytest.mark.slow
def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    source = street(tmp_path / "street")
    program = (
        "import resource, signal, sys\nimport medunet.cli as cli\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))\n"
        f"sys.exit(cli.run(['convert', {str(source)!r}, '-o', {str(tmp_path / 'data')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "data: cannot be written" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["street"]


def test_label_maps_alone_become_colours_by_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = street(tmp_path / "street")
    for number, labels in enumerate(LABELS):
        saved(tmp_path / "predictions" / f"s{number}.png", labels)
    command = ["convert", str(tmp_path / "predictions"), "-o", str(tmp_path / "seen"), "--to-colours"]
    assert "no table says which colours" in refused(command[1:], tmp_path, capsys)
    assert cli.run([*command, "--colours", str(source / "Labels.txt")]) == 0
    for number in (0, 1):
        original = pixels_of(source / "masks" / f"s{number}.png")
        np.testing.assert_array_equal(pixels_of(tmp_path / "seen" / f"s{number}.png"), original)
    saved(tmp_path / "predictions" / "s1.png", np.full((3, 4), 7, np.uint8))
    again = [tmp_path / "predictions", "-o", tmp_path / "x", "--to-colours", "--colours", source / "Labels.txt"]
    text = refused(again, tmp_path, capsys)
    assert "s1.png: holds values without a colour: 7 (12 px)" in text


def test_colours_are_chosen_where_there_are_none(tmp_path: Path) -> None:
    for number, labels in enumerate(LABELS):
        saved(tmp_path / "set" / "images" / f"{number}.png", photo(number))
        saved(tmp_path / "set" / "labels" / f"{number}.png", labels * 10)
    declared = {"labels": {"background": 0, "a": 10, "b": 20}, "ignore": 30}
    (tmp_path / "set" / "dataset.json").write_text(json.dumps(declared))
    assert cli.run(["convert", str(tmp_path / "set"), "-o", str(tmp_path / "seen"), "--to-colours"]) == 0
    assert cli.run(["convert", str(tmp_path / "seen"), "-o", str(tmp_path / "back")]) == 0
    for number, labels in enumerate(LABELS):
        np.testing.assert_array_equal(pixels_of(tmp_path / "back" / "labels" / f"{number}.png"), labels * 10)
    again = json.loads((tmp_path / "back" / "dataset.json").read_text())
    assert again["labels"] == declared["labels"] and again["ignore"] == 30


def test_object_ids_have_no_colours_of_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bowl(tmp_path / "bowl")
    assert cli.run(["convert", str(tmp_path / "bowl"), "-o", str(tmp_path / "data")]) == 0
    text = refused([tmp_path / "data", "-o", tmp_path / "x", "--to-colours"], tmp_path, capsys)
    assert "object ids" in text


@pytest.mark.data
def test_camvid_there_and_back(tmp_path: Path, real_data: Path) -> None:
    source = real_data / "camvid_rgb"
    assert cli.run(["convert", str(source), "-o", str(tmp_path / "data"), "--ignore", "Unlabelled", "--link"]) == 0
    assert cli.run(["convert", str(tmp_path / "data"), "-o", str(tmp_path / "back"), "--to-colours", "--link"]) == 0
    masks = sorted((source / "labels").iterdir())
    assert len(masks) == 30
    for path in masks:
        np.testing.assert_array_equal(pixels_of(path), pixels_of(tmp_path / "back" / "labels" / path.name))
