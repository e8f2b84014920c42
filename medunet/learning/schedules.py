"""Learning-rate schedules, also of a run that was resumed with another length."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from medunet.errors import ConfigError

_WARMUP_START = 0.01
_REJOIN = 0.1
"""Over this share of what remains a run that was made longer rises to its new schedule."""
_SCHEDULES = ("cosine", "poly", "constant")


@dataclass(frozen=True)
class ScheduleSettings:
    """The learning rate over a whole training.

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
class ResumePoint:
    """The point of a run from which it went on with another length or schedule than before.

    Attributes:
        progress: the share of the run, as it is measured now, that was over then.
        rate: the last learning rate before.
    """

    progress: float
    rate: float


def learning_rate(
    settings: ScheduleSettings, base: float, progress: float, resumed: ResumePoint | None = None
) -> float:
    """The learning rate when the share `progress` (0 to 1) of the run is over, measured in steps or in minutes.

    After a resume point the rate starts from its last value and glides, by a smooth step, to the rate that a run of
    this length would have had from the beginning: up over a tenth of what remains, down over all of it. So it never
    jumps. A finished cosine run, whose rate is 0, warms up again to the rate of the longer run at this point: a little
    where little is added, much where much is.
    """
    rate = _planned_rate(settings, base, progress)
    if resumed is None or resumed.progress >= 1:
        return rate
    rises = _planned_rate(settings, base, resumed.progress) > resumed.rate
    glide = (_REJOIN if rises else 1.0) * (1 - resumed.progress)
    gone = min(max((progress - resumed.progress) / glide, 0.0), 1.0)
    new = gone * gone * (3 - 2 * gone)
    return (1 - new) * resumed.rate + new * rate


def _planned_rate(settings: ScheduleSettings, base: float, progress: float) -> float:
    if progress < settings.warmup:
        return base * (_WARMUP_START + (1 - _WARMUP_START) * progress / settings.warmup)
    gone = min((progress - settings.warmup) / (1 - settings.warmup), 1.0)
    if settings.kind == "constant":
        return base
    left = 0.5 * (1 + math.cos(math.pi * gone)) if settings.kind == "cosine" else (1 - gone) ** settings.power
    return base * (settings.floor + (1 - settings.floor) * left)
