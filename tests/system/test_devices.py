"""Where to compute and in which precision: what is asked for is done, and `auto` goes by measurement."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medunet.errors import ConfigError
from medunet.system import devices
from medunet.system.devices import (
    autocast_type,
    bfloat16_gain,
    find_device,
    free_memory,
    loader_workers,
    peak_memory,
    reset_peak_memory,
    resident_memory,
)

CPU = torch.device("cpu")


def test_a_precision_that_is_asked_for_is_taken() -> None:
    assert autocast_type("fp32", CPU) is None
    assert autocast_type("bf16", CPU) == torch.bfloat16


@pytest.mark.slow
def test_auto_takes_bfloat16_only_where_it_was_measured_to_be_faster(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """By a single probe, as a CPU without bfloat16 takes seconds for each; nobody else goes by what that one gave."""
    monkeypatch.setattr(devices, "_PROBES", 1)
    bfloat16_gain.cache_clear()
    request.addfinalizer(bfloat16_gain.cache_clear)
    gain = bfloat16_gain()
    assert gain > 0 and bfloat16_gain() == gain, "measured once, so that one process has one answer"
    if autocast_type("auto", CPU) is not None:
        assert gain >= 1.2
    elif torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        assert gain < 1.2


def test_devices() -> None:
    assert find_device("cpu") == CPU and free_memory(CPU) > 2**20
    for name in ("tpu", "cuda:99", "meta"):
        with pytest.raises(ConfigError, match="--device"):
            find_device(name)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak can be set back on Linux only")
def test_the_peak_of_memory_is_that_since_it_was_set_back() -> None:
    block = 200 * 2**20
    reset_peak_memory(CPU)
    before = peak_memory(CPU)
    held = np.ones(block, np.uint8)
    assert block * 0.9 < peak_memory(CPU) - before < block * 1.5
    assert resident_memory() > block
    del held
    reset_peak_memory(CPU)
    assert peak_memory(CPU) - before < block / 2


def test_workers_are_as_asked_and_none_on_the_cpu() -> None:
    assert loader_workers(3, torch.device("cpu")) == 3 and loader_workers(0, torch.device("cuda")) == 0
    assert loader_workers(None, torch.device("cpu")) == 0
