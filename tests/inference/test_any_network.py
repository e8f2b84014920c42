"""Streaming any network: random graphs and MONAI's networks against one whole pass, and what refuses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import medunet
from medunet.errors import ConfigError
from medunet.inference.execution import Passage
from medunet.inference.streaming.graph import NotLocal
from medunet.inference.streaming.streamer import Streamer
from medunet.inference.streaming.trace import graph_for
from tests.inference.test_overlap_tile import noise

CONVOLUTION = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
POOL = {2: (nn.MaxPool2d, nn.AvgPool2d), 3: (nn.MaxPool3d, nn.AvgPool3d)}
LINEAR = {2: "bilinear", 3: "trilinear"}


def seasoned(network: nn.Module) -> nn.Module:
    """In evaluation mode and float64, with statistics and weights that are not those of a fresh network."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.running_mean.copy_(torch.rand(module.num_features, generator=generator) - 0.5)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
    return network.double().eval()


def first(answer: Tensor | list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    return answer if isinstance(answer, Tensor) else answer[0]


def whole_pass(network: nn.Module, image: Tensor, mirror: tuple[int, ...] = ()) -> Tensor:
    turned = [axis + 1 for axis in mirror]
    with torch.no_grad():
        return first(network(image.flip(turned)[None]))[0].flip(turned)


def streamed(network: nn.Module, image: Tensor, **how: object) -> Tensor:
    """All places of `medunet.stream` put together, each voxel once."""
    result, times = None, torch.zeros(image.shape[1:])
    for place, logits in medunet.stream(network, image, **how):  # type: ignore[arg-type]
        result = logits.new_empty((len(logits), *image.shape[1:])) if result is None else result
        result[(slice(None), *place)] = logits
        times[place] += 1
    assert result is not None and (times == 1).all()
    return result


class RandomGraph(nn.Module):
    """Two resolutions of random local layers with a skip connection, drawn layer by layer."""

    def __init__(self, draw: Callable[..., object], dimensions: int) -> None:
        super().__init__()
        self.dimensions, width = dimensions, 3
        self.early = self._block(draw, 2, width)
        stride = draw(st.sampled_from([2, 3]))
        self.down = draw(
            st.sampled_from(
                [
                    POOL[dimensions][0](stride),
                    POOL[dimensions][1](stride),
                    CONVOLUTION[dimensions](width, width, 3 if stride == 2 else 5, stride, 1),
                    CONVOLUTION[dimensions](width, width, stride, stride),
                ]
            )
        )  # fmt: skip
        self.deep = self._block(draw, width, width)
        self.up = draw(
            st.sampled_from(
                [
                    TRANSPOSED[dimensions](width, width, stride, stride),
                    TRANSPOSED[dimensions](width, width, 3, 2, 1, 1) if stride == 2 else
                    TRANSPOSED[dimensions](width, width, 5, 3, 1),
                    nn.Upsample(scale_factor=stride, mode="nearest"),
                    nn.Upsample(scale_factor=stride, mode="nearest-exact"),
                    nn.Upsample(scale_factor=stride, mode=LINEAR[dimensions]),
                    nn.Upsample(scale_factor=stride, mode=LINEAR[dimensions], align_corners=True),
                ]
            )
        )  # fmt: skip
        self.joined = draw(st.booleans())
        self.late = self._block(draw, 2 * width if self.joined else width, width)
        self.head = CONVOLUTION[dimensions](width, 2, 1)

    def _block(self, draw: Callable[..., object], channels: int, width: int) -> nn.Sequential:
        kernel, dilation = draw(st.sampled_from([1, 3, 5])), draw(st.sampled_from([1, 2]))
        padding = dilation * (kernel - 1) // 2
        mode = draw(st.sampled_from(["zeros", "zeros", "replicate", "reflect"])) if padding < 2 else "zeros"
        layers = [CONVOLUTION[self.dimensions](channels, width, kernel, 1, padding, dilation, padding_mode=mode)]
        if draw(st.booleans()):
            layers.append(BATCH_NORM[self.dimensions](width))
        layers.append(
            draw(
                st.sampled_from(
                    [
                        nn.ReLU(),
                        nn.LeakyReLU(0.2, inplace=True),
                        nn.ELU(),
                        nn.SiLU(True),
                        nn.PReLU(),
                        nn.GELU(),
                        nn.Softmax(1),
                    ]
                )
            )
        )
        return nn.Sequential(*layers)

    def forward(self, image: Tensor) -> Tensor:
        skip = self.early(image)
        up = self.up(self.deep(self.down(skip)))
        return self.head(self.late(torch.cat([up, skip], 1) if self.joined else up * torch.sigmoid(skip) + skip))


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_random_graph_streamed_equals_one_pass(data: st.DataObject) -> None:
    dimensions = data.draw(st.sampled_from([2, 2, 3]))
    torch.manual_seed(data.draw(st.integers(0, 5)))
    network = seasoned(RandomGraph(data.draw, dimensions))
    image = noise(2, *(6 * data.draw(st.integers(1, 8 if dimensions == 2 else 4)) for _ in range(dimensions)))
    axis = data.draw(st.integers(0, dimensions - 1))
    mirror = tuple(a for a in range(dimensions) if data.draw(st.booleans()))
    try:
        expected = whole_pass(network, image, mirror)
    except RuntimeError:  # torch refuses to reflect a map of one voxel
        return
    graph = graph_for(network, 2, tuple(image.shape[1:]))
    runner, slab = Streamer(network, graph=graph), data.draw(st.integers(1, 20))
    passage = Passage(axis, mirror)
    answer = torch.cat([logits for _, _, logits in runner.run(image, slab, passage=passage)], axis + 1)
    torch.testing.assert_close(answer, expected, rtol=0, atol=1e-10 * float(expected.abs().max()))


def monai_networks() -> dict[str, Callable[[], nn.Module]]:
    from monai.networks import nets

    return {
        "UNet": lambda: nets.UNet(3, 2, 3, (4, 8, 16), (2, 2), num_res_units=2, norm="batch"),
        "UNet 2-D": lambda: nets.UNet(2, 2, 3, (4, 8, 16), (2, 2), num_res_units=0, norm="batch", act="elu"),
        "BasicUNet": lambda: nets.BasicUNet(3, 2, 3, (4, 4, 4, 8, 8, 4), norm="batch"),
        "BasicUNet nontrainable": lambda: nets.BasicUNet(
            2, 2, 3, (4, 4, 4, 8, 8, 4), norm="batch", upsample="nontrainable"
        ),
        "BasicUNetPlusPlus": lambda: nets.BasicUNetPlusPlus(2, 2, 3, features=(4, 4, 4, 8, 8, 4), norm="batch"),
        "DynUNet": lambda: nets.DynUNet(
            3, 2, 3, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 8, 8], norm_name="batch", res_block=True
        ),
        "DynUNet with deep supervision": lambda: nets.DynUNet(
            2, 2, 3, [3, 3, 3, 3], [1, 2, 2, 2], [2, 2, 2], filters=[4, 8, 8, 8], norm_name="batch",
            deep_supervision=True, deep_supr_num=2,
        ),
        "SegResNet": lambda: nets.SegResNet(3, 4, 2, 3, norm=("batch", {}), blocks_down=(1, 1, 1), blocks_up=(1, 1)),
        "SegResNet deconv": lambda: nets.SegResNet(
            2, 4, 2, 3, norm=("batch", {}), blocks_down=(1, 1, 1), blocks_up=(1, 1), upsample_mode="deconv"
        ),
        "SegResNetDS": lambda: nets.SegResNetDS(3, 4, 2, 3, blocks_down=(1, 1, 1), norm="batch", dsdepth=2),
        "VNet 2-D": lambda: nets.VNet(2, 2, 3),
        "HighResNet 2-D": lambda: nets.HighResNet(2, 2, 3),
        "FlexibleUNet": lambda: nets.FlexibleUNet(2, 3, "resnet10", spatial_dims=2, decoder_channels=(8, 8, 4, 4, 4)),
    }  # fmt: skip


NAMES = [
    "UNet", "UNet 2-D", "BasicUNet", "BasicUNet nontrainable", "BasicUNetPlusPlus", "DynUNet",
    "DynUNet with deep supervision", "SegResNet", "SegResNet deconv", "SegResNetDS", "VNet 2-D", "HighResNet 2-D",
    "FlexibleUNet",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_networks_of_monai_equal_one_pass(name: str) -> None:
    """At a size that all take; in float32, as they are used."""
    torch.manual_seed(0)
    network = seasoned(monai_networks()[name]()).float()
    dimensions = 2 if "2-D" in name else next(p.ndim for p in network.parameters() if p.ndim > 3) - 2
    image = noise(2, *(48, 32, 32) if dimensions == 3 else (96, 64)).float()
    for axis, mirror in ((0, ()), (dimensions - 1, (0, dimensions - 1))):
        expected = whole_pass(network, image, mirror)
        answer = streamed(network, image, axis=axis, mirror=mirror)
        torch.testing.assert_close(answer, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["BasicUNet nontrainable", "BasicUNetPlusPlus"])
def test_an_odd_size_that_the_network_takes_is_answered_as_the_network_does(name: str) -> None:
    torch.manual_seed(0)
    network = seasoned(monai_networks()[name]())
    image = noise(2, 51, 37)
    expected = whole_pass(network, image)
    torch.testing.assert_close(
        streamed(network, image, axis=0), expected, rtol=0, atol=1e-10 * float(expected.abs().max())
    )


@pytest.mark.parametrize(("name", "size"), [("UNet 2-D", (52, 40)), ("DynUNet with deep supervision", (56, 40))])
def test_an_odd_size_that_it_does_not_take_is_zero_padded_at_the_end(name: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network = seasoned(monai_networks()[name]())
    image = noise(2, 51, 37)
    padded = functional.pad(image, (0, size[1] - 37, 0, size[0] - 51))
    expected = whole_pass(network, padded)[:, :51, :37]
    torch.testing.assert_close(streamed(network, image), expected, rtol=0, atol=1e-10 * float(expected.abs().max()))


def test_parts_of_a_wide_image_equal_one_pass() -> None:
    network = seasoned(monai_networks()["UNet 2-D"]())
    image = noise(2, 40, 4000)
    expected = whole_pass(network, image)
    places = [place for place, _ in medunet.stream(network, image, memory="19M", axis=0)]
    assert len({place[1].start for place in places}) > 1
    answer = streamed(network, image, memory="19M", axis=0)
    torch.testing.assert_close(answer, expected, rtol=0, atol=1e-10 * float(expected.abs().max()))
    with pytest.raises(ConfigError, match=r"about .* MiB, found memory=1 MiB; give it more"):
        medunet.stream(network, image, memory="1M")


class Refusing(nn.Module):
    """A convolution and something that cannot be streamed."""

    def __init__(self, what: Callable[[Tensor], Tensor], layer: nn.Module | None = None) -> None:
        super().__init__()
        self.early = nn.Conv2d(2, 4, 3, padding=1)
        self.late = nn.Identity() if layer is None else layer
        self.what = what

    def forward(self, image: Tensor) -> Tensor:
        return self.what(self.late(self.early(image)))


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.squeeze(x)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Refusing(lambda x: x, nn.InstanceNorm2d(4)), "late takes statistics over the scan"),
        (Refusing(lambda x: x, nn.GroupNorm(2, 4)), "late takes statistics over the scan"),
        (Refusing(lambda x: x, Gate()), "late.squeeze.0 takes statistics over the scan"),
        (Refusing(lambda x: x if x.mean() > 0 else -x), "statistics over the scan|values of the image"),
        (Refusing(lambda x: x if x[0, 0, 0, 0] > 0 else -x), "values of the image|mix distant places"),
        (Refusing(lambda x: x.flip(-1)), "may mix distant places"),
        (Refusing(lambda x: x.flatten(2).softmax(-1).view_as(x)), "may mix distant places"),
        (Refusing(lambda x: x.cumsum(2)), "may mix distant places"),
        (Refusing(lambda x: torch.fft.fft2(x).real), "may mix distant places"),
        (Refusing(lambda x: x + torch.arange(x.shape[-1])), "holds numbers for each place"),
        (Refusing(lambda x: x[..., ::2]), "every other row"),
        (Refusing(lambda x: torch.zeros_like(x)), "not computed from the image|mix distant places"),
    ],
)  # fmt: skip
def test_what_is_not_local_is_refused_with_the_layer(network: nn.Module, message: str) -> None:
    with pytest.raises(NotLocal, match=message):
        medunet.stream(network.eval(), torch.zeros(2, 64, 64))


def test_a_network_in_training_mode_and_a_wrong_image_are_refused() -> None:
    network = Refusing(lambda x: x)
    with pytest.raises(ConfigError, match=r"training mode.*network\.eval\(\)"):
        medunet.stream(network, torch.zeros(2, 64, 64))
    with pytest.raises(ConfigError, match="took no image of 3 channel"):
        medunet.stream(network.eval(), torch.zeros(3, 64, 64))


def test_a_network_that_computes_otherwise_for_another_size_is_refused() -> None:
    with pytest.raises(NotLocal, match="something else for each size"):
        medunet.stream(Refusing(lambda x: x * x if x.shape[-1] > 32 else x).eval(), torch.zeros(2, 64, 64))


def test_numbers_that_depend_on_the_size_are_seen() -> None:
    with pytest.raises(NotLocal, match="something else for each size"):
        medunet.stream(Refusing(lambda x: x / x.shape[-1]).eval(), torch.zeros(2, 64, 64))


class Halves(nn.Module):
    """Channels split in two, one weighing the other; a crop and a padding that undo each other."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, 1)
        kept = (first * torch.sigmoid(second))[:, :, 2:-3, 1:]
        return functional.pad(kept, (1, 0, 2, 3), value=0.5)


@pytest.mark.parametrize("mirror", [(), (0,), (0, 1)])
def test_split_channels_crops_and_paddings(mirror: tuple[int, ...]) -> None:
    network = Refusing(lambda x: x, Halves()).double().eval()
    image = noise(2, 40, 30)
    answer = streamed(network, image, axis=0, mirror=mirror)
    torch.testing.assert_close(answer, whole_pass(network, image, mirror), rtol=0, atol=1e-12)


def test_the_network_is_left_as_it_is() -> None:
    network = seasoned(monai_networks()["UNet 2-D"]())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    streamed(network, noise(2, 32, 32))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


@pytest.mark.parametrize("name", ["UNet 2-D", "BasicUNet nontrainable", "SegResNet deconv"])
def test_float16_is_as_near_as_its_digits(name: str) -> None:
    """Beside autocast in bfloat16, which has three digits fewer."""
    torch.manual_seed(0)
    network = seasoned(monai_networks()[name]()).float()
    image = noise(2, 48, 32).float()
    expected = whole_pass(network, image)
    most = float(expected.abs().max())
    half, lower = (
        float((streamed(network, image, precision=precision) - expected).abs().max()) / most
        for precision in ("fp16", "bf16")
    )
    assert 0 < half < 2e-3 and half < lower / 2


def test_what_float16_cannot_hold_and_an_unknown_precision_are_refused() -> None:
    network = nn.Conv2d(1, 1, 1).eval()
    nn.init.constant_(network.weight, 1000.0)
    image = torch.ones(1, 64, 16)
    image[0, 50, 3] = 100.0
    with pytest.raises(ConfigError, match=r"rows \d+ to \d+ of axis 0 is too large for float16.*\n.*bf16"):
        list(medunet.stream(network, image, precision="fp16", axis=0))
    with pytest.raises(ConfigError, match="precision: found 'half', expected one of auto, fp32, bf16, fp16"):
        medunet.stream(network, image, precision="half")  # type: ignore[arg-type]
