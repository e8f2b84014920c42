"""Monitoring of a training: `metrics.csv`, TensorBoard, waiting times and memory."""

from __future__ import annotations

import csv
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

Item = TypeVar("Item")
_FINAL = ".final"
_TWENTIETHS = np.linspace(0, 1, 21)


class Waited(Generic[Item]):
    """Items that are passed on; `seconds` says how long they have been waited for."""

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


class TensorBoardWriter:
    """TensorBoard events of one run: curves, pictures, histograms, texts, and the final scores.

    Everything lies in one folder, which is one run to TensorBoard. A run that goes on takes back what lies after the
    step it goes on from; what was written at its end lies in a file of its own, which is removed then.

    Args:
        folder: of the events; made if it is missing.
        resumed_at: the step of the checkpoint that the run goes on from; None for a new run.
    """

    def __init__(self, folder: Path, resumed_at: int | None = None) -> None:
        self._folder = folder
        for path in folder.glob(f"events.*{_FINAL}"):
            path.unlink()
        # The checkpoint's own step stands; TensorBoard drops this step and all after it. A new run says where it starts
        # as well: TensorBoard takes the first start that it sees for no restart.
        self._writer = _writer(folder, 0 if resumed_at is None else resumed_at + 1)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """One point per name; values that do not exist (NaN) have none."""
        for name, value in values.items():
            if not math.isnan(value):
                self._writer.add_scalar(name, value, step)

    def text(self, name: str, text: str, step: int, code: bool = False) -> None:
        """A text in Markdown, or as plain code."""
        self._writer.add_text(name, f"```\n{text}\n```" if code else text, step)

    def pictures(self, name: str, pictures: Sequence[NDArray[np.uint8]], step: int) -> None:
        """Pictures `(rows, columns, 3)` uint8 as `name 1`, `name 2`, …: one slider each through the training."""
        for number, rgb in enumerate(pictures, start=1):
            self._writer.add_image(f"{name} {number}", rgb, step, dataformats="HWC")

    def shares(self, values: Mapping[str, Sequence[float]], step: int) -> None:
        """Histograms of numbers from 0 to 1, in twentieths; names without a number are left out."""
        for name, found in values.items():
            known = np.array([value for value in found if not math.isnan(value)])
            if known.size:
                self._writer.add_histogram(name, known, step, bins=_TWENTIETHS)

    def close(self) -> None:
        self._writer.close()

    def final(
        self, settings: Mapping[str, float | str], scores: Mapping[str, float], texts: Mapping[str, str], step: int
    ) -> None:
        """Close the events with the run's hyper-parameters and its final scores.

        Args:
            settings: hyper-parameters; the same names in every run, so that runs can stand in one table.
            scores: by tag, such as `final/dice`; they are scalars and columns of the table.
            texts: Markdown by name.
        """
        from torch.utils.tensorboard.summary import hparams

        self.close()
        known = {name: value for name, value in scores.items() if not math.isnan(value)}
        writer = _writer(self._folder, suffix=_FINAL)
        # `add_hparams` would write them into a folder of its own, as a second run.
        for summary in hparams(dict(settings), dict(scores)):
            writer.file_writer.add_summary(summary, step)
        for name, value in known.items():
            writer.add_scalar(name, value, step)
        for name, text in texts.items():
            writer.add_text(name, text, step)
        writer.close()


def _writer(folder: Path, purge_step: int | None = None, suffix: str = "") -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=purge_step, filename_suffix=suffix)
