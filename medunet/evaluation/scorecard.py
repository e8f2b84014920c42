"""Scores as a scientist reads them: tables, a JSON record and a report page.

Where metrics and report meet; `evaluate` uses it for any tool's label maps, `train` for its validation cases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isnan
from typing import Any

from medunet.evaluation.objects_boundaries import FurtherScores, boundary_scores, object_scores, summary_row
from medunet.metrics.case import MEASURES, POLICY, CaseScores, LabelScores, Measure, measures
from medunet.metrics.summary import LabelSummary, Summary
from medunet.report.colours import label_colours
from medunet.report.objects import OBJECT_LEGEND, OBJECT_PICTURES
from medunet.report.page import Headline, Picture, Report, Section
from medunet.report.plots import EpochRecord, ScorePanel, curves_plot, score_plot
from medunet.report.table import Cell, Column, Spread, Table, cell_text
from medunet.version import __version__

_BY_KEY = {measure.key: measure for measure in MEASURES}
_DICE, _HD95 = _BY_KEY["dice"], _BY_KEY["hausdorff95"]
_MOST_DICE_COLUMNS = 6
_PAGE_MEASURES = (
    "iou", "surface_dice", "hausdorff95", "mean_surface_distance", "precision", "recall", "volume_similarity",
    "hausdorff",
)  # fmt: skip
_VOLUMES = ("reference_volume", "prediction_volume", "volume_difference", "relative_volume_difference")
_HOW_TO_READ = (
    "Solid and tinted: reference. Dashed: prediction. Medical scans in radiological convention: "
    "the patient's right is on the left."
)


@dataclass(frozen=True)
class Scorecard:
    """The scores of a set of cases with what one must know to read them.

    Attributes:
        unit: of distances: `mm`, `um`, `nm` or `pixel`.
        failed: cases that could not be scored, with the reason.
        notes: what was done to the label maps before scoring.
    """

    title: str
    cases: tuple[CaseScores, ...]
    summary: Summary
    unit: str
    failed: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def tolerance(self) -> str:
        """The tolerance of the surface Dice as text: `1 mm`, or a range where cases differ in voxel size."""
        found = sorted({case.tolerance for case in self.cases})
        shown = " to ".join(dict.fromkeys(f"{value:.3g}" for value in (found[:1] + found[-1:])))
        return f"{shown or '–'} {shown_unit(self.unit)}"

    @property
    def further(self) -> tuple[FurtherScores, ...]:
        """Scores of objects and of boundaries, if label maps were compared in these ways."""
        label = ", ".join(label.label for label in self.summary.labels)
        objects = {case.case: case.objects for case in self.cases if case.objects is not None}
        boundaries = {case.case: case.boundaries for case in self.cases if case.boundaries is not None}
        found = []
        if self.summary.objects is not None:
            found.append(object_scores(objects, self.summary.objects, label))
        if self.summary.boundaries is not None:
            found.append(boundary_scores(boundaries, self.summary.boundaries, label))
        return tuple(found)


def shown_unit(unit: str) -> str:
    """`um` as µm, `pixel` as px."""
    return {"um": "µm", "pixel": "px"}.get(unit, unit)


def score_table(card: Scorecard) -> Table:
    """One row per case and structure with every score: `scores.csv`. Volumes are in the unit cubed, 2-D squared."""
    unit = card.unit
    columns = [Column("case", "Case"), Column("label", "Label"), Column("outcome", "Outcome")]
    columns += [Column(f"{m.key}_{unit}" if m.is_distance else m.key, _titled(m, unit)) for m in measures()]
    columns += [
        Column(key, key)
        for key in (
            "reference_voxels", "prediction_voxels", "true_positives", "false_positives", "false_negatives", *_VOLUMES,
            "annotated_share",
        )
    ]  # fmt: skip
    further = card.further
    columns += [column for more in further for column in more.columns]
    rows = [
        (*_score_row(case.case, scores), case.annotated_share, *(c for more in further for c in more.cells[case.case]))
        for case in card.cases
        for scores in case.labels
    ]
    return Table(tuple(columns), tuple(rows))


def _score_row(case: str, scores: LabelScores) -> tuple[Cell, ...]:
    counts = scores.counts
    return (
        case, scores.label, scores.outcome, *(scores.value(measure) for measure in measures()),
        counts.reference, counts.prediction, *asdict(counts).values(), *(getattr(scores, key) for key in _VOLUMES),
    )  # fmt: skip


def label_table(card: Scorecard) -> Table:
    """One row per structure: means with standard deviations over cases, for the page."""
    columns = [
        Column("label", "Label"),
        Column("cases", "Cases", hint="in which the structure is present"),
        Column("dice", "Dice, mean ± SD", share=True),
        Column("median", "Median"),
        Column("worst", "Worst"),
        Column("worst_case", "in case"),
    ]
    others = [_BY_KEY[key] for key in _PAGE_MEASURES]
    columns += [_mean_column(m, card.unit) for m in others]
    columns += [
        Column("pooled_iou", "Pooled IoU", hint="of the voxel counts of all cases added up"),
        Column("missed", "Missed", hint="in the reference, not predicted"),
        Column("invented", "Invented", hint="predicted, not in the reference"),
        Column("absent", "Absent", hint="in neither; left out"),
    ]
    return Table(tuple(columns), tuple(_label_row(label, others) for label in card.summary.labels))


def summary_table(card: Scorecard) -> Table:
    """One row per structure and measure: mean, standard deviation, median and worst over cases, for the CSV file."""
    columns = [
        Column(key, key) for key in ("label", "measure", "cases", "mean", "deviation", "median", "worst", "worst_case")
    ]
    rows = [
        summary_row(label.label, key, found) for label in card.summary.labels for key, found in label.statistics.items()
    ]
    rows += [row for more in card.further for row in more.summary]
    return Table(tuple(columns), tuple(rows))


def _label_row(label: LabelSummary, others: Sequence[Measure]) -> tuple[Cell, ...]:
    dice = label.statistics[_DICE.key]
    spreads = [label.statistics[m.key] for m in others]
    return (
        label.label, dice.count, Spread(dice.mean, dice.deviation), dice.median, dice.worst, dice.worst_case,
        *(Spread(s.mean, s.deviation) for s in spreads), label.pooled.iou,
        label.outcomes["missed"], label.outcomes["invented"], label.outcomes["absent"],
    )  # fmt: skip


def case_table(card: Scorecard) -> Table:
    """One row per case: means over its structures, and each structure's Dice where there are few."""
    names = [label.label for label in card.summary.labels]
    shown = names if 1 < len(names) <= _MOST_DICE_COLUMNS else []
    means = [_BY_KEY[key] for key in ("iou", "surface_dice", "hausdorff95", "mean_surface_distance")]
    columns = [Column("case", "Case"), Column("dice", "Dice", share=True)]
    columns += [Column(f"dice_{name}", f"Dice {name}") for name in shown]
    columns += [_mean_column(m, card.unit) for m in means]
    columns += [
        Column("pixel_accuracy", "Pixel accuracy"),
        Column("lowest", "Lowest"),
        Column("failures", "Missed or invented"),
    ]
    rows = []
    for case in card.cases:
        dice = {scores.label: scores.dice for scores in case.labels}
        rows.append(
            (
                case.case, case.mean(_DICE), *(dice[name] for name in shown), *(case.mean(m) for m in means),
                case.pixel_accuracy, _lowest(case), sum(s.outcome in ("missed", "invented") for s in case.labels),
            )
        )  # fmt: skip
    return Table(tuple(columns), tuple(rows))


def _lowest(case: CaseScores) -> str | None:
    present = [scores for scores in case.labels if scores.outcome != "absent"]
    return min(present, key=lambda scores: scores.dice).label if present else None


def _mean_column(measure: Measure, unit: str) -> Column:
    hint = measure.key.replace("_", " ")
    return Column(measure.key, _titled(measure, unit), digits=2 if measure.is_distance else 3, hint=hint)


def _titled(measure: Measure, unit: str) -> str:
    return f"{measure.title} ({shown_unit(unit)})" if measure.is_distance else measure.title


def score_record(card: Scorecard) -> dict[str, Any]:
    """Everything as plain values for `scores.json`; a score that does not exist (NaN) is None."""
    summary, further = card.summary, card.further
    record = {
        "title": card.title,
        "unit": card.unit,
        "definitions": [*POLICY, *(line for more in further for line in more.policy)],
        "notes": list(card.notes),
        "failed": dict(card.failed),
        "summary": {
            "mean": dict(summary.mean),
            "pooled_iou": summary.pooled_iou,
            "pixel_accuracy": summary.pixel_accuracy,
            "pixel_error": 1 - summary.pixel_accuracy,
            "annotated_share": summary.annotated_share,
            "worst_case": summary.worst_case,
            "median_case": summary.median_case,
            "best_case": summary.best_case,
            **{more.key: more.record for more in further},
        },
        "labels": {label.label: _label_record(label) for label in summary.labels},
        "cases": {
            case.case: {**_case_record(case), **{more.key: more.case_records[case.case] for more in further}}
            for case in card.cases
        },
    }
    found: dict[str, Any] = _without_nan(record)
    return found


def _label_record(label: LabelSummary) -> dict[str, Any]:
    return {
        "outcomes": dict(label.outcomes),
        "pooled_iou": label.pooled.iou,
        "pooled_dice": label.pooled.dice,
        "statistics": {key: asdict(statistics) for key, statistics in label.statistics.items()},
    }


def _case_record(case: CaseScores) -> dict[str, Any]:
    return {
        "pixel_accuracy": case.pixel_accuracy,
        "tolerance": case.tolerance,
        "annotated_share": case.annotated_share,
        "mean": {measure.key: case.mean(measure) for measure in measures()},
        "labels": {
            scores.label: {
                "outcome": scores.outcome,
                **{measure.key: scores.value(measure) for measure in measures()},
                **asdict(scores.counts),
                **{key: getattr(scores, key) for key in _VOLUMES},
            }
            for scores in case.labels
        },
    }


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and isnan(value) else value


def score_report(card: Scorecard, pictures: Sequence[Picture] = (), epochs: Sequence[EpochRecord] = ()) -> Report:
    """The page of an evaluation or of a training run.

    Args:
        pictures: of single cases, the most telling first.
        epochs: the run's history, for its curves.
    """
    further = card.further
    sections = []
    if pictures:
        how_to_read, legend = _picture_words(card)
        sections.append(Section("Cases in pictures", (how_to_read,), legend, tuple(pictures)))
    if epochs:
        curves = Picture("Training", "loss, learning rate and validation Dice by epoch", curves_plot(epochs))
        sections.append(Section("Training", pictures=(curves,)))
    sections += [more.section for more in further]
    if card.cases:
        strips = (_strips(card),) if len(card.cases) > 1 else ()
        sections.append(Section("Labels", pictures=strips, tables=(label_table(card),)))
        how = "Means over the structures of a case. Click a heading to sort."
        sections.append(Section(f"Cases ({len(card.cases)})", (how,), tables=(case_table(card),)))
    tolerance = f"The tolerance of the surface Dice is {card.tolerance}."
    defined = (*POLICY, tolerance, *(line for more in further for line in more.policy))
    sections.append(Section("How these numbers are defined", defined, folded=True))
    footer = f"Made by medunet {__version__}. This page holds all its pictures and needs no network."
    headlines = (*(headline for more in further for headline in more.headlines), *_headlines(card))
    return Report(card.title, _subtitle(card), headlines, tuple(sections), _warnings(card), footer)


def _picture_words(card: Scorecard) -> tuple[str, tuple[tuple[str, str], ...]]:
    """An explanation of the pictures, and their legend."""
    if card.summary.objects is not None:
        return OBJECT_PICTURES, OBJECT_LEGEND
    names = [label.label for label in card.summary.labels]
    return _HOW_TO_READ, tuple(zip(names, label_colours(len(names)), strict=True))


def _strips(card: Scorecard) -> Picture:
    panels = []
    for measure in (_DICE, _HD95):
        values: dict[str, list[float]] = {label.label: [] for label in card.summary.labels}
        for case in card.cases:
            for scores in case.labels:
                if scores.outcome == "compared":
                    values[scores.label].append(scores.value(measure))
        failed = {n.label: n.outcomes["missed"] + n.outcomes["invented"] for n in card.summary.labels}
        panels.append(ScorePanel(_titled(measure, card.unit), values, failed, bounded=not measure.is_distance))
    return Picture("Each case a dot", "box: quartiles, line: median", score_plot(panels))


def summary_lines(card: Scorecard) -> list[str]:
    """The scores as lines of text for a terminal: the means, one line per structure, then what was not scored."""
    mean, unit = card.summary.mean, shown_unit(card.unit)
    lines = [
        _subtitle(card),
        *(line for more in card.further for line in more.lines),
        f"mean Dice {cell_text(mean['dice'])}, IoU {cell_text(mean['iou'])}, HD95 {cell_text(mean['hausdorff95'], 2)} "
        f"{unit}, surface Dice {cell_text(mean['surface_dice'])} (within {card.tolerance})",
    ]
    wide = max((len(label.label) for label in card.summary.labels), default=0)
    lines += [f"  {label.label:<{wide}}  {_label_line(label, unit)}" for label in card.summary.labels]
    lines += list(_warnings(card))
    return lines


def _label_line(label: LabelSummary, unit: str) -> str:
    dice, far = label.statistics["dice"], label.statistics["hausdorff95"]
    if not dice.count:
        return "absent everywhere"
    text = f"Dice {cell_text(Spread(dice.mean, dice.deviation))}"
    if dice.count > 1:
        text += f", worst {dice.worst:.3f} ({dice.worst_case})"
    text += f", HD95 {far.mean:.2f} {unit}"
    failures = [f"{label.outcomes[kind]} {kind}" for kind in ("missed", "invented") if label.outcomes[kind]]
    return ", ".join([text, *failures])


def _headlines(card: Scorecard) -> tuple[Headline, ...]:
    mean, unit = card.summary.mean, shown_unit(card.unit)
    missed = sum(label.outcomes["missed"] for label in card.summary.labels)
    invented = sum(label.outcomes["invented"] for label in card.summary.labels)
    single = len(card.summary.labels) == 1
    over = "over cases" if single else f"over {len(card.summary.labels)} labels"
    return (
        Headline("Mean Dice", cell_text(mean["dice"]), over),
        Headline("Mean IoU", cell_text(mean["iou"]), f"pooled voxels {cell_text(card.summary.pooled_iou)}"),
        Headline("Surface Dice", cell_text(mean["surface_dice"]), f"within {card.tolerance}"),
        Headline("HD95", f"{cell_text(mean['hausdorff95'], 2)} {unit}", "95 % of the surface lies nearer"),
        Headline("Pixel error", cell_text(1 - card.summary.pixel_accuracy, 4), "share of wrong voxels"),
        Headline("Missed structures", str(missed), f"{invented} invented", alarm=missed + invented > 0),
    )


def _subtitle(card: Scorecard) -> str:
    labels = [label.label for label in card.summary.labels]
    cases = "1 case" if len(card.cases) == 1 else f"{len(card.cases)} cases"
    share = card.summary.annotated_share
    annotated = f" · {_percent(share)} of the voxels annotated" if share < 1 else ""
    return f"{cases} · {_few(labels, 8)}{annotated}"


def _percent(share: float) -> str:
    """Never 100 % or 0 % where something is left out or in."""
    return "less than 0.1 %" if 0 < share < 0.001 else f"{min(round(100 * share, 1), 99.9):g} %"


def _warnings(card: Scorecard) -> tuple[str, ...]:
    lines = list(card.notes)
    if card.failed:
        cases = "1 case was" if len(card.failed) == 1 else f"{len(card.failed)} cases were"
        lines.append(f"{cases} not scored and left out of all averages:")
        reasons: dict[str, list[str]] = {}
        for case, reason in card.failed.items():
            reasons.setdefault(reason, []).append(case)
        lines += [f"{_few(alike)}: {reason}" for reason, alike in reasons.items()]
    return tuple(lines)


def _few(names: list[str], most: int = 6) -> str:
    return ", ".join(names if len(names) <= most else [*names[: most - 1], f"… ({len(names)} in all)"])
