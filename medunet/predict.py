"""The story of `medunet predict`: `segment_volume` segments one scan, `segment_files` many."""

from __future__ import annotations

import json
import platform
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray

from medunet import __version__
from medunet.data.canvas import Canvas
from medunet.data.postprocess import PostStep, postprocess
from medunet.data.regionmasks import mask_values
from medunet.data.scratch import Scratch
from medunet.data.volume import Volume
from medunet.devices import find_device
from medunet.errors import ConfigError, is_out_of_memory
from medunet.files import write_text
from medunet.inference.instances import ObjectRule
from medunet.learning.monitor import ProgressLine
from medunet.model import Model, load_models
from medunet.outputs import PredictRequest, as_cases, existing_folder, find_inputs, plan_outputs
from medunet.scanwork import ScanWork
from medunet.segmentation.objects import Terrain, Workspace, find_objects_of
from medunet.segmentation.planning import PredictSettings
from medunet.segmentation.relief import relief_of
from medunet.segmentation.segmenter import Segmenter
from medunet.segmentation.verify import require_verifiable


@dataclass
class Summary:
    """What became of each scan: lines for people, records for programs, cases that failed and why."""

    lines: list[str] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def fail(self, case: str, error: BaseException) -> None:
        """Note a scan that could not be segmented; the others go on."""
        text = f"{case}: {error}" if case not in str(error) else str(error)
        if is_out_of_memory(error):
            text = f"{case}: out of memory; use a smaller --memory, or another --device"
        self.failed.append(case)
        self.errors.append(text)
        self.records.append({"case": case, "error": text})


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
    canvas = Canvas.blank(given, scan.undo, segmenter.card.labels, np.empty, scores=False, values=segmenter.values)
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
    relief = relief_of(segmenter.models, rule)
    grid = segmenter.sized(volume) if isinstance(volume, Volume) else _on_own_grid(volume, segmenter)
    scan = segmenter.open(grid, stored=not isinstance(volume, Volume))
    terrain = Terrain.blank(relief, scan.undo, given.shape, np.empty)
    segmenter.segment(scan, segmenter.plan(scan), terrain.put, terrain.needs_scores)
    work = Workspace(np.empty, segmenter.settings.memory)
    ids = find_objects_of(terrain, rule, grid.spacing, work).ids
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
    relief = relief_of(models, request.objects) if request.objects else None
    steps = () if relief else _post_steps(segmenter)
    bar, summary = ProgressLine("predict"), Summary()
    work = ScanWork(segmenter, relief, steps, request, Scratch(existing_folder(request.output)), bar)
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
        content = _record(segmenter, steps, summary, seconds) | {
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


def _record(segmenter: Segmenter, steps: Sequence[PostStep], summary: Summary, seconds: float) -> dict[str, Any]:
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "medunet": __version__,
        "models": [
            {"path": str(model.path), "sha256": model.checksum, "name": model.card.name} for model in segmenter.models
        ],
        "settings": asdict(segmenter.settings),
        "postprocess": [asdict(step) for step in steps],
        "device": segmenter.execution.device,
        "precision": str(segmenter.execution.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "seconds": round(seconds, 3),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        "cases": summary.records,
    }
