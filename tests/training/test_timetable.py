"""A run's time: what is over and left, when to validate, and the rate that a resumed run goes on with."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medunet.config import Config, TrainingSettings
from medunet.errors import ConfigError
from medunet.learning.checkpoint import Checkpoint
from medunet.learning.distributed import ALONE
from medunet.learning.schedules import ResumePoint, ScheduleSettings
from medunet.training.timetable import Timetable, length_and_schedule

EPOCHS = Config(training=TrainingSettings(epochs=10, iterations=20))
MINUTES = Config(training=TrainingSettings(minutes=10))


@dataclass
class Clock:
    """Seconds that pass when told."""

    now: float = 500.0

    def __call__(self) -> float:
        return self.now


def checkpoint(
    before: Config, step: int, seconds: float = 0.0, reserve: float | None = None, point: ResumePoint | None = None
) -> Checkpoint:
    notes = {"course": length_and_schedule(before), "joint": None if point is None else [point.progress, point.rate]}
    return Checkpoint({"step": step, "rate": 0.07, "elapsed": seconds, "reserve": reserve, "notes": notes})


def point(config: Config, found: Checkpoint) -> ResumePoint | None:
    return Timetable(config, 0.0, found, clock=lambda: 0.0).resumed


def lasting(minutes: float, clock: Clock, before: float = 0.0) -> Timetable:
    """A run whose end is known to take no time."""
    config = Config(training=TrainingSettings(minutes=minutes))
    return Timetable(config, clock.now, checkpoint(config, 5, before, reserve=0.0), clock=clock)


def test_a_run_of_the_same_length_keeps_its_learning_rates() -> None:
    assert point(EPOCHS, checkpoint(EPOCHS, 50)) is None
    assert point(EPOCHS, checkpoint(EPOCHS, 200)) is None
    assert point(EPOCHS, checkpoint(EPOCHS, 50, point=ResumePoint(0.2, 0.01))) == ResumePoint(0.2, 0.01)


@pytest.mark.parametrize(
    "changed",
    [
        replace(EPOCHS, training=replace(EPOCHS.training, epochs=5)),
        replace(EPOCHS, schedule=ScheduleSettings("poly")),
        replace(EPOCHS, optimiser=replace(EPOCHS.optimiser, rate=1.0)),
    ],
)
def test_another_length_schedule_or_rate_begins_where_the_run_is(changed: Config) -> None:
    here = ResumePoint(50 / (changed.training.epochs * 20), 0.07)
    assert point(changed, checkpoint(EPOCHS, 50)) == here
    found = Timetable(changed, 0.0, checkpoint(EPOCHS, 50, point=ResumePoint(0.1, 0.01)))
    assert found.resumed == here
    assert found.notes == {"course": length_and_schedule(changed), "joint": [here.progress, here.rate]}
    assert point(changed, checkpoint(EPOCHS, 0)) is None, "nothing was learned yet"


def test_minutes_pass_while_a_run_is_started_so_it_has_a_new_resume_point() -> None:
    found = point(MINUTES, checkpoint(MINUTES, 50, 270, point=ResumePoint(0.2, 0.01)))
    assert found == ResumePoint(pytest.approx(270 / (60 * 9)), 0.07)
    known = checkpoint(MINUTES, 50, 300, reserve=2.0)
    assert point(MINUTES, known) == ResumePoint(pytest.approx(300 / (60 * 8)), 0.07)
    assert point(EPOCHS, checkpoint(MINUTES, 50)) == ResumePoint(0.25, 0.07)


def test_less_than_was_done_is_refused() -> None:
    point(EPOCHS, checkpoint(EPOCHS, 200))
    with pytest.raises(ConfigError, match=r"epochs is 10, but this run has done 10\.05 already"):
        point(EPOCHS, checkpoint(EPOCHS, 201))
    point(MINUTES, checkpoint(MINUTES, 5, 700))
    with pytest.raises(ConfigError, match=r"minutes is 10, but this run has taken 11\.7 already"):
        point(MINUTES, checkpoint(EPOCHS, 5, 700))


def test_shares_of_a_run_in_epochs() -> None:
    timetable = Timetable(EPOCHS, 0.0)
    assert [timetable.share(step) for step in (0, 50, 200, 300)] == [0, 0.25, 1, 1]


def test_minutes_go_on_after_a_resume() -> None:
    clock = Clock()
    first = lasting(2, clock)
    assert first.share(10**6) == 0
    clock.now += 30
    assert first.share(0) == first.common_share(0, ALONE) == 0.25 and first.elapsed() == 30
    first.end_epoch()
    clock.now += 5
    assert first.time.elapsed == 30, "checkpoints know the time of the last step"
    other = Clock(7.0)
    second = lasting(2, other, before=first.time.elapsed)
    assert second.share(0) == 0.25
    other.now += 60
    assert second.share(0) == 0.75 and second.elapsed() == 90
    other.now += 6000
    assert second.share(0) == 1


@given(ticks=st.lists(st.floats(0, 50), max_size=20), before=st.floats(0, 100))
def test_the_share_never_falls(ticks: list[float], before: float) -> None:
    clock = Clock()
    timetable = lasting(1, clock, before)
    shares = []
    for tick in ticks:
        clock.now += tick
        shares.append(timetable.share(0))
    assert shares == sorted(shares) and all(0 <= share <= 1 for share in shares)


@given(st.floats(0.5, 100), st.floats(0, 1), st.floats(0, 500))
def test_with_minutes_the_time_left_is_the_clocks(minutes: float, share: float, before: float) -> None:
    """However steps speed up or slow down, and over all sessions of a run."""
    clock, before = Clock(), min(before, 30 * minutes)
    timetable = lasting(minutes, clock, before)
    clock.now += share * (60 * minutes - before)
    assert timetable.left(7) == pytest.approx((1 - share) * (60 * minutes - before), abs=1e-6)


def test_with_steps_the_time_left_follows_the_pace_of_this_session() -> None:
    """200 of 1000 steps were done an hour ago, at another speed; now a step takes 0.5 s, validation included."""
    clock, config = Clock(), Config(training=TrainingSettings(epochs=10, iterations=100))
    timetable = Timetable(config, clock.now, checkpoint(config, 200, 3600), clock=clock)
    assert timetable.left(200) != timetable.left(200), "NaN"
    for step in range(201, 601):
        clock.now += 0.4 if step % 10 else 1.4
        assert timetable.left(step) >= 0
    assert timetable.left(600) == pytest.approx(0.5 * 400, rel=0.02)


def test_time_is_kept_for_the_end_as_it_becomes_known_and_never_most_of_the_run() -> None:
    clock = Clock()
    timetable = Timetable(MINUTES, clock.now, clock=clock)
    assert timetable.ending == 60 and timetable.left(0) == 540, "a guess, until the first validation"
    assert timetable.time.reserve != timetable.time.reserve, "NaN"
    timetable.validated(5, ending=90)
    assert (timetable.ending, timetable.left(0), timetable.time.reserve) == (90, 510, 1.5)
    timetable.validated(500, ending=1000)
    assert (timetable.ending, timetable.left(0), timetable.time.reserve) == (1000, 360, 4)


def test_a_run_in_epochs_passes_on_what_its_minutes_once_kept() -> None:
    timetable = Timetable(EPOCHS, 0.0, checkpoint(MINUTES, 50, 300, reserve=2.0))
    timetable.validated(5, ending=90)
    assert timetable.time.reserve == 2.0


@pytest.mark.parametrize(
    ("elapsed", "since", "due"),
    [(100, 5, False), (100, 20, True), (585, 20, False), (575, 20, True), (600, 1, True)],
    ids=["too soon", "its turn", "the last comes anyway", "time enough", "the last"],
)
def test_validation_takes_its_share_and_is_not_made_twice_at_the_end(elapsed: float, since: float, due: bool) -> None:
    """One takes 2 s and may take a tenth of the time, so one every 18 s, and none in the last 18 s before the last."""
    clock = Clock()
    timetable = lasting(10, clock)
    assert timetable.validation_due(5, 1), "the first one shows how long it takes"
    clock.now += elapsed - since
    timetable.validated(2.0, ending=0.0)
    clock.now += since
    assert timetable.validation_due(5, 1) is due


def test_validation_of_a_run_in_epochs_does_not_depend_on_the_clock() -> None:
    timetable = Timetable(EPOCHS, 0.0, epochs_apart=4)
    timetable.validated(1e9, ending=0.0)
    assert [epoch for epoch in range(1, 11) if timetable.validation_due(20 * epoch, epoch)] == [1, 4, 8, 10]
