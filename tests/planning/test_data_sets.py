"""`plan_data_set` on small data sets in files: good ones, and each kind of broken one."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medunet.config import parse_config
from medunet.datasets.catalogue import read_data_set
from medunet.errors import DataError, MedunetError
from medunet.plan_training import Planned, plan_data_set, write_plan
from medunet.planning import fingerprint
from medunet.planning.budget import Budget

LABELS = {"background": 0, "organ": 1, "rare": 2}


def budget() -> Budget:
    # So few minutes that a trial is two steps.
    return Budget(2**33, 0.02, lambda dimensions: 1e11, "cpu")


def make(folder: Path, maps: list[np.ndarray], images: list[np.ndarray] | None = None, **declared: object) -> Path:
    random = np.random.default_rng(0)
    for place in ("images", "labels"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    for n, label in enumerate(maps):
        image = images[n] if images else random.normal(100, 10, label.shape).astype(np.float32)
        nib.save(nib.Nifti1Image(image, np.eye(4)), folder / "images" / f"c{n}.nii")
        nib.save(nib.Nifti1Image(label, np.eye(4)), folder / "labels" / f"c{n}.nii")
    (folder / "dataset.json").write_text(json.dumps({"labels": LABELS} | declared))
    return folder


def cube(value: int = 1, shape: tuple[int, ...] = (16, 14, 12)) -> np.ndarray:
    label = np.zeros(shape, np.uint8)
    label[4:9, 4:9, 4:9] = value
    return label


def planned(folder: Path) -> Planned:
    return plan_data_set(read_data_set(folder), budget(), None)


@pytest.mark.slow
def test_a_plan_is_measured_written_and_read(tmp_path: Path) -> None:
    data, config = make(tmp_path / "data", [cube(1), cube(2), cube(1)]), tmp_path / "plan.yaml"
    said = write_plan(data, config, budget(), None, overwrite=False)
    text = config.read_text()
    assert "# Expected here: " in text and "Expected here: " in said and "an epoch" in said and "peak memory" in said
    read = parse_config(text, "plan.yaml").config
    assert read.data.folds == 3 and read.data.path == str(data) and read.network.classes == 3
    with pytest.raises(MedunetError, match="exists already"):
        write_plan(data, config, budget(), None, overwrite=False)


@pytest.mark.slow
def test_an_absent_label_and_an_empty_case_are_noted(tmp_path: Path) -> None:
    header = "\n".join(planned(make(tmp_path, [cube(1), cube(0)])).header)
    assert "NOTE: no measured case has a voxel of rare" in header
    assert "NOTE: 1 case(s) without any foreground (c1)" in header


@pytest.mark.slow
def test_a_constant_scan_is_noted_and_nothing_but_constants_refused(tmp_path: Path) -> None:
    flat, noise = np.full((16, 14, 12), 7, np.int16), np.random.default_rng(0).normal(0, 1, (16, 14, 12))
    one = make(tmp_path / "one", [cube(1), cube(2)], [flat, noise.astype(np.float32)])
    assert any("constant channel (c0)" in line for line in planned(one).header)
    with pytest.raises(DataError, match="same value"):
        planned(make(tmp_path / "all", [cube(1), cube(2)], [flat, flat]))


@pytest.mark.parametrize(
    ("label", "image", "message"),
    [
        (cube(0), None, "no case has a voxel of any label but the background"),
        (cube(7), None, r"not declared: 7 \(125 voxels\)"),
        (cube(1), np.full((16, 14, 12), np.nan, np.float32), r"NaN or infinite voxels in 1 case\(s\) \(c0\)"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(
    tmp_path: Path, label: np.ndarray, image: np.ndarray | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        planned(make(tmp_path, [label], None if image is None else [image]))


@pytest.mark.slow
def test_touching_instances_and_unannotated_voxels_are_noted(tmp_path: Path) -> None:
    label = cube(5)
    label[9:12, 4:9, 4:9] = 6
    label[0] = 255
    result = planned(make(tmp_path, [label], label_kind="instances", ignore=255, labels={"background": 0, "cell": 1}))
    assert result.notes["instances.target"].startswith("100 % of the 2 measured objects touch another; cores learns")
    assert "foreground learns one mask" in result.notes["instances.target"]
    assert result.config.instances.target == "cores" and result.config.network.classes == 3
    assert "cell_core_2" in result.notes["network.classes"]
    assert "2 objects a case (smallest 75, median 100 voxels)" in result.notes["loss.kind"]
    assert "94 % of the voxels are annotated" in result.notes["loss.kind"]


@pytest.mark.slow
def test_a_large_data_set_is_measured_in_part_and_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make(tmp_path, [cube(1 + n % 2) for n in range(7)])
    monkeypatch.setattr(fingerprint, "MOST_CASES", 3)
    result = plan_data_set(read_data_set(data), budget(), None)
    assert [case.name for case in fingerprint.choose_cases(read_data_set(data).cases)] == ["c0", "c3", "c6"]
    assert "Measured on 3 evenly spaced cases, from c0 to c6" in result.header[0]
    assert result.config.data.folds == 5


@pytest.mark.slow
def test_of_a_single_scan_a_part_is_held_out_that_holds_what_the_rest_does(tmp_path: Path) -> None:
    label = cube(1, (12, 40, 12))  # along the second axis, ten parts of four voxels; the cube lies in 4 to 8
    label[2:10, 6:22, 2:10] = 1
    label[5, 9:20, 5] = 2
    result = planned(make(tmp_path, [label]))
    parts = [np.unique(label[:, 40 - 8 * (n + 1) : 40 - 8 * n]).size for n in range(5)]
    assert parts[0] == 1 and result.config.data.fold == parts.index(3) == 2
    assert "part 2, counted from the end: it and the rest both hold 3 of 3 classes" in result.notes["data.fold"]
