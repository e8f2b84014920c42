"""Methods of inference: the way that a scan goes through a network, and the reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from medunet.errors import ConfigError

Request = Literal["auto", "exact", "blend"]
Way = Literal["stream", "tiles", "blend"]


@dataclass(frozen=True)
class Method:
    """The way chosen.

    Attributes:
        way: ``stream`` (`stream`), ``tiles`` (`overlap_tile`) or ``blend`` (`blended_windows`).
        exact: whether the result is that of one pass over the whole scan.
        reason: for the record and the progress line.
    """

    way: Way
    exact: bool
    reason: str


def choose_method(padded: bool, inexact_reason: str | None, request: Request = "auto") -> Method:
    """Choose streaming, overlapping tiles or blended windows.

    Args:
        padded: whether the network keeps the size.
        inexact_reason: why it cannot be exact; None where it can.

    Raises:
        ConfigError: exactness was asked for and cannot be had, or blending of an unpadded network.
    """
    if request == "blend":
        if not padded:
            raise ConfigError(
                "blending was asked for, but an unpadded network answers for less than a window; use --method auto"
            )
        return Method("blend", False, "blending was asked for")
    if inexact_reason is None:
        scan = "scan" if padded else "mirrored scan"
        return Method("stream", True, f"streamed: what one pass over the whole {scan} gives, in bounded memory")
    if request == "exact":
        other = " or blend" if padded else ""
        raise ConfigError(f"an exact result was asked for, but {inexact_reason}; use --method auto{other}")
    return Method("blend" if padded else "tiles", False, inexact_reason)
