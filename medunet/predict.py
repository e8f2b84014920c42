"""The story of `medunet predict`: `segment_volume` segments one scan, `segment_files` many."""

from __future__ import annotations

import functools
import json
import platform
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medunet import __version__
from medunet.data.catalogue import Case, group_cases, load_image, scan_files
from medunet.data.formats import WRITABLE, case_stem, default_suffix, is_dicom_series, suffix_of, write_volume
from medunet.data.preprocess import preprocess, restore_labels, restore_scores
from medunet.data.volume import Volume
from medunet.devices import autocast_type, find_device
from medunet.errors import ConfigError, DataError, MedunetError, OutputError
from medunet.files import check_free, write_text
from medunet.geometry.tiles import fitting_tile, plan_tiles
from medunet.inference.exact import overlap_tile, whole_pass
from medunet.inference.execution import Execution
from medunet.inference.method import Candidate, Method, choose_method
from medunet.inference.mirroring import mirrored
from medunet.inference.sliding import Windows, blended_windows
from medunet.learning.monitor import ProgressLine
from medunet.model import Model, load_model
from medunet.networks.memory import estimate_bytes

Report = Callable[[int, int], None]
"""Called with the number of windows or tiles done, and of all."""


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


@dataclass(frozen=True)
class PredictRequest:
    """What `segment_files` is asked to do: scans in, files out."""

    inputs: Sequence[Path]
    output: Path
    device: str = "auto"
    axes: str | None = None
    probabilities: bool = False
    overwrite: bool = False
    record: Path | None = None


@dataclass
class Summary:
    """What became of each scan: lines for people, records for programs, names of the cases that failed."""

    lines: list[str] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


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
    scores, _ = class_scores(array, model, settings or PredictSettings())
    indices = restore_labels(scores, undo)
    return volume.with_array(model.card.labels.to_values(indices))


def prepare_scan(volume: Volume, model: Model) -> tuple[NDArray[np.float32], Any]:
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
    array: NDArray[np.float32], model: Model, settings: PredictSettings, report: Report | None = None
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
    image: Tensor, model: Model, settings: PredictSettings, report: Report | None
) -> tuple[NDArray[np.float32], Method]:
    device = next(model.network.parameters()).device
    dtype = autocast_type(settings.precision, device) or torch.float32
    way = _Way.choose(image.shape[1:], model, settings, Execution(str(device), dtype))
    # An idle GPU hides nothing; on a CPU the progress of several mirrored passes is counted as one each.
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

    @staticmethod
    def choose(shape: Sequence[int], model: Model, settings: PredictSettings, execution: Execution) -> _Way:
        network = model.card.network
        padded = [-(-n // s) * s for n, s in zip(shape, network.shape.stride, strict=True)]
        needed = estimate_bytes(network, padded) if network.padded else 0
        candidate = Candidate(network.shape, network.inexact_reason, needed, settings.memory)
        return _Way(choose_method(candidate, settings.method), model, execution, settings.memory)

    def run(self, image: Tensor, report: Report | None = None) -> Tensor:
        network, card = self.model.network, self.model.card
        if self.method.way == "whole":
            scores = whole_pass(network, image, card.network.shape.stride, self.execution)
            if report:
                report(1, 1)
            return scores
        if self.method.way == "tiles":
            fits = functools.partial(_fits, card.network, self.memory)
            tile = fitting_tile(image.shape[1:], card.network.shape, fits)
            plan = plan_tiles(image.shape[1:], tile, card.network.shape)
            return overlap_tile(network, image, plan, self.execution, report)
        return blended_windows(network, image, Windows(card.patch), self.execution, report)


def _fits(network: Any, memory: int, size: Sequence[int]) -> bool:
    return estimate_bytes(network, size) <= memory


def segment_files(model_source: str, request: PredictRequest, settings: PredictSettings) -> Summary:
    """Segment scans from files into files. One bad scan does not stop the others.

    Raises:
        MedunetError: before any work: no usable model, no scan, or outputs that collide or exist.
    """
    started = time.perf_counter()
    cases = find_inputs(request.inputs)
    targets = plan_outputs(cases, request)
    model = load_model(model_source, find_device(request.device))
    bar, summary = ProgressLine("predict"), Summary()
    try:
        for number, (case, target) in enumerate(zip(cases, targets, strict=True)):
            report = functools.partial(_report, bar, case.name, number, len(cases))
            try:
                _segment_case(case, target, model, request, settings, report, summary)
            except MedunetError as error:
                summary.failed.append(case.name)
                summary.records.append({"case": case.name, "error": str(error)})
                summary.lines.append(f"{case.name}: FAILED: {error}")
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
    report: Report,
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
        scores, method = class_scores(array, model, settings, report)
    with watch.stage("restore"):
        labels = volume.with_array(model.card.labels.to_values(restore_labels(scores, undo)))
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


def find_inputs(paths: Sequence[Path]) -> list[Case]:
    """Cases from files, folders of scans and DICOM folders; `NAME_0000`, `NAME_0001` are channels of NAME.

    Raises:
        DataError: a path that does not exist, or a folder without scans.
    """
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise DataError(f"{path}: no such file or folder")
        if path.is_dir() and not is_dicom_series(path):
            found = scan_files(path)
            if not found:
                raise DataError(f"{path}: holds no scan that medunet reads, and is no DICOM series")
            files += found
        else:
            files.append(path)
    stems: dict[str, Path] = {}
    for file in files:
        other = stems.setdefault(case_stem(file), file)
        if other is not file:
            raise OutputError(
                f"{other} and {file} would write the same output {case_stem(file)}; predict them into different folders"
            )
    return group_cases(files, {})


def plan_outputs(cases: Sequence[Case], request: PredictRequest) -> list[Path | None]:
    """Where each result goes; None means a name in the output folder whose suffix the scan decides.

    Raises:
        OutputError: one file for several scans, a folder's name that is a file, or outputs that exist.
        ConfigError: a file name whose suffix cannot be written.
    """
    output = request.output
    named = suffix_of(output) in WRITABLE or (len(cases) == 1 and output.suffix != "")
    as_file = named and not output.is_dir()
    if as_file and suffix_of(output) not in WRITABLE:
        raise ConfigError(
            f"-o {output}: cannot be written; expected a folder or a name ending in {', '.join(WRITABLE)}"
        )
    if as_file and len(cases) > 1:
        raise OutputError(f"-o {output}: is one file, but {len(cases)} scans are to be written; give a folder")
    if as_file:
        check_free(output, request.overwrite)
        return [output]
    if output.exists() and not output.is_dir():
        raise OutputError(f"-o {output}: is a file; give a folder, or a name with a suffix for one scan")
    if not request.overwrite and output.is_dir():
        for case in cases:
            existing = [p for p in output.glob(f"{_escaped(case.name)}.*") if suffix_of(p) in WRITABLE]
            if existing:
                raise OutputError(f"{existing[0]}: exists already; choose another folder, or say --overwrite")
    return [None] * len(cases)


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def probabilities_path(target: Path) -> Path:
    """`CASE_probabilities` beside the label map; PNG cannot hold them, so they become TIFF."""
    suffix = suffix_of(target)
    return target.with_name(f"{case_stem(target)}_probabilities{'.tif' if suffix == '.png' else suffix}")


def _record(model: Model, settings: PredictSettings, summary: Summary, seconds: float) -> dict[str, Any]:
    device = next(model.network.parameters()).device
    return {
        "medunet": __version__,
        "model": {"path": str(model.path), "sha256": model.checksum, "name": model.card.name},
        "settings": asdict(replace(settings)),
        "device": str(device),
        "autocast": str(autocast_type(settings.precision, device)),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "seconds": round(seconds, 3),
        # Linux counts in KiB, macOS in bytes.
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if platform.system() == "Darwin" else 1024),
        "cases": summary.records,
    }
