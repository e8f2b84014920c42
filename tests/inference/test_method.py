"""The choice of the way, case by case."""

from __future__ import annotations

from dataclasses import replace

import pytest

from medunet.errors import ConfigError
from medunet.inference.method import Candidate, Request, choose_method
from medunet.networks.unet import UNetSettings

GIB = 2**30
PADDED, UNPADDED = UNetSettings().shape, UNetSettings(padded=False).shape
FITS = Candidate(PADDED, None, 1 * GIB, 4 * GIB)
LARGE = replace(FITS, stream_bytes=9 * GIB)
INSTANCE = replace(FITS, inexact_reason=UNetSettings(norm="instance").inexact_reason)
FOREIGN = replace(FITS, shape=None)
TILES = replace(LARGE, shape=UNPADDED)
UNPADDED_INSTANCE = replace(INSTANCE, shape=UNPADDED)


@pytest.mark.parametrize(
    ("candidate", "request_", "way", "exact", "reason"),
    [
        (FITS, "auto", "stream", True, "streamed"),
        (FITS, "exact", "stream", True, "streamed"),
        (FITS, "blend", "blend", False, "asked for"),
        (LARGE, "auto", "blend", False, "needs about 9.0 GiB and 4.0 GiB are allowed"),
        (INSTANCE, "auto", "blend", False, "instance norm takes its statistics over the tile"),
        (FOREIGN, "auto", "blend", False, "not medunet's own"),
        (replace(FITS, shape=UNPADDED), "auto", "stream", True, "mirrored"),
        (TILES, "auto", "tiles", True, "own grid"),
        (TILES, "exact", "tiles", True, "own grid"),
        (UNPADDED_INSTANCE, "auto", "tiles", False, "instance norm"),
    ],
)
def test_the_choice(candidate: Candidate, request_: Request, way: str, exact: bool, reason: str) -> None:
    method = choose_method(candidate, request_)
    assert (method.way, method.exact) == (way, exact)
    assert reason in method.reason


@pytest.mark.parametrize(
    ("candidate", "request_", "message"),
    [
        (LARGE, "exact", "needs about 9.0 GiB"),
        (INSTANCE, "exact", "instance norm"),
        (FOREIGN, "exact", "not medunet's own"),
        (TILES, "blend", "unpadded network"),
        (UNPADDED_INSTANCE, "exact", "instance norm"),
    ],
)
def test_what_cannot_be_had_is_refused(candidate: Candidate, request_: Request, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose_method(candidate, request_)
