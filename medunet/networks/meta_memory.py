"""Memory estimate on meta tensors: one pass of any network, without any values."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from medunet.networks.memory import FIXED, HEAP_BLOCK, VECTOR

_CONVOLUTIONS = ("convolution", "convolution_overrideable", "_convolution")


def meta_tensor_bytes(network: nn.Module, channels: int, size: Sequence[int]) -> int:
    """Peak memory of one eager float32 inference pass on the CPU, above the loaded network, image included.

    The pass is made on torch's meta device, which computes nothing: what is alive after each operation is added up,
    and for each convolution the copies that oneDNN makes of its input and output.

    Args:
        network: in evaluation mode; not changed.
        channels: of the image.
        size: of the image, spatial.
    """
    # What `deepcopy` finds in its memo it does not copy, so that no weight is held twice.
    memo: dict[int, Any] = {id(p): nn.Parameter(_empty(p), requires_grad=False) for p in network.parameters()}
    memo |= {id(tensor): _empty(tensor) for tensor in (*network.buffers(), *_kept(network)) if id(tensor) not in memo}
    hollow = copy.deepcopy(network, memo)
    with torch.no_grad(), _FusedAttention(), _Alive() as alive:
        hollow(torch.empty((1, channels, *size), device="meta"))
    found: int = alive.peak + HEAP_BLOCK + FIXED
    return found


def _kept(network: nn.Module) -> list[Tensor]:
    """Tensors that modules hold beside weights and buffers: a DynUNet keeps the deep logits of its last step."""
    leaves = [leaf for module in network.modules() for value in vars(module).values() for leaf in tree_leaves(value)]
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _empty(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="meta")


def _convolving(image: Tensor, answer: Tensor) -> int:
    """Bytes of the copies in which oneDNN convolves, whose channels are whole vectors; the answer's is made twice."""
    return sum(t.nbytes // t.shape[1] * -(-t.shape[1] // VECTOR) * VECTOR for t in (image, answer, answer))


class _FusedAttention(TorchFunctionMode):
    """Attention as the fused kernels do it, which keep no map of all pairs; the meta device has none of them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        asked = func is nn.functional.scaled_dot_product_attention and "query" in given
        if asked and given.get("attn_mask") is None and not given.get("dropout_p"):
            query: Tensor = given["query"]
            return query.new_empty((*query.shape[:-1], given["value"].shape[-1]))
        return func(*args, **given)


class _Alive(TorchDispatchMode):
    """Adds up the storages that operations make, until they are given back."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        for tensor in made:
            self._hold(tensor.untyped_storage())
        copies = 0
        if func.overloadpacket.__name__ in _CONVOLUTIONS:
            copies = _convolving(args[0], made[0])
        self.peak = max(self.peak, self.now + copies)
        return result

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        count = storage.nbytes()
        self.now += count

        def gone(_: Any) -> None:
            self.now -= count
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, gone)
