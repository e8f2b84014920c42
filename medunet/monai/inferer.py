"""ExactInferer: any network of local operators over a whole scan, behind the interface of MONAI's inferers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor, nn

from medunet.errors import ConfigError
from medunet.inference.any_network import stream
from medunet.inference.execution import Execution, floating
from medunet.inference.sliding_window import Windows, blended_rows
from medunet.inference.streaming.graph import NotLocal
from medunet.system.wording import parse_bytes, times_text

_LOG = logging.getLogger(__name__)


class ExactInferer(Inferer):  # type: ignore[misc]
    """Logits of one pass over the whole scan, in bounded memory; called as `SlidingWindowInferer` is.

    The network is streamed, see `medunet.stream`: each activation is computed once, for a few rows at a time. A scan
    whose size the network does not take is zero-padded at its far sides. Gradients are not computed.

    Args:
        memory: bytes that computing may take above the network, the scan and the logits, as `4G` or a number.
        precision: `fp32` computes in the network's own precision, `bf16` in bfloat16, `auto` in the faster one.
        windows: of this spatial size, half overlapping, are blended where a network cannot be streamed, with a warning
            in the log that names the layer; without them that is an error.

    Raises:
        ConfigError: the memory is no size, or a window is smaller than a voxel.
    """

    def __init__(
        self,
        memory: int | str = "4G",
        precision: Literal["auto", "fp32", "bf16"] = "fp32",
        windows: Sequence[int] | None = None,
    ) -> None:
        self.memory, self.precision = parse_bytes(memory), precision
        self.windows = None if windows is None else Windows(tuple(windows))

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Logits `(batch, class, *spatial)` on the device of the images; a `MetaTensor` gives one with its metadata.

        Args:
            inputs: `(batch, channel, *spatial)`, of any spatial size.
            network: a module in evaluation mode, on its own device.

        Raises:
            NotLocal: a layer needs the whole scan at once, by name, and there are no windows.
            ConfigError: the network is no module in evaluation mode, takes further arguments, changes the size, or
                needs more memory than is allowed; or inputs are no batch of images.
        """
        _check(inputs, network, bool(args or kwargs))
        answers = [self._logits(network, image) for image in floating(inputs.detach().cpu())]
        logits = torch.stack(answers).to(inputs.device)
        return MetaTensor(logits).copy_meta_from(inputs) if isinstance(inputs, MetaTensor) else logits

    def _logits(self, network: nn.Module, image: Tensor) -> Tensor:
        try:
            places = stream(network, image, self.memory, self.precision)
        except NotLocal as error:
            if self.windows is None:
                raise
            _LOG.warning("%s; windows of %s are blended", error, times_text(self.windows.size))
            device = next(network.parameters(), torch.empty(0)).device
            rows = blended_rows(network, image, self.windows, Execution(str(device)))
            return torch.cat([logits for _, _, logits in rows], dim=1)
        result: Tensor | None = None
        for place, logits in places:
            if result is None:
                result = torch.empty((len(logits), *image.shape[1:]), dtype=logits.dtype)
            result[(slice(None), *place)] = logits.cpu()
        assert result is not None, "a scan has rows"
        return result


def _check(inputs: Tensor, network: Any, more: bool) -> None:
    if not isinstance(network, nn.Module) or network.training:
        found = "one in training mode" if isinstance(network, nn.Module) else f"a {type(network).__name__}"
        raise ConfigError(f"expected a torch module in evaluation mode, found {found}; call network.eval()")
    if more:
        raise ConfigError("the network takes further arguments; bind them in a module of one argument, the image")
    if inputs.ndim not in (4, 5) or 0 in inputs.shape:
        raise ConfigError(f"expected images (batch, channel, *spatial), found a tensor of {tuple(inputs.shape)}")
