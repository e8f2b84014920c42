"""Timetable of a run: its length and its learning rate, also where a resumed run is longer than planned."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from medunet.config import Config, to_plain
from medunet.errors import ConfigError
from medunet.learning.loop import TrainState
from medunet.learning.schedules import Joint, Progress


def clock_of(config: Config, state: TrainState, started: float) -> Progress:
    """The run's clock, earlier sessions included.

    Args:
        started: the monotonic clock's reading when this session began.
    """
    training = config.training
    if training.minutes is None:
        return Progress(max_steps=training.epochs * training.iterations, before=state.elapsed, started=started)
    # Time for the last validation; a guess until the first one has shown how much it needs.
    reserve = min(0.15 * training.minutes, 1.0) if state.reserve is None else state.reserve
    return Progress(minutes=training.minutes - min(reserve, 0.4 * training.minutes), before=state.elapsed,
                    started=started)  # fmt: skip


def course_of(config: Config) -> str:
    """What the learning rate follows, as JSON."""
    training = config.training
    length = {"epochs": training.epochs} if training.minutes is None else {"minutes": training.minutes}
    return json.dumps(to_plain({**length, "schedule": config.schedule, "rate": config.optimiser.highest_rate}))


def joint_of(config: Config, state: TrainState, clock: Progress, notes: Mapping[str, Any]) -> Joint | None:
    """Where a resumed run joins the course it is now to follow; None where it just follows its old one.

    A run that is measured in minutes always joins anew, as some of them passed while it was started.

    Args:
        notes: of its checkpoint, with what `course_notes` put there.

    Raises:
        ConfigError: the run has already gone on for longer than it is now to last.
    """
    require_time_left(config, state.step, state.elapsed, notes)
    if not state.step:
        return None
    if config.training.minutes is None and notes["course"] == course_of(config):
        return None if notes["joint"] is None else Joint(*notes["joint"])
    return Joint(clock.fraction(state.step), state.rate)


def course_notes(config: Config, joint: Joint | None) -> dict[str, Any]:
    """What a checkpoint keeps for `joint_of`."""
    return {"course": course_of(config), "joint": None if joint is None else [joint.progress, joint.rate]}


def require_time_left(config: Config, step: int, elapsed: float, notes: Mapping[str, Any]) -> None:
    """Refuse to resume a run that is now to be shorter than it was so far.

    Args:
        step, elapsed: optimiser steps done and seconds spent, as its checkpoint has them, and its `notes`.

    Raises:
        ConfigError: saying how long it has gone on.
    """
    training = config.training
    changed = course_of(config) != notes["course"]
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
