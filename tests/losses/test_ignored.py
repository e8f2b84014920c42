"""No loss learns from voxels that are ignored: nothing there matters, and no gradient reaches them."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medunet.losses.build import Kind, LossSettings, make_loss
from medunet.losses.targets import IGNORE

REGIONS = ((1, 2, 3), (2, 3), (3,))


def made(seed: int, classes: int, shape: tuple[int, ...], sparse: bool) -> tuple[Tensor, Tensor]:
    """Class indices and where they are unknown: all but every third slice, or any voxels."""
    random = torch.Generator().manual_seed(seed)
    target = torch.randint(0, classes, (2, 1, *shape), generator=random)
    if sparse:
        unknown = (torch.arange(shape[0]) % 3 != 1).reshape(1, 1, -1, *(1,) * (len(shape) - 1)).expand_as(target)
    else:
        unknown = torch.rand(target.shape, generator=random) < 0.5
    return target, unknown


@pytest.mark.slow
@given(
    kind=st.sampled_from(get_args(Kind)),
    regions=st.booleans(),
    seed=st.integers(0, 10_000),
    shape=st.sampled_from([(8, 8), (12, 4), (4, 4, 8)]),
    sparse=st.booleans(),
    surface=st.sampled_from(["none", "boundary", "hausdorff"]),
    blob_weight=st.sampled_from([0.0, 1.0]),
    batch_dice=st.booleans(),
    squared=st.booleans(),
    background=st.booleans(),
    levels=st.integers(1, 3),
    weighted=st.booleans(),
    balanced=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_nothing_that_is_ignored_matters_to_any_loss(
    kind: Kind, regions: bool, seed: int, shape: tuple[int, ...], sparse: bool, surface: str, blob_weight: float,
    batch_dice: bool, squared: bool, background: bool, levels: int, weighted: bool, balanced: bool,
) -> None:  # fmt: skip
    target, unknown = made(seed, 4 if regions else 3, shape, sparse)
    outputs = len(REGIONS) if regions else 3
    given_ = LossSettings(
        kind, class_weights="balanced" if balanced else None, include_background=background, batch_dice=batch_dice,
        squared=squared, blob_weight=blob_weight, surface=surface, surface_weight=0.3,  # type: ignore[arg-type]
    )  # fmt: skip
    loss = make_loss(given_, 4 if regions else 3, [40, 30, 20, 10][: 4 if regions else 3], REGIONS if regions else ())
    random = torch.Generator().manual_seed(seed + 1)
    sizes = [tuple(n // 2**level for n in shape) for level in range(levels)]
    logits = [torch.randn((2, outputs, *size), generator=random, dtype=torch.float64) for size in sizes]
    weight = torch.rand(target.shape, generator=random, dtype=torch.float64) + 0.1 if weighted else None
    labelled = torch.where(unknown, IGNORE, target)

    asked = [one.clone().requires_grad_() for one in logits]
    value = loss(asked, labelled, weight)
    gradients = torch.autograd.grad(value, asked, allow_unused=True)
    assert torch.isfinite(value)

    changed = []
    for level, (one, gradient) in enumerate(zip(logits, gradients, strict=True)):
        # Each coarse voxel is judged by the fine one at its centre.
        step = 2**level
        seen = unknown[(slice(None), slice(None), *(slice(step // 2, None, step) for _ in shape))].expand_as(one)
        assert gradient is None or not gradient[seen].any()
        changed.append(torch.where(seen, one + 20 * torch.randn(one.shape, generator=random), one))
    torch.testing.assert_close(loss(changed, labelled, weight), value.detach())

    # A weight of 0 says the same, whatever label lies there.
    nothing = torch.where(unknown, 0.0, torch.ones_like(value) if weight is None else weight)
    other = torch.where(unknown, torch.randint(0, 3, target.shape, generator=random), target)
    torch.testing.assert_close(loss(changed, other, nothing), value.detach())


@pytest.mark.parametrize("kind", get_args(Kind))
def test_what_is_known_matters(kind: Kind) -> None:
    """Else the property above would hold of a loss that looks at nothing."""
    target, unknown = made(1, 3, (8, 8), sparse=True)
    logits = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
    loss = make_loss(LossSettings(kind), 3)
    (gradient,) = torch.autograd.grad(loss(logits, torch.where(unknown, IGNORE, target)), logits)
    assert gradient[(~unknown).expand_as(gradient)].any()
