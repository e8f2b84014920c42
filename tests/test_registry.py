"""Registry: names from written lists, plain arguments, and refusals that are placed where they belong."""

from __future__ import annotations

import math
import pickle
from typing import Any

import pytest

from medunet.errors import ConfigError, LocatedError
from medunet.registry import Kind, Registered, build_located, check_arguments, find_name


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (Kind.FLAG, [True, False], [1, "yes", None]),
        (Kind.WHOLE, [0, -3], [True, 1.0, "1"]),
        (Kind.NUMBER, [0, 1.5], [math.nan, math.inf, True, "1", [1]]),
        (Kind.SHARE, [0, 0.5, 1], [-0.1, 1.1, None]),
        (Kind.PAIR, [1, [0, 1], (0.5, 0.5)], [[1, 0], [1], [1, 2, 3], ["a", "b"], []]),
        (Kind.WHOLES, [1, [1, 2]], [[1.0], [], [True]]),
        (Kind.NUMBERS, [1, [1, 2.0], [[0, 1], [2, 3]]], [[], [[]], ["1"], {"a": 1}]),
        (("mean", "sum"), ["mean"], ["Mean", 1, None]),
    ],
)
def test_each_kind_takes_its_values_and_no_others(kind: Any, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        assert check_arguments(("a",), {"x": value}, {"x": kind}, "it").keys() == {"x"}
    for value in bad:
        with pytest.raises(LocatedError, match=r"a\[0\].x: found"):
            check_arguments(("a", 0), {"x": value}, {"x": kind}, "it")


def test_lists_become_tuples() -> None:
    assert check_arguments((), {"x": [[1, 2], [3, 4]]}, {"x": Kind.NUMBERS}, "it") == {"x": ((1, 2), (3, 4))}


def test_a_refusal_is_placed_at_the_argument_that_causes_it() -> None:
    def build(a: int = 0, b: int = 0) -> int:
        if b < 0:
            raise RuntimeError("b is below 0\nand more")
        if a > 5:
            raise TypeError("too large")
        return a + b

    assert build_located(("s",), build, {"a": 1, "b": 2}, "it") == 3
    with pytest.raises(LocatedError, match=r"^s.b: found -1; it refuses it: b is below 0$"):
        build_located(("s",), build, {"a": 1, "b": -1}, "it")
    with pytest.raises(LocatedError, match=r"^s: it refuses it: b is below 0$"):
        build_located(("s",), build, {"a": 6, "b": -1}, "it")


def test_names_that_are_unknown_name_the_nearest() -> None:
    with pytest.raises(LocatedError, match="did you mean dice") as caught:
        find_name(("loss", "kind"), "dise", ["dice", "focal"], "the loss")
    assert caught.value.at == ("loss", "kind")
    with pytest.raises(LocatedError, match="known are dice, focal"):
        find_name(("loss", "kind"), None, ["dice", "focal"], "the loss")


def test_a_located_error_survives_pickling() -> None:
    error = LocatedError("wrong", ("a", 1))
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 (made here)
    assert str(again) == str(error) == "a[1]: wrong" and isinstance(again, ConfigError)


def test_names_are_registered_once_and_found_again() -> None:
    names: Registered[int] = Registered("medunet.register_it")
    names.add("mine", 3)
    assert names.get("mine") == 3 and names.get("other") is None and names.get([1]) is None and list(names) == ["mine"]
    for name in ("mine", "taken"):
        with pytest.raises(ConfigError, match=f"medunet.register_it: the name '{name}' exists already"):
            names.add(name, 4, ["taken"])
    for name in ("", "a.b", "a b", "1a"):
        with pytest.raises(ConfigError, match="is no name"):
            names.add(name, 4, ["taken"])
    names.remove("mine")
    assert names.get("mine") is None
