"""The command line: options become settings, one verb is called, errors become exit codes.

Only click is imported here; each command imports what it needs, so that `medunet --help` answers at once.
"""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import click

from medunet.errors import MedunetError, is_out_of_memory
from medunet.version import __version__

INTERRUPTED, TERMINATED = 130, 143


class _Terminated(BaseException):
    """SIGTERM arrived; unwinds the stack so that half-written files are removed."""


class MemorySize(click.ParamType[int]):
    """A number of bytes such as 4G, 500M or 4GiB; suffixes are powers of 1024."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        from medunet.system.wording import parse_bytes

        try:
            return parse_bytes(value)
        except MedunetError as error:
            self.fail(str(error), param, ctx)


class FoldNumber(click.ParamType[int | str]):
    """A number from 0 on, all, or none."""

    name = "K|all|none"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        text = str(value).strip().lower()
        if text in ("all", "none"):
            return text
        if not re.fullmatch(r"\d{1,4}", text):
            self.fail(f"{value!r} is no fold; write a number from 0 on, all, or none", param, ctx)
        return int(text)


_PATH = click.Path(path_type=Path)
_DEVICE = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
_MINUTES = click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="Wall time to fit into.")
_FRAME = click.option("--frame", type=click.IntRange(min=1), help="Which time point of a TIFF or OME-Zarr, from 1 on.")
_STACK = click.option("--stack", is_flag=True, help="A folder of PNG, JPEG or TIFF sections is one 3-D scan.")
_AXES = click.option("--axes", help="Axes of TIFF files and Zarr arrays that do not state them, such as ZYX.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="medunet")
@click.option("--debug", is_flag=True, help="Show a traceback with an error.")
def cli(debug: bool) -> None:
    """From a folder of scans to a trained U-Net, segmentations and scores.

    \b
    medunet train DATASET -o RUN              learn from images/ and labels/
    medunet predict RUN SCAN... -o OUTPUT     segment scans on their own grid
    medunet evaluate OUTPUT LABELS -o SCORES  scores, pictures, report.html
    """


@cli.command()
@click.option("-o", "--output", type=_PATH, default=Path("demo"), show_default=True, help="Folder for the results.")
@click.option("--overwrite", is_flag=True, help="Replace the results of an earlier demo.")
def demo(output: Path, overwrite: bool) -> None:
    """Train on one hemisphere of a real MRI, segment the other, show scores and pictures."""
    from medunet.demo import run_demo

    run_demo(output, overwrite)


@cli.command()
@click.argument("paths", nargs=-1, required=True, type=_PATH, metavar="PATH...")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_AXES
@_FRAME
@_STACK
def inspect(paths: tuple[Path, ...], as_json: bool, axes: str | None, frame: int | None, stack: bool) -> int:
    """Show what is in scans and data sets, and what is wrong with them."""
    from medunet.inspect import as_text, inspect_path

    findings = [inspect_path(path, axes, frame, stack) for path in paths]
    click.echo(json.dumps(findings, indent=2) if as_json else "\n\n".join(as_text(f) for f in findings))
    return 1 if any(finding["problems"] for finding in findings) else 0


@cli.command()
@click.argument("dataset", type=_PATH)
@click.option("-o", "--output", type=_PATH, required=True, help="The config to write.")
@click.option(
    "--memory", type=MemorySize(), help="Memory the training may use (default: three quarters of what is free)."
)
@_MINUTES
@click.option(
    "--dimensions",
    type=click.IntRange(2, 3),
    help="A network of slices (2) or of volumes (3), whatever the plan would choose; make both configs, train both "
    "with the same --fold, and take the one with the higher validation Dice.",
)
@_DEVICE
@_AXES
@click.option("--overwrite", is_flag=True, help="Replace an existing config.")
def plan(dataset: Path, output: Path, axes: str | None, overwrite: bool, **budget: Any) -> None:
    """Measure a data set and write a complete, commented config for it."""
    from medunet.plan_training import write_plan
    from medunet.planning.budget import Budget

    click.echo(write_plan(dataset, output, Budget.of(**budget), axes, overwrite))


@cli.command()
@click.argument("source", type=_PATH, metavar="CONFIG.yaml|DATASET", required=False)
@click.option("-o", "--output", type=_PATH, required=True, help="The run's folder.")
@click.option(
    "--fold",
    type=FoldNumber(),
    help="Which part of the cases is held out (of data.folds, 5); all trains every fold, one after the other, scores "
    "every case by the fold that held it out, and leaves one ensemble for predict; none learns from all cases, and "
    "scores nothing.",
)
@click.option(
    "--resume", is_flag=True, help="Go on where the run in this folder stopped; with --fold all, skip finished folds."
)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    help="Wall time to fit into; with --fold all, of all trainings together, split evenly (scoring comes on top).",
)
@click.option("--init", metavar="MODEL", help="Start with a trained model's weights, where they fit.")
@_DEVICE
@click.option("--set", "overrides", multiple=True, metavar="key.path=value", help="Change one value of the config.")
@click.option("--overwrite", is_flag=True, help="Replace an existing run.")
def train(
    source: Path | None,
    output: Path,
    fold: int | str | None,
    resume: bool,
    minutes: float | None,
    init: str | None,
    device: str,
    overrides: tuple[str, ...],
    overwrite: bool,
) -> int:
    """Train a network. With a DATASET, the config is planned first; with --resume, the run's own is taken.

    \b
    Longer than it was:  medunet train -o RUN --resume --set training.epochs=200   (or --minutes 30; in all)
    On several GPUs:     torchrun --nproc-per-node 2 -m medunet train CONFIG.yaml -o RUN
    """
    started = time.monotonic()  # before the imports, which take seconds of the minutes that were given
    from medunet.training.run_folder import CONFIG_FILE, TrainRequest

    if source is None and not resume:
        raise click.UsageError("give a config or a data set; only --resume goes without")
    source = source or output / CONFIG_FILE
    if init is not None:
        if resume:
            raise click.UsageError("--init starts a new run, --resume goes on with one; give one of both")
        overrides += (f"training.init={json.dumps(init)}",)
    if fold == "all":
        from medunet.crossvalidate import cross_validate

        outcome = cross_validate(TrainRequest(source, output, overrides, device, resume, overwrite), minutes)
    else:
        from medunet.train_network import train_run

        if fold is not None:
            # A plan may have chosen a part to hold out, which there is not without parts.
            overrides += ("data.folds=0", "data.fold=0") if fold == "none" else (f"data.fold={fold}",)
        if minutes is not None:
            overrides += (f"training.minutes={minutes}",)
        outcome = train_run(TrainRequest(source, output, overrides, device, resume, overwrite, started))
    for line in outcome.lines:
        click.echo(line)
    return 128 + outcome.signal if outcome.signal else 0


@cli.command()
@click.argument("model")
@click.argument("inputs", nargs=-1, required=True, type=_PATH, metavar="INPUT...")
@click.option("-o", "--output", type=_PATH, required=True, help="A file for one input, a folder for several.")
@click.option("--memory", type=MemorySize(), default="4G", show_default=True, help="Memory the computation may use.")
@_DEVICE
@click.option("--probabilities", is_flag=True, help="Write the probabilities of all classes as well.")
@click.option(
    "--region-masks", is_flag=True, help="Write a mask of each region as well (CASE_REGION), as structures may overlap."
)
@click.option("--tta", is_flag=True, help="Average over mirrored versions of the scan.")
@click.option(
    "--tta-rotations",
    is_flag=True,
    help="Average over the scan turned by right angles, and mirrored (8 versions; of a volume in its slices' plane).",
)
@click.option("--method", type=click.Choice(["auto", "exact", "blend"]), default="auto", show_default=True)
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16"]), default="auto", show_default=True)
@_AXES
@_FRAME
@_STACK
@click.option(
    "--channel",
    "channels",
    multiple=True,
    metavar="NAME|INDEX",
    help="Which channel of a file to take, by name or index (from 0 on); once for each of the model's, in its order.",
)
@click.option("--overwrite", is_flag=True, help="Replace existing outputs.")
@click.option("--verify", is_flag=True, help="Compare on each scan with one plain pass and with blended windows.")
@click.option("--instances", is_flag=True, help="Number objects that touch each other apart: cells, nuclei, …")
@click.option(
    "--min-size",
    type=click.IntRange(min=0),
    metavar="VOXELS",
    help="With --instances: leave out objects of fewer voxels (otherwise the model decides; 0 keeps all sizes).",
)
@click.option("--fill-holes", is_flag=True, help="With --instances: fill what an object encloses.")
@click.option(
    "--drop-edge-objects", is_flag=True, help="With --instances: leave out objects that reach the scan's border."
)
@click.option(
    "--split",
    type=click.FloatRange(min=0, min_open=True),
    metavar="VOXELS",
    help="With --instances, for models that learned no borders or cores: cut objects at necks this much shallower.",
)
@click.option(
    "--table", is_flag=True, help="With --instances: write a CSV with each object's place, size and intensity."
)
@click.option("--rois", is_flag=True, help="With --instances: write the outlines as an ImageJ ROI set.")
@click.option("--no-postprocess", is_flag=True, help="Leave out the post-processing that cross-validation chose.")
@click.option("--record", type=_PATH, help="Write what was done, with which method and how long it took, as JSON.")
def predict(model: str, inputs: tuple[Path, ...], output: Path, record: Path | None, **options: Any) -> int:
    """Segment scans; every output lies on its scan's own grid."""
    from medunet.instances.table import ObjectFiles
    from medunet.predict import segment_files
    from medunet.prediction.outputs import PredictRequest
    from medunet.prediction.planning import PredictSettings

    settings = PredictSettings(
        options["method"], options["memory"], options["precision"], options["tta"],
        not options["no_postprocess"], options["tta_rotations"],
    )  # fmt: skip
    request = PredictRequest(
        inputs, output, options["device"], options["axes"], options["probabilities"], options["overwrite"], record,
        options["verify"], _object_rule(options), tuple(int(c) if c.isdigit() else c for c in options["channels"]),
        options["frame"], options["stack"], ObjectFiles(options["table"], options["rois"]), options["region_masks"],
    )  # fmt: skip
    summary = segment_files(model, request, settings)
    for line in summary.lines:
        click.echo(line)
    for error in summary.errors:
        click.echo(f"medunet: error: {error}", err=True)
    return 1 if summary.failed else 0


def _object_rule(options: dict[str, Any]) -> Any:
    """The rule that --instances and the options beside it give; None without it."""
    from medunet.instances.watershed import ObjectRule

    names = {"min_size": "--min-size", "fill_holes": "--fill-holes", "drop_edge_objects": "--drop-edge-objects",
             "split": "--split", "table": "--table", "rois": "--rois"}  # fmt: skip
    given = [option for name, option in names.items() if options[name] not in (None, False)]
    if given and not options["instances"]:
        raise click.UsageError(f"{', '.join(given)}: is about numbered objects; say --instances, too")
    if not options["instances"]:
        return None
    if options["region_masks"]:
        raise click.UsageError("--region-masks is about label maps; leave it or --instances out")
    return ObjectRule(options["min_size"], options["fill_holes"], options["drop_edge_objects"], options["split"])


@cli.command()
@click.argument("predictions", type=_PATH)
@click.argument("references", type=_PATH)
@click.option("-o", "--output", type=_PATH, help="Folder for scores.csv, scores.json and report.html.")
@click.option("--json", "json_path", type=_PATH, help="Write the scores as JSON to this file.")
@click.option(
    "--tolerance", type=float, help="Tolerance of the surface Dice, in the scans' unit (default 1 mm, or two pixels)."
)
@click.option(
    "--instances/--masks",
    default=None,
    help="Compare object ids one by one, or all objects as one mask (default: ids, where both sides hold them).",
)
@click.option(
    "--boundaries",
    is_flag=True,
    help="Compare membrane maps as partitions into cells: V_rand and V_info; by probabilities where they lie beside.",
)
@_AXES
@_STACK
@click.option("--overwrite", is_flag=True, help="Replace existing outputs.")
def evaluate(
    predictions: Path, references: Path, output: Path | None, json_path: Path | None, overwrite: bool, **given: Any
) -> int:
    """Score segmentations of any tool against references."""
    from medunet.evaluate import evaluate_command
    from medunet.evaluation.settings import EvaluateSettings

    settings = EvaluateSettings(**given)
    lines, failed = evaluate_command(predictions, references, output, json_path, settings, overwrite)
    for line in lines:
        click.echo(line)
    return 1 if failed else 0


@cli.command()
@click.argument("source", type=_PATH)
@click.option("-o", "--output", type=_PATH, required=True, help="The new folder; it must not exist yet.")
@click.option("--colours", type=_PATH, metavar="TABLE", help="What colours mean: text, CSV or JSON.")
@click.option("--masks", metavar="PATTERN", help="Which files are masks, such as '*_mask.png' or 'truth/*.png'.")
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0, max=255),
    default=0.0,
    metavar="D",
    help="Take the nearest class for colours up to this far from its own: the root mean square of the differences in "
    "red, green and blue (default 0: exact colours only).",
)
@click.option("--ignore", metavar="NAME", help="The class of the table that means: not annotated.")
@click.option("--instances", is_flag=True, help="Masks hold objects: each value, colour or mask file is one.")
@click.option("--connected", is_flag=True, help="With --instances: each connected part is an object of its own.")
@click.option("--background", metavar="'R G B'", help="With --instances: the background's colour (default 0 0 0).")
@click.option("--foreground", metavar="NAME", help="What black-and-white masks or objects show.")
@click.option("--to-colours", is_flag=True, help="The way back: label maps become RGB masks.")
@click.option("--link", is_flag=True, help="Hard-link files that stay as they are, in place of copying them.")
@click.option("--dry-run", is_flag=True, help="Read and check everything, list all pairs, write nothing.")
@_AXES
def convert(
    source: Path, output: Path, instances: bool, connected: bool, background: str | None, to_colours: bool, **given: Any
) -> None:
    """Make a data set of images/, labels/ and dataset.json from a folder in another form.

    \b
    Colour masks:   medunet convert CAMVID -o DATASET --colours Labels.txt --ignore Unlabelled
    One folder:     medunet convert CELLS -o DATASET        cell.tif with cell_mask.tif; shows the pairs
    Objects:        medunet convert NUCLEI -o DATASET --instances
    Structures:     medunet convert SCANS -o DATASET        labels/CASE/liver.nii.gz, …; they may overlap
    Channels:       medunet convert BRATS -o DATASET        CASE/CASE_t1.nii.gz, …_t2, …_flair with …_seg
    And back:       medunet convert DATASET -o COLOURS --to-colours

    Recognised are images/ with masks/ (and similar names), images and masks in one folder (*_mask, *_seg, *_label,
    *_gt, mask_*, …), the Cell Tracking Challenge (01/ with 01_GT/SEG/), the Data Science Bowl (one folder per image,
    one mask per nucleus), one binary mask per structure: labels/CASE/liver.nii.gz, CASE/segmentations/liver.nii.gz,
    or a channel each, and one folder per case with a file per channel (t1, t2, flair, ct, pet, …), as BraTS has it.
    Masks may be RGB, palette, black and white (0 and 255) or label values.
    A colour TABLE has lines `R G B name` or `name R G B`, or is JSON: {"name": [R, G, B]}. Images are taken byte by
    byte; a colour that means nothing is refused with its count, and then nothing is written.
    """
    from medunet.conversion.meaning import ConvertRequest, ObjectSettings, as_code
    from medunet.convert import convert

    if (connected or background) and not instances:
        raise click.UsageError("--connected and --background are about objects; say --instances as well")
    objects = ObjectSettings(connected, as_code(background)) if instances else None
    request = ConvertRequest(source, output, objects=objects, **given)
    if to_colours:
        from medunet.conversion.recolour import recolour

        recolour(request, click.echo)
    else:
        convert(request, click.echo)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code: 0, 1 (error), 2 (usage), 130 or 143 (interrupted)."""
    debug = "--debug" in arguments
    try:
        code = cli.main([a for a in arguments if a != "--debug"], prog_name="medunet", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("medunet: interrupted; finished outputs are kept, nothing half-written is left", err=True)
        return INTERRUPTED
    except click.ClickException as error:
        error.show()
        return 2
    except (MedunetError, MemoryError, OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        if debug:
            traceback.print_exc()
        click.echo(f"medunet: error: {_message(error)}", err=True)
        return 1
    except _Terminated:
        click.echo("medunet: terminated; finished outputs are kept, nothing half-written is left", err=True)
        return TERMINATED


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and not isinstance(error, MedunetError):
        name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else "file"
        return f"{name or 'file'}: {error.strerror or error}; check that it exists and may be read or written"
    if is_out_of_memory(error):
        reason = (str(error).splitlines() or ["no size known"])[0]
        return (
            f"out of memory ({reason})\nuse a smaller --memory, patch or batch, another --device, or a larger machine"
        )
    return str(error)


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise _Terminated


def wait_passively(environment: MutableMapping[str, str]) -> None:
    """Let threads sleep at OpenMP's barriers, unless the user has chosen otherwise; before torch is loaded.

    They spin by default. On a machine that does anything else, each barrier then waits for the thread that lost its
    core: docs/guides/python.md says more.
    """
    if not any(name in environment for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")):
        environment["OMP_WAIT_POLICY"] = "PASSIVE"


def main() -> None:
    """The entry point."""
    wait_passively(os.environ)
    signal.signal(signal.SIGTERM, _terminate)
    code = run(sys.argv[1:])
    # At its end the interpreter looks for garbage among all that torch and others made, which took seconds.
    gc.freeze()
    sys.exit(code)
