"""Streamed scans against one pass over the whole scan."""

from __future__ import annotations

import copy
import gc
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from medunet.errors import ConfigError
from medunet.geometry.boxes import Box
from medunet.inference.execution import Execution, Passage
from medunet.inference.streaming.streamer import Streamer
from medunet.networks.settings import UNetSettings
from medunet.networks.unet import UNet
from tests.inference.oracles import whole_pass
from tests.inference.test_overlap_tile import noise, one_pass_over_the_mirrored_scan
from tests.networks.variants import LARGEST, seasoned, unet_settings
from tests.pairwise import pairwise

PADDED = UNetSettings(dimensions=2, channels=(4, 6, 8), classes=3)
UNPADDED = UNetSettings(dimensions=2, channels=(4, 6, 8), classes=3, padded=False)


def oracle(network: UNet, image: torch.Tensor) -> torch.Tensor:
    shape = network.settings.shape
    return whole_pass(network, image, shape.stride) if shape.padded else one_pass_over_the_mirrored_scan(network, image)


def assembled(streamer: Streamer, image: torch.Tensor, slab: int, axis: int = 0) -> torch.Tensor:
    """All slabs side by side, after checking that they come in order and cover the scan once."""
    parts, expected = [], 0
    for start, stop, logits in streamer.run(image, slab, passage=Passage(axis)):
        assert start == expected
        assert stop - start == logits.shape[axis + 1] > 0
        parts.append(logits)
        expected = stop
    assert expected == image.shape[axis + 1]
    return torch.cat(parts, axis + 1)


@pytest.mark.slow
@settings(deadline=None, max_examples=50)
@given(st.data())
def test_streamed_equals_one_pass(data: st.DataObject) -> None:
    config = data.draw(unet_settings())
    smallest = 1 if config.padded else 2  # numpy cannot mirror an axis of one voxel
    scan = tuple(data.draw(st.integers(smallest, 40)) for _ in range(config.dimensions))
    axis, slab = data.draw(st.integers(0, config.dimensions - 1)), data.draw(st.integers(1, 12) | st.just(1000))
    assume(math.prod(config.shape.smallest_for(scan)) < 2 * LARGEST)
    network, image = seasoned(config), noise(config.in_channels, *scan)
    expected = oracle(network, image)
    answer = assembled(Streamer(network), image, slab, axis)
    assert answer.dtype == torch.float64
    # A norm over two nearly equal channels enlarges rounding several hundred times, once per convolution.
    tolerance = 1e-9 if config.norm == "voxel" else 1e-11
    torch.testing.assert_close(answer, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(st.data())
def test_regions_of_mirrored_scans_equal_one_pass(data: st.DataObject) -> None:
    """Both at once: what `--tta` averages, and the parts that a wide scan is split into."""
    config = data.draw(unet_settings())
    scan = tuple(data.draw(st.integers(2, 40)) for _ in range(config.dimensions))
    axis, slab = data.draw(st.integers(0, config.dimensions - 1)), data.draw(st.integers(1, 12) | st.just(1000))
    mirror = tuple(a for a in range(config.dimensions) if data.draw(st.booleans()))
    assume(math.prod(config.shape.smallest_for(scan)) < 2 * LARGEST)
    starts = [0 if a == axis else data.draw(st.integers(0, n - 1)) for a, n in enumerate(scan)]
    stops = [n if a == axis else data.draw(st.integers(starts[a] + 1, n)) for a, n in enumerate(scan)]
    region = Box(tuple(starts), tuple(stops))
    network, image = seasoned(config), noise(config.in_channels, *scan)
    turned = [a + 1 for a in mirror]
    expected = oracle(network, image.flip(turned)).flip(turned)
    passage = Passage(axis, mirror, region)
    answer = torch.cat([s for _, _, s in Streamer(network).run(image, slab, passage=passage)], axis + 1)
    tolerance = (1e-9 if config.norm == "voxel" else 1e-11) * float(expected.abs().max())
    expected = expected[(slice(None), *region.slices)]
    torch.testing.assert_close(answer, expected, rtol=0, atol=tolerance)


def test_a_region_reads_no_more_than_the_field_of_view() -> None:
    """Voxels out of reach may be anything; one voxel within reach may not."""
    network, image = seasoned(PADDED), noise(1, 20, 200)
    region = Box((0, 64), (20, 96))
    around = PADDED.shape.context(region, (20, 200))
    assert around.start[1] > 20 and around.stop[1] < 160

    def answer(scan: torch.Tensor) -> torch.Tensor:
        return torch.cat([s for _, _, s in Streamer(network).run(scan, 8, passage=Passage(region=region))], 1)

    outside, inside = image.clone(), image.clone()
    outside[:, :, : around.start[1]] = outside[:, :, around.stop[1] :] = torch.nan
    inside[:, :, 60] += 1
    assert torch.equal(answer(outside), answer(image))
    assert not torch.equal(answer(inside), answer(image))


def test_impossible_passages_are_refused() -> None:
    streamer, image = Streamer(seasoned(PADDED)), noise(1, 16, 16)
    for passage, message in (
        (Passage(mirror=(2,)), "cannot mirror"),
        (Passage(mirror=(1, 1)), "cannot mirror"),
        (Passage(region=Box((0, 3), (16, 17))), "no part of a scan"),
        (Passage(region=Box((0, 3), (16, 3))), "no part of a scan"),
        (Passage(region=Box((1, 0), (16, 16))), "complete along axis 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            streamer.run(image, 8, passage=passage)


@pytest.mark.slow
@pytest.mark.parametrize(("slab", "dimensions", "padded"), pairwise([1, 5, 8, 64], [2, 3], [True, False]))
def test_streamed_equals_one_pass_in_float32(padded: bool, dimensions: int, slab: int) -> None:
    config = UNetSettings(dimensions=dimensions, channels=(8, 12, 16), classes=3, padded=padded)  # type: ignore[arg-type]
    network, image = seasoned(config), noise(1, *(53, 30, 13)[:dimensions])
    expected = oracle(network, image).float()
    answer = assembled(Streamer(network.float()), image, slab)
    assert answer.dtype == torch.float32
    assert (answer - expected).abs().max() < 5e-6 * expected.abs().max()


def test_dropout_is_inactive_and_early_doubling_works() -> None:
    config = UNetSettings(
        dimensions=2, channels=(4, 6, 8, 10, 12), dropout=0.5, dropout_decoder_levels=(0, 1), early_doubling=True
    )
    network, image = seasoned(config), noise(1, 70, 30)
    torch.testing.assert_close(assembled(Streamer(network), image, 8), oracle(network, image), rtol=1e-11, atol=1e-11)


def test_without_onednn_the_result_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    network, image = seasoned(PADDED).float(), noise(1, 50, 20).float()
    fast = assembled(Streamer(network), image, 8)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    plain = assembled(Streamer(network), image, 8)
    torch.testing.assert_close(plain, fast, rtol=0, atol=5e-6 * float(fast.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize("scan", [(1, 1), (1, 30), (30, 1), (2, 3), (3, 2)])
@pytest.mark.parametrize("config", [PADDED, UNPADDED])
def test_scans_smaller_than_the_stride(config: UNetSettings, scan: tuple[int, int]) -> None:
    network, image = seasoned(config), noise(1, *scan)
    whole = image
    if not config.padded:  # mirrors of an axis of one voxel repeat it, which numpy does with "edge"
        for axis, n in enumerate(scan, start=1):
            margin, size = config.shape.margin[axis - 1], config.shape.smallest_for(scan)[axis - 1]
            pads = [(0, 0)] * 3
            pads[axis] = (margin, size - margin - n)
            whole = torch.from_numpy(np.pad(whole.numpy(), pads, mode="edge" if n == 1 else "reflect"))
        with torch.inference_mode():
            expected = network(whole[None])[0][:, : scan[0], : scan[1]]
    else:
        expected = oracle(network, image)
    for slab in (1, 8):
        answer = assembled(Streamer(network), image, slab)
        torch.testing.assert_close(answer, expected, rtol=1e-11, atol=1e-11)


def test_one_row_too_few_differs() -> None:
    """Else the equality above would hold for any context."""
    network, image = seasoned(PADDED), noise(1, 64, 16)
    expected = oracle(network, image)
    cut = assembled(Streamer(network), image[:, :60], 8)
    error = (cut - expected[:, :60]).abs().amax(dim=(0, 2)) / expected.abs().max()
    assert error[0] < 1e-12
    assert error[-1] > 1e-3


def identity_network(dimensions: int) -> UNet:
    """Weights under which a U-Net returns its input: each convolution and the head pass channel 0 on."""
    config = UNetSettings(dimensions=dimensions, channels=(2, 2), classes=1, norm="none", activation="relu")  # type: ignore[arg-type]
    network = UNet(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        for block in (*network.encoder, *network.decoder):
            for part in block.convolutions:
                part.convolution.weight[(0, 0, *(k // 2 for k in part.convolution.kernel_size))] = 1
        network.head.weight[0, 0] = 1
    return network


@pytest.mark.parametrize("shape", [(1, 21, 10), (1, 9, 6, 7), (1, 1, 1)])
def test_identity_returns_the_scan(shape: tuple[int, ...]) -> None:
    image = noise(*shape).abs().float()
    for axis in range(len(shape) - 1):
        answer = assembled(Streamer(identity_network(len(shape) - 1)), image, 4, axis)
        assert torch.equal(answer, image)


@pytest.mark.parametrize("config", [PADDED, UNPADDED])
def test_network_and_scan_stay_as_they_are(config: UNetSettings) -> None:
    network, image = seasoned(config).float(), noise(1, 37, 21).float()
    state, kept = copy.deepcopy(network.state_dict()), image.clone()
    for _, _, logits in Streamer(network).run(image, 5):
        with torch.inference_mode():
            logits.zero_()
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in state.items())
    assert torch.equal(image, kept)


def held_bytes() -> int:
    """Of all tensors that are alive, each memory counted once."""
    tensors = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.mark.slow
@pytest.mark.parametrize("config", [PADDED, UNPADDED])
def test_what_is_held_between_slabs_does_not_grow_with_the_scan(config: UNetSettings) -> None:
    network, most = seasoned(config), []
    for length in (150, 300):
        image = noise(1, length, 20)
        gc.collect()
        before = held_bytes()
        most.append(
            max(held_bytes() - before for start, _, _ in Streamer(network).run(image, 8) if 60 < start % 150 < 70)
        )
    assert most[0] == most[1] > 10_000


def test_slabs_already_given_out_do_not_change() -> None:
    network, image = seasoned(PADDED).float(), noise(1, 70, 21).float()
    slabs, copies = [], []
    for _, _, logits in Streamer(network).run(image, 8):
        slabs.append(logits)
        copies.append(logits.clone())
    assert all(torch.equal(a, b) for a, b in zip(slabs, copies, strict=True))


def test_one_streamer_serves_many_scans_of_different_sizes() -> None:
    network = seasoned(PADDED)
    streamer = Streamer(network)
    for scan in [(30, 20), (9, 50), (30, 20)]:
        image = noise(1, *scan)
        torch.testing.assert_close(assembled(streamer, image, 7), oracle(network, image), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float64])
def test_scans_of_any_type_in_any_memory_order(dtype: torch.dtype) -> None:
    image = (noise(1, 24, 30).abs() * 100).to(dtype)
    fortran = image.transpose(1, 2).contiguous().transpose(1, 2)
    network = seasoned(PADDED).float()
    answer = assembled(Streamer(network), fortran, 8)
    expected = oracle(network, image.float())
    torch.testing.assert_close(answer, expected, rtol=0, atol=2e-6 * float(expected.abs().max()))


@pytest.mark.parametrize(
    "config", [PADDED, UNetSettings(channels=(8, 16), norm="voxel", attention=True, residual=True)]
)
def test_bfloat16_is_near_and_comes_back_as_float32(config: UNetSettings) -> None:
    network, image = seasoned(config).float(), noise(1, *(32, 24, 10)[: config.dimensions]).float()
    exact = oracle(network, image)
    near = assembled(Streamer(network, Execution(dtype=torch.bfloat16)), image, 8)
    assert near.dtype == torch.float32
    assert 0 < (near - exact).abs().max() < 0.05 * exact.abs().max()


def test_only_the_computing_is_in_inference_mode() -> None:
    slabs = Streamer(seasoned(PADDED)).run(noise(1, 40, 20), 8)
    next(slabs)
    assert not torch.is_inference_mode_enabled()
    weight = torch.ones(1, requires_grad=True)
    (weight * 2).backward()
    assert len(list(slabs)) > 1


def test_progress_reaches_its_end() -> None:
    calls: list[tuple[int, int]] = []
    list(Streamer(seasoned(PADDED)).run(noise(1, 37, 20), 8, progress=lambda done, total: calls.append((done, total))))
    assert len(calls) > 5
    assert calls == [(n, len(calls)) for n in range(1, len(calls) + 1)]


def test_what_cannot_be_streamed_is_refused() -> None:
    image = noise(1, 16, 16).float()
    with pytest.raises(ConfigError, match=r"network.eval\(\)"):
        Streamer(UNet(PADDED)).run(image, 8)
    partly = UNet(PADDED).eval()
    partly.encoder[0].train()
    with pytest.raises(ConfigError, match="in training mode"):
        Streamer(partly).run(image, 8)
    for norm in ("instance", "group"):
        network = UNet(UNetSettings(dimensions=2, channels=(4, 8), norm=norm)).eval()  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=f"{norm} norm takes its statistics over the tile"):
            Streamer(network).run(image, 8)
    with pytest.raises(ConfigError, match="does not state its channels"):
        Streamer(torch.nn.Conv2d(1, 2, 3).eval())


def test_scans_that_do_not_fit_are_refused() -> None:
    streamer = Streamer(seasoned(PADDED))
    for image in (noise(2, 16, 16), noise(1, 16), noise(1, 4, 16, 16), noise(1, 0, 16)):
        with pytest.raises(ConfigError, match=r"expected \(1, \*spatial\) with 2 spatial axes"):
            streamer.run(image, 8)
    with pytest.raises(ConfigError, match="slabs of 0 rows"):
        streamer.run(noise(1, 16, 16), 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("config", [PADDED, UNPADDED])
def test_the_gpu_gives_the_same(config: UNetSettings) -> None:
    network, image = seasoned(config), noise(1, 101, 77)
    here = assembled(Streamer(network), image, 8)
    there = assembled(Streamer(network.cuda(), Execution(device="cuda")), image, 8)
    torch.testing.assert_close(there.cpu(), here)
