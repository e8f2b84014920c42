"""Objects and boundaries through the evaluate story: when they are compared, and that every output agrees."""

from __future__ import annotations

import csv
import io
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from medunet.cli import cli
from medunet.datasets.labels import table_from_names
from medunet.errors import ConfigError, DataError
from medunet.evaluate import evaluate_command, evaluate_folders, evaluate_pairs
from medunet.evaluation.files import case_picture, report_page, write_evaluation
from medunet.evaluation.pairs import Pair
from medunet.evaluation.settings import EvaluateSettings
from medunet.formats.dispatch import write_volume
from medunet.volume import Volume

CELLS = table_from_names({"background": 0, "cell": 1}, None, "instances")


def grid_of_cells(merge: bool = False, drop: bool = False) -> np.ndarray:
    """Nine 6x6 cells in a 24x24 picture, ids 10, 20, … 90; cells 10 and 20 can be one, and 90 can lack."""
    ids = np.zeros((24, 24), np.uint16)
    for number in range(9):
        x, y = 8 * (number // 3) + 1, 8 * (number % 3) + 1
        ids[x : x + 6, y : y + 6] = 10 * (number + 1)
    if merge:
        ids[ids == 20] = 10
    if drop:
        ids[ids == 90] = 0
    return ids


def flat(array: np.ndarray) -> Volume:
    return Volume(array[None], unit="pixel")


def save(folder: Path, **arrays: np.ndarray) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for case, array in arrays.items():
        Image.fromarray(array.T.copy()).save(folder / f"{case}.png")
    return folder


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    save(folder / "labels", a=grid_of_cells(), b=grid_of_cells())
    save(folder / "images", a=(grid_of_cells() > 0).astype(np.uint8) * 200, b=grid_of_cells().astype(np.uint8))
    (folder / "dataset.json").write_text(
        json.dumps({"labels": {"background": 0, "cell": 1}, "label_kind": "instances"})
    )
    return folder


@pytest.mark.slow
def test_declared_ids_are_compared_as_objects_and_every_output_says_so(tmp_path: Path, cells: Path) -> None:
    predictions = save(tmp_path / "pred", a=grid_of_cells(merge=True), b=grid_of_cells(drop=True))
    evaluation = evaluate_folders(predictions, cells)
    pooled = evaluation.summary.objects
    assert pooled is not None and (pooled.reference, pooled.prediction) == (18, 16)
    assert (pooled.merged, pooled.missed, pooled.invented, pooled.split) == (1, 1, 0, 0)
    assert pooled.seg == pytest.approx((7 + 2 * 0.5 + 8) / 18), "each merged cell is half of its prediction"
    out = tmp_path / "out"
    write_evaluation(evaluation, out)
    rows = {row["case"]: row for row in csv.DictReader((out / "scores.csv").read_text(encoding="utf-8").splitlines())}
    assert rows["a"]["objects_merged"] == "1" and rows["b"]["objects_missed"] == "1"
    assert float(rows["b"]["ap50"]) == pytest.approx(8 / 9, abs=1e-5)
    summary = list(csv.DictReader((out / "summary.csv").read_text(encoding="utf-8").splitlines()))
    found = {row["measure"]: float(row["mean"]) for row in summary if row["label"] == "cell"}
    assert found["pq_pooled"] == pytest.approx(pooled.pq, abs=1e-5)
    by_image = [case.objects.pq for case in evaluation.cases if case.objects]
    assert found["pq"] == pytest.approx(np.mean(by_image), abs=1e-5)
    record = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    objects = record["summary"]["objects"]
    assert objects["pooled"]["seg"] == pytest.approx(pooled.seg) and objects["pooled"]["missed"] == 1
    assert objects["by_image"]["pq"] == pytest.approx(np.mean(by_image))
    assert (
        record["cases"]["a"]["objects"]["thresholds"]["0.5"]["false_negatives"] == pooled.matches[0].false_negatives - 1
    )
    assert any("panoptic" in line.lower() or line.startswith("PQ") for line in record["definitions"])
    page = (out / "report.html").read_text(encoding="utf-8")
    HTMLParser().feed(page)
    assert (
        "1 merged, 0 split" in page
        and "worst and median case, mAP" in page
        and page.count("data:image/png;base64,") >= 2
    )


def test_binary_masks_keep_their_mask_scores_and_hear_of_the_option(tmp_path: Path, cells: Path) -> None:
    masks = {case: (grid_of_cells() > 0).astype(np.uint8) * 255 for case in "ab"}
    predictions = save(tmp_path / "pred", **masks)
    lines, failed = evaluate_command(predictions, cells, None, None, EvaluateSettings(), False)
    assert not failed and any("--instances" in line for line in lines) and not any("AP50" in line for line in lines)
    lines, _ = evaluate_command(predictions, cells, None, None, EvaluateSettings(instances=True), False)
    assert any("18 true, 2 predicted" in line and "2 merged" in line for line in lines)


def test_one_image_with_ids_makes_all_be_compared_as_objects(tmp_path: Path, cells: Path) -> None:
    """An image in which a single object was found is not a mask for that."""
    one = np.where(grid_of_cells() == 50, 50, 0).astype(np.uint16)
    evaluation = evaluate_folders(save(tmp_path / "pred", a=one, b=grid_of_cells()), cells)
    assert evaluation.summary.objects is not None and evaluation.summary.objects.missed == 8
    assert evaluate_folders(tmp_path / "pred", cells, EvaluateSettings(instances=False)).summary.objects is None


def test_ids_without_a_declaration_are_compared_when_asked_for() -> None:
    ids = np.arange(1, 901, dtype=np.uint16).reshape(30, 30)
    with pytest.raises(DataError, match="--instances"):
        evaluate_pairs([(flat(ids), flat(ids))])
    evaluation = evaluate_pairs([(flat(ids), flat(ids))], EvaluateSettings(instances=True))
    assert evaluation.summary.objects is not None and evaluation.summary.objects.pq == 1.0
    two = table_from_names({"background": 0, "cell": 7}, 255)
    evaluation = evaluate_pairs([(flat(ids), flat(ids))], EvaluateSettings(labels=two, instances=True))
    assert evaluation.labels.kind == "instances" and evaluation.labels.ignore == 255
    membranes = table_from_names({"membrane": 0, "cell": 255}, None)
    evaluation = evaluate_pairs([(flat(ids), flat(ids))], EvaluateSettings(labels=membranes, instances=True))
    assert evaluation.labels.names == ("background", "cell")
    three = table_from_names({"background": 0, "cell": 7, "nucleus": 9}, None)
    with pytest.raises(DataError, match="declared as classes"):
        evaluate_pairs([(flat(ids), flat(ids))], EvaluateSettings(labels=three, instances=True))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (grid_of_cells() + 0.5, "whole numbers"),
        (grid_of_cells().astype(np.int16) - 1, "must not be negative"),
        (np.stack([grid_of_cells()] * 3), "one channel"),
    ],
)
def test_what_is_no_map_of_ids_is_refused(array: np.ndarray, message: str) -> None:
    volume = Volume(array if array.ndim == 3 else array[None], unit="pixel")
    with pytest.raises(DataError, match=message):
        evaluate_pairs([(volume, flat(grid_of_cells()))], EvaluateSettings(labels=CELLS))


@pytest.mark.slow
def test_the_annotated_share_is_stated_and_hidden_objects_are_not_judged(tmp_path: Path) -> None:
    """A third of the picture is ignored; a prediction there, and one with the ignore value as its id, are no errors."""
    labels = table_from_names({"background": 0, "cell": 1}, 255, "instances")
    reference, prediction = grid_of_cells(), grid_of_cells()
    reference[16:] = 255
    prediction[prediction == 10] = 255
    evaluation = evaluate_pairs([Pair("c", flat(prediction), flat(reference))], EvaluateSettings(labels=labels))
    objects = evaluation.summary.objects
    assert objects is not None and (objects.reference, objects.prediction, objects.unjudged) == (6, 6, 3)
    assert objects.pq == objects.det == 1.0 and evaluation.summary.mean["dice"] == 1.0
    assert evaluation.summary.annotated_share == pytest.approx(2 / 3)
    page = report_page(evaluation)
    assert "66.7 % of the voxels annotated" in page
    write_evaluation(evaluation, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "scores.json").read_text(encoding="utf-8"))
    assert record["cases"]["c"]["annotated_share"] == pytest.approx(2 / 3)


@pytest.mark.slow
def test_a_fully_annotated_set_does_not_speak_of_it(tmp_path: Path, cells: Path) -> None:
    evaluation = evaluate_folders(save(tmp_path / "pred", a=grid_of_cells()) / "a.png", cells)
    assert evaluation.summary.annotated_share == 1.0 and "annotated" not in report_page(evaluation).split("<section")[0]


@pytest.mark.slow
def test_pictures_of_objects_show_partners_in_one_colour_and_errors_in_red(cells: Path) -> None:
    pairs = [Pair("a", flat(grid_of_cells(drop=True)), flat(grid_of_cells()))]
    evaluation = evaluate_pairs(pairs, EvaluateSettings(labels=CELLS))
    picture = np.array(Image.open(io.BytesIO(case_picture(evaluation, "a"))).convert("RGB")).astype(int)
    half = picture.shape[1] // 2
    red = (picture[..., 0] > 200) & (picture[..., 1] < 110) & (picture[..., 2] < 90)
    assert red[:, :half].sum() > 100, "the missed cell in the reference"
    assert red[:, half:].sum() == 0, "nothing was invented"


@pytest.mark.slow
def test_volumes_are_compared_and_drawn(rng: np.random.Generator) -> None:
    ids = np.zeros((12, 10, 8), np.int32)
    ids[1:5, 1:5, 1:5], ids[6:11, 2:8, 2:7] = 4, 9
    volume = Volume(ids[None], np.diag((0.2, 0.2, 0.5, 1.0)), "um")
    image = Volume(rng.normal(size=(1, 12, 10, 8)), np.diag((0.2, 0.2, 0.5, 1.0)), "um")
    evaluation = evaluate_pairs([Pair("v", volume, volume, image)], EvaluateSettings(labels=CELLS))
    assert evaluation.summary.objects is not None and evaluation.summary.objects.mean_ap == 1.0
    assert case_picture(evaluation, "v").startswith(b"\x89PNG")


def membrane_map() -> np.ndarray:
    cells = np.full((24, 20), 255, np.uint8)
    cells[11:13] = 0
    cells[:, 9:11] = 0
    return cells


@pytest.fixture
def membranes(tmp_path: Path) -> Path:
    folder = tmp_path / "em"
    save(folder / "labels", s=membrane_map(), t=membrane_map())
    (folder / "dataset.json").write_text(json.dumps({"labels": {"membrane": 0, "cell": 255}}))
    return folder


@pytest.mark.slow
def test_membrane_maps_are_compared_as_partitions(tmp_path: Path, membranes: Path) -> None:
    gap = membrane_map()
    gap[11:13, 2:5] = 255
    predictions = save(tmp_path / "pred", s=membrane_map(), t=gap)
    settings = EvaluateSettings(boundaries=True)
    evaluation = evaluate_folders(predictions, membranes, settings)
    pooled = evaluation.summary.boundaries
    assert pooled is not None and pooled.sections == 2 and pooled.rand.split == pytest.approx(1.0)
    assert pooled.v_rand == pytest.approx((1 + 2 * 0.6666667 / 1.6666667) / 2, abs=0.02)
    write_evaluation(evaluation, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "scores.json").read_text(encoding="utf-8"))
    assert record["summary"]["boundaries"]["pooled"]["v_rand"] == pytest.approx(pooled.v_rand)
    assert record["cases"]["s"]["boundaries"]["v_info"] == pytest.approx(1.0)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "V_rand" in page and "Vincent" not in page and "watershed" in page


@pytest.mark.slow
def test_probabilities_of_membrane_maps_are_read_in_every_form(membranes: Path) -> None:
    truth = membrane_map()
    labels = table_from_names({"membrane": 0, "cell": 255}, None)
    soft = np.where(truth > 0, 0.8, 0.3).astype(np.float32)
    forms = (
        flat(soft),
        flat((soft * 255).astype(np.uint8)),
        flat((soft * 65535).astype(np.uint16)),
        flat((truth > 0).astype(np.uint8)),
        Volume(np.stack([1 - soft, soft]), unit="pixel"),
    )
    for form in forms:
        evaluation = evaluate_pairs([(form, flat(truth))], EvaluateSettings(labels=labels, boundaries=True))
        assert evaluation.summary.boundaries is not None and evaluation.summary.boundaries.v_rand == pytest.approx(1.0)
        assert evaluation.summary.mean["dice"] == 1.0
    assert case_picture(evaluation, "case 1").startswith(b"\x89PNG")
    inverted = evaluate_pairs([(flat(1 - soft), flat(truth))], EvaluateSettings(labels=labels, boundaries=True))
    assert any("turn them round" in note for note in inverted.card.notes)
    undeclared = evaluate_pairs([(flat(soft), flat(truth))], EvaluateSettings(boundaries=True))
    assert undeclared.summary.boundaries is not None and undeclared.summary.boundaries.v_info == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("prediction", "labels", "message"),
    [
        (membrane_map() * 1.0 + 1, {"membrane": 0, "cell": 255}, "between 0 and 1"),
        (np.full((24, 20), np.nan), {"membrane": 0, "cell": 255}, "between 0 and 1"),
        (np.zeros((3, 24, 20)), {"membrane": 0, "cell": 255}, "1 or 2 channels"),
        (membrane_map(), {"background": 0, "a": 1, "b": 255}, "two classes"),
    ],
)
def test_what_is_no_map_of_membranes_is_refused(prediction: np.ndarray, labels: dict[str, int], message: str) -> None:
    volume = Volume(prediction if prediction.ndim == 3 else prediction[None], unit="pixel")
    how = EvaluateSettings(labels=table_from_names(labels, None), boundaries=True)
    with pytest.raises(DataError, match=message):
        evaluate_pairs([(volume, flat(membrane_map()))], how)


def test_options_of_the_command(tmp_path: Path, cells: Path) -> None:
    predictions = save(tmp_path / "pred", a=grid_of_cells(), b=grid_of_cells(merge=True))
    result = CliRunner().invoke(cli, ["evaluate", str(predictions), str(cells), "--instances"])
    assert result.exit_code == 0 and "1 merged" in result.output and "PQ" in result.output
    result = CliRunner().invoke(cli, ["evaluate", str(predictions), str(cells), "--masks"])
    assert "merged" not in result.output
    with pytest.raises(DataError, match="object ids"):
        evaluate_folders(predictions, cells, EvaluateSettings(boundaries=True))
    with pytest.raises(ConfigError, match="found both"):
        EvaluateSettings(instances=True, boundaries=True)


def test_probabilities_beside_a_label_map_decide_its_boundaries(tmp_path: Path) -> None:
    """A membrane with a gap in the label map, which a threshold of the probabilities closes."""
    truth = np.ones((24, 24), np.uint8)
    truth[12] = 0
    probability = np.where(truth, 0.9, 0.1).astype(np.float32)
    probability[12, 10:12] = 0.6
    found = (probability > 0.5).astype(np.uint8)
    save(tmp_path / "data" / "labels", s=truth)
    (tmp_path / "data" / "dataset.json").write_text(json.dumps({"labels": {"membrane": 0, "cell": 1}}))
    save(tmp_path / "found", s=found)
    settings = EvaluateSettings(boundaries=True)
    alone = evaluate_folders(tmp_path / "found", tmp_path / "data" / "labels", settings).summary
    both = np.stack([1 - probability, probability])
    write_volume(Volume(both, unit="pixel"), tmp_path / "found" / "s_probabilities.tif")
    beside = evaluate_folders(tmp_path / "found", tmp_path / "data" / "labels", settings).summary
    assert alone.boundaries is not None and beside.boundaries is not None
    assert alone.boundaries.v_rand < 0.9 and beside.boundaries.v_rand == pytest.approx(1.0)
    assert alone.labels == beside.labels, "masks are compared as they are"
    write_volume(Volume(both[:, :20], unit="pixel"), tmp_path / "found" / "s_probabilities.tif", overwrite=True)
    with pytest.raises(DataError, match="s: "):
        evaluate_folders(tmp_path / "found", tmp_path / "data" / "labels", settings)


def test_probabilities_of_another_prediction_are_not_taken_for_this_ones(tmp_path: Path) -> None:
    """Predicted anew without --probabilities, a label map lies beside those of the model before."""
    truth = np.ones((24, 24), np.uint8)
    truth[12] = 0
    save(tmp_path / "data" / "labels", s=truth)
    (tmp_path / "data" / "dataset.json").write_text(json.dumps({"labels": {"membrane": 0, "cell": 1}}))
    save(tmp_path / "found", s=truth)
    old = np.where(np.roll(truth, 3, axis=0), 0.9, 0.1).astype(np.float32)
    write_volume(Volume(np.stack([1 - old, old]), unit="pixel"), tmp_path / "found" / "s_probabilities.tif")
    with pytest.raises(DataError, match=r"s_probabilities.tif: 8.33 % of its pixels disagree with s.png"):
        evaluate_folders(tmp_path / "found", tmp_path / "data" / "labels", EvaluateSettings(boundaries=True))
