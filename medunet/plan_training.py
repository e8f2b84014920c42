"""The story of `medunet plan`: a data set's fingerprint becomes a config that says why.

The rules start from nnU-Net's (Isensee et al. 2021): median spacing, patch from the median shape, an axis is pooled
while it is long and not coarser than the others, kernels of 1 along coarse axes. What is added is a budget: channels
and patch shrink until enough iterations fit into the minutes. Then a few real training steps are timed; where they are
slower or larger than was counted, the network is planned once more. The rules' numbers stand in `planning/rules.py`.
"""

from __future__ import annotations

import math
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from medunet.config import Config, TrainingSettings, annotated_yaml
from medunet.datasets.catalogue import Case, DataSet, read_data_set, with_labels
from medunet.datasets.labels import IGNORE, LabelTable
from medunet.datasets.loading import check_pairs, size_notes
from medunet.datasets.splits import Fold
from medunet.errors import ConfigError, DataError, is_out_of_memory
from medunet.instances.settings import InstanceSettings
from medunet.patches.prepare import Preparation, held_out_mask, prepare_cases
from medunet.planning.budget import Budget, Notes
from medunet.planning.fingerprint import Fingerprint, choose_cases, take_fingerprint
from medunet.planning.network import Choice, Task, plan_network
from medunet.planning.preprocessing import Grid, plan_grid, plan_preprocess
from medunet.planning.recipe import plan_augment, plan_data, plan_instances, plan_loss, plan_oversampling, warnings
from medunet.planning.rules import BUSY, ENOUGH_STEPS, EPOCHS, TRAINING_SHARE
from medunet.planning.trial import Trial, loaded_memory, try_plan
from medunet.system.devices import free_memory
from medunet.system.files import check_free, write_text
from medunet.system.wording import bytes_text, duration, some

REPLANS = 2
"""How often a network is planned anew where measured steps are slower or larger than was counted."""

_WIDTH = 100

Try = Callable[[Config, Grid], Trial]
"""Measures training steps of a config."""


@dataclass(frozen=True)
class Planned:
    """A plan and its reasons.

    Attributes:
        notes: the reason for each planned value, by dotted key.
        grid: the median scan as the network sees it.
        choice: the network, with what it was counted to cost.
        resident: bytes of prepared scans that stay in memory.
        header: measurements of the data and of the machine, line by line.
    """

    config: Config
    notes: Notes
    grid: Grid
    choice: Choice
    resident: float
    header: tuple[str, ...] = ()

    def to_yaml(self) -> str:
        """The config with a comment of reasons above each planned value."""
        wrapped = {key: _wrapped(note) for key, note in self.notes.items()}
        header = self.header or ("Planned from what was measured.",)
        return annotated_yaml(self.config, wrapped, "\n".join(_wrapped(line) for line in header))


@dataclass(frozen=True, kw_only=True)
class Measured(Planned):
    """A plan whose steps were tried.

    Attributes:
        trial: the measured cost of a few steps.
    """

    trial: Trial


def write_plan(folder: Path, output: Path, budget: Budget, axes: str | None, overwrite: bool) -> str:
    """Measure a data set, write its config, and return a summary for the terminal."""
    check_free(output, overwrite)
    planned = plan_data_set(read_data_set(folder), budget, axes)
    write_text(output, planned.to_yaml(), overwrite)
    reasons = [f"  {key}: {_wrapped(note, '    ')}" for key, note in planned.notes.items()]
    return "\n".join([*planned.header, *reasons, f"written to {output}"])


def _wrapped(note: str, indent: str = "") -> str:
    lines = [part for line in note.splitlines() for part in textwrap.wrap(line, _WIDTH, subsequent_indent="  ")]
    return f"\n{indent}".join(lines)


def plan_data_set(data: DataSet, budget: Budget, axes: str | None) -> Planned:
    """A config for a data set, the reasons by dotted key, and what was measured.

    Raises:
        DataError: no labelled case, cases that are wrong, or nothing to learn from.
        ConfigError: too little memory for the smallest network.
    """
    if not data.labelled:
        raise DataError(
            f"{data.folder}: no case has a label file of the same name in the labels folder; nothing to learn from\n"
            f"a folder of masks for each case becomes a label map with: medunet convert {data.folder} -o NEW_FOLDER"
        )
    check_pairs(data.labelled, axes)
    labels = with_labels(data, data.labelled, axes)
    found = measure(data, labels, axes)
    device = torch.device(budget.device)
    if device.type == "cpu":
        budget = replace(budget, process=max(budget.process, loaded_memory()))
    planned = plan_measured(
        found,
        data.channels,
        budget,
        lambda config, grid: try_plan(config, config.instances.learned(labels), grid, device),
    )
    if len(data.labelled) == 1:
        planned = _with_part(planned, data.labelled[0], labels, axes)
    paths = replace(planned.config.data, path=str(data.folder), axes=axes)
    return replace(
        planned,
        config=replace(planned.config, data=paths),
        header=(
            _title(data, found, budget),
            *_measurements(planned, budget),
            *(f"NOTE: {warning}." for warning in warnings(found)),
            *size_notes(data, axes),
        ),
    )


def _with_part(planned: Measured, case: Case, labels: LabelTable, axes: str | None) -> Measured:
    """The plan with the held-out part of a single scan: the part that shares most classes with the rest, or the last.

    A score of a part without the structure of interest says nothing.
    """
    config = planned.config
    instances = config.instances if labels.kind == "instances" else None
    how = Preparation(config.preprocess, labels, axes, Path(), sys.maxsize, instances=instances)
    (prepared,) = prepare_cases([case], how)
    label, classes = prepared.label[0], how.learned.classes
    if max(label.shape) < config.data.folds:
        return planned  # it cannot be parted, which training says
    shared = []
    for number in range(config.data.folds):
        held = held_out_mask(label.shape, Fold(number, config.data.folds))
        inside, outside = (
            np.bincount(part, minlength=IGNORE + 1)[:classes] > 0 for part in (label[held], label[~held])
        )
        shared.append(int(np.count_nonzero(inside & outside)))
    best = int(np.argmax(shared))
    notes = planned.notes | {
        "data.fold": f"part {best}, counted from the end: it and the rest both hold {shared[best]} of {classes} "
        f"classes, as many as any (others {min(shared)} or more)"
    }
    return replace(planned, config=replace(config, data=replace(config.data, fold=best)), notes=notes)


def with_instances(planned: Planned, instances: InstanceSettings, data: DataSet) -> Planned:
    """The same plan for another target of object ids, which needs another number of outputs."""
    config = planned.config
    if instances == config.instances or data.labels is None:
        return planned
    network = replace(config.network, classes=instances.learned(data.labels).outputs)
    notes = planned.notes | {"instances.target": "as asked", "network.classes": "what is learned of objects"}
    return replace(planned, config=replace(config, instances=instances, network=network), notes=notes)


def measure(data: DataSet, labels: LabelTable, axes: str | None) -> Fingerprint:
    """The fingerprint of a data set, or of evenly spaced cases of a large data set.

    Raises:
        DataError: cases that are wrong, or that all together teach nothing.
    """
    found = take_fingerprint(choose_cases(data.labelled, axes), labels, axes)
    bad = [c.name for c in found.cases if not all(math.isfinite(r.minimum + r.maximum) for r in c.ranges)]
    if bad:
        raise DataError(
            f"{data.folder}: NaN or infinite voxels in {len(bad)} case(s) ({some(bad)})\n"
            "replace them (for example by the background intensity), or take the cases out"
        )
    if not any(found.present(index) for index in labels.foreground):
        raise DataError(
            f"{data.folder}: no case has a voxel of any label but the background; nothing can be learned\n"
            f"labels are {labels.describe()}; look at the label files, or at the values in dataset.json"
        )
    if all(all(r.constant for r in c.ranges) for c in found.cases):
        raise DataError(f"{data.folder}: every voxel of every scan has the same value; nothing can be learned")
    return replace(found, of=len(data.labelled))


def plan_measured(
    found: Fingerprint, channel_names: tuple[str, ...], budget: Budget, attempt: Try, replans: int = REPLANS
) -> Measured:
    """Plan, try a few steps, and plan again where they were slower or larger than counted.

    Raises:
        ConfigError: too little memory for the smallest network.
    """
    planned = plan(found, channel_names, budget)
    trial: Trial | None = None
    for left in reversed(range(replans + 1)):
        trial, corrected = _tried(planned, budget, attempt)
        if corrected is None or not left:
            break
        again = plan(found, channel_names, corrected)
        budget = corrected
        if again.config == planned.config:
            break
        planned = again
    if trial is None:
        raise ConfigError(
            f"--memory: the machine ran out of memory in a step of {planned.choice.describe()}, although "
            f"{bytes_text(budget.memory)} was to be had\nsay a smaller --memory, or stop what else uses the memory"
        )
    return _with_trial(planned, trial, budget)


def _tried(planned: Planned, budget: Budget, attempt: Try) -> tuple[Trial | None, Budget | None]:
    """The measured cost of steps (None if memory ran out), and a corrected budget if that is too much."""
    choice = planned.choice
    try:
        trial = attempt(planned.config, planned.grid)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return None, budget.after(1.0, 2.0)
    enough = trial.seconds * ENOUGH_STEPS * budget.wanted_steps <= budget.seconds
    held = trial.memory + planned.resident
    if enough and held <= budget.memory:
        return trial, None
    slowness = 1.0 if enough else trial.seconds / choice.seconds
    growth = 1.0 if held <= budget.memory else max(1.0, (trial.memory - trial.before) / choice.memory)
    process = max(budget.process, trial.before)
    return trial, replace(budget.after(slowness, growth), process=process)


def _with_trial(planned: Planned, trial: Trial, budget: Budget) -> Measured:
    """Epochs as long as the measured speed makes them."""
    iterations = _iterations(budget, trial.seconds)
    config = replace(planned.config, training=replace(planned.config.training, iterations=iterations))
    steps = budget.seconds / trial.seconds
    notes = planned.notes | {
        "training.iterations": (
            f"so that an epoch, at {duration(trial.seconds)} an iteration as measured, is about a {EPOCHS}th of the "
            "minutes (within 10 to 250)"
        ),
        "training.minutes": f"as asked; about {steps:.0f} steps of {budget.wanted_steps:.0f} that so long a run wants",
    }
    return Measured(config, notes, planned.grid, planned.choice, planned.resident, trial=trial)


def plan(found: Fingerprint, channel_names: tuple[str, ...], budget: Budget) -> Planned:
    """The rules, as a pure function of the fingerprint and the budget.

    Raises:
        ConfigError: too little memory for the smallest network.
    """
    notes: Notes = {}
    data = plan_data(found, notes)
    preprocess = plan_preprocess(found, channel_names, notes)
    grid = plan_grid(found, preprocess, notes, budget.dimensions)
    scan = math.prod(grid.shape) * (1 if grid.slice_axis is None else found.median_shape()[grid.slice_axis])
    instances = plan_instances(found, preprocess.spacing, notes)
    task = Task.of(found, instances.learned(found.labels), grid, scan, budget)
    choice, patches = plan_network(task, budget, notes)
    iterations = _iterations(budget, choice.seconds)
    notes["training.minutes"] = f"as asked; steps have {100 * TRAINING_SHARE:.0f} % of them"
    notes["optimiser.rate"] = "null is that of the kind: 0.006 for muon, 0.002 for adamw and adam, 0.01 for sgd"
    notes["training.iterations"] = f"so that an epoch is about a {EPOCHS}th of the minutes (within 10 to 250)"
    config = Config(
        data=data,
        preprocess=preprocess,
        instances=instances,
        network=choice.settings,
        patches=replace(patches, oversample=plan_oversampling(found, notes)),
        augment=plan_augment(found, grid, budget.seconds / choice.seconds, notes),
        loss=plan_loss(found, notes),
        training=TrainingSettings(minutes=budget.minutes, iterations=iterations),
    )
    return Planned(config, notes, grid, choice, task.resident)


def _iterations(budget: Budget, seconds: float) -> int:
    return max(10, min(250, round(60 * budget.minutes / seconds / EPOCHS)))


def _title(data: DataSet, found: Fingerprint, budget: Budget) -> str:
    title = f"Planned for {data.name} ({len(data.labelled)} labelled cases), {budget.minutes:g} minutes on "
    title += f"{budget.device}, {bytes_text(budget.memory)} of memory."
    if len(found.cases) < found.total:
        first, last = found.cases[0].name, found.cases[-1].name
        title += f" Measured on {len(found.cases)} evenly spaced cases, from {first} to {last}."
    return title


def _measurements(planned: Measured, budget: Budget) -> list[str]:
    lines = [f"Expected here: {planned.trial.describe(planned.config)}."]
    if planned.resident:
        lines[0] = f"{lines[0][:-1]}, and {bytes_text(planned.resident)} for the prepared scans."
    steps = budget.seconds / planned.trial.seconds
    if steps < ENOUGH_STEPS * budget.wanted_steps:
        lines.append(
            f"NOTE: even so small a network makes only {steps:.0f} of the {budget.wanted_steps:.0f} steps that "
            f"{budget.minutes:g} minutes should have; give more minutes, or a faster machine."
        )
    slow = planned.trial.seconds / planned.choice.ideal
    if slow > BUSY:
        lines.append(
            f"NOTE: a step took {slow:.2g} times what the speed of single convolutions lets expect; if something else "
            "ran on the machine, plan again when it is done."
        )
    if budget.device == "cpu" and budget.memory > free_memory(torch.device("cpu")):
        lines.append("NOTE: that is more memory than is free now.")
    return lines
