"""TensorBoard's events, read back as TensorBoard reads them."""

from __future__ import annotations

from math import nan
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from medunet.learning.tensorboard import TensorBoardWriter


def read(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder), {"tensors": 0, "images": 0, "scalars": 0, "histograms": 0})
    found.Reload()
    return found


def steps(events: EventAccumulator, kind: str, name: str) -> list[int]:
    return [event.step for event in getattr(events, kind)(name)]


def picture(grey: int) -> np.ndarray:
    return np.full((5, 7, 3), grey, np.uint8)


def written(writer: TensorBoardWriter, first: int, last: int) -> None:
    """All kinds of events at the steps from first to last."""
    for step in range(first, last + 1):
        writer.scalars({"loss/step": step / 10, "loss/none": nan}, step)
        writer.pictures("worst", [picture(step), picture(200)], step)
        writer.shares({"dice/all": [0.07, 0.93, 0.97, nan], "dice/none": [nan]}, step)
        writer.text("config", f"step {step}", step)


def test_every_kind_of_event_reads_back(tmp_path: Path) -> None:
    writer = TensorBoardWriter(tmp_path)
    written(writer, 1, 2)
    writer.close()
    events = read(tmp_path)
    tags = events.Tags()
    assert tags["scalars"] == ["loss/step"] and sorted(tags["images"]) == ["worst 1", "worst 2"]
    assert [event.value for event in events.Scalars("loss/step")] == pytest.approx([0.1, 0.2])
    assert tags["histograms"] == ["dice/all"], "a label without a number has no histogram"
    shown = events.Histograms("dice/all")[0].histogram_value
    in_bins = dict(zip(np.round(shown.bucket_limit, 2), shown.bucket, strict=True))
    assert sum(shown.bucket) == 3 and in_bins[1.0] == in_bins[0.1] == 1
    assert events.Tensors("config/text_summary")[1].tensor_proto.string_val == [b"step 2"]


def test_a_resumed_run_shows_each_step_once_and_in_order(tmp_path: Path) -> None:
    """The first run got to step 9 and was killed; its checkpoint is of step 6, whose own points stand."""
    first = TensorBoardWriter(tmp_path)
    written(first, 1, 9)
    first.final({"rate": 0.1}, {"final/dice": 0.5}, {"final": "first end"}, 9)
    resumed = TensorBoardWriter(tmp_path, resumed_at=6)
    written(resumed, 7, 8)
    resumed.close()
    events = read(tmp_path)
    for kind, name in (("Scalars", "loss/step"), ("Images", "worst 1"), ("Histograms", "dice/all")):
        assert steps(events, kind, name) == [1, 2, 3, 4, 5, 6, 7, 8], name
    # What the server itself reads with: texts as well, and no purge unless two sessions say that they start.
    served = plugin_event_accumulator.EventAccumulator(str(tmp_path), {"tensors": 0})
    served.Reload()
    for name in ("config/text_summary", "loss/step", "worst 2", "dice/all"):
        assert steps(served, "Tensors", name) == [1, 2, 3, 4, 5, 6, 7, 8], name
    assert "final/dice" not in events.Tags()["scalars"], "the end that was gone on from is no end any more"


def test_hyper_parameters_stand_with_the_final_score_of_the_last_end(tmp_path: Path) -> None:
    writer = TensorBoardWriter(tmp_path)
    writer.final({"rate": 0.1, "length": "1 x 2 steps"}, {"final/dice": 0.5, "final/iou": nan}, {}, 3)
    writer = TensorBoardWriter(tmp_path, resumed_at=3)
    writer.final({"rate": 0.1, "length": "2 x 2 steps"}, {"final/dice": 0.6, "final/iou": nan}, {"final": "| a |"}, 6)
    events = read(tmp_path)
    assert [(e.step, round(e.value, 3)) for e in events.Scalars("final/dice")] == [(6, 0.6)]
    found = events.PluginTagToContent("hparams")
    start = metadata.parse_session_start_info_plugin_data(found[metadata.SESSION_START_INFO_TAG])
    assert start.hparams["length"].string_value == "2 x 2 steps"
    assert start.hparams["rate"].number_value == pytest.approx(0.1)
    experiment = metadata.parse_experiment_plugin_data(found[metadata.EXPERIMENT_TAG])
    assert [info.name.tag for info in experiment.metric_infos] == ["final/dice", "final/iou"]
    assert metadata.SESSION_END_INFO_TAG in found
    assert [path.is_file() for path in tmp_path.iterdir()] == [True] * 3, "no folder of its own, which would be a run"
