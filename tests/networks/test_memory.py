"""The estimate of one pass's memory against the kernel's own count."""

from __future__ import annotations

from pathlib import Path

import pytest

from medunet.errors import ConfigError
from medunet.networks.memory import estimate_bytes
from medunet.networks.settings import UNetSettings
from tests.fresh import Fresh

MEASURE = """
import torch
from pathlib import Path
from medunet.networks.unet import UNet, UNetSettings

def status(key):
    return next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").open() if line.startswith(key))

torch.set_num_threads(1)
network = UNet(UNetSettings(channels=(16, 32, 64), {options})).eval()
with torch.inference_mode():
    network(torch.randn(1, 1, *network.settings.shape.smallest))
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    network(torch.randn(1, 1, {size}, {size}, {size}))
print(status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's count of peak memory")
@pytest.mark.parametrize(("size", "options"), [(96, {}), (64, {"norm": "voxel"}), (92, {"padded": False})])
def test_estimate_against_measured_peak(fresh: Fresh, size: int, options: dict[str, object]) -> None:
    arguments = ", ".join(f"{key}={value!r}" for key, value in options.items())
    code = MEASURE.format(size=size, options=arguments)
    answer = fresh.run(code)
    assert answer.returncode == 0, answer.stderr
    measured = int(answer.stdout)
    estimate = estimate_bytes(UNetSettings(channels=(16, 32, 64), **options), (size,) * 3)  # type: ignore[arg-type]
    assert 0.8 < estimate / measured < 1.7


def test_estimate_grows_with_voxels_classes_and_width() -> None:
    base = estimate_bytes(UNetSettings(), (128, 128, 128))
    assert 1.8 < estimate_bytes(UNetSettings(), (128, 128, 256)) / base < 2.1
    assert estimate_bytes(UNetSettings(classes=22), (128,) * 3) - base == 20 * 4 * 128**3
    assert estimate_bytes(UNetSettings(channels=(64, 128, 256, 512)), (128,) * 3) > 1.8 * base


def test_illegal_sizes_have_no_estimate() -> None:
    with pytest.raises(ConfigError, match="multiples of 8"):
        estimate_bytes(UNetSettings(), (100, 128, 128))
