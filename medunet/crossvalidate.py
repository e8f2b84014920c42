"""The story of `medunet train --fold all`: one config, all folds, a score of every case, and one ensemble.

config -> splits -> a whole run for each fold -> out-of-fold predictions -> scores -> post-processing that helps
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np

from medunet.datasets.catalogue import Case, by_stem, scan_files
from medunet.datasets.loading import load_image
from medunet.datasets.splits import SPLITS_FILE, all_splits, read_patients, splits_text
from medunet.errors import ConfigError, DataError
from medunet.evaluation.pairs import Pair
from medunet.evaluation.postselection import choose_postprocessing
from medunet.evaluation.scorecard import summary_lines
from medunet.formats.dispatch import files_of, read_volume, write_volume
from medunet.learning.checkpoint import has_checkpoint
from medunet.learning.distributed import world_of
from medunet.model import MODEL_FILE, fold_is_finished, load_model, save_model
from medunet.system.files import write_text, written_aside
from medunet.system.progress import ProgressLine
from medunet.train_network import Outcome, train_run
from medunet.training.finish import OBJECTS, compare_predictions, fold_of_voxels, objects_of, write_scores
from medunet.training.folds import (
    POSTPROCESSING,
    Folds,
    announcement,
    changes,
    check_folder,
    clear,
    require_free_folds,
    require_resumable,
    require_same_splits,
    with_minutes,
)
from medunet.training.material import loss_of
from medunet.training.run_folder import CHECKPOINT, CONFIG_FILE, REPORT, TrainRequest
from medunet.training.setup import require_same_run, run_identity, set_up_folds
from medunet.transforms.postprocess import PostStep
from medunet.transforms.preprocess import ScanView


def cross_validate(request: TrainRequest, minutes: float | None = None) -> Outcome:
    """Train all folds one after the other into `fold_0`, `fold_1`, …, and put their results together.

    Each fold is a whole run. A resumed cross-validation leaves finished folds as they are, unless what is asked for
    has changed (more epochs, say), and goes on with the one that was under way.

    Args:
        minutes: for all folds together, split evenly; None leaves the config's `training.minutes`, which is for one
            training, as it is.

    Raises:
        MedunetError: anything wrong with config, data or output.
    """
    if world_of(os.environ).size > 1:
        raise ConfigError("--fold all trains in one process; with torchrun, train the folds one by one: --fold 0, …")
    check_folder(request)
    with closing(request.shown("folds")) as line:
        folds = _set_up(with_minutes(request, minutes), line)
    try:
        for number in range(len(folds.splits)):
            outcome = _train_fold(folds, number, request, line)
            if outcome.signal:
                return Outcome([outcome.lines[0], _go_on(folds)], outcome.signal)
        return Outcome(_put_together(folds, request))
    except BaseException as stop:
        # Ctrl-C and SIGTERM outside of a training, which reports them itself, leave a line about the finished folds.
        if not isinstance(stop, Exception):
            request.shown("folds").say(_go_on(folds))
        raise


def _set_up(request: TrainRequest, line: ProgressLine) -> Folds:
    """Make config and splits, and write them before the first fold; a resumed run must agree with them."""
    setup = set_up_folds(request, line.say)
    settings = setup.config.data
    if settings.folds == 0:
        raise ConfigError("--fold all needs parts of the cases to hold out, but data.folds is 0; set it to 5, say")
    patients = read_patients(setup.data, settings.patient_pattern)
    folds = Folds(setup, all_splits(setup.data.labelled, settings.folds, settings.seed, patients))
    loss_of(setup, [1] * setup.labels.classes)  # what is wrong with it is said before anything is replaced
    if request.resume:
        require_same_splits(folds)
        if request.overrides:
            before = set_up_folds(replace(request, overrides=()), lambda _: None)
            require_same_run(run_identity(before), setup)
        require_resumable(folds)
    else:
        require_free_folds(folds)
        clear(setup.folder)
    write_text(setup.folder / CONFIG_FILE, setup.file.to_yaml(), overwrite=True)
    write_text(setup.folder / SPLITS_FILE, splits_text(folds.splits, patients), overwrite=True)
    for text in announcement(folds, patients):
        line.say(text)
    return folds


def _go_on(folds: Folds) -> str:
    done = sum(fold_is_finished(folds.run(number)) for number in range(len(folds.splits)))
    return (
        f"{done} of {len(folds.splits)} folds are finished; "
        f"go on with: medunet train {folds.folder / CONFIG_FILE} -o {folds.folder} --fold all --resume"
    )


def _train_fold(folds: Folds, number: int, request: TrainRequest, line: ProgressLine) -> Outcome:
    run, count = folds.run(number), len(folds.splits)
    changed = changes(folds, number) if (run / CONFIG_FILE).exists() else []
    if fold_is_finished(run):
        if not changed:
            line.say(f"fold {number} of {count}: is finished")
            return Outcome([])
        # It is to go on, and must not count as finished until it is.
        (run / REPORT).unlink()
    resume = (run / CONFIG_FILE).exists() and has_checkpoint(run / CHECKPOINT)
    line.say(f"fold {number} of {count}: {'goes on' if resume else 'starts'} in {run}")
    overrides = changed if resume else [f"data.fold={number}"]
    source, started = folds.folder / CONFIG_FILE, time.monotonic()
    asked = replace(request, source=source, output=run, overrides=tuple(overrides), started=started)
    outcome = train_run(replace(asked, resume=resume, overwrite=not resume))
    for text in outcome.lines if not outcome.signal else ():
        line.say(f"  {text}")
    return outcome


def _put_together(folds: Folds, request: TrainRequest) -> list[str]:
    """Score every case by the fold that held it out, and choose the post-processing that helps.

    Returns:
        Lines for the terminal.
    """
    setup, folder = folds.setup, folds.folder
    with closing(request.shown("folds")) as line:
        pairs = [_out_of_fold(folds, case) for case in setup.data.labelled]
        line.update(1.0, f"scoring {len(pairs)} cases")
        title = f"Every case of {setup.data.name} by the fold that did not learn from it"
        evaluation = compare_predictions(pairs, setup.declared, title)
        write_scores(evaluation, folder)
        scored = [pair for pair in pairs if pair.case in evaluation.pairs]
        # A model whose classes are parts of objects has no label map that these steps would be done to.
        reason = (
            ""
            if setup.labels == setup.declared
            else f"what is learned is parts of objects: {', '.join(setup.labels.names)}"
        )
        selection = choose_postprocessing(scored, setup.declared, lambda text: line.update(1.0, text), reason)
        write_text(folder / POSTPROCESSING, json.dumps(selection.record(), indent=1) + "\n", overwrite=True)
        for number in range(len(folds.splits)):
            _give(folds.run(number) / MODEL_FILE, selection.steps)
    return [
        *summary_lines(evaluation.card),
        *selection.lines(),
        f"report: {folder / REPORT}",
        f"model: {folder} (medunet predict averages its {len(folds.splits)} folds)",
    ]


def _out_of_fold(folds: Folds, case: Case) -> Pair:
    """The prediction of a case by the fold that held it out, in the cross-validation's own folder."""
    assert case.label is not None
    found = [number for number, split in enumerate(folds.splits) if case.name in split.held_out]
    files = [_prediction(folds.run(number), case.name) for number in found]
    target = folds.folder / "validation" / files[0].name
    if folds.inside:
        _write_joined(folds, case, files, target)
    else:
        _copy(files[0], target)
    axes = folds.setup.config.data.axes
    pair = Pair(case.name, target, case.label, case.images[0], axes, case.annotation, case.size, own=True)
    objects = files[0].parent / OBJECTS / files[0].name
    if objects.exists() and not folds.inside:
        _copy(objects, objects_of(pair))
    return pair


def _copy(source: Path, target: Path) -> None:
    """Copy a label map; if it consists of several files or is a folder, it is read and written anew as a whole."""
    if files_of(source) != [source]:
        write_volume(read_volume(source), target, overwrite=True, labels=True)
        return
    with written_aside(target, overwrite=True) as aside:
        shutil.copyfile(source, aside)


def _prediction(run: Path, case: str) -> Path:
    folder = run / "validation"
    files = by_stem(scan_files(folder)) if folder.is_dir() else {}
    if case not in files:
        raise DataError(
            f"{folder}: has no prediction of {case}, though the fold is finished\n"
            f"delete {run} and train it again with --fold all --resume"
        )
    return files[case]


def _write_joined(folds: Folds, case: Case, files: Sequence[Path], target: Path) -> None:
    """Write the label map of a single scan: from each fold's prediction the part that it held out."""
    config = folds.setup.config
    volume = load_image(case, config.data.axes)
    where = fold_of_voxels(ScanView(volume, config.preprocess).undo, len(files))
    first = read_volume(files[0])  # on the grid that the scan's file states, which may know no voxel size
    joined = first.array.copy()
    for number, file in enumerate(files[1:], start=1):
        np.copyto(joined, read_volume(file).array, where=where == number)
    write_volume(first.with_array(joined), target, overwrite=True, labels=True)


def _give(path: Path, steps: tuple[PostStep, ...]) -> None:
    """Put post-processing into a model's card; the file is replaced as a whole."""
    model = load_model(path, "cpu")
    if model.card.postprocess != steps:
        save_model(path, model.network.state_dict(), replace(model.card, postprocess=steps))
