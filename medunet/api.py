"""The Python API for researchers: `plan`, `train` and `segment_volume` for all that Python users hold in memory.

Nothing is printed; notes of a training go to the logger `medunet`.
"""

from __future__ import annotations

import csv
import io
import json
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from medunet import evaluate, predict
from medunet.config import Config, annotated_yaml
from medunet.crossvalidate import cross_validate
from medunet.datasets.catalogue import read_data_set
from medunet.errors import DataError, MissingExtra
from medunet.evaluation.files import evaluation_record
from medunet.evaluation.pairs import Pair
from medunet.evaluation.scorecard import score_table
from medunet.evaluation.settings import EvaluateSettings, Evaluation
from medunet.instances.watershed import ObjectRule
from medunet.model import Model, load_models
from medunet.plan_training import Planned, plan_data_set
from medunet.planning.budget import Budget
from medunet.prediction.planning import PredictSettings
from medunet.prediction.segmenter import Segmenter
from medunet.report.table import csv_text
from medunet.system.progress import Logged
from medunet.system.wording import parse_bytes
from medunet.train_network import train_run
from medunet.training.run_folder import CONFIG_FILE, METRICS, TrainRequest
from medunet.volume import Volume

if TYPE_CHECKING:
    from monai.transforms import Compose

Work = Callable[["Volume | NDArray[Any]"], tuple[NDArray[Any], ...]]
"""From a scan to its maps."""
SCORES = Path("validation") / "scores.json"


@dataclass(frozen=True)
class Run:
    """A run's folder: its history, its scores and its model.

    Attributes:
        folder: where it lies.
        history: one line for each epoch, as in `metrics.csv`: `epoch`, `step`, `minutes`, `loss`, `validation_dice`, …;
            what an epoch did not measure is left out. Empty for a cross-validation, whose folds have their own.
        scores: those of the held-out cases, as in `validation/scores.json`; None where none was held out or the
            training has not come to its end.
        signal: the signal that stopped the training, 0 for none.
    """

    folder: Path
    history: tuple[dict[str, float], ...]
    scores: dict[str, Any] | None
    signal: int = 0

    @staticmethod
    def open(folder: Path | str, signal: int = 0) -> Run:
        """Read what is in a run's folder."""
        folder = Path(folder)
        scores = folder / SCORES
        found = json.loads(scores.read_text(encoding="utf-8")) if scores.exists() else None
        return Run(folder, tuple(_rows(folder / METRICS)), found, signal)

    @property
    def folds(self) -> tuple[Run, ...]:
        """The runs of a cross-validation, in order."""
        folders = sorted(self.folder.glob("fold_*"), key=lambda path: int(path.name.removeprefix("fold_")))
        return tuple(Run.open(folder) for folder in folders)

    def models(self, device: str = "auto") -> list[Model]:
        """The trained model, or those of all folds."""
        return load_models(self.folder, device)


def _rows(path: Path) -> Iterable[dict[str, float]]:
    if not path.exists():
        return
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            yield {key: _number(value) for key, value in row.items() if value not in ("", None)}


def _number(text: str) -> float:
    value = float(text)
    return int(value) if math.isfinite(value) and value == int(value) and "." not in text else value


def plan(
    data_set: Path | str,
    memory: int | str | None = None,
    minutes: float | None = None,
    device: str = "auto",
    axes: str | None = None,
    dimensions: Literal[2, 3] | None = None,
) -> Planned:
    """Measure a data set and plan a complete config for it.

    Args:
        data_set: its folder.
        memory: that the training may use, a number of bytes or a text such as `8G`; three quarters of what is free.
        minutes: wall time of the training; an hour.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        axes: of TIFF files and Zarr arrays that do not state them, such as `ZYX`.
        dimensions: of the network, whatever the plan would choose.

    Returns:
        The plan, with its `config`, the `notes` that give reasons by key, and `to_yaml()`.

    Raises:
        DataError: no labelled case, or cases that are wrong.
        ConfigError: too little memory for the smallest network, or three dimensions for pictures.
    """
    budget = Budget.of(None if memory is None else parse_bytes(memory), minutes, device, dimensions)
    return plan_data_set(read_data_set(Path(data_set)), budget, axes)


def train(
    source: Path | str | Config | Planned,
    output: Path | str,
    overrides: Mapping[str, Any] | None = None,
    fold: int | Literal["all", "none"] | None = None,
    minutes: float | None = None,
    device: str = "auto",
    after_epoch: Callable[[dict[str, float]], object] | None = None,
    *,
    transforms: Sequence[Any] | Compose = (),
    init: Path | str | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Run:
    """Train a network and leave a run folder, as `medunet train` does.

    Args:
        source: a config file, a config or a plan, or the folder of a data set, for which a config is planned.
        output: the run's folder.
        overrides: values of the config by dotted key, such as `{"training.epochs": 20}`.
        fold: the part of the cases that is held out, `all` for a cross-validation, `none` to learn from all cases.
        minutes: wall time to fit into.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        after_epoch: called after each epoch with its line of `metrics.csv`, as numbers.
        transforms: of MONAI or your own, applied to each patch after the config's augmentation: dictionaries with
            `image` and `label`, such as `[RandBiasFieldd(["image"], prob=0.3)]`; or what `training_transforms` gave,
            changed after its `RandPatchd`. Their random state is set from seed, epoch and number of the patch. A label
            that is interpolated is refused. The run's folder does not keep them: give them again to resume.
        init: a trained model whose weights are the start.
        resume: go on with the run in the folder.
        overwrite: replace the run in the folder.

    Raises:
        MedunetError: anything wrong with config, data or output, before the first step where it can be known.
    """
    changes = {**(overrides or {}), **({} if init is None else {"training.init": str(init)})}
    said = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
    if fold == "none":
        said += ["data.folds=0", "data.fold=0"]
    elif fold not in (None, "all"):
        said.append(f"data.fold={fold}")
    if minutes is not None and fold != "all":
        said.append(f"training.minutes={minutes}")
    with tempfile.TemporaryDirectory() as scratch:
        path = _config_file(source, Path(scratch))
        request = TrainRequest(
            path, Path(output), tuple(said), device, resume, overwrite, line=Logged(), after_epoch=after_epoch,
            transforms=transforms,
        )  # fmt: skip
        outcome = cross_validate(request, minutes) if fold == "all" else train_run(request)
    return Run.open(output, outcome.signal)


def _config_file(source: Path | str | Config | Planned, scratch: Path) -> Path:
    source = source.config if isinstance(source, Planned) else source
    if not isinstance(source, Config):
        return Path(source)
    path = scratch / CONFIG_FILE
    path.write_text(annotated_yaml(source, {}, "Given to medunet.train as a config."), encoding="utf-8")
    return path


def segment_volume(
    volume: Any,
    model: Model | Sequence[Model],
    settings: PredictSettings | None = None,
    probabilities: bool = False,
) -> Any:
    """Segment a scan that is in memory, or one scan after the other.

    Args:
        volume: a `Volume`, or `(channel, *spatial)` as an array, a tensor or MONAI's `MetaTensor`, with the channels
            that the model was trained on. A `MetaTensor` lies where its affine says. A bare array or tensor is taken as
            lying on the model's own grid: its axes and its voxel size do not change, its intensities are normalised. A
            list, generator or any other iterable of these gives an iterator over the results.
        model: one, or several whose class probabilities are averaged.
        settings: how; the method, the memory, the precision, test-time augmentation.
        probabilities: give `(labels, probabilities)`, the latter `(class, *spatial)`, or one channel per region.

    Returns:
        A label map `(1, *spatial)` on exactly the scan's grid, with the data set's own label values and the model's
        post-processing, in the form in which the scan was given.

    Raises:
        DataError: the scan's channels or dimensions are not the model's, or voxels are NaN or infinite.
        ConfigError: the method asked for is impossible for this network, or the memory is too small.
        TypeError: the scan is nothing of the above.
    """
    segmenter = _segmenter(model, settings)

    def labels(scan: Volume | NDArray[Any]) -> tuple[NDArray[Any], ...]:
        found, scores = predict.segment_volume(scan, segmenter, probabilities)
        return (found,) if scores is None else (found, scores)

    return _of_each(volume, segmenter, labels)


def segment_objects(
    volume: Any,
    model: Model | Sequence[Model],
    settings: PredictSettings | None = None,
    rule: ObjectRule | None = None,
) -> Any:
    """Find the objects of a scan that is in memory, such as cells: `segment_volume`, one number for each object.

    Post-processing that cross-validation chose for label maps (`keep the largest component`, …) is not done to objects.

    Args:
        volume, model, settings: see `segment_volume`. The model learned one kind of object.
        rule: which objects are kept, and how; by default those that are as large as the objects of the training.

    Returns:
        An id map `(1, *spatial)` on exactly the scan's grid, with 0 for background, in uint16, or in uint32 from 65536
        objects on, in the form in which the scan was given. Objects are numbered from 1 without gaps, by z, then y,
        then x of their first voxel.

    Raises:
        DataError, TypeError: see `segment_volume`.
        ConfigError: see `segment_volume`; or the model learned several kinds of objects.
        MedunetError: touching objects fill more voxels than `settings.memory` allows to be told apart.
    """
    segmenter = _segmenter(model, settings)
    return _of_each(volume, segmenter, lambda scan: (predict.segment_objects(scan, segmenter, rule),))


def _segmenter(model: Model | Sequence[Model], settings: PredictSettings | None) -> Segmenter:
    return Segmenter([model] if isinstance(model, Model) else list(model), settings)


def _of_each(volume: Any, segmenter: Segmenter, work: Work) -> Any:
    """The results of one scan, or of each in turn."""
    if isinstance(volume, Volume | np.ndarray | torch.Tensor):
        return _of_one(volume, segmenter, work)
    if isinstance(volume, str | bytes | Path) or not isinstance(volume, Iterable):
        raise TypeError(
            f"found a {type(volume).__name__}, expected a Volume, an array or a tensor; a file is read with "
            "medunet.read_volume"
        )
    return (_of_one(one, segmenter, work) for one in volume)


def _of_one(volume: Any, segmenter: Segmenter, work: Work) -> Any:
    if isinstance(volume, torch.Tensor) and hasattr(volume, "affine"):
        given: Any = Volume.from_metatensor(volume)
    else:
        given = volume.detach().cpu().numpy() if isinstance(volume, torch.Tensor) else volume
    _require_channels(given, segmenter)
    found = tuple(_like(volume, given, array) for array in work(given))
    return found if len(found) > 1 else found[0]


def _require_channels(volume: Any, segmenter: Segmenter) -> None:
    wanted = segmenter.card.network.dimensions + 1
    if not isinstance(volume, Volume) and volume.ndim < wanted:
        raise DataError(
            f"found an array of shape {tuple(volume.shape)}, expected (channel, *spatial) with at least {wanted - 1} "
            "spatial axes; an image without channels is given as image[None]"
        )


def _like(volume: Any, given: Any, array: NDArray[Any]) -> Any:
    """An array in the form in which its scan was given."""
    if isinstance(volume, torch.Tensor):
        return given.with_array(array).to_metatensor() if isinstance(given, Volume) else torch.from_numpy(array)
    return given.with_array(array) if isinstance(given, Volume) else array


class Scores(Evaluation):
    """An evaluation that gives its numbers to other programs."""

    def to_dict(self) -> dict[str, Any]:
        """All numbers by case and in summary, as in `scores.json`: plain values, None for what is not defined."""
        return evaluation_record(self)

    def to_dataframe(self) -> Any:
        """A pandas DataFrame with one row for each case and label, as in `scores.csv`.

        Raises:
            MissingExtra: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise MissingExtra("to_dataframe needs pandas; pip install pandas") from error
        return pandas.read_csv(io.StringIO(csv_text(score_table(self.card))))


def evaluate_pairs(pairs: Iterable[Pair | tuple[Any, Any]], settings: EvaluateSettings | None = None) -> Scores:
    """Score pairs of label maps. A case that cannot be scored is named in `failed` and stops no other.

    Args:
        pairs: (prediction, reference), each a path, a `Volume`, an array or a tensor; or `Pair` records. An array is
            `(*spatial)`, or `(1, *spatial)` where its first axis has one entry, with voxels of length 1. Cases are
            named after the reference's file, or numbered.
        settings: what is scored, and how.

    Raises:
        DataError: no pair, two cases of one name, or not one pair could be scored.
    """
    given = [pair if isinstance(pair, Pair) else (_label_map(pair[0]), _label_map(pair[1])) for pair in pairs]
    found = evaluate.evaluate_pairs(given, settings)
    return Scores(found.card, found.labels, found.pairs)


def _label_map(source: Any) -> Path | str | Volume:
    if isinstance(source, str | Path | Volume):
        return source
    array = source.detach().cpu().numpy() if isinstance(source, torch.Tensor) else np.asarray(source)
    return Volume(array if array.ndim > 2 and len(array) == 1 else array[None])
