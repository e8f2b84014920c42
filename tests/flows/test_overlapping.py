"""Structures that overlap the whole way: a mask file each -> convert -> train -> predict --region-masks -> evaluate."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import medunet
from medunet.cli import run
from medunet.volume import Volume
from tests.flows.test_regions import QUICK

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("plain_runs")]

AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])
SHAPE = (20, 18, 16)


def balls(seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A scan of two balls that overlap like the circles of a Venn diagram, and their masks."""
    rng = np.random.default_rng(seed)
    middle = np.array([rng.integers(9, n - 9 + 1) if n > 18 else n // 2 for n in SHAPE])
    apart = np.array([3, 0, 0]) if seed % 2 else np.array([0, 3, 0])
    grid = np.indices(SHAPE)
    masks = {
        name: ((grid - (middle + side * apart).reshape(-1, 1, 1, 1)) ** 2).sum(axis=0) < 5.5**2
        for name, side in (("A", -1), ("B", 1))
    }
    image = rng.normal(0, 6, SHAPE) + 60 * masks["A"] + 110 * masks["B"]
    return image, masks


def make_masks(folder: Path, cases: int = 5) -> Path:
    for seed in range(cases):
        image, masks = balls(seed)
        name = f"case_{seed}"
        medunet.write_volume(Volume(image[None].astype(np.float32), AFFINE), folder / "images" / f"{name}.nii.gz")
        for structure, mask in masks.items():
            volume = Volume(mask[None].astype(np.uint8) * 255, AFFINE)
            medunet.write_volume(volume, folder / "labels" / name / f"{structure}.nii.gz")
    return folder


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def test_from_masks_to_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, data, out = make_masks(tmp_path / "masks"), tmp_path / "data", tmp_path / "run"
    assert run(["convert", str(source), "-o", str(data)]) == 0
    assert "which overlap in 1 combination" in capsys.readouterr().out
    declared = json.loads((data / "dataset.json").read_text())
    assert declared["labels"] == {"background": 0, "A": 1, "B": 2, "A+B": 3}
    assert declared["regions"] == {"A": [1, 3], "B": [2, 3]}

    (tmp_path / "c.yaml").write_text("")
    more = ["--set", "training.epochs=3", "--set", "training.iterations=30", "--set", f"data.path={data}"]
    assert run(["train", str(tmp_path / "c.yaml"), "-o", str(out), *QUICK, *more]) == 0
    assert "regions A (1+3), B (2+3), decided together" in capsys.readouterr().err
    assert (out / "metrics.csv").read_text().splitlines()[0].endswith("dice:A,dice:B")
    held_out = json.loads((out / "validation" / "scores.json").read_text())
    assert set(next(iter(held_out["cases"].values()))["labels"]) == {"A", "B"}

    predict = ["predict", str(out), str(data / "images"), "-o", str(tmp_path / "p"), "--device", "cpu"]
    assert run([*predict, "--region-masks", "--tta"]) == 0
    found = {}
    for seed in range(5):
        name, true = f"case_{seed}", balls(seed)[1]
        labels = medunet.read_volume(tmp_path / "p" / f"{name}.nii.gz").array[0]
        masks = {one: medunet.read_volume(tmp_path / "p" / f"{name}_{one}.nii.gz").array[0] > 0 for one in true}
        np.testing.assert_array_equal(labels, 1 * masks["A"] + 2 * masks["B"])
        found[name] = {one: dice(masks[one], true[one]) for one in true}
        both = dice(masks["A"] & masks["B"], true["A"] & true["B"])
        # Three seeds of training gave 0.876 and more for each ball, and 0.785 and more for what is in both.
        assert min(found[name].values()) > 0.8 and both > 0.65

    capsys.readouterr()
    assert run(["evaluate", str(tmp_path / "p"), str(data), "-o", str(tmp_path / "s")]) == 0
    record = json.loads((tmp_path / "s" / "scores.json").read_text())
    assert record["label_table"]["regions"] == declared["regions"]
    for name, scores in found.items():
        for region, score in scores.items():
            assert record["cases"][name]["labels"][region]["dice"] == pytest.approx(score, abs=1e-6)

    again = tmp_path / "again"
    for seed in range(5):
        name = f"case_{seed}"
        for path in (tmp_path / "p").glob(f"{name}_*.nii.gz"):
            medunet.write_volume(
                medunet.read_volume(path), again / "labels" / name / path.name.removeprefix(f"{name}_")
            )
        medunet.write_volume(
            medunet.read_volume(data / "images" / f"{name}.nii.gz"), again / "images" / f"{name}.nii.gz"
        )
    assert run(["convert", str(again), "-o", str(tmp_path / "data2")]) == 0
    for path in (tmp_path / "data2" / "labels").iterdir():
        np.testing.assert_array_equal(
            medunet.read_volume(path).array, medunet.read_volume(tmp_path / "p" / path.name).array
        )
