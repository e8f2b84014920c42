"""The story of `medunet train`: a config becomes a model.

config -> cases and split -> preprocessed cases -> patches -> loop; validation is prediction on whole held-out scans.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from medunet.errors import MedunetError
from medunet.learning.distributed import World, joined_world
from medunet.learning.loop import Diverged, run_epoch
from medunet.model import MODEL_FILE
from medunet.patches.cache import find_cache
from medunet.patches.dataset import PatchDataset, PreparedCase
from medunet.patches.loader import EpochSampler, make_loader
from medunet.patches.prepare import Preparation, annotated_cases, prepare_cases, split_inside, training_case_notes
from medunet.planning.trial import try_steps
from medunet.system.devices import free_memory, loader_workers
from medunet.system.progress import ProgressLine, Quiet
from medunet.system.signals import caught_signals
from medunet.training.epochs import StepWatch, end_epoch, ensure_model, score_anew
from medunet.training.finish import finish_run
from medunet.training.material import make_material
from medunet.training.run_folder import CONFIG_FILE, PREPARED, TrainRequest
from medunet.training.session import Session, Training, save_state, start_training
from medunet.training.setup import Setup, set_up_processes
from medunet.training.tensorboard_text import final_scores, hyper_parameters, score_markdown
from medunet.transforms.augment.augmentation import Augmentation


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
    line = request.shown("train") if world.leads else Quiet()
    scratch = request.output / PREPARED / ("" if world.leads else f"process_{world.rank}")
    try:
        setup = set_up_processes(request, world, line.say)
        with world.together():
            cases, held = _prepare(setup, scratch, line)
            cases = annotated_cases(cases, line.say)
            for note in training_case_notes(cases, setup.labels):
                line.say(note)
            material = make_material(setup, cases, held, _augmentation(request, setup, line))
        if world.size == 1:
            line.say(f"expected: {try_steps(setup.config, material.recipe, material.patches).describe(setup.config)}")
        # Only now is anything of an earlier run touched: all that can be wrong has been looked at.
        training = start_training(material, request, line)
        if isinstance(training, Session):
            score_anew(training)
        with caught_signals(patient=world.size > 1) as training.stop:
            _run_epochs(training, material.patches, request.after_epoch or (lambda row: None))
        if not isinstance(training, Session):
            return Outcome([], training.stop.received)
        return _interrupted(training) if training.stop.received else Outcome(_finish(training))
    finally:
        line.close()
        # Prepared arrays go, and the run's folder where nothing else came to be in it.
        shutil.rmtree(scratch, ignore_errors=True)
        with suppress(OSError):
            scratch.parent.rmdir()


def _augmentation(request: TrainRequest, setup: Setup, line: ProgressLine) -> Augmentation | None:
    """The augmentation that a Python program asks for; None where the config alone decides."""
    if not request.transforms:
        return None
    # Only here, as MONAI's transforms take seconds to import.
    from medunet.training.pipeline import augmentation_of

    found = augmentation_of(setup.config, request.transforms)
    steps = "; ".join(str(step) for step in found.steps)
    line.say(f"augmentation given from Python, which the run's folder does not keep: {steps}")
    return found


def _prepare(setup: Setup, scratch: Path, line: ProgressLine) -> tuple[list[PreparedCase], list[PreparedCase]]:
    """Training cases and held-out cases on the network's grid; a single scan is split inside."""
    how = Preparation(
        setup.config.preprocess, setup.declared, setup.config.data.axes, scratch,
        free_memory(torch.device("cpu")) // (3 * setup.world.local_size), find_cache(setup.config.data.cache),
        setup.instances, setup.config.weight_map if setup.config.weight_map.kind != "none" else None,
    )  # fmt: skip
    everything = list(dict.fromkeys([*setup.training_cases, *setup.held]))
    done: list[str] = []

    def step(name: str) -> None:
        done.append(name)
        line.update(0.0, f"read {len(done)}/{len(everything)} {name}")

    prepared = {case.name: case for case in prepare_cases(everything, how, step, line.say)}
    if setup.inside:
        learned, held = split_inside(prepared[everything[0].name], setup.labels, setup.inside)
        return [learned], [held]
    return [prepared[c.name] for c in setup.training_cases], [prepared[c.name] for c in setup.held]


def _run_epochs(training: Training, patches: PatchDataset, after_epoch: Callable[[dict[str, float]], object]) -> None:
    """Epoch after epoch, until the timetable says that the run is over or a signal arrives."""
    config, state, world = training.setup.config, training.state, training.setup.world
    workers = loader_workers(config.training.workers, training.setup.device)
    loader = make_loader(patches, workers, training.setup.device.type == "cuda", part=(world.rank, world.size))
    sampler = loader.sampler
    assert isinstance(sampler, EpochSampler)
    while (state.skip or training.share() < 1) and not training.stopping():
        sampler.set_epoch(state.epoch, state.skip)
        watch = StepWatch(training, loader)
        loss = _run_epoch(training, watch)
        training.timetable.end_epoch()
        if isinstance(training, Session):
            row = None if state.skip else end_epoch(training, loss, watch)
            save_state(training, state)
            if row is not None:
                after_epoch(row)


def _run_epoch(training: Training, watch: StepWatch) -> float:
    """The rest of the epoch under way; where loss or gradient are no numbers, the last good state is saved."""
    try:
        return run_epoch(training.state, watch.batches, training.recipe, training.share, watch)
    except Diverged as error:
        if not isinstance(training, Session):
            world = training.setup.world
            raise MedunetError(f"process {world.rank} of {world.size} ends, because the training diverged") from error
        if not training.state.step:
            raise
        training.timetable.end_epoch()
        save_state(training, training.state)
        ensure_model(training)
        raise MedunetError(
            f"{error}\nlook at these scans (medunet inspect); if they are sound, start anew with a lower optimiser.rate"
            f"\nthe state before that step is saved; go on with: {_go_on(training.setup.folder)}"
        ) from error


def _interrupted(session: Session) -> Outcome:
    step, folder = session.state.step, session.setup.folder
    if not step:
        raise KeyboardInterrupt  # before the first step there is nothing to save or to go on with
    ensure_model(session)
    session.writer.close()
    lines = [f"stopped after {step} steps; everything is saved in {folder}", f"go on with: {_go_on(folder)}"]
    return Outcome(lines, session.stop.received)


def _go_on(folder: Path) -> str:
    return f"medunet train {folder / CONFIG_FILE} -o {folder} --resume"


def _finish(session: Session) -> list[str]:
    """The last predictions and scores on the scans' own grids, and the report."""
    setup, step = session.setup, session.state.step
    if not session.held:
        (setup.folder / MODEL_FILE).unlink(missing_ok=True)
    ensure_model(session)
    session.writer.close()
    lines = ["no case was held out (data.folds is 0), so there are no validation scores"]
    if session.held:
        lines, evaluation = finish_run(setup, session.line)
        card = evaluation.card
        texts = {"final scores": score_markdown(card)}
        session.writer.final(hyper_parameters(setup.config), final_scores(card), texts, step)
    return [
        *lines,
        f"model: {setup.folder / MODEL_FILE} ({step} steps, {session.timetable.elapsed() / 60:.1f} minutes)",
    ]
