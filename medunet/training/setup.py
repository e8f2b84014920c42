"""Setup of a training: config, cases, labels and split, checked before anything is written or trained.

Its identity is what a resumed run must share with the one it goes on with.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from medunet.config import Config, ConfigFile, differences, load_config, parse_config, to_plain
from medunet.datasets.catalogue import Case, DataSet, annotated, read_data_set, with_labels
from medunet.datasets.labels import LabelTable
from medunet.datasets.loading import check_pairs, size_notes
from medunet.datasets.splits import Fold, read_patients, split_cases
from medunet.errors import ConfigError, DataError
from medunet.formats.dispatch import read_grid
from medunet.instances.settings import InstanceSettings
from medunet.learning.distributed import ALONE, World
from medunet.model import ModelCard, load_model
from medunet.networks.build import NetworkSettings, require_library
from medunet.networks.settings import UNetSettings
from medunet.plan_training import Planned, plan_data_set, with_instances
from medunet.planning.budget import Budget
from medunet.planning.fingerprint import Fingerprint, take_fingerprint
from medunet.system.devices import find_device
from medunet.training.checks import check_dimensions, check_objects, check_sizes, per_channel
from medunet.training.run_folder import CONFIG_FILE, TrainRequest, check_output, require_no_folds
from medunet.training.warm_start import planned_like
from medunet.transforms.preprocess import Normalisation
from medunet.version import __version__

Say = Callable[[str], None]
"""Shows a line to the user."""


@dataclass(frozen=True)
class Setup:
    """All that is known of a training before its data are read.

    Attributes:
        declared: the data set's own label table, for the values in its label files.
    """

    file: ConfigFile
    data: DataSet
    declared: LabelTable
    training_cases: list[Case]
    held: list[Case]
    device: torch.device
    folder: Path
    world: World = ALONE

    @property
    def config(self) -> Config:
        return self.file.config

    @property
    def labels(self) -> LabelTable:
        """The table of the classes to learn: the data set's own, or the one that `instances` makes of object ids."""
        return self.config.instances.learned(self.declared)

    @property
    def instances(self) -> InstanceSettings | None:
        """The settings for object ids; None where label files hold classes."""
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
            record={"cases": len(self.training_cases), "held_out": len(self.held), "version": __version__, **record},
        )


def set_up_processes(request: TrainRequest, world: World, say: Say) -> Setup:
    """The set-up that the first process found, planned and resolved; the others read the same data with its config.

    Raises:
        MedunetError: anything wrong with config, data or output, in one process for all.
    """
    setup = None
    with world.together():
        if world.leads:
            check_output(request)
            require_no_folds(request.output)
            setup = set_up(request, say, world)
    found = world.first(setup.file.to_yaml().encode() if setup else b"").decode()
    with world.together():
        setup = setup or set_up(request, say, world, parse_config(found, "the first process' config"))
    # Also makes sure that the same data lie on all machines.
    identities = world.all(run_identity(setup))
    other = [rank for rank, identity in enumerate(identities) if identity != identities[0]]
    if other:
        raise ConfigError(
            f"process {other[0]} sees other cases, labels or scans than process 0\n"
            "give all machines the same data set, under the same path"
        )
    return setup


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
    check_sizes(setup.config)
    share = world.share(setup.config.patches.batch)
    if world.size > 1:
        own = "; top-k losses take the hardest voxels of each one's share" if "top_k" in setup.config.loss.kind else ""
        say(f"{world.size} processes train together, each on {share} of the {share * world.size} patches a batch{own}")
    say(
        f"{data.name}: {len(learned)} training cases, {len(held)} held out"
        + (f" (part {settings.fold} of {settings.folds} of the only scan, from its end)" if setup.inside else "")
        + f"; {_described(setup)}; device {device}"
    )
    return setup


def _described(setup: Setup) -> str:
    """The content of the label files in words and, for objects, the target that is learned."""
    if setup.instances is None:
        return f"labels {setup.declared.describe()}"
    weighted = f", weighted by {setup.config.weight_map.kind}" if setup.config.weight_map.kind != "none" else ""
    return f"objects ({setup.declared.names[1]}), learned as {setup.instances.target}{weighted}"


def set_up_folds(request: TrainRequest, say: Say) -> Setup:
    """The set-up that all folds of a cross-validation share: resolved from all cases, of which none is held out yet."""
    device = find_device(request.device)
    file, data = _config_and_data(request, say)
    labels = with_labels(data, data.labelled, file.config.data.axes)
    resolved = _resolve(file, data, labels, data.labelled)
    setup = Setup(resolved, data, labels, list(data.labelled), [], device, request.output)
    check_sizes(setup.config)
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
            config, own = planned_like(planned.config, load_model(given.training.init, "cpu").card)
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
    """The plan with an external network if one is asked for; patches, batch and minutes stay those of the U-Net."""
    if isinstance(asked, UNetSettings):
        return planned
    own = planned.config.network
    network = replace(asked, dimensions=own.dimensions, in_channels=own.in_channels, classes=own.classes)
    require_library(network)
    say(f"the network is {asked.architecture}, as asked; patches and batch are those planned for medunet's own U-Net")
    notes = {key: note for key, note in planned.notes.items() if not key.startswith("network.")}
    return replace(planned, config=replace(planned.config, network=network), notes=notes)


def _measured(overrides: Sequence[str]) -> tuple[str, ...]:
    """The overrides, and with epochs but no minutes among them, no minutes: the run is measured in epochs."""
    keys = {override.partition("=")[0].strip() for override in overrides}
    epochs = "training.epochs" in keys and "training.minutes" not in keys
    return (*overrides, *(("training.minutes=null",) if epochs else ()))


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
    """Fill in the settings that the data set decides: channels, classes, CT intensities, and a background or none."""
    config, stated = file.config, file.stated
    check_objects(config, labels, data.name)
    needs_numbers = not all(n.complete for n in config.preprocess.normalise)
    found = take_fingerprint(learned if needs_numbers else learned[:1], labels, config.data.axes)
    check_dimensions(config, found.dimensions, data.name)
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
        for n, v in zip(per_channel(config, found.channels), found.intensities, strict=True)
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
    return replace(file, config=resolved)


def _fallback(file: ConfigFile, data: DataSet, learned: Sequence[Case], found: Fingerprint) -> tuple[float, ...] | None:
    """The declared voxel size of training files, for later scans that state none, like these files.

    None if all training files state theirs or have no physical size; the config's own comes first.
    """
    stated = file.config.preprocess.fallback_spacing
    if stated is not None or data.size is None or found.cases[0].unit == "pixel":
        return stated
    grids = (read_grid(case.images[0], axes=file.config.data.axes, frame=case.frame) for case in learned)
    if all(data.size.given_to(grid) is grid for grid in grids):
        return None
    return data.size.in_unit(found.cases[0].unit, found.dimensions)


def run_identity(setup: Setup) -> str:
    """The identity as JSON: network, data, split, patches and optimiser.

    The number of processes is not part of it, nor are settings that may change in between: length, schedule, highest
    rate, loss, augmentation, decay of the averaged weights, validation.
    """
    config = setup.config
    identity: dict[str, Any] = {
        "network": config.network, "preprocess": config.preprocess, "patches": config.patches,
        "optimiser": config.optimiser.kind, "averaged": bool(config.training.ema), "seed": config.training.seed,
        "iterations": config.training.iterations, "labels": setup.labels,
        "learned": [case.name for case in setup.training_cases], "held_out": [case.name for case in setup.held],
        "part": None if setup.inside is None else [setup.inside.number, setup.inside.count],
    }  # fmt: skip
    if setup.instances is not None and setup.instances.target != "foreground":
        identity["instances"] = setup.instances
    return json.dumps(to_plain(identity))


def require_same_run(identity: str, setup: Setup) -> None:
    """Refuse to resume with another network, data, split or optimiser: held-out cases would become training cases.

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
