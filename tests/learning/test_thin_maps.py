"""Thin maps learn from right gradients in bfloat16."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from medunet.learning.thin_maps import right_gradients

CPU = torch.device("cpu")


def gradients(network: nn.Module, image: Tensor, dtype: torch.dtype | None) -> list[Tensor]:
    network.zero_grad()
    with right_gradients(CPU, dtype):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is not None):
            answer = network(image)
        (answer.float() * torch.linspace(-1, 1, answer.numel()).reshape(answer.shape)).sum().backward()
    return [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]


@pytest.mark.parametrize(
    ("first", "kernel", "stride"),
    [(2, 3, 1), (2, 3, 2), (2, 5, 1), (3, 5, 2), (4, 5, 1), (3, 7, 1), (1, 3, 1), (3, 3, 1), (8, 3, 1)],
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_gradients_in_bfloat16_are_those_in_float32_but_for_rounding(
    first: int, kernel: int, stride: int, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv3d(16, 16, 1), nn.Conv3d(16, 16, (kernel, 3, 3), stride, padding=(kernel // 2, 1, 1))
    ).to(memory_format=layout)  # type: ignore[call-overload]
    image = torch.randn(2, 16, first, 6, 5).contiguous(memory_format=layout)
    right = gradients(network, image, None)
    for _ in range(3):
        # What a wrong gradient would be made of.
        held = [torch.full((1 << 16,), float("nan")) for _ in range(8)]
        del held
        for low, exact in zip(gradients(network, image, torch.bfloat16), right, strict=True):
            torch.testing.assert_close(low, exact, rtol=0, atol=0.03 * float(exact.abs().max()))


def test_other_convolutions_stay_in_bfloat16() -> None:
    thick, flat = torch.randn(1, 2, 3, 4, 4), torch.randn(1, 2, 2, 2)
    with right_gradients(CPU, torch.bfloat16), torch.autocast("cpu", dtype=torch.bfloat16):
        assert nn.Conv3d(2, 2, 3, padding=1)(thick).dtype == torch.bfloat16
        assert nn.Conv3d(2, 2, 3, padding=1)(thick[:, :, :2]).dtype == torch.float32
        assert nn.Conv2d(2, 2, 3, padding=1)(flat).dtype == torch.bfloat16
