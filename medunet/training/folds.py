"""Folds of a cross-validation: their folders, splits, set-ups and what was done before."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medunet.config import Config, load_config, parse_config, to_plain
from medunet.datasets.catalogue import read_data_set
from medunet.datasets.splits import SPLITS_FILE, Split, count_folds, fold_folder, read_patients, read_splits
from medunet.errors import ConfigError, DataError, ModelError, OutputError
from medunet.learning.checkpoint import has_checkpoint, load_checkpoint
from medunet.model import MODEL_FILE, fold_is_finished
from medunet.training.run_folder import CHECKPOINT, CONFIG_FILE, TrainRequest, check_output, clear_run
from medunet.training.setup import Setup, require_same_run
from medunet.training.timetable import require_time_left

POSTPROCESSING = "postprocessing.json"
"""In the folder of a cross-validation: the post-processing that was tried, its scores, and the choice."""


@dataclass(frozen=True)
class Folds:
    """A cross-validation under way: the set-up that all folds share, and the split of each."""

    setup: Setup
    splits: list[Split]

    @property
    def folder(self) -> Path:
        return self.setup.folder

    @property
    def inside(self) -> bool:
        """True where there is one case, which is split inside."""
        return len(self.setup.data.labelled) == 1

    def run(self, number: int) -> Path:
        return fold_folder(self.folder, number)

    def config(self, number: int) -> Config:
        config = self.setup.config
        return replace(config, data=replace(config.data, fold=number))


def check_folder(request: TrainRequest) -> None:
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
    """The folds' folders of a cross-validation that is there already; a `splits.json` alone may be anybody's."""
    if not (folder / CONFIG_FILE).exists():
        return []
    with suppress(DataError):
        return [fold_folder(folder, number) for number in range(len(read_splits(folder / SPLITS_FILE)))]
    return []


def with_minutes(request: TrainRequest, minutes: float | None) -> TrainRequest:
    """Each fold's share; it is known before the plan, which fits the network to the time of one training."""
    if minutes is None:
        return request
    if request.source.is_dir() and not request.resume:
        settings = replace(parse_config("", "--set", request.overrides).config.data, path=str(request.source))
    else:
        path = request.output / CONFIG_FILE if request.resume else request.source
        settings = load_config(path, request.overrides).config.data
    if settings.path is None or settings.folds == 0:
        return request
    data = read_data_set(Path(settings.path))
    patients = read_patients(data, settings.patient_pattern)
    share = minutes / (count_folds(data.labelled, settings.folds, patients) if data.labelled else 1)
    return replace(request, overrides=(*request.overrides, f"training.minutes={share:.6g}"))


def require_same_splits(folds: Folds) -> None:
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


def require_resumable(folds: Folds) -> None:
    """Refuse changes that one of the folds could not go on with, before anything of any of them is touched.

    Raises:
        MedunetError: naming the fold.
    """
    for number in range(len(folds.splits)):
        run = folds.run(number)
        if not (run / CONFIG_FILE).exists() or (fold_is_finished(run) and not changes(folds, number)):
            continue
        if has_checkpoint(run / CHECKPOINT):
            setup, checkpoint = _setup_of_fold(folds, number), load_checkpoint(run / CHECKPOINT)
            require_same_run(checkpoint.identity, setup)
            try:
                require_time_left(setup.config, checkpoint)
            except ConfigError as error:
                raise ConfigError(f"{run}: {error}") from error
        elif (run / MODEL_FILE).exists():
            raise ModelError(
                f"{run}: holds a model, but no {CHECKPOINT}, so that its training cannot go on\n"
                "move the folder away to train this fold anew, or resume with what it was trained with"
            )


def _setup_of_fold(folds: Folds, number: int) -> Setup:
    """The set-up that the training of a fold goes on with."""
    setup, split = folds.setup, folds.splits[number]
    cases = {case.name: case for case in setup.data.labelled}
    return replace(
        setup,
        file=replace(setup.file, config=folds.config(number)),
        training_cases=[cases[name] for name in split.learned],
        held=[cases[name] for name in split.held_out],
        folder=folds.run(number),
    )


def require_free_folds(folds: Folds) -> None:
    """Refuse to write a fold over anything that does not belong to the cross-validation to be replaced."""
    old = _old_folds(folds.folder)
    new = [folds.run(number) for number in range(len(folds.splits))]
    taken = [run for run in new if run.exists() and run not in old]
    if taken:
        raise OutputError(
            f"{taken[0]}: is in the way: there are to be {len(new)} folds, and the cross-validation to be replaced "
            f"has {len(old)}\nmove it away, or choose another folder"
        )


def clear(folder: Path) -> None:
    """Remove an earlier run or cross-validation; other files stay, and folders that are named like folds."""
    for run in _old_folds(folder):
        if (run / CONFIG_FILE).exists():
            clear_run(run)
            with suppress(OSError):
                run.rmdir()
    for name in (POSTPROCESSING, SPLITS_FILE):
        (folder / name).unlink(missing_ok=True)
    clear_run(folder)


def announcement(folds: Folds, patients: Mapping[str, str]) -> list[str]:
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


def changes(folds: Folds, number: int) -> list[str]:
    """The overrides that make a fold's own config the one that is asked for now."""
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
