"""The story of `medunet train`: a config becomes a model.

config -> cases and split -> preprocessed cases -> patches -> loop; validation is prediction on whole held-out scans.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medunet.config import Config
from medunet.errors import MedunetError
from medunet.instances.weightmap import class_balance
from medunet.learning.distributed import World, joined_world
from medunet.learning.loop import Diverged, Recipe, StepFacts, evaluation_weights, run_epoch
from medunet.learning.monitor import Waited, memory_used
from medunet.learning.tensorboard import TensorBoardWriter
from medunet.losses.build import Loss, make_loss
from medunet.model import MODEL_FILE, Model, load_model, save_model
from medunet.networks.build import build_network
from medunet.patches.cache import find_cache
from medunet.patches.dataset import PatchBatch, PatchDataset, PreparedCase
from medunet.patches.frequencies import class_voxels
from medunet.patches.loader import EpochSampler, make_loader
from medunet.patches.prepare import Preparation, annotated_cases, prepare_cases, teaching_notes
from medunet.patches.single_scan import split_inside
from medunet.planning.trial import try_steps
from medunet.system.devices import autocast_type, free_memory, loader_workers
from medunet.system.progress import ProgressLine, Quiet
from medunet.system.signals import caught_signals
from medunet.training.board_text import final_scores, hyper_parameters, score_markdown
from medunet.training.finish import finish_run
from medunet.training.run_folder import CONFIG_FILE, TrainRequest
from medunet.training.session import (
    Session,
    Training,
    first_network,
    held_out,
    save_state,
    set_up_processes,
    start_training,
)
from medunet.training.setup import Setup
from medunet.training.validation import Validation, validate
from medunet.transforms.augment import Augmentation

_LEAVING = 1.0
"""Seconds for the last checkpoint and for ending the process."""


@dataclass(frozen=True)
class Outcome:
    """Lines for people, and the signal that ended the training early (0 for none)."""

    lines: list[str]
    signal: int = 0


def train_run(request: TrainRequest) -> Outcome:
    """Train, validate, and leave a run folder; as one of several processes where torchrun started it.

    Raises:
        MedunetError: anything wrong with config, data or output, before the first step where it can be known.
    """
    with joined_world() as world:
        return _train(request, world)


def _train(request: TrainRequest, world: World) -> Outcome:
    started = time.monotonic() if request.started is None else request.started
    line = ProgressLine("train") if world.leads else Quiet()
    scratch = request.output / "preprocessed" / ("" if world.leads else f"process_{world.rank}")
    try:
        setup = set_up_processes(request, world, line.say)
        with world.together():
            cases, held = _prepare(setup, scratch, line)
            cases = annotated_cases(cases, line.say)
            for note in teaching_notes(cases, setup.labels):
                line.say(note)
            patches, recipe = _patches(setup, cases), _recipe(setup, cases)
        if world.size == 1:
            line.say(f"expected: {try_steps(setup.config, recipe, patches).describe(setup.config)}")
        # Only now is anything of an earlier run touched: all that can be wrong has been looked at.
        network = first_network(setup, cases, request.resume)
        training = start_training(setup, recipe, network, request.resume, started, line)
        if isinstance(training, Session):
            training.validate_every = _epochs_between_validations(setup.config, patches, held)
            _score_anew(training, held)
        with caught_signals(patient=world.size > 1) as training.stop:
            _learn(training, patches, held)
        if not isinstance(training, Session):
            return Outcome([], training.stop.received)
        if training.stop.received:
            return _interrupted(training)
        return Outcome(_finish(training, held))
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
        setup.config.preprocess, setup.declared, setup.config.data.axes, scratch,
        free_memory(torch.device("cpu")) // (3 * setup.world.local_size), find_cache(setup.config.data.cache),
        setup.instances, setup.config.weight_map if setup.config.weight_map.kind != "none" else None,
    )  # fmt: skip
    everything = list(dict.fromkeys([*setup.learned, *setup.held]))
    done: list[str] = []

    def step(name: str) -> None:
        done.append(name)
        line.update(0.0, f"read {len(done)}/{len(everything)} {name}")

    prepared = {case.name: case for case in prepare_cases(everything, how, step, line.say)}
    if setup.inside:
        learned, held = split_inside(prepared[everything[0].name], setup.labels, setup.inside)
        return [learned], [held]
    return [prepared[c.name] for c in setup.learned], [prepared[c.name] for c in setup.held]


def _recipe(setup: Setup, cases: Sequence[PreparedCase]) -> Recipe:
    config = setup.config
    return Recipe(
        loss=_loss(setup, cases),
        schedule=config.schedule,
        rate=config.optimiser.highest_rate,
        clip=config.training.clip,
        device=setup.device,
        dtype=autocast_type(config.training.precision, setup.device),
        seed=config.training.seed,
    )


def _loss(setup: Setup, cases: Sequence[PreparedCase]) -> Loss:
    balanced = setup.config.loss.class_weights == "balanced"
    return loss_of(setup, class_voxels(cases, setup.labels.classes) if balanced else None)


def loss_of(setup: Setup, voxels: Sequence[int] | None) -> Loss:
    """The loss of a training whose cases have so many voxels of each class; None where it does not ask for them.

    Raises:
        ConfigError: class weights that do not fit the labels or regions.
    """
    regions = [region.indices for region in setup.labels.regions]
    return make_loss(setup.config.loss, setup.labels.classes, voxels, regions, setup.world.sum)


def _patches(setup: Setup, cases: Sequence[PreparedCase]) -> PatchDataset:
    config = setup.config
    return PatchDataset(
        cases=cases,
        settings=config.patches,
        per_epoch=config.training.iterations * config.patches.batch,
        augmentation=Augmentation(config.augment, config.network.dimensions),
        seed=config.training.seed,
        margin=() if config.network.padded else config.network.shape.margin,
        class_weights=_class_weights(setup, cases),
    )


def _class_weights(setup: Setup, cases: Sequence[PreparedCase]) -> tuple[float, ...]:
    """Of a weight map, over all training cases; none where there is no map."""
    if setup.config.weight_map.kind == "none":
        return ()
    classes = setup.labels.classes
    return class_balance(class_voxels(cases, classes)) if setup.config.weight_map.class_balance else (1.0,) * classes


def _learn(training: Training, patches: PatchDataset, held: Sequence[PreparedCase]) -> None:
    """Epoch after epoch, until the clock says it is over or a signal arrives."""
    config, state, world = training.setup.config, training.state, training.setup.world
    on_gpu = training.setup.device.type == "cuda"
    workers = loader_workers(config.training.workers, training.setup.device)
    loader = make_loader(patches, workers, on_gpu, part=(world.rank, world.size))
    sampler = loader.sampler
    assert isinstance(sampler, EpochSampler)
    while (state.skip or training.share() < 1) and not training.stopping():
        sampler.set_epoch(state.epoch, state.skip)
        batches = Waited(loader)
        watch = _Watch(training, batches)
        loss = _epoch(training, batches, watch)
        state.elapsed = training.clock.elapsed()
        if isinstance(training, Session):
            if not state.skip:
                _close_epoch(training, loss, watch, held)
            save_state(training, state)


def _epoch(training: Training, batches: Waited[Any], watch: _Watch) -> float:
    """The rest of the epoch under way; the last good state is saved where loss or gradient are no numbers."""
    try:
        return run_epoch(training.state, batches, training.recipe, training.share, watch)
    except Diverged as error:
        if not isinstance(training, Session):
            world = training.setup.world
            raise MedunetError(f"process {world.rank} of {world.size} ends, because the training diverged") from error
        if not training.state.step:
            raise
        training.state.elapsed = training.clock.elapsed()
        save_state(training, training.state)
        _ensure_model(training)
        raise MedunetError(
            f"{error}\nlook at these scans (medunet inspect); if they are sound, start anew with a lower optimiser.rate"
            f"\nthe state before that step is saved; go on with: {_go_on(training.setup.folder)}"
        ) from error


def _close_epoch(session: Session, loss: float, watch: _Watch, held: Sequence[PreparedCase]) -> None:
    due = bool(held) and _validation_due(session)
    if due:
        # A validation that is cut off is made up for by a resumed run.
        iterations = session.setup.config.training.iterations
        save_state(session, replace(session.state, epoch=session.state.epoch - 1, skip=iterations))
    _log_epoch(session, loss, watch, _validate(session, held) if due else None)


class _Watch:
    """Looks at every step: shows it, and passes on a stop signal."""

    def __init__(self, training: Training, batches: Waited[PatchBatch]) -> None:
        self._training, self._batches = training, batches
        self._started = self._last = time.monotonic()
        self.steps, self._smooth = 0, math.nan

    def __call__(self, facts: StepFacts) -> bool:
        self._last = time.monotonic()
        self.steps += 1
        if isinstance(self._training, Session):
            self._show(self._training, facts)
        return self._training.stopping()

    def _show(self, session: Session, facts: StepFacts) -> None:
        state = session.state
        self._smooth = facts.loss if math.isnan(self._smooth) else 0.9 * self._smooth + 0.1 * facts.loss
        left = session.left.seconds(session.clock, state.step)
        session.line.update(
            session.clock.fraction(state.step),
            f"epoch {state.epoch + 1}, step {state.step}, loss {self._smooth:.3f}, {self.seconds:.2f} s/it"
            + (f", best {state.best:.4f}" if math.isfinite(state.best) else ""),
            None if left is None else left + session.ending,
        )
        session.board.scalars(
            {"loss/step": facts.loss, "optimiser/learning rate": facts.rate, "optimiser/gradient norm": facts.norm},
            state.step,
        )

    @property
    def seconds(self) -> float:
        """Per iteration, so far in this epoch."""
        return (self._last - self._started) / max(self.steps, 1)

    @property
    def waiting(self) -> float:
        """The share of the time in which the network waited for patches."""
        return self._batches.seconds / max(self._last - self._started, 1e-9)


def _epochs_between_validations(config: Config, patches: PatchDataset, held: Sequence[PreparedCase]) -> int:
    """So that validation takes its share of the time, if a step costs three times a prediction of as many voxels."""
    looked_at = sum(case.label.size for case in held[: config.training.validation_cases])
    learned = patches.per_epoch * math.prod(config.patches.size)
    share = config.training.validation_share
    return max(1, math.ceil(looked_at / 3 * (1 - share) / share / learned))


def _validation_due(session: Session) -> bool:
    """After the first epoch, at the end, and in between as often as the allowed share of the time permits.

    The clock has no say where a run is measured in epochs: which models are compared, and so which is kept, would
    change from one run to the next, and with each resume.
    """
    state = session.state
    if session.clock.max_steps is not None:
        done = session.clock.fraction(state.step) >= 1
        return done or state.epoch == 1 or state.epoch % session.validate_every == 0
    if session.clock.fraction(state.step) >= 1 or session.validation_seconds == 0:
        return True
    share = session.setup.config.training.validation_share
    apart = session.validation_seconds * (1 - share) / share
    left = session.left.seconds(session.clock, state.step)
    # Not shortly before the end, where one comes anyway.
    return time.monotonic() - session.last_validation >= apart and (left is None or left >= apart)


def _validate(session: Session, held: Sequence[PreparedCase]) -> Validation:
    """Score whole held-out scans with the averaged weights, and keep the model if it is the best so far."""
    started, setup, state = time.monotonic(), session.setup, session.state
    looked_at = held[: setup.config.training.validation_cases]
    with _evaluated(session) as network:
        model = Model(network, setup.card({}))
        result = validate(model, looked_at, setup.config.training.precision)
        score = _score(setup.config, result)
        # Ties and NaN (no label in the held-out part) keep the later model.
        if not score < state.best:
            state.best = score if math.isfinite(score) else state.best
            _save(session, score)
        _show(session.board, result, state.step)
        session.validation_seconds = time.monotonic() - started
        _keep_time_for_the_end(session, model, held)
    session.last_validation = time.monotonic()
    return result


def _score_anew(session: Session, held: Sequence[PreparedCase]) -> None:
    """Measure the best model so far by what is asked for now: Dice and IoU, or scores of other cases, do not compare.

    Where the model is gone, the next one is the best.
    """
    state, before, now = session.state, session.scored_before, session.scored
    if not before or before == now:
        return
    old, path, score = state.best, session.setup.folder / MODEL_FILE, math.nan
    if path.exists():
        model = load_model(path, session.setup.device)
        score = _score(session.setup.config, validate(model, held[: now[1]], session.setup.config.training.precision))
    state.best = score if math.isfinite(score) else -math.inf
    found = f"the best so far has {score:.4f} (was {old:.4f})" if math.isfinite(score) else "the next one is the best"
    session.line.say(
        f"models are compared by {now[0]} of {now[1]} held-out cases, no longer by {before[0]} of {before[1]}: {found}"
    )


def _score(config: Config, result: Validation) -> float:
    return result.mean_dice if config.training.score == "dice" else result.mean_iou


def _show(board: TensorBoardWriter, result: Validation, step: int) -> None:
    board.scalars({"validation/dice": result.mean_dice, "validation/iou": result.mean_iou}, step)
    board.scalars({f"validation dice/{name}": value for name, value in result.dice.items()}, step)
    board.scalars({f"validation iou/{name}": value for name, value in result.iou.items()}, step)
    board.shares({f"dice over cases/{name}": values for name, values in result.spread.items()}, step)
    board.pictures("validation/worst", result.pictures, step)


def _keep_time_for_the_end(session: Session, model: Model, held: Sequence[PreparedCase]) -> None:
    """Shorten the clock by what the last validations will take, so that `minutes` is kept and none is wasted."""
    training, seconds = session.setup.config.training, session.validation_seconds
    minutes = training.minutes
    guess = 2.5 * seconds * len(held) / min(len(held), training.validation_cases) + 5
    if minutes is not None:
        affordable = session.end.spent <= 0.02 * session.clock.elapsed()
        if affordable and (session.end.known or guess / len(held) <= 0.04 * 60 * minutes):
            session.end.rehearse(model, {case.name: case.label.size for case in held})
    session.ending = seconds + _LEAVING + (session.end.seconds() if session.end.known else guess)
    if minutes is not None:
        session.state.reserve = min(session.ending / 60, 0.4 * minutes)
        session.clock = replace(session.clock, minutes=minutes - session.state.reserve)


def _save(session: Session, score: float) -> None:
    state, setup = session.state, session.setup
    record: dict[str, str | int | float | None] = {
        "steps": state.step,
        "minutes": round(session.clock.elapsed() / 60, 2),
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


def _log_epoch(session: Session, loss: float, watch: _Watch, scores: Validation | None) -> None:
    state = session.state
    row: dict[str, str | int | float] = {
        "epoch": state.epoch,
        "step": state.step,
        "minutes": session.clock.elapsed() / 60,
        "loss": loss,
        "rate": state.rate,
        "gradient_norm": state.tally.mean_norm,
        "seconds_per_iteration": watch.seconds,
        "patches_per_second": session.setup.config.patches.batch / watch.seconds if watch.seconds else math.nan,
        "waiting_share": watch.waiting,
    }
    speed = {f"speed/{name.replace('_', ' ')}": float(value) for name, value in list(row.items())[-3:]}
    parts = state.tally.mean_parts
    row |= {f"loss:{name}": value for name, value in parts.items()}
    losses = {
        "loss/epoch": loss,
        **({f"loss/{name}": value for name, value in parts.items()} if len(parts) > 1 else {}),
    }
    session.board.scalars({**losses, **speed, **memory_used(session.setup.device)}, state.step)
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
        with evaluation_weights(session.state):
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
            f"go on with: {_go_on(folder)}",
        ],
        session.stop.received,
    )


def _go_on(folder: Path) -> str:
    return f"medunet train {folder / CONFIG_FILE} -o {folder} --resume"


def _finish(session: Session, held: Sequence[PreparedCase]) -> list[str]:
    """The last predictions and scores on the scans' own grids, and the report."""
    setup = session.setup
    if not held:
        (setup.folder / MODEL_FILE).unlink(missing_ok=True)
    _ensure_model(session)
    session.board.close()
    finished = finish_run(setup.folder, held_out(setup), session.line, setup.device)
    if finished.evaluation is not None:
        card = finished.evaluation.card
        texts = {"final scores": score_markdown(card)}
        session.board.final(hyper_parameters(setup.config), final_scores(card), texts, session.state.step)
    minutes = session.clock.elapsed() / 60
    return [*finished.lines, f"model: {setup.folder / MODEL_FILE} ({session.state.step} steps, {minutes:.1f} minutes)"]
