"""The errors that medunet raises on purpose.

Each message names the file or case, what was found, what was expected, and what to do, in one to three lines.
`cli.py` is the only place that turns them into `medunet: error: …` and an exit code.

    MedunetError
    ├── ConfigError   a config file or an option                 (also a ValueError)
    │   └── LocatedError  the same, at a place in the config
    ├── DataError     a scan, a label file or a data set         (also a ValueError)
    ├── ModelError    a model file or a run folder               (also a ValueError)
    ├── OutputError   something could not or must not be written (also an OSError)
    └── MissingExtra  an optional dependency is not installed    (also an ImportError)
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import ParamSpec, TypeVar

Asked = ParamSpec("Asked")
Answer = TypeVar("Answer")


class MedunetError(Exception):
    """Base of all errors that a user can act on."""


class ConfigError(MedunetError, ValueError):
    """A config file or an option says something that cannot be."""


class LocatedError(ConfigError):
    """A wrong value at a place in a config, such as ``("augment", "monai", 0, "prob")``; the message begins with it."""

    def __init__(self, message: str, at: tuple[str | int, ...] = ()) -> None:
        self.at = at
        super().__init__(f"{dotted(at)}: {message}" if at else message)


def dotted(at: tuple[str | int, ...]) -> str:
    """A place in a config as text, such as `augment.monai[0].prob`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in at).lstrip(".")


class DataError(MedunetError, ValueError):
    """A scan, label file or data set is broken, ambiguous or contradicts itself."""


class ModelError(MedunetError, ValueError):
    """A file is not a model of ours, is damaged, or does not fit what is asked of it."""


class OutputError(MedunetError, OSError):
    """An output exists already, collides with another, or cannot be written."""


def is_out_of_memory(error: BaseException) -> bool:
    """True for an error of memory that ran out: Python's, PyTorch's on a GPU, or its plain RuntimeError on the CPU."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "not enough memory" in text)
    )


class MissingExtra(MedunetError, ImportError):
    """An optional dependency is missing; the message says what to install."""


def in_python(function: Callable[Asked, Answer]) -> Callable[Asked, Answer]:
    """The function with errors in Python's terms: `device` for `--device`."""

    @functools.wraps(function)
    def called(*args: Asked.args, **kwargs: Asked.kwargs) -> Answer:
        try:
            return function(*args, **kwargs)
        except MedunetError as error:
            said = str(error).replace("--set", "overrides")
            said = re.sub(r"(?<!\w)--([a-z][a-z-]*)", lambda found: found[1].replace("-", "_"), said)
            raise type(error)(said) from error

    return called
