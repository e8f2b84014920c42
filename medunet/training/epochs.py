"""Epochs: the watch over their steps; at their end validation if it is due, the best model, a line in the log."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import nn

from medunet.learning.loop import StepFacts, evaluation_weights
from medunet.learning.monitor import Waited, memory_used
from medunet.model import MODEL_FILE, Model, load_model, save_model
from medunet.networks.build import build_network
from medunet.training.session import Session, Training, save_state
from medunet.training.validation import Validation, validate

_LEAVING = 1.0
"""Seconds for the last checkpoint and for ending the process."""


class StepWatch:
    """Shows each step, measures their pace, and passes on a stop signal; called after every step of an epoch.

    Attributes:
        batches: those that were given, with the time that they were waited for.
    """

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


def end_epoch(session: Session, loss: float, watch: StepWatch) -> dict[str, float]:
    """Validate if it is due, and log the epoch; its line of `metrics.csv`, as numbers."""
    state = session.state
    due = bool(session.held) and session.timetable.validation_due(state.step, state.epoch)
    if due:
        # A validation that is cut off is made up for by a resumed run.
        iterations = session.setup.config.training.iterations
        save_state(session, replace(state, epoch=state.epoch - 1, skip=iterations))
    return _log_epoch(session, loss, watch, _validate(session) if due else None)


def ensure_model(session: Session) -> None:
    """A run without any validation so far (stopped early, or nothing held out) still leaves a usable model."""
    if not (session.setup.folder / MODEL_FILE).exists():
        with evaluation_weights(session.state):
            _save(session, math.nan)


def score_anew(session: Session) -> None:
    """Measure the best model so far by the score that is asked for now, on its cases: others do not compare.

    Where the model is gone, the next one is the best.
    """
    state, before, now = session.state, session.scored_before, session.scored
    if not before or before == now:
        return
    old, path, score = state.best, session.setup.folder / MODEL_FILE, math.nan
    if path.exists():
        score = _score(session, _scores_of(session, load_model(path, session.setup.device)))
    state.best = score if math.isfinite(score) else -math.inf
    found = f"the best so far has {score:.4f} (was {old:.4f})" if math.isfinite(score) else "the next one is the best"
    session.line.say(
        f"models are compared by {now[0]} of {now[1]} held-out cases, no longer by {before[0]} of {before[1]}: {found}"
    )


def _validate(session: Session) -> Validation:
    """Score whole held-out scans with the averaged weights, and keep the model if it is the best so far."""
    started, state = time.monotonic(), session.state
    with _evaluated(session) as network:
        model = Model(network, session.setup.card({}))
        result = _scores_of(session, model)
        score = _score(session, result)
        # Ties and NaN (no label in the held-out part) keep the later model.
        if not score < state.best:
            state.best = score if math.isfinite(score) else state.best
            _save(session, score)
        writer = session.writer
        writer.scalars({"validation/dice": result.mean_dice, "validation/iou": result.mean_iou}, state.step)
        writer.scalars({f"validation dice/{name}": value for name, value in result.dice.items()}, state.step)
        writer.scalars({f"validation iou/{name}": value for name, value in result.iou.items()}, state.step)
        writer.shares({f"dice over cases/{name}": values for name, values in result.spread.items()}, state.step)
        writer.pictures("validation/worst", result.pictures, state.step)
        seconds = time.monotonic() - started
        session.timetable.validated(seconds, seconds + _LEAVING + _measure_end(session, model, seconds))
    return result


def _scores_of(session: Session, model: Model) -> Validation:
    training = session.setup.config.training
    return validate(model, session.held[: training.validation_cases], training.precision)


def _score(session: Session, result: Validation) -> float:
    return result.mean_dice if session.setup.config.training.score == "dice" else result.mean_iou


def _measure_end(session: Session, model: Model, seconds: float) -> float:
    """Seconds that the last predictions and scores will take; a run in minutes measures them when it can afford it.

    Args:
        seconds: that this validation took.
    """
    training, timetable, end, held = session.setup.config.training, session.timetable, session.end, session.held
    guess = 2.5 * seconds * len(held) / min(len(held), training.validation_cases) + 5
    if training.minutes is not None:
        short = end.known or guess / len(held) <= 0.04 * 60 * training.minutes
        if short and end.spent <= 0.02 * timetable.elapsed():
            end.measure(model, {case.name: case.label.size for case in held})
    return end.seconds() if end.known else guess


def _save(session: Session, score: float) -> None:
    state, setup = session.state, session.setup
    record: dict[str, str | int | float | None] = {
        "steps": state.step,
        "minutes": round(session.timetable.elapsed() / 60, 2),
        f"validation_{setup.config.training.score}": round(score, 4) if math.isfinite(score) else None,
        **session.origin,
        **({"processes": setup.world.size} if setup.world.size > 1 else {}),
    }
    save_model(setup.folder / MODEL_FILE, state.network.state_dict(), setup.card(record))


@contextmanager
def _evaluated(session: Session) -> Iterator[nn.Module]:
    """The network in evaluation mode with the averaged weights, for the length of a block."""
    state, setup = session.state, session.setup
    with evaluation_weights(state):
        if setup.world.size == 1:
            yield state.network
        else:
            # Prediction wants to see the batch norms as they were before the processes were joined.
            plain = build_network(setup.config.network).to(setup.device)
            plain.load_state_dict(state.network.state_dict())
            yield plain.eval()


def _log_epoch(session: Session, loss: float, watch: StepWatch, scores: Validation | None) -> dict[str, float]:
    """Write the epoch's line to `metrics.csv`, its points to TensorBoard, and a line for people."""
    state, parts = session.state, session.state.tally.mean_parts
    speed = {
        "seconds_per_iteration": watch.seconds,
        "patches_per_second": session.setup.config.patches.batch / watch.seconds if watch.seconds else math.nan,
        "waiting_share": watch.waiting,
    }
    row: dict[str, float] = {
        "epoch": state.epoch, "step": state.step, "minutes": session.timetable.elapsed() / 60, "loss": loss,
        "rate": state.rate, "gradient_norm": state.tally.mean_norm, **speed,
        **{f"loss:{name}": value for name, value in parts.items()},
    }  # fmt: skip
    curves = {
        "loss/epoch": loss,
        **({f"loss/{name}": value for name, value in parts.items()} if len(parts) > 1 else {}),
    }
    curves |= {f"speed/{name.replace('_', ' ')}": value for name, value in speed.items()}
    session.writer.scalars(curves | memory_used(session.setup.device), state.step)
    text = f"epoch {state.epoch}: loss {loss:.4f}, {watch.seconds:.2f} s/it"
    if scores:
        row |= {"validation_dice": scores.mean_dice, "validation_iou": scores.mean_iou}
        row |= {f"dice:{name}": value for name, value in scores.dice.items()}
        each = ", ".join(f"{name} {value:.3f}" for name, value in list(scores.dice.items())[:6])
        text += f", validation Dice {scores.mean_dice:.4f} ({each}{', …' if len(scores.dice) > 6 else ''})"
    session.metrics.add(row)
    session.line.say(text)
    return row
