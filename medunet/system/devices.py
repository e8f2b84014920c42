"""Devices: where to compute, in which precision, and how fast this machine is."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import torch

from medunet.errors import ConfigError

_MEASURED_SECONDS = 2.0
_PROBES = 5
_CLEARLY_FASTER = 1.2
"""From this gain on rounding to 8 bits is worth it; it also keeps the choice from changing with the noise."""


def find_device(name: str) -> torch.device:
    """`auto` is the first CUDA device, or the CPU where there is none.

    Raises:
        ConfigError: an unknown name, or CUDA asked for where there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"--device {name}: expected auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device {name}: expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"--device {name}: this machine shows {torch.cuda.device_count()} CUDA device(s); try --device cpu"
        )
    return device


def autocast_type(precision: str, device: torch.device) -> torch.dtype | None:
    """The type to compute in; None is float32 throughout.

    `auto` takes bfloat16 on CUDA devices since Ampere, and on CPUs where a convolution was just measured to be clearly
    faster in it. What a CPU claims is not enough: with AVX-512 BF16 but without AMX, bfloat16 took from half of
    float32's time (one processor's training step) to nearly twice as much (another's convolution).
    """
    if precision == "fp32":
        return None
    if precision == "bf16":
        return torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    claimed = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if claimed and bfloat16_gain() >= _CLEARLY_FASTER else None


@lru_cache(maxsize=1)
def bfloat16_gain() -> float:
    """The speed of a convolution in bfloat16 on this CPU, in multiples of float32; measured once, in some 50 ms."""
    convolution = torch.nn.Conv3d(32, 32, 3, padding=1)
    image = torch.randn(1, 32, 16, 48, 48).contiguous(memory_format=torch.channels_last_3d)
    best = {False: float("inf"), True: float("inf")}
    with torch.inference_mode():
        # In turns, so that what else runs on the machine slows both; the best, as it can only make things slower.
        for _ in range(_PROBES):
            for lower in best:
                started = time.perf_counter()
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=lower):
                    convolution(image)
                best[lower] = min(best[lower], time.perf_counter() - started)
    return best[False] / best[True]


def free_memory(device: torch.device) -> int:
    """Bytes that can be used now: of the GPU, or of main memory as Linux reports it (half of it all elsewhere)."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    available = _entry("/proc/meminfo", "MemAvailable:")
    if available is None and not hasattr(os, "sysconf"):
        return 2**32  # Windows tells neither; plans and caches are then made for a small machine
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 if available is None else available


def training_speed(device: torch.device, dtype: torch.dtype | None, dimensions: int) -> float:
    """Floating-point operations per second of a convolution's forward and backward pass.

    The best of some seconds, because whatever else runs on the machine can only make it slower.
    """
    channels, size = 32, 40 if dimensions == 3 else 192
    convolution = (torch.nn.Conv3d if dimensions == 3 else torch.nn.Conv2d)(channels, channels, 3, padding=1)
    convolution.to(device)
    image = torch.randn(2, channels, *(size,) * dimensions, device=device, requires_grad=True)
    operations = 3 * 2 * image.numel() * channels * 3**dimensions
    best, begun = float("inf"), time.perf_counter()
    while time.perf_counter() - begun < _MEASURED_SECONDS:
        started = time.perf_counter()
        with torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            convolution(image).float().mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    found: float = operations / best
    return found


def resident_memory() -> int:
    """Bytes of main memory that this process has now; half a GiB, what Python and PyTorch take, where it is unknown."""
    return _entry("/proc/self/status", "VmRSS:") or 2**29


def reset_peak_memory(device: torch.device) -> None:
    """Start to look for a new peak; `peak_memory` says what it can be asked for where the system cannot forget one."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    # glibc keeps freed memory, which would be counted as if it were in use.
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    # Linux forgets a process' highest resident size on request; elsewhere it stays the highest of its whole life.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """Most bytes held since `reset_peak_memory`: reserved by PyTorch on a GPU, else resident of the whole process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    return _entry("/proc/self/status", "VmHWM:") or peak_of_process() or 0


def peak_of_process() -> int | None:
    """The most bytes of main memory that this process ever had; None where the system does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage * 1024  # bytes on macOS, else KiB


def _entry(record: str, key: str) -> int | None:
    """The bytes that one of Linux' records states; None where there is no such entry."""
    lines = Path(record).read_text().splitlines() if Path(record).exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key)), None)


def loader_workers(asked: int | None, device: torch.device) -> int:
    """Processes that prepare patches: as many as asked for, else by the machine."""
    if asked is not None:
        return asked
    # On the CPU, workers would only take cores from the network, which waits little for patches.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, cores - 1) if device.type == "cuda" else 0
