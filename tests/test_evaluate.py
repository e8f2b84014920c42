"""The evaluate story on files: pairing, grids, label values, one bad case, outputs."""

from __future__ import annotations

import csv
import json
from html.parser import HTMLParser
from math import isnan
from pathlib import Path

import numpy as np
import pytest

from medunet.datasets.labels import table_from_names, table_from_values
from medunet.errors import ConfigError, DataError, OutputError
from medunet.evaluate import evaluate_command, evaluate_folders, evaluate_pairs
from medunet.evaluation.files import report_page, write_evaluation
from medunet.evaluation.pairs import Pair
from medunet.evaluation.settings import EvaluateSettings
from medunet.formats.dispatch import read_volume, write_volume
from medunet.volume import Volume

SPACING = (1.0, 1.0, 2.0)
AFFINE = np.diag((*SPACING, 1.0))
AFFINE[:3, 3] = -10, 5, 30


def cube(value: int = 1, start: int = 2, length: int = 5, shape: tuple[int, ...] = (12, 11, 10)) -> np.ndarray:
    labels = np.zeros((1, *shape), np.uint8)
    labels[(0, *(slice(start, start + length) for _ in shape))] = value
    return labels


def volume(array: np.ndarray, affine: np.ndarray = AFFINE, unit: str = "mm") -> Volume:
    return Volume(array, affine, unit)


def save(folder: Path, **arrays: np.ndarray) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for case, array in arrays.items():
        write_volume(volume(array), folder / f"{case}.nii.gz")
    return folder


def declare(folder: Path, **declaration: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(declaration))


@pytest.fixture
def data_set(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    declare(folder, labels={"background": 0, "core": 1, "rim": 5}, ignore=255)
    save(folder / "labels", a=cube() + 5 * cube(1, 8, 3), b=cube(), c=cube(5))
    save(folder / "images", **{case: np.random.default_rng(0).normal(size=(1, 12, 11, 10)) for case in "abc"})
    return folder


def test_known_scores_of_a_shifted_cube() -> None:
    """A 5x5x5 cube one voxel along z: Dice 4/5, and one 2 mm step between the surfaces."""
    shifted = np.roll(cube(), 1, axis=3)
    evaluation = evaluate_pairs([(volume(shifted), volume(cube()))])
    (scores,) = evaluation.cases[0].labels
    assert scores.dice == pytest.approx(0.8) and scores.iou == pytest.approx(2 / 3)
    assert scores.hausdorff == 2.0 and scores.reference_volume == 250.0
    assert evaluation.card.unit == "mm" and evaluation.cases[0].tolerance == 1.0


def test_folder_against_data_set(tmp_path: Path, data_set: Path) -> None:
    predictions = save(tmp_path / "pred", a=cube(), b=cube(), c=cube(5), stray=cube())
    evaluation = evaluate_folders(predictions, data_set)
    assert [case.case for case in evaluation.cases] == ["a", "b", "c"] and not evaluation.failed
    core, rim = evaluation.summary.labels
    assert core.statistics["dice"].mean == 1.0 and core.outcomes["absent"] == 1
    assert (rim.label, rim.outcomes["missed"], rim.statistics["dice"].mean) == ("rim", 1, 0.5)
    assert any("stray" in note for note in evaluation.card.notes)
    assert str(evaluate_folders(predictions, data_set / "labels").summary) == str(evaluation.summary)
    assert evaluation.pairs["a"].image == data_set / "images" / "a.nii.gz"


@pytest.mark.slow
def test_regions_beside_the_references_are_scored_as_unions(tmp_path: Path) -> None:
    """A core that is taken for rim is a wrong core and a right whole."""
    folder = tmp_path / "data"
    declare(folder, labels={"background": 0, "core": 1, "rim": 5}, regions={"whole": [1, 5], "inner": [1]})
    save(folder / "labels", a=cube() + 5 * cube(1, 8, 3))
    evaluation = evaluate_folders(save(tmp_path / "pred", a=cube(5) + 5 * cube(1, 8, 3)), folder)
    scores = {label.label: label for label in evaluation.cases[0].labels}
    assert set(scores) == {"whole", "inner"} and scores["whole"].dice == 1.0 and scores["inner"].outcome == "missed"
    assert scores["whole"].counts.reference == 125 + 18, "the small one is cut by the border"
    write_evaluation(evaluation, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert record["label_table"]["regions"] == {"whole": [1, 5], "inner": [1]}
    assert set(record["labels"]) == {"whole", "inner"}


@pytest.mark.slow
def test_a_bad_case_and_a_missing_one_do_not_stop_the_others(tmp_path: Path, data_set: Path) -> None:
    predictions = save(tmp_path / "pred", a=cube())
    (predictions / "b.nii.gz").write_bytes(b"no scan")
    evaluation = evaluate_folders(predictions, data_set)
    assert [case.case for case in evaluation.cases] == ["a"]
    assert set(evaluation.failed) == {"b", "c"} and "no prediction" in evaluation.failed["c"]
    page = report_page(evaluation)
    assert "2 cases were not scored" in page


def test_single_files_need_no_common_name(tmp_path: Path) -> None:
    save(tmp_path, mine=cube(), truth=cube())
    evaluation = evaluate_folders(tmp_path / "mine.nii.gz", tmp_path / "truth.nii.gz")
    assert evaluation.cases[0].case == "truth" and evaluation.summary.mean["dice"] == 1.0


def test_one_prediction_asks_for_one_case_only(tmp_path: Path, data_set: Path) -> None:
    predictions = save(tmp_path / "pred", b=cube())
    assert not evaluate_folders(predictions / "b.nii.gz", data_set).failed


def test_nothing_in_common_is_an_error_that_shows_both_names(tmp_path: Path, data_set: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)no file name in common.*other.*a, b, c"):
        evaluate_folders(save(tmp_path / "pred", other=cube()), data_set)
    with pytest.raises(DataError, match="no such file or folder"):
        evaluate_folders(tmp_path / "nowhere", data_set)
    with pytest.raises(DataError, match="nothing to evaluate"):
        evaluate_pairs([])


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        (volume(cube(shape=(12, 11, 9))), "has shape"),
        (volume(cube(), AFFINE @ np.diag((1.0, 1.0, 1.0003, 1.0))), r"different grids: corners are up to 0.0054 mm"),
        (volume(cube(), np.diag((-1.0, -1.0, 2.0, 1.0)) + AFFINE - np.diag(np.diag(AFFINE))), "different grids"),
        (volume(cube(7)), "7"),
        (volume(cube() * 0.5), "whole numbers"),
        (volume(np.concatenate([cube(), cube()])), "one channel"),
    ],
    ids=["shape", "spacing", "flipped", "undeclared", "fractional", "channels"],
)
def test_what_cannot_be_compared_is_refused(prediction: Volume, message: str) -> None:
    with pytest.raises(DataError, match=message):
        evaluate_pairs([Pair("c17", prediction, volume(cube()))], EvaluateSettings(labels=table_from_values([0, 1])))


def test_a_label_that_only_a_prediction_has_costs_its_case_instead_of_hiding_it() -> None:
    stray = cube()
    stray[0, 0, 0, 0] = 2
    evaluation = evaluate_pairs([(volume(cube()), volume(cube())), (volume(stray), volume(cube()))])
    assert not evaluation.failed and evaluation.summary.mean["dice"] < 0.51


def test_a_grid_within_the_tolerance_and_floats_that_are_whole_are_fine() -> None:
    nudged = AFFINE + np.eye(4) * 2e-5
    prediction, reference = volume(cube().astype(np.float32), nudged), volume(cube().astype(np.float64))
    assert evaluate_pairs([(prediction, reference)]).summary.mean["dice"] == 1.0


def test_the_same_grid_in_another_unit_is_the_same_grid() -> None:
    micrometres = AFFINE.copy()
    micrometres[:3] *= 1000
    evaluation = evaluate_pairs([(volume(cube(), micrometres, "um"), volume(cube()))])
    assert evaluation.card.unit == "mm"


def test_a_prediction_without_voxel_size_takes_the_references() -> None:
    bare = volume(cube(), np.eye(4), "pixel")
    for pair in ((bare, volume(np.roll(cube(), 1, axis=3))), (volume(np.roll(cube(), 1, axis=3)), bare)):
        assert evaluate_pairs([pair]).cases[0].labels[0].hausdorff == 2.0


def test_distances_of_different_units_are_not_averaged() -> None:
    pairs = [Pair("mm", volume(cube()), volume(cube())), Pair("um", *[volume(cube(), AFFINE, "um")] * 2)]
    evaluation = evaluate_pairs(pairs)
    assert list(evaluation.failed) == ["um"] and "distances are in um" in evaluation.failed["um"]


def test_tolerance_without_millimetres_is_two_voxels() -> None:
    tiny = volume(cube(), np.diag((0.2, 0.2, 0.7, 1.0)), "um")
    assert evaluate_pairs([(tiny, tiny)]).cases[0].tolerance == pytest.approx(0.4)
    assert evaluate_pairs([(tiny, tiny)], EvaluateSettings(tolerance=3.0)).cases[0].tolerance == 3.0
    with pytest.raises(ConfigError, match="tolerance"):
        EvaluateSettings(tolerance=-1.0)


def test_without_a_background_every_label_is_scored() -> None:
    table = table_from_names({"membrane": 0, "cell": 255}, None)
    evaluation = evaluate_pairs([(volume(cube(255)), volume(cube(255)))], EvaluateSettings(labels=table))
    assert [label.label for label in evaluation.summary.labels] == ["membrane", "cell"]


def test_an_undeclared_background_is_accepted(tmp_path: Path) -> None:
    references = save(tmp_path / "labels", a=cube(3))
    declare(tmp_path / "labels", labels={"3": "organ", "4": "other"})
    evaluation = evaluate_folders(save(tmp_path / "pred", a=cube(3)), references)
    assert [label.label for label in evaluation.summary.labels] == ["organ", "other"]


def test_labels_found_in_all_references_are_scored_without_a_declaration() -> None:
    pairs = [(volume(cube(4)), volume(cube(4))), (volume(cube(9)), volume(cube(9)))]
    evaluation = evaluate_pairs(pairs)
    assert [label.label for label in evaluation.summary.labels] == ["label_4", "label_9"]
    with pytest.raises(DataError, match="no label but 0"):
        evaluate_pairs([(volume(cube(0)), volume(cube(0)))])


@pytest.mark.slow
def test_instances_are_scored_as_one_label_and_the_page_says_so(tmp_path: Path) -> None:
    declare(tmp_path, labels={"background": 0, "cell": 1}, label_kind="instances")
    references = save(tmp_path / "labels", a=cube(3) + 200 * cube(1, 8, 3))
    predictions = save(tmp_path / "pred", a=(cube() | cube(1, 8, 3)).astype(np.uint8))
    evaluation = evaluate_folders(predictions, references)
    assert [label.label for label in evaluation.summary.labels] == ["cell"] and evaluation.summary.mean["dice"] == 1.0
    assert "object ids" in report_page(evaluation)


def test_ignored_voxels_are_not_scored(tmp_path: Path) -> None:
    declare(tmp_path, labels={"background": 0, "core": 1, "ignore": 2})
    reference = cube() + cube(2, 8, 3)
    evaluation = evaluate_folders(
        save(tmp_path / "pred", a=cube() + cube(1, 8, 3)), save(tmp_path / "labels", a=reference)
    )
    assert evaluation.summary.mean["dice"] == 1.0 and evaluation.summary.pixel_accuracy == 1.0


@pytest.mark.slow
def test_written_files_agree_with_the_scores(tmp_path: Path, data_set: Path) -> None:
    evaluation = evaluate_folders(save(tmp_path / "pred", a=cube(), b=np.roll(cube(), 1, 1), c=cube(5)), data_set)
    out = tmp_path / "out"
    write_evaluation(evaluation, out, tmp_path / "again.json")
    rows = list(csv.DictReader((out / "scores.csv").read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 6 and rows[2]["case"] == "b"
    assert float(rows[2]["dice"]) == pytest.approx(0.8) and float(rows[2]["hausdorff95_mm"]) == 1.0
    assert rows[3] | {"outcome": "absent", "dice": ""} == rows[3]
    record = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    assert record == json.loads((tmp_path / "again.json").read_text(encoding="utf-8"))
    assert record["summary"]["mean"]["dice"] == pytest.approx(evaluation.summary.mean["dice"])
    assert record["cases"]["b"]["labels"]["rim"]["dice"] is None and record["definitions"]
    assert record["label_table"] == {"names": {"background": 0, "core": 1, "rim": 5}, "ignore": 255, "kind": "classes"}


@pytest.mark.slow
def test_the_page_shows_worst_median_and_best_without_a_network(tmp_path: Path, data_set: Path) -> None:
    declare(data_set, labels={"background": 0, "<script>x</script>": 1, "rim": 5})
    evaluation = evaluate_folders(save(tmp_path / "pred", a=cube(), b=np.roll(cube(), 1, 1), c=cube(5)), data_set)
    page = report_page(evaluation)
    HTMLParser().feed(page)
    for role in ("worst case", "median case", "best case"):
        assert role in page
    assert "<script>x" not in page and "&lt;script&gt;x" in page
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("data:image/png;base64,") == 4


@pytest.mark.slow
def test_pictures_need_no_image(data_set: Path) -> None:
    pair = Pair("a", data_set / "labels" / "a.nii.gz", data_set / "labels" / "a.nii.gz", data_set / "dataset.json")
    assert "best case" in report_page(evaluate_pairs([pair]))


@pytest.mark.slow
def test_nothing_is_overwritten_unasked_and_nothing_half_written(tmp_path: Path) -> None:
    evaluation = evaluate_pairs([(volume(cube()), volume(cube()))])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.html").write_text("mine")
    with pytest.raises(OutputError, match=r"report\.html: exists already"):
        write_evaluation(evaluation, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.html"]
    write_evaluation(evaluation, tmp_path / "out", overwrite=True)
    assert len(list((tmp_path / "out").iterdir())) == 4


@pytest.mark.slow
def test_command_says_what_came_out_and_fails_with_a_case(tmp_path: Path, data_set: Path) -> None:
    predictions = save(tmp_path / "pred", a=cube(), b=cube())
    lines, failed = evaluate_command(
        predictions, data_set, tmp_path / "out", tmp_path / "s.json", EvaluateSettings(), False
    )
    assert failed and f"report: {tmp_path / 'out' / 'report.html'}" == lines[-1]
    assert (
        "mean Dice 0.500" in lines[1] and "1 missed" in lines[3] and any("c: no prediction" in line for line in lines)
    )
    with pytest.raises(OutputError, match="exists already"):
        evaluate_command(predictions, data_set, None, tmp_path / "s.json", EvaluateSettings(), False)
    save(predictions, c=cube(5))
    lines, failed = evaluate_command(predictions, data_set, None, None, EvaluateSettings(tolerance=2.0), False)
    assert not failed and "within 2 mm" in lines[1]


def test_a_case_without_any_structure_has_no_score_and_no_picture() -> None:
    table = table_from_names({"background": 0, "a": 1}, None)
    evaluation = evaluate_pairs([(volume(cube(0)), volume(cube(0)))], EvaluateSettings(labels=table))
    assert isnan(evaluation.summary.mean["dice"])
    assert "data:image" not in report_page(evaluation)


@pytest.mark.data
def test_real_references_against_themselves(real_data: Path) -> None:
    """Every reference of a real set is a perfect prediction of itself, whatever its labels and orientation."""
    for name in ("msd_hippocampus", "totalseg_mr", "isbi2012_em", "ctc_phc_u373"):
        labels = sorted(path for path in (real_data / name / "labels").iterdir() if not path.name.startswith("."))
        evaluation = evaluate_folders(labels[0], real_data / name)
        assert evaluation.summary.mean["dice"] == 1.0 and evaluation.summary.mean["hausdorff"] == 0.0
        image = next(iter(evaluation.pairs.values())).image
        assert image is not None and read_volume(image).shape == read_volume(labels[0]).shape
        assert evaluation.summary.pixel_accuracy == 1.0
