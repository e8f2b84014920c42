"""Prediction jobs: scans read, segmented and written one after the other, with a note of each."""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medunet.datasets.catalogue import Case
from medunet.datasets.loading import by_model_channels, load_image
from medunet.errors import MedunetError, is_out_of_memory
from medunet.formats.dispatch import check_target, default_suffix
from medunet.formats.results import Result, mask_path, probabilities_path, write_together
from medunet.geometry.boxes import Box
from medunet.inference.execution import Progress
from medunet.instances.elevation import ElevationRule
from medunet.instances.find import Landscape, Objects, Workspace, find_objects_of
from medunet.prediction.output_buffer import OutputBuffer
from medunet.prediction.outputs import PredictRequest
from medunet.prediction.planning import ScanPlan
from medunet.prediction.scan import Scan
from medunet.prediction.segmenter import Segmenter, Sink
from medunet.prediction.verify import Verification, verify
from medunet.system.blocks import slowest_axis
from medunet.system.progress import ProgressLine
from medunet.system.scratch import Scratch, lives_in_file
from medunet.system.wording import bytes_text
from medunet.transforms.postprocess import PostStep, postprocess
from medunet.transforms.region_masks import mask_values, region_mask
from medunet.volume import Volume

MUCH_GROWTH = 8.0
"""From this many voxels of the network's grid for each of the scan's on, the user is told before the work starts."""


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


@dataclass
class ScanJob:
    """One scan on its way: opened, segmented, written.

    Attributes:
        volume: as its file has it.
        grid: the same with the voxel size that it is taken to have, where its file states none or not all of it.
    """

    case: Case
    target: Path
    volume: Volume
    grid: Volume
    scan: Scan
    plan: ScanPlan
    watch: _Stopwatch
    canvas: OutputBuffer | None = None
    objects: Objects | None = None
    verified: Verification | None = None
    lines: list[str] = field(default_factory=list)
    checksums: dict[str, str] | None = None
    changed: dict[str, int] = field(default_factory=dict)
    count: int | None = None
    masks: list[Path] = field(default_factory=list)

    @property
    def assumed(self) -> bool:
        """Whether the voxel size, or a part of it, is not the file's own."""
        return self.grid is not self.volume

    @property
    def like(self) -> Volume:
        """What results are written like: the grid that the file states, which sections do but for their distance."""
        return self.volume if self.volume.unit == "pixel" else self.grid

    def record(self) -> dict[str, Any]:
        return {
            "case": self.case.name,
            "inputs": [str(path) for path in self.case.images],
            "output": str(self.target),
            "region_masks": [str(path) for path in self.masks],
            "shape": list(self.volume.shape),
            "spacing": list(self.grid.spacing),
            "unit": self.grid.unit,
            "spacing_assumed": self.assumed,
            "network_shape": list(self.scan.shape),
            "plan": self.plan.record(),
            "seconds": {name: round(value, 4) for name, value in self.watch.stages.items()},
            "verified": self.verified.record() if self.verified else None,
            "postprocessed_voxels": self.changed,
            "objects": self.count,
            "sha256": self.checksums,
        }


Outcome = ScanJob | BaseException


class PredictionJobs:
    """Scans one after the other; a second thread reads ahead, and a third writes behind."""

    def __init__(
        self,
        segmenter: Segmenter,
        elevation_rule: ElevationRule | None,
        steps: Sequence[PostStep],
        request: PredictRequest,
        scratch: Scratch,
        bar: ProgressLine,
    ) -> None:
        self._segmenter, self._smallest_kept, self._steps, self._request = segmenter, elevation_rule, steps, request
        self._scratch, self._bar = scratch, bar
        self._said: Any = None
        self._assumed = False

    def run(self, tasks: Sequence[tuple[Case, Path | None]]) -> Iterator[tuple[Case, Outcome]]:
        """Each case with its finished job, or with the error that the user can act on; in order."""
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
            try:
                opened = reader.submit(self._open, *tasks[0])
                written: tuple[Case, Future[ScanJob]] | None = None
                for number, (case, _) in enumerate(tasks):
                    current = opened
                    if number + 1 < len(tasks):
                        opened = reader.submit(self._open, *tasks[number + 1])
                    report = functools.partial(_report, self._bar, case.name, number, len(tasks))
                    segmented = _outcome(functools.partial(self._segment, current, report))
                    if written:
                        yield written[0], _outcome(written[1].result)
                        written = None
                    if isinstance(segmented, BaseException):
                        yield case, segmented
                    else:
                        written = case, writer.submit(self._write, segmented)
                if written:
                    yield written[0], _outcome(written[1].result)
            finally:
                reader.shutdown(cancel_futures=True)

    def _open(self, case: Case, target: Path | None) -> ScanJob:
        watch = _Stopwatch()
        with watch.stage("read"):
            chosen = by_model_channels(case, self._segmenter.card.channels, self._request.axes)
            volume = load_image(chosen, self._request.axes, self._scratch)
            target = target or self._request.output / f"{case.name}{default_suffix(volume)}"
            check_target(target, self._request.overwrite)
        with watch.stage("preprocess"):
            grid = self._segmenter.sized(volume)
            scan = self._segmenter.open(grid)
            plan = self._segmenter.plan(scan, _file_axis(volume, scan))
        by_name = f"{case.name}: channels taken by their names: {', '.join(map(str, chosen.channels))}"
        return ScanJob(case, target, volume, grid, scan, plan, watch, lines=[by_name] if chosen != case else [])

    def _segment(self, opened: Future[ScanJob], report: Progress) -> ScanJob:
        job = opened.result()
        self._announce(job)
        if self._request.verify:
            self._bar.say(f"{job.case.name}: verifying ...")
            with job.watch.stage("verify"):
                job.verified = verify(self._segmenter, job.scan, job.plan)
            job.lines.append(f"{job.case.name}: {job.verified.describe()}")
        with job.watch.stage("network"):
            scores, table = self._request.probabilities, self._segmenter.card.labels
            job.canvas = OutputBuffer.blank(
                job.volume, job.scan.undo, table, self._scratch, scores, values=self._segmenter.values
            )
            landscape = self._terrain(job)
            sink = _both(job.canvas, landscape) if landscape else job.canvas.put
            scores |= landscape is not None and landscape.needs_scores
            self._segmenter.segment(job.scan, job.plan, sink, scores, report)
        if landscape:
            with job.watch.stage("objects"):
                job.objects = self._objects(job, landscape)
        if self._steps:
            with job.watch.stage("postprocess"):
                changed = postprocess(job.canvas.labels, job.grid, self._segmenter.written, self._steps)
            job.canvas.look_again()
            job.changed = {s.describe(job.volume.dimensions): n for s, n in zip(self._steps, changed, strict=True)}
        return job

    def _terrain(self, job: ScanJob) -> Landscape | None:
        if self._smallest_kept is None:
            return None
        return Landscape.blank(self._smallest_kept, job.scan.undo, job.volume.shape, self._scratch)

    def _objects(self, job: ScanJob, landscape: Landscape) -> Objects:
        assert self._request.objects is not None, "objects are asked for"
        work = Workspace(self._scratch, self._segmenter.settings.memory)
        return find_objects_of(landscape, self._request.objects, job.grid.spacing, work)

    def _announce(self, job: ScanJob) -> None:
        """Say how the scan is segmented, where it is another way than the last one."""
        name = job.case.name
        if self._said is None and self._steps:
            words = ", ".join(step.describe(job.volume.dimensions) for step in self._steps)
            self._bar.say(f"post-processing: {words} (chosen by cross-validation; --no-postprocess leaves it out)")
        if job.assumed and not self._assumed:
            size = f"{'×'.join(f'{length:g}' for length in job.grid.spacing)} {job.grid.unit}"
            whole = job.volume.unit == "pixel"
            unstated = (
                "its file states no voxel size; it" if whole else "its sections state no distance; its voxel size"
            )
            self._bar.say(
                f"{name}: NOTE: {unstated} is taken to be {size}, as dataset.json declared of "
                "the scans that the model learned from; so are all others that state none"
            )
            self._assumed = True
        if job.plan.kind != self._said:
            self._bar.say(f"{name}: {job.plan.describe()}")
            self._said = job.plan.kind
        if job.scan.growth > MUCH_GROWTH:
            shape = "x".join(str(n) for n in job.scan.shape)
            self._bar.say(
                f"{name}: NOTE: the model works on finer voxels than this scan has: it is brought to {shape}, "
                f"{job.scan.growth:.1f} times its voxels, and takes that much longer; about "
                f"{bytes_text(job.plan.bytes)} of memory"
            )

    def _write(self, job: ScanJob) -> ScanJob:
        request, canvas, objects, table = self._request, job.canvas, job.objects, self._segmenter.card.labels
        assert canvas is not None, "segmented before it is written"
        labels = canvas.labels
        results: dict[Path, Result] = {job.target: lambda: labels if objects is None else objects.ids}
        if canvas.probabilities is not None:
            scores = canvas.probabilities
            results[probabilities_path(job.target)] = lambda: scores
        for name, values in mask_values(self._segmenter.written).items() if request.region_masks else ():
            path = mask_path(job.target, name)
            results[path] = functools.partial(region_mask, labels, values, self._scratch)
            job.masks.append(path)
        with job.watch.stage("write"):
            write_together(job.like, results, request.overwrite)
            if objects is not None:
                ids, names = job.volume.with_array(objects.ids), self._segmenter.card.channels
                request.object_files.write(job.target, ids, job.grid, names, request.overwrite)
        if request.record:
            job.checksums = {str(path): _sha256(path) for path in (*job.case.images, job.target) if path.is_file()}
        if table.has_background and not canvas.found:
            # A result without any foreground is rarely meant (TotalSegmentator issue 216).
            job.lines.append(
                f"{job.case.name}: NOTE: nothing but background was found; "
                "is this the kind of scan the model was trained on?"
            )
        how = "exact" if job.plan.method.exact else "blended"
        if objects is not None:
            job.count = objects.count
            dropped = f" ({objects.dropped} left out)" if objects.dropped else ""
            how = f"{objects.count} object{'' if objects.count == 1 else 's'}{dropped}, {how}"
        if job.masks:
            how = f"with masks of {len(job.masks)} region{'' if len(job.masks) == 1 else 's'}, {how}"
        job.lines.append(f"{job.case.name}: {job.target}  ({how}, {job.watch.total:.1f} s)")
        job.canvas = job.objects = None
        return job


def _both(canvas: OutputBuffer, landscape: Landscape) -> Sink:
    def put(box: Box, winners: NDArray[np.uint8], scores: Sequence[NDArray[np.float32]]) -> None:
        canvas.put(box, winners, scores)
        landscape.put(box, winners, scores)

    return put


def _outcome(work: Callable[[], ScanJob]) -> Outcome:
    """What the work returns, or the error if it is one that the user can act on."""
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


def _report(bar: ProgressLine, name: str, number: int, count: int, done: int, total: int) -> None:
    bar.update((number + done / total) / count, f"{name} {done}/{total}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
