"""Row rules: the rows of its input that an operator reads along one axis, and the rows that it gives.

Integers only. Output row o of an operator reads input rows ``floor((o * step + low) / per)`` to
``floor((o * step + high) / per)``; rows before the first and behind the last are what the operator pads with.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

Count = TypeVar("Count", int, NDArray[np.int64])


@dataclass(frozen=True)
class Reach:
    """The rows that each output row reads."""

    step: int = 1
    per: int = 1
    low: int = 0
    high: int = 0

    def first(self, row: Count) -> Count:
        """The first input row that an output row reads; may lie before the input."""
        return (row * self.step + self.low) // self.per

    def last(self, row: Count) -> Count:
        return (row * self.step + self.high) // self.per

    def made(self, known: Count) -> Count:
        """Output rows that can be made of the first `known` input rows, as if the input did not end."""
        return (known * self.per - self.high - 1) // self.step + 1

    def mirrored(self, length: int, made: int) -> Reach:
        """The same operator on a mirrored input of `length` rows, whose output of `made` rows is mirrored too."""
        turned = (length - 1) * self.per - (made - 1) * self.step + self.per - 1
        return Reach(self.step, self.per, turned - self.high, turned - self.low)


IDENTITY = Reach()


class Rule(Protocol):
    """The rule of one operator along one axis."""

    def length(self, rows: int) -> int:
        """Output rows of a complete input."""
        ...

    def reach(self, rows: int) -> Reach:
        """The reach for an input of so many rows."""
        ...


@dataclass(frozen=True)
class Same:
    """Voxel by voxel."""

    def length(self, rows: int) -> int:
        return rows

    def reach(self, rows: int) -> Reach:
        return IDENTITY


@dataclass(frozen=True)
class Sliding:
    """A convolution or a pooling."""

    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    ceil: bool = False

    @property
    def span(self) -> int:
        """Distance of the first and the last row that one output row reads."""
        return self.dilation * (self.kernel - 1)

    def length(self, rows: int) -> int:
        room = rows + 2 * self.padding - self.span - 1
        count = room // self.stride + 1
        if self.ceil and room % self.stride and count * self.stride < rows + self.padding:
            count += 1
        return count

    def reach(self, rows: int) -> Reach:
        return Reach(self.stride, 1, -self.padding, self.span - self.padding)


@dataclass(frozen=True)
class Transposed:
    """A transposed convolution."""

    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    more: int = 0

    def length(self, rows: int) -> int:
        return (rows - 1) * self.stride - 2 * self.padding + self.dilation * (self.kernel - 1) + self.more + 1

    def reach(self, rows: int) -> Reach:
        low = self.padding - self.dilation * (self.kernel - 1) + self.stride - 1
        return Reach(1, self.stride, low, self.padding)


@dataclass(frozen=True)
class Edged:
    """Rows added (or, below 0, cut off) at both ends; `reflect` and `replicate` fill them with rows of the input."""

    before: int
    after: int
    mode: str = "constant"

    def length(self, rows: int) -> int:
        return rows + self.before + self.after

    def reach(self, rows: int) -> Reach:
        before, after = (max(self.before, 0), max(self.after, 0)) if self.mode == "reflect" else (0, 0)
        return Reach(low=-self.before - 2 * after, high=-self.before + 2 * before)

    def sources(self, rows: int) -> NDArray[np.int64]:
        """The input row of each output row."""
        found = np.arange(self.length(rows)) - self.before
        if self.mode == "reflect":
            found = np.abs(found)
            return np.minimum(found, 2 * (rows - 1) - found)
        return np.clip(found, 0, rows - 1)


@dataclass(frozen=True)
class Resized:
    """Interpolation by a factor.

    Attributes:
        factor: output rows for one input row.
        mode: `nearest`, `nearest-exact` or `linear`.
        scale: what the network states; None where it stated a size.
        aligned: corners are aligned.
    """

    factor: Fraction
    mode: str
    scale: float | None = None
    aligned: bool = False

    def length(self, rows: int) -> int:
        return int(rows * self.factor)

    def reach(self, rows: int) -> Reach:
        made, factor = self.length(rows), self.factor.numerator
        if self.factor == 1:
            return IDENTITY
        if self.factor.denominator == 1 and self.mode == "nearest-exact":  # its positions lie between whole numbers
            return Reach(1, factor)
        if self.factor.denominator == 1 and factor & (factor - 1) == 0 and not self.aligned:  # positions are exact
            return Reach(2, 2 * factor, 1 - factor, 1 + factor) if self.mode == "linear" else Reach(1, factor)
        inner, outer = (rows - 1, made - 1) if self.aligned else (rows, made)
        if rows == 1 or outer < 1:
            return Reach(1, max(made, 1))
        # One row more on either side: the position is rounded in single precision.
        return Reach(inner, outer, -2 * outer, 2 * outer)

    def positions(self, rows: int, double: bool = False) -> NDArray[np.floating[Any]]:
        """The position in the input of each output row, in the arithmetic of torch for maps of that precision."""
        real: Any = np.float64 if double else np.float32
        made, half = self.length(rows), real(0.5)
        index: NDArray[np.floating[Any]] = np.arange(made).astype(real)
        if self.aligned:
            aligned: NDArray[np.floating[Any]] = index * real((rows - 1) / (made - 1) if made > 1 else 0)
            return aligned
        scale = real(1) / real(self.scale) if self.scale else real(rows) / real(made)
        found: NDArray[np.floating[Any]] = (index + (real(0) if self.mode == "nearest" else half)) * scale
        found = found - half if self.mode == "linear" else np.floor(found)
        return found.clip(real(0), real(rows - 1))
