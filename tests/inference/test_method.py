"""The choice of the way, case by case."""

from __future__ import annotations

import pytest

from medunet.errors import ConfigError
from medunet.inference.method import Request, choose_method
from medunet.networks.settings import UNetSettings

PADDED, UNPADDED = True, False
INSTANCE = UNetSettings(norm="instance").inexact_reason


@pytest.mark.parametrize(
    ("padded", "reason", "request_", "way", "exact", "said"),
    [
        (PADDED, None, "auto", "stream", True, "streamed"),
        (PADDED, None, "exact", "stream", True, "streamed"),
        (PADDED, None, "blend", "blend", False, "asked for"),
        (PADDED, INSTANCE, "auto", "blend", False, "instance norm takes its statistics over the tile"),
        (PADDED, "down.norm takes statistics over the scan", "auto", "blend", False, "down.norm takes"),
        (UNPADDED, None, "auto", "stream", True, "mirrored"),
        (UNPADDED, None, "exact", "stream", True, "mirrored"),
        (UNPADDED, INSTANCE, "auto", "tiles", False, "instance norm"),
    ],
)
def test_the_choice(padded: bool, reason: str | None, request_: Request, way: str, exact: bool, said: str) -> None:
    method = choose_method(padded, reason, request_)
    assert (method.way, method.exact) == (way, exact)
    assert said in method.reason


@pytest.mark.parametrize(
    ("padded", "reason", "request_", "message"),
    [
        (PADDED, INSTANCE, "exact", "instance norm.*use --method auto or blend"),
        (UNPADDED, None, "blend", "unpadded network"),
        (UNPADDED, INSTANCE, "exact", "instance norm.*use --method auto$"),
    ],
)
def test_what_cannot_be_had_is_refused(padded: bool, reason: str | None, request_: Request, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose_method(padded, reason, request_)
