"""Checkpoints: all that a resumed run needs, in a file that is loaded without running code.

`last.ckpt` is written beside its target and renamed; the one before it is kept as `last.previous.ckpt`, so a machine
that dies at any moment leaves at least one whole checkpoint.
"""

from __future__ import annotations

import errno
import io
import math
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from medunet.errors import ModelError
from medunet.learning.loop import Tally, TrainState
from medunet.system.files import written_aside

_FORMAT = 2
_ASKED = ("weight_decay", "betas", "momentum", "nesterov")
"""Entries of an optimiser's group that the config decides."""
_PLAIN = ("step", "epoch", "skip", "best", "rate", "progress")


@dataclass(frozen=True)
class RunTime:
    """Times of a run: seconds taken so far, over all its sessions, and minutes kept for its end (NaN if unknown)."""

    elapsed: float = 0.0
    reserve: float = math.nan


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's content; a resumed run must have the same `identity`, which is compared before it goes on.

    Attributes:
        note: why it is the generation before the last one; empty for the last one.
    """

    content: dict[str, Any]
    note: str = ""

    @property
    def identity(self) -> str:
        return str(self.content["identity"])

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return int(self.content["step"])

    @property
    def rate(self) -> float:
        """The learning rate of the last step."""
        return float(self.content["rate"])

    @property
    def time(self) -> RunTime:
        reserve = self.content["reserve"]
        return RunTime(float(self.content["elapsed"]), math.nan if reserve is None else float(reserve))

    @property
    def notes(self) -> dict[str, Any]:
        """Other plain values, as they were given to `save_checkpoint`."""
        return dict(self.content["notes"])

    def to_bytes(self) -> bytes:
        """The form in which one process sends it to others."""
        buffer = io.BytesIO()
        torch.save(self.content, buffer)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Checkpoint:
        return cls(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))

    def restore(self, state: TrainState) -> None:
        """Put everything back into a freshly made state.

        Raises:
            ModelError: the checkpoint belongs to another network.
        """
        try:
            state.network.load_state_dict(self.content["network"])
            _restore_optimiser(state.optimiser, self.content["optimiser"])
            if state.ema is not None and self.content["ema"] is not None:
                state.ema.load_state_dict(self.content["ema"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise ModelError(
                f"the checkpoint does not fit the config: {str(error).splitlines()[0]}\n"
                "resume with the config of the run, or start a new run in another folder"
            ) from error
        for name in _PLAIN:
            setattr(state, name, self.content[name])
        state.tally = Tally(**self.content["tally"])


def _restore_optimiser(optimiser: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Put the moments back. What the config says of each group may have changed since, and torch would put it back.

    The learning rate is the schedule's business, and what else stands in a group belongs to the moments: a fused
    optimiser has its steps on the device.
    """
    asked = [{key: group[key] for key in _ASKED if key in group} for group in optimiser.param_groups]
    optimiser.load_state_dict(saved)
    for group, settings in zip(optimiser.param_groups, asked, strict=True):
        group.update(settings)


def save_checkpoint(
    path: Path, state: TrainState, identity: str, notes: Mapping[str, Any] | None = None, time: RunTime = RunTime()
) -> None:
    """Write `path`; the file that was there before becomes the previous generation.

    Args:
        notes: plain values that a resumed run wants back.

    Raises:
        OutputError: the file cannot be written; the last checkpoint stays.
    """
    content = {
        "format": _FORMAT,
        "identity": identity,
        "notes": dict(notes or {}),
        "network": state.network.state_dict(),
        "optimiser": state.optimiser.state_dict(),
        "ema": None if state.ema is None else state.ema.state_dict(),
        "tally": asdict(state.tally),
        **{name: getattr(state, name) for name in _PLAIN},
        "elapsed": time.elapsed,
        "reserve": None if math.isnan(time.reserve) else time.reserve,
    }
    with written_aside(path, overwrite=True) as aside:
        try:
            torch.save(content, aside)
        except RuntimeError as error:  # torch's way to say that the disk is full, or failed
            raise OSError(
                errno.EIO, f"its writer gave up, {aside.stat().st_size if aside.exists() else 0:,} bytes in"
            ) from error
        if path.exists():
            path.replace(previous_of(path))


def previous_of(path: Path) -> Path:
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def has_checkpoint(path: Path) -> bool:
    """True if there is anything to load: `path`, or the generation before it."""
    return path.exists() or previous_of(path).exists()


def load_checkpoint(path: Path) -> Checkpoint:
    """Load `path` or, where it is missing or damaged, the generation before it, whose `note` says so.

    Each part of the file has a checksum, which is compared: a flipped bit is found.

    Raises:
        ModelError: neither can be loaded.
    """
    problems: list[str] = []
    for candidate in (path, previous_of(path)):
        if not candidate.exists():
            problems.append(f"{candidate.name} is missing")
            continue
        try:
            _require_whole(candidate)
            content = torch.load(candidate, map_location="cpu", weights_only=True)
            if not isinstance(content, dict) or content.get("format") != _FORMAT:
                problems.append(f"{candidate.name} is no checkpoint of this version")
                continue
            note = f"NOTE: {problems[0]}; going on from {candidate.name}, step {content['step']}" if problems else ""
            return Checkpoint(content, note)
        except zipfile.BadZipFile as error:
            problems.append(f"{candidate.name} is damaged ({error})")
        except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError) as error:
            problems.append(f"{candidate.name} cannot be loaded ({type(error).__name__})")
    raise ModelError(f"{path.parent}: nothing to resume from: {'; '.join(problems)}\nstart without --resume")


def _require_whole(path: Path) -> None:
    """Compare the checksums that torch writes and does not read."""
    with zipfile.ZipFile(path) as parts:
        wrong = parts.testzip()
    if wrong is not None:
        raise zipfile.BadZipFile(f"the checksum of its part {wrong} is wrong")
