"""Plots of scores and of training, drawn with matplotlib's Agg canvas and no global state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, nan
from typing import TYPE_CHECKING

import numpy as np

from medunet.report.colours import label_colours
from medunet.report.pictures import figure_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK = "#1d2730"
_GRID = "#dde3e8"
_FEW_ROWS = 24
_FEW_CURVES = 12


@dataclass(frozen=True)
class ScorePanel:
    """The values of one measure, for a strip plot.

    Attributes:
        title: the measure and its unit.
        values: by label, one number per case.
        failed: by label, how many structures were missed or invented; they are not among `values`.
        bounded: true if the measure lies between 0 and 1, with 1 the best; failures are then drawn at 0, else at the
            right edge, since a distance to nothing has no place on the axis.
    """

    title: str
    values: Mapping[str, Sequence[float]]
    failed: Mapping[str, int] = field(default_factory=dict)
    bounded: bool = True


@dataclass(frozen=True)
class EpochRecord:
    """One line of a run's `metrics.csv`.

    Attributes:
        dice: validation Dice by label; empty in epochs without validation.
        patches_per_second: of the training steps; NaN where it was not measured.
    """

    epoch: int
    loss: float
    learning_rate: float
    dice: Mapping[str, float] = field(default_factory=dict)
    patches_per_second: float = nan


def score_plot(panels: Sequence[ScorePanel]) -> bytes:
    """A PNG with one panel per measure and one row per label: every case a dot, with quartiles and median behind.

    Labels run downwards in the order of the first panel.
    """
    from matplotlib.figure import Figure

    names = list(panels[0].values)
    # A hundred labels stay within three screens.
    many = len(names) > _FEW_ROWS
    figure = Figure(figsize=(9.0, 0.9 + max((0.2 if many else 0.34) * len(names), 0.9)), facecolor="white")
    figure.set_layout_engine("constrained", wspace=0.05)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, panel in zip(axes, panels, strict=True):
        _draw_panel(ax, panel, names)
    shown = [_shown(name) for name in names]
    axes[0].set_yticks(range(len(names)), shown, fontsize=7 if many else 8.5, color=_INK)
    axes[0].set_ylim(len(names) - 0.4, -0.6)
    return figure_png(figure, dpi=160)


def _draw_panel(ax: Axes, panel: ScorePanel, names: Sequence[str]) -> None:
    shown = [value for name in names for value in panel.values.get(name, ()) if isfinite(value)]
    edge = 1.0 if panel.bounded else 1.08 * max(shown, default=1.0) or 1.0
    failures = any(panel.failed.values())
    low = -0.03 if failures else max(0.0, min([*shown, 0.9]) - 0.03)
    low, high = (low, 1.01) if panel.bounded else (0.0, 1.04 * edge)
    for row, (name, colour) in enumerate(zip(names, label_colours(len(names)), strict=True)):
        _draw_strip(ax, row, [v for v in panel.values.get(name, ()) if isfinite(v)], colour)
        if panel.failed.get(name):
            place = 0.0 if panel.bounded else edge
            ax.plot(place, row, marker="X", color="#c0262d", markersize=7, clip_on=False, zorder=5)
            ax.annotate(
                f"{panel.failed[name]}", (place, row), xytext=(7 if panel.bounded else -7, 0), color="#c0262d",
                textcoords="offset points", fontsize=7.5, va="center", ha="left" if panel.bounded else "right",
            )  # fmt: skip
    ax.set_xlim(low, high)
    ax.set_title(panel.title + ("  (✕ missed or invented)" if failures else ""), fontsize=9.5, color=_INK, loc="left")
    _plain_axes(ax)


def _draw_strip(ax: Axes, row: int, values: Sequence[float], colour: str) -> None:
    if not values:
        return
    first, median, third = np.percentile(values, (25, 50, 75))
    if len(values) > 2:
        ax.barh(row, third - first, left=first, height=0.56, color=colour, alpha=0.28, linewidth=0)
        ax.plot([median, median], [row - 0.28, row + 0.28], color=_INK, linewidth=1.6, solid_capstyle="butt")
    # A fixed pattern of offsets, so that the same scores give the same picture.
    offsets = ((np.arange(len(values)) * 0.618034) % 1 - 0.5) * 0.42
    ax.scatter(
        values, row + offsets, s=16, color=colour, edgecolor=_INK, linewidth=0.45, alpha=0.9, zorder=3, clip_on=False
    )


def curves_plot(epochs: Sequence[EpochRecord]) -> bytes:
    """A PNG with loss, learning rate and speed, and the validation Dice of each label, against the epoch."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9.0, 4.0), facecolor="white")
    figure.set_layout_engine("constrained")
    grid = figure.add_gridspec(3, 2, height_ratios=(3, 1, 1))
    places = (grid[0, 0], grid[1, 0], grid[2, 0], grid[:, 1])
    loss, rate, speed, dice = (figure.add_subplot(place) for place in places)
    at = [record.epoch for record in epochs]
    marker = "o" if len(epochs) == 1 else ""
    loss.plot(at, [record.loss for record in epochs], color="#2f6fb3", linewidth=1.5, marker=marker)
    rate.plot(at, [record.learning_rate for record in epochs], color="#77838e", linewidth=1.3, marker=marker)
    speed.plot(at, [record.patches_per_second for record in epochs], color="#77838e", linewidth=1.3, marker=marker)
    labels = _draw_dice(dice, epochs)
    # Many labels would be a legend larger than the plot, so the page names their colours.
    title = f"Validation Dice of {labels} labels, their mean in black" if labels > _FEW_CURVES else "Validation Dice"
    titles = ("Training loss", "Learning rate", "Patches per second", title)
    for ax, text in zip((loss, rate, speed, dice), titles, strict=True):
        ax.set_title(text, fontsize=9.5, color=_INK, loc="left")
        _plain_axes(ax)
        ax.set_xlim(min(at, default=0) - 0.5, max(at, default=0) + 0.5)
        ax.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    for ax in (speed, dice):
        ax.set_xlabel("epoch", fontsize=8, color=_INK)
    for ax in (loss, rate):
        ax.tick_params(labelbottom=False)
    for ax in (rate, speed):
        ax.set_ylim(bottom=0)
    return figure_png(figure, dpi=160)


def _draw_dice(ax: Axes, epochs: Sequence[EpochRecord]) -> int:
    """One curve per label and, for several, their mean; returns how many labels there are."""
    validated = [record for record in epochs if record.dice]
    names = list(dict.fromkeys(name for record in validated for name in record.dice))
    few = len(names) <= _FEW_CURVES
    wide, marker = (1.4, "o" if len(validated) < 30 else "") if few else (0.7, "")
    for name, colour in zip(names, label_colours(len(names)), strict=True):
        points = [(record.epoch, record.dice[name]) for record in validated if name in record.dice]
        label = _shown(name, 20)
        ax.plot(*zip(*points, strict=True), color=colour, linewidth=wide, marker=marker, markersize=3, label=label)
    if len(names) > 1:
        means = [_mean(record.dice.values()) for record in validated]
        ax.plot([record.epoch for record in validated], means, color=_INK, linewidth=2.0, label="mean")
    if names and few:
        # Below, where it hides no curve.
        ax.legend(
            fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(-0.02, -0.13), ncols=3, borderaxespad=0.2
        )
    ax.set_ylim(0, 1)
    return len(names)


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if isfinite(value)]
    return sum(known) / len(known) if known else nan


def _plain_axes(ax: Axes) -> None:
    ax.grid(axis="both" if len(ax.lines) else "x", color=_GRID, linewidth=0.7)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=8, colors=_INK, length=0)
    ax.spines[:].set_visible(False)


def _shown(name: str, most: int = 28) -> str:
    """A short name; matplotlib reads $…$ as mathematics and hides legend entries that begin with an underscore."""
    name = name if len(name) <= most else name[: most - 1] + "…"
    return name.replace("$", r"\$").lstrip("_") or "unnamed"
