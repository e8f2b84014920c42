"""Checks and measurements on a CUDA GPU that have waited for one, by one command of at most eight minutes.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --part equality --part volume -o found.json
    python benchmarks/gpu.py --device cpu --small        # the same parts at toy sizes, to see that they work

    machine     what it is
    equality    `medunet.stream` against one whole pass on the device, in float32, bfloat16 and float16
    networks    one training step of every network that a config can name, small
    step        seconds and memory of a training step, patches ready in memory
    training    the same by `medunet.train`, with its patches, augmentation and loader
    volume      one large volume streamed, beside MONAI's sliding windows in the same precision
    files       `segment_files` from scans to label maps in files, with reading and writing

Each part has a process of its own and a time limit; what it has found by then is kept, and the next part follows. The
JSON is written anew after every figure. Weights are random, batch norm has random statistics. Memory is what PyTorch
reserved on the GPU, or the process' largest resident size on a CPU.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import multiprocessing
import os
import platform
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import medunet
from medunet.datasets.labels import LabelTable
from medunet.errors import MissingExtra
from medunet.inference.any_network import stream
from medunet.learning.averaging import Ema
from medunet.learning.loop import Recipe, TrainState, placed, train_step
from medunet.learning.optimisers import OptimiserSettings, make_optimiser
from medunet.learning.schedules import ScheduleSettings
from medunet.losses.build import LossSettings, make_loss
from medunet.model import ModelCard, save_model
from medunet.networks.build import ARCHITECTURES, build_network
from medunet.networks.settings import UNetSettings
from medunet.networks.unet import UNet
from medunet.patches.dataset import PatchBatch
from medunet.predict import segment_files
from medunet.prediction.outputs import PredictRequest
from medunet.prediction.planning import PredictSettings
from medunet.system.devices import free_memory, peak_memory, reset_peak_memory
from medunet.transforms.preprocess import PreprocessSettings
from medunet.volume import Volume

CLASSES = 3
TOTAL_SECONDS = 480.0
LOWER = {"bf16": torch.bfloat16, "fp16": torch.float16}
ROUNDING = 1e-4
"""Largest difference in float32, in parts of the largest logit, that is taken for rounding; TF32 gives about 1e-3."""

Note = Callable[[str, Any], None]
"""Records a figure or an error under a name."""


@dataclass(frozen=True)
class Scale:
    """Sizes, and how long what cannot be foreseen may take.

    Attributes:
        channels: of the large network; the first has 31 million parameters.
        width: channels of the finest level of the networks of `equality`.
        side: of the volume, a cube.
        volume_seconds: for one way of one precision; what takes longer is measured on a part and scaled.
        scan: of `files`; as many as `scans`.
    """

    name: str
    channels: tuple[int, ...]
    equality: tuple[int, int, int]
    width: int
    patch: int
    steps: int
    epochs: int
    side: int
    window: int
    volume_seconds: float
    scan: tuple[int, int, int]
    scans: int
    limits: Mapping[str, float]

    @property
    def network(self) -> UNetSettings:
        return UNetSettings(channels=self.channels, classes=CLASSES)


FULL = Scale(
    "full", (32, 64, 128, 256, 320, 320), (160, 128, 96), 16, 128, 10, 3, 512, 128, 18.0, (512, 512, 120), 2,
    {"machine": 30, "equality": 60, "networks": 90, "step": 50, "training": 80, "volume": 120, "files": 70},
)  # fmt: skip
SMALL = Scale(
    "small", (4, 8), (32, 16, 16), 4, 16, 2, 2, 48, 16, 1.0, (32, 32, 24), 2,
    {"machine": 5, "equality": 20, "networks": 30, "step": 10, "training": 15, "volume": 10, "files": 10},
)  # fmt: skip

SMALL_NETWORKS: dict[str, dict[str, Any]] = {
    "unet": {"channels": (8, 16)},
    "unetplusplus": {"channels": (4, 4, 8, 8, 8)},
    "attention_unet": {"channels": (8, 16)},
    "residual_unet": {"channels": (8, 16)},
    "segresnet": {"features": 8, "blocks": (1, 1)},
    "dynunet": {"channels": (8, 8, 16)},
    "unetr": {"features": 8, "hidden": 48, "mlp": 96, "heads": 3, "image_size": (32, 32, 32)},
    "transunet": {"channels": (4, 8, 8), "hidden": 16, "mlp": 24, "heads": 2, "layers": 2, "image_size": (32, 32, 32)},
    "swin_unetr": {"features": 12, "depths": (1, 1, 1, 1), "window": 4},
    "flexible_unet": {"encoder": "resnet10", "channels": (4, 8, 8, 16, 16)},
    **{f"smp_{name}": {"encoder": "resnet18"} for name in ("unet", "unetplusplus", "linknet", "fpn", "pspnet")},
    "monai.AttentionUnet": {"arguments": {"channels": (8, 16), "strides": (2,)}},
    "monai.UNet": {"arguments": {"channels": (8, 16), "strides": (2,)}},
    "monai.BasicUNet": {"arguments": {"features": (4, 4, 8, 8, 8, 4), "norm": "batch"}},
    "monai.BasicUNetPlusPlus": {"arguments": {"features": (4, 4, 8, 8, 8, 4), "norm": "batch"}},
    "monai.DynUNet": {
        "arguments": {
            "kernel_size": (3, 3, 3), "strides": (1, 2, 2), "upsample_kernel_size": (2, 2), "filters": (4, 8, 8),
        }
    },
    "monai.FlexibleUNet": {"arguments": {"backbone": "resnet10", "decoder_channels": (8, 8, 4, 4, 4)}},
    "monai.SegResNet": {"arguments": {"init_filters": 8, "blocks_down": (1, 1), "blocks_up": (1,)}},
    "monai.SegResNetDS": {"arguments": {"init_filters": 8, "blocks_down": (1, 1, 1)}},
    "monai.MedNeXt": {
        "arguments": {
            "init_filters": 8, "kernel_size": 3, "blocks_down": (1, 1), "blocks_up": (1, 1),
            "encoder_expansion_ratio": (2, 2), "decoder_expansion_ratio": (2, 2),
        }
    },
}  # fmt: skip
"""Settings by architecture; those that are not here take their defaults."""
LARGE = ("monai.VNet", "monai.HighResNet")
EDGES = {
    **dict.fromkeys(("swin_unetr", "flexible_unet", "monai.FlexibleUNet"), (64, 32, 32)),
    **dict.fromkeys(LARGE, (16, 16, 16)),
}
"""Patches of networks that need more than 32³, as their norms do of the deepest level, or are large."""


@dataclass(frozen=True)
class Job:
    """One part at work: its sizes, its device, and where its figures go."""

    scale: Scale
    device: torch.device
    note: Note

    @property
    def precisions(self) -> dict[str, torch.dtype | None]:
        lower = {"bf16": torch.bfloat16} if self.device.type == "cuda" or self.scale is SMALL else {}
        return {"fp32": None, **lower}

    def attempt(self, name: str, work: Callable[[], Any]) -> None:
        """Record what `work` gives, or its error: one failure is to hide no other figure."""
        try:
            self.note(name, work())
        except MissingExtra as error:
            self.note(name, {"left_out": str(error)})
        except Exception as error:
            self.note(name, failure(error))
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def settle(self) -> None:
        """Wait for the GPU."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def watched(self, work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
        """What `work` gives, its seconds and the peak of memory."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        reset_peak_memory(self.device)
        self.settle()
        started = time.perf_counter()
        found = work()
        self.settle()
        seconds = time.perf_counter() - started
        return found, {"seconds": round(seconds, 4), "peak_mib": mib(peak_memory(self.device))}


def mib(count: float) -> int:
    return math.ceil(count / 2**20)


def failure(error: BaseException) -> dict[str, str]:
    lines = str(error).strip().splitlines() or [""]
    where = traceback.extract_tb(error.__traceback__)[-1:]
    at = f"{Path(where[0].filename).name}:{where[0].lineno}" if where else ""
    return {"error": f"{type(error).__name__}: {lines[0][:300]}", "at": at}


def seasoned(network: nn.Module) -> nn.Module:
    """The network in evaluation mode, its batch norms with statistics that are not those of a fresh one."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.running_mean.copy_(torch.rand(len(module.running_mean), generator=generator) - 0.5)
            module.running_var.copy_(torch.rand(len(module.running_var), generator=generator) + 0.5)
    return network.eval()


# --------------------------------------------------------------------------------------------------------- machine


def machine(job: Job) -> None:
    """What everything else is measured on."""
    job.note("system", {"platform": platform.platform(), "cores": os.cpu_count(), "python": platform.python_version()})
    job.note("versions", {"medunet": medunet.__version__, "torch": torch.__version__, "monai": version("monai")})
    job.note("free_mib", mib(free_memory(job.device)))
    if job.device.type != "cuda":
        return
    about = torch.cuda.get_device_properties(job.device)
    job.note("gpu", {"name": about.name, "mib": mib(about.total_memory), "capability": f"{about.major}.{about.minor}"})
    job.note("cuda", {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()})
    # The default of PyTorch: convolutions in "float32" round their input to 10 bits on GPUs since Ampere.
    job.note("tf32", {"cudnn": torch.backends.cudnn.allow_tf32, "matmul": torch.backends.cuda.matmul.allow_tf32})


# -------------------------------------------------------------------------------------------------------- equality


def streamable(n: int) -> dict[str, Callable[[], nn.Module]]:
    """Networks with `n` channels at their finest level."""
    from monai.networks import nets

    return {
        "medunet UNet": lambda: UNet(UNetSettings(channels=(n, 2 * n, 4 * n, 8 * n), classes=CLASSES), 0),
        "medunet UNet, 2-D": lambda: UNet(UNetSettings(dimensions=2, channels=(n, 2 * n, 4 * n), classes=CLASSES), 0),
        "monai UNet": lambda: nets.UNet(3, 1, CLASSES, (n, 2 * n, 4 * n), (2, 2), num_res_units=2, norm="batch"),
        "monai BasicUNet": lambda: nets.BasicUNet(3, 1, CLASSES, (n, n, 2 * n, 4 * n, 8 * n, n), norm="batch"),
        "monai DynUNet": lambda: nets.DynUNet(
            3, 1, CLASSES, [3, 3, 3], [1, 2, 2], [2, 2], filters=[n, 2 * n, 4 * n], norm_name="batch"
        ),
        "monai SegResNet": lambda: nets.SegResNet(3, n // 2, 1, CLASSES, norm=("batch", {})),
    }


def equality(job: Job) -> None:
    """The largest difference of logits to one whole pass in float32, in parts of the largest logit of that pass."""
    torch.manual_seed(0)
    volume = torch.randn(1, *job.scale.equality)
    for name, build in streamable(job.scale.width).items():
        image = volume[..., 0] if "2-D" in name else volume

        try:
            differences(job, name, seasoned(build()).to(job.device), image)
        except Exception as error:
            job.note(name, failure(error))


def differences(job: Job, name: str, network: nn.Module, image: Tensor) -> None:
    exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False)
    with torch.inference_mode(), exact:
        whole = network(image[None].to(job.device))[0].float()

    def largest(logits: Tensor) -> dict[str, float]:
        other = float((logits.argmax(0) != whole.argmax(0)).float().mean())
        return {"difference": float((logits - whole).abs().max() / whole.abs().max()), "other_labels": other}

    def as_users_call_it() -> dict[str, Any]:
        found = largest(joined(whole, stream(network, image, "2G")))
        return found | {"as_expected": found["difference"] < ROUNDING}

    def without_tf32() -> dict[str, Any]:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False):
            return as_users_call_it()

    job.attempt(f"{name}, fp32", as_users_call_it)
    if job.device.type == "cuda":
        job.attempt(f"{name}, fp32 without TF32", without_tf32)
    for precision, dtype in LOWER.items():

        def lower(precision: str = precision, dtype: torch.dtype = dtype) -> dict[str, Any]:
            with torch.inference_mode(), torch.autocast(job.device.type, dtype=dtype):
                own = largest(network(image[None].to(job.device))[0].float())
            logits = stream(network, image, "2G", precision)  # type: ignore[arg-type]
            found = largest(joined(whole, logits))
            expected = found["difference"] < 3 * own["difference"] + ROUNDING
            return found | {"whole_pass_in_it": own["difference"], "as_expected": expected}

        job.attempt(f"{name}, {precision}", lower)


def joined(like: Tensor, slabs: Iterator[tuple[Any, Tensor]]) -> Tensor:
    found = torch.full_like(like, math.nan)
    for place, logits in slabs:
        found[(slice(None), *place)] = logits.to(like.dtype)
    return found


# -------------------------------------------------------------------------------------------------------- networks


def networks(job: Job) -> None:
    """One step, forward and backward and of the optimiser, of every architecture."""
    for name, kind in ARCHITECTURES.items():
        for precision, dtype in job.precisions.items():
            if dtype and job.device.type == "cpu":
                continue

            def one(name: str = name, kind: Any = kind, dtype: torch.dtype | None = dtype) -> dict[str, Any]:
                dimensions = 2 if name.startswith("smp_") else 3
                given = {"architecture": name, "dimensions": dimensions, "classes": CLASSES}
                settings = kind(**given, **SMALL_NETWORKS.get(name, {}))
                size = (64, 64) if dimensions == 2 else EDGES.get(name, (32, 32, 32))
                state, recipe = training_of(settings, job.device, dtype, OptimiserSettings(kind="adamw"))
                facts, taken = job.watched(lambda: train_step(state, random_batch(size, 2), recipe, 0.5))
                count = sum(p.numel() for p in state.network.parameters())
                return taken | {"loss": facts.loss, "gradient_norm": facts.norm, "parameters": count}

            job.attempt(name if len(job.precisions) == 1 or job.device.type == "cpu" else f"{name}, {precision}", one)


def training_of(
    settings: Any, device: torch.device, dtype: torch.dtype | None, optimiser: OptimiserSettings | None = None
) -> tuple[TrainState, Recipe]:
    """What `medunet train` has before its first step, with its default recipe."""
    network = placed(build_network(settings, 0), settings.dimensions, device).train()
    recipe = Recipe(make_loss(LossSettings(), CLASSES, None), ScheduleSettings(), 2e-3, 12.0, device, dtype, seed=0)
    return TrainState(network, make_optimiser(optimiser or OptimiserSettings(), network), Ema(network, 0.99)), recipe


def random_batch(size: Sequence[int], count: int) -> PatchBatch:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn((count, 1, *size), generator=generator)
    return PatchBatch(image, (image > 0.5).to(torch.uint8) + (image > 1.5).to(torch.uint8), ["made"] * count)


# ------------------------------------------------------------------------------------------------------------ step


def step(job: Job) -> None:
    """Training steps of the large network on two patches that are ready in the host's memory."""
    scale = job.scale
    batch = random_batch((scale.patch,) * 3, 2)
    for precision, dtype in job.precisions.items():

        def one(dtype: torch.dtype | None = dtype) -> dict[str, Any]:
            state, recipe = training_of(scale.network, job.device, dtype)
            first, _ = job.watched(lambda: train_step(state, batch, recipe, 0.5))
            train_step(state, batch, recipe, 0.5)
            last, taken = job.watched(lambda: [train_step(state, batch, recipe, 0.5) for _ in range(scale.steps)][-1])
            return {
                "seconds_a_step": round(taken["seconds"] / scale.steps, 4),
                "peak_mib": taken["peak_mib"],
                "patch": [scale.patch] * 3,
                "batch": 2,
                "parameters": sum(p.numel() for p in state.network.parameters()),
                "first_loss": first.loss,
                "last_loss": last.loss,
            }

        job.attempt(precision, one)


# -------------------------------------------------------------------------------------------------------- training


def training(job: Job) -> None:
    """`medunet.train` on cases made in code, larger than its patches; its own figures of each epoch."""
    scale = job.scale
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        side = scale.patch * 5 // 4
        for number in range(4):
            array = smooth((side, side, side), number)
            label = ((array > 200).astype(np.uint8) + (array > 400)).astype(np.uint8)
            for kind, voxels in (("images", array), ("labels", label)):
                medunet.write_volume(Volume(voxels[None], np.eye(4)), folder / "set" / kind / f"case_{number}.nii")
        config = folder / "config.yaml"
        config.write_text(
            f"data: {{path: {folder / 'set'}, folds: 0, cache: null}}\n"
            f"network: {{channels: {list(scale.channels)}}}\n"
            f"patches: {{size: {[scale.patch] * 3}, batch: 2}}\n"
            f"training: {{epochs: {scale.epochs}, iterations: {scale.steps}}}\n"
        )

        def note_epoch(row: dict[str, float]) -> None:
            kept = ("loss", "seconds_per_iteration", "patches_per_second", "waiting_share")
            job.note(f"epoch {row['epoch']}", {key: row[key] for key in kept if key in row})

        def whole() -> int:
            device = str(job.device)
            return len(medunet.train(config, folder / "run", device=device, after_epoch=note_epoch).history)

        epochs, taken = job.watched(whole)
        job.note("whole command", taken | {"epochs": epochs, "patch": [scale.patch] * 3, "batch": 2})


def smooth(shape: Sequence[int], seed: int) -> np.ndarray:
    """A scan as int16 that looks like a CT to a compressor: blocks, smooth inside, with noise."""
    random = np.random.default_rng(seed)
    array = random.normal(0, 8, tuple(shape)).astype(np.float32)
    for axis, length in enumerate(shape):
        wave = np.sin(np.linspace(0, 3 * np.pi, length) + seed) * 300
        array += wave.reshape([-1 if a == axis else 1 for a in range(len(shape))]).astype(np.float32)
    return array.astype(np.int16)


# ---------------------------------------------------------------------------------------------------------- volume


def volume(job: Job) -> None:
    """A cube through the large network: `medunet.stream`, and MONAI's windows of a patch at half overlap."""
    torch.manual_seed(0)
    image = torch.randn(1, *(job.scale.side,) * 3)
    network = seasoned(UNet(job.scale.network, 0)).to(job.device)
    job.note("sizes", {"side": job.scale.side, "window": job.scale.window})
    for precision, dtype in job.precisions.items():
        job.attempt(f"streamed, {precision}", lambda precision=precision: streamed(job, network, image, precision))
        job.attempt(f"windows, {precision}", lambda dtype=dtype: windows(job, network, image, dtype))
    memory, last = min(free_memory(job.device) // 2, 32 * 2**30), list(job.precisions)[-1]
    job.attempt(f"streamed, {last}, more memory", lambda: streamed(job, network, image, last, memory))


def streamed(job: Job, network: nn.Module, image: Tensor, precision: str, memory: int = 4 * 2**30) -> dict[str, Any]:
    # The first kernels are loaded and the network traced before anything is measured.
    for _ in stream(network, image[(slice(None), *(slice(0, job.scale.window),) * 3)], memory, precision):  # type: ignore[arg-type]
        pass
    labels = torch.empty(image.shape[1:], dtype=torch.uint8)

    def passing() -> int:
        started, done = time.perf_counter(), 0
        for place, logits in stream(network, image, memory, precision):  # type: ignore[arg-type]
            labels[place] = logits.argmax(0).to("cpu", torch.uint8)
            done += labels[place].numel()
            if time.perf_counter() - started > job.scale.volume_seconds:
                break
        return done

    done, taken = job.watched(passing)
    return scaled(taken, done, labels.numel(), "voxels") | {"memory_mib": mib(memory)}


def windows(job: Job, network: nn.Module, image: Tensor, dtype: torch.dtype | None) -> dict[str, Any]:
    from monai.inferers import sliding_window_inference

    size, side, place = job.scale.window, job.scale.side, image.to(job.device)
    autocast = torch.autocast(job.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)

    def passing(length: int) -> Tensor:
        part = place[(slice(None), *(slice(0, length),) * 3)]
        with torch.inference_mode(), autocast:
            found = sliding_window_inference(part[None], (size,) * 3, 2, network, overlap=0.5, mode="gaussian")
        return found[0].argmax(0).to("cpu", torch.uint8)

    passing(size)
    length = min(2 * size, side)
    part, whole = window_count(length, size), window_count(side, size)
    _, taken = job.watched(lambda: passing(length))
    if length < side and taken["seconds"] * whole / part < job.scale.volume_seconds:
        (_, taken), part = job.watched(lambda: passing(side)), whole
    return scaled(taken, part, whole, "windows") | {"overlap": 0.5, "batch": 2}


def window_count(length: int, size: int) -> int:
    """Windows of half overlap in a cube."""
    return (math.ceil((length - size) / (size // 2)) + 1) ** 3


def scaled(taken: dict[str, float], done: int, count: int, unit: str) -> dict[str, Any]:
    """Seconds of the whole, and whether they were measured or follow from a part."""
    seconds = taken["seconds"] * count / done
    whole = done == count
    how = "measured whole" if whole else f"scaled from {done} of {count} {unit}; memory is that of the part"
    return {"seconds": round(seconds, 3), "peak_mib": taken["peak_mib"], "how": how}


# ----------------------------------------------------------------------------------------------------------- files


def files(job: Job) -> None:
    """Scans in compressed NIfTI to label maps in the same, by `segment_files`; the first warms up."""
    scale = job.scale
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for number in range(scale.scans + 1):
            shape = tuple(max(8, n // 4) for n in scale.scan) if number == 0 else scale.scan
            path = folder / ("warm" if number == 0 else "scans") / f"scan_{number}.nii.gz"
            medunet.write_volume(Volume(smooth(shape, number)[None], np.diag([0.8, 0.8, 1.5, 1.0])), path)
        labels = LabelTable(("background", "one", "two"), (0, 1, 2))
        card = ModelCard("random", scale.network, PreprocessSettings(), labels, ("CT",), (scale.patch,) * 3)
        save_model(folder / "model.safetensors", UNet(scale.network, 0).state_dict(), card)

        def segment(kind: str) -> Any:
            record = folder / f"{kind}.json"
            request = PredictRequest([folder / kind], folder / f"{kind}_found", device=str(job.device), record=record)
            summary = segment_files(str(folder / "model.safetensors"), request, PredictSettings())
            if summary.failed:
                raise RuntimeError(f"failed: {summary.failed}")
            return json.loads(record.read_text())

        segment("warm")
        record, taken = job.watched(lambda: segment("scans"))
        stages = [case["seconds"] for case in record["cases"]]
        plan = record["cases"][0]["plan"]
        job.note("segment_files", taken | {"scans": scale.scans, "shape": list(scale.scan), "stages": stages})
        job.note("plan", plan)


# -------------------------------------------------------------------------------------------------- parts in turn

PARTS: dict[str, Callable[[Job], None]] = {
    "machine": machine,
    "equality": equality,
    "networks": networks,
    "step": step,
    "training": training,
    "volume": volume,
    "files": files,
}


MONAI = ("monai.networks.nets", "monai.inferers")


def work(part: str, scale: Scale, device: str, end: Connection) -> None:
    """One part, in its process; each figure goes through the pipe as soon as it is known."""
    try:
        if device.startswith("cuda:"):
            torch.cuda.set_device(device)
        PARTS[part](Job(scale, torch.device(device), lambda name, value: end.send((name, value))))
        end.send(("", "done"))
    except BaseException as error:
        end.send(("", failure(error) | {"trace": traceback.format_exc()[-3000:]}))


def run_part(
    part: str, scale: Scale, device: str, limit: float, found: dict[str, Any], save: Callable[[], None]
) -> None:
    """Start a part and collect what it finds, until it ends or its time is over."""
    # A fork has the imports already; nothing in this process has touched the GPU, which a fork could not take over.
    context = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(part, scale, device, theirs))  # type: ignore[attr-defined]
    started = time.perf_counter()
    process.start()
    theirs.close()
    found.update(state="time limit", results={})
    try:
        while (left := limit - (time.perf_counter() - started)) > 0 and ours.poll(left):
            name, value = ours.recv()
            if not name:
                found.update({"state": value} if value == "done" else {"state": "failed", **value})
                break
            found["results"][name] = value
            save()
    except EOFError:
        process.join(5)
        found["state"] = f"the process ended with code {process.exitcode}"
    finally:
        end_process(process, 0.0 if found["state"] == "time limit" else 5.0)
        found.update(seconds=round(time.perf_counter() - started, 2), limit=round(limit, 1))
        save()


def end_process(process: Any, patience: float) -> None:
    process.join(patience)
    if process.is_alive():
        process.terminate()
        process.join(5)
    if process.is_alive():
        process.kill()
        process.join()


def plain(value: Any) -> Any:
    """The value as JSON has it: numbers that are none become text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def write_whole(path: Path, record: Mapping[str, Any]) -> None:
    """The file is always complete: written beside, then renamed."""
    beside = path.with_name(f"{path.name}.tmp")
    beside.write_text(json.dumps(plain(record), indent=1) + "\n", encoding="utf-8")
    beside.replace(path)


def summary(record: Mapping[str, Any]) -> list[str]:
    """What was found, for people: one line for each figure."""
    lines = [f"medunet on {record['device']}, sizes: {record['scale']}"]
    for part, found in record["parts"].items():
        lines.append(f"\n{part}: {found['state']}, {found.get('seconds', 0):.1f} s")
        if "error" in found:
            lines.append(f"  {found['error']}")
        lines += [f"  {name}: {described(value)}" for name, value in found["results"].items()]
    wrong = [name for name, value in entries(record) if value.get("as_expected") is False or "error" in value]
    undone = [part for part, found in record["parts"].items() if found["state"] != "done"]
    lines.append(f"\nto look at: {', '.join(wrong + undone) or 'nothing'}")
    return lines


def entries(record: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for part, found in record["parts"].items():
        for name, value in found["results"].items():
            if isinstance(value, Mapping):
                yield f"{part}/{name}", value


def described(value: Any) -> str:
    if not isinstance(value, Mapping):
        return str(value)
    return ", ".join(f"{key} {item:.3g}" if isinstance(item, float) else f"{key} {item}" for key, item in value.items())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    parser.add_argument("--small", action="store_true", help="toy sizes")
    parser.add_argument("--part", action="append", choices=list(PARTS), help="this part alone; may be given again")
    parser.add_argument("-o", "--output", type=Path, default=Path("gpu.json"))
    options = parser.parse_args(arguments)
    scale = SMALL if options.small else FULL
    record: dict[str, Any] = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": options.device,
        "scale": scale.name,
        "channels": scale.channels,
        "parts": {},
    }
    parts = options.part or list(PARTS)
    # Slow imports, which the parts' processes then have; the first is that of an optimiser's first step.
    for module in ("torch._dynamo", *(MONAI if {"equality", "networks", "volume"} & set(parts) else ())):
        importlib.import_module(module)
    begun = time.perf_counter()
    for part in parts:
        found = record["parts"][part] = {"state": "not started", "results": {}}
        left = TOTAL_SECONDS - 10 - (time.perf_counter() - begun)
        if left > 5:
            print(f"{part} …", flush=True)
            run_part(
                part,
                scale,
                options.device,
                min(scale.limits[part], left),
                found,
                lambda: write_whole(options.output, record),
            )
    record["seconds"] = round(time.perf_counter() - begun, 1)
    write_whole(options.output, record)
    print("\n".join(summary(plain(record))))
    print(f"all figures: {options.output}, {record['seconds']} s")


if __name__ == "__main__":
    main()
