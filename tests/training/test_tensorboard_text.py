"""What TensorBoard says about a run in words and numbers."""

from __future__ import annotations

import numpy as np
import pytest

from medunet.config import Config, annotated_yaml, parse_config
from medunet.evaluation.scorecard import Scorecard
from medunet.metrics.case import CaseScores, score_case
from medunet.metrics.objects import count_objects
from medunet.metrics.summary import summarise
from medunet.training.tensorboard_text import final_scores, hyper_parameters, plan_notes, score_markdown


def test_the_plan_says_each_value_with_its_reason() -> None:
    notes = {
        "patches.size": "of a median scan",
        "network.kernels": "1 along coarse axes",
        "training.minutes": "as asked",
    }
    text = annotated_yaml(Config(), notes, "planned by medunet for balls")
    found = plan_notes(text)
    assert found.startswith("planned by medunet for balls\n")
    assert "- **patches.size** = `[64, 64, 64]`: of a median scan" in found
    assert [line.split("**")[1] for line in found.splitlines() if "**" in line] == [
        "network.kernels", "patches.size", "training.minutes",
    ]  # fmt: skip
    assert plan_notes("a: 1\nb:\n- c: 2\n") == ""


def test_hyper_parameters_have_the_same_names_and_types_in_every_run() -> None:
    plain = hyper_parameters(Config())
    other = parse_config(
        "training: {minutes: 15, ema: 0}\nnetwork: {channels: [8, 16], deep_supervision: true}\n"
        "patches: {size: [8, 8, 8]}",
        "test",
    ).config
    changed = hyper_parameters(other)
    assert {key: type(value) for key, value in plain.items()} == {key: type(value) for key, value in changed.items()}
    assert (plain["length"], changed["length"]) == ("100 x 100 steps", "15 minutes")
    assert (changed["network.channels"], changed["network.deep_supervision"]) == ("8 16", "true")


def test_final_scores_are_those_of_the_card() -> None:
    truth, found = np.zeros((2, 6, 6, 6), np.uint8)
    truth[1:4, 1:4, 1:4] = found[1:4, 1:4, 2:5] = 1
    scores = score_case(found, truth, (1.0, 1.0, 2.0), {"a|b": 1, "none": 2})
    cases = (CaseScores("case", tuple(scores), 0.9, 1.0),)
    card = Scorecard("t", cases, summarise(cases), "mm")
    final = final_scores(card)
    assert final["final/Dice"] == 2 / 3 and final["final/HD95 (mm)"] == 2.0
    table = score_markdown(card).splitlines()
    assert table[0] == "| label | cases | Dice | IoU | Surface Dice | HD95 (mm) | ASSD (mm) |"
    assert table[2].startswith("| a\\|b | 1 | 0.667 | 0.500 |")
    assert table[3] == "| none | 0 | – | – | – | – | – |"
    assert len(table) == 4 and not [tag for tag in final if "objects" in tag]


def test_final_scores_of_objects_are_pooled_and_by_image() -> None:
    """Three of four objects are found in all, half of one image's and both of the other's."""
    truth = np.zeros((10, 10), np.uint16)
    truth[1:4, 1:4], truth[6:9, 6:9] = 5, 9
    half = np.where(truth == 5, 1, 0).astype(np.uint16)
    cases = tuple(
        CaseScores(name, tuple(score_case(found > 0, truth > 0, (1.0, 1.0), {"cell": 1})), 0.9, 1.0,
                   objects=count_objects(found, truth))
        for name, found in (("a", half), ("b", truth))
    )  # fmt: skip
    card = Scorecard("t", cases, summarise(cases), "um")
    final = final_scores(card)
    objects = {tag: value for tag, value in final.items() if tag.startswith("final objects/")}
    assert objects == {
        f"final objects/{title}": pytest.approx(value)
        for title, value in {
            "SEG": 0.75, "DET": 0.75, "AP50": 0.75, "AP75": 0.75, "mAP": 0.75, "PQ": 6 / 7, "SQ": 1, "RQ": 6 / 7,
            "F1": 6 / 7, "Precision": 1, "Recall": 0.75,
        }.items()
    }  # fmt: skip
    assert next(iter(final)) == "final/Dice"
    table = score_markdown(card).split("\n\n")[1].splitlines()
    assert table[0].startswith("| objects | SEG | DET | AP50 |")
    assert table[2].startswith("| pooled | 0.750 |") and "| 0.857 |" in table[2] and "| 0.833 |" in table[3]
