"""End of a training: every held-out case predicted in full, scored and reported."""

from __future__ import annotations

import csv
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medunet.datasets.annotation import EVERYTHING
from medunet.datasets.catalogue import Case
from medunet.datasets.labels import IGNORE, LabelTable
from medunet.datasets.loading import load_image, load_label_values
from medunet.datasets.splits import Fold
from medunet.errors import DataError, MedunetError
from medunet.evaluate import evaluate_pairs
from medunet.evaluation.files import case_picture, write_evaluation
from medunet.evaluation.pairs import Pair
from medunet.evaluation.scorecard import summary_lines
from medunet.evaluation.settings import EvaluateSettings, Evaluation
from medunet.formats.dispatch import default_suffix, read_grid, write_volume
from medunet.instances.find import Landscape, Workspace, find_objects_of
from medunet.instances.watershed import ObjectRule
from medunet.model import Model, load_model
from medunet.patches.prepare import held_out_mask
from medunet.prediction.members import elevation_rule_of
from medunet.prediction.segmenter import IndexBuffer, Segmenter
from medunet.report.plots import EpochRecord, curves_plot
from medunet.system.files import write_text
from medunet.system.progress import ProgressLine
from medunet.training.run_folder import METRICS, REPORT
from medunet.training.setup import Setup
from medunet.training.validation import QUICK
from medunet.transforms.preprocess import Undo
from medunet.transforms.restore import restore_labels
from medunet.volume import Volume

NO_ID = 2**32
"""The id of voxels that are not judged in a map of object ids; files of 32 bits have no such id."""
OBJECTS = "objects"
"""The folder of numbered objects, beside the predictions of held-out cases by a model of objects."""
_PAGE_PICTURES = 3
"""Cases in pictures on a report's page: worst, median, best."""


def finish_run(setup: Setup, line: ProgressLine) -> tuple[list[str], Evaluation]:
    """Predict and score all held-out scans on their own grids with the best model; write predictions and reports.

    Returns:
        Lines for the terminal, and the scores.
    """
    folder, segmenter = setup.folder, Segmenter([load_model(setup.folder, setup.device)])
    pairs = []
    for number, case in enumerate(setup.held, start=1):
        line.update(1.0, f"last validation {number}/{len(setup.held)} {case.name}")
        pairs.append(_predict_case(case, segmenter, folder / "validation", setup))
    evaluation = _compared(pairs, segmenter, setup)
    write_scores(evaluation, folder, epoch_records(folder / METRICS))
    return [*summary_lines(evaluation.card), *_unnumbered(segmenter, pairs), f"report: {folder / REPORT}"], evaluation


def write_scores(evaluation: Evaluation, folder: Path, epochs: Sequence[EpochRecord] = ()) -> None:
    """Write scores into the run's or cross-validation's folder, and the report also beside its model."""
    write_evaluation(evaluation, folder / "validation", overwrite=True, epochs=epochs)
    # The same page, which takes seconds to draw.
    page = (folder / "validation" / REPORT).read_text(encoding="utf-8")
    write_text(folder / REPORT, page, overwrite=True)


def _compared(pairs: Sequence[Pair], segmenter: Segmenter, setup: Setup) -> Evaluation:
    labels = widened(setup.declared) if setup.inside else setup.declared
    return compare_predictions(pairs, labels, f"Held-out cases of {segmenter.card.name}")


def compare_predictions(pairs: Sequence[Pair], labels: LabelTable, title: str) -> Evaluation:
    """Score label maps; those of objects also object by object, where the objects of every case lie beside its mask.

    Args:
        pairs: their predictions are files, objects in the folder `OBJECTS` beside them.
        labels: the data set's own table, of what the references hold.
    """
    objects = labels.kind == "instances" and all(objects_of(pair).exists() for pair in pairs)
    compared = [replace(pair, prediction=objects_of(pair)) for pair in pairs] if objects else pairs
    return evaluate_pairs(compared, EvaluateSettings(labels=labels, title=title, instances=objects))


def objects_of(pair: Pair) -> Path:
    """The file of the numbered objects of a predicted mask; it may be missing."""
    assert isinstance(pair.prediction, Path), "as `_predict_case` gives it"
    return pair.prediction.parent / OBJECTS / pair.prediction.name


class EndCost:
    """The seconds that `finish_run` will take, measured by going its whole way with single cases, in turn.

    Attributes:
        spent: seconds that measuring took.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._tried: list[float] = []
        self._voxels, self._page = 0, 0.0
        self.spent = 0.0

    def measure(self, model: Model, voxels: Mapping[str, int]) -> None:
        """Read, predict, write and score the next case, and the first time draw it as well.

        Args:
            voxels: of each held-out case on the network's grid, by name.
        """
        self._voxels = sum(voxels.values())
        case = self._setup.held[len(self._tried) % len(self._setup.held)]
        started = time.monotonic()
        # A case that cannot be scored is named at the end, where it stops no other.
        with TemporaryDirectory(prefix="medunet-") as folder, suppress(DataError):
            segmenter = Segmenter([model])
            seconds, evaluation = self._time_case(case, segmenter, Path(folder))
            if not self._tried:
                self._time_page(evaluation)
                if seconds < QUICK:
                    # The first one paid for imports, which a small case does not hide.
                    seconds, _ = self._time_case(case, segmenter, Path(folder))
            self._tried.append(seconds / voxels[case.name])
        self.spent += time.monotonic() - started

    def _time_case(self, case: Case, segmenter: Segmenter, folder: Path) -> tuple[float, Evaluation]:
        started = time.monotonic()
        pair = _predict_case(case, segmenter, folder, self._setup)
        evaluation = _compared([pair], segmenter, self._setup)
        return time.monotonic() - started, evaluation

    def _time_page(self, evaluation: Evaluation) -> None:
        """Draw what a report's page is made of: pictures of cases, and two plots, which take about as long."""
        record = [
            EpochRecord(epoch, 1.0, 1.0, {one.label: 0.5 for one in evaluation.cases[0].labels}) for epoch in (1, 2)
        ]
        curves_plot(record)  # the first one pays for imports
        started = time.monotonic()
        curves_plot(record)
        between = time.monotonic()
        case_picture(evaluation, evaluation.cases[0].case)
        pictures = min(_PAGE_PICTURES, len(self._setup.held))
        self._page = 2 * (between - started) + pictures * (time.monotonic() - between)

    @property
    def known(self) -> bool:
        return bool(self._tried)

    def seconds(self) -> float:
        """For all cases, by the last few that were tried, and for the page."""
        latest = self._tried[-5:]
        return math.fsum(latest) / len(latest) * self._voxels + self._page


def _predict_case(case: Case, segmenter: Segmenter, folder: Path, setup: Setup) -> Pair:
    assert case.label is not None
    volume = load_image(case, setup.config.data.axes)
    scan = segmenter.open(volume)
    stated, target = _as_stated(volume, case, setup.config.data.axes), folder / f"{case.name}{default_suffix(volume)}"
    if segmenter.card.instances is None:
        indices = segmenter.indices(scan)
    else:
        landscape = Landscape.blank(
            elevation_rule_of(segmenter.models, ObjectRule()), scan.undo, volume.shape, np.empty
        )
        # The classes of objects are for finding them; their mask is what their label files can be compared with.
        collected = IndexBuffer(scan)
        for piece in segmenter.pieces(scan, segmenter.plan(scan), scores=True):
            collected.put(piece)
            landscape.put(piece)
        indices = segmenter.card.instances.mask(collected.indices)
        ids = _find_ids(landscape, volume.spacing, segmenter.settings.memory)
        _write_objects(stated, ids, folder / OBJECTS / target.name)
    predicted = stated.with_array(setup.declared.to_values(indices))
    write_volume(predicted, target, overwrite=True, labels=True)
    reference: Path | Volume = case.label
    if setup.inside:
        reference = volume.with_array(_held_out_labels(case, volume, scan.undo, setup))
    annotation = EVERYTHING if setup.inside else case.annotation
    return Pair(case.name, target, reference, case.images[0], setup.config.data.axes, annotation, case.size, own=True)


def _unnumbered(segmenter: Segmenter, pairs: Sequence[Pair]) -> list[str]:
    """Notes on cases whose objects are missing; none for a model of classes."""
    if segmenter.card.instances is None:
        return []
    missing = [path.name for path in map(objects_of, pairs) if not path.exists()]
    return [f"NOTE: {name}: its objects touch so widely that numbering them takes too much memory" for name in missing]


def _as_stated(volume: Volume, case: Case, axes: str | None) -> Volume:
    """The volume on the grid that its file states, which may know no voxel size: results lie on exactly that.

    Sections keep the declared distance, as they cannot state another.
    """
    if case.size is None:
        return volume
    own = read_grid(case.images[0], axes=axes, frame=case.frame)
    return replace(volume, affine=own.affine, unit=own.unit) if own.unit == "pixel" else volume


def _find_ids(landscape: Landscape, spacing: Sequence[float], memory: int) -> NDArray[Any] | None:
    """The numbered objects of a case; None where that takes too much memory: a training must not end for want of it."""
    with suppress(MedunetError):
        return find_objects_of(landscape, ObjectRule(), spacing, Workspace(np.empty, memory)).ids
    return None


def _write_objects(volume: Volume, ids: NDArray[Any] | None, path: Path) -> None:
    """Write the numbered objects of a case on its grid; those of an earlier run go in any case."""
    if path.is_dir() and not path.is_symlink():  # an OME-Zarr
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    if ids is not None:
        with suppress(MedunetError):
            write_volume(volume.with_array(ids), path, overwrite=True, labels=True)


def fold_of_voxels(undo: Undo, folds: int) -> NDArray[np.uint8]:
    """`(1, *spatial)`, in which fold each voxel of a single scan is held out; `folds` where it was cut away."""
    found = np.ascontiguousarray(undo.orientation.undo(np.full((1, *undo.oriented), folds, dtype=np.uint8)))
    for number in range(folds):
        held = held_out_mask(undo.shape, Fold(number, folds))
        inside = restore_labels(np.stack([held, ~held]).astype(np.float32), undo, outside=1) == 0
        # Halfway between two parts a voxel could belong to both.
        found[inside & (found == folds)] = number
    return found


def widened(labels: LabelTable) -> LabelTable:
    """A table with a value for voxels outside the held-out part."""
    if labels.kind == "instances":
        return replace(labels, ignore=NO_ID)
    ignore = labels.ignore
    if ignore is None:
        ignore = next(value for value in range(len(labels.values) + 1) if value not in labels.values)
    return replace(labels, ignore=ignore)


def _held_out_labels(case: Case, volume: Volume, undo: Undo, setup: Setup) -> NDArray[np.int64]:
    """`(1, *spatial)`, the label file in the held-out part, and the ignore value of `widened` everywhere else.

    An object that goes on in the training part is judged by its held-out part.
    """
    assert setup.inside is not None
    table = widened(setup.declared)
    assert table.ignore is not None
    values = load_label_values(case, volume, setup.config.data.axes)
    indices = case.annotation.marked(setup.declared.to_indices(values, str(case.label)), setup.declared, case.name)
    unknown = (indices == IGNORE) | (fold_of_voxels(undo, setup.inside.count) != setup.inside.number)
    return np.where(unknown, table.ignore, values.astype(np.int64))


def epoch_records(path: Path) -> list[EpochRecord]:
    """The training's history as `metrics.csv` has it."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [
        EpochRecord(
            epoch=int(row["epoch"]),
            loss=float(row["loss"] or "nan"),
            learning_rate=float(row["rate"] or "nan"),
            patches_per_second=float(row.get("patches_per_second") or "nan"),
            dice={key[5:]: float(value) for key, value in row.items() if key.startswith("dice:") and value},
        )
        for row in rows
    ]
