"""Prediction jobs: scans that are opened, segmented and written, one after the other, with a note of each."""

from __future__ import annotations

import functools
import hashlib
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from medunet.datasets.catalogue import Case
from medunet.datasets.loading import by_model_channels, load_image
from medunet.errors import MedunetError, is_out_of_memory
from medunet.formats.dispatch import check_target, default_suffix
from medunet.formats.results import Result, mask_path, probabilities_path, write_together
from medunet.inference.execution import Progress
from medunet.instances.find import Landscape, Objects, Workspace, find_objects_of
from medunet.instances.settings import ElevationRule
from medunet.prediction.outputs import PredictRequest
from medunet.prediction.planning import ScanPlan
from medunet.prediction.scan import Scan, sized
from medunet.prediction.segmenter import Segmenter
from medunet.prediction.verify import Verification, verify
from medunet.system.blocks import slowest_axis
from medunet.system.devices import peak_of_process
from medunet.system.progress import ProgressLine
from medunet.system.scratch import Scratch, lives_in_file
from medunet.system.wording import bytes_text
from medunet.transforms.postprocess import PostStep, mask_values, postprocess, region_mask
from medunet.transforms.restore import OutputBuffer
from medunet.version import __version__
from medunet.volume import Volume

MUCH_GROWTH = 8.0
"""From this many voxels of the network's grid for each of the scan's on, the user is told before the work starts."""

T = TypeVar("T")


@dataclass
class Stopwatch:
    """Seconds per stage of a job."""

    stages: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.stages[name] = time.perf_counter() - started

    @property
    def total(self) -> float:
        return sum(self.stages.values())


@dataclass(frozen=True)
class Opened:
    """A scan that was read and planned for.

    Attributes:
        case: with the channels that the model wants.
        volume: as its file has it.
        grid: the same with the voxel size that it is taken to have, where its file states none or not all of it.
        lines: for people.
    """

    case: Case
    target: Path
    volume: Volume
    grid: Volume
    scan: Scan
    plan: ScanPlan
    watch: Stopwatch
    lines: tuple[str, ...]

    @property
    def assumed(self) -> bool:
        """True where the voxel size, or a part of it, is not the file's own."""
        return self.grid is not self.volume

    @property
    def like(self) -> Volume:
        """The grid of the results: the one that the file states; only the distance of sections is declared."""
        return self.volume if self.volume.unit == "pixel" else self.grid


@dataclass(frozen=True)
class Segmented:
    """A scan with its results in memory or in unnamed files.

    Attributes:
        objects: None for label maps.
        verified: None where that was not asked for.
        changed: voxels that each step of post-processing changed.
    """

    opened: Opened
    output: OutputBuffer
    objects: Objects | None
    verified: Verification | None
    changed: dict[str, int]


@dataclass(frozen=True)
class Written:
    """A scan whose results are files.

    Attributes:
        lines: for people.
        record: for programs.
    """

    lines: tuple[str, ...]
    record: dict[str, Any]


Outcome = Written | BaseException


@dataclass
class Summary:
    """The outcome of each scan: lines for people, records for programs, cases that failed and why."""

    lines: list[str] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def note(self, case: str, outcome: Outcome) -> None:
        """Note what became of a scan."""
        if isinstance(outcome, BaseException):
            self._fail(case, outcome)
        else:
            self.lines += outcome.lines
            self.records.append(outcome.record)

    def _fail(self, case: str, error: BaseException) -> None:
        """Note a scan that could not be segmented; the others go on."""
        text = f"{case}: {error}" if case not in str(error) else str(error)
        if is_out_of_memory(error):
            text = f"{case}: out of memory; use a smaller --memory, or another --device"
        self.failed.append(case)
        self.errors.append(text)
        self.records.append({"case": case, "error": text})


class PredictionJobs:
    """Scans one after the other; a second thread reads ahead, and a third writes behind.

    Args:
        elevation_rule: how objects are found; None for label maps.
        steps: of post-processing.
        scratch: makes large arrays.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        elevation_rule: ElevationRule | None,
        steps: Sequence[PostStep],
        request: PredictRequest,
        scratch: Scratch,
        bar: ProgressLine,
    ) -> None:
        self._segmenter, self._elevation_rule, self._steps = segmenter, elevation_rule, steps
        self._request, self._scratch = request, scratch
        self._announcer = _Announcer(bar, steps)

    def run(self, tasks: Sequence[tuple[Case, Path | None]]) -> Iterator[tuple[Case, Outcome]]:
        """Each case with what was written, or with the error that the user can act on; in order."""
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
            try:
                opened = reader.submit(self._open, *tasks[0])
                writing: list[tuple[Case, Future[Written]]] = []
                for number, (case, _) in enumerate(tasks):
                    current = opened
                    if number + 1 < len(tasks):
                        opened = reader.submit(self._open, *tasks[number + 1])
                    report = functools.partial(self._announcer.report, case.name, number, len(tasks))
                    segmented = _outcome(functools.partial(self._segment, current, report))
                    yield from _finished(writing)
                    writing = []
                    if isinstance(segmented, BaseException):
                        yield case, segmented
                    else:
                        writing.append((case, writer.submit(self._write, segmented)))
                    del segmented  # or its arrays would be held while the next scan is segmented
                yield from _finished(writing)
            finally:
                reader.shutdown(cancel_futures=True)

    def _open(self, case: Case, target: Path | None) -> Opened:
        watch, card = Stopwatch(), self._segmenter.card
        with watch.stage("read"):
            chosen = by_model_channels(case, card.channels, self._request.axes)
            volume = load_image(chosen, self._request.axes, self._scratch)
            target = target or self._request.output / f"{case.name}{default_suffix(volume)}"
            check_target(target, self._request.overwrite)
        with watch.stage("preprocess"):
            grid = sized(volume, card)
            scan = self._segmenter.open(grid)
            plan = self._segmenter.plan(scan, _file_axis(volume, scan))
        by_name = f"{case.name}: channels taken by their names: {', '.join(map(str, chosen.channels))}"
        return Opened(case, target, volume, grid, scan, plan, watch, (by_name,) if chosen != case else ())

    def _segment(self, reading: Future[Opened], report: Progress) -> Segmented:
        opened = reading.result()
        self._announcer.announce(opened)
        verified = self._verify(opened) if self._request.verify else None
        with opened.watch.stage("network"):
            output, landscape = self._results(opened, report)
        objects = None if landscape is None else self._objects(opened, landscape)
        return Segmented(opened, output, objects, verified, self._postprocess(opened, output))

    def _verify(self, opened: Opened) -> Verification:
        self._announcer.say(f"{opened.case.name}: verifying ...")
        with opened.watch.stage("verify"):
            return verify(self._segmenter, opened.scan, opened.plan)

    def _results(self, opened: Opened, report: Progress) -> tuple[OutputBuffer, Landscape | None]:
        """The label map and, where objects are asked for, their landscape, piece by piece."""
        card, scan, scores = self._segmenter.card, opened.scan, self._request.probabilities
        output = OutputBuffer.blank(opened.volume, scan.undo, card.labels, self._scratch, scores, card.values)
        landscape = None
        if self._elevation_rule is not None:
            landscape = Landscape.blank(self._elevation_rule, scan.undo, opened.volume.shape, self._scratch)
            scores |= landscape.needs_scores
        for piece in self._segmenter.pieces(scan, opened.plan, scores, report):
            output.put(piece)
            if landscape is not None:
                landscape.put(piece)
        return output, landscape

    def _objects(self, opened: Opened, landscape: Landscape) -> Objects:
        assert self._request.objects is not None, "objects are asked for"
        with opened.watch.stage("objects"):
            work = Workspace(self._scratch, self._segmenter.settings.memory)
            return find_objects_of(landscape, self._request.objects, opened.grid.spacing, work)

    def _postprocess(self, opened: Opened, output: OutputBuffer) -> dict[str, int]:
        """Post-process the label map in place; voxels changed by each step."""
        if not self._steps:
            return {}
        with opened.watch.stage("postprocess"):
            changed = postprocess(output.labels, opened.grid, self._segmenter.written, self._steps)
        output.look_again()
        return {s.describe(opened.volume.dimensions): n for s, n in zip(self._steps, changed, strict=True)}

    def _write(self, done: Segmented) -> Written:
        request, opened, objects = self._request, done.opened, done.objects
        masks = self._masks(done)
        labels = done.output.labels
        results: dict[Path, Result] = {opened.target: lambda: labels if objects is None else objects.ids}
        if done.output.probabilities is not None:
            scores = done.output.probabilities
            results[probabilities_path(opened.target)] = lambda: scores
        with opened.watch.stage("write"):
            write_together(opened.like, results | masks, request.overwrite)
            if objects is not None:
                ids, names = opened.volume.with_array(objects.ids), self._segmenter.card.channels
                request.object_files.write(opened.target, ids, opened.grid, names, request.overwrite)
        return Written(self._lines(done, len(masks)), self._record(done, tuple(masks)))

    def _masks(self, done: Segmented) -> dict[Path, Result]:
        """A binary mask of each region, where they are asked for."""
        values = mask_values(self._segmenter.written) if self._request.region_masks else {}
        return {
            mask_path(done.opened.target, name): functools.partial(
                region_mask, done.output.labels, own, self._scratch
            )
            for name, own in values.items()
        }  # fmt: skip

    def _lines(self, done: Segmented, masks: int) -> tuple[str, ...]:
        opened, objects, name = done.opened, done.objects, done.opened.case.name
        lines = [*opened.lines, *([f"{name}: {done.verified.describe()}"] if done.verified else [])]
        if self._segmenter.card.labels.has_background and not done.output.found:
            # A result without any foreground is rarely meant (TotalSegmentator issue 216).
            lines.append(
                f"{name}: NOTE: nothing but background was found; is this the kind of scan the model was trained on?"
            )
        how = "exact" if opened.plan.method.exact else "blended"
        if objects is not None:
            dropped = f" ({objects.dropped} left out)" if objects.dropped else ""
            how = f"{objects.count} object{'' if objects.count == 1 else 's'}{dropped}, {how}"
        if masks:
            how = f"with masks of {masks} region{'' if masks == 1 else 's'}, {how}"
        return (*lines, f"{name}: {opened.target}  ({how}, {opened.watch.total:.1f} s)")

    def _record(self, done: Segmented, masks: Sequence[Path]) -> dict[str, Any]:
        opened = done.opened
        return {
            "case": opened.case.name,
            "inputs": [str(path) for path in opened.case.images],
            "output": str(opened.target),
            "region_masks": [str(path) for path in masks],
            "shape": list(opened.volume.shape),
            "spacing": list(opened.grid.spacing),
            "unit": opened.grid.unit,
            "spacing_assumed": opened.assumed,
            "network_shape": list(opened.scan.shape),
            "plan": opened.plan.record(),
            "seconds": {name: round(value, 4) for name, value in opened.watch.stages.items()},
            "verified": done.verified.record() if done.verified else None,
            "postprocessed_voxels": done.changed,
            "objects": done.objects.count if done.objects else None,
            "sha256": _checksums((*opened.case.images, opened.target)) if self._request.record else None,
        }


class _Announcer:
    """Announcements before a scan is segmented, where they differ from those of the scan before."""

    def __init__(self, bar: ProgressLine, steps: Sequence[PostStep]) -> None:
        self._bar, self._steps = bar, steps
        self._said: set[str] = set()
        self._last_kind: tuple[Any, ...] = ()
        self.say = bar.say

    def announce(self, opened: Opened) -> None:
        name, plan = opened.case.name, opened.plan
        if self._steps:
            words = ", ".join(step.describe(opened.volume.dimensions) for step in self._steps)
            self._once(
                "steps", f"post-processing: {words} (chosen by cross-validation; --no-postprocess leaves it out)"
            )
        if opened.assumed:
            self._once("assumed", f"{name}: NOTE: {_assumed_size(opened)}")
        if plan.kind != self._last_kind:
            self.say(f"{name}: {plan.describe()}")
            self._last_kind = plan.kind
        if opened.scan.growth > MUCH_GROWTH:
            shape = "x".join(str(n) for n in opened.scan.shape)
            self.say(
                f"{name}: NOTE: the model works on finer voxels than this scan has: it is brought to {shape}, "
                f"{opened.scan.growth:.1f} times its voxels, and takes that much longer; about "
                f"{bytes_text(plan.bytes)} of memory"
            )

    def report(self, name: str, number: int, count: int, done: int, total: int) -> None:
        self._bar.update((number + done / total) / count, f"{name} {done}/{total}")

    def _once(self, subject: str, text: str) -> None:
        if subject not in self._said:
            self.say(text)
            self._said.add(subject)


def _assumed_size(opened: Opened) -> str:
    size = f"{'×'.join(f'{length:g}' for length in opened.grid.spacing)} {opened.grid.unit}"
    whole = opened.volume.unit == "pixel"
    unstated = "its file states no voxel size; it" if whole else "its sections state no distance; its voxel size"
    return (
        f"{unstated} is taken to be {size}, as dataset.json declared of "
        "the scans that the model learned from; so are all others that state none"
    )


def record(segmenter: Segmenter, steps: Sequence[PostStep], summary: Summary, seconds: float) -> dict[str, Any]:
    """The content of `--record`: models, settings, machine, and every scan."""
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
        "peak_memory_bytes": peak_of_process(),
        "cases": summary.records,
    }


def _finished(writing: Sequence[tuple[Case, Future[Written]]]) -> Iterator[tuple[Case, Outcome]]:
    """The scan that is being written, if any, when it is done."""
    for case, future in writing:
        yield case, _outcome(future.result)


def _outcome(work: Callable[[], T]) -> T | BaseException:
    """The result of the work, or an error that the user can act on."""
    try:
        return work()
    except (MedunetError, OSError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        return error


def _file_axis(volume: Volume, scan: Scan) -> int | None:
    """The axis of the network's grid that is slowest in the file that the scan lives in, if it does."""
    if not lives_in_file(volume.array):
        return None
    return scan.undo.orientation.axes.index(slowest_axis(volume.array))


def _checksums(paths: Sequence[Path]) -> dict[str, str]:
    """SHA-256 of those paths that are files."""
    checksums = {}
    for path in filter(Path.is_file, paths):
        with path.open("rb") as file:
            checksums[str(path)] = hashlib.file_digest(file, "sha256").hexdigest()
    return checksums
