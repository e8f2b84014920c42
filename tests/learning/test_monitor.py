"""Monitoring: progress lines and waiting with clocks that the test moves; events as TensorBoard reads them."""

from __future__ import annotations

import io
from dataclasses import dataclass
from math import nan
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from medunet.learning.monitor import MetricsFile, TensorBoardWriter, Waited, memory_used
from medunet.system.progress import ProgressLine
from medunet.system.wording import duration


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_come_now_and_then() -> None:
    clock, out = Clock(), io.StringIO()
    line = ProgressLine("train", 30, clock, out)
    for _ in range(100):
        clock.now += 1
        line.update(0.25, "epoch 1, loss 0.500", 200.0)
    assert out.getvalue().splitlines() == ["train  25 %  epoch 1, loss 0.500, 3 min left"] * 3


def test_a_terminal_shows_a_bar_with_loss_speed_and_time_left() -> None:
    clock, out = Clock(), Terminal()
    line = ProgressLine("train", 30, clock, out)
    line.update(0.5, "epoch 3, loss 0.512, 0.15 s/it, best 0.8354", 75)
    line.close()
    shown = out.getvalue()
    assert "train  50 %|#####     | epoch 3, loss 0.512, 0.15 s/it, best 0.8354, 75 s left" in shown
    assert shown.endswith("\r"), "the bar goes when the work is done"


@pytest.mark.parametrize(
    ("seconds", "text"), [(-3, "0 s"), (99, "99 s"), (130, "2 min"), (5900, "98 min"), (11100, "3 h 05 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_waiting_is_what_the_source_takes_and_not_what_is_done_with_the_items() -> None:
    clock = Clock()

    def slow() -> object:
        for item in "abc":
            clock.now += 2
            yield item

    items = Waited(slow(), clock)
    seen = []
    for item in items:
        seen.append(item)
        clock.now += 100
    assert seen == ["a", "b", "c"] and items.seconds == 6


def test_memory_of_this_process_is_seen() -> None:
    before = memory_used(torch.device("cpu")).get("memory/process GiB")
    if before is None:
        pytest.skip("only Linux shows a process' memory in /proc")
    held = torch.ones(2**26)  # 256 MiB, written to
    assert memory_used(torch.device("cpu"))["memory/process GiB"] - before == pytest.approx(0.25, abs=0.05)
    assert held[-1] == 1


def test_metrics_of_a_resumed_run_go_on_after_the_epoch_that_is_gone_on_from(tmp_path: Path) -> None:
    """A run of an older version has fewer columns, which stay empty."""
    path = tmp_path / "metrics.csv"
    old = MetricsFile(path, ["epoch", "loss"])
    for epoch in (1, 2, 3):
        old.add({"epoch": epoch, "loss": 1 / epoch})
    new = MetricsFile(path, ["epoch", "loss", "patches_per_second"], resume_epoch=2)
    new.add({"epoch": 3, "loss": 0.25, "patches_per_second": 12.5})
    assert [(row["epoch"], row["loss"], row["patches_per_second"]) for row in new.rows()] == [
        ("1", "1", ""), ("2", "0.5", ""), ("3", "0.25", "12.5"),
    ]  # fmt: skip


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
