"""Nested regions the whole way: data set -> train -> predict -> evaluate, and labels that no training case holds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import medunet
from medunet.cli import run
from medunet.volume import Volume
from tests.flows.made import make_set

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("plain_runs")]

LABELS = {"background": 0, "oedema": 2, "core": 1, "enhancing": 4}
REGIONS = {"whole_tumour": [1, 2, 4], "tumour_core": [1, 4], "enhancing": [4]}
NNUNET = {"background": 0, "whole_tumour": [1, 2, 4], "tumour_core": [1, 4], "enhancing": 4}
QUICK = ["--set", "network.channels=[8, 16]", "--set", "patches.size=[16, 16, 16]", "--set", "training.minutes=null",
         "--set", "network.kernels=3", "--set", "network.strides=2", "--set", "optimiser.rate=0.01", "--device", "cpu",
         "--set", "training.workers=0"]  # fmt: skip


def nested_case(seed: int) -> tuple[Volume, Volume]:
    """Three balls inside each other, brighter and brighter; a corner is not annotated."""
    rng = np.random.default_rng(seed)
    grid, shape = np.indices((20, 18, 16)), (20, 18, 16)
    centre = [rng.integers(7, n - 7 + 1) for n in shape]
    distance = np.sqrt(sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)))
    labels = np.select([distance < 2.5, distance < 4.5, distance < 6.5], [4, 1, 2], 0).astype(np.uint8)
    image = rng.normal(0, 6, shape) + 40 * (labels == 2) + 80 * (labels == 1) + 120 * (labels == 4)
    labels[:2, :2] = 9
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    return Volume(image[None].astype(np.float32), affine), Volume(labels[None], affine)


def make_nested_set(folder: Path, declaration: dict, cases: int = 5) -> Path:
    for seed in range(cases):
        for place, volume in zip(("images", "labels"), nested_case(seed), strict=True):
            medunet.write_volume(volume, folder / place / f"case_{seed}.nii.gz")
    (folder / "dataset.json").write_text(json.dumps({"name": "nested", "channels": ["FLAIR"], **declaration}))
    return folder


def naive_dice(predicted: np.ndarray, true: np.ndarray, values: list[int]) -> float:
    known = true != 9
    a, b = np.isin(predicted, values) & known, np.isin(true, values) & known
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.mark.parametrize("form", ["medunet", "nnunet"])
def test_from_nested_labels_to_scores_of_regions(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    declaration = (
        {"labels": LABELS, "regions": REGIONS, "ignore": 9}
        if form == "medunet"
        else {"labels": {**NNUNET, "ignore": 9}, "regions_class_order": [2, 1, 4]}
    )
    data, out = make_nested_set(tmp_path / "data", declaration), tmp_path / "run"
    more = ["--set", "training.epochs=3", "--set", "training.iterations=25"]
    (tmp_path / "c.yaml").write_text("")
    assert run(["train", str(tmp_path / "c.yaml"), "-o", str(out), *QUICK, *more, "--set", f"data.path={data}"]) == 0
    said = capsys.readouterr()
    assert "regions whole_tumour (1+2+4, writes 2), tumour_core (1+4, writes 1), enhancing (4, writes 4)" in said.err
    header = (out / "metrics.csv").read_text().splitlines()[0]
    assert header.endswith("dice:whole_tumour,dice:tumour_core,dice:enhancing")

    predict = ["predict", str(out), str(data / "images"), "-o", str(tmp_path / "p"), "--device", "cpu"]
    assert run([*predict, "--probabilities"]) == 0
    for path in (tmp_path / "p").glob("*_probabilities.nii.gz"):
        path.rename(tmp_path / path.name)
    assert run(["evaluate", str(tmp_path / "p"), str(data), "-o", str(tmp_path / "s")]) == 0
    record = json.loads((tmp_path / "s" / "scores.json").read_text())
    assert record["label_table"]["regions"] == REGIONS
    assert "whole_tumour" in (tmp_path / "s" / "report.html").read_text()
    assert record["summary"]["mean"]["dice"] > 0.8, "a network that saw these balls finds them"
    for number in range(5):
        name = f"case_{number}"
        truth = medunet.read_volume(data / "labels" / f"{name}.nii.gz").array[0]
        found = medunet.read_volume(tmp_path / "p" / f"{name}.nii.gz").array[0]
        assert set(np.unique(found)) <= {0, 1, 2, 4}
        scores = medunet.read_volume(tmp_path / f"{name}_probabilities.nii.gz").array
        assert scores.shape[0] == 3
        for index, (region, values) in enumerate(REGIONS.items()):
            scored = record["cases"][name]["labels"][region]["dice"]
            assert scored == pytest.approx(naive_dice(found, truth, values), abs=1e-6)
            painted = scores[index] > 0.5
            assert painted[np.isin(found, LABELS_ALONE[region])].all(), "what is written was above the threshold"
    run_record = json.loads((out / "validation" / "scores.json").read_text())
    assert set(next(iter(run_record["cases"].values()))["labels"]) == set(REGIONS)


LABELS_ALONE = {"whole_tumour": [2], "tumour_core": [1], "enhancing": [4]}


def test_a_label_that_no_case_holds_is_said_and_training_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As is a case without any foreground, and a constant scan."""
    data, out = make_set(tmp_path / "data", cases=4, shape=(10, 9, 8)), tmp_path / "run"
    declared = json.loads((data / "dataset.json").read_text())
    declared["labels"]["unicorn"] = 99
    (data / "dataset.json").write_text(json.dumps(declared))
    for place, value in (("images", 5), ("labels", 0)):
        old = medunet.read_volume(data / place / "case_1.nii.gz")
        medunet.write_volume(
            old.with_array(np.full_like(old.array, value)), data / place / "case_1.nii.gz", overwrite=True
        )
    (tmp_path / "c.yaml").write_text("")
    more = ["--set", "training.epochs=2", "--set", "training.iterations=4", "--set", "patches.size=[8, 8, 8]"]
    assert run(["train", str(tmp_path / "c.yaml"), "-o", str(out), *QUICK, *more, "--set", f"data.path={data}"]) == 0
    said = capsys.readouterr().err
    assert "NOTE: no training case holds the label unicorn" in said
    losses = [float(line.split(",")[3]) for line in (out / "metrics.csv").read_text().splitlines()[1:]]
    assert len(losses) == 2 and np.isfinite(losses).all()


def test_a_cross_validation_weighs_regions_not_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_nested_set(tmp_path / "data", {"labels": LABELS, "regions": REGIONS, "ignore": 9}, cases=2)
    (tmp_path / "c.yaml").write_text(f"data: {{path: {data}, folds: 2}}\n")
    folds = ["train", str(tmp_path / "c.yaml"), "--fold", "all", *QUICK, "--set", "training.epochs=1",
             "--set", "training.iterations=2"]  # fmt: skip
    assert run([*folds, "-o", str(tmp_path / "a"), "--set", "loss.class_weights=[1, 2, 1, 1]"]) == 1
    assert "loss.class_weights has 4 numbers, but there are 3 regions" in capsys.readouterr().err
    assert run([*folds, "-o", str(tmp_path / "b"), "--set", "loss.class_weights=[1, 2, 1]"]) == 0
    scores = json.loads((tmp_path / "b" / "validation" / "scores.json").read_text())
    assert scores["label_table"]["regions"] == REGIONS
    assert (tmp_path / "b" / "report.html").read_text() == (tmp_path / "b" / "validation" / "report.html").read_text()
