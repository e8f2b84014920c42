"""Progress of long work: a bar on a terminal, plain lines where there is none."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Iterable
from typing import TextIO, TypeVar

from tqdm import tqdm

from medunet.system.wording import duration

_REFRESH = 0.1
"""Seconds between two pictures of the bar."""


Item = TypeVar("Item")


def progress(items: Iterable[Item], unit: str) -> Iterable[Item]:
    """The items, counted by a bar on a terminal."""
    return tqdm(items, unit=unit, disable=None, leave=False)


class ProgressLine:
    """A bar with loss, speed and time left on a terminal; a plain line now and then where there is none.

    Progress is a share of the whole between 0 and 1, because a run may be measured in minutes rather than steps.

    Args:
        title: first word of every line.
        seconds_between_lines: where there is no terminal.
        clock: seconds that never run backwards.
        stream: where to; None is standard error.
    """

    def __init__(
        self,
        title: str,
        seconds_between_lines: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        stream: TextIO | None = None,
    ) -> None:
        self._stream = stream or sys.stderr
        # The text stands where tqdm has its description: its postfix begins with a comma.
        self._bar = tqdm(
            total=1000, disable=not self._stream.isatty(), leave=False, file=self._stream, dynamic_ncols=True,
            bar_format=title + " {percentage:3.0f} %|{bar:10}| {desc}",
        )  # fmt: skip
        self._title, self._pause, self._clock = title, seconds_between_lines, clock
        self._shown = not self._bar.disable
        self._last = clock() if not self._shown else -math.inf

    def update(self, share: float, text: str, left: float | None = None) -> None:
        """Show where the work is.

        Args:
            left: seconds until all is done, where that is known.
        """
        text += "" if left is None else f", {duration(left)} left"
        now = self._clock()
        if now - self._last < (_REFRESH if self._shown else self._pause):
            return
        self._last = now
        if self._shown:
            self._bar.n = round(1000 * share)
            self._bar.set_description_str(text)
        else:
            print(f"{self._title} {100 * share:3.0f} %  {text}", file=self._stream, flush=True)

    def say(self, text: str) -> None:
        """A line that stays, above the bar."""
        tqdm.write(text, file=self._stream)

    def close(self) -> None:
        self._bar.close()


class Quiet(ProgressLine):
    """A progress line that shows nothing, for all processes but the first, and for programs."""

    def __init__(self) -> None:
        pass

    def update(self, share: float, text: str, left: float | None = None) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


class Logged(Quiet):
    """A progress line for programs: notes go to the logger `medunet`, which says nothing unless it is asked to."""

    def say(self, text: str) -> None:
        logging.getLogger("medunet").info(text)
