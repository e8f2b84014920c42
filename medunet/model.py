"""One file is the model: weights, and in its metadata all that prediction needs.

The file is safetensors, which cannot hold code; its metadata is JSON that must fit `ModelCard`. A SHA-256 over weights
and card is stored and checked, because a flipped bit would otherwise load without a word.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from medunet.config import Network, to_plain
from medunet.datasets.labels import LabelTable
from medunet.datasets.splits import SPLITS_FILE, fold_folder, read_splits
from medunet.errors import ConfigError, DataError, LocatedError, ModelError
from medunet.instances.settings import InstanceSettings
from medunet.networks.build import build_network
from medunet.networks.settings import UNetSettings
from medunet.system.devices import find_device
from medunet.system.files import written_aside
from medunet.transforms.postprocess import PostStep
from medunet.transforms.preprocess import PreprocessSettings
from medunet.version import __version__

MODEL_FILE, REPORT_FILE = "model.safetensors", "report.html"
_FORMAT = "1"


@dataclass(frozen=True)
class ModelCard:
    """The facts that prediction needs besides the weights.

    Attributes:
        name: what the model was trained on.
        network: rebuilds the network.
        preprocess: what is done to a scan first; complete, with the data set's intensities.
        labels: what the classes are called and which values they have in output files.
        channels: names of the expected input channels.
        patch: the network's input size in training, per axis; windows are this large.
        mirror_axes: spatial axes that were mirrored in training; mirroring at prediction uses the same.
        slice_axis: for a 2-D network, the axis along which volumes are cut into slices.
        postprocess: what is done to finished label maps, as it was chosen by cross-validation.
        instances: for a model of objects, how `labels` were made of their ids; None for plain classes.
        record: facts about the training for people to read (cases, minutes, score); nothing depends on them.
        version: the medunet that wrote it.
    """

    name: str
    network: Network
    preprocess: PreprocessSettings
    labels: LabelTable
    channels: tuple[str, ...]
    patch: tuple[int, ...]
    slice_axis: int = 2
    mirror_axes: tuple[int, ...] = ()
    postprocess: tuple[PostStep, ...] = ()
    instances: InstanceSettings | None = None
    record: dict[str, str | int | float | None] = field(default_factory=dict)
    version: str = __version__

    @property
    def written(self) -> LabelTable:
        """The labels of outputs: those of the training, but background and object where rims or cores were learned."""
        labels = self.labels
        if self.instances is None or labels.kind == "instances":
            return labels
        name = labels.regions[0].name if labels.regions else labels.names[1]
        return LabelTable((labels.names[0], name), (0, 1), labels.ignore, "instances")

    @property
    def values(self) -> NDArray[Any]:
        """The value that outputs have for each class of the training."""
        indices = np.arange(self.labels.classes)
        return self.written.to_values(indices if self.instances is None else self.instances.mask(indices))


@dataclass(frozen=True)
class Model:
    """A network in evaluation mode with its card."""

    network: nn.Module
    card: ModelCard
    path: Path | None = None
    checksum: str | None = None

    @property
    def unet(self) -> UNetSettings:
        """The settings of a network that is medunet's own, whose sizes are known layer by layer; of others an error."""
        settings = self.card.network
        assert isinstance(settings, UNetSettings), "only medunet's own network has such settings"
        return settings


def save_model(path: Path, weights: Mapping[str, Tensor], card: ModelCard) -> None:
    """Write a model file, whole or not at all; an older one is replaced.

    Raises:
        OutputError: the file cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}
    described = json.dumps(to_plain(card))
    metadata = {"format": _FORMAT, "card": described, "sha256": _digest(tensors, described)}
    with written_aside(path, overwrite=True) as aside:
        save_file(tensors, aside, metadata={"medunet": json.dumps(metadata)})


def load_model(source: Path | str, device: str | torch.device = "auto") -> Model:
    """Load a model from a run folder or a model file. No code from the file is ever run.

    Args:
        source: the folder or the file.
        device: where it shall run; `auto` is the first CUDA device, or the CPU where there is none.

    Raises:
        ModelError: nothing there, not a model of ours, or damaged.
    """
    path = _model_path(Path(source))
    metadata, tensors = _read(path)
    if metadata.get("sha256") != _digest(tensors, str(metadata.get("card"))):
        raise ModelError(f"{path}: is damaged: its content does not match its checksum; copy or train it again")
    try:
        card = _card_type().validate_json(metadata["card"])
        network = build_network(card.network)
        network.load_state_dict(tensors)
    except LocatedError as error:
        # Such as a network of the user's own that this program did not register.
        raise ModelError(f"{path}: {error}") from error
    except (ValidationError, ConfigError, DataError, RuntimeError, KeyError) as error:
        first = str(error).splitlines()[0]
        raise ModelError(
            f"{path}: its description cannot be used by medunet {__version__}: {first}\n"
            "it was written by another version, or changed by hand"
        ) from error
    return Model(network.to(find_device(str(device))).eval(), card, path, metadata["sha256"])


def load_models(source: Path | str, device: str | torch.device = "auto") -> list[Model]:
    """Load the models to average: the folds of a cross-validation, the runs in a folder, or a single model.

    Args:
        source: a run folder, a model file, or a folder whose subfolders are runs.

    Raises:
        ModelError: see `load_model`; or a fold of a cross-validation is not finished.
    """
    path = Path(source)
    if (path / SPLITS_FILE).exists():
        return [load_model(fold, device) for fold in _finished_folds(path)]
    runs = sorted(path.glob(f"*/{MODEL_FILE}")) if path.is_dir() and not (path / MODEL_FILE).exists() else []
    return [load_model(run, device) for run in runs or [path]]


def fold_is_finished(folder: Path) -> bool:
    """True if the training in a fold's folder went to its end; the report is written last."""
    return (folder / MODEL_FILE).exists() and (folder / REPORT_FILE).exists()


def _finished_folds(run: Path) -> list[Path]:
    """All folds of a cross-validation; an ensemble with a half-trained member would be worse without a word."""
    folds = [fold_folder(run, number) for number in range(len(read_splits(run / SPLITS_FILE)))]
    missing = [fold.name for fold in folds if not fold_is_finished(fold)]
    if missing:
        raise ModelError(
            f"{run}: {', '.join(missing)} of {len(folds)} folds {'is' if len(missing) == 1 else 'are'} not finished\n"
            f"go on with: medunet train {run / 'config.yaml'} -o {run} --fold all --resume\n"
            f"or name one fold as the model, such as {next((f for f in folds if f.name not in missing), folds[0])}"
        )
    return folds


@cache
def _card_type() -> TypeAdapter[ModelCard]:
    """The checks of a card; building them takes longer than they do."""
    return TypeAdapter(ModelCard)


def _model_path(source: Path) -> Path:
    if source.is_dir():
        if not (source / MODEL_FILE).exists():
            raise ModelError(
                f"{source}: is no finished run: expected {MODEL_FILE} in it or in its subfolders; train first"
            )
        return source / MODEL_FILE
    if not source.exists():
        raise ModelError(f"{source}: no such model; give a run folder or a {MODEL_FILE} file")
    return source


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})["medunet"])
            if not isinstance(metadata, dict):
                raise KeyError("medunet")
            return metadata, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError, TypeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ModelError(
            f"{path}: is not a medunet model ({type(error).__name__}: {reason})\n"
            f"expected the {MODEL_FILE} that medunet train writes"
        ) from error


def _digest(tensors: Mapping[str, Tensor], card: str) -> str:
    """SHA-256 over the card and over names, types, shapes and bytes of the weights, in the order of the names."""
    digest = hashlib.sha256(card.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
