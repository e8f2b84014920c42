"""A whole scan in one pass of a network that OpenVINO compiled: faster than streaming, for much more memory.

OpenVINO's convolutions are those of torch. It gains by writing activations and joined maps where the next layer reads
them, which it can do because it holds all maps of the scan at once; so its memory grows with the scan.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medunet.errors import ConfigError, MissingExtra
from medunet.geometry.boxes import Box, Fill, read_box
from medunet.geometry.shapes import UNetShape
from medunet.inference.execution import Execution, Image, Slab, as_array
from medunet.inference.streaming.streamer import WHOLE, Passage

PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}


def require_openvino() -> Any:
    """The module.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import openvino
    except ImportError as error:
        raise MissingExtra("--engine openvino needs OpenVINO; pip install 'medunet[openvino]'") from error
    return openvino


class CompiledPass:
    """A network for whole passes on the CPU, compiled anew whenever the size of what it sees changes.

    Only what was compiled last is kept, as it holds the memory of all its maps.

    Args:
        network: a `medunet.UNet` in evaluation mode, float32; not changed.
        execution: on the CPU, in float32 or bfloat16.

    Raises:
        ConfigError: another device or precision, a norm that takes statistics over space, or training mode.
        MissingExtra: OpenVINO is not installed.
    """

    def __init__(self, network: Any, execution: Execution | None = None) -> None:
        execution = execution or Execution()
        settings = network.settings
        if torch.device(execution.device).type != "cpu" or execution.dtype not in PRECISIONS:
            raise ConfigError("OpenVINO is used on the CPU, in fp32 or bf16; use --engine torch")
        if settings.inexact_reason is not None:
            raise ConfigError(f"one pass would not be what is meant: {settings.inexact_reason}; use --engine torch")
        if network.training:
            raise ConfigError("the network is in training mode, with dropout and batch statistics; call network.eval()")
        self._openvino = require_openvino()
        self._shape: UNetShape = settings.shape
        self._channels, self._precision = settings.in_channels, PRECISIONS[execution.dtype]
        self._model = _converted(network, (1, self._channels, *self._shape.smallest_for((1,) * self._dimensions)))
        self._size: tuple[int, ...] = ()
        self._request: Any = None

    @property
    def _dimensions(self) -> int:
        return self._shape.dimensions

    def run(self, image: Image, rows: int, axis: int = 0, passage: Passage = WHOLE) -> Iterator[Slab]:
        """Logits of a scan.

        Args:
            image: ``(channel, *spatial)`` of any size; see `Streamer.run`.
            rows: of the axis that are handed on at a time.
            axis: spatial, along which they come.
            passage: a part of the scan, or a mirrored one; the region may be any.

        Returns:
            ``(start, stop, logits)`` in order, covering the region once; logits ``(class, *spatial)``, float32.

        Raises:
            ConfigError: the image's channels or axes are not the network's, or it is empty.
        """
        shape = tuple(int(n) for n in image.shape)
        if len(shape) != self._dimensions + 1 or shape[0] != self._channels or min(shape) < 1:
            raise ConfigError(
                f"found an image of shape {shape}, expected ({self._channels}, *spatial) with {self._dimensions} "
                "spatial axes of at least one voxel"
            )
        logits = self._answer(as_array(image), shape[1:], passage)
        for start in range(0, logits.shape[axis + 1], rows):
            stop = min(start + rows, logits.shape[axis + 1])
            yield start, stop, logits.narrow(axis + 1, start, stop - start)

    def _answer(self, array: NDArray[Any], scan: tuple[int, ...], passage: Passage) -> Tensor:
        region = (passage.region or Box.of_shape(scan)).mirrored(scan, passage.mirror)
        around = self._shape.context(region, scan)
        margin = self._shape.margin
        size = self._shape.smallest_for(around.shape)
        box = Box.of_shape(size, [start - m for start, m in zip(around.start, margin, strict=True)])
        fill: Fill = "constant" if self._shape.padded else "reflect"
        seen = read_box(array, box.mirrored(scan, passage.mirror), fill)
        turned = tuple(a + 1 for a in passage.mirror)
        batch = np.ascontiguousarray(np.flip(seen, turned), dtype=np.float32)[None]
        logits = torch.from_numpy(self._inferred(batch))[0]
        # flip copies, also where it turns nothing: the memory of the answer is written anew by the next pass
        return logits[(slice(None), *region.relative_to(around.start).slices)].flip(turned)

    def _inferred(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        if batch.shape != self._size:
            self._request, self._size = None, ()  # its memory first
            model = self._model.clone()
            model.reshape(list(batch.shape))
            hints = {
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                "INFERENCE_PRECISION_HINT": self._precision,
                "PERFORMANCE_HINT": "LATENCY",
            }
            self._request = self._openvino.Core().compile_model(model, "CPU", hints).create_infer_request()
            self._size = batch.shape
        self._request.infer([batch], share_inputs=True)
        return self._request.get_output_tensor(0).data


def _converted(network: Any, shape: Sequence[int]) -> Any:
    """The network as OpenVINO's graph, for any size. Not by `convert_model`, which reports its use over the network."""
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch import ConversionExtension
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    example = torch.zeros(tuple(shape))
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # the sizes that tracing takes as fixed are those of crops, which are
        traced = torch.jit.trace(network, example, check_trace=False)
    frontend = FrontEndManager().load_by_framework("pytorch")
    for axes in (2, 3):
        frontend.add_extension(ConversionExtension(f"aten::_upsample_nearest_exact{axes}d", _nearest))
    decoder = TorchScriptPythonDecoder(traced, example_input=example)  # must outlive the conversion
    return frontend.convert(frontend.load(decoder))


def _nearest(node: Any) -> Any:
    """Nearest-neighbour upsampling by whole factors, for which OpenVINO has no conversion of its own."""
    from openvino import opset13 as op

    image, size = node.get_input(0), op.convert(node.get_input(1), "i32")
    axes = np.arange(2, image.get_partial_shape().rank.get_length())
    return op.interpolate(
        image,
        size,
        "nearest",
        "sizes",
        coordinate_transformation_mode="half_pixel",
        nearest_mode="round_prefer_ceil",
        axes=axes,
    ).outputs()
