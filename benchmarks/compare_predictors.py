"""Several predictors on one network and one scan, on the CPU: seconds, memory, and whether the labels agree.

    python benchmarks/compare_predictors.py
    python benchmarks/compare_predictors.py --shape 128,128,128 --patch 64 --classes 3 --channels 16,32,64,128 \
        --threads 2 --rounds 3 --nnunet ENV/bin/python --json FILE \
        --engines medunet-fp32,medunet-bf16,monai,monai-batch4,monai-bf16,nnunet,nnunet-tta,whole

Every engine turns the same random scan into labels, from array to array, with the same random weights. Each has a
process of its own, which is warmed up on one patch; then they are asked in turn (A B C A B C ...), so that only one
computes at any moment. Run it alone on the machine.

    medunet-fp32, medunet-bf16   the scan streamed through the network once, exactly; made ready anew for each scan
    monai                        sliding_window_inference, overlap 0.5, Gaussian, window by window
    monai-batch4                 four windows at a time: for one small float32 map (channels x first two sides up to
                                 20480) torch 2.13 takes a convolution that is several times slower than oneDNN's
    monai-bf16                   window by window, with autocast and channels_last_3d
    nnunet, nnunet-tta           nnUNetPredictor, step 0.5, Gaussian; tta: mirrored along all axes
    whole                        one plain pass over the whole scan, which the labels are compared with
    whole-compiled               the same by torch.compile, compiled for the scan's size before the first round

Memory is what a process needs at most above the loaded network and the scan, in the first round (Linux). The labels
say whether the arithmetic agrees; random weights say nothing about the quality of a segmentation.

nnU-Net gets an environment ENV of its own, with torch first and pinned: any other way of asking for it can pull another
version and gigabytes of CUDA packages (the Makefile says how to get a build without CUDA).

    python -m venv ENV
    ENV/bin/pip install torch==2.13.0
    echo torch==2.13.0 > ENV/constraint.txt
    ENV/bin/pip install -c ENV/constraint.txt nnunetv2==2.8.1
    ENV/bin/python -c "from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor"

The last line must print nothing. torchvision comes along and may not fit this torch; the predictor does not use it.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import hashlib
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medunet.inference.execution import Execution, Passage
from medunet.inference.streaming.plan import Budget, plan_stream
from medunet.inference.streaming.streamer import Streamer
from medunet.networks.memory import estimate_bytes
from medunet.networks.settings import UNetSettings
from medunet.networks.unet import UNet

SEED = 0
STREAM_MEMORY = 4 * 2**30
"""What `medunet predict` lets a stream take unless told otherwise."""
WHOLE_MEMORY = 8 * 2**30
MIRROR_AXES = (0, 1, 2)
PEAK_SHAPES = ((32, 64), (64, 32), (128, 16))
"""Channels and side of the convolutions whose best is called the peak of a core."""
PEAK_REPEATS = 5
PACKAGES = ("torch", "monai", "nnunetv2")
ROOT = Path(__file__).resolve().parents[1]

Segment = Callable[[Tensor], Tensor]
"""Labels ``(*spatial)`` uint8 of a scan ``(channel, *spatial)`` float32."""


@dataclass(frozen=True)
class Task:
    """What every engine is given.

    Attributes:
        shape: of the scan, spatial.
        patch: side of the windows of those engines that cut the scan into windows.
    """

    shape: tuple[int, ...] = (128, 128, 128)
    patch: int = 64
    classes: int = 3
    channels: tuple[int, ...] = (16, 32, 64, 128)
    threads: int = 2

    @property
    def window(self) -> tuple[int, ...]:
        return (self.patch,) * len(self.shape)

    @property
    def settings(self) -> UNetSettings:
        return UNetSettings(dimensions=3, classes=self.classes, channels=self.channels)

    def network(self) -> UNet:
        """Random, with batch norms that have something to do, as trained ones have."""
        network, generator = UNet(self.settings, SEED).eval(), torch.Generator().manual_seed(SEED)
        for name, statistic in network.named_buffers():
            if name.endswith("running_mean"):
                statistic.normal_(0.0, 0.1, generator=generator)
            if name.endswith("running_var"):
                statistic.uniform_(0.5, 1.5, generator=generator)
        return network

    def scan(self, shape: Sequence[int]) -> Tensor:
        return torch.from_numpy(np.random.default_rng(SEED).standard_normal((1, *shape), dtype=np.float32))


# --- engines: one function makes each ready -------------------------------------------------------------------------


def streamed(task: Task, network: UNet, dtype: torch.dtype) -> Segment:
    budget = Budget(STREAM_MEMORY, dtype.itemsize)

    def segment(scan: Tensor) -> Tensor:
        shape = tuple(scan.shape[1:])
        plan = plan_stream(network.settings, shape, budget, tuple(range(len(shape))))
        labels = torch.empty(shape, dtype=torch.uint8)
        for start, stop, logits in Streamer(network, Execution(dtype=dtype)).run(
            scan, plan.slab, passage=Passage(plan.axis)
        ):
            labels.narrow(plan.axis, start, stop - start).copy_(largest(logits))
        return labels

    return segment


def monai(task: Task, network: UNet, batch: int) -> Segment:
    from monai.inferers.utils import sliding_window_inference

    def segment(scan: Tensor) -> Tensor:
        with torch.inference_mode():
            logits = sliding_window_inference(scan[None], task.window, batch, network, overlap=0.5, mode="gaussian")
        return largest(logits[0])

    return segment


def monai_bf16(task: Task, network: UNet) -> Segment:
    plain = monai(task, network.to(memory_format=torch.channels_last_3d), batch=1)

    def segment(scan: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return plain(scan[None].to(memory_format=torch.channels_last_3d)[0])

    return segment


def nnunet(task: Task, network: UNet, mirroring: bool) -> Segment:
    """nnU-Net's predictor, told what it reads from a trained model's files: patch size, labels, mirror axes."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    predictor = nnUNetPredictor(
        tile_step_size=0.5,
        use_gaussian=True,
        use_mirroring=mirroring,
        perform_everything_on_device=False,
        device=torch.device("cpu"),
        allow_tqdm=False,
    )
    configuration = {"patch_size": list(task.window), "architecture": {}}  # an empty one: the network is there already
    plans = PlansManager({"configurations": {"3d_fullres": configuration}})
    labels = {"background": 0} | {f"class {index}": index for index in range(1, task.classes)}
    predictor.manual_initialization(
        network, plans, plans.get_configuration("3d_fullres"), None, {"labels": labels}, "", MIRROR_AXES
    )

    def segment(scan: Tensor) -> Tensor:
        logits = predictor.predict_sliding_window_return_logits(scan)
        return predictor.label_manager.convert_logits_to_segmentation(logits).to(torch.uint8)

    return segment


def whole(task: Task, network: UNet) -> Segment:
    size = network.settings.shape.smallest_for(task.shape)
    needed = estimate_bytes(network.settings, size)
    if needed > WHOLE_MEMORY:
        raise MemoryError(f"one pass over {size} voxels needs {needed / 2**30:.1f} GiB")

    def segment(scan: Tensor) -> Tensor:
        shape = scan.shape[1:]
        beyond = [n - m for n, m in zip(network.settings.shape.smallest_for(shape), shape, strict=True)]
        padded = nn.functional.pad(scan[None], [n for last in reversed(beyond) for n in (0, last)])
        with torch.inference_mode():
            logits = network(padded)[0]
        return largest(logits[(slice(None), *map(slice, shape))])

    return segment


def whole_compiled(task: Task, network: UNet) -> Segment:
    plain = whole(task, network)
    network.forward = torch.compile(network.forward)
    plain(task.scan(task.shape))
    return plain


def largest(logits: Tensor) -> Tensor:
    """Index of the largest logit, by numpy: torch's argmax over the first axis takes eight times as long (2.13)."""
    return torch.from_numpy(logits.float().numpy().argmax(axis=0)).to(torch.uint8)


@dataclass(frozen=True)
class Engine:
    """How an engine is made ready.

    Attributes:
        prepare: the way to segment, from the task and the network in evaluation mode.
        dtype: what it computes in, if it computes every voxel of every map once; None for the others.
        nnunet: whether it runs in nnU-Net's environment.
    """

    prepare: Callable[[Task, UNet], Segment]
    dtype: torch.dtype | None = None
    nnunet: bool = False


ENGINES = {
    "medunet-fp32": Engine(partial(streamed, dtype=torch.float32), torch.float32),
    "medunet-bf16": Engine(partial(streamed, dtype=torch.bfloat16), torch.bfloat16),
    "monai": Engine(partial(monai, batch=1)),
    "monai-batch4": Engine(partial(monai, batch=4)),
    "monai-bf16": Engine(monai_bf16),
    "nnunet": Engine(partial(nnunet, mirroring=False), nnunet=True),
    "nnunet-tta": Engine(partial(nnunet, mirroring=True), nnunet=True),
    "whole": Engine(whole, torch.float32),
    "whole-compiled": Engine(whole_compiled, torch.float32),
}
DEFAULT_ENGINES = "medunet-fp32,medunet-bf16,monai,nnunet,whole"
PEAK = "peak"
"""The worker that is no engine: it measures what a core can do."""


# --- the worker: a line of JSON in, a line of JSON out --------------------------------------------------------------


def work(name: str, task: Task) -> None:
    """Answer the parent until it closes the pipe."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print must not be taken for an answer

    def tell(content: dict[str, Any]) -> None:
        print(json.dumps(content), file=answers, flush=True)

    try:
        torch.set_num_threads(task.threads)
        hello, answer = ready_peak() if name == PEAK else ready_engine(ENGINES[name], task)
        tell(hello)
        for line in sys.stdin:
            tell(answer(json.loads(line)))
    except Exception as error:  # whatever it is, it is the parent that reports it and goes on with the others
        tell({"error": f"{type(error).__name__}: {error}"})


Answer = Callable[[dict[str, Any]], dict[str, Any]]


def ready_engine(engine: Engine, task: Task) -> tuple[dict[str, Any], Answer]:
    network, scan = task.network(), task.scan(task.shape)
    hello = {
        "versions": versions(),
        "inputs": digest([*network.state_dict().values(), scan]),
        "operations": operations(network, task.shape),
    }
    segment = engine.prepare(task, network)
    segment(task.scan(task.window))
    return hello, lambda request: timed(segment, scan, request["labels"])


def timed(segment: Segment, scan: Tensor, path: str | None) -> dict[str, Any]:
    """One run; where a path is given, its memory is measured too and the labels are saved there."""
    before = resident_bytes() if path else None
    wall, cpu = time.perf_counter(), time.process_time()
    labels = segment(scan)
    taken: dict[str, Any] = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    if path:
        np.save(path, labels.numpy())
    return taken | {"bytes": peak_bytes() - before if before else None}


def resident_bytes() -> int | None:
    """Memory in use, from which on the highest is counted anew; None where there is no /proc."""
    gc.collect()
    if not Path("/proc/self/clear_refs").exists():
        return None
    ctypes.CDLL(None).malloc_trim(0)  # what the warm-up left in the heap would hide as much of what a run needs
    Path("/proc/self/clear_refs").write_text("5")
    return status_bytes("VmRSS")


def peak_bytes() -> int:
    return status_bytes("VmHWM")


def status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def digest(tensors: Sequence[Tensor]) -> str:
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(tensor.numpy().tobytes())
    return total.hexdigest()


def operations(network: UNet, shape: Sequence[int]) -> float:
    """Multiplications and additions of all convolutions in one pass, counted on a small scan and scaled up."""
    sizes, total = network.settings.shape, 0
    small = sizes.smallest_for((1,) * len(shape))

    def count(layer: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        nonlocal total
        transposed = isinstance(layer, nn.ConvTranspose3d)
        numbers, channels = (inputs[0], layer.out_channels) if transposed else (output, layer.in_channels)
        total += 2 * numbers.numel() * channels * math.prod(layer.kernel_size)

    layers = [m for m in network.modules() if isinstance(m, nn.Conv3d | nn.ConvTranspose3d)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.inference_mode():
        network(torch.zeros((1, network.settings.in_channels, *small)))
    for hook in hooks:
        hook.remove()
    return total * math.prod(sizes.smallest_for(shape)) / math.prod(small)


def ready_peak() -> tuple[dict[str, Any], Answer]:
    return {}, lambda request: {name: convolution_speed(getattr(torch, name)) for name in request["types"]}


def convolution_speed(dtype: torch.dtype) -> float:
    """Operations per CPU second of the best convolution."""
    layouts = (torch.contiguous_format, torch.channels_last_3d)
    return max(one_speed(*one, dtype, layout) for one, layout in product(PEAK_SHAPES, layouts))


def one_speed(channels: int, side: int, dtype: torch.dtype, layout: torch.memory_format) -> float:
    weight = torch.randn(channels, channels, 3, 3, 3).to(dtype).contiguous(memory_format=layout)
    image = torch.randn(1, channels, side, side, side).to(dtype).contiguous(memory_format=layout)
    best = math.inf
    with torch.inference_mode():
        for _ in range(1 + PEAK_REPEATS):  # the first one warms up
            started = time.process_time()
            nn.functional.conv3d(image, weight, padding=1)
            best = min(best, time.process_time() - started)
    return 2 * 27 * channels * image.numel() / best


# --- the parent: workers, rounds, the report ------------------------------------------------------------------------


class WorkerError(Exception):
    """A worker said what went wrong, or died."""


class Worker:
    """A process that answers one request at a time.

    Args:
        python: the interpreter that runs this file once more.
        name: of an engine, or `PEAK`.
        log: file for what it prints.

    Raises:
        WorkerError: it could not be made ready.
    """

    def __init__(self, python: str, name: str, task: Task, log: Path) -> None:
        self._log = log
        paths = filter(None, (os.environ.get("PYTHONPATH"), str(ROOT)))  # nnU-Net's environment has no medunet
        environment = os.environ | {"OMP_NUM_THREADS": str(task.threads), "PYTHONPATH": os.pathsep.join(paths)}
        command = [python, __file__, "--worker", name, *options(task)]
        pipe = subprocess.PIPE
        try:
            with log.open("w") as prints:
                self._process = subprocess.Popen(
                    command, stdin=pipe, stdout=pipe, stderr=prints, text=True, env=environment
                )
        except OSError as error:
            raise WorkerError(f"{python}: {error.strerror}") from error
        self.hello = self._answer()

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died; the answer says so
            print(json.dumps(request), file=self._process.stdin, flush=True)
        return self._answer()

    def stop(self) -> None:
        """Also one that is still computing."""
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            said = self._log.read_text().strip().splitlines()
            raise WorkerError(f"the process ended ({self._process.wait()}){': ' + said[-1] if said else ''}")
        answer = json.loads(line)
        if "error" in answer:
            self.stop()
            raise WorkerError(answer["error"])
        return answer


def options(task: Task) -> list[str]:
    """The task as options of this script."""
    values = {f.name: getattr(task, f.name) for f in fields(task)}
    return [f"--{key}={','.join(map(str, v)) if isinstance(v, tuple) else v}" for key, v in values.items()]


@dataclass
class Result:
    """What is known of one engine.

    Attributes:
        wall, cpu: seconds of each round, on the clock and of all threads.
        bytes: memory above the loaded network and the scan; None where it could not be measured.
        agreement: share of voxels whose label is that of the whole pass; None without one.
        error: why it stopped.
    """

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    bytes: int | None = None
    agreement: float | None = None
    error: str = ""

    @property
    def median_wall(self) -> float:
        return statistics.median(self.wall)

    @property
    def median_cpu(self) -> float:
        return statistics.median(self.cpu)


@dataclass
class Comparison:
    """All that is measured.

    Attributes:
        peaks: operations per CPU second of the best convolution on one thread, by type.
        operations: of one pass over the whole scan.
        versions: of the packages, by environment.
    """

    task: Task
    results: dict[str, Result]
    peaks: dict[str, float] = field(default_factory=dict)
    operations: float = 0.0
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    inputs: str = ""


def compare(task: Task, pythons: dict[str, str], rounds: int) -> Comparison:
    """Run the engines, each with its interpreter."""
    found = Comparison(task, {name: Result() for name in pythons})
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(found, Path(folder))
        try:
            for name, python in pythons.items():
                bench.start(name, python)
            bench.start_peak()
            for number in range(1, rounds + 1):
                bench.run(number)
        finally:
            bench.stop()
        compare_labels(found, Path(folder))
    return found


class Bench:
    """The workers that still answer; what they say goes into a comparison."""

    def __init__(self, found: Comparison, folder: Path) -> None:
        self._found, self._folder = found, folder
        self._workers: dict[str, Worker] = {}
        self._peak: Worker | None = None

    def start(self, name: str, python: str) -> None:
        found = self._found
        try:
            self._workers[name] = Worker(python, name, found.task, self._folder / f"{name}.log")
            hello = self._workers[name].hello
            found.inputs = found.inputs or hello["inputs"]
            if hello["inputs"] != found.inputs:
                raise WorkerError("its random weights or scan are not those of the first engine; is it another torch?")
        except WorkerError as error:
            self._give_up(name, error)
            return
        found.operations = hello["operations"]
        found.versions["nnU-Net" if ENGINES[name].nnunet else "medunet"] = hello["versions"]

    def start_peak(self) -> None:
        if self._types():
            self._peak = Worker(sys.executable, PEAK, Task(threads=1), self._folder / f"{PEAK}.log")

    def run(self, number: int) -> None:
        """One round: every engine once, then the core's peak."""
        for name in list(self._workers):
            try:
                self._run_one(name, number)
            except WorkerError as error:
                self._give_up(name, error)
        if self._peak:
            for key, speed in self._peak.ask(types=self._types()).items():
                self._found.peaks[key] = max(speed, self._found.peaks.get(key, 0.0))

    def stop(self) -> None:
        for worker in (*self._workers.values(), *([self._peak] if self._peak else [])):
            worker.stop()

    def _run_one(self, name: str, number: int) -> None:
        result, first = self._found.results[name], number == 1
        taken = self._workers[name].ask(labels=str(self._folder / f"{name}.npy") if first else None)
        result.wall.append(taken["wall"])
        result.cpu.append(taken["cpu"])
        result.bytes = taken["bytes"] if first else result.bytes
        print(f"round {number}  {name:<14} {taken['wall']:8.3f} s wall {taken['cpu']:8.3f} s CPU", flush=True)

    def _give_up(self, name: str, error: WorkerError) -> None:
        self._found.results[name].error = str(error)
        print(f"{name} failed: {error}", flush=True)
        if name in self._workers:
            self._workers.pop(name).stop()

    def _types(self) -> list[str]:
        """Of the engines whose speed is compared with the core's."""
        return sorted({type_name(ENGINES[name].dtype) for name in self._workers if ENGINES[name].dtype})


def type_name(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")


def compare_labels(found: Comparison, folder: Path) -> None:
    reference = folder / "whole.npy"
    for name, result in found.results.items():
        own = folder / f"{name}.npy"
        if reference.exists() and own.exists():
            result.agreement = float(np.mean(np.load(own) == np.load(reference)))


HEADINGS = (
    "engine",
    "wall s",
    "CPU s",
    "wall ratio",
    "CPU ratio",
    "memory MiB",
    "labels as whole",
    "GFLOP per core-s",
    "of peak",
)


def table(found: Comparison) -> list[str]:
    """A line for each engine that ran, as Markdown; ratios to the first engine of medunet."""
    ran = {name: result for name, result in found.results.items() if result.wall}
    if not ran:
        return ["No engine ran."]
    first = ran[next((name for name in ran if name.startswith("medunet")), next(iter(ran)))]
    rows = [HEADINGS, ("---", *("--:",) * (len(HEADINGS) - 1))]
    rows += [(name, *numbers(result, first), *speed(found, name)) for name, result in ran.items()]
    return [f"| {' | '.join(row)} |" for row in rows]


def numbers(result: Result, first: Result) -> tuple[str, ...]:
    return (
        f"{result.median_wall:.3f}",
        f"{result.median_cpu:.3f}",
        f"{result.median_wall / first.median_wall:.2f}",
        f"{result.median_cpu / first.median_cpu:.2f}",
        "" if result.bytes is None else f"{result.bytes / 2**20:.0f}",
        "" if result.agreement is None else f"{100 * result.agreement:.3f} %",
    )


def speed(found: Comparison, name: str) -> tuple[str, str]:
    """Operations per core and second, and the share of what the core can do; only of a single pass."""
    peak = found.peaks.get(type_name(ENGINES[name].dtype))
    if not peak:
        return "", ""
    reached = found.operations / found.results[name].median_cpu
    return f"{reached / 1e9:.0f}", f"{100 * reached / peak:.0f} %"


def report(found: Comparison) -> list[str]:
    task = found.task
    lines = [
        f"{processor()}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}",
        *(
            f"{home}'s environment: " + ", ".join(f"{k} {v}" for k, v in has.items())
            for home, has in found.versions.items()
        ),
        f"scan {task.shape}, windows {task.window}, {task.classes} classes, channels {task.channels}, "
        f"{task.threads} threads; one pass is {found.operations / 1e9:.1f} GFLOP",
        "peak of a core: " + ", ".join(f"{key} {v / 1e9:.0f} GFLOP/s" for key, v in found.peaks.items()),
    ]
    failures = [f"{name} failed: {result.error}" for name, result in found.results.items() if result.error]
    return ["", *lines, "", *table(found), *([""] if failures else []), *failures]


def processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def numbers_of(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def parse(arguments: Sequence[str]) -> tuple[Task, argparse.Namespace]:
    default = Task()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", type=numbers_of, default=default.shape)
    parser.add_argument("--patch", type=int, default=default.patch)
    parser.add_argument("--classes", type=int, default=default.classes)
    parser.add_argument("--channels", type=numbers_of, default=default.channels)
    parser.add_argument("--threads", type=int, default=default.threads)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engines", type=lambda text: text.split(","), default=DEFAULT_ENGINES.split(","))
    parser.add_argument("--nnunet", help="the Python of an environment with nnU-Net")
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument("--worker", choices=[*ENGINES, PEAK], help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    unknown = [name for name in options.engines if name not in ENGINES]
    if unknown:
        parser.error(f"unknown engines {', '.join(unknown)}; there are {', '.join(ENGINES)}")
    if len(options.shape) != 3 or options.rounds < 1:
        parser.error("expected a shape of three numbers, and one round or more")
    return Task(options.shape, options.patch, options.classes, options.channels, options.threads), options


def main(arguments: Sequence[str]) -> None:
    task, options = parse(arguments)
    if options.worker:
        work(options.worker, task)
        return
    left_out = [name for name in options.engines if ENGINES[name].nnunet and not options.nnunet]
    if left_out:
        print(f"left out without --nnunet: {', '.join(left_out)}")
    chosen = [name for name in options.engines if name not in left_out]
    pythons = {name: options.nnunet if ENGINES[name].nnunet else sys.executable for name in chosen}
    if hasattr(os, "getloadavg"):
        print(f"load average at the start: {os.getloadavg()[0]:.2f}")
    found = compare(task, pythons, options.rounds)
    print("\n".join(report(found)))
    if options.json:
        options.json.write_text(json.dumps(asdict(found) | {"processor": processor()}, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
