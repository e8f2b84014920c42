"""Planned recipe of a training: augmentation and mirroring, loss, oversampling, folds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from medunet.config import DataSettings
from medunet.instances.settings import InstanceSettings
from medunet.losses.build import LossSettings
from medunet.planning.budget import Notes
from medunet.planning.fingerprint import CaseFacts, Fingerprint
from medunet.planning.laterality import directions, sides
from medunet.planning.preprocessing import Grid
from medunet.planning.rules import (
    COARSE,
    FOLDS,
    HAZE,
    LEFT_RIGHT,
    LIGHT_AUGMENTATION,
    LIGHT_STEPS,
    MOST_LABELS,
    NO_BACKGROUND,
    OBJECT_TARGET,
    OTHERS,
    OUTLIER,
    PARTLY,
    RARE,
    SLIGHT_ROTATION,
    SPECK,
    STAIN_CONTRAST,
    STAIN_GAMMA,
)
from medunet.system.wording import share, some
from medunet.transforms.augment.settings import AugmentSettings


def plan_data(found: Fingerprint, notes: Notes) -> DataSettings:
    """The split into folds, and what seems to be annotated in part; the path is for the caller to add."""
    data, partial = _plan_folds(found, notes), partly_annotated(found)
    if partial:
        notes["data.partial"] = _partial_note(found, partial)
    return replace(data, partial=partial)


def _plan_folds(found: Fingerprint, notes: Notes) -> DataSettings:
    cases = found.total
    notes["data.fold"] = "the first fold is held out"
    if cases == 1:
        notes["data.folds"] = (
            "there is one case: the last fifth along its longest axis is held out, the rest is learned from"
        )
        return DataSettings(folds=FOLDS)
    if cases < FOLDS:
        notes["data.folds"] = f"leave one out: {cases} cases, each held out in one fold"
        return DataSettings(folds=cases)
    notes["data.folds"] = f"{cases} cases: {cases // FOLDS} or more held out, {cases - cases // FOLDS} learned from"
    return DataSettings(folds=FOLDS)


def partly_annotated(found: Fingerprint) -> tuple[str, ...]:
    """The case that seems to have objects nobody drew; training on its background would unlearn objects.

    Only for object ids, and only if all other cases are alike; see `rules.PARTLY`. () if there is no such case.
    """
    cases = [case for case in found.cases if case.objects]
    if found.labels.kind != "instances" or len(cases) <= OTHERS:
        return ()
    facts = np.array([(case.objects[1].count, case.voxels[1] / max(1, sum(case.voxels))) for case in cases])
    least = int(np.argmin(facts[:, 0]))
    others = np.delete(facts, least, axis=0)
    alike = (others.min(axis=0) >= PARTLY * np.median(others, axis=0)).all()
    sparse = facts[least, 0] > 0 and (facts[least] < PARTLY * others.min(axis=0)).all()
    return (cases[least].name,) if alike and sparse else ()


def _partial_note(found: Fingerprint, partial: tuple[str, ...]) -> str:
    (case,) = (case for case in found.cases if case.name in partial)
    others = sorted(c.objects[1].count for c in found.cases if c is not case and c.objects)
    return (
        f"{case.name} has {case.objects[1].count} object(s) on {share(case.voxels[1] / sum(case.voxels))} of its area, "
        f"where all others have {_span(others[0], others[-1])}: taken as annotated in part, its background is neither "
        "learned from nor scored; say [] if it is complete"
    )


def plan_instances(found: Fingerprint, spacing: Sequence[float] | None, notes: Notes) -> InstanceSettings:
    """The target that is made of object ids, and the smallest size of predicted objects; the default for classes.

    Args:
        spacing: of the network's grid; None where nothing is resampled.
    """
    if found.labels.kind != "instances":
        return InstanceSettings()
    settings = InstanceSettings(target=OBJECT_TARGET)
    notes["instances.target"] = instance_note(found, settings)
    least = min((_smallest(case, spacing) for case in found.cases if case.objects and case.objects[1].count), default=0)
    notes["instances.min_size"] = (
        f"{share(SPECK)} of the smallest object's {least:.0f} voxels: what is smaller is taken for a speck, unless the "
        "picture's edge cuts it; predict --min-size overrides it"
    )
    return replace(settings, min_size=round(SPECK * least, 1))


def _smallest(case: CaseFacts, spacing: Sequence[float] | None) -> float:
    """The smallest object of a case, in voxels of the network's grid."""
    own = case.objects[1].smallest
    return own if spacing is None else own * math.prod(case.spacing) / math.prod(spacing)


def instance_note(found: Fingerprint, settings: InstanceSettings) -> str:
    """The share of objects that touch, the target, and the alternatives, in words."""
    objects = found.objects_of(1)
    count, touching = sum(o.count for o in objects), sum(o.touching for o in objects)
    shares = " and ".join(share(depth) for depth in settings.depths)
    ways = {
        "foreground": "foreground learns one mask, in which objects that touch become one",
        "separated": "separated learns a mask with gaps where objects touch (weight_map.kind: unet2015 weighs them)",
        "border": "border learns the inside of objects and, as a class of its own, their edge",
        "cores": f"cores learns objects and, inside each, what is deeper than {shares} of its largest depth",
    }
    first = ways.pop(settings.target)
    return (
        f"{share(touching / max(count, 1))} of the {count} measured objects touch another; {first}\n"
        f"the alternatives: {'; '.join(ways.values())}"
    )


def plan_augment(found: Fingerprint, grid: Grid, steps: float, notes: Notes) -> AugmentSettings:
    """Strength by the number of steps, mirroring by the labels' names, thick slices left in their plane."""
    settings, light = AugmentSettings(), steps < LIGHT_STEPS
    if light:
        settings = LIGHT_AUGMENTATION
        strength = f"about {steps:.0f} steps (below {LIGHT_STEPS}): light changes of intensity, frequent ones of shape"
    else:
        strength = f"about {steps:.0f} steps (from {LIGHT_STEPS} on): nnU-Net's changes of shape and intensity"
    notes["augment.rotation"] = notes["augment.noise"] = strength
    if found.cases[0].unit != "mm":
        settings = replace(settings, gamma=STAIN_GAMMA, contrast=STAIN_CONTRAST, haze=HAZE)
        notes["augment.haze"] = (
            "not in millimetres, so from a microscope: stain, exposure and light from out of focus differ from picture "
            "to picture"
        )
    coarse = None
    if grid.dimensions == 3 and max(grid.spacing) > COARSE * min(grid.spacing):
        coarse = int(np.argmax(grid.spacing))
        notes["augment.coarse_axis"] = (
            f"{max(grid.spacing) / min(grid.spacing):.2g} times as coarse as the finest (above {COARSE:g}): "
            "thick slices are rotated and scaled in their own plane only"
        )
    told = directions(_names(found))
    if told:
        notes["augment.flip_axes"] = f"no axis: labels differ by direction ({told}), which mirroring changes"
        notes["augment.rotation"] = "slight: labels differ by direction, which rotation changes"
        return replace(settings, flip_axes=(), rotation=SLIGHT_ROTATION, coarse_axis=coarse)
    return replace(settings, flip_axes=_flip_axes(found, grid, light, notes), coarse_axis=coarse)


def _names(found: Fingerprint) -> tuple[str, ...]:
    return (*(found.labels.names[i] for i in found.labels.foreground), *found.labels.scored)


def _flip_axes(found: Fingerprint, grid: Grid, light: bool, notes: Notes) -> tuple[int, ...] | None:
    """The network's axes that may be mirrored; None for all."""
    told = sides(_names(found))
    examples = "; ".join(told.values())
    if found.dimensions == 2 or found.cases[0].unit != "mm":
        if not told:
            notes["augment.flip_axes"] = "all axes: under a microscope there is no up, and no label names a side"
            return None
        # In a picture, or under a microscope, nobody knows which way left and right lie.
        notes["augment.flip_axes"] = f"no axis: labels differ by side ({examples}), and which axis that is is not known"
        return ()
    allowed = [axis for axis in range(3) if axis not in told]
    if light:
        allowed = [axis for axis in allowed if axis == LEFT_RIGHT]
        notes["augment.flip_axes"] = (
            "bodies are alike on both sides, and nobody is upside down: a short run does not learn what never happens"
        )
    else:
        notes["augment.flip_axes"] = "all axes, as in nnU-Net"
    if told:
        notes["augment.flip_axes"] += f"; labels differ by side ({examples}): no mirroring that would exchange them"
    if not light and not told:
        return None
    kept = [axis for axis in range(3) if axis != grid.slice_axis]
    return tuple(index for index, axis in enumerate(kept) if axis in allowed)


def plan_loss(found: Fingerprint, notes: Notes) -> LossSettings:
    """Dice with cross-entropy; the note says what the labels' sizes are."""
    labels, shares = found.labels, found.class_frequencies()
    rarest = sorted(labels.foreground, key=lambda index: shares[index])[:MOST_LABELS]
    sizes = "; ".join(_about(found, index, shares[index]) for index in sorted(rarest))
    if len(rarest) < len(labels.foreground):
        sizes = f"the {len(rarest)} rarest of {len(labels.foreground)} labels: {sizes}"
    part = found.annotated()
    unknown = "" if part == 1 else f"\n{share(part)} of the voxels are annotated; the others are not learned from"
    notes["loss.kind"] = (
        "Dice counts each label alike, however small; cross-entropy has a slope where Dice has none\n"
        f"measured: {sizes}{unknown}"
    )
    notes["loss.class_weights"] = (
        "none: Dice balances the labels already; rare ones are looked for more often instead, see patches.oversample"
    )
    notes["loss.include_background"] = (
        "the first class is background, which Dice leaves out"
        if labels.has_background
        else "no label is a background: each counts in Dice"
    )
    return LossSettings(include_background=not labels.has_background)


def plan_oversampling(found: Fingerprint, notes: Notes) -> float:
    """The share of patches that are made to contain foreground: more of them the rarer the rarest label is."""
    shares = {found.labels.names[i]: s for i in found.labels.foreground if (s := found.class_frequencies()[i]) > 0}
    rarest = min(shares, key=lambda name: shares[name])
    for below, patches in RARE:
        if shares[rarest] < below:
            notes["patches.oversample"] = (
                f"{rarest} has {share(shares[rarest])} of the voxels (below {share(below)}): more than a third of the "
                "patches are made to hold a random label of their case"
            )
            return patches
    notes["patches.oversample"] = f"a third, as in nnU-Net: the rarest label, {rarest}, has {share(shares[rarest])}"
    return 1 / 3


def _about(found: Fingerprint, index: int, part: float) -> str:
    """One label: share, cases, objects."""
    name, objects = found.labels.names[index], found.objects_of(index)
    text = f"{name} {share(part)} of the voxels in {found.present(index)} of {len(found.cases)} cases"
    if not objects:
        return text
    counts = [o.count for o in objects]
    what = "objects" if found.labels.kind == "instances" else "connected part(s)"
    text += (
        f", {_span(min(counts), max(counts))} {what} a case (smallest {min(o.smallest for o in objects)}, "
        f"median {int(np.median([o.median for o in objects]))} voxels)"
    )
    if found.labels.kind == "instances":
        text += f", {share(sum(o.touching for o in objects) / sum(counts))} of them touch another"
    return text


def _span(low: int, high: int) -> str:
    return f"{low}" if low == high else f"{low} to {high}"


def warnings(found: Fingerprint) -> list[str]:
    """Warnings about the data before training: absent labels, empty cases, constant scans, outliers."""
    labels, said = found.labels, []
    absent = [labels.names[i] for i in range(labels.classes) if not found.present(i)]
    if absent:
        said.append(f"no measured case has a voxel of {some(absent)}: it cannot be learned, and stays an unused class")
    empty = [c.name for c in found.cases if not any(c.voxels[i] for i in labels.foreground)]
    if empty:
        said.append(f"{len(empty)} case(s) without any foreground ({some(empty)}): they teach what is not one")
    if labels.has_background and found.class_frequencies()[0] < NO_BACKGROUND:
        part = share(found.class_frequencies()[0])
        said.append(f"only {part} of the voxels are background: there is hardly anything to tell apart")
    constant = [c.name for c in found.cases if any(r.constant for r in c.ranges)]
    if constant:
        said.append(f"{len(constant)} case(s) with a constant channel ({some(constant)}): look whether they are whole")
    partial = partly_annotated(found)
    if partial:
        said.append(f"{_partial_note(found, partial)} (data.partial)")
    outliers = [
        c.name for c in found.cases if any(r.maximum - r.high > OUTLIER * (r.high - r.low) > 0 for r in c.ranges)
    ]
    if outliers:
        said.append(
            f"{len(outliers)} case(s) with voxels far above all others ({some(outliers)}), which scale the rest"
        )
    return said
