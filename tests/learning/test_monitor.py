"""Progress lines, and how long items were waited for; all with clocks that the test moves."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from medunet.learning.monitor import MetricsFile, Waited, memory_used
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
