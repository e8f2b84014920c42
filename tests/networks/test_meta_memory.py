"""The memory estimate on meta tensors, against the kernel's own count."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from medunet.networks.build import build_network
from medunet.networks.external.adapter import AdaptedNetwork
from medunet.networks.external.settings import DynUNetSettings, SegResNetSettings
from medunet.networks.memory import FIXED, HEAP_BLOCK
from medunet.networks.meta_memory import meta_tensor_bytes
from tests.fresh import Fresh

MEASURE = """
import torch
from pathlib import Path
from medunet.networks.build import build_network
from medunet.networks.external.settings import ResidualUNetSettings, SegResNetSettings

def status(key):
    return next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").open() if line.startswith(key))

torch.set_num_threads(1)
network = build_network({settings}).eval()
with torch.inference_mode():
    network(torch.randn(1, 1, 16, 16, 16))
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    network(torch.randn(1, 1, {size}, {size}, {size}))
print(status("VmHWM") - before, network.pass_bytes(({size},) * 3))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's count of peak memory")
@pytest.mark.parametrize(
    ("size", "settings"), [(96, "ResidualUNetSettings(channels=(16, 32, 64))"), (64, "SegResNetSettings(features=16)")]
)
def test_the_estimate_is_not_below_the_measured_peak(fresh: Fresh, size: int, settings: str) -> None:
    code = MEASURE.format(size=size, settings=settings)
    answer = fresh.run(code)
    assert answer.returncode == 0, answer.stderr
    measured, estimated = map(int, answer.stdout.split())
    assert 1.0 <= estimated / measured < 2.5


class _Chain(nn.Module):
    """Holds its input, one map of three times the input and one of five at once."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        three = torch.cat([image] * 3, dim=1)
        five = torch.cat([three, image, image], dim=1)
        del three
        return five[:, :1] + 1


def test_what_is_alive_at_once_is_added_up() -> None:
    voxels = 4 * 10 * 20
    assert meta_tensor_bytes(_Chain(), 1, (10, 20)) == (1 + 3 + 5) * voxels + HEAP_BLOCK + FIXED


def test_a_network_in_the_midst_of_training_has_an_estimate() -> None:
    """A DynUNet still holds the deep logits of its last step, with their graph."""
    network = build_network(DynUNetSettings(channels=(4, 8, 8, 8), deep_supervision=True, dimensions=2))
    assert isinstance(network, AdaptedNetwork)
    network(torch.randn(2, 1, 32, 32))[0].mean().backward()
    assert network.eval().pass_bytes((32, 32)) > HEAP_BLOCK + FIXED


def test_an_estimate_leaves_the_network_as_it_is() -> None:
    """Also where layers are held under two names, as in a DynUNet."""
    for settings in (DynUNetSettings(channels=(4, 8, 8)), SegResNetSettings(features=8, blocks=(1, 1))):
        network = build_network(settings).eval()
        assert isinstance(network, AdaptedNetwork)
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        assert network.pass_bytes((16, 16, 16)) < network.pass_bytes((64, 64, 64))
        after = network.state_dict()
        assert all(torch.equal(before[name], after[name]) and after[name].device.type == "cpu" for name in before)
