"""Thin maps: 3-D convolutions that a CPU must not compute in bfloat16 while it learns.

oneDNN, which computes torch's convolutions on CPUs, gives wrong gradients of the weights in bfloat16 where a map has
fewer voxels along its first spatial axis than the kernel: a map of 2x6x6 under a kernel of 3x3x3 gets what happened to
lie in memory (torch 2.13 with AVX-512 BF16). Deep levels and thin stacks have such maps. In float32 they are right, and
so small that the precision costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _FloatWhereThin(TorchFunctionMode):
    """While it is entered, 3-D convolutions of thin maps compute in float32, also under autocast."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        if func is not torch.conv3d or args[0].shape[2] >= args[1].shape[2]:
            return func(*args, **named)
        with torch.autocast(args[0].device.type, enabled=False):
            return func(*map(_float, args), **{name: _float(value) for name, value in named.items()})


def _float(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) else value


def right_gradients(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """The context of a training step's forward and backward pass; it changes nothing but lower precision on a CPU."""
    return _FloatWhereThin() if device.type == "cpu" and dtype is not None else nullcontext()
