"""TensorBoard texts: a run's plan, hyper-parameters and final scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isnan
from typing import Any

from medunet.config import Config, to_plain
from medunet.evaluation.objects_boundaries import OBJECT_SCORES, FurtherScores
from medunet.evaluation.scorecard import Scorecard, shown_unit
from medunet.metrics.case import MEASURES, Measure

_HYPER_PARAMETERS = (
    "network.architecture",
    "network.dimensions", "network.channels", "network.norm", "network.dropout", "network.deep_supervision",
    "patches.size", "patches.batch", "patches.oversample", "loss.kind", "optimiser.kind", "optimiser.rate",
    "optimiser.weight_decay", "schedule.kind", "training.ema", "training.precision", "training.seed", "data.fold",
)  # fmt: skip
_KEYS = ("dice", "iou", "surface_dice", "hausdorff95", "mean_surface_distance")
_FINAL = tuple(measure for measure in MEASURES if measure.key in _KEYS)


def plan_notes(config: str) -> str:
    """The comments of a planned config as a Markdown list, each with the key and value it explains.

    Args:
        config: YAML as `config.annotated_yaml` writes it: comments stand above their key.

    Returns:
        First the config's header; empty where there is no comment.
    """
    lines: list[str] = []
    notes: list[str] = []
    path: list[str] = []
    for line in config.splitlines():
        text = line.strip()
        if text.startswith("#"):
            notes.append(text.lstrip("# "))
        elif text and not text.startswith("-"):
            name, _, value = text.partition(":")
            path = [*path[: (len(line) - len(line.lstrip())) // 2], name]
            if notes and not lines and len(path) == 1:
                lines.append(" ".join(notes) + "\n")
            elif notes:
                stated = f" = `{value.strip()}`" if value.strip() else ""
                lines.append(f"- **{'.'.join(path)}**{stated}: {' '.join(notes)}")
            notes = []
    return "\n".join(lines)


def hyper_parameters(config: Config) -> dict[str, float | str]:
    """The settings that distinguish trainings, by dotted key; the same keys and types for every config."""
    plain = to_plain(config)
    values = {key: _scalar(_at(plain, key)) for key in _HYPER_PARAMETERS}
    values["optimiser.rate"] = config.optimiser.highest_rate
    minutes, training = config.training.minutes, config.training
    length = f"{training.epochs} x {training.iterations} steps" if minutes is None else f"{minutes:g} minutes"
    return {"length": length, **values}


def _at(plain: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key; None for a setting that this architecture does not have."""
    for name in key.split("."):
        plain = plain.get(name)  # type: ignore[assignment]
    return plain


def _scalar(value: Any) -> float | str:
    """Numbers unchanged, and text for values that TensorBoard has no column for."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    return " ".join(str(v) for v in value) if isinstance(value, (list, tuple)) else str(value).lower()


def final_scores(card: Scorecard) -> dict[str, float]:
    """The means over all structures by tag, such as `final/Dice` and `final/HD95 (mm)`.

    Where objects were compared one by one, also their pooled scores, such as `final objects/AP50`.
    """
    scores = {f"final/{_titled(measure, card)}": card.summary.mean[measure.key] for measure in _FINAL}
    objects = _objects(card)
    if objects is not None:
        scores |= {f"final objects/{title}": objects.record["pooled"][key] for key, title in OBJECT_SCORES.items()}
    return scores


def _objects(card: Scorecard) -> FurtherScores | None:
    return next((scores for scores in card.further if scores.key == "objects"), None)


def score_markdown(card: Scorecard) -> str:
    """One row per structure with means over the cases, as a Markdown table; a second one of objects, if there are."""
    titles = ["label", "cases", *(_titled(measure, card) for measure in _FINAL)]
    rows = [titles, ["---"] * len(titles)]
    for label in card.summary.labels:
        means = [label.statistics[measure.key].mean for measure in _FINAL]
        cases = label.statistics[MEASURES[0].key].count
        rows.append([label.label.replace("|", "\\|"), str(cases), *map(_number, means)])
    objects = _objects(card)
    return _table(rows) if objects is None else f"{_table(rows)}\n\n{_table(_object_rows(objects))}"


def _object_rows(objects: FurtherScores) -> list[list[str]]:
    titles = ["objects", *OBJECT_SCORES.values()]
    found = (("pooled", objects.record["pooled"]), ("mean by image", objects.record["by_image"]))
    rows = [[name, *(_number(values[key]) for key in OBJECT_SCORES)] for name, values in found]
    return [titles, ["---"] * len(titles), *rows]


def _table(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _number(value: float) -> str:
    return "–" if isnan(value) else f"{value:.3f}"


def _titled(measure: Measure, card: Scorecard) -> str:
    return f"{measure.title} ({shown_unit(card.unit)})" if measure.is_distance else measure.title
