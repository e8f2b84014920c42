"""`medunet convert` of a folder per case with a file per channel, as BraTS has it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import medunet
import medunet.cli as cli
from medunet.datasets.catalogue import read_data_set, with_labels
from medunet.datasets.loading import load_image, load_label_values
from medunet.volume import Volume
from tests.test_convert import refused, said

AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])
SHAPE = (6, 5, 4)
BRATS20 = ("BraTS20_Training_{:03d}", "{0}/{0}_{1}.nii.gz", ("flair", "t1", "t1ce", "t2"))
BRATS23 = ("BraTS-GLI-{:05d}-000", "{0}/{0}-{1}.nii.gz", ("t1c", "t1n", "t2f", "t2w"))
UPPER = ("{}", "{0}/{1}.nii.gz", ("FLAIR", "T1"))


def scan(number: int, channel: str) -> np.ndarray:
    return np.random.default_rng([number, *channel.lower().encode()]).integers(0, 999, SHAPE).astype(np.int16)


def tumour(number: int) -> np.ndarray:
    return np.random.default_rng(number).choice(np.array([0, 1, 2, 4], np.uint8), SHAPE)


def write(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    medunet.write_volume(Volume(array if array.ndim == 4 else array[None], affine), path, overwrite=True)


def make_source(folder: Path, naming: tuple[str, str, tuple[str, ...]] = BRATS20) -> list[str]:
    """Three cases; their names."""
    pattern, file, channels = naming
    cases = [pattern.format(number) for number in range(3)]
    for number, case in enumerate(cases):
        for channel in channels:
            write(folder / file.format(case, channel), scan(number, channel))
        write(folder / file.format(case, "SEG" if channels[0].isupper() else "seg"), tumour(number))
    return cases


@pytest.mark.slow
@pytest.mark.parametrize("naming", [BRATS20, BRATS23, UPPER])
@pytest.mark.parametrize("link", [False, True])
def test_there_and_read_back(
    naming: tuple[str, str, tuple[str, ...]], link: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, data = tmp_path / "source", tmp_path / "data"
    cases = make_source(source, naming)
    (source / "name_mapping.csv").write_text("a,b\n")
    assert cli.run(["convert", str(source), "-o", str(data), *["--link"] * link]) == 0
    names = [name.lower() for name in naming[2]]
    text = said(capsys)
    assert "one folder per case, one file per channel, one label map each, 3 pairs" in text
    assert (
        f"channels, in the order of their names: {', '.join(f'{n} {name}' for n, name in enumerate(names))}\n" in text
    )
    assert json.loads((data / "dataset.json").read_text()) == {
        "name": "data", "channels": names, "labels": {"background": 0, "label_1": 1, "label_2": 2, "label_4": 4},
    }  # fmt: skip
    read = read_data_set(data)
    assert read.channels == tuple(names) and [case.name for case in read.labelled] == cases
    assert with_labels(read, read.labelled).values == (0, 1, 2, 4)
    for number, case in enumerate(read.labelled):
        image = load_image(case)
        np.testing.assert_array_equal(image.array, [scan(number, name) for name in names])
        np.testing.assert_array_equal(load_label_values(case, image)[0], tumour(number))
        for place, name in enumerate(naming[2]):
            original = source / naming[1].format(case.name, name)
            assert case.images[place].name == f"{case.name}_{place:04d}.nii.gz"
            assert case.images[place].samefile(original) is link
            assert case.images[place].read_bytes() == original.read_bytes()
    assert cli.run(["inspect", str(data), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["channels"] == names and found["cases"] == 3 and found["problems"] == []


def test_a_dry_run_names_the_channels_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (case, *_) = make_source(tmp_path / "source")
    for folder in (tmp_path / "source").iterdir():
        write(folder / "brain.nii.gz", scan(0, "brain"))
    assert cli.run(["convert", str(tmp_path / "source"), "-o", str(tmp_path / "data"), "--dry-run"]) == 0
    text = said(capsys)
    assert "channels, in the order of their names: 0 flair, 1 t1, 2 t1ce, 3 t2\n" in text
    files = " + ".join(f"{case}_{name}.nii.gz" for name in BRATS20[2])
    assert f"  {case}/{files}  <-  {case}/{case}_seg.nii.gz\n" in text
    assert f"left out, neither a known scan nor the mask: 3: {case}/brain.nii.gz, " in text
    assert "dry run: nothing written" in text and not (tmp_path / "data").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("missing", "source/{0}: lacks t1ce, it holds {0}_flair.nii.gz, {0}_t1.nii.gz, {0}_t2.nii.gz, {0}_seg.nii.gz; "
         "expected flair, t1, t1ce, t2 as in BraTS20_Training_000 (2 of 3 cases)"),
        ("extra", "source/{0}: holds {0}_pet.nii.gz besides; expected flair, t1, t1ce, t2"),
        ("shape", "{0}: channel {0}_t1ce.nii.gz and image have different shapes: image 6×5×4, channel"),
        ("place", "{0}: channel {0}_t1ce.nii.gz and image lie on different grids"),
        ("mask", "{0}: label and image lie on different grids"),
        ("series", "source/{0}/{0}_t1ce.nii.gz: has 2 channels (or time points); expected one, t1ce"),
    ],
)  # fmt: skip
def test_what_is_refused(what: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = make_source(tmp_path / "source")[1]
    path = tmp_path / "source" / case / f"{case}_t1ce.nii.gz"
    if what == "missing":
        path.unlink()
    elif what == "extra":
        write(path.with_name(f"{case}_pet.nii.gz"), scan(1, "pet"))
    elif what == "shape":
        write(path, scan(1, "t1ce")[1:])
    elif what == "series":
        write(path, np.stack([scan(1, "t1ce")] * 2))
    else:
        path = path if what == "place" else path.with_name(f"{case}_seg.nii.gz")
        write(path, tumour(1), AFFINE * [[1], [1], [-1], [1]])
    text = refused([tmp_path / "source", "-o", tmp_path / "data"], tmp_path, capsys)
    assert expected.format(case) in text


def test_what_dataset_json_says_of_labels_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """But its channels are those of the files, in their order."""
    make_source(tmp_path / "source")
    labels = {"background": 0, "necrosis": 1, "edema": 2, "enhancing": 4}
    given = {"labels": labels, "licence": "CC BY", "channel_names": {"0": "T1", "1": "FLAIR"}}
    (tmp_path / "source" / "dataset.json").write_text(json.dumps(given))
    assert cli.run(["convert", str(tmp_path / "source"), "-o", str(tmp_path / "data")]) == 0
    assert "masks: label values, named in dataset.json" in said(capsys)
    assert json.loads((tmp_path / "data" / "dataset.json").read_text()) == {
        "name": "data", "labels": labels, "licence": "CC BY", "channels": list(BRATS20[2]),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options", "labels"),
    [
        ("seg", [], {"background": 0, "foreground": 1}),
        ("seg", ["--foreground", "lesion"], {"background": 0, "lesion": 1}),
        ("lesion", [], {"background": 0, "lesion": 1}),
    ],
)
def test_binary_masks(name: str, options: list[str], labels: dict[str, int], tmp_path: Path) -> None:
    """Named seg or the like, a mask does not say what it shows."""
    for number, case in enumerate(("a", "b")):
        for channel in ("t1", "flair"):
            write(tmp_path / "source" / case / f"{case}_{channel}.nii.gz", scan(number, channel))
        write(tmp_path / "source" / case / f"{case}_{name}.nii.gz", (tumour(number) > 1).astype(np.uint8))
    assert cli.run(["convert", str(tmp_path / "source"), "-o", str(tmp_path / "data"), *options]) == 0
    assert json.loads((tmp_path / "data" / "dataset.json").read_text())["labels"] == labels
    for number, case in enumerate(read_data_set(tmp_path / "data").cases):
        np.testing.assert_array_equal(load_label_values(case, load_image(case))[0], tumour(number) > 1)


def test_a_mask_for_each_structure_beside_several_channels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, case in enumerate(("a", "b")):
        for channel in ("ct", "pet"):
            write(tmp_path / "source" / case / f"{case}_{channel}.nii.gz", scan(number, channel))
        for name, least in (("whole", 1), ("core", 4)):
            write(tmp_path / "source" / case / f"{case}_{name}.nii.gz", (tumour(number) >= least).astype(np.uint8))
    assert cli.run(["convert", str(tmp_path / "source"), "-o", str(tmp_path / "data")]) == 0
    assert "masks: one for each of 2 structures (core, whole)" in said(capsys)
    declared = json.loads((tmp_path / "data" / "dataset.json").read_text())
    assert declared["channels"] == ["ct", "pet"] and declared["labels"] == {
        "background": 0,
        "whole": 1,
        "core+whole": 2,
    }
    for number, case in enumerate(read_data_set(tmp_path / "data").cases):
        image = load_image(case)
        np.testing.assert_array_equal(image.array, [scan(number, "ct"), scan(number, "pet")])
        expected = (tumour(number) >= 1).astype(int) + (tumour(number) >= 4)
        np.testing.assert_array_equal(load_label_values(case, image)[0], expected)


def test_one_channel_alone_is_an_image_as_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(2):
        write(tmp_path / "source" / f"s{number}" / "t1.nii.gz", scan(number, "t1"))
        write(tmp_path / "source" / f"s{number}" / "seg.nii.gz", tumour(number))
    assert cli.run(["convert", str(tmp_path / "source"), "-o", str(tmp_path / "data")]) == 0
    assert "one folder per image, one label map each, 2 pairs" in said(capsys)
    assert "channels" not in json.loads((tmp_path / "data" / "dataset.json").read_text())
    assert sorted(path.name for path in (tmp_path / "data" / "images").iterdir()) == ["s0.nii.gz", "s1.nii.gz"]
