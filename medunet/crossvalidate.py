"""The story of `medunet train --fold all`: one config, all folds, a score of every case, and one ensemble.

config -> splits -> a whole run for each fold -> out-of-fold predictions -> scores -> post-processing that helps
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medunet.config import Config, load_config, parse_config, to_plain
from medunet.course import require_time_left
from medunet.data.catalogue import Case, by_stem, load_image, read_data_set, scan_files
from medunet.data.formats import files_of, read_volume, write_volume
from medunet.data.pairs import Pair
from medunet.data.postprocess import PostStep
from medunet.data.preprocess import ScanView
from medunet.data.splits import (
    SPLITS_FILE,
    Split,
    all_splits,
    count_folds,
    fold_folder,
    read_patients,
    read_splits,
    splits_text,
)
from medunet.errors import ConfigError, DataError, ModelError, OutputError
from medunet.experiment import (
    CHECKPOINT,
    CONFIG_FILE,
    REPORT,
    RUN_FILES,
    RUN_FOLDERS,
    Setup,
    TrainRequest,
    check_output,
    require_same_run,
    run_identity,
    set_up_folds,
)
from medunet.files import write_text, written_aside
from medunet.learning.checkpoint import has_checkpoint, load_checkpoint
from medunet.learning.distributed import world_of
from medunet.learning.monitor import ProgressLine
from medunet.model import MODEL_FILE, fold_is_finished, load_model, save_model
from medunet.scorecard import summary_lines
from medunet.scorefiles import write_evaluation
from medunet.segmentation.postselection import choose_postprocessing
from medunet.train import Outcome, loss_of, train_run
from medunet.validate import OBJECTS, compare_predictions, fold_of_voxels, objects_of

POSTPROCESSING = "postprocessing.json"
"""In the folder of a cross-validation: which post-processing was tried, what it gave, and what was chosen."""


@dataclass(frozen=True)
class Folds:
    """A cross-validation under way: what all folds share, and who is held out in which."""

    setup: Setup
    splits: list[Split]

    @property
    def folder(self) -> Path:
        return self.setup.folder

    @property
    def inside(self) -> bool:
        """Whether there is one case, which is split inside."""
        return len(self.setup.data.labelled) == 1

    def run(self, number: int) -> Path:
        return fold_folder(self.folder, number)

    def config(self, number: int) -> Config:
        config = self.setup.config
        return replace(config, data=replace(config.data, fold=number))


def cross_validate(request: TrainRequest, minutes: float | None = None) -> Outcome:
    """Train all folds one after the other into `fold_0`, `fold_1`, …, and put together what they found out.

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
    _check_folder(request)
    line = ProgressLine("folds")
    try:
        folds = _set_up(_with_minutes(request, minutes), line)
    finally:
        line.close()
    with _how_to_go_on(folds):
        for number in range(len(folds.splits)):
            outcome = _train_fold(folds, number, request.device, line)
            if outcome.signal:
                return Outcome([outcome.lines[0], _go_on(folds)], outcome.signal)
        return Outcome(_put_together(folds))


def _check_folder(request: TrainRequest) -> None:
    check_output(request)
    folder = request.output
    if request.resume:
        if not (folder / SPLITS_FILE).exists():
            raise ModelError(f"-o {folder}: holds a single run, no cross-validation; go on with it without --fold all")
        read_splits(folder / SPLITS_FILE)
        return
    if _old_folds(folder):
        return
    others = [*folder.glob("fold_*"), folder / SPLITS_FILE, folder / POSTPROCESSING]
    taken = [path.name for path in others if path.exists()]
    if taken:
        raise OutputError(
            f"-o {folder}: holds {sorted(taken)[0]}, but no cross-validation that could be replaced; "
            "choose another folder"
        )


def _old_folds(folder: Path) -> list[Path]:
    """The folders of the folds of a cross-validation that is there; none where there is none.

    A `splits.json` alone may be anybody's.
    """
    if not (folder / CONFIG_FILE).exists():
        return []
    with suppress(DataError):
        return [fold_folder(folder, number) for number in range(len(read_splits(folder / SPLITS_FILE)))]
    return []


def _with_minutes(request: TrainRequest, minutes: float | None) -> TrainRequest:
    """Each fold's share; it is known before the plan, which fits the network to the time of one training."""
    if minutes is None:
        return request
    if request.resume:
        settings = load_config(request.output / CONFIG_FILE, request.overrides).config.data
    elif request.source.is_dir():
        settings = replace(parse_config("", "--set", request.overrides).config.data, path=str(request.source))
    else:
        settings = load_config(request.source, request.overrides).config.data
    if settings.path is None or settings.folds == 0:
        return request
    data = read_data_set(Path(settings.path))
    patients = read_patients(data, settings.patient_pattern)
    share = minutes / (count_folds(data.labelled, settings.folds, patients) if data.labelled else 1)
    return replace(request, overrides=(*request.overrides, f"training.minutes={share:.6g}"))


def _set_up(request: TrainRequest, line: ProgressLine) -> Folds:
    """Config and splits, made once and written down before the first fold; a resumed run must agree with them."""
    setup = set_up_folds(request, line.say)
    settings = setup.config.data
    if settings.folds == 0:
        raise ConfigError("--fold all needs parts of the cases to hold out, but data.folds is 0; set it to 5, say")
    patients = read_patients(setup.data, settings.patient_pattern)
    folds = Folds(setup, all_splits(setup.data.labelled, settings.folds, settings.seed, patients))
    loss_of(setup, [1] * setup.labels.classes)  # what is wrong with it is said before anything is replaced
    if request.resume:
        _require_same_splits(folds)
        if request.overrides:
            before = set_up_folds(replace(request, overrides=()), lambda _: None)
            require_same_run(run_identity(before), setup)
        _require_resumable(folds)
    else:
        _require_free_folds(folds)
        _clear(setup.folder)
    write_text(setup.folder / CONFIG_FILE, setup.file.to_yaml(), overwrite=True)
    write_text(setup.folder / SPLITS_FILE, splits_text(folds.splits, patients), overwrite=True)
    for text in _announcement(folds, patients):
        line.say(text)
    return folds


def _require_same_splits(folds: Folds) -> None:
    path = folds.folder / SPLITS_FILE
    before = read_splits(path)
    for number, (old, new) in enumerate(zip(before, folds.splits, strict=False)):
        if old != new:
            added, gone = set(new.held_out) - set(old.held_out), set(old.held_out) - set(new.held_out)
            what = [f"would also hold out {min(added)}"] if added else []
            what += [f"would no longer hold out {min(gone)}"] if gone else []
            raise ConfigError(
                f"{path}: cannot be resumed, because fold {number} {' and '.join(what) or 'has other cases'} now\n"
                "resume with the same cases, patients, data.folds and data.seed, or start in another folder"
            )
    if len(before) != len(folds.splits):
        raise ConfigError(
            f"{path}: cannot be resumed, because it has {len(before)} folds, and now there would be "
            f"{len(folds.splits)}\nresume with the same cases and data.folds, or start in another folder"
        )


def _require_resumable(folds: Folds) -> None:
    """Refuse what one of the folds could not go on with, before anything of any of them is touched.

    Raises:
        MedunetError: naming the fold.
    """
    for number in range(len(folds.splits)):
        run = folds.run(number)
        if not (run / CONFIG_FILE).exists() or (fold_is_finished(run) and not _changes(folds, number)):
            continue
        if has_checkpoint(run / CHECKPOINT):
            setup, checkpoint = _setup_of_fold(folds, number), load_checkpoint(run / CHECKPOINT)
            require_same_run(checkpoint.identity, setup)
            with _named(run):
                require_time_left(setup.config, checkpoint.step, checkpoint.elapsed, checkpoint.notes)
        elif (run / MODEL_FILE).exists():
            raise ModelError(
                f"{run}: holds a model, but no {CHECKPOINT}, so that its training cannot go on\n"
                "move the folder away to train this fold anew, or resume with what it was trained with"
            )


def _setup_of_fold(folds: Folds, number: int) -> Setup:
    """What the training of a fold goes on with."""
    setup, split = folds.setup, folds.splits[number]
    cases = {case.name: case for case in setup.data.labelled}
    return replace(
        setup,
        file=setup.file.resolved(folds.config(number)),
        learned=[cases[name] for name in split.learned],
        held=[cases[name] for name in split.held_out],
        folder=folds.run(number),
    )


@contextmanager
def _named(run: Path) -> Iterator[None]:
    """Errors about a fold name it."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{run}: {error}") from error


def _require_free_folds(folds: Folds) -> None:
    """Refuse to write a fold where something lies that is none of the cross-validation to be replaced."""
    old = _old_folds(folds.folder)
    new = [folds.run(number) for number in range(len(folds.splits))]
    taken = [run for run in new if run.exists() and run not in old]
    if taken:
        raise OutputError(
            f"{taken[0]}: is in the way: there are to be {len(new)} folds, and the cross-validation to be replaced "
            f"has {len(old)}\nmove it away, or choose another folder"
        )


def _clear(folder: Path) -> None:
    """Remove what an earlier run or cross-validation wrote; other files stay, and folders that are named like folds."""
    for run in _old_folds(folder):
        if (run / CONFIG_FILE).exists():
            _clear_run(run)
            with suppress(OSError):
                run.rmdir()
    for name in (POSTPROCESSING, SPLITS_FILE):
        (folder / name).unlink(missing_ok=True)
    _clear_run(folder)


def _clear_run(run: Path) -> None:
    """The config goes last: what is left where the program is killed is still known as ours."""
    for name in RUN_FOLDERS:
        shutil.rmtree(run / name, ignore_errors=True)
    for name in reversed(RUN_FILES):
        (run / name).unlink(missing_ok=True)


def _announcement(folds: Folds, patients: Mapping[str, str]) -> list[str]:
    minutes, count = folds.setup.config.training.minutes, len(folds.splits)
    each = f", {minutes:.3g} minutes each ({minutes * count:.3g} in all)" if minutes is not None else ""
    if folds.inside:
        return [f"{count} folds{each}: parts of the only scan along its longest axis, from its end"]
    together = f"; cases of {len(set(patients.values()))} patients stay together" if patients else ""
    total = len(folds.setup.data.labelled)
    lines = [f"{count} folds{each}{together}; see {folds.folder / SPLITS_FILE}"]
    for number, split in enumerate(folds.splits):
        names = ", ".join(split.held_out[:4]) + (", …" if len(split.held_out) > 4 else "")
        lines.append(f"  fold {number} holds out {len(split.held_out)} of {total}: {names}")
    return lines


@contextmanager
def _how_to_go_on(folds: Folds) -> Iterator[None]:
    """Ctrl-C and SIGTERM outside of a training, which reports them itself, leave a word about what is there."""
    try:
        yield
    except BaseException as stop:
        if not isinstance(stop, Exception):
            ProgressLine("folds").say(_go_on(folds))
        raise


def _go_on(folds: Folds) -> str:
    done = sum(fold_is_finished(folds.run(number)) for number in range(len(folds.splits)))
    return (
        f"{done} of {len(folds.splits)} folds are finished; "
        f"go on with: medunet train {folds.folder / CONFIG_FILE} -o {folds.folder} --fold all --resume"
    )


def _train_fold(folds: Folds, number: int, device: str, line: ProgressLine) -> Outcome:
    run, count = folds.run(number), len(folds.splits)
    changed = _changes(folds, number) if (run / CONFIG_FILE).exists() else []
    if fold_is_finished(run):
        if not changed:
            line.say(f"fold {number} of {count}: is finished")
            return Outcome([])
        # It is to go on, and must not count as finished until it is.
        (run / REPORT).unlink()
    resume = (run / CONFIG_FILE).exists() and has_checkpoint(run / CHECKPOINT)
    line.say(f"fold {number} of {count}: {'goes on' if resume else 'starts'} in {run}")
    overrides = changed if resume else [f"data.fold={number}"]
    outcome = train_run(
        TrainRequest(folds.folder / CONFIG_FILE, run, tuple(overrides), device, resume=resume, overwrite=not resume)
    )
    for text in outcome.lines if not outcome.signal else ():
        line.say(f"  {text}")
    return outcome


def _changes(folds: Folds, number: int) -> list[str]:
    """What a fold's own config must be changed by, as overrides, to be what is asked for now."""
    mine = _flat(to_plain(load_config(folds.run(number) / CONFIG_FILE).config))
    wanted = _flat(to_plain(folds.config(number)))
    return [f"{key}={json.dumps(value)}" for key, value in wanted.items() if mine.get(key) != value]


def _flat(plain: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys of a nested mapping."""
    flat: dict[str, Any] = {}
    for key, value in plain.items():
        nested = isinstance(value, Mapping) and value
        flat |= _flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def _put_together(folds: Folds) -> list[str]:
    """Score every case by the model that did not learn from it, and choose the post-processing that helps.

    Returns:
        Lines for the terminal.
    """
    setup, folder = folds.setup, folds.folder
    line = ProgressLine("folds")
    try:
        pairs = [_out_of_fold(folds, case) for case in setup.data.labelled]
        line.update(1.0, f"scoring {len(pairs)} cases")
        title = f"Every case of {setup.data.name} by the fold that did not learn from it"
        evaluation = compare_predictions(pairs, setup.declared, title)
        write_evaluation(evaluation, folder / "validation", overwrite=True)
        # The same page, which takes seconds to draw.
        page = (folder / "validation" / REPORT).read_text(encoding="utf-8")
        write_text(folder / REPORT, page, overwrite=True)
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
    finally:
        line.close()
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
    """Copy a label map; one of several files, or a folder, is written anew by what knows how to write it whole."""
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
    """A single scan: from each fold's prediction the part that it did not learn from."""
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
    model = load_model(path)
    if model.card.postprocess != steps:
        save_model(path, model.network.state_dict(), replace(model.card, postprocess=steps))
