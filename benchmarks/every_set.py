"""Train every labelled data set of a folder with one command each, and put scores and curves side by side.

    python benchmarks/every_set.py DATA --minutes 10 --work FOLDER [--only NAME,NAME] [-o benchmarks/figures]

For each folder of DATA that holds labels: `medunet train DATA/NAME -o FOLDER/NAME --minutes M`, with no other option.
Sets that are refused are named with the message. Sets already trained in FOLDER are not trained again, so a run that
was stopped goes on. Written are a table (Markdown, on the terminal) and, with -o, `every_set.png`: the validation curve
of each set over the minutes.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from medunet.config import load_config


@dataclass(frozen=True)
class Trained:
    """What became of one set: the whole command's seconds, mean Dice of held-out cases, and the curve of it."""

    name: str
    network: str
    steps: int
    seconds: float
    dice: dict[str, float]
    curve: list[tuple[float, float]]

    @property
    def mean(self) -> float:
        known = [value for value in self.dice.values() if not math.isnan(value)]
        return math.fsum(known) / len(known) if known else math.nan


def train(dataset: Path, run: Path, minutes: float) -> str | None:
    """Train unless it is done; the last line of the output where it fails."""
    clock = run.with_suffix(".seconds")
    if clock.exists():
        return None
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "medunet", "train", str(dataset), "-o", str(run), "--minutes", f"{minutes:g}",
         "--overwrite"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    run.with_suffix(".log").write_text(done.stdout + done.stderr)
    if done.returncode:
        return next((line for line in done.stderr.splitlines() if "error" in line), f"exit code {done.returncode}")
    clock.write_text(f"{time.monotonic() - started:.1f}")
    return None


def read(name: str, run: Path) -> Trained:
    config = load_config(run / "config.yaml").config
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    curve = [(float(r["minutes"]), float(r["validation_dice"])) for r in rows if r["validation_dice"]]
    scores = json.loads((run / "validation" / "scores.json").read_text())
    means = {label: told["statistics"].get("dice", {}).get("mean") for label, told in scores["labels"].items()}
    dice = {label: math.nan if mean is None else float(mean) for label, mean in means.items()}
    size = "×".join(str(n) for n in config.patches.size)
    network = f"{config.network.dimensions}-D, {config.network.channels[0]} channels, patch {size}"
    seconds = float(run.with_suffix(".seconds").read_text())
    return Trained(name, network, int(rows[-1]["step"]), seconds, dice, curve)


def table(found: list[Trained], refused: dict[str, str]) -> str:
    lines = [
        "| set | planned network | steps | whole command | mean Dice, held out | by label |",
        "|---|---|--:|--:|--:|---|",
    ]
    for one in found:
        ordered = sorted(one.dice.items(), key=lambda item: -math.inf if math.isnan(item[1]) else item[1])
        shown = ordered if len(ordered) <= 6 else [ordered[0], ordered[len(ordered) // 2], ordered[-1]]
        by_label = ", ".join(f"{label} {value:.3f}" for label, value in shown)
        by_label += f" (worst, median, best of {len(ordered)})" if len(ordered) > 6 else ""
        lines.append(
            f"| {one.name} | {one.network} | {one.steps} | {one.seconds:.0f} s | {one.mean:.3f} | {by_label} |"
        )
    return "\n".join([*lines, *(f"| {name} | refused: {reason} | | | | |" for name, reason in refused.items())])


def plot(found: list[Trained], target: Path) -> None:
    from matplotlib.figure import Figure

    columns = 4
    rows = math.ceil(len(found) / columns)
    figure = Figure(figsize=(3 * columns, 2.2 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
    for ax, one in zip(axes, found, strict=False):
        ax.plot([m for m, _ in one.curve], [d for _, d in one.curve], color="#2f6f9f", marker=".", markersize=3)
        ax.axhline(one.mean, color="#b0562c", linewidth=0.8, linestyle="--")
        ax.set_title(f"{one.name}  {one.mean:.3f}", fontsize=8)
        ax.set_ylim(0, 1)
        ax.tick_params(labelsize=7)
        ax.grid(color="#dde3e8", linewidth=0.6)
    for ax in axes[len(found) :]:
        ax.set_visible(False)
    figure.supxlabel("minutes", fontsize=8)
    figure.supylabel("validation Dice (dashed: held-out cases at the end, on their own grids)", fontsize=8)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", help="names of sets, with commas")
    parser.add_argument("-o", "--output", type=Path, help="folder for every_set.png")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    names = options.only.split(",") if options.only else sorted(p.name for p in options.data.iterdir() if p.is_dir())
    found, refused = [], {}
    for name in names:
        if not any((options.data / name / labels).is_dir() for labels in ("labels", "labelsTr")):
            continue
        reason = train(options.data / name, options.work / name, options.minutes)
        if reason is None:
            found.append(read(name, options.work / name))
            print(f"{name}: mean Dice {found[-1].mean:.3f}", file=sys.stderr, flush=True)
        else:
            refused[name] = reason.removeprefix("medunet: error: ")
            print(f"{name}: {reason}", file=sys.stderr, flush=True)
    print(table(found, refused))
    if options.output and found:
        plot(found, options.output / "every_set.png")


if __name__ == "__main__":
    main()
