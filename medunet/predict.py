"""The story of `medunet predict`: `segment_volume` segments one scan, `segment_files` many."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from medunet.errors import ConfigError
from medunet.instances.find import Landscape, Workspace, find_objects_of
from medunet.instances.watershed import ObjectRule
from medunet.model import Model, load_models
from medunet.prediction.jobs import PredictionJobs
from medunet.prediction.objects import elevation_rule_of
from medunet.prediction.output_buffer import OutputBuffer
from medunet.prediction.outputs import PredictRequest, as_cases, existing_folder, find_inputs, plan_outputs
from medunet.prediction.planning import PredictSettings
from medunet.prediction.record import Summary, record
from medunet.prediction.segmenter import Segmenter
from medunet.prediction.verify import require_verifiable
from medunet.system.devices import find_device
from medunet.system.files import write_text
from medunet.system.progress import ProgressLine
from medunet.system.scratch import Scratch
from medunet.transforms.postprocess import PostStep, postprocess
from medunet.transforms.region_masks import mask_values
from medunet.volume import Volume


@overload
def segment_volume(
    volume: Volume, model: Model | Sequence[Model], settings: PredictSettings | None = None
) -> Volume: ...
@overload
def segment_volume(
    volume: NDArray[Any], model: Model | Sequence[Model], settings: PredictSettings | None = None
) -> NDArray[Any]: ...
def segment_volume(
    volume: Volume | NDArray[Any], model: Model | Sequence[Model], settings: PredictSettings | None = None
) -> Volume | NDArray[Any]:
    """Segment a scan that is in memory.

    Args:
        volume: `(channel, *spatial)` with the channels that the model was trained on. A bare array is taken as lying on
            the model's own grid: its axes and its voxel size stay as they are, its intensities are normalised.
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
    grid = segmenter.sized(volume) if isinstance(volume, Volume) else _on_own_grid(volume, segmenter)
    scan = segmenter.open(grid, stored=not isinstance(volume, Volume))
    steps = _post_steps(segmenter)
    canvas = OutputBuffer.blank(
        given, scan.undo, segmenter.card.labels, np.empty, scores=False, values=segmenter.values
    )
    segmenter.segment(scan, segmenter.plan(scan), canvas.put)
    postprocess(canvas.labels, grid, segmenter.written, steps)
    return given.with_array(canvas.labels) if isinstance(volume, Volume) else canvas.labels


@overload
def segment_objects(
    volume: Volume,
    model: Model | Sequence[Model],
    settings: PredictSettings | None = None,
    rule: ObjectRule | None = None,
) -> Volume: ...
@overload
def segment_objects(
    volume: NDArray[Any],
    model: Model | Sequence[Model],
    settings: PredictSettings | None = None,
    rule: ObjectRule | None = None,
) -> NDArray[Any]: ...
def segment_objects(
    volume: Volume | NDArray[Any],
    model: Model | Sequence[Model],
    settings: PredictSettings | None = None,
    rule: ObjectRule | None = None,
) -> Volume | NDArray[Any]:
    """Find the objects of a scan that is in memory, such as cells: `segment_volume`, one number for each object.

    What cross-validation chose for label maps (`keep the largest component`, …) is not done to objects.

    Args:
        volume, model: see `segment_volume`. The model learned one kind of object.
        rule: which objects are kept, and how; by default those that are as large as what the model learned from.

    Returns:
        An id map `(1, *spatial)` on exactly the scan's grid, uint16, or uint32 from 65536 objects on: 0 is background,
        objects are numbered from 1 without gaps, by z, then y, then x of their first voxel; an array for an array.

    Raises:
        DataError: see `segment_volume`.
        ConfigError: see `segment_volume`; or the model learned several kinds of objects.
        MedunetError: touching objects fill more voxels than `settings.memory` allows to be told apart.
    """
    segmenter = Segmenter([model] if isinstance(model, Model) else model, settings)
    given = volume if isinstance(volume, Volume) else Volume(volume)
    rule = rule or ObjectRule()
    elevation_rule = elevation_rule_of(segmenter.models, rule)
    grid = segmenter.sized(volume) if isinstance(volume, Volume) else _on_own_grid(volume, segmenter)
    scan = segmenter.open(grid, stored=not isinstance(volume, Volume))
    landscape = Landscape.blank(elevation_rule, scan.undo, given.shape, np.empty)
    segmenter.segment(scan, segmenter.plan(scan), landscape.put, landscape.needs_scores)
    work = Workspace(np.empty, segmenter.settings.memory)
    ids = find_objects_of(landscape, rule, grid.spacing, work).ids
    return given.with_array(ids) if isinstance(volume, Volume) else ids


def _post_steps(segmenter: Segmenter) -> tuple[PostStep, ...]:
    """What is done to finished label maps.

    Raises:
        ConfigError: the models do not agree on it.
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


def _on_own_grid(array: NDArray[Any], segmenter: Segmenter) -> Volume:
    """A bare array with the voxel size that the models work on, where they have one."""
    how = segmenter.card.preprocess
    if how.spacing is None:
        return Volume(array, unit=how.unit)
    return Volume(array, np.diag([*how.spacing, 1.0][:3] + [1.0]), how.unit)


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
    bar, summary = ProgressLine("predict"), Summary()
    work = PredictionJobs(segmenter, elevation_rule, steps, request, Scratch(existing_folder(request.output)), bar)
    try:
        for case, outcome in work.run(list(zip(cases, targets, strict=True))):
            if isinstance(outcome, BaseException):
                summary.fail(case.name, outcome)
            else:
                summary.lines += outcome.lines
                summary.records.append(outcome.record())
    finally:
        bar.close()
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
