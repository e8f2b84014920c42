"""Pictures without a pixel size whose data set declares one: physical units from the plan to scores and objects."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import medunet
from medunet.cli import run
from medunet.config import load_config
from medunet.model import load_model
from medunet.volume import Volume
from tests.flows.made import LABELS, make_case, make_set
from tests.flows.test_objects import QUICK

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("plain_runs")]


def make_cells(folder: Path) -> Path:
    """Bright discs as PNG of 0.5 µm, which only `dataset.json` says."""
    for number in range(4):
        random = np.random.default_rng(number)
        x, y = np.indices((48, 40))
        ids = np.zeros((48, 40), np.uint8)
        for value, centre in enumerate(((12, 10), (34, 28)), start=1):
            ids[(x - centre[0] - number % 2) ** 2 + (y - centre[1]) ** 2 < 40] = value
        picture = np.clip(random.normal(60, 6, ids.shape) + 120 * (ids > 0), 0, 255).astype(np.uint8)
        for name, array in (("images", picture), ("labels", ids)):
            medunet.write_volume(Volume(array[None], unit="pixel"), folder / name / f"c{number}.png")
    declared = {"labels": {"background": 0, "cell": 1}, "label_kind": "instances"}
    size = {"spacing": [0.5, 0.5], "spacing_units": "um"}
    (folder / "dataset.json").write_text(json.dumps(declared | size))
    return folder


def test_declared_pictures_are_learned_and_measured_in_micrometres(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out, found = make_cells(tmp_path / "data"), tmp_path / "run", tmp_path / "p"
    assert run(["inspect", str(data), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["spacings"] == ["0.5×0.5 um (4 cases)"]
    assert run(["train", str(data), "-o", str(out), *QUICK]) == 0
    assert "HD95" in capsys.readouterr().out
    assert json.loads((out / "validation" / "scores.json").read_text())["unit"] == "um"
    how = load_model(out).card.preprocess
    assert (how.spacing, how.fallback_spacing, how.unit) == ((0.5, 0.5), (0.5, 0.5), "um")
    assert load_config(out / "config.yaml").config.preprocess.fallback_spacing == (0.5, 0.5)

    predict = ["predict", str(out), str(data / "images"), "--instances", "--table", "--device", "cpu"]
    record = tmp_path / "record.json"
    assert run([*predict, "-o", str(found), "--record", str(record)]) == 0
    shown = capsys.readouterr().err
    assert shown.count("NOTE: its file states no voxel size; it is taken to be 0.5×0.5 um") == 1
    assert [case["spacing_assumed"] for case in json.loads(record.read_text())["cases"]] == [True] * 4
    row = next(csv.DictReader((found / "c0_objects.csv").read_text().splitlines()))
    ids = medunet.read_volume(found / "c0.png")
    assert float(row["area_um2"]) == pytest.approx(0.25 * (ids.array == 1).sum())
    assert ids.unit == "pixel", "a segmentation has its scan's own grid"
    np.testing.assert_array_equal(
        ids.array, medunet.segment_objects(medunet.read_volume(data / "images" / "c0.png"), load_model(out)).array
    )

    assert run(["evaluate", str(found), str(data), "--json", str(tmp_path / "s.json")]) == 0
    scores = json.loads((tmp_path / "s.json").read_text())
    assert scores["unit"] == "um" and scores["cases"]["c0"]["tolerance"] == 1.0, "twice the pixel's edge"
    # A picture that states another size is resampled, like any scan.
    picture = medunet.read_volume(data / "images" / "c0.png")
    coarse = Volume(picture.array[:, ::2, ::2], np.diag([1.0, 1.0, 1.0, 1.0]), "um")
    medunet.write_volume(coarse, tmp_path / "coarse.tif")
    assert (
        run(["predict", str(out), str(tmp_path / "coarse.tif"), "-o", str(tmp_path / "c.tif"), "--device", "cpu"]) == 0
    )
    assert "states no voxel size" not in capsys.readouterr().err
    # A stack of such pictures is seen slice by slice, whatever its sections' distance.
    for z in range(2):
        medunet.write_volume(picture, tmp_path / "stack" / f"z{z}.png")
    out_stack = tmp_path / "stack.tif"
    assert run(["predict", str(out), str(tmp_path / "stack"), "-o", str(out_stack), "--stack", "--device", "cpu"]) == 0
    found_in_stack, in_picture = medunet.read_volume(out_stack), medunet.segment_volume(picture, load_model(out))
    assert found_in_stack.unit == "pixel"
    for z in range(2):
        np.testing.assert_array_equal(found_in_stack.array[..., z], in_picture.array)


@pytest.mark.parametrize("labels", ["sections", "volumes"])
def test_stacks_of_sections_with_a_pixel_size_are_learned_scored_and_predicted_with_their_declared_distance(
    labels: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Labels too may be sections, which cannot state their distance, or volumes that state it."""
    data, size = tmp_path / "data", np.diag([0.004, 0.004, 0.05, 1.0])
    for number in range(3):
        image, label = make_case(number, (16, 14, 12))
        grey = Volume(np.clip(image.array, 0, 255).astype(np.uint8), size, "um")
        truth = Volume(label.array, size, "um")
        for z in range(12):
            picture = Volume(grey.array[..., z], size, "um")
            medunet.write_volume(picture, data / "images" / f"s{number}" / f"z{z}.tif")
            if labels == "sections":
                medunet.write_volume(
                    Volume(truth.array[..., z], size, "um"), data / "labels" / f"s{number}" / f"z{z}.tif"
                )
        if labels == "volumes":
            medunet.write_volume(truth, data / "labels" / f"s{number}.tif")
    declared = {"stack": True, "labels": LABELS, "spacing": [50, 4, 4], "axes": "ZYX", "spacing_units": "nm"}
    (data / "dataset.json").write_text(json.dumps(declared))
    out, found, spacing = tmp_path / "run", tmp_path / "p", pytest.approx((0.004, 0.004, 0.05))
    quick = ["--set", "network.channels=[4, 8]", "--set", "patches.size=[8, 8, 8]", "--set", "training.epochs=1",
             "--set", "training.iterations=2", "--device", "cpu", "--set", f"data.path={data}"]  # fmt: skip
    (tmp_path / "c.yaml").write_text("")
    assert run(["train", str(tmp_path / "c.yaml"), "-o", str(out), *quick]) == 0
    assert json.loads((out / "validation" / "scores.json").read_text())["unit"] == "um"
    (validated,) = (out / "validation").glob("s?.tif")
    assert medunet.read_volume(validated).spacing == spacing

    assert run(["predict", str(out), str(data / "images"), "-o", str(found), "--stack", "--device", "cpu"]) == 0
    assert medunet.read_volume(found / "s0.tif").spacing == spacing
    said = "NOTE: its sections state no distance; its voxel size is taken to be 0.004×0.004×0.05 um, as dataset.json"
    assert capsys.readouterr().err.count(said) == 1
    assert run(["evaluate", str(found), str(data)]) == 0
    (truth_file,) = (data / "labels").glob(f"{validated.stem}*")
    assert run(["evaluate", str(out / "validation"), str(truth_file), "--stack"]) == 0
    assert "different grids" not in capsys.readouterr().out


@pytest.mark.parametrize("declared", [{}, {"spacing": [0.5, 0.5], "spacing_units": "um"}])
def test_a_model_of_sized_files_still_refuses_pictures_without_one(
    declared: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing says that they have the voxel size of the files that were learned from."""
    from tests.flows.test_objects import make_cells as make_sized

    data, out = make_sized(tmp_path / "data"), tmp_path / "run"
    said = json.loads((data / "dataset.json").read_text())
    (data / "dataset.json").write_text(json.dumps(said | declared))
    (tmp_path / "c.yaml").write_text(f"data: {{path: {data}}}\nnetwork: {{dimensions: 2}}\n")
    given = ["--set", "preprocess.spacing=[0.5, 0.5]", "--set", "training.iterations=2"]
    assert run(["train", str(tmp_path / "c.yaml"), "-o", str(out), *QUICK, *given]) == 0
    picture = Volume(np.arange(48 * 40).reshape(1, 48, 40).astype(np.uint8), unit="pixel")
    medunet.write_volume(picture, tmp_path / "x.png")
    assert run(["predict", str(out), str(tmp_path / "x.png"), "-o", str(tmp_path / "y.png"), "--device", "cpu"]) == 1
    assert "x.png: its voxel size is in pixel, the target spacing in um" in capsys.readouterr().err


def test_a_contradiction_is_said_by_inspect_plan_and_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_set(tmp_path / "data", cases=3, shape=(12, 11, 10))
    declared = json.loads((data / "dataset.json").read_text())
    (data / "dataset.json").write_text(json.dumps(declared | {"spacing": 2, "spacing_units": "mm"}))
    said = "images state another voxel size than dataset.json (2×2×2 mm): case_0 has 1×1×1 mm; what the files state"
    assert run(["inspect", str(data)]) == 0
    assert f"NOTE     3 of 3 {said}" in capsys.readouterr().out
    (tmp_path / "c.yaml").write_text("")
    tiny = ["--set", "network.channels=[4, 8]", "--set", "patches.size=[8, 8, 8]", "--set", "training.epochs=1",
            "--set", "training.iterations=1", "--device", "cpu", "--set", f"data.path={data}"]  # fmt: skip
    assert run(["train", str(tmp_path / "c.yaml"), "-o", str(tmp_path / "run"), *tiny]) == 0
    assert f"NOTE: 3 of 3 {said}" in capsys.readouterr().err
    assert load_model(tmp_path / "run").card.preprocess.fallback_spacing is None, "no file needed what is declared"
