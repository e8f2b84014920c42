"""Identity of a run: the settings and data that a resumed run must share with the one it goes on with."""

from __future__ import annotations

import json
from typing import Any

from medunet.config import differences, to_plain
from medunet.errors import ConfigError
from medunet.training.setup import Setup


def run_identity(setup: Setup) -> str:
    """The identity as JSON: network, data, split, patches and optimiser.

    The number of processes is not part of it, nor are settings that may change in between: length, schedule, highest
    rate, loss, augmentation, decay of the averaged weights, validation.
    """
    config = setup.config
    identity: dict[str, Any] = {
        "network": config.network, "preprocess": config.preprocess, "patches": config.patches,
        "optimiser": config.optimiser.kind, "averaged": bool(config.training.ema), "seed": config.training.seed,
        "iterations": config.training.iterations, "labels": setup.labels,
        "learned": [case.name for case in setup.training_cases], "held_out": [case.name for case in setup.held],
        "part": None if setup.inside is None else [setup.inside.number, setup.inside.count],
    }  # fmt: skip
    if setup.instances is not None and setup.instances.target != "foreground":
        identity["instances"] = setup.instances
    return json.dumps(to_plain(identity))


def require_same_run(identity: str, setup: Setup) -> None:
    """Refuse to resume with another network, data, split or optimiser: held-out cases would become training cases.

    Args:
        identity: `run_identity` of the run that was stopped, as its checkpoint has it.

    Raises:
        ConfigError: naming what differs.
    """
    before = json.loads(identity)
    before["network"].setdefault("architecture", "unet")  # runs that were stopped before there were others
    changed = differences(before, json.loads(run_identity(setup)))
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise ConfigError(
            f"{setup.folder}: cannot be resumed, because since it was stopped {'; '.join(changed[:3])}{more}\n"
            "resume with the run's own settings and data, or start a new run in another folder"
        )
