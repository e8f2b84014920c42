"""The Python API: what comes out has the form of what went in, prints nothing, and says errors in Python's terms."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

import medunet
from medunet.errors import ConfigError, DataError
from tests.flows.made import make_set
from tests.prediction.made import make_model, make_scan

FP32 = medunet.PredictSettings(precision="fp32")
SMALL = {
    "patches.size": [8, 8, 8], "patches.batch": 1, "training.epochs": 2,
    "training.iterations": 2, "training.minutes": None,
}  # fmt: skip


def test_a_result_has_the_form_of_its_scan() -> None:
    model, volume = make_model(), make_scan(20, 17, 15)
    labels = medunet.segment_volume(volume, model, FP32)
    assert isinstance(labels, medunet.Volume) and np.array_equal(labels.affine, volume.affine)
    array = volume.array.astype(np.float32)
    bare = medunet.segment_volume(array, model, FP32)
    tensor = medunet.segment_volume(torch.from_numpy(array), model, FP32)
    assert isinstance(bare, np.ndarray) and isinstance(tensor, torch.Tensor)
    assert np.array_equal(tensor.numpy(), bare)
    metatensor = volume.to_metatensor()
    found = medunet.segment_volume(metatensor, model, FP32)
    assert type(found) is type(metatensor) and np.array_equal(found.numpy(), labels.array)
    assert np.array_equal(found.affine.numpy(), metatensor.affine.numpy())


def test_scans_in_a_list_or_from_a_generator_come_one_by_one() -> None:
    model, scans = make_model(), [make_scan(9, 8, 12), make_scan(8, 8, 8)]
    asked = []

    def generator():  # type: ignore[no-untyped-def]
        for scan in scans:
            asked.append(scan)
            yield scan

    results = medunet.segment_volume(generator(), model, FP32)
    first = next(results)
    assert len(asked) == 1 and first.shape == scans[0].shape
    assert np.array_equal(next(results).array, medunet.segment_volume(scans[1], model, FP32).array)
    assert [r.shape for r in medunet.segment_volume(scans, model, FP32)] == [s.shape for s in scans]


def test_probabilities_come_with_the_labels() -> None:
    labels, scores = medunet.segment_volume(make_scan(12, 11, 10), make_model(), FP32, probabilities=True)
    assert scores.array.shape == (3, 12, 11, 10) and np.allclose(scores.array.sum(0), 1, atol=1e-5)
    assert np.array_equal(labels.array[0] > 0, scores.array.argmax(0) > 0)


@pytest.mark.parametrize("wrong", ["scan.nii.gz", Path("scan.nii.gz"), 7, None])
def test_what_is_no_scan_is_a_type_error(wrong: object) -> None:
    with pytest.raises(TypeError, match=r"found a .*, expected a Volume"):
        medunet.segment_volume(wrong, make_model())


def test_a_missing_channel_axis_and_too_many_channels_are_said_in_pythons_terms() -> None:
    with pytest.raises(DataError, match=r"expected \(channel, \*spatial\).*image\[None\]"):
        medunet.segment_volume(np.zeros((9, 9, 9), np.float32), make_model())
    with pytest.raises(DataError, match="has 3 channel") as error:
        medunet.segment_volume(np.zeros((3, 9, 9, 9), np.float32), make_model())
    assert "--" not in str(error.value)
    with pytest.raises(ConfigError, match="device cuda:99") as refused:
        medunet.load_model("nowhere", device="cuda:99") if torch.cuda.is_available() else medunet.plan(
            ".", device="cuda:99"
        )
    assert "--" not in str(refused.value)


@pytest.mark.slow
def test_a_training_from_python(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Planned, trained, gone on with, read again; nothing is printed, the notes are logged."""
    data = make_set(tmp_path / "data", 3)
    planned = medunet.plan(data, memory="2G", minutes=1)
    assert planned.config.network.dimensions == 3
    rows: list[dict[str, float]] = []
    with caplog.at_level(logging.INFO, "medunet"):
        run = medunet.train(planned, tmp_path / "run", {**SMALL, "data.folds": 3}, after_epoch=rows.append)
    printed = capfd.readouterr()
    assert printed.out == "" and printed.err == ""
    assert any("epoch 2: loss" in message for message in caplog.messages)
    assert [row["epoch"] for row in rows] == [1, 2] == [row["epoch"] for row in run.history]
    assert run.history[-1]["loss"] == pytest.approx(rows[-1]["loss"], rel=1e-5)
    assert run.scores is not None and run.scores["cases"]
    assert len(run.models()) == 1 and run.signal == 0
    with pytest.raises(medunet.MedunetError, match="say resume to go on with it, overwrite") as error:
        medunet.train(planned, tmp_path / "run", SMALL)
    assert "--" not in str(error.value)
    longer = medunet.train(tmp_path / "run" / "config.yaml", tmp_path / "run", {"training.epochs": 3}, resume=True)
    assert [row["epoch"] for row in longer.history] == [1, 2, 3]
    assert medunet.Run.open(tmp_path / "run") == longer


@pytest.mark.slow
def test_two_dimensions_for_volumes_and_never_three_for_pictures(tmp_path: Path) -> None:
    data = make_set(tmp_path / "data", 2)
    planned = medunet.plan(data, memory="2G", minutes=1, dimensions=2)
    assert planned.config.network.dimensions == 2 and planned.config.patches.slice_axis is not None
    assert "asked for" in planned.notes["network.dimensions"]


def test_scores_of_arrays_and_tensors() -> None:
    truth = np.zeros((8, 8, 8), np.uint8)
    truth[2:6, 2:6, 2:6] = 1
    moved = np.roll(truth, 1, 0)
    scores = medunet.evaluate_pairs([(moved, truth), (torch.from_numpy(truth), truth[None])])
    record = scores.to_dict()
    table = scores.to_dataframe()
    assert table["dice"].tolist() == pytest.approx([0.75, 1.0])
    assert list(record["cases"]) == table["case"].tolist() == ["case 1", "case 2"]
    picture = medunet.evaluate_pairs([(truth[2], truth[2][None])])
    assert picture.to_dataframe()["dice"].tolist() == [1.0]
