"""The record and the summary of a prediction: what became of each scan."""

from __future__ import annotations

import platform
import resource
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from medunet.errors import is_out_of_memory
from medunet.prediction.jobs import Outcome
from medunet.prediction.segmenter import Segmenter
from medunet.transforms.postprocess import PostStep
from medunet.version import __version__


@dataclass
class Summary:
    """The outcome of each scan: lines for people, records for programs, cases that failed and why."""

    lines: list[str] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def note(self, case: str, outcome: Outcome) -> None:
        """Note what became of a scan."""
        if isinstance(outcome, BaseException):
            self._fail(case, outcome)
        else:
            self.lines += outcome.lines
            self.records.append(outcome.record)

    def _fail(self, case: str, error: BaseException) -> None:
        """Note a scan that could not be segmented; the others go on."""
        text = f"{case}: {error}" if case not in str(error) else str(error)
        if is_out_of_memory(error):
            text = f"{case}: out of memory; use a smaller --memory, or another --device"
        self.failed.append(case)
        self.errors.append(text)
        self.records.append({"case": case, "error": text})


def record(segmenter: Segmenter, steps: Sequence[PostStep], summary: Summary, seconds: float) -> dict[str, Any]:
    """The content of `--record`: models, settings, machine, and every scan."""
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "medunet": __version__,
        "models": [
            {"path": str(model.path), "sha256": model.checksum, "name": model.card.name} for model in segmenter.models
        ],
        "settings": asdict(segmenter.settings),
        "postprocess": [asdict(step) for step in steps],
        "device": segmenter.execution.device,
        "precision": str(segmenter.execution.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "seconds": round(seconds, 3),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        "cases": summary.records,
    }
