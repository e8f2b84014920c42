"""Monitoring of a training: `metrics.csv`, waiting times and memory."""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

Item = TypeVar("Item")


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
