"""What a training is made of: config, cases, labels and split, checked before anything is written or trained."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from medunet import __version__
from medunet.config import Config, ConfigFile, load_config, parse_config, to_plain
from medunet.data.catalogue import Case, DataSet, annotated, check_pairs, read_data_set, size_notes, with_labels
from medunet.data.fingerprint import Fingerprint, take_fingerprint
from medunet.data.formats import read_grid
from medunet.data.instances import InstanceSettings
from medunet.data.labels import LabelTable
from medunet.data.preprocess import Normalisation
from medunet.data.splits import SPLITS_FILE, Fold, read_patients, split_cases
from medunet.devices import find_device
from medunet.errors import ConfigError, DataError, ModelError, OutputError
from medunet.initialise import planned_like
from medunet.learning.distributed import ALONE, World
from medunet.model import MODEL_FILE, REPORT_FILE, ModelCard, load_model
from medunet.networks.build import NetworkSettings, require_library
from medunet.networks.settings import UNetSettings
from medunet.plan import Budget, Planned, plan_data_set, with_instances

CONFIG_FILE, CHECKPOINT, METRICS, BOARD, REPORT = (
    "config.yaml",
    "last.ckpt",
    "metrics.csv",
    "tensorboard",
    REPORT_FILE,
)
RUN_FILES = (CONFIG_FILE, MODEL_FILE, CHECKPOINT, "last.previous.ckpt", METRICS, REPORT)
RUN_FOLDERS = (BOARD, "validation", "preprocessed")
"""All that a run writes into its folder, and all that replacing a run removes."""

Say = Callable[[str], None]
"""Shows a line to the user."""


@dataclass(frozen=True)
class TrainRequest:
    """What `medunet train` is asked to do; `overrides` are `key.path=value`.

    Attributes:
        started: when the command was given, by `time.monotonic`: its minutes are counted from there. None is now.
    """

    source: Path
    output: Path
    overrides: tuple[str, ...] = ()
    device: str = "auto"
    resume: bool = False
    overwrite: bool = False
    started: float | None = None


@dataclass(frozen=True)
class Setup:
    """All that is known before the first step and does not change after it.

    Attributes:
        declared: the data set's own table, of what its label files hold.
    """

    file: ConfigFile
    data: DataSet
    declared: LabelTable
    learned: list[Case]
    held: list[Case]
    device: torch.device
    folder: Path
    world: World = ALONE

    @property
    def config(self) -> Config:
        return self.file.config

    @property
    def labels(self) -> LabelTable:
        """Of what is learned: the data set's own table, or what `instances` makes of object ids."""
        return self.config.instances.learned(self.declared)

    @property
    def instances(self) -> InstanceSettings | None:
        """What is made of object ids; None where label files hold classes."""
        return self.config.instances if self.declared.kind == "instances" else None

    @property
    def inside(self) -> Fold | None:
        """The part of the only scan that is held out, None where whole cases are (or none)."""
        settings = self.config.data
        return Fold(settings.fold, settings.folds) if len(self.data.labelled) == 1 and self.held else None

    def card(self, record: dict[str, str | int | float | None]) -> ModelCard:
        config, network = self.config, self.config.network
        axes = config.augment.flip_axes if config.augment.flip_probability > 0 else ()
        return ModelCard(
            name=self.data.name,
            network=network,
            preprocess=config.preprocess,
            labels=self.labels,
            channels=self.data.channels,
            patch=config.patches.size,
            slice_axis=config.patches.slice_axis,
            mirror_axes=tuple(range(network.dimensions)) if axes is None else axes,
            instances=self.instances,
            record={"cases": len(self.learned), "held_out": len(self.held), "version": __version__, **record},
        )


def check_output(request: TrainRequest) -> None:
    """Refuse a folder that cannot be written, holds a run that nobody asked to replace, or holds foreign files.

    Raises:
        OutputError, ModelError: naming what is in the way.
    """
    folder = request.output
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"-o {folder}: is a file; give a folder for the run")
    is_run = (folder / CONFIG_FILE).exists()
    taken = [name for name in (*RUN_FILES, *RUN_FOLDERS) if (folder / name).exists()]
    if taken and not is_run:
        raise OutputError(f"-o {folder}: holds {taken[0]}, but no run that could be replaced; choose another folder")
    if is_run and not (request.resume or request.overwrite):
        raise OutputError(
            f"-o {folder}: holds a run already\n"
            "say --resume to go on with it, --overwrite to replace it, or choose another folder"
        )
    if request.resume and not is_run:
        raise ModelError(f"-o {folder}: holds no run to resume; start without --resume")
    if not request.source.exists():
        raise ConfigError(f"{request.source}: no such file or folder; give a config or a data set")
    probe = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not probe.is_dir() or not os.access(probe, os.W_OK):
        raise OutputError(f"-o {folder}: cannot be written ({probe} is no folder that may be written to)")


def require_no_folds(folder: Path) -> None:
    """Refuse a single run where a cross-validation is.

    Raises:
        OutputError: it is one.
    """
    if (folder / SPLITS_FILE).exists():
        raise OutputError(
            f"-o {folder}: holds a cross-validation\n"
            "say --fold all as well to go on with it or to replace it, or choose another folder"
        )


def set_up(request: TrainRequest, say: Say, world: World = ALONE, resolved: ConfigFile | None = None) -> Setup:
    """Config, data set, labels and split, checked before anything is written or trained.

    Args:
        world: the processes that train together.
        resolved: the config as the first of several processes found it; None reads or plans it.
    """
    device = _device(request.device, world)
    file, data = (resolved, _data_set(resolved)) if resolved else _config_and_data(request, say)
    labels = with_labels(data, data.labelled, file.config.data.axes)
    settings = file.config.data
    if settings.folds:
        patients = read_patients(data, settings.patient_pattern)
        learned, held = split_cases(data.labelled, settings.fold, settings.folds, settings.seed, patients)
    else:
        learned, held = list(data.labelled), []
    setup = Setup(_resolve(file, data, labels, learned), data, labels, learned, held, device, request.output, world)
    _check_sizes(setup.config)
    share = world.share(setup.config.patches.batch)
    if world.size > 1:
        own = "; top-k losses take the hardest voxels of each one's share" if "top_k" in setup.config.loss.kind else ""
        say(f"{world.size} processes train together, each on {share} of the {share * world.size} patches a batch{own}")
    say(
        f"{data.name}: {len(learned)} cases to learn from, {len(held)} held out"
        + (f" (part {settings.fold} of {settings.folds} of the only scan, from its end)" if setup.inside else "")
        + f"; {_described(setup)}; device {device}"
    )
    return setup


def _described(setup: Setup) -> str:
    """What label files hold and, for objects, what is learned of them."""
    if setup.instances is None:
        return f"labels {setup.declared.describe()}"
    weighted = f", weighted by {setup.config.weight_map.kind}" if setup.config.weight_map.kind != "none" else ""
    return f"objects ({setup.declared.names[1]}), learned as {setup.instances.target}{weighted}"


def set_up_folds(request: TrainRequest, say: Say) -> Setup:
    """What all folds of a cross-validation share: the config is resolved from all cases, and none is held out yet."""
    device = find_device(request.device)
    file, data = _config_and_data(request, say)
    labels = with_labels(data, data.labelled, file.config.data.axes)
    resolved = _resolve(file, data, labels, data.labelled)
    setup = Setup(resolved, data, labels, list(data.labelled), [], device, request.output)
    _check_sizes(setup.config)
    say(f"{data.name}: {len(data.labelled)} cases; {_described(setup)}; device {device}")
    return setup


def _device(name: str, world: World) -> torch.device:
    """Each process of a machine has a GPU of its own, where there are GPUs."""
    if world.size == 1:
        return find_device(name)
    if name.startswith("cuda:") and world.local_size > 1:
        raise ConfigError(f"--device {name}: {world.local_size} processes cannot share one GPU; say --device cuda")
    own = name == "cuda" or (name == "auto" and torch.cuda.is_available())
    device = find_device(f"cuda:{world.local_rank}" if own else name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def _config_and_data(request: TrainRequest, say: Say) -> tuple[ConfigFile, DataSet]:
    overrides = _measured(request.overrides)
    if request.resume:
        path = request.output / CONFIG_FILE
        file = load_config(path, overrides)
        require_library(file.config.network)
        changed = differences(to_plain(load_config(path).config), to_plain(file.config))
        say(f"resuming with {path}" + (f", changed: {'; '.join(changed)}" if changed else ""))
        return file, _data_set(file)
    if request.source.is_dir():
        given = parse_config("", "--set", overrides).config
        data = annotated(read_data_set(request.source, given.data.channels), given.data.annotation)
        say(f"no config given: planning for {data.name} ({len(data.labelled)} labelled cases)")
        budget = Budget.of(None, given.training.minutes, request.device)
        planned = plan_data_set(data, budget, given.data.axes)
        for line in planned.header:
            if line.startswith("NOTE"):
                say(line)
        if given.training.init is not None:
            config, own = planned_like(planned.config, load_model(given.training.init).card)
            planned = replace(planned, config=config, notes=planned.notes | own)
            say(f"the network is that of {given.training.init}, so that its weights fit")
        planned = _with_architecture(planned, given.network, say)
        asked = parse_config(planned.to_yaml(), "the plan", overrides).config.instances
        planned = with_instances(planned, asked, data)
        file = parse_config(planned.to_yaml(), "the plan", overrides)
        return file, annotated(data, file.config.data.annotation)
    file = load_config(request.source, overrides)
    require_library(file.config.network)
    data = _data_set(file)
    check_pairs(data.labelled, file.config.data.axes)
    for line in size_notes(data, file.config.data.axes):
        say(line)
    return file, data


def _with_architecture(planned: Planned, asked: NetworkSettings, say: Say) -> Planned:
    """The plan with a network of others where one is asked for; patches, batch and minutes stay those of the U-Net."""
    if isinstance(asked, UNetSettings):
        return planned
    own = planned.config.network
    network = replace(asked, dimensions=own.dimensions, in_channels=own.in_channels, classes=own.classes)
    require_library(network)
    say(f"the network is {asked.architecture}, as asked; patches and batch are those planned for medunet's own U-Net")
    notes = {key: note for key, note in planned.notes.items() if not key.startswith("network.")}
    return replace(planned, config=replace(planned.config, network=network), notes=notes)


def _measured(overrides: Sequence[str]) -> tuple[str, ...]:
    """Who asks for epochs and not for minutes wants the run to be measured in epochs."""
    keys = {override.partition("=")[0].strip() for override in overrides}
    epochs = "training.epochs" in keys and "training.minutes" not in keys
    return (*overrides, *(("training.minutes=null",) if epochs else ()))


def differences(before: Any, after: Any, key: str = "") -> list[str]:
    """What differs between two plain records, `key.path was 1, is 2`; long values are left out."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        names = dict.fromkeys([*before, *after])
        pairs = ((before.get(n), after.get(n), f"{key}.{n}" if key else str(n)) for n in names)
        return [line for old, new, name in pairs for line in differences(old, new, name)]
    if before == after:
        return []
    old, new = json.dumps(before), json.dumps(after)
    return [f"{key} was {old}, is {new}" if len(old) + len(new) < 80 else f"{key} is another"]


def _data_set(file: ConfigFile) -> DataSet:
    if not file.config.data.path:
        raise ConfigError(
            f"{file.source}: says nothing about where the data are\nadd data.path, or --set data.path=FOLDER"
        )
    data = annotated(read_data_set(Path(file.config.data.path), file.config.data.channels), file.config.data.annotation)
    if not data.labelled:
        raise DataError(f"{data.folder}: no image has a label file of the same name; there is nothing to learn from")
    return data


def _resolve(file: ConfigFile, data: DataSet, labels: LabelTable, learned: Sequence[Case]) -> ConfigFile:
    """Fill in what the data set decides: channels, classes, CT intensities, and whether there is a background."""
    config, stated = file.config, file.stated
    _check_objects(config, labels, data.name)
    needs_numbers = not all(n.complete for n in config.preprocess.normalise)
    found = take_fingerprint(learned if needs_numbers else learned[:1], labels, config.data.axes)
    _check_dimensions(config, found.dimensions, data.name)
    outputs = config.instances.learned(labels).outputs
    wanted = {"in_channels": found.channels, "classes": outputs}
    for key, value in wanted.items():
        if f"network.{key}" in stated and getattr(config.network, key) != value:
            raise ConfigError(
                f"{file.source}: network.{key} is {getattr(config.network, key)}, but {data.name} has {value}\n"
                "remove the line; it is filled in from the data set"
            )
    normalise = tuple(
        n if n.complete else Normalisation(n.kind, n.nonzero, v.low, v.high, v.mean, v.std)
        for n, v in zip(_per_channel(config, found.channels), found.intensities, strict=True)
    )
    loss = config.loss if labels.has_background else replace(config.loss, include_background=True)
    resolved = replace(
        config,
        network=config.network.settled(found.channels, outputs, config.patches.size),
        preprocess=replace(
            config.preprocess,
            normalise=normalise[:1] if len(set(normalise)) == 1 else normalise,
            unit=found.cases[0].unit,
            fallback_spacing=_fallback(file, data, learned, found),
        ),
        loss=loss,
    )
    return file.resolved(resolved)


def _fallback(file: ConfigFile, data: DataSet, learned: Sequence[Case], found: Fingerprint) -> tuple[float, ...] | None:
    """The voxel size of scans to come that state none, as files that were learned from: what is declared of them.

    Nothing where the config says its own, or where all files learned from state theirs, or have no physical size.
    """
    stated = file.config.preprocess.fallback_spacing
    if stated is not None or data.size is None or found.cases[0].unit == "pixel":
        return stated
    grids = (read_grid(case.images[0], axes=file.config.data.axes, frame=case.frame) for case in learned)
    if all(data.size.given_to(grid) is grid for grid in grids):
        return None
    return data.size.in_unit(found.cases[0].unit, found.dimensions)


def _check_objects(config: Config, labels: LabelTable, name: str) -> None:
    """What needs object ids is refused where label files hold classes; what weighs classes twice, everywhere."""
    weighted = config.weight_map.kind != "none"
    if labels.kind != "instances":
        _check_no_objects(config, labels, name)
    if weighted and config.weight_map.class_balance and config.loss.class_weights is not None:
        raise ConfigError(
            "weight_map.class_balance and loss.class_weights both weigh classes, and would be multiplied\n"
            "set loss.class_weights to null, or weight_map.class_balance to false"
        )


def _check_no_objects(config: Config, labels: LabelTable, name: str) -> None:
    """Where label files hold classes, there are objects for a weight map only if a class is named that has them."""
    weighted, parts = config.weight_map.kind != "none", config.weight_map.parts_of
    if weighted and parts is not None and parts not in labels.names:
        raise ConfigError(
            f"weight_map.parts_of is {parts}, but the label files of {name} hold {labels.describe()}\n"
            "name the class whose connected parts are the objects, or set weight_map.kind to none"
        )
    asked = [f"weight_map.kind is {config.weight_map.kind}"] if weighted and parts is None else []
    asked += [f"instances.target is {config.instances.target}"] if config.instances.target != "foreground" else []
    if asked:
        off = (
            "weight_map.parts_of to the class whose connected parts are the objects, or weight_map.kind to none"
            if weighted and parts is None
            else "instances.target to foreground"
        )
        raise ConfigError(
            f"{' and '.join(asked)}, but the label files of {name} hold classes ({labels.describe()}), not objects\n"
            f'set {off}; or, if they do hold one id per object, say "label_kind": "instances" in dataset.json'
        )


def _per_channel(config: Config, channels: int) -> tuple[Normalisation, ...]:
    normalise = config.preprocess.normalise
    if len(normalise) not in (1, channels):
        raise ConfigError(f"preprocess.normalise has {len(normalise)} entries, the data set {channels} channel(s)")
    return normalise * channels if len(normalise) == 1 else normalise


def _check_dimensions(config: Config, dimensions: int, name: str) -> None:
    """A 2-D network takes volumes slice by slice; a 3-D network takes volumes only."""
    wanted, spacing = config.network.dimensions, config.preprocess.spacing
    if wanted > dimensions:
        raise ConfigError(
            f"network.dimensions is {wanted}, but {name} holds pictures of {dimensions} dimensions\n"
            "set network.dimensions to 2 and give patches.size two numbers, or start from configs/unet2d.yaml"
        )
    if spacing is not None and len(spacing) != dimensions:
        raise ConfigError(f"preprocess.spacing has {len(spacing)} numbers, but {name} has {dimensions} dimensions")


def _check_sizes(config: Config) -> None:
    size, network = config.patches.size, config.network
    if len(size) != network.dimensions:
        raise ConfigError(f"patches.size {size} has {len(size)} numbers for a {network.dimensions}-D network")
    if not network.shape.is_legal(size):
        nearest = list(network.shape.nearest_legal(size))
        try:
            network.shape.check(size)
        except ConfigError as error:
            raise ConfigError(f"patches.size: {error}\nthe nearest legal patch is {nearest}") from error
    if network.deep_supervision and not network.padded:
        raise ConfigError("network.deep_supervision needs a padded network; set one of the two otherwise")
    deepest = math.prod(network.shape.encoder_sizes(size)[-1])
    values = deepest * (config.patches.batch if network.norm == "batch" else 1)
    if network.norm in ("batch", "instance") and values == 1:
        raise ConfigError(
            f"patches.size {size} leaves one voxel in the deepest level, which {network.norm} norm cannot normalise\n"
            "take a larger patch or batch, or fewer levels"
        )


def run_identity(setup: Setup) -> str:
    """What a resumed run must share with the one it goes on with, as JSON: network, data, split, patches, optimiser.

    The number of processes is not part of it, nor is what may change in between: length, schedule, highest rate, loss,
    augmentation, decay of the averaged weights, validation.
    """
    config = setup.config
    identity: dict[str, Any] = {
        "network": config.network, "preprocess": config.preprocess, "patches": config.patches,
        "optimiser": config.optimiser.kind, "averaged": bool(config.training.ema), "seed": config.training.seed,
        "iterations": config.training.iterations, "labels": setup.labels,
        "learned": [case.name for case in setup.learned], "held_out": [case.name for case in setup.held],
        "part": None if setup.inside is None else [setup.inside.number, setup.inside.count],
    }  # fmt: skip
    if setup.instances is not None and setup.instances.target != "foreground":
        identity["instances"] = setup.instances
    return json.dumps(to_plain(identity))


def require_same_run(identity: str, setup: Setup) -> None:
    """Refuse to resume with another network, data, split or optimiser: held-out cases would be learned from.

    Args:
        identity: `run_identity` of the run that was stopped, as its checkpoint has it.

    Raises:
        ConfigError: naming what differs.
    """
    before = json.loads(identity)
    before["network"].setdefault("architecture", "unet")  # runs that were stopped before there were others
    changed = differences(before, json.loads(run_identity(setup)))
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise ConfigError(
            f"{setup.folder}: cannot be resumed, because since it was stopped {'; '.join(changed[:3])}{more}\n"
            "resume with the run's own settings and data, or start a new run in another folder"
        )
