"""Which rate a resumed run goes on with, and when there is nothing left to go on for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from medunet.config import Config, TrainingSettings
from medunet.errors import ConfigError
from medunet.learning.loop import TrainState
from medunet.learning.schedules import Joint, ScheduleSettings
from medunet.training.timetable import clock_of, course_notes, joint_of

EPOCHS = Config(training=TrainingSettings(epochs=10, iterations=20))
MINUTES = Config(training=TrainingSettings(minutes=10))


def state(step: int, seconds: float = 0.0) -> TrainState:
    network = torch.nn.Linear(1, 1)
    return TrainState(network, torch.optim.SGD(network.parameters(), 0.1), None, step=step, elapsed=seconds, rate=0.07)


def joint(config: Config, before: Config, now: TrainState, old: Joint | None = None) -> Joint | None:
    clock = replace(clock_of(config, now, 0.0), clock=lambda: 0.0)
    return joint_of(config, now, clock, course_notes(before, old))


def test_a_run_of_the_same_length_stays_on_its_course() -> None:
    assert joint(EPOCHS, EPOCHS, state(50)) is None
    assert joint(EPOCHS, EPOCHS, state(200)) is None
    assert joint(EPOCHS, EPOCHS, state(50), Joint(0.2, 0.01)) == Joint(0.2, 0.01)


@pytest.mark.parametrize(
    "changed",
    [
        replace(EPOCHS, training=replace(EPOCHS.training, epochs=5)),
        replace(EPOCHS, schedule=ScheduleSettings("poly")),
        replace(EPOCHS, optimiser=replace(EPOCHS.optimiser, rate=1.0)),
    ],
)
def test_another_length_schedule_or_rate_is_joined_where_the_run_is(changed: Config) -> None:
    share = 50 / (changed.training.epochs * 20)
    assert joint(changed, EPOCHS, state(50)) == Joint(share, 0.07)
    assert joint(changed, EPOCHS, state(50), Joint(0.1, 0.01)) == Joint(share, 0.07)
    assert joint(changed, EPOCHS, state(0)) is None, "nothing was learned yet"


def test_minutes_pass_while_a_run_is_started_so_it_joins_anew() -> None:
    found = joint(MINUTES, MINUTES, state(50, seconds=270), Joint(0.2, 0.01))
    assert found == Joint(pytest.approx(270 / (60 * 9)), 0.07)
    known = replace(state(50, seconds=300), reserve=2.0)
    assert joint(MINUTES, MINUTES, known) == Joint(pytest.approx(300 / (60 * 8)), 0.07)
    assert joint(EPOCHS, MINUTES, state(50)) == Joint(0.25, 0.07)


def test_less_than_was_done_is_refused() -> None:
    joint(EPOCHS, EPOCHS, state(200))
    with pytest.raises(ConfigError, match=r"epochs is 10, but this run has done 10\.05 already"):
        joint(EPOCHS, EPOCHS, state(201))
    joint(MINUTES, MINUTES, state(5, seconds=700))
    with pytest.raises(ConfigError, match=r"minutes is 10, but this run has taken 11\.7 already"):
        joint(MINUTES, EPOCHS, state(5, seconds=700))
