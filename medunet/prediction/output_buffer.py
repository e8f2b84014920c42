"""Output buffer: labels and probabilities collected on the scan's own grid, in memory or in files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medunet.datasets.labels import LabelTable
from medunet.geometry.boxes import Box
from medunet.system.blocks import Empty, as_stored, blocks
from medunet.system.scratch import release
from medunet.transforms.preprocess import Undo
from medunet.volume import Volume


@dataclass
class OutputBuffer:
    """Results of one scan, collected box by box.

    Attributes:
        labels: `(1, *spatial)`, values as the data set has them.
        values: the label value of each class.
        undo: from the network's grid to the scan's.
        probabilities: `(class, *spatial)`, or one channel per region; None where they are not asked for.
        found: whether there is a voxel of any class but the first.
    """

    labels: NDArray[Any]
    values: NDArray[Any]
    undo: Undo
    probabilities: NDArray[np.float32] | None = None
    found: bool = False

    @staticmethod
    def blank(
        volume: Volume, undo: Undo, table: LabelTable, empty: Empty, scores: bool, values: NDArray[Any] | None = None
    ) -> OutputBuffer:
        """Arrays that lie in memory as the volume does, so that a writer finds neighbours together.

        What preprocessing cut away is the first class, surely, and in no region; all else is not yet anything.

        Args:
            empty: makes the arrays.
            scores: whether probabilities are collected as well.
            values: the label value of each class, if not those of the table.
        """
        values = table.to_values(np.arange(table.classes)) if values is None else values
        order = sorted(range(volume.dimensions), key=lambda axis: -abs(volume.array.strides[axis + 1]))
        stored = [volume.shape[axis] for axis in order]
        back = (0, *(order.index(axis) + 1 for axis in range(volume.dimensions)))
        labels = empty((1, *stored), values.dtype)
        given = empty((table.outputs, *stored), np.float32) if scores else None
        if undo.kept != undo.oriented:
            _fill(labels, values[0])
            if given is not None:
                for index, one in enumerate(given):
                    _fill(one, 1.0 if index == 0 and not table.regions else 0.0)
        return OutputBuffer(labels.transpose(back), values, undo, None if given is None else given.transpose(back))

    def look_again(self) -> None:
        """Set `found` anew, after labels were changed in place."""
        parts = blocks(as_stored(self.labels[0]))
        self.found = any(bool((part != self.values[0]).any()) for part in parts)

    def put(self, box: Box, winners: NDArray[np.uint8], scores: Sequence[NDArray[np.float32]]) -> None:
        """Take a box of the kept part (see `Undo`).

        Args:
            winners: `(*box.shape)` class indices.
            scores: `(*box.shape)` for each class; only looked at where probabilities are collected.
        """
        self.found = self.found or bool(winners.any())
        self.undo.kept_part(self.labels)[0][box.slices] = self.values[winners]
        release(self.labels)
        if self.probabilities is not None:
            kept = self.undo.kept_part(self.probabilities)
            for index, one in enumerate(scores):
                kept[index][box.slices] = one
            release(self.probabilities)


def _fill(array: NDArray[Any], value: float) -> None:
    for block in blocks(array):
        block[...] = value
