"""The story of `medunet predict`: `segment_volume` segments one scan, `segment_files` many."""

from __future__ import annotations

import json
import time
from contextlib import closing
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medunet.errors import ConfigError
from medunet.instances.find import Landscape, Workspace, find_objects_of
from medunet.instances.watershed import ObjectRule
from medunet.model import load_models
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


def segment_volume(
    volume: Volume | NDArray[Any], segmenter: Segmenter, scores: bool = False
) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
    """Segment a scan that is in memory; see `medunet.api.segment_volume`, the door for users.

    Args:
        volume: `(channel, *spatial)`; a bare array lies on the models' own grid.
        scores: whether probabilities are wanted as well.

    Returns:
        The label map `(1, *spatial)` on exactly the scan's grid, and its probabilities `(class, *spatial)` or None.
    """
    given = volume if isinstance(volume, Volume) else Volume(volume)
    grid, scan = _opened(volume, segmenter)
    steps = _post_steps(segmenter)
    plan = segmenter.plan(scan)
    output = OutputBuffer.blank(given, scan.undo, segmenter.card.labels, np.empty, scores, segmenter.card.values)
    for piece in segmenter.pieces(scan, plan, scores):
        output.put(piece)
    postprocess(output.labels, grid, segmenter.written, steps)
    return output.labels, output.probabilities


def segment_objects(
    volume: Volume | NDArray[Any], segmenter: Segmenter, rule: ObjectRule | None = None
) -> NDArray[Any]:
    """Find the objects of a scan that is in memory; see `medunet.api.segment_objects`, the door for users.

    Returns:
        An id map `(1, *spatial)` on exactly the scan's grid.
    """
    given, rule = volume if isinstance(volume, Volume) else Volume(volume), rule or ObjectRule()
    elevation_rule = elevation_rule_of(segmenter.models, rule)
    grid, scan = _opened(volume, segmenter)
    plan = segmenter.plan(scan)
    landscape = Landscape.blank(elevation_rule, scan.undo, given.shape, np.empty)
    for piece in segmenter.pieces(scan, plan, landscape.needs_scores):
        landscape.put(piece)
    return find_objects_of(landscape, rule, grid.spacing, Workspace(np.empty, segmenter.settings.memory)).ids


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
