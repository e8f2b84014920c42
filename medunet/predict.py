"""The story of `medunet predict`: `segment_volume` segments one scan, `segment_files` many."""

from __future__ import annotations

import functools
import json
import platform
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medunet import __version__
from medunet.data.catalogue import Case, load_image
from medunet.data.formats import default_suffix, write_volume
from medunet.data.preprocess import Undo, place_labels, preprocess, restore_labels, restore_scores
from medunet.data.volume import Volume
from medunet.devices import autocast_type, find_device
from medunet.errors import DataError, MedunetError, is_out_of_memory
from medunet.files import check_free, write_text
from medunet.geometry.tiles import fitting_tile, plan_tiles
from medunet.inference.exact import overlap_tile
from medunet.inference.execution import Execution, Progress
from medunet.inference.method import Candidate, Method, choose_method
from medunet.inference.mirroring import mirrored
from medunet.inference.sliding import Windows, blended_windows
from medunet.inference.stream import Slab, Streamer
from medunet.inference.streamplan import StreamPlan, plan_stream
from medunet.learning.monitor import ProgressLine
from medunet.model import Model, load_model
from medunet.networks.memory import estimate_bytes
from medunet.networks.settings import UNetSettings
from medunet.networks.unet import UNet
from medunet.outputs import PredictRequest, as_cases, find_inputs, plan_outputs, probabilities_path


@dataclass(frozen=True)
class PredictSettings:
    """How scans are segmented.

    Attributes:
        method: `exact` gives what one pass over the whole scan gives, `blend` averages overlapping windows,
            `auto` takes the first where it can be had.
        memory: bytes that the network's activations may use.
        precision: `fp32`, `bf16`, or `auto`: bf16 where the hardware computes it.
        tta: average over mirrored versions of the scan, along the axes that were mirrored in training.
    """

    method: Literal["auto", "exact", "blend"] = "auto"
    memory: int = 4 * 2**30
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    tta: bool = False


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


def segment_volume(volume: Volume, model: Model, settings: PredictSettings | None = None) -> Volume:
    """Segment a scan.

    Args:
        volume: `(channel, *spatial)` with the channels that the model was trained on.

    Returns:
        A label map `(1, *spatial)` on exactly the scan's grid, with the data set's own label values.

    Raises:
        DataError: the scan's channels or dimensions are not the model's, or voxels are NaN or infinite.
        ConfigError: the method asked for is impossible for this network.
    """
    array, undo = prepare_scan(volume, model)
    indices, _ = segment_array(array, undo, model, settings or PredictSettings())
    return volume.with_array(model.card.labels.to_values(indices))


def segment_array(
    array: NDArray[np.float32], undo: Undo, model: Model, settings: PredictSettings, report: Progress | None = None
) -> tuple[NDArray[np.uint8], Method]:
    """Class indices on the scan's own grid, and the method that was chosen.

    A scan that is streamed and not resampled never has the scores of all classes in memory: the largest wins slab by
    slab.

    Args:
        array: `(channel, *spatial)`, preprocessed.
        undo: the way back, from the same `preprocess`.
    """
    if array.ndim - 1 == model.card.network.dimensions and not settings.tta and not undo.resampled:
        way = _Way.choose(array.shape[1:], model, settings)
        if way.method.way == "stream":
            return place_labels(way.labels(torch.from_numpy(array), report).numpy()[None], undo), way.method
    scores, method = class_scores(array, model, settings, report)
    return restore_labels(scores, undo), method


def prepare_scan(volume: Volume, model: Model) -> tuple[NDArray[np.float32], Undo]:
    """Check that a scan fits the model, and preprocess it as in training."""
    card = model.card
    if volume.channels != card.network.in_channels:
        raise DataError(
            f"{volume.name}: has {volume.channels} channel(s), the model was trained on {card.network.in_channels}"
            + (f" ({', '.join(card.channels)})" if card.channels else "")
        )
    if volume.dimensions < card.network.dimensions:
        raise DataError(f"{volume.name}: is a picture, the model was trained on volumes")
    return preprocess(volume, card.preprocess)


def class_scores(
    array: NDArray[np.float32], model: Model, settings: PredictSettings, report: Progress | None = None
) -> tuple[NDArray[np.float32], Method]:
    """Class scores of a preprocessed scan: logits or, with mirroring, probabilities.

    Args:
        array: `(channel, *spatial)`; a 2-D network goes through a volume slice by slice.

    Returns:
        `(class, *spatial)` float32, and the method that was chosen.
    """
    if array.ndim - 1 == model.card.network.dimensions:
        return _scores(torch.from_numpy(array), model, settings, report)
    axis = model.card.slice_axis + 1
    slices = [np.ascontiguousarray(np.take(array, i, axis=axis)) for i in range(array.shape[axis])]
    results = []
    for done, part in enumerate(slices, start=1):
        scores, method = _scores(torch.from_numpy(part), model, settings, None)
        results.append(scores)
        if report:
            report(done, len(slices))
    return np.stack(results, axis=axis), method


def _scores(
    image: Tensor, model: Model, settings: PredictSettings, report: Progress | None
) -> tuple[NDArray[np.float32], Method]:
    way = _Way.choose(image.shape[1:], model, settings)
    compute = functools.partial(way.run, report=report)
    scores = mirrored(compute, image, model.card.mirror_axes) if settings.tta else compute(image)
    return scores.numpy(), way.method


@dataclass(frozen=True)
class _Way:
    """A chosen method with all it needs, so that it can be run on a scan and on its mirror images alike."""

    method: Method
    model: Model
    execution: Execution
    memory: int
    plan: StreamPlan | None

    @staticmethod
    def choose(shape: Sequence[int], model: Model, settings: PredictSettings) -> _Way:
        device = next(model.network.parameters()).device
        execution = Execution(str(device), autocast_type(settings.precision, device) or torch.float32)
        network = model.card.network
        own = isinstance(model.network, UNet)
        plan = None
        if own and network.exact:
            itemsize = execution.dtype.itemsize
            plan = plan_stream(network, shape, settings.memory, tuple(range(len(shape))), itemsize)
        candidate = Candidate(
            shape=network.shape if own else None,
            inexact_reason=network.inexact_reason,
            stream_bytes=plan.bytes if plan else 0,
            memory_limit=settings.memory,
        )
        return _Way(choose_method(candidate, settings.method), model, execution, settings.memory, plan)

    def run(self, image: Tensor, report: Progress | None = None) -> Tensor:
        """Class scores `(class, *spatial)` of an image `(channel, *spatial)`."""
        network, card = self.model.network, self.model.card
        if self.method.way == "stream":
            return self._streamed(image, report)
        if self.method.way == "tiles":
            fits = functools.partial(_fits, card.network, self.memory)
            tile = fitting_tile(image.shape[1:], card.network.shape, fits)
            return overlap_tile(
                network, image, plan_tiles(image.shape[1:], tile, card.network.shape), self.execution, report
            )
        return blended_windows(network, image, Windows(card.patch), self.execution, report)

    def _streamed(self, image: Tensor, report: Progress | None) -> Tensor:
        assert self.plan is not None
        scores = torch.empty((self.model.card.network.classes, *image.shape[1:]))
        for start, stop, logits in self._slabs(image, report):
            scores.narrow(self.plan.axis + 1, start, stop - start).copy_(logits)
        return scores

    def labels(self, image: Tensor, report: Progress | None = None) -> Tensor:
        """Class indices `(*spatial)` uint8 of an image that is streamed; scores are held for one slab only."""
        assert self.plan is not None
        indices = torch.empty(image.shape[1:], dtype=torch.uint8)
        for start, stop, logits in self._slabs(image, report):
            indices.narrow(self.plan.axis, start, stop - start).copy_(logits.argmax(dim=0))
        return indices

    def _slabs(self, image: Tensor, report: Progress | None) -> Iterator[Slab]:
        assert self.plan is not None
        return Streamer(self.model.network, self.execution, self.plan.axis).run(image, self.plan.slab, report)


def _fits(network: UNetSettings, memory: int, size: Sequence[int]) -> bool:
    return estimate_bytes(network, size) <= memory


def segment_files(model_source: str, request: PredictRequest, settings: PredictSettings) -> Summary:
    """Segment scans from files into files. One bad scan does not stop the others.

    Raises:
        MedunetError: before any work: no usable model, no scan, or outputs that collide, exist or cannot be written.
    """
    started = time.perf_counter()
    files = find_inputs(request.inputs)
    model = load_model(model_source, find_device(request.device))
    cases = as_cases(files, model.card.network.in_channels)
    targets = plan_outputs(cases, request)
    bar, summary = ProgressLine("predict"), Summary()
    try:
        for number, (case, target) in enumerate(zip(cases, targets, strict=True)):
            report = functools.partial(_report, bar, case.name, number, len(cases))
            try:
                _segment_case(case, target, model, request, settings, report, summary)
            except (MedunetError, OSError, MemoryError, RuntimeError) as error:
                if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                    raise
                summary.fail(case.name, error)
    finally:
        bar.close()
    seconds = time.perf_counter() - started
    summary.lines.append(f"{len(cases) - len(summary.failed)} of {len(cases)} scans segmented in {seconds:.1f} s")
    if request.record:
        content = _record(model, settings, summary, seconds)
        write_text(request.record, json.dumps(content, indent=2), overwrite=request.overwrite)
    return summary


def _report(bar: ProgressLine, name: str, number: int, count: int, done: int, total: int) -> None:
    bar.update((number + done / total) / count, f"{name} {done}/{total}")


def _segment_case(
    case: Case,
    target: Path | None,
    model: Model,
    request: PredictRequest,
    settings: PredictSettings,
    report: Progress,
    summary: Summary,
) -> None:
    watch = _Stopwatch()
    with watch.stage("read"):
        volume = load_image(case, request.axes)
        target = target or request.output / f"{case.name}{default_suffix(volume)}"
        check_free(target, request.overwrite)
    with watch.stage("preprocess"):
        array, undo = prepare_scan(volume, model)
    with watch.stage("network"):
        if request.probabilities:
            scores, method = class_scores(array, model, settings, report)
            indices = restore_labels(scores, undo)
        else:
            indices, method = segment_array(array, undo, model, settings, report)
    labels = volume.with_array(model.card.labels.to_values(indices))
    with watch.stage("write"):
        write_volume(labels, target, overwrite=request.overwrite)
        if request.probabilities:
            probabilities = torch.from_numpy(scores).softmax(0).numpy() if not settings.tta else scores
            restored = volume.with_array(restore_scores(probabilities, undo))
            write_volume(restored, probabilities_path(target), overwrite=request.overwrite)
    summary.lines += _remarks(case, labels, model)
    summary.lines.append(f"{case.name}: {target}  ({'exact' if method.exact else 'blended'}, {watch.total:.1f} s)")
    summary.records.append(
        {
            "case": case.name,
            "inputs": [str(path) for path in case.images],
            "output": str(target),
            "shape": list(volume.shape),
            "network_shape": list(array.shape[1:]),
            "method": asdict(method),
            "seconds": {name: round(value, 4) for name, value in watch.stages.items()},
        }
    )


def _remarks(case: Case, labels: Volume, model: Model) -> list[str]:
    """What a user should look at: a result without any foreground is rarely meant (TotalSegmentator issue 216)."""
    table = model.card.labels
    if table.has_background and not np.any(labels.array != table.values[0]):
        return [
            f"{case.name}: NOTE: nothing but background was found; is this the kind of scan the model was trained on?"
        ]
    return []


class _Stopwatch:
    """Seconds per stage."""

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.stages[name] = time.perf_counter() - started

    @property
    def total(self) -> float:
        return sum(self.stages.values())


def _record(model: Model, settings: PredictSettings, summary: Summary, seconds: float) -> dict[str, Any]:
    device = next(model.network.parameters()).device
    return {
        "medunet": __version__,
        "model": {"path": str(model.path), "sha256": model.checksum, "name": model.card.name},
        "settings": asdict(settings),
        "device": str(device),
        "autocast": str(autocast_type(settings.precision, device)),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "seconds": round(seconds, 3),
        # Linux counts in KiB, macOS in bytes.
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if platform.system() == "Darwin" else 1024),
        "cases": summary.records,
    }
