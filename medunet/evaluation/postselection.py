"""Selection of post-processing: tried on predictions of held-out cases, chosen only where Dice gains by it.

After nnU-Net (Isensee et al., Nature Methods 18:203, 2021), which keeps the largest component where that raises the
mean Dice of cross-validation and lowers no label's; holes and smallest sizes are tried here as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isnan
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from medunet.datasets.labels import IGNORE, LabelTable
from medunet.evaluation.pairs import Pair, read_pair
from medunet.metrics.overlap import Counts, count_labels, count_overlap
from medunet.metrics.summary import mean_of_known
from medunet.transforms.postprocess import PostStep, component_sizes, postprocess
from medunet.volume import Volume

MARGIN = 0.001
"""A step is chosen if the mean Dice of its label gains more than this."""

FEWEST = 3
"""With fewer cases nothing is chosen: what helps one case says little about the next."""

CONNECTIVITY = "components share faces, edges or corners; holes share faces"

Dice = dict[str, float]
_Candidates = Mapping[str, Sequence[PostStep]]
Report = Callable[[str], None]
"""Is told what is going on."""


@dataclass(frozen=True)
class Trial:
    """A step that was tried after those chosen before it.

    Attributes:
        dice: by label, the mean over cases after it.
        gain: of its label's mean Dice; for all foreground together, of the mean over labels.
    """

    step: PostStep
    dice: Dice
    gain: float
    chosen: bool


@dataclass(frozen=True)
class Selection:
    """The steps that were tried, and the chosen ones.

    Attributes:
        steps: the chosen ones, in the order in which they are applied.
        before, after: mean Dice over cases by label, without and with all of them.
        dimensions: of the scans, for descriptions.
        reason: for trying nothing; empty if something was tried.
    """

    cases: int
    dimensions: int
    before: Dice
    after: Dice
    steps: tuple[PostStep, ...] = ()
    trials: tuple[Trial, ...] = ()
    reason: str = ""

    def lines(self) -> list[str]:
        """For the terminal."""
        if self.reason:
            return [f"post-processing: none ({self.reason})"]
        if not self.steps:
            return [f"post-processing: none of {len(self.trials)} steps gains more than {MARGIN:g} Dice without harm"]
        changed = [
            f"{name} {self.before[name]:.4f} -> {self.after[name]:.4f}"
            for name in self.before
            if self.before[name] != self.after[name] and not isnan(self.before[name])
        ]
        return [
            f"post-processing: {', '.join(step.describe(self.dimensions) for step in self.steps)}",
            f"  out-of-fold Dice {', '.join(changed)} (chosen by these cases, so the scores above are without it)",
        ]

    def record(self) -> dict[str, Any]:
        """For `postprocessing.json`; a Dice that does not exist (NaN) is None."""
        return {
            "cases": self.cases,
            "margin": MARGIN,
            "connectivity": CONNECTIVITY,
            "reason": self.reason or None,
            "steps": [asdict(step) for step in self.steps],
            "dice_before": _without_nan(self.before),
            "dice_after": _without_nan(self.after),
            "tried": [
                {**asdict(t.step), "gain": round(t.gain, 6), "dice": _without_nan(t.dice), "chosen": t.chosen}
                for t in self.trials
            ],
        }


def _without_nan(dice: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if isnan(value) else round(value, 6) for name, value in dice.items()}


@dataclass
class _Tally:
    """Voxel counts of all cases, by label, without a further step and after each candidate.

    Attributes:
        smallest: by label, sizes of all components of the references, in the grids' unit squared or cubed.
        units: of all grids.
    """

    base: dict[str, list[Counts]] = field(default_factory=dict)
    tried: dict[PostStep, dict[str, list[Counts]]] = field(default_factory=dict)
    sizes: dict[str, list[float]] = field(default_factory=dict)
    units: set[str] = field(default_factory=set)
    dimensions: int = 3


def choose_postprocessing(
    pairs: Sequence[Pair], labels: LabelTable, report: Report = lambda _: None, reason: str = ""
) -> Selection:
    """Try steps on predictions against their references, and choose those that help.

    First the largest component of all foreground together, then for each label, as long as one helps, the best of:
    its largest component, its holes, and components below a size (of the smallest true one, a half and a quarter of it,
    and the size that 5 % of the true ones are below). A step is chosen if its label's mean Dice gains more than
    `MARGIN` and no label's falls. Labels that are object ids are taken as one; their largest component makes no sense.

    Args:
        pairs: label maps on one grid each, in files or in memory; read anew for each of up to six rounds.
        reason: why nothing can be chosen, where that is known; scores are taken all the same.

    Raises:
        DataError: a file cannot be read.
    """
    start = _measure(pairs, labels, (), (), report)
    before = _means(start.base)
    selection = Selection(len(pairs), start.dimensions, before, before)
    if reason or not labels.has_background:
        return replace(selection, reason=reason or "the labels have no background")
    if len(pairs) < FEWEST:
        return replace(selection, reason=f"{len(pairs)} cases are too few to choose by, {FEWEST} are needed")
    names = [labels.names[index] for index in labels.foreground]
    if len(names) > 1 and labels.kind == "classes":
        selection = _try_together(selection, pairs, labels, report)
    candidates = {name: _candidates(name, labels, start) for name in names if not isnan(before[name])}
    while candidates:
        known = len(selection.steps)
        selection = _try_each(selection, pairs, labels, candidates, report)
        gained = {step.label for step in selection.steps[known:]}
        candidates = {name: steps for name, steps in candidates.items() if name in gained}
    return selection


def _try_together(selection: Selection, pairs: Sequence[Pair], labels: LabelTable, report: Report) -> Selection:
    """The largest component of all foreground."""
    step = PostStep("keep_largest")
    dice = _means(_measure(pairs, labels, (), (step,), report).tried[step])
    gain = mean_of_known(list(dice.values())) - mean_of_known(list(selection.before.values()))
    chosen = gain > MARGIN and not _worse(dice, selection.before)
    trial = Trial(step, dice, gain, chosen)
    if not chosen:
        return replace(selection, trials=(trial,))
    return replace(selection, trials=(trial,), steps=(step,), after=dice)


def _try_each(
    selection: Selection, pairs: Sequence[Pair], labels: LabelTable, candidates: _Candidates, report: Report
) -> Selection:
    """One more step for each label that gains by one."""
    used = {(step.label, step.action) for step in selection.steps}
    left = [step for steps in candidates.values() for step in steps if (step.label, step.action) not in used]
    if not left:
        return selection
    tried = _measure(pairs, labels, selection.steps, left, report).tried
    trials, chosen = list(selection.trials), []
    for name in candidates:
        mine = [step for step in left if step.label == name]
        gains = [_mean_dice(tried[step][name]) - selection.after[name] for step in mine]
        best = int(np.argmax(np.nan_to_num(gains, nan=-1.0))) if mine else -1
        for number, (step, gain) in enumerate(zip(mine, gains, strict=True)):
            takes = number == best and gain > MARGIN
            trials.append(Trial(step, {**selection.after, name: selection.after[name] + gain}, gain, takes))
            chosen += [step] if takes else []
    if chosen:
        steps = (*selection.steps, *chosen)
        # Steps of different labels meet where one encloses the other, so what they do together is measured as well.
        after = _means(_measure(pairs, labels, steps, (), report).base)
        if not _worse(after, selection.after):
            return replace(selection, trials=tuple(trials), steps=steps, after=after)
        trials = [replace(trial, chosen=trial.chosen and trial.step in selection.steps) for trial in trials]
    return replace(selection, trials=tuple(trials))


def _worse(dice: Dice, before: Dice) -> bool:
    """True if any label's Dice fell, or exists no more because no case would hold the label."""
    return any(dice[name] < value - 1e-9 or (isnan(dice[name]) and not isnan(value)) for name, value in before.items())


def _candidates(name: str, labels: LabelTable, start: _Tally) -> list[PostStep]:
    steps = [PostStep("keep_largest", name)] if labels.kind == "classes" else []
    steps.append(PostStep("fill_holes", name))
    sizes = start.sizes[name]
    if sizes and len(start.units) == 1:
        smallest = min(sizes)
        wanted = {smallest / 4, smallest / 2, smallest, float(np.percentile(sizes, 5))}
        (unit,) = start.units
        steps += [PostStep("remove_small", name, float(f"{size:.6g}"), unit) for size in sorted(wanted)]
    return list(dict.fromkeys(steps))


def _measure(
    pairs: Sequence[Pair], labels: LabelTable, steps: Sequence[PostStep], candidates: Sequence[PostStep], report: Report
) -> _Tally:
    """Count voxels of every label in every case after `steps`, and after each of `candidates` on top of them."""
    tally = _Tally()
    scored = {labels.names[index]: index for index in labels.foreground}
    indexed = LabelTable(labels.names, tuple(range(labels.classes)))
    for number, pair in enumerate(pairs, start=1):
        report(f"post-processing, case {number}/{len(pairs)} {pair.case}")
        prediction, reference = read_pair(pair)
        prediction = prediction if pair.size is None else pair.size.given_to(prediction)
        predicted = labels.to_indices(prediction.array, pair.case)
        true = pair.annotation.marked(labels.to_indices(reference.array, pair.case), labels, pair.case)
        if not steps and not candidates:
            _note_sizes(tally, prediction, reference, true, labels)
        postprocess(predicted, prediction, indexed, steps)
        for name, counts in count_labels(predicted, true, scored, IGNORE).items():
            tally.base.setdefault(name, []).append(counts)
        boxes = find_objects(predicted[0], max_label=labels.classes - 1)
        for step in candidates:
            found = tally.tried.setdefault(step, {})
            if step.label is None:
                whole = predicted.copy()
                postprocess(whole, prediction, indexed, [step])
                for name, counts in count_labels(whole, true, scored, IGNORE).items():
                    found.setdefault(name, []).append(counts)
                continue
            index = scored[step.label]
            after = _after(step, predicted, true, boxes[index - 1], (prediction, indexed, index))
            found.setdefault(step.label, []).append(after or tally.base[step.label][-1])
    return tally


def _after(
    step: PostStep,
    predicted: NDArray[np.uint8],
    true: NDArray[np.uint8],
    box: tuple[slice, ...] | None,
    how: tuple[Volume, LabelTable, int],
) -> Counts | None:
    """Counts of a step's label after it; only the label's own bounding box can change. None without the label."""
    if box is None:
        return None
    grid, table, index = how
    part = predicted[(slice(None), *box)].copy()
    postprocess(part, grid, table, [step])
    here = true[(slice(None), *box)]
    counts = count_overlap((part == index) & (here != IGNORE), here == index)
    # Of the reference, the part outside of the box is missed before and after.
    missed = int(np.count_nonzero(true == index)) - counts.reference
    return Counts(counts.true_positives, counts.false_positives, counts.false_negatives + missed)


def _note_sizes(
    tally: _Tally, prediction: Volume, reference: Volume, true: NDArray[np.uint8], labels: LabelTable
) -> None:
    """Sizes of the true components of each label, or of the objects where labels are object ids."""
    voxel = float(np.prod(prediction.spacing)) if prediction.unit != "pixel" else 1.0
    tally.units.add(prediction.unit)
    tally.dimensions = prediction.dimensions
    for index in labels.foreground:
        if labels.kind == "instances":
            counts = np.unique(reference.array[true == index], return_counts=True)[1]
        else:
            counts = component_sizes(true[0] == index)
        tally.sizes.setdefault(labels.names[index], []).extend((counts * voxel).tolist())


def _means(counts: Mapping[str, Sequence[Counts]]) -> Dice:
    return {name: _mean_dice(each) for name, each in counts.items()}


def _mean_dice(counts: Sequence[Counts]) -> float:
    """Over the cases that hold the label in prediction or reference."""
    return mean_of_known([each.dice for each in counts])
