"""The story of `medunet train`: a config becomes a model.

config -> cases and split -> preprocessed cases -> patches -> loop; validation is prediction on whole held-out scans.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from medunet.config import Config
from medunet.data.augment import Augmentation
from medunet.data.cache import find_cache
from medunet.data.patches import EpochSampler, PatchDataset, PreparedCase, make_loader
from medunet.data.prepare import Preparation, prepare_cases, split_inside
from medunet.devices import autocast_type, free_memory
from medunet.errors import ConfigError
from medunet.experiment import (
    BOARD,
    CHECKPOINT,
    CONFIG_FILE,
    METRICS,
    RUN_FILES,
    RUN_FOLDERS,
    Setup,
    TrainRequest,
    check_output,
    require_same_run,
    run_identity,
    set_up,
)
from medunet.files import write_text
from medunet.learning.checkpoint import load_checkpoint, save_checkpoint
from medunet.learning.loop import Recipe, StepFacts, TrainState, run_epoch
from medunet.learning.losses import Loss, make_loss
from medunet.learning.monitor import Board, MetricsFile, ProgressLine
from medunet.learning.schedule import Ema, Progress, make_optimiser
from medunet.learning.signals import StopSignal, caught_signals
from medunet.model import MODEL_FILE, Model, save_model
from medunet.networks.unet import UNet
from medunet.validate import HeldOut, Validation, finish_run, validate


@dataclass(frozen=True)
class Outcome:
    """Lines for people, and the signal that ended the training early (0 for none)."""

    lines: list[str]
    signal: int = 0


@dataclass
class Session:
    """The moving parts of one process' training."""

    setup: Setup
    state: TrainState
    recipe: Recipe
    clock: Progress
    line: ProgressLine
    board: Board
    metrics: MetricsFile
    stop: StopSignal = field(default_factory=StopSignal)
    validation_seconds: float = 0.0
    last_validation: float = field(default_factory=time.monotonic)


def train_run(request: TrainRequest) -> Outcome:
    """Train, validate, and leave a run folder.

    Raises:
        MedunetError: anything wrong with config, data or output, before the first step where it can be known.
    """
    started = time.monotonic()
    check_output(request)
    line = ProgressLine("train")
    scratch = request.output / "preprocessed"
    try:
        setup = set_up(request, line.say)
        cases, held = _prepare(setup, scratch, line)
        patches, recipe = _patches(setup.config, cases), _recipe(setup, cases)
        # Only now is anything of an earlier run touched: all that can be wrong has been looked at.
        session = _start(setup, recipe, request.resume, started, line)
        with caught_signals() as session.stop:
            _learn(session, patches, held)
        if session.stop.received:
            return _interrupted(session)
        return Outcome(_finish(session, held))
    finally:
        line.close()
        _remove_scratch(scratch)


def _remove_scratch(scratch: Path) -> None:
    """Remove prepared arrays, and the run's folder where nothing else came to be in it."""
    shutil.rmtree(scratch, ignore_errors=True)
    with suppress(OSError):
        scratch.parent.rmdir()


def _prepare(setup: Setup, scratch: Path, line: ProgressLine) -> tuple[list[PreparedCase], list[PreparedCase]]:
    """Training and validation cases on the network's grid; one single scan is split inside."""
    how = Preparation(
        setup.config.preprocess, setup.labels, setup.config.data.axes, scratch, free_memory(torch.device("cpu")) // 3,
        find_cache(setup.config.data.cache),
    )  # fmt: skip
    everything = list(dict.fromkeys([*setup.learned, *setup.held]))
    done: list[str] = []

    def step(name: str) -> None:
        done.append(name)
        line.update(0.0, f"read {len(done)}/{len(everything)} {name}")

    prepared = {case.name: case for case in prepare_cases(everything, how, step, line.say)}
    if len(setup.data.labelled) == 1 and setup.held:
        learned, held = split_inside(prepared[everything[0].name], setup.labels)
        return [learned], [held]
    return [prepared[c.name] for c in setup.learned], [prepared[c.name] for c in setup.held]


def _start(setup: Setup, recipe: Recipe, resume: bool, started: float, line: ProgressLine) -> Session:
    """Make the run's folder and the state, fresh or as the checkpoint has it."""
    config, training = setup.config, setup.config.training
    spent = time.monotonic() - started
    if training.minutes is not None and spent >= 0.8 * 60 * training.minutes and not resume:
        raise ConfigError(
            f"training.minutes is {training.minutes:g}, but reading and preparing the data alone took "
            f"{spent:.0f} s; allow more minutes"
        )
    network = UNet(config.network, training.seed).to(setup.device)
    ema = Ema(network, training.ema) if training.ema else None
    state = TrainState(network, make_optimiser(config.optimiser, network), ema)
    if resume:
        checkpoint = load_checkpoint(setup.folder / CHECKPOINT)
        require_same_run(checkpoint.identity, setup)
        checkpoint.restore(state)
    else:
        _clear(setup.folder)
    write_text(setup.folder / CONFIG_FILE, setup.file.to_yaml(), overwrite=True)
    columns = ["epoch", "step", "minutes", "loss", "rate", "gradient_norm", "seconds_per_iteration"]
    columns += [
        "validation_dice",
        "validation_iou",
        *(f"dice:{setup.labels.names[i]}" for i in setup.labels.foreground),
    ]
    board = Board(setup.folder / BOARD, purge_step=state.step if resume else None)
    board.text("config", setup.file.to_yaml())
    return Session(
        setup=setup,
        state=state,
        recipe=recipe,
        clock=_clock(config, state, started),
        line=line,
        board=board,
        metrics=MetricsFile(setup.folder / METRICS, columns, state.epoch if resume else 0),
    )


def _clear(folder: Path) -> None:
    """Remove an earlier run's files; `check_output` has made sure that the folder holds a run or nothing of one."""
    for name in RUN_FILES:
        (folder / name).unlink(missing_ok=True)
    for name in RUN_FOLDERS:
        # The arrays that were just prepared for this very run.
        if name != "preprocessed":
            shutil.rmtree(folder / name, ignore_errors=True)


def _clock(config: Config, state: TrainState, started: float) -> Progress:
    training = config.training
    if training.minutes is not None:
        # Time for the last validation, until the first one has shown how much it needs.
        reserve = min(0.15 * training.minutes, 1.0)
        return Progress(minutes=training.minutes - reserve, before=state.elapsed, started=started)
    return Progress(max_steps=training.epochs * training.iterations, before=state.elapsed, started=started)


def _recipe(setup: Setup, cases: Sequence[PreparedCase]) -> Recipe:
    config = setup.config
    return Recipe(
        loss=_loss(setup, cases),
        schedule=config.schedule,
        rate=config.optimiser.rate,
        clip=config.training.clip,
        device=setup.device,
        dtype=autocast_type(config.training.precision, setup.device),
        seed=config.training.seed,
    )


def _loss(setup: Setup, cases: Sequence[PreparedCase]) -> Loss:
    voxels = None
    if setup.config.loss.class_weights == "balanced":
        voxels = [sum(int((case.label == index).sum()) for case in cases) for index in range(setup.labels.classes)]
    return make_loss(setup.config.loss, setup.labels.classes, voxels)


def _patches(config: Config, cases: Sequence[PreparedCase]) -> PatchDataset:
    return PatchDataset(
        cases=cases,
        settings=config.patches,
        per_epoch=config.training.iterations * config.patches.batch,
        augmentation=Augmentation(config.augment, config.network.dimensions),
        seed=config.training.seed,
        margin=() if config.network.padded else config.network.shape.margin,
    )


def _learn(session: Session, patches: PatchDataset, held: Sequence[PreparedCase]) -> None:
    """Epoch after epoch, until the clock says it is over or a signal arrives."""
    config, state = session.setup.config, session.state
    loader = make_loader(patches, _workers(config, session.setup.device), session.setup.device.type == "cuda")
    sampler = loader.sampler
    assert isinstance(sampler, EpochSampler)
    while session.clock.fraction(state.step) < 1 and not session.stop.received:
        sampler.set_epoch(state.epoch, state.skip)
        watch = _Watch(session)
        loss = run_epoch(state, loader, session.recipe, lambda: session.clock.fraction(state.step), watch)
        state.elapsed = session.clock.elapsed()
        if state.skip >= config.training.iterations:
            # Stopped exactly at the epoch's last step.
            state.epoch, state.skip = state.epoch + 1, 0
        if state.skip == 0:
            due = held and not session.stop.received and _validation_due(session)
            _log_epoch(session, loss, watch, _validate(session, held) if due else None)
        save_checkpoint(session.setup.folder / CHECKPOINT, state, run_identity(session.setup))


def _workers(config: Config, device: torch.device) -> int:
    if config.training.workers is not None:
        return config.training.workers
    # On the CPU, workers would only take cores from the network, which waits little for patches.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, cores - 1) if device.type == "cuda" else 0


class _Watch:
    """Looks at every step: shows it, adds it up for the epoch's line, and passes on a stop signal."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._started = time.monotonic()
        self.steps, self.norm, self.rate, self._smooth = 0, 0.0, 0.0, math.nan

    def __call__(self, facts: StepFacts) -> bool:
        session, state = self._session, self._session.state
        self.steps += 1
        self.norm += facts.norm
        self.rate = facts.rate
        self._smooth = facts.loss if math.isnan(self._smooth) else 0.9 * self._smooth + 0.1 * facts.loss
        session.line.update(
            session.clock.fraction(state.step),
            f"epoch {state.epoch + 1} step {state.step} loss {self._smooth:.3f} {self.seconds:.2f} s/it"
            + (f" best {state.best:.4f}" if math.isfinite(state.best) else ""),
        )
        session.board.scalars({"loss/step": facts.loss, "rate": facts.rate, "gradient_norm": facts.norm}, state.step)
        return session.stop.received != 0

    @property
    def seconds(self) -> float:
        """Per iteration, so far in this epoch."""
        return (time.monotonic() - self._started) / max(self.steps, 1)


def _validation_due(session: Session) -> bool:
    """After the first epoch, at the end, and in between as often as the allowed share of the time permits."""
    if session.clock.fraction(session.state.step) >= 1 or session.validation_seconds == 0:
        return True
    share = session.setup.config.training.validation_share
    return time.monotonic() - session.last_validation >= session.validation_seconds * (1 - share) / share


def _validate(session: Session, held: Sequence[PreparedCase]) -> Validation:
    """Score whole held-out scans with the averaged weights, and keep the model if it is the best so far."""
    started, setup, state = time.monotonic(), session.setup, session.state
    looked_at = held[: setup.config.training.validation_cases]
    with _evaluation_weights(state):
        model = Model(state.network, setup.card({}))
        result = validate(model, looked_at, setup.config.training.precision)
        score = result.mean_dice if setup.config.training.score == "dice" else result.mean_iou
        # Ties and NaN (no label in the held-out part) keep the later model.
        if not score < state.best:
            state.best = score if math.isfinite(score) else state.best
            _save(session, score)
    session.board.scalars({f"validation/dice {name}": value for name, value in result.dice.items()}, state.step)
    session.board.scalars({"validation/dice": result.mean_dice, "validation/iou": result.mean_iou}, state.step)
    session.board.picture("validation/worst case", result.picture, state.step)
    session.last_validation = time.monotonic()
    session.validation_seconds = session.last_validation - started
    _keep_time_for_the_end(session, len(held) / len(looked_at))
    return result


def _keep_time_for_the_end(session: Session, factor: float) -> None:
    """Shorten the clock by what the last validation of all held-out scans will take, so that `minutes` is kept."""
    minutes = session.setup.config.training.minutes
    if minutes is not None:
        # Reading, going back to the scan's grid, distances and pictures cost about as much again, and some seconds.
        reserve = min((2.5 * factor * session.validation_seconds + 8) / 60, 0.25 * minutes)
        session.clock = replace(session.clock, minutes=minutes - reserve)


def _save(session: Session, score: float) -> None:
    state, setup = session.state, session.setup
    record: dict[str, str | int | float | None] = {
        "steps": state.step,
        "minutes": round(session.clock.elapsed() / 60, 2),
        f"validation_{setup.config.training.score}": round(score, 4) if math.isfinite(score) else None,
    }
    save_model(setup.folder / MODEL_FILE, state.network.state_dict(), setup.card(record))


class _evaluation_weights:
    """The averaged weights in evaluation mode for the length of a block; training mode and weights come back."""

    def __init__(self, state: TrainState) -> None:
        self._network: nn.Module = state.network
        self._swap = state.ema.applied() if state.ema else None

    def __enter__(self) -> None:
        self._network.eval()
        if self._swap:
            self._swap.__enter__()

    def __exit__(self, *error: object) -> None:
        if self._swap:
            self._swap.__exit__(None, None, None)
        self._network.train()


def _log_epoch(session: Session, loss: float, watch: _Watch, scores: Validation | None) -> None:
    state = session.state
    row: dict[str, str | int | float] = {
        "epoch": state.epoch,
        "step": state.step,
        "minutes": session.clock.elapsed() / 60,
        "loss": loss,
        "rate": watch.rate,
        "gradient_norm": watch.norm / max(watch.steps, 1),
        "seconds_per_iteration": watch.seconds,
    }
    session.board.scalars({"loss/epoch": loss, "seconds_per_iteration": watch.seconds}, state.step)
    text = f"epoch {state.epoch}: loss {loss:.4f}, {watch.seconds:.2f} s/it"
    if scores:
        row |= {"validation_dice": scores.mean_dice, "validation_iou": scores.mean_iou}
        row |= {f"dice:{name}": value for name, value in scores.dice.items()}
        each = ", ".join(f"{name} {value:.3f}" for name, value in list(scores.dice.items())[:6])
        text += f", validation Dice {scores.mean_dice:.4f} ({each}{', …' if len(scores.dice) > 6 else ''})"
    session.metrics.add(row)
    session.line.say(text)


def _ensure_model(session: Session) -> None:
    """A run without any validation so far (stopped early, or nothing held out) still leaves a usable model."""
    if not (session.setup.folder / MODEL_FILE).exists():
        with _evaluation_weights(session.state):
            _save(session, math.nan)


def _interrupted(session: Session) -> Outcome:
    if not session.state.step:
        raise KeyboardInterrupt  # before the first step there is nothing to save or to go on with
    _ensure_model(session)
    session.board.close()
    folder = session.setup.folder
    return Outcome(
        [
            f"stopped after {session.state.step} steps; everything is saved in {folder}",
            f"go on with: medunet train {folder / CONFIG_FILE} -o {folder} --resume",
        ],
        session.stop.received,
    )


def _finish(session: Session, held: Sequence[PreparedCase]) -> list[str]:
    """The last predictions and scores on the scans' own grids, and the report."""
    setup = session.setup
    if not held:
        (setup.folder / MODEL_FILE).unlink(missing_ok=True)
    _ensure_model(session)
    session.board.close()
    held_out = HeldOut(setup.held, setup.labels, setup.config.data.axes, inside=len(setup.data.labelled) == 1)
    lines = finish_run(setup.folder, held_out, session.line, setup.device)
    minutes = session.clock.elapsed() / 60
    return [*lines, f"model: {setup.folder / MODEL_FILE} ({session.state.step} steps, {minutes:.1f} minutes)"]
