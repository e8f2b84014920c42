"""The loop learns, keeps the last good state, and resumes bit for bit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from medunet.errors import MedunetError, ModelError
from medunet.learning.checkpoint import load_checkpoint, previous_of, save_checkpoint
from medunet.learning.loop import Recipe, TrainState, run_epoch, train_step
from medunet.learning.losses import LossSettings, make_loss
from medunet.learning.schedule import Ema, OptimiserSettings, ScheduleSettings, make_optimiser


@dataclass
class Batch:
    image: Tensor
    label: Tensor
    cases: list[str]


def batches(count: int, first: int = 0) -> list[Batch]:
    made = []
    for n in range(first, first + count):
        image = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(n))
        made.append(Batch(image, (image > 0).long(), [f"case_{n}"]))
    return made


def fresh_state(seed: int = 0) -> TrainState:
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3), nn.Conv2d(8, 2, 1)
    )
    return TrainState(network, make_optimiser(OptimiserSettings(rate=0.02), network), Ema(network, 0.9))


RECIPE = Recipe(
    loss=make_loss(LossSettings(), 2), schedule=ScheduleSettings(), rate=0.02, clip=12.0, device=torch.device("cpu"),
    dtype=None, seed=3,
)  # fmt: skip


def train(state: TrainState, items: list[Batch], total: int = 40) -> float:
    return run_epoch(state, items, RECIPE, lambda: state.step / total, lambda facts: False)


def test_it_learns() -> None:
    state = fresh_state()
    first = train(state, batches(20), 200)
    for _ in range(5):
        last = train(state, batches(20), 200)
    assert last < 0.5 * first
    assert state.step == 120 and state.epoch == 6 and state.skip == 0


def test_a_resumed_run_equals_the_unbroken_one_bit_for_bit(tmp_path: Path) -> None:
    """With dropout, Adam's moments, averaged weights, and a stop in the middle of an epoch."""
    unbroken = fresh_state()
    train(unbroken, batches(20))
    broken = fresh_state()
    seen = []
    run_epoch(broken, batches(20), RECIPE, lambda: broken.step / 40, lambda f: seen.append(f) or len(seen) == 7)
    assert (broken.step, broken.skip, broken.epoch) == (7, 7, 0)
    save_checkpoint(tmp_path / "last.ckpt", broken, "config text")
    torch.manual_seed(12345)
    resumed = fresh_state(seed=99)
    checkpoint = load_checkpoint(tmp_path / "last.ckpt")
    assert checkpoint.identity == "config text"
    checkpoint.restore(resumed)
    train(resumed, batches(20)[resumed.skip :])
    for name, tensor in unbroken.network.state_dict().items():
        assert torch.equal(tensor, resumed.network.state_dict()[name]), name
    with unbroken.ema.applied():
        expected = {k: v.clone() for k, v in unbroken.network.state_dict().items()}
    with resumed.ema.applied():
        assert all(torch.equal(v, resumed.network.state_dict()[k]) for k, v in expected.items())


def test_nan_stops_before_the_weights_are_touched_and_names_the_cases() -> None:
    state = fresh_state()
    train_step(state, batches(1)[0], RECIPE, 0.5)
    before = {k: v.clone() for k, v in state.network.named_parameters()}
    bad = Batch(torch.full((2, 1, 8, 8), torch.nan), torch.zeros(2, 1, 8, 8, dtype=torch.long), ["broken_scan"])
    with pytest.raises(MedunetError, match="loss became nan at step 1 with the cases broken_scan"):
        train_step(state, bad, RECIPE, 0.5)
    assert all(torch.equal(v, dict(state.network.named_parameters())[k]) for k, v in before.items())


def test_the_gradient_is_clipped() -> None:
    state = fresh_state()
    facts = train_step(state, Batch(batches(1)[0].image * 1e3, batches(1)[0].label, ["x"]), RECIPE, 0.5)
    norm = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in state.network.parameters()]))
    assert norm <= min(facts.norm, RECIPE.clip) * 1.0001


def test_the_epoch_ends_when_the_run_is_over() -> None:
    state = fresh_state()
    run_epoch(state, batches(20), RECIPE, lambda: 1.0 if state.step >= 3 else 0.1, lambda f: False)
    assert state.step == 3 and state.epoch == 1


def test_the_previous_checkpoint_is_kept_and_used_when_the_last_is_damaged(tmp_path: Path) -> None:
    path, state = tmp_path / "last.ckpt", fresh_state()
    save_checkpoint(path, state, "c")
    train(state, batches(2))
    save_checkpoint(path, state, "c")
    assert previous_of(path).exists()
    path.write_bytes(path.read_bytes()[:500])
    assert load_checkpoint(path).content["step"] == 0
    previous_of(path).write_bytes(b"no")
    with pytest.raises(ModelError, match="nothing to resume from"):
        load_checkpoint(path)


def test_a_checkpoint_that_wants_to_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "HACKED",))

    torch.save({"format": 1, "network": Evil()}, tmp_path / "last.ckpt")
    with pytest.raises(ModelError):
        load_checkpoint(tmp_path / "last.ckpt")
    assert not (tmp_path / "HACKED").exists()


def test_another_networks_checkpoint_is_an_error(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "last.ckpt", fresh_state(), "c")
    network = nn.Conv2d(1, 3, 1)
    other = TrainState(network, make_optimiser(OptimiserSettings(), network), None)
    with pytest.raises(ModelError, match="does not fit the config"):
        load_checkpoint(tmp_path / "last.ckpt").restore(other)
