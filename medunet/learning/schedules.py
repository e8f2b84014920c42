"""Learning-rate schedules, and the clock of a run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from medunet.errors import ConfigError

_WARMUP_START = 0.01
_REJOIN = 0.1
"""Over this share of what remains a run that was made longer rises to its new schedule."""
_SCHEDULES = ("cosine", "poly", "constant")


@dataclass(frozen=True)
class ScheduleSettings:
    """How the learning rate runs over the whole training.

    Attributes:
        kind: after the warm-up, `cosine` and `poly` fall to `floor`; `constant` stays.
        warmup: share of the run (0 to below 1) in which the rate rises linearly from 1 % of its highest value.
        power: exponent of `poly` (0.9 in nnU-Net).
        floor: last rate as a share of the highest.

    Raises:
        ConfigError: a number is out of its range.
    """

    kind: Literal["cosine", "poly", "constant"] = "cosine"
    warmup: float = 0.05
    power: float = 0.9
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in _SCHEDULES:
            raise ConfigError(f"schedule.kind {self.kind!r} is unknown; choose one of {', '.join(_SCHEDULES)}")
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"schedule.warmup is a share of the run, from 0 to below 1; found {self.warmup}")
        if not self.power > 0 or not 0 <= self.floor <= 1:
            raise ConfigError(
                f"schedule.power must be above 0 and schedule.floor within 0 to 1; found {self.power} and {self.floor}"
            )


@dataclass(frozen=True)
class Joint:
    """Where a run went on with another length or schedule than it had before.

    Attributes:
        progress: the share of the run, as it is measured now, that was over then.
        rate: the last learning rate before.
    """

    progress: float
    rate: float


def learning_rate(settings: ScheduleSettings, base: float, progress: float, joint: Joint | None = None) -> float:
    """The learning rate when the share `progress` (0 to 1) of the run is over, measured in steps or in minutes.

    After a joint the rate starts from what it was and glides, by a smooth step, to what a run of this length would
    have had from the beginning: up over a tenth of what remains, down over all of it. So it never jumps; a finished
    cosine run, whose rate is 0, warms up again to the rate of the longer run at this point: a little where little is
    added, much where much is.
    """
    rate = _planned_rate(settings, base, progress)
    if joint is None or joint.progress >= 1:
        return rate
    rises = _planned_rate(settings, base, joint.progress) > joint.rate
    glide = (_REJOIN if rises else 1.0) * (1 - joint.progress)
    gone = min(max((progress - joint.progress) / glide, 0.0), 1.0)
    new = gone * gone * (3 - 2 * gone)
    return (1 - new) * joint.rate + new * rate


def _planned_rate(settings: ScheduleSettings, base: float, progress: float) -> float:
    if progress < settings.warmup:
        return base * (_WARMUP_START + (1 - _WARMUP_START) * progress / settings.warmup)
    gone = min((progress - settings.warmup) / (1 - settings.warmup), 1.0)
    if settings.kind == "constant":
        return base
    left = 0.5 * (1 + math.cos(math.pi * gone)) if settings.kind == "cosine" else (1 - gone) ** settings.power
    return base * (settings.floor + (1 - settings.floor) * left)


@dataclass(frozen=True)
class Progress:
    """The clock of a run that is measured by steps or by minutes.

    Attributes:
        max_steps: steps of the whole run, or None.
        minutes: wall time of the whole run over all its sessions, or None; exactly one of both is given.
        before: seconds that earlier sessions of a resumed run took.
        clock: seconds that never run backwards.
        started: the clock's reading when this session began; None reads it now.

    Raises:
        ConfigError: not exactly one measure is given, or it is not positive.
    """

    max_steps: int | None = None
    minutes: float | None = None
    before: float = 0.0
    clock: Callable[[], float] = time.monotonic
    started: float | None = None

    def __post_init__(self) -> None:
        given = [measure for measure in (self.max_steps, self.minutes) if measure is not None]
        if len(given) != 1 or given[0] <= 0:
            raise ConfigError(
                f"a run is measured by steps or by minutes, one of them and positive; "
                f"found max_steps {self.max_steps}, minutes {self.minutes}"
            )
        if self.started is None:
            object.__setattr__(self, "started", self.clock())

    def elapsed(self) -> float:
        """Seconds that the run has taken, earlier sessions included."""
        assert self.started is not None
        return self.before + self.clock() - self.started

    def fraction(self, step: int) -> float:
        """The share of the run that is over after `step` steps, from 0 to 1."""
        if self.max_steps is not None:
            return min(step / self.max_steps, 1.0)
        assert self.minutes is not None
        return min(self.elapsed() / (60 * self.minutes), 1.0)
