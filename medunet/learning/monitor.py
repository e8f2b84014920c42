"""What a training shows of itself: a progress bar or plain lines, `metrics.csv`, and TensorBoard."""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm


class ProgressLine:
    """A bar with loss, speed and time left on a terminal; a plain line now and then where there is none.

    Progress is a share of the whole between 0 and 1, because a run may be measured in minutes rather than steps.
    """

    def __init__(self, title: str, seconds_between_lines: float = 30.0) -> None:
        self._bar = tqdm(
            total=1000, desc=title, disable=not sys.stderr.isatty(), leave=False,
            bar_format="{desc} {percentage:3.0f} %|{bar}| {elapsed}<{remaining} {postfix}",
        )  # fmt: skip
        self._title, self._pause = title, seconds_between_lines
        self._started = self._last = time.monotonic()

    def update(self, share: float, text: str) -> None:
        if not self._bar.disable:
            self._bar.n = round(1000 * share)
            self._bar.set_postfix_str(text)
            return
        now = time.monotonic()
        if now - self._last >= self._pause:
            self._last = now
            left = f"  {(now - self._started) * (1 - share) / share / 60:.1f} min left" if 0 < share < 1 else ""
            print(f"{self._title} {100 * share:3.0f} %  {text}{left}", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """A line that stays, above the bar."""
        tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        self._bar.close()


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


class Board:
    """TensorBoard events: scalars, text and pictures. Case names are the only names that appear in it."""

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=purge_step)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def text(self, name: str, text: str) -> None:
        self._writer.add_text(name, f"```\n{text}\n```")

    def picture(self, name: str, rgb: NDArray[np.uint8], step: int) -> None:
        """`(rows, columns, 3)` uint8."""
        self._writer.add_image(name, rgb, step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()
