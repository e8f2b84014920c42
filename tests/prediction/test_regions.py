"""Regions through all of inference: streamed, resampled, mirrored, averaged, against plain sigmoids."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import medunet
from medunet.api import segment_volume
from medunet.datasets.labels import LabelTable, table_from_names, with_regions
from medunet.datasets.regions import DeclaredRegions
from medunet.model import Model, load_model, save_model
from medunet.networks.settings import UNetSettings
from medunet.predict import segment_files
from medunet.prediction.outputs import PredictRequest
from medunet.prediction.planning import PredictSettings
from medunet.prediction.segmenter import Segmenter
from medunet.prediction.verify import verify
from medunet.transforms.preprocess import Normalisation, PreprocessSettings, preprocess
from tests.inference.oracles import whole_pass
from tests.prediction.made import make_model, make_scan
from tests.transforms.restoring import restore_scores

TABLE = with_regions(
    table_from_names({"background": 0, "oedema": 5, "core": 7, "enhancing": 200}, None),
    DeclaredRegions({"whole": (5, 7, 200), "inner": (7, 200), "bright": (200,)}),
)
CROSSING = with_regions(
    table_from_names({"background": 0, "left": 5, "right": 7, "both": 9, "all": 200}, None),
    DeclaredRegions({"a": (5, 9, 200), "b": (7, 9, 200), "c": (200,)}),
)
NETWORK = UNetSettings(channels=(4, 8), classes=3)
ZSCORE = (Normalisation("zscore"),)
FP32 = PredictSettings(precision="fp32")
Decided = Callable[[np.ndarray], np.ndarray]


def region_model(seed: int = 1, **changes: object) -> Model:
    return make_model(NETWORK, seed, **({"labels": TABLE, "mirror_axes": (0, 2)} | changes))


def plain_probabilities(models: list[Model], volume: medunet.Volume, tta: bool) -> np.ndarray:
    """`(region, *spatial)` on the scan's grid: whole passes, sigmoids, their mean, restored all at once."""
    members = []
    for model in models:
        array, undo = preprocess(volume, model.card.preprocess)
        image = torch.from_numpy(array)
        for axes in ([], [1], [3], [1, 3]) if tta else ([],):
            members.append(whole_pass(model.network, image.flip(axes), (2, 2, 2)).flip(axes).sigmoid())
    # Background does not take part: nothing is where the scan was cut away.
    return restore_scores(torch.stack(members).mean(0).numpy(), undo)


def painted(probabilities: np.ndarray) -> np.ndarray:
    labels = np.zeros(probabilities.shape[1:], np.uint8)
    for score, value in zip(probabilities, (5, 7, 200), strict=True):
        labels[score > 0.5] = value
    return labels


def combined(probabilities: np.ndarray) -> np.ndarray:
    """The value whose combination of regions is the most probable: products of probabilities, in float64."""
    a, b, c = probabilities.astype(np.float64)
    likelihoods = {
        0: (1 - a) * (1 - b) * (1 - c), 5: a * (1 - b) * (1 - c), 7: (1 - a) * b * (1 - c), 9: a * b * (1 - c),
        200: a * b * c,
    }  # fmt: skip
    return np.array(list(likelihoods), np.uint8)[np.argmax(list(likelihoods.values()), axis=0)]


KINDS = pytest.mark.parametrize(
    ("table", "decided"), [(TABLE, painted), (CROSSING, combined)], ids=["nested", "overlapping"]
)


@pytest.mark.slow
@KINDS
@pytest.mark.parametrize("spacing", [None, (0.8, 1.2, 1.5)])
@pytest.mark.parametrize(("models", "tta"), [(1, False), (1, True), (3, False)])
def test_regions_are_painted_in_order_or_decided_together(
    table: LabelTable, decided: Decided, spacing: tuple | None, models: int, tta: bool
) -> None:
    how = PreprocessSettings(spacing=spacing, normalise=ZSCORE)
    group = [region_model(seed, preprocess=how, labels=table) for seed in range(1, models + 1)]
    volume = make_scan(30, 25, 28)
    expected = decided(plain_probabilities(group, volume, tta))
    answer = segment_volume(volume, group, replace(FP32, tta=tta))
    assert (answer.array[0] != expected).mean() < 1e-4, "what rounding decides"
    assert len(np.unique(expected)) > 1


@pytest.mark.slow
def test_parts_of_a_scan_and_small_memory_change_nothing() -> None:
    """Overlapping regions are decided on piece by piece."""
    model = region_model(labels=CROSSING, preprocess=PreprocessSettings(spacing=(0.8, 1.2, 1.5)))
    volume = make_scan(60, 50, 40)
    whole = segment_volume(volume, model, FP32).array
    small = segment_volume(volume, model, replace(FP32, memory=32 * 2**20)).array
    assert (whole != small).mean() < 1e-4


@pytest.mark.slow
@KINDS
def test_pieces_are_right_and_verification_holds(table: LabelTable, decided: Decided) -> None:
    model, volume = region_model(labels=table), make_scan(30, 25, 28)
    segmenter = Segmenter([model], FP32)
    scan = segmenter.open(volume)
    plan = segmenter.plan(scan)
    found = table.to_values(segmenter.indices(scan, plan))[0]
    assert (found != decided(plain_probabilities([model], volume, False))).mean() < 1e-4
    verified = verify(segmenter, scan, plan)
    assert verified.holds and verified.precision < 1e-4 and verified.blended is not None and 0 < verified.blended < 1


@pytest.mark.slow
def test_verification_counts_painted_labels() -> None:
    """bf16 changes some of them; the argmax over regions would be another number."""
    segmenter = Segmenter([region_model()], replace(FP32, precision="bf16"))
    scan = segmenter.open(make_scan(30, 25, 28))
    assert 0 < verify(segmenter, scan, segmenter.plan(scan)).precision < 0.1


@KINDS
def test_slices_of_a_two_dimensional_network(table: LabelTable, decided: Decided) -> None:
    flat = make_model(UNetSettings(dimensions=2, channels=(4, 8), classes=3), labels=table, slice_axis=1)
    volume = make_scan(20, 3, 18)
    array, _ = preprocess(volume, flat.card.preprocess)
    image = torch.from_numpy(array)
    scores = [whole_pass(flat.network, image[:, :, n], (2, 2)).sigmoid().numpy() for n in range(3)]
    answer = segment_volume(volume, flat, FP32)
    assert (answer.array[0] != decided(np.stack(scores, axis=2))).mean() < 1e-3


@pytest.mark.slow
@KINDS
def test_probabilities_have_a_channel_per_region_and_labels_follow_from_them(
    table: LabelTable, decided: Decided, tmp_path: Path
) -> None:
    """On a scan with a border of zeros that is cut away, where no region is."""
    model = region_model(labels=table, preprocess=PreprocessSettings(crop="nonzero", normalise=ZSCORE))
    volume = make_scan(24, 22, 20)
    volume.array[:, :6] = 0
    medunet.write_volume(volume, tmp_path / "scan.nii.gz")
    save_model(tmp_path / "model.safetensors", model.network.state_dict(), model.card)
    assert load_model(tmp_path / "model.safetensors").card == model.card, "regions are part of the model file"
    request = PredictRequest([tmp_path / "scan.nii.gz"], tmp_path / "out", "cpu", probabilities=True)
    assert not segment_files(str(tmp_path / "model.safetensors"), request, FP32).failed
    labels = medunet.read_volume(tmp_path / "out" / "scan.nii.gz").array[0]
    scores = medunet.read_volume(tmp_path / "out" / "scan_probabilities.nii.gz").array
    assert scores.shape == (3, 24, 22, 20)
    assert not scores[:, :6].any() and not labels[:6].any()
    np.testing.assert_array_equal(labels, decided(scores))
    assert (np.abs(scores[:, 6:].sum(axis=0) - 1) > 0.1).any(), "sigmoids, not a softmax"
    np.testing.assert_array_equal(segment_volume(volume, model, FP32).array[0], labels)
