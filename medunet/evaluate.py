"""The story of `medunet evaluate`: label maps of any tool are paired with references, checked and scored.

No network runs here. `medunet.metrics.case.POLICY` says what a missing structure scores.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from medunet.evaluation.files import REPORT, outputs, write_evaluation
from medunet.evaluation.indices import label_table
from medunet.evaluation.pairs import Pair, Source, declaration_beside, label_folder, named_pairs, pair_by_stem
from medunet.evaluation.scorecard import summary_lines
from medunet.evaluation.scoring import score_pairs
from medunet.evaluation.settings import EvaluateSettings, Evaluation, Track
from medunet.formats.omezarr.nodes import is_zarr
from medunet.system.files import check_free
from medunet.system.progress import progress


def evaluate_folders(
    predictions: Path, references: Path, settings: EvaluateSettings | None = None, track: Track = iter
) -> Evaluation:
    """Score a folder of predictions (or one file) against a folder of references (or one file), paired by stem.

    References without a prediction are named in `Evaluation.failed`, predictions without a reference in a note.

    Args:
        predictions: label files; with `EvaluateSettings.stack` also folders of sections, likewise of references.
        references: a folder of label files, or a data set with `labels/` or `labelsTr/`, whose images are shown in the
            report's pictures.

    Raises:
        DataError: nothing to pair, or not one pair could be scored.
    """
    settings = settings or EvaluateSettings()
    folder = label_folder(references)
    declared = declaration_beside(folder if folder.is_dir() and not is_zarr(folder) else folder.parent)
    labels, annotation = settings.labels or declared.labels, declared.annotation
    stack = settings.stack or declared.stack
    pairs, missing, notes = pair_by_stem(predictions, folder, stack, settings.axes)
    size = declared.size
    pairs = [replace(pair, axes=settings.axes, annotation=annotation.of(pair.case), size=size) for pair in pairs]
    evaluation = evaluate_pairs(pairs, replace(settings, labels=labels), track)
    failed = {**evaluation.failed, **dict.fromkeys(missing, "no prediction of this name")}
    card = replace(evaluation.card, failed=failed, notes=(*evaluation.card.notes, *notes))
    return replace(evaluation, card=card)


def evaluate_pairs(
    pairs: Iterable[Pair | tuple[Source, Source]], settings: EvaluateSettings | None = None, track: Track = iter
) -> Evaluation:
    """Score pairs of label maps. A case that cannot be scored is named in `Evaluation.failed` and stops no other.

    Args:
        pairs: `Pair` records, or plain (prediction, reference) tuples, which are named after the reference's file.

    Raises:
        DataError: no pair, two cases of one name, or not one pair could be scored.
    """
    settings = settings or EvaluateSettings()
    named = named_pairs(pairs)
    labels = label_table(named, settings)
    card = score_pairs(track(named), labels, settings)
    return Evaluation(card, labels, {pair.case: pair for pair in named if pair.case not in card.failed})


def evaluate_command(
    predictions: Path,
    references: Path,
    output: Path | None,
    json_path: Path | None,
    settings: EvaluateSettings,
    overwrite: bool,
) -> tuple[list[str], bool]:
    """Score two folders, write the files that are asked for, and describe the result.

    Returns:
        The lines to print, and true if a case failed.
    """
    for path in outputs(output, json_path):
        check_free(path, overwrite)

    evaluation = evaluate_folders(predictions, references, settings, lambda pairs: progress(pairs, "case"))
    write_evaluation(evaluation, output, json_path, overwrite)
    written = [] if output is None else [f"report: {output / REPORT}"]
    return [*summary_lines(evaluation.card), *written], bool(evaluation.failed)
