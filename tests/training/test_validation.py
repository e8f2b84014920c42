"""Validation during training and what it says of the end: worst cases first, scores by label, measured costs."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import medunet.training.finish
import medunet.training.validation
from medunet.config import parse_config
from medunet.datasets.catalogue import DataSet, read_data_set
from medunet.datasets.labels import IGNORE, LabelTable, table_from_names
from medunet.errors import DataError
from medunet.evaluate import evaluate_pairs
from medunet.evaluation.settings import EvaluateSettings
from medunet.formats.dispatch import read_volume
from medunet.instances.settings import InstanceSettings
from medunet.metrics.overlap import count_labels
from medunet.model import MODEL_FILE, Model, ModelCard, save_model
from medunet.networks.settings import UNetSettings
from medunet.networks.unet import UNet
from medunet.patches.dataset import PreparedCase
from medunet.report.planes import Overlay
from medunet.system.progress import ProgressLine
from medunet.training.finish import OBJECTS, EndCost, _write_objects, finish_run
from medunet.training.setup import Setup
from medunet.training.validation import WORST_CASES, validate
from medunet.transforms.preprocess import Normalisation, PreprocessSettings
from medunet.volume import Volume
from tests.flows.made import LABELS, make_set


class Threshold(nn.Module):
    """Answers what the intensity says: 0, 1 or 2, so that a test chooses each case's score by its image."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, image: Tensor) -> Tensor:
        return torch.cat([-((image - level) ** 2) for level in (0.0, 1.0, 2.0)], dim=1)


def made_model() -> Model:
    network = UNetSettings(dimensions=3, in_channels=1, classes=3, channels=(4, 8), kernels=3, strides=2)
    card = ModelCard(
        name="t", network=network, preprocess=PreprocessSettings(spacing=(1.0, 1.0, 2.0)),
        labels=table_from_names(LABELS, None), channels=("X",), patch=(8, 8, 8), slice_axis=2, mirror_axes=(),
        record={},
    )  # fmt: skip
    return Model(Threshold().eval(), card)


def made_cases(errors: list[int], rng: np.random.Generator) -> list[PreparedCase]:
    """Cases whose first `errors` voxels are named wrongly."""
    cases = []
    for number, wrong in enumerate(errors):
        label = rng.integers(0, 3, (1, 12, 10, 8)).astype(np.uint8)
        image = label.astype(np.float32)
        image.reshape(-1)[:wrong] = (image.reshape(-1)[:wrong] + 1) % 3
        cases.append(PreparedCase(f"case {number}", image, label, {}))
    return cases


def test_scores_are_those_of_the_counts_and_the_worst_cases_come_first(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def drawn(overlay: Overlay, title: str, ignore: int) -> np.ndarray:
        assert overlay.spacing == (1.0, 1.0, 2.0) and overlay.radiological and ignore == IGNORE
        seen.append(title.split("   ")[0])
        return np.zeros((1, 1, 3), np.uint8)

    monkeypatch.setattr(medunet.training.validation, "outlined", drawn)
    errors = [40, 300, 0, 500, 120, 7]
    cases = made_cases(errors, rng)
    result = validate(made_model(), cases, "fp32")
    assert seen == [f"case {n}" for n in (3, 1, 4, 0)] and len(result.pictures) == WORST_CASES
    predictions = [case.image[0].astype(np.uint8) for case in cases]
    expected = [
        count_labels(found, case.label[0], {"bright": 1, "dark": 2})
        for found, case in zip(predictions, cases, strict=True)
    ]
    for name in ("bright", "dark"):
        assert result.spread[name] == pytest.approx([counts[name].dice for counts in expected])
        assert result.dice[name] == pytest.approx(np.mean(result.spread[name]))
        assert result.iou[name] == pytest.approx(np.mean([counts[name].iou for counts in expected]))
    assert result.spread["all"] == pytest.approx([(c["bright"].dice + c["dark"].dice) / 2 for c in expected])


def test_labels_that_nobody_has_are_left_out_and_real_pictures_are_drawn() -> None:
    label = np.zeros((1, 8, 8, 8), np.uint8)
    label[0, 2:4, 2:4, 2:4] = 1
    empty = np.full_like(label, IGNORE)
    cases = [
        PreparedCase("a", label.astype(np.float32), label, {}),
        PreparedCase("b", np.zeros(label.shape), empty, {}),
    ]
    result = validate(made_model(), cases, "fp32")
    assert result.dice == {"bright": 1.0} and result.spread == {"bright": [1.0], "all": [1.0]}
    assert [picture.shape[1:] for picture in result.pictures] == [(900, 3)] * 2


def held_out(data: DataSet, labels: LabelTable, folder: Path) -> Setup:
    """A training that holds all cases out."""
    return Setup(parse_config("", "a test"), data, labels, [], list(data.labelled), torch.device("cpu"), folder)


@pytest.mark.slow
def test_the_end_is_measured_on_single_cases_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real scans, predictions and scores; nothing is left behind, and a case that cannot be scored stops nothing."""
    data = read_data_set(make_set(tmp_path / "data", cases=3))
    setup = held_out(data, table_from_names(LABELS, None), tmp_path)
    model, scratch = made_model(), tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    tried: list[str] = []
    real = medunet.training.finish._predict_case

    def noted(case, segmenter, folder, held_out):
        tried.append(case.name)
        return real(case, segmenter, folder, held_out)

    monkeypatch.setattr(medunet.training.finish, "_predict_case", noted)
    end = EndCost(setup)
    assert not end.known
    voxels = {case.name: 20 * 18 * 16 for case in data.cases}
    for _ in range(4):
        end.measure(model, voxels)
    assert tried == ["case_0", "case_0", "case_1", "case_2", "case_0"]
    assert end.known and 0 < end.spent < 60 and 0 < end.seconds() < 60
    assert not list(scratch.iterdir())

    def broken(*arguments: object) -> None:
        raise DataError("unreadable")

    monkeypatch.setattr(medunet.training.finish, "_predict_case", broken)
    fresh = EndCost(setup)
    fresh.measure(model, voxels)
    assert not fresh.known


@pytest.mark.slow
def test_a_model_of_objects_leaves_its_objects_beside_the_masks(tmp_path: Path) -> None:
    """Random weights that answer inside and border; both are the object in the mask that is scored."""
    settings = InstanceSettings("border")
    data = make_set(tmp_path / "data", cases=2, shape=(14, 12, 10))
    described = {"name": "balls", "labels": {"background": 0, "ball": 1}, "label_kind": "instances"}
    (data / "dataset.json").write_text(json.dumps(described))
    found = read_data_set(data)
    card = ModelCard(
        "t", UNetSettings(in_channels=1, classes=3, channels=(4, 8)),
        PreprocessSettings(normalise=(Normalisation("zscore"),)),
        settings.learned(found.labels), ("X",), (8, 8, 8), instances=settings,
    )  # fmt: skip
    save_model(tmp_path / MODEL_FILE, UNet(card.network, 1).state_dict(), card)
    (tmp_path / "metrics.csv").write_text("epoch,loss,rate\n1,0.5,0.1\n2,0.4,0.1\n")
    setup = held_out(found, found.labels, tmp_path)
    lines, evaluation = finish_run(setup, ProgressLine("t"))
    for name in ("case_0.nii.gz", "case_1.nii.gz"):
        mask = read_volume(tmp_path / "validation" / name).array
        ids = read_volume(tmp_path / "validation" / OBJECTS / name).array
        assert set(np.unique(mask)) == {0, 1} and ids.max() > 0
        np.testing.assert_array_equal(mask > 0, ids > 0)
    objects = evaluation.summary.objects
    ids = [read_volume(tmp_path / "validation" / OBJECTS / f"case_{n}.nii.gz").array for n in (0, 1)]
    assert objects is not None
    assert objects.prediction == sum(int(one.max()) for one in ids)
    assert any("objects:" in line for line in lines)
    # The masks' scores are those of the masks that were written.
    pairs = [(tmp_path / "validation" / f"case_{n}.nii.gz", setup.held[n].label) for n in (0, 1)]
    masks = evaluate_pairs(pairs, EvaluateSettings(labels=setup.declared, instances=False))
    assert masks.summary.mean["dice"] == evaluation.summary.mean["dice"]


@pytest.mark.parametrize("suffix", [".nii.gz", ".ome.zarr"])
def test_objects_replace_those_of_an_earlier_validation(tmp_path: Path, suffix: str) -> None:
    """They may be a folder; where there are none now, none are left of the earlier ones."""
    path, grid = tmp_path / f"case{suffix}", Volume(np.zeros((1, 6, 5, 4), np.uint8), unit="um")
    for number in (1, 2):
        _write_objects(grid, np.full(grid.array.shape, number, np.uint16), path)
        assert (read_volume(path).array == number).all()
    _write_objects(grid, None, path)
    assert not list(tmp_path.iterdir())
