"""The story of `medunet predict`: `segment_volume` segments one scan, `segment_files` many."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from medunet.errors import ConfigError
from medunet.instances.find import Landscape, Workspace, find_objects_of
from medunet.instances.watershed import ObjectRule
from medunet.model import Model, load_models
from medunet.prediction.jobs import PredictionJobs, Summary, record
from medunet.prediction.members import elevation_rule_of
from medunet.prediction.outputs import PredictRequest, as_cases, existing_folder, find_inputs, plan_outputs
from medunet.prediction.planning import PredictSettings
from medunet.prediction.scan import Scan, sized
from medunet.prediction.segmenter import Segmenter
from medunet.prediction.verify import require_verifiable
from medunet.system.devices import find_device
from medunet.system.files import write_text
from medunet.system.progress import ProgressLine
from medunet.system.scratch import Scratch
from medunet.transforms.postprocess import PostStep, mask_values, postprocess
from medunet.transforms.restore import OutputBuffer
from medunet.volume import Volume

Given = TypeVar("Given", Volume, NDArray[Any])
"""A scan in memory: a volume, or a bare array."""


def segment_volume(volume: Given, model: Model | Sequence[Model], settings: PredictSettings | None = None) -> Given:
    """Segment a scan that is in memory.

    Args:
        volume: `(channel, *spatial)` with the channels that the model was trained on. A bare array is taken as lying on
            the model's own grid: its axes and its voxel size do not change, its intensities are normalised.
        model: one, or several whose class probabilities are averaged.

    Returns:
        A label map `(1, *spatial)` on exactly the scan's grid, with the data set's own label values and the model's
        post-processing; an array for an array.

    Raises:
        DataError: the scan's channels or dimensions are not the model's, or voxels are NaN or infinite.
        ConfigError: the method asked for is impossible for this network, or the memory is too small.
    """
    segmenter = Segmenter([model] if isinstance(model, Model) else model, settings)
    given = volume if isinstance(volume, Volume) else Volume(volume)
    grid, scan = _opened(volume, segmenter)
    steps = _post_steps(segmenter)
    plan = segmenter.plan(scan)
    output = OutputBuffer.blank(given, scan.undo, segmenter.card.labels, np.empty, False, segmenter.card.values)
    for piece in segmenter.pieces(scan, plan):
        output.put(piece)
    postprocess(output.labels, grid, segmenter.written, steps)
    return _like(volume, output.labels)


def segment_objects(
    volume: Given,
    model: Model | Sequence[Model],
    settings: PredictSettings | None = None,
    rule: ObjectRule | None = None,
) -> Given:
    """Find the objects of a scan that is in memory, such as cells: `segment_volume`, one number for each object.

    Post-processing that cross-validation chose for label maps (`keep the largest component`, …) is not done to objects.

    Args:
        volume, model: see `segment_volume`. The model learned one kind of object.
        rule: which objects are kept, and how; by default those that are as large as the objects of the training.

    Returns:
        An id map `(1, *spatial)` on exactly the scan's grid, with 0 for background, in uint16, or in uint32 from 65536
        objects on. Objects are numbered from 1 without gaps, by z, then y, then x of their first voxel. An array for an
        array.

    Raises:
        DataError: see `segment_volume`.
        ConfigError: see `segment_volume`; or the model learned several kinds of objects.
        MedunetError: touching objects fill more voxels than `settings.memory` allows to be told apart.
    """
    segmenter = Segmenter([model] if isinstance(model, Model) else model, settings)
    given, rule = volume if isinstance(volume, Volume) else Volume(volume), rule or ObjectRule()
    elevation_rule = elevation_rule_of(segmenter.models, rule)
    grid, scan = _opened(volume, segmenter)
    plan = segmenter.plan(scan)
    landscape = Landscape.blank(elevation_rule, scan.undo, given.shape, np.empty)
    for piece in segmenter.pieces(scan, plan, landscape.needs_scores):
        landscape.put(piece)
    ids = find_objects_of(landscape, rule, grid.spacing, Workspace(np.empty, segmenter.settings.memory)).ids
    return _like(volume, ids)


def _like(volume: Given, array: NDArray[Any]) -> Given:
    """A label map in the form in which its scan was given."""
    # A type checker does not see that both branches keep the type.
    found: Any = volume.with_array(array) if isinstance(volume, Volume) else array
    result: Given = found
    return result


def _opened(volume: Volume | NDArray[Any], segmenter: Segmenter) -> tuple[Volume, Scan]:
    """The scan with its voxel size, and as the models see it; a bare array has the voxel size of the models' grid."""
    if isinstance(volume, Volume):
        grid = sized(volume, segmenter.card)
        return grid, segmenter.open(grid)
    how = segmenter.card.preprocess
    if how.spacing is None:
        grid = Volume(volume, unit=how.unit)
    else:
        grid = Volume(volume, np.diag([*how.spacing, 1.0][:3] + [1.0]), how.unit)
    return grid, segmenter.open(grid, stored=True)


def _post_steps(segmenter: Segmenter) -> tuple[PostStep, ...]:
    """The steps that finished label maps go through.

    Raises:
        ConfigError: the models do not agree on them.
    """
    first, *others = segmenter.models
    if not segmenter.settings.postprocess:
        return ()
    for model in others:
        if model.card.postprocess != first.card.postprocess:
            raise ConfigError(
                f"{model.path} and {first.path} differ in their post-processing; say --no-postprocess to leave it out"
            )
    return first.card.postprocess


def segment_files(model_source: str, request: PredictRequest, settings: PredictSettings) -> Summary:
    """Segment scans from files into files. One bad scan does not stop the others.

    The next scan is read and the last result written while one is segmented.

    Raises:
        MedunetError: before any work: no usable model, no scan, or outputs that collide, exist or cannot be written.
    """
    started = time.perf_counter()
    files = find_inputs(request.inputs, request.stack)
    models = load_models(model_source, find_device(request.device))
    cases = [
        replace(case, channels=request.channels, frame=request.frame)
        for case in as_cases(files, models[0].card.network.in_channels)
    ]
    segmenter = Segmenter(models, settings)
    masks = _region_values(segmenter, model_source) if request.region_masks else {}
    targets = plan_outputs(cases, request, tuple(masks))
    if request.verify:
        require_verifiable(segmenter)
    elevation_rule = elevation_rule_of(models, request.objects) if request.objects else None
    steps = () if elevation_rule else _post_steps(segmenter)
    summary = Summary()
    with closing(ProgressLine("predict")) as bar:
        jobs = PredictionJobs(segmenter, elevation_rule, steps, request, Scratch(existing_folder(request.output)), bar)
        for case, outcome in jobs.run(list(zip(cases, targets, strict=True))):
            summary.note(case.name, outcome)
    seconds = time.perf_counter() - started
    summary.lines.append(f"{len(cases) - len(summary.failed)} of {len(cases)} scans segmented in {seconds:.1f} s")
    if request.record:
        content = record(segmenter, steps, summary, seconds) | {
            "instances": asdict(request.objects) if request.objects else None
        }
        write_text(request.record, json.dumps(content, indent=2), overwrite=request.overwrite)
    return summary


def _region_values(segmenter: Segmenter, model_source: str) -> dict[str, tuple[int, ...]]:
    """See `mask_values`.

    Raises:
        ConfigError: the models' label maps have no regions.
    """
    labels = segmenter.written
    if not labels.regions:
        raise ConfigError(
            f"{model_source}: --region-masks writes a mask for each region, but this model learned no regions: its "
            f'labels are {labels.describe()}\nleave it out, or train on a data set whose dataset.json has "regions"'
        )
    return mask_values(labels)
