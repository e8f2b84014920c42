"""Names that a config or a model file may say: written lists, names registered from Python, and plain arguments.

A file never names code. A name in a file is found in a list that is written down in this package, or was registered
by the Python program that runs; its arguments are numbers, words and lists, checked here against what the list allows.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from typing import Any, Generic, TypeAlias, TypeVar

from medunet.errors import ConfigError, LocatedError

Where: TypeAlias = tuple[str | int, ...]
"""The place of a value in a config, such as ``("augment", "monai", 0, "prob")``."""

T = TypeVar("T")


class Kind(Enum):
    """The plain data that an argument takes."""

    FLAG = "true or false"
    WHOLE = "a whole number"
    NUMBER = "a number"
    SHARE = "a number from 0 to 1"
    PAIR = "a number, or two numbers from low to high"
    WHOLES = "a whole number or a list of them"
    NUMBERS = "a number, or a list of numbers (or of such lists)"


Allowed: TypeAlias = Mapping[str, Kind | tuple[str, ...]]
"""The arguments that a list allows, each with its kind, or with the words it is chosen from."""


def find_name(where: Where, name: object, known: Iterable[str], what: str, call: str = "") -> str:
    """The name itself.

    Args:
        call: the function that registers such names; empty where none does.

    Raises:
        LocatedError: it is not known; the message names the nearest known ones.
    """
    names = list(known)
    if isinstance(name, str) and name in names:
        return name
    near = difflib.get_close_matches(str(name), names, n=2)
    advice = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(names)}"
    own = (
        f"\nif it is your own, the program must call {call}({name!r}, …) first"
        if call and str(name).isidentifier()
        else ""
    )
    raise LocatedError(f"{what} {name} is unknown; {advice}{own}".lstrip(), where)


def check_arguments(where: Where, given: Mapping[str, Any], allowed: Allowed, owner: str) -> dict[str, Any]:
    """Arguments as Python takes them: lists become tuples.

    Args:
        where: the place of the mapping that holds them.
        owner: the name of what they belong to.

    Raises:
        LocatedError: an argument is unknown, or its value is of another kind.
    """
    for name, value in given.items():
        find_name((*where, name), name, allowed, f"the argument of {owner}")
        kind = allowed[name]
        if not (value in kind if isinstance(kind, tuple) else _FITS[kind](value)):
            expected = f"one of {', '.join(kind)}" if isinstance(kind, tuple) else kind.value
            raise LocatedError(f"found {value!r}, expected {expected}", (*where, name))
    return {name: as_tuples(value) for name, value in given.items()}


def build_located(where: Where, build: Callable[..., T], arguments: Mapping[str, Any], owner: str) -> T:
    """What `build` makes of the arguments; its refusal is placed at the argument without which it would not refuse.

    Raises:
        LocatedError: it refuses them.
    """
    try:
        return build(**arguments)
    except Exception as error:
        # A library raises errors of many kinds for wrong arguments.
        at = next((name for name in arguments if _builds(build, arguments, name)), None)
        place = where if at is None else (*where, at)
        found = "" if at is None else f"found {arguments[at]!r}; "
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise LocatedError(f"{found}{owner} refuses it: {reason}", place) from error


def _builds(build: Callable[..., Any], arguments: Mapping[str, Any], without: str) -> bool:
    try:
        build(**{name: value for name, value in arguments.items() if name != without})
    except Exception:
        return False
    return True


class Registered(Generic[T]):
    """Names that a Python program registered, each with what belongs to it.

    Args:
        call: the function that registers, for messages, such as `medunet.register_loss`.
    """

    def __init__(self, call: str) -> None:
        self.call = call
        self._found: dict[str, T] = {}

    def add(self, name: str, value: T, reserved: Iterable[str] = ()) -> None:
        """Register a name.

        Args:
            reserved: the names that the package has itself.

        Raises:
            ConfigError: it is no plain word, or exists already.
        """
        if not name.isidentifier():
            raise ConfigError(f"{self.call}: {name!r} is no name; take letters, digits and underscores, such as my_own")
        if name in self._found or name in set(reserved):
            raise ConfigError(f"{self.call}: the name {name!r} exists already; take another one")
        self._found[name] = value

    def get(self, name: object) -> T | None:
        return self._found.get(name) if isinstance(name, str) else None

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def remove(self, name: str) -> None:
        """Forget a name; a name that is not there stays away."""
        self._found.pop(name, None)


def as_tuples(value: Any) -> Any:
    """The value with tuples in place of its lists."""
    return tuple(as_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_pair(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return len(value) == 2 and all(map(_is_number, value)) and value[0] <= value[1]
    return _is_number(value)


def _are_wholes(value: Any) -> bool:
    return all(map(_is_whole, value)) if isinstance(value, (list, tuple)) and value else _is_whole(value)


def _are_numbers(value: Any) -> bool:
    return all(map(_are_numbers, value)) if isinstance(value, (list, tuple)) and value else _is_number(value)


_FITS: dict[Kind, Callable[[Any], bool]] = {
    Kind.FLAG: lambda value: isinstance(value, bool),
    Kind.WHOLE: _is_whole,
    Kind.NUMBER: _is_number,
    Kind.SHARE: lambda value: _is_number(value) and 0 <= value <= 1,
    Kind.PAIR: _is_pair,
    Kind.WHOLES: _are_wholes,
    Kind.NUMBERS: _are_numbers,
}
