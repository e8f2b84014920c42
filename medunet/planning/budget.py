"""Budget of a training: memory, minutes, and the measured speed of this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from medunet.planning.rules import MOST_STEPS, STEPS_OF_ONE_MINUTE, STEPS_POWER, TRAINING_SHARE
from medunet.system.devices import autocast_type, find_device, free_memory, resident_memory, training_speed

Notes = dict[str, str]
"""The reason for a planned value, by its dotted key."""


@dataclass(frozen=True)
class Budget:
    """The resources of a training.

    Attributes:
        memory: bytes; of the GPU where one is used, else of the whole process.
        minutes: wall time.
        speed: floating-point operations per second of a convolution's training step in 2 or 3 dimensions, measured.
        device: for messages.
        process: bytes of `memory` that the process takes before it trains anything.
        slowness: how many times as long as counted a whole training step was measured to take.
        growth: how many times as much memory as counted it was measured to need.
        dimensions: of the network, where the user has chosen them.
    """

    memory: int
    minutes: float
    speed: Callable[[int], float]
    device: str
    process: int = 0
    slowness: float = 1.0
    growth: float = 1.0
    dimensions: Literal[2, 3] | None = None

    @staticmethod
    def of(memory: int | None, minutes: float | None, device: str, dimensions: Literal[2, 3] | None = None) -> Budget:
        """The budget of this machine; an hour and three quarters of the free memory by default."""
        where = find_device(device)
        dtype = autocast_type("auto", where)
        speeds: dict[int, float] = {}

        def speed(dimensions: int) -> float:
            # Plans of one data set are compared with each other, so all must count with the same speed.
            if dimensions not in speeds:
                speeds[dimensions] = training_speed(where, dtype, dimensions)
            return speeds[dimensions]

        return Budget(
            memory or free_memory(where) * 3 // 4,
            minutes or 60.0,
            speed,
            str(where),
            resident_memory() if where.type == "cpu" else 0,
            dimensions=dimensions,
        )

    def after(self, slowness: float, growth: float) -> Budget:
        """The same budget with steps that are slower and larger by these factors."""
        return replace(self, slowness=self.slowness * slowness, growth=self.growth * growth)

    def lasting(self, minutes: float) -> Budget:
        """The same budget with other minutes."""
        return replace(self, minutes=minutes)

    @property
    def seconds(self) -> float:
        """For optimiser steps."""
        return 60 * self.minutes * TRAINING_SHARE

    @property
    def wanted_steps(self) -> float:
        """The optimiser steps that a training of these minutes should have."""
        found: float = min(STEPS_OF_ONE_MINUTE * self.minutes**STEPS_POWER, MOST_STEPS)
        return found
