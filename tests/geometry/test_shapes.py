"""Size arithmetic against a step-by-step walk through the layers, and the papers' figures."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medunet.errors import ConfigError
from medunet.geometry.shapes import UNetShape

UNET2015 = UNetShape(((3, 3),) * 5, ((2, 2),) * 4, (2,) * 5, (2,) * 4)
UNET2016 = UNetShape(((3, 3, 3),) * 4, ((2, 2, 2),) * 3, (2,) * 4, (2,) * 3)


@st.composite
def network_shapes(draw: st.DrawFn) -> UNetShape:
    levels, dimensions = draw(st.integers(1, 4)), draw(st.integers(2, 3))
    kernels = st.tuples(*[st.sampled_from([1, 3, 5])] * dimensions)
    strides = st.tuples(*[st.integers(1, 3)] * dimensions)
    return UNetShape(
        draw(st.tuples(*[kernels] * levels)),
        draw(st.tuples(*[strides] * (levels - 1))),
        draw(st.tuples(*[st.integers(1, 3)] * levels)),
        draw(st.tuples(*[st.integers(1, 3)] * (levels - 1))),
        draw(st.booleans()),
    )


def walk(network: UNetShape, axis: int, size: int) -> int | None:
    """The output size along one axis, layer by layer; None where a layer does not come out even."""
    loss = [0 if network.padded else kernel[axis] - 1 for kernel in network.kernels]
    skips = []
    for level in range(network.levels):
        for _ in range(network.encoder_convolutions[level]):
            size -= loss[level]
            if size < 1:
                return None
        if level < network.levels - 1:
            skips.append(size)
            if size % network.strides[level][axis]:
                return None
            size //= network.strides[level][axis]
    for level in reversed(range(network.levels - 1)):
        size *= network.strides[level][axis]
        if skips[level] < size or (skips[level] - size) % 2:
            return None
        for _ in range(network.decoder_convolutions[level]):
            size -= loss[level]
            if size < 1:
                return None
    return size


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(network_shapes())
def test_every_size_agrees_with_the_walk(network: UNetShape) -> None:
    for axis in range(network.dimensions):
        legal = []
        top = network.smallest[axis] + 2 * network.stride[axis]
        for n in range(1, top + 1):
            size = tuple(n if a == axis else network.smallest[a] for a in range(network.dimensions))
            expected = walk(network, axis, n)
            assert network.is_legal(size) == (expected is not None)
            if expected is None:
                with pytest.raises(ConfigError, match=f"axis {axis} has {n}"):
                    network.output_size(size)
            else:
                assert network.output_size(size)[axis] == expected
                legal.append(n)
        assert list(network.legal_sizes(1, top)[axis]) == legal


@settings(deadline=None, max_examples=100)
@given(network_shapes(), st.integers(1, 300))
def test_nearest_and_smallest_sizes(network: UNetShape, n: int) -> None:
    wanted = (n,) * network.dimensions
    everything = network.legal_sizes(1, n + max(network.smallest) + 2 * max(network.stride))
    nearest, cover = network.nearest_legal(wanted), network.smallest_for(wanted)
    for axis, sizes in enumerate(everything):
        assert nearest[axis] == min(reversed(sizes), key=lambda s: abs(s - n))
    for axis, margin in enumerate(network.margin):
        outputs = network.output_size(cover)
        assert outputs[axis] >= n
        assert outputs[axis] - network.stride[axis] < n or cover[axis] == network.smallest[axis]
        assert cover[axis] - outputs[axis] == 2 * margin


def test_the_original_unet() -> None:
    assert UNET2015.output_size((572, 572)) == (388, 388)
    assert UNET2015.margin == (92, 92)
    assert UNET2015.stride == (16, 16)
    assert UNET2015.encoder_sizes((572, 572)) == ((568,) * 2, (280,) * 2, (136,) * 2, (64,) * 2, (28,) * 2)
    assert UNET2015.decoder_sizes((572, 572)) == ((388,) * 2, (196,) * 2, (100,) * 2, (52,) * 2)
    assert UNET2015.legal_sizes(540, 600)[0] == range(540, 601, 16)
    with pytest.raises(ConfigError, match="axis 1 has 571, the nearest legal sizes are 556 and 572"):
        UNET2015.output_size((572, 571))
    with pytest.raises(ConfigError, match="the smallest legal size is 188"):
        UNET2015.output_size((100, 572))


def test_the_original_3d_unet() -> None:
    assert UNET2016.output_size((132, 132, 116)) == (44, 44, 28)
    assert UNET2016.encoder_sizes((132, 132, 116))[-1] == (9, 9, 7)
    assert UNET2016.decoder_sizes((132, 132, 116)) == ((44, 44, 28), (24, 24, 16), (14, 14, 10))
    assert UNET2016.margin == (44, 44, 44)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"kernels": ((3, 3), (2, 3))}, "must be odd"),
        ({"strides": ((2, 0),)}, "at least 1"),
        ({"strides": ((2, 2), (2, 2))}, "2 levels"),
        ({"encoder_convolutions": (2, 0)}, "at least 1"),
        ({"strides": ((2, 2, 2),)}, "same number of axes"),
    ],
)
def test_impossible_networks_are_refused(parts: dict[str, tuple[int, ...]], message: str) -> None:
    good = {
        "kernels": ((3, 3),) * 2,
        "strides": ((2, 2),),
        "encoder_convolutions": (2, 2),
        "decoder_convolutions": (2,),
    }
    with pytest.raises(ConfigError, match=message):
        UNetShape(**{**good, **parts})  # type: ignore[arg-type]


def test_the_wrong_number_of_axes_is_refused() -> None:
    with pytest.raises(ConfigError, match="takes 2 spatial axes"):
        UNET2015.output_size((572, 572, 572))
