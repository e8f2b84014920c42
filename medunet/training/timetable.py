"""Timetable of a run: its length, the time that is over and left, when to validate, and the time kept for its end."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from typing import Any

from medunet.config import Config, TrainingSettings, to_plain
from medunet.errors import ConfigError
from medunet.learning.checkpoint import Checkpoint, RunTime
from medunet.learning.distributed import World
from medunet.learning.schedules import ResumePoint

_LARGEST_RESERVE = 0.4
"""Share of its minutes that a run keeps for its end at most."""


class Timetable:
    """The one owner of a run's time: seconds, over all sessions of the run.

    Args:
        config: says how long the run lasts, in minutes or in epochs.
        started: the clock's reading when this session began.
        checkpoint: of the run that is resumed; None for a new run.
        epochs_apart: epochs from one validation to the next, in a run that is measured in epochs.
        clock: seconds that never run backwards.

    Attributes:
        resumed: the point from which the run goes on with another length; None for a run that keeps its first one.
        ending: seconds that are expected from the last step to the end of the command.

    Raises:
        ConfigError: a resumed run has already gone on for longer than it is now to last.
    """

    def __init__(
        self,
        config: Config,
        started: float,
        checkpoint: Checkpoint | None = None,
        epochs_apart: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        training = config.training
        before = checkpoint.time if checkpoint else RunTime()
        self._config, self._epochs_apart, self._clock, self._started = config, epochs_apart, clock, started
        self._before, self._saved, self._reserve = before.elapsed, before.elapsed, before.reserve
        self._by_clock = training.minutes is not None
        self._minutes, self._steps = training.minutes or 0.0, training.epochs * training.iterations
        self._validation, self._validated_at = 0.0, started
        self.ending = 60 * self._minutes - self._training_seconds()
        self._first = checkpoint.step if checkpoint else 0, self.elapsed()
        self.resumed = self._resume_point(checkpoint) if checkpoint else None

    def elapsed(self) -> float:
        """Seconds that the run has taken until now."""
        return self._before + self._clock() - self._started

    def share(self, step: int) -> float:
        """The share of the run that is over after `step` steps, from 0 to 1, by the clock of this process."""
        if self._by_clock:
            return min(self.elapsed() / self._training_seconds(), 1.0)
        return min(step / self._steps, 1.0)

    def common_share(self, step: int, world: World) -> float:
        """The same in all processes, each of which must ask; the first one's clock decides."""
        if self._by_clock:
            return world.highest(self.share(step) if world.leads else 0.0)
        return self.share(step)

    def left(self, step: int) -> float:
        """Seconds until the last step, in a run of epochs by the pace of this session; NaN before its first step."""
        if self._by_clock:
            return max(self._training_seconds() - self.elapsed(), 0.0)
        first, elapsed = self._first
        if step <= first:
            return math.nan
        return (self.elapsed() - elapsed) / (step - first) * max(self._steps - step, 0)

    def validation_due(self, step: int, epoch: int) -> bool:
        """True after the first epoch, at the end, and in between as often as the allowed share of the time permits.

        The clock has no say where a run is measured in epochs: it would change from one run to the next, and with each
        resume, which models are compared, and so which one is kept.
        """
        if self.share(step) >= 1:
            return True
        if not self._by_clock:
            return epoch == 1 or epoch % self._epochs_apart == 0
        share = self._config.training.validation_share
        apart = self._validation * (1 - share) / share
        # Not shortly before the end, where a validation comes anyway.
        return apart == 0 or (self._clock() - self._validated_at >= apart and self.left(step) >= apart)

    def validated(self, seconds: float, ending: float) -> None:
        """Note a validation's end, and keep time for the run's, so that its minutes are kept and none is wasted.

        Args:
            seconds: that the validation took.
            ending: see the attribute, as it is known now.
        """
        self._validation, self._validated_at, self.ending = seconds, self._clock(), ending
        if self._by_clock:
            self._reserve = min(ending / 60, _LARGEST_RESERVE * self._minutes)

    def end_epoch(self) -> None:
        """Note the time after an epoch's last step; checkpoints keep it."""
        self._saved = self.elapsed()

    @property
    def time(self) -> RunTime:
        """The times that a checkpoint keeps."""
        return RunTime(self._saved, self._reserve)

    @property
    def notes(self) -> dict[str, Any]:
        """The notes of a checkpoint that say how the learning rate goes on."""
        point = None if self.resumed is None else [self.resumed.progress, self.resumed.rate]
        return {"course": length_and_schedule(self._config), "joint": point}

    def _training_seconds(self) -> float:
        """Seconds of a run in minutes until its last step; until a validation has shown how long one takes, a guess."""
        reserve = min(0.15 * self._minutes, 1.0) if math.isnan(self._reserve) else self._reserve
        return 60 * (self._minutes - min(reserve, _LARGEST_RESERVE * self._minutes))

    def _resume_point(self, checkpoint: Checkpoint) -> ResumePoint | None:
        """A run in minutes always has a new one, as some of them passed while it was started."""
        require_time_left(self._config, checkpoint)
        if not checkpoint.step:
            return None
        notes = checkpoint.notes
        if self._by_clock or notes["course"] != length_and_schedule(self._config):
            return ResumePoint(self.share(checkpoint.step), checkpoint.rate)
        return None if notes["joint"] is None else ResumePoint(*notes["joint"])


def epochs_between_validations(training: TrainingSettings, epoch_voxels: int, validation_voxels: int) -> int:
    """The number that gives validation its share of the time if a step costs three predictions of as many voxels."""
    share = training.validation_share
    return max(1, math.ceil(validation_voxels / 3 * (1 - share) / share / epoch_voxels))


def length_and_schedule(config: Config) -> str:
    """All that the learning rate follows, as JSON."""
    training = config.training
    length = {"epochs": training.epochs} if training.minutes is None else {"minutes": training.minutes}
    return json.dumps(to_plain({**length, "schedule": config.schedule, "rate": config.optimiser.highest_rate}))


def require_minutes(training: TrainingSettings, spent: float) -> None:
    """Refuse a new run whose minutes are nearly over before its first step.

    Args:
        spent: seconds since the command was given.
    """
    minutes = training.minutes
    if minutes is not None and spent >= 0.8 * 60 * minutes:
        raise ConfigError(
            f"training.minutes is {minutes:g}, but reading and preparing the data alone took {spent:.0f} s; "
            "allow more minutes"
        )


def require_time_left(config: Config, checkpoint: Checkpoint) -> None:
    """Refuse to resume a run that is now to be shorter than it was so far.

    Raises:
        ConfigError: saying how long it has gone on.
    """
    training, step, elapsed = config.training, checkpoint.step, checkpoint.time.elapsed
    changed = length_and_schedule(config) != checkpoint.notes["course"]
    if training.minutes is None and step > training.epochs * training.iterations:
        raise ConfigError(
            f"training.epochs is {training.epochs}, but this run has done {step / training.iterations:.4g} "
            "already\nsay how many there are to be in all, or start a new run in another folder"
        )
    if training.minutes is not None and changed and elapsed >= 60 * training.minutes:
        raise ConfigError(
            f"training.minutes is {training.minutes:g}, but this run has taken {elapsed / 60:.1f} already\n"
            "say how many there are to be in all, or start a new run in another folder"
        )
