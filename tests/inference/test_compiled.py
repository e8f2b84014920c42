"""One pass by OpenVINO against one pass by torch, and against streaming."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medunet.errors import ConfigError, MissingExtra
from medunet.geometry.boxes import Box
from medunet.inference.compiled import CompiledPass
from medunet.inference.execution import Execution
from medunet.inference.stream import Passage, Streamer
from medunet.networks.unet import UNet, UNetSettings

NETWORKS = [
    UNetSettings(channels=(4, 8, 12), classes=3, in_channels=2),
    UNetSettings(channels=(4, 8), classes=2, in_channels=2, norm="voxel", activation="gelu"),
    UNetSettings(channels=(4, 8), classes=2, in_channels=2, residual=True, attention=True, upsampling="interpolated"),
    UNetSettings(channels=(4, 8), classes=2, in_channels=2, downsampling="stride", strides=((2, 1, 2),)),
    UNetSettings(channels=(4, 8), classes=3, in_channels=2, padded=False),
    UNetSettings(channels=(4, 8), classes=3, in_channels=2, dimensions=2),
]


def joined(slabs: object, axis: int) -> torch.Tensor:
    return torch.cat([logits for _, _, logits in slabs], dim=axis + 1)  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize("config", NETWORKS, ids=range(len(NETWORKS)))
@settings(max_examples=4, deadline=None)
@given(data=st.data())
def test_regions_of_mirrored_scans_equal_streaming(config: UNetSettings, data: st.DataObject) -> None:
    scan = data.draw(st.tuples(*(st.integers(9, 17),) * config.dimensions))
    axis = data.draw(st.integers(0, config.dimensions - 1))
    mirror = tuple(a for a in range(config.dimensions) if data.draw(st.booleans()))
    start = [0 if a == axis else data.draw(st.integers(0, n - 1)) for a, n in enumerate(scan)]
    stop = [
        n if a == axis else data.draw(st.integers(b + 1, n)) for a, (b, n) in enumerate(zip(start, scan, strict=True))
    ]
    network = UNet(config, 0).eval()
    image = np.random.default_rng(0).normal(size=(2, *scan)).astype(np.float32)
    passage = Passage(mirror, Box(tuple(start), tuple(stop)))
    expected = joined(Streamer(network, axis=axis).run(image, 4, passage=passage), axis)
    rows = list(CompiledPass(network).run(image, 5, axis, passage))
    assert [(a, b) for a, b, _ in rows] == [(a, min(a + 5, scan[axis])) for a in range(0, scan[axis], 5)]
    # Norms over four channels that are nearly alike magnify rounding (2.5e-5 was seen); a shift gives 1e-2 and more.
    bound = 1e-4 if config.norm == "voxel" else 1e-5
    torch.testing.assert_close(joined(rows, axis), expected, rtol=bound, atol=bound * float(expected.abs().max()))


def test_answers_stay_when_others_are_computed() -> None:
    network = UNet(NETWORKS[0], 0).eval()
    one = CompiledPass(network)
    images = [torch.randn(2, 12, 8, 8), torch.randn(2, 12, 8, 8), torch.randn(2, 9, 8, 8)]
    together = [next(one.run(image, 12))[2] for image in images]
    for image, logits in zip(images, together, strict=True):
        with torch.inference_mode():
            size = (12, 8, 8)
            padded = torch.nn.functional.pad(image, (0, 0, 0, 0, 0, size[0] - image.shape[1]))
            plain = network(padded[None])[0][:, : image.shape[1]]
        torch.testing.assert_close(logits, plain, rtol=1e-5, atol=1e-5 * float(plain.abs().max()))


def test_bfloat16_is_near() -> None:
    network = UNet(NETWORKS[0], 0).eval()
    image = torch.randn(2, 16, 16, 16)
    exact = joined(CompiledPass(network).run(image, 16), 0)
    near = joined(CompiledPass(network, Execution("cpu", torch.bfloat16)).run(image, 16), 0)
    assert near.dtype == torch.float32
    assert float((near - exact).abs().max()) < 0.05 * float(exact.abs().max())


def test_what_cannot_be_compiled_is_refused() -> None:
    with pytest.raises(ConfigError, match="instance"):
        CompiledPass(UNet(UNetSettings(channels=(4, 8), norm="instance"), 0).eval())
    with pytest.raises(ConfigError, match=r"network\.eval"):
        CompiledPass(UNet(NETWORKS[0], 0).train())
    with pytest.raises(ConfigError, match="on the CPU, in fp32 or bf16"):
        CompiledPass(UNet(NETWORKS[0], 0).eval(), Execution("cpu", torch.float16))
    with pytest.raises(ConfigError, match=r"expected \(2, \*spatial\)"):
        next(CompiledPass(UNet(NETWORKS[0], 0).eval()).run(torch.randn(1, 8, 8, 8), 8))


def test_without_openvino_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtra, match=r"pip install 'medunet\[openvino\]'"):
        CompiledPass(UNet(NETWORKS[0], 0).eval())
