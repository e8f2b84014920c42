"""What a training shows of itself while it runs: a progress bar or plain lines, `metrics.csv`, times and memory."""

from __future__ import annotations

import csv
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, TextIO, TypeVar

import torch
from tqdm import tqdm

from medunet.learning.schedule import Progress

Item = TypeVar("Item")

_REFRESH = 0.1
"""Seconds between two pictures of the bar."""


class ProgressLine:
    """A bar with loss, speed and time left on a terminal; a plain line now and then where there is none.

    Progress is a share of the whole between 0 and 1, because a run may be measured in minutes rather than steps.

    Args:
        title: first word of every line.
        seconds_between_lines: where there is no terminal.
        clock: seconds that never run backwards.
        stream: where to; None is standard error.
    """

    def __init__(
        self,
        title: str,
        seconds_between_lines: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        stream: TextIO | None = None,
    ) -> None:
        self._stream = stream or sys.stderr
        # The text stands where tqdm has its description: its postfix begins with a comma.
        self._bar = tqdm(
            total=1000, disable=not self._stream.isatty(), leave=False, file=self._stream, dynamic_ncols=True,
            bar_format=title + " {percentage:3.0f} %|{bar:10}| {desc}",
        )  # fmt: skip
        self._title, self._pause, self._clock = title, seconds_between_lines, clock
        self._shown = not self._bar.disable
        self._last = clock() if not self._shown else -math.inf

    def update(self, share: float, text: str, left: float | None = None) -> None:
        """Show where the work is.

        Args:
            left: seconds until all is done, where that is known.
        """
        text += "" if left is None else f", {duration(left)} left"
        now = self._clock()
        if now - self._last < (_REFRESH if self._shown else self._pause):
            return
        self._last = now
        if self._shown:
            self._bar.n = round(1000 * share)
            self._bar.set_description_str(text)
        else:
            print(f"{self._title} {100 * share:3.0f} %  {text}", file=self._stream, flush=True)

    def say(self, text: str) -> None:
        """A line that stays, above the bar."""
        tqdm.write(text, file=self._stream)

    def close(self) -> None:
        self._bar.close()


def duration(seconds: float) -> str:
    """A length of time for people: `40 s`, `12 min`, `3 h 05 min`."""
    if seconds < 100:
        return f"{max(seconds, 0):.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


class TimeLeft:
    """How long a training will go on: by the clock where it is measured in minutes, by its pace so far in steps.

    Args:
        clock: of the run.
        step: steps that were done before the pace is taken.
    """

    def __init__(self, clock: Progress, step: int) -> None:
        self._step, self._elapsed = step, clock.elapsed()

    def seconds(self, clock: Progress, step: int) -> float | None:
        """Seconds until the last step; None while there is no pace yet."""
        if clock.minutes is not None:
            return max(60 * clock.minutes - clock.elapsed(), 0.0)
        assert clock.max_steps is not None
        if step <= self._step:
            return None
        return (clock.elapsed() - self._elapsed) / (step - self._step) * max(clock.max_steps - step, 0)


class Waited(Generic[Item]):
    """Passes items on and measures how long they were waited for; `seconds` since this was made."""

    def __init__(self, items: Iterable[Item], clock: Callable[[], float] = time.monotonic) -> None:
        self._items, self._clock = items, clock
        self.seconds = 0.0

    def __iter__(self) -> Iterator[Item]:
        started = self._clock()
        for item in self._items:
            self.seconds += self._clock() - started
            yield item
            started = self._clock()


def memory_used(device: torch.device) -> dict[str, float]:
    """GiB by tag: of this process in main memory where Linux says so, and the most it had of a GPU."""
    found = {}
    statm = Path("/proc/self/statm")
    if statm.exists():
        found["memory/process GiB"] = int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**30
    if device.type == "cuda":
        found["memory/GPU peak GiB"] = torch.cuda.max_memory_allocated(device) / 2**30
    return found


class MetricsFile:
    """`metrics.csv`: one line per epoch. On a resume, lines after the epoch that is resumed from are dropped."""

    def __init__(self, path: Path, columns: list[str], resume_epoch: int = 0) -> None:
        self._path, self._columns = path, columns
        kept = [row for row in self.rows() if int(row["epoch"]) <= resume_epoch] if path.exists() else []
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore", restval="")
            writer.writeheader()
            writer.writerows(kept)

    def add(self, row: Mapping[str, Any]) -> None:
        with self._path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns, restval="").writerow(
                {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()}
            )

    def rows(self) -> list[dict[str, str]]:
        with self._path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
