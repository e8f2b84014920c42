"""Session of a training: one process' part, made fresh, with a model's weights, or from a checkpoint.

With several processes, all get the same from the first one, and only the first one writes, shows and validates.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from medunet.config import TrainingSettings, load_config
from medunet.learning.averaging import Ema
from medunet.learning.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from medunet.learning.loop import Recipe, TrainState, placed
from medunet.learning.monitor import MetricsFile, TensorBoardWriter
from medunet.learning.optimisers import make_optimiser
from medunet.model import load_model
from medunet.networks.build import build_network
from medunet.networks.external.adapter import AdaptedNetwork
from medunet.networks.unet import UNet, bias_for_rare, bias_from_frequencies
from medunet.patches.dataset import PreparedCase
from medunet.patches.prepare import class_frequencies
from medunet.system.files import write_text
from medunet.system.progress import ProgressLine
from medunet.system.signals import StopSignal
from medunet.training.finish import EndCost
from medunet.training.material import Material
from medunet.training.run_folder import CHECKPOINT, CONFIG_FILE, EVENTS, METRICS, PREPARED, TrainRequest, clear_run
from medunet.training.setup import Setup, require_same_run, run_identity
from medunet.training.tensorboard_text import plan_notes
from medunet.training.timetable import Timetable, require_minutes
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
    """The moving parts of one process' training."""

    setup: Setup
    state: TrainState
    recipe: Recipe
    timetable: Timetable
    stop: StopSignal = field(default_factory=StopSignal, kw_only=True)

    def share(self) -> float:
        """The share of the run that is over, in all processes."""
        return self.timetable.common_share(self.state.step, self.setup.world)

    def stopping(self) -> bool:
        """True once a signal has reached any process; then all of them have it."""
        self.stop.received = int(self.setup.world.highest(self.stop.received))
        return self.stop.received != 0


@dataclass
class Session(Training):
    """The training of the process that also writes, shows and validates; of several, the first.

    Attributes:
        held: the cases that are held out, for validation.
        origin: for the model card: the model that the first weights came from.
        end: measures the work after the last step.
        scored_before: like `scored`, for the best score of the run that is resumed; empty where it has none.
    """

    held: Sequence[PreparedCase]
    origin: dict[str, Any]
    line: ProgressLine
    writer: TensorBoardWriter
    metrics: MetricsFile
    end: EndCost
    scored_before: list[Any]

    @property
    def scored(self) -> list[Any]:
        """The meaning of the best score: its name, and the number of cases."""
        return _scored(self.setup.config.training, self.setup)


def _scored(training: TrainingSettings, setup: Setup) -> list[Any]:
    return [training.score, min(training.validation_cases, len(setup.held))]


def _first_network(setup: Setup, cases: Sequence[PreparedCase], resume: bool) -> UNet | AdaptedNetwork:
    """The network before its first step; with `resume` or a model to start with, it needs no pretrained weights.

    Args:
        cases: the training cases.
    """
    training = setup.config.training
    network = build_network(setup.config.network, training.seed, not resume and training.init is None)
    if isinstance(network, AdaptedNetwork):
        network.freeze_unused()
    if setup.labels.regions:
        bias_for_rare(network)
    elif setup.config.network.classes > _FEW and setup.config.loss.class_weights is None and not resume:
        # With weights, the frequency of a class is not what it counts in the loss.
        bias_from_frequencies(network, class_frequencies(cases, setup.config.network.classes))
    return network


def start_training(material: Material, request: TrainRequest, line: ProgressLine) -> Training:
    """Make the run's folder and the state: fresh, with a model's weights, or from the run's checkpoint."""
    setup, world = material.setup, material.setup.world
    network = _first_network(setup, material.cases, request.resume)
    checkpoint = _load(setup, line) if request.resume else None
    origin = checkpoint.notes["origin"] if checkpoint else _start_anew(setup, network, request.started, line)
    state = _first_state(setup, network)
    with world.together():
        if checkpoint:
            checkpoint.restore(state)
        timetable = Timetable(setup.config, request.started, checkpoint, material.epochs_apart)
    dtype = _precision(material, checkpoint)
    recipe = replace(material.recipe, dtype=dtype, resumed=timetable.resumed, world=world)
    if not world.leads:
        return Training(setup, state, recipe, timetable)
    before = _scored_before(setup, checkpoint) if checkpoint and math.isfinite(state.best) else []
    if not checkpoint:
        # The arrays in it were just prepared for this very run.
        clear_run(setup.folder, keep=PREPARED)
    write_text(setup.folder / CONFIG_FILE, setup.file.to_yaml(), overwrite=True)
    writer, metrics = _writer(setup, state, request.resume), _metrics(setup, state, request.resume)
    return Session(
        setup, state, recipe, timetable, material.held, origin, line, writer, metrics, EndCost(setup), before
    )


def _load(setup: Setup, line: ProgressLine) -> Checkpoint:
    """The run's checkpoint, in all processes; the first one reads it."""
    content = b""
    with setup.world.together():
        if setup.world.leads:
            checkpoint = load_checkpoint(setup.folder / CHECKPOINT)
            require_same_run(checkpoint.identity, setup)
            if checkpoint.note:
                line.say(checkpoint.note)
            if setup.world.size == 1:
                return checkpoint
            content = checkpoint.to_bytes()
    return Checkpoint.from_bytes(setup.world.first(content))


def _start_anew(setup: Setup, network: UNet | AdaptedNetwork, started: float, line: ProgressLine) -> dict[str, Any]:
    """Give the network the weights of the model that it is to start with, if any; returns what the card notes of it.

    The first process does so; joining gives the weights to all.
    """
    training, world = setup.config.training, setup.world
    with world.together():
        require_minutes(training, time.monotonic() - started)
        if training.init is not None and world.leads:
            return _take_over(setup, network, training.init, line)
    return {}


def _take_over(setup: Setup, network: UNet | AdaptedNetwork, source: str, line: ProgressLine) -> dict[str, Any]:
    model = load_model(source, "cpu")
    warm_start = take_weights(network, model, setup.data.channels, setup.labels)
    for text in warm_start.lines(model.card):
        line.say(text)
    if setup.held:
        line.say("  held-out scores are only fair if the held-out cases were no training cases of that model")
    share = round(warm_start.weights / warm_start.total, 4)
    return {"init": model.card.name, "init_checksum": (model.checksum or "")[:12], "init_share": share}


def _first_state(setup: Setup, network: UNet | AdaptedNetwork) -> TrainState:
    config = setup.config
    placed(network, config.network.dimensions, setup.device)
    forward = setup.world.joined(network, setup.device)
    ema = Ema(network, config.training.ema) if config.training.ema else None
    return TrainState(forward, make_optimiser(config.optimiser, network), ema)


def _precision(material: Material, checkpoint: Checkpoint | None) -> torch.dtype | None:
    """The type for all processes; with `auto` that of earlier sessions, as measurements change within an hour."""
    dtype, setup = material.recipe.dtype, material.setup
    if checkpoint and setup.config.training.precision == "auto":
        dtype = _DTYPES[checkpoint.notes["precision"]]
    return None if setup.world.highest(dtype is None) else dtype


def _scored_before(setup: Setup, checkpoint: Checkpoint) -> list[Any]:
    """The meaning of the checkpoint's best score; for older checkpoints the config that the run had so far says it."""
    if "scored" in checkpoint.notes:
        return list(checkpoint.notes["scored"])
    return _scored(load_config(setup.folder / CONFIG_FILE).config.training, setup)


def _writer(setup: Setup, state: TrainState, resume: bool) -> TensorBoardWriter:
    writer, config = TensorBoardWriter(setup.folder / EVENTS, state.step if resume else None), setup.file.to_yaml()
    writer.text("config", config, state.step, code=True)
    writer.text("plan", plan_notes(config), state.step)
    return writer


def _metrics(setup: Setup, state: TrainState, resume: bool) -> MetricsFile:
    columns = ["epoch", "step", "minutes", "loss", "rate", "gradient_norm", "seconds_per_iteration"]
    columns += ["patches_per_second", "waiting_share", *(f"loss:{term}" for term in setup.config.loss.terms)]
    columns += ["validation_dice", "validation_iou", *(f"dice:{name}" for name in setup.labels.scored)]
    return MetricsFile(setup.folder / METRICS, columns, state.epoch if resume else 0)


def save_state(session: Session, state: TrainState) -> None:
    """Write the run's checkpoint.

    Args:
        state: the session's, or the one that a resumed run is to find.
    """
    notes = {
        **session.timetable.notes,
        "precision": next(name for name, dtype in _DTYPES.items() if dtype == session.recipe.dtype),
        "origin": session.origin,
        "scored": session.scored,
    }
    path, identity = session.setup.folder / CHECKPOINT, run_identity(session.setup)
    save_checkpoint(path, state, identity, notes, session.timetable.time)
