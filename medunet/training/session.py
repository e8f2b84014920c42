"""Session of a training: one process' part, made fresh, with a model's weights, or from a checkpoint.

With several processes, all are given the same by the first one, and only the first one writes, shows and validates.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from medunet.config import Config, load_config, parse_config
from medunet.errors import ConfigError
from medunet.learning.averaging import Ema
from medunet.learning.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from medunet.learning.distributed import World
from medunet.learning.loop import Recipe, TrainState, placed
from medunet.learning.monitor import MetricsFile, TimeLeft
from medunet.learning.optimisers import make_optimiser
from medunet.learning.schedules import Progress
from medunet.learning.tensorboard import TensorBoardWriter
from medunet.model import load_model
from medunet.networks.build import build_network
from medunet.networks.external.adapter import AdaptedNetwork
from medunet.networks.unet import UNet, bias_for_rare, bias_from_frequencies
from medunet.patches.dataset import PreparedCase
from medunet.patches.frequencies import class_frequencies
from medunet.system.files import write_text
from medunet.system.progress import ProgressLine
from medunet.system.signals import StopSignal
from medunet.training.board_text import plan_notes
from medunet.training.finish import EndCost, HeldOut
from medunet.training.identity import require_same_run, run_identity
from medunet.training.run_folder import (
    BOARD,
    CHECKPOINT,
    CONFIG_FILE,
    METRICS,
    RUN_FILES,
    RUN_FOLDERS,
    TrainRequest,
    check_output,
    require_no_folds,
)
from medunet.training.setup import Say, Setup, set_up
from medunet.training.timetable import clock_of, course_notes, joint_of
from medunet.training.warm_start import take_weights

_DTYPES = {"fp32": None, "bf16": torch.bfloat16}

_FEW = 3
"""Classes up to which a network may start from all of them alike.

With two or three, background included, the expected frequencies gain nothing: hippocampi and nuclei as cores score
alike after 100 steps, and bright discs are found after 25 steps, where a network that expects them to be rare still
finds none. With nine, eleven and 23 they gain much; the table is in benchmarks/README.md.
"""


@dataclass
class Training:
    """The moving parts of one process' training.

    Attributes:
        origin: for the model card: which model the first weights came from.
    """

    setup: Setup
    state: TrainState
    recipe: Recipe
    clock: Progress
    origin: dict[str, Any]
    stop: StopSignal = field(default_factory=StopSignal, kw_only=True)

    def share(self) -> float:
        """The share of the run that is over; the first process' clock decides."""
        fraction = self.clock.fraction(self.state.step)
        if self.clock.max_steps is not None:
            return fraction
        return self.setup.world.highest(fraction if self.setup.world.leads else 0.0)

    def stopping(self) -> bool:
        """Whether a signal reached any process, which all of them then have."""
        self.stop.received = int(self.setup.world.highest(self.stop.received))
        return self.stop.received != 0


@dataclass
class Session(Training):
    """The training of the process that also writes, shows and validates; of several, the first.

    Attributes:
        left: how long the steps will go on.
        end: what comes after the last step.
        ending: seconds that are expected from the last step to the end of the command.
        validate_every: epochs from one validation to the next, in a run that is measured in epochs.
        scored_before: as `scored`, of the best score that a resumed run was given; empty where it has none.
    """

    line: ProgressLine
    board: TensorBoardWriter
    metrics: MetricsFile
    left: TimeLeft
    end: EndCost
    ending: float = 0.0
    validate_every: int = 1
    scored_before: list[Any] = field(default_factory=list)
    validation_seconds: float = 0.0
    last_validation: float = field(default_factory=time.monotonic)

    @property
    def scored(self) -> list[Any]:
        """What the best score is now: its name, and of how many cases."""
        return _scored(self.setup.config, len(self.setup.held))


def _scored(config: Config, held: int) -> list[Any]:
    return [config.training.score, min(config.training.validation_cases, held)]


def set_up_processes(request: TrainRequest, world: World, say: Say) -> Setup:
    """What the first process found, planned and resolved; the others read the same data with its config.

    Raises:
        MedunetError: anything wrong with config, data or output, in one process for all.
    """
    setup = None
    with world.together():
        if world.leads:
            check_output(request)
            require_no_folds(request.output)
            setup = set_up(request, say, world)
    found = world.first(setup.file.to_yaml().encode() if setup else b"").decode()
    with world.together():
        setup = setup or set_up(request, say, world, parse_config(found, "the first process' config"))
    # Also makes sure that the same data lie on all machines.
    identities = world.all(run_identity(setup))
    other = [rank for rank, identity in enumerate(identities) if identity != identities[0]]
    if other:
        raise ConfigError(
            f"process {other[0]} sees other cases, labels or scans than process 0\n"
            "give all machines the same data set, under the same path"
        )
    return setup


def first_network(setup: Setup, cases: Sequence[PreparedCase], resume: bool) -> UNet | AdaptedNetwork:
    """The network before its first step; what is resumed or started from a model needs no weights from elsewhere.

    Args:
        cases: that are learned from.
    """
    training = setup.config.training
    network = build_network(setup.config.network, training.seed, not resume and training.init is None)
    if isinstance(network, AdaptedNetwork):
        network.freeze_unused()
    if setup.labels.regions:
        bias_for_rare(network)
    elif setup.config.network.classes > _FEW and setup.config.loss.class_weights is None and not resume:
        # With weights, the loss does not count classes as often as they are.
        bias_from_frequencies(network, class_frequencies(cases, setup.config.network.classes))
    return network


@dataclass(frozen=True)
class _Found:
    """What a training starts with besides fresh weights: a checkpoint, or nothing but words for the model card."""

    checkpoint: Checkpoint | None
    origin: dict[str, Any]

    @property
    def notes(self) -> dict[str, Any]:
        return self.checkpoint.notes if self.checkpoint else {}


def start_training(
    setup: Setup, recipe: Recipe, network: UNet | AdaptedNetwork, resume: bool, started: float, line: ProgressLine
) -> Training:
    """Make the run's folder and the state: fresh, with a model's weights, or as the checkpoint has it.

    Args:
        network: before its first step.
    """
    config, world = setup.config, setup.world
    found = _find(setup, network, resume, started, line)
    placed(network, config.network.dimensions, setup.device)
    forward = world.joined(network, setup.device)
    ema = Ema(network, config.training.ema) if config.training.ema else None
    state = TrainState(network, make_optimiser(config.optimiser, network), ema)
    with world.together():
        if found.checkpoint:
            found.checkpoint.restore(state)
        clock = clock_of(config, state, started)
        joint = joint_of(config, state, clock, found.notes) if found.checkpoint else None
    recipe = replace(recipe, dtype=_precision(setup, recipe, found), joint=joint, world=world, forward=forward)
    if not world.leads:
        return Training(setup, state, recipe, clock, found.origin)
    before = _scored_before(setup, found) if found.checkpoint and math.isfinite(state.best) else []
    if not resume:
        _clear(setup.folder)
    write_text(setup.folder / CONFIG_FILE, setup.file.to_yaml(), overwrite=True)
    columns = ["epoch", "step", "minutes", "loss", "rate", "gradient_norm", "seconds_per_iteration"]
    columns += ["patches_per_second", "waiting_share", *(f"loss:{term}" for term in config.loss.terms)]
    columns += ["validation_dice", "validation_iou", *(f"dice:{name}" for name in setup.labels.scored)]
    board = TensorBoardWriter(setup.folder / BOARD, resumed_at=state.step if resume else None)
    board.text("config", setup.file.to_yaml(), state.step, code=True)
    board.text("plan", plan_notes(setup.file.to_yaml()), state.step)
    metrics = MetricsFile(setup.folder / METRICS, columns, state.epoch if resume else 0)
    left, end = TimeLeft(clock, state.step), EndCost(held_out(setup))
    minutes = config.training.minutes
    ending = 60 * (minutes - clock.minutes) if minutes and clock.minutes else 0.0
    return Session(
        setup, state, recipe, clock, found.origin, line, board, metrics, left, end, ending, scored_before=before
    )


def _scored_before(setup: Setup, found: _Found) -> list[Any]:
    """What the checkpoint's best score is; older checkpoints do not say it, but the config that the run had so far."""
    if "scored" in found.notes:
        return list(found.notes["scored"])
    return _scored(load_config(setup.folder / CONFIG_FILE).config, len(setup.held))


def held_out(setup: Setup) -> HeldOut:
    """The cases whose results stand at the end."""
    return HeldOut(setup.held, setup.declared, setup.config.data.axes, setup.inside)


def _find(setup: Setup, network: UNet | AdaptedNetwork, resume: bool, started: float, line: ProgressLine) -> _Found:
    """The first process looks; the network gets the weights it is to start with, which joining gives to all."""
    training, world = setup.config.training, setup.world
    found = _Found(None, {})
    with world.together():
        _require_minutes(training.minutes, time.monotonic() - started, resume)
        if resume and world.leads:
            checkpoint = load_checkpoint(setup.folder / CHECKPOINT)
            require_same_run(checkpoint.identity, setup)
            found = _Found(checkpoint, checkpoint.notes["origin"])
        elif training.init is not None and world.leads:
            found = _Found(None, _take_over(setup, network, training.init, line))
    if resume and world.size > 1:
        checkpoint = Checkpoint.from_bytes(world.first(found.checkpoint.to_bytes() if found.checkpoint else b""))
        found = _Found(checkpoint, checkpoint.notes["origin"])
    return found


def _require_minutes(minutes: float | None, spent: float, resume: bool) -> None:
    if minutes is not None and spent >= 0.8 * 60 * minutes and not resume:
        raise ConfigError(
            f"training.minutes is {minutes:g}, but reading and preparing the data alone took {spent:.0f} s; "
            "allow more minutes"
        )


def _take_over(setup: Setup, network: UNet | AdaptedNetwork, source: str, line: ProgressLine) -> dict[str, Any]:
    """Start with a trained model's weights; what is noted of it in the card of the model that comes out."""
    model = load_model(source)
    taken = take_weights(network, model, setup.data.channels, setup.labels)
    for text in taken.lines(model.card):
        line.say(text)
    if setup.held:
        line.say("  held-out scores are only fair if that model has not learned from the held-out cases")
    share = round(taken.weights / taken.total, 4)
    return {"init": model.card.name, "init_checksum": (model.checksum or "")[:12], "init_share": share}


def _precision(setup: Setup, recipe: Recipe, found: _Found) -> torch.dtype | None:
    """That of all processes, and that which the run had so far: what `auto` measures may change within an hour."""
    dtype = recipe.dtype
    if found.checkpoint and setup.config.training.precision == "auto":
        dtype = _DTYPES[found.notes["precision"]]
    return None if setup.world.highest(dtype is None) else dtype


def _clear(folder: Path) -> None:
    """Remove an earlier run's files; `check_output` has made sure that the folder holds a run or nothing of one."""
    for name in RUN_FILES:
        (folder / name).unlink(missing_ok=True)
    for name in RUN_FOLDERS:
        # The arrays that were just prepared for this very run.
        if name != "preprocessed":
            shutil.rmtree(folder / name, ignore_errors=True)


def save_state(session: Session, state: TrainState) -> None:
    """Write the run's checkpoint.

    Args:
        state: the session's, or that which a resumed run is to find.
    """
    recipe = session.recipe
    notes = {
        **course_notes(session.setup.config, recipe.joint),
        "precision": next(name for name, dtype in _DTYPES.items() if dtype == recipe.dtype),
        "origin": session.origin,
        "scored": session.scored,
    }
    save_checkpoint(session.setup.folder / CHECKPOINT, state, run_identity(session.setup), notes)
