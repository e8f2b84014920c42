"""What helps out of fold is chosen, what hurts is refused, and the figures are those of a plain count."""

from __future__ import annotations

import json

import numpy as np
import pytest

from medunet.datasets.labels import table_from_names
from medunet.evaluation.pairs import Pair
from medunet.evaluation.postselection import FEWEST, MARGIN, Selection, choose_postprocessing
from medunet.transforms.postprocess import PostStep, postprocess
from medunet.volume import Volume

TABLE = table_from_names({"background": 0, "liver": 7, "spots": 32}, None)
SHAPE = (24, 24, 12)


def truth(number: int) -> np.ndarray:
    """A liver and two spots, away from each other and from the corners."""
    array = np.zeros(SHAPE, np.uint8)
    array[6 : 14 + number % 3, 6:14, 2:9] = 7
    array[18:21, 3:6, 3:6] = array[18:22, 16:19, 3:6] = 32
    return array


def chosen(predict: object, cases: int = 4, table: object = TABLE, unit: str = "mm") -> Selection:
    pairs = []
    for number in range(cases):
        reference = truth(number)
        prediction = reference.copy()
        predict(prediction, number)  # type: ignore[operator]
        affine = np.diag([0.5, 0.5, 2.0, 1.0])
        pairs.append(
            Pair(f"case_{number}", Volume(prediction[None], affine, unit), Volume(reference[None], affine, unit))
        )
    return choose_postprocessing(pairs, table)  # type: ignore[arg-type]


def islands(prediction: np.ndarray, number: int) -> None:
    prediction[0:5, 0:5, 10:12] = 7


def hole(prediction: np.ndarray, number: int) -> None:
    prediction[8:11, 8:11, 4:7] = 0


def specks(prediction: np.ndarray, number: int) -> None:
    prediction[0, 0:22:2, 11] = 32


def test_a_perfect_prediction_is_left_alone() -> None:
    selection = chosen(lambda prediction, number: None)
    assert selection.steps == () and len(selection.trials) > 4
    assert "none of" in selection.lines()[0]


def test_islands_far_from_the_liver_go_by_its_largest_component() -> None:
    selection = chosen(islands)
    assert selection.steps == (PostStep("keep_largest", "liver"),)
    assert selection.before["liver"] < selection.after["liver"] == 1.0 == selection.after["spots"]
    refused = [trial for trial in selection.trials if trial.step == PostStep("keep_largest", "spots")]
    assert len(refused) == 1 and not refused[0].chosen and refused[0].gain == pytest.approx(2 * 36 / (36 + 63) - 1)
    together = selection.trials[0]
    assert together.step == PostStep("keep_largest") and not together.chosen, "it would take the spots away"
    assert together.dice["spots"] == 0


def test_all_foreground_together_where_no_label_loses_by_it() -> None:
    """Two labels that touch, and islands of both far away."""

    def predict(prediction: np.ndarray, number: int) -> None:
        islands(prediction, number)
        prediction[0:3, 20:23, 0:3] = 32

    table = table_from_names({"background": 0, "liver": 7, "spots": 32}, None)
    pairs = []
    for number in range(3):
        reference = truth(number)
        reference[reference == 32] = 0
        reference[6:9, 14:17, 2:6] = 32
        prediction = reference.copy()
        predict(prediction, number)
        pairs.append(Pair(f"case_{number}", Volume(prediction[None]), Volume(reference[None])))
    selection = choose_postprocessing(pairs, table)
    assert selection.steps == (PostStep("keep_largest"),)
    assert selection.after == {"liver": 1.0, "spots": 1.0}


def test_holes_are_filled_and_specks_removed_in_the_scans_unit() -> None:
    def predict(prediction: np.ndarray, number: int) -> None:
        hole(prediction, number)
        specks(prediction, number)

    selection = chosen(predict)
    assert PostStep("fill_holes", "liver") in selection.steps and selection.after == {"liver": 1.0, "spots": 1.0}
    (small,) = [step for step in selection.steps if step.action == "remove_small"]
    # The smaller spot has 27 voxels of half a cubic millimetre, a speck one.
    assert small.label == "spots" and small.unit == "mm" and 0.5 < small.size <= 13.5
    record = json.loads(json.dumps(selection.record(), allow_nan=False))
    assert [PostStep(**step) for step in record["steps"]] == list(selection.steps)
    assert sum(trial["chosen"] for trial in record["tried"]) == len(selection.steps) and record["margin"] == MARGIN


@pytest.mark.slow
def test_steps_follow_each_other_for_one_label() -> None:
    def predict(prediction: np.ndarray, number: int) -> None:
        hole(prediction, number)
        islands(prediction, number)

    assert set(chosen(predict).steps) == {PostStep("keep_largest", "liver"), PostStep("fill_holes", "liver")}


def test_what_helps_one_case_and_hurts_the_others_is_refused() -> None:
    """The liver of the others is cut in two by a gap, and the largest component is half of it."""

    def predict(prediction: np.ndarray, number: int) -> None:
        if number == 0:
            islands(prediction, number)
        else:
            prediction[9:11] = np.where(prediction[9:11] == 7, 0, prediction[9:11])

    actions = {step.action for step in chosen(predict).steps if step.label == "liver"}
    assert "keep_largest" not in actions


def test_a_gain_within_the_margin_is_no_reason() -> None:
    def predict(prediction: np.ndarray, number: int) -> None:
        if number == 0:
            prediction[0, 0, 0] = 7

    selection = chosen(predict)
    gain = next(trial.gain for trial in selection.trials if trial.step == PostStep("keep_largest", "liver"))
    assert 0 < gain < MARGIN and selection.steps == ()


@pytest.mark.slow
def test_the_figures_are_those_of_applying_the_steps_to_whole_maps() -> None:
    """Trials look at bounding boxes only; this does not."""
    random = np.random.default_rng(0)

    def predict(prediction: np.ndarray, number: int) -> None:
        noise = random.random(SHAPE)
        prediction[noise < 0.05] = 7
        prediction[noise > 0.9] = 0
        kept.append(prediction)

    kept: list[np.ndarray] = []
    selection = chosen(predict)
    assert selection.trials
    assert PostStep("keep_largest") not in selection.steps
    # The first round, before anything was chosen.
    first = {trial.step: trial for trial in reversed(selection.trials) if trial.step.label}
    assert len(first) >= 6
    for trial in first.values():
        scores = []
        for number, prediction in enumerate(kept):
            result, value = prediction[None].copy(), TABLE.values[TABLE.names.index(str(trial.step.label))]
            postprocess(result, Volume(result, np.diag([0.5, 0.5, 2.0, 1.0])), TABLE, [trial.step])
            one, two = result[0] == value, truth(number) == value
            scores.append(2 * np.sum(one & two) / (one.sum() + two.sum()))
        assert trial.dice[str(trial.step.label)] == pytest.approx(np.mean(scores))


def test_objects_are_one_label_without_a_largest_component() -> None:
    table = table_from_names({"background": 0, "cell": 1}, None, "instances")

    def predict(prediction: np.ndarray, number: int) -> None:
        prediction[:] = prediction > 0
        prediction[0, 0:22:2, 11] = 1

    selection = chosen(predict, table=table, unit="um")
    assert {step.action for step in selection.steps} == {"remove_small"}
    assert all(trial.step.action != "keep_largest" for trial in selection.trials)
    assert selection.after == {"cell": 1.0}


def test_few_cases_and_no_background_choose_nothing() -> None:
    assert f"{FEWEST} are needed" in chosen(islands, cases=2).lines()[0]
    table = table_from_names({"a": 0, "b": 7, "c": 32}, None)
    assert "no background" in chosen(islands, table=table).reason


@pytest.mark.slow
def test_a_label_that_nobody_has_is_not_a_reason_to_fail() -> None:
    table = table_from_names({"background": 0, "liver": 7, "spots": 32, "spleen": 40}, None)
    selection = chosen(islands, table=table)
    assert selection.steps == (PostStep("keep_largest", "liver"),)
    assert selection.record()["dice_before"]["spleen"] is None
