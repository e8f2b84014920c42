"""Which way a scan goes through a network, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from medunet.errors import ConfigError
from medunet.geometry.shapes import UNetShape

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


@dataclass(frozen=True)
class Candidate:
    """What the choice depends on.

    Attributes:
        shape: the network's size arithmetic; None for a network of others.
        inexact_reason: why its tiles cannot be exact; None where they can.
        stream_bytes: memory that streaming the scan needs; 0 where it cannot be streamed.
        memory_limit: what there is.
    """

    shape: UNetShape | None
    inexact_reason: str | None
    stream_bytes: int
    memory_limit: int


def choose_method(candidate: Candidate, request: Request = "auto") -> Method:
    """Choose streaming, overlapping tiles or blended windows.

    Raises:
        ConfigError: exactness was asked for and cannot be had, or blending of an unpadded network.
    """
    if candidate.shape is not None and not candidate.shape.padded:
        return _unpadded(candidate, request)
    if request == "blend":
        return Method("blend", False, "blending was asked for")
    obstacle = _obstacle(candidate)
    if obstacle is None:
        return Method("stream", True, "streamed: what one pass over the whole scan gives, in bounded memory")
    if request == "exact":
        raise ConfigError(f"an exact result was asked for, but {obstacle}; use --method auto or blend")
    return Method("blend", False, obstacle)


def _unpadded(candidate: Candidate, request: Request) -> Method:
    """Unpadded networks are streamed or go by tiles: their answer is smaller than any window."""
    if request == "blend":
        raise ConfigError("blending was asked for, but an unpadded network answers for less than a window; use auto")
    if candidate.inexact_reason is None and candidate.stream_bytes <= candidate.memory_limit:
        return Method("stream", True, "streamed: what one pass over the whole mirrored scan gives, in bounded memory")
    if candidate.inexact_reason is None:
        return Method("tiles", True, "an unpadded network's tiles on its own grid repeat one pass over the whole scan")
    if request == "exact":
        raise ConfigError(f"an exact result was asked for, but {candidate.inexact_reason}; use --method auto")
    return Method("tiles", False, candidate.inexact_reason)


def _obstacle(candidate: Candidate) -> str | None:
    """Why a padded network cannot be streamed."""
    if candidate.shape is None:
        return "the network is not medunet's own, so its grid is unknown"
    if candidate.inexact_reason is not None:
        return candidate.inexact_reason
    if candidate.stream_bytes > candidate.memory_limit:
        need, have = candidate.stream_bytes / 2**30, candidate.memory_limit / 2**30
        return f"streaming this scan needs about {need:.1f} GiB and {have:.1f} GiB are allowed"
    return None
