"""Watch over the steps of an epoch: shows each one, measures their pace, and passes on a stop signal."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import Any

from medunet.learning.loop import StepFacts
from medunet.learning.monitor import Waited
from medunet.training.session import Session, Training


class StepWatch:
    """Called after every step; `batches` are those that were given, with the time that they were waited for."""

    def __init__(self, training: Training, batches: Iterable[Any]) -> None:
        self._training, self.batches = training, Waited(batches)
        self._started = self._last = time.monotonic()
        self._steps, self._smooth = 0, math.nan

    def __call__(self, facts: StepFacts) -> bool:
        self._last = time.monotonic()
        self._steps += 1
        if isinstance(self._training, Session):
            self._show(self._training, facts)
        return self._training.stopping()

    def _show(self, session: Session, facts: StepFacts) -> None:
        state, timetable = session.state, session.timetable
        self._smooth = facts.loss if math.isnan(self._smooth) else 0.9 * self._smooth + 0.1 * facts.loss
        left = timetable.left(state.step)
        session.line.update(
            timetable.share(state.step),
            f"epoch {state.epoch + 1}, step {state.step}, loss {self._smooth:.3f}, {self.seconds:.2f} s/it"
            + (f", best {state.best:.4f}" if math.isfinite(state.best) else ""),
            None if math.isnan(left) else left + timetable.ending,
        )
        session.writer.scalars(
            {"loss/step": facts.loss, "optimiser/learning rate": facts.rate, "optimiser/gradient norm": facts.norm},
            state.step,
        )

    @property
    def seconds(self) -> float:
        """Per iteration, so far in this epoch."""
        return (self._last - self._started) / max(self._steps, 1)

    @property
    def waiting(self) -> float:
        """The share of the time in which the network waited for patches."""
        return self.batches.seconds / max(self._last - self._started, 1e-9)
