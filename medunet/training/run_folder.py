"""The run's folder: its files, and what may not be overwritten."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medunet.datasets.splits import SPLITS_FILE
from medunet.errors import ConfigError, ModelError, OutputError
from medunet.model import MODEL_FILE, REPORT_FILE
from medunet.system.progress import ProgressLine

CONFIG_FILE, CHECKPOINT, METRICS, EVENTS, REPORT = "config.yaml", "last.ckpt", "metrics.csv", "tensorboard", REPORT_FILE
PREPARED = "preprocessed"
RUN_FILES = (CONFIG_FILE, MODEL_FILE, CHECKPOINT, "last.previous.ckpt", METRICS, REPORT)
RUN_FOLDERS = (EVENTS, "validation", PREPARED)
"""All that a run writes into its folder, and all that replacing a run removes."""


@dataclass(frozen=True)
class TrainRequest:
    """The options of `medunet train`; `overrides` are `key.path=value`.

    Attributes:
        started: the reading of `time.monotonic` when the command was given: its minutes are counted from there.
        line: where progress and notes are shown; None is standard error.
        after_epoch: called after each epoch with its line of `metrics.csv`, as numbers.
        transforms: of patches, from Python; see `pipeline.augmentation_of`.
    """

    source: Path
    output: Path
    overrides: tuple[str, ...] = ()
    device: str = "auto"
    resume: bool = False
    overwrite: bool = False
    started: float = field(default_factory=time.monotonic)
    line: ProgressLine | None = None
    after_epoch: Callable[[dict[str, float]], object] | None = None
    transforms: Any = ()

    def shown(self, title: str) -> ProgressLine:
        """The line that was given, or one on standard error."""
        return self.line or ProgressLine(title)


def check_output(request: TrainRequest) -> None:
    """Refuse a folder that cannot be written, holds a run that nobody asked to replace, or holds foreign files.

    Raises:
        OutputError, ModelError: naming what is in the way.
    """
    folder = request.output
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"-o {folder}: is a file; give a folder for the run")
    is_run = (folder / CONFIG_FILE).exists()
    taken = [name for name in (*RUN_FILES, *RUN_FOLDERS) if (folder / name).exists()]
    if taken and not is_run:
        raise OutputError(f"-o {folder}: holds {taken[0]}, but no run that could be replaced; choose another folder")
    if is_run and not (request.resume or request.overwrite):
        raise OutputError(
            f"-o {folder}: holds a run already\n"
            "say --resume to go on with it, --overwrite to replace it, or choose another folder"
        )
    if request.resume and not is_run:
        raise ModelError(f"-o {folder}: holds no run to resume; start without --resume")
    if not request.source.exists():
        raise ConfigError(f"{request.source}: no such file or folder; give a config or a data set")
    probe = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not probe.is_dir() or not os.access(probe, os.W_OK):
        raise OutputError(f"-o {folder}: cannot be written ({probe} is no folder that may be written to)")


def require_no_folds(folder: Path) -> None:
    """Refuse (`OutputError`) a single run where a cross-validation is."""
    if (folder / SPLITS_FILE).exists():
        raise OutputError(
            f"-o {folder}: holds a cross-validation\n"
            "say --fold all as well to go on with it or to replace it, or choose another folder"
        )


def clear_run(folder: Path, keep: str = "") -> None:
    """Remove the files and folders of a run, except the one to keep.

    The config goes last: what is left where the program is killed is still known as a run.
    """
    for name in RUN_FOLDERS:
        if name != keep:
            shutil.rmtree(folder / name, ignore_errors=True)
    for name in reversed(RUN_FILES):
        (folder / name).unlink(missing_ok=True)
