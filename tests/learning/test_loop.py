"""The loop learns, keeps the last good state, and resumes bit for bit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from medunet.errors import ModelError
from medunet.learning.averaging import Ema
from medunet.learning.checkpoint import Checkpoint, load_checkpoint, previous_of, save_checkpoint
from medunet.learning.loop import Diverged, Recipe, TrainState, run_epoch, train_step
from medunet.learning.optimisers import OptimiserSettings, make_optimiser
from medunet.learning.schedules import ResumePoint, ScheduleSettings
from medunet.losses.build import LossSettings, make_loss


@dataclass
class Batch:
    image: Tensor
    label: Tensor
    cases: list[str]
    weight: Tensor | None = None


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


@pytest.mark.slow
def test_it_learns() -> None:
    state = fresh_state()
    first = train(state, batches(20), 200)
    for _ in range(5):
        last = train(state, batches(20), 200)
    assert last < 0.5 * first
    assert state.step == 120 and state.epoch == 6 and state.skip == 0


def everything(state: TrainState) -> dict[str, object]:
    """All that a state consists of, as lists of numbers."""
    optimiser = [v for moments in state.optimiser.state.values() for v in moments.values()]
    tensors = {**state.network.state_dict(), **{f"optimiser {n}": v for n, v in enumerate(optimiser)}}
    tensors |= {f"average {name}": value for name, value in state.ema.state_dict().items()}
    numbers = (state.step, state.epoch, state.skip, state.rate, state.progress, state.tally)
    return {"numbers": numbers, **{name: tensor.tolist() for name, tensor in tensors.items()}}


def run(state: TrainState, epochs: int = 2, stop_at: int | None = None) -> list[float]:
    """Epochs of 5 steps; the mean losses of those that were ended."""
    losses = []
    while state.skip or state.epoch < epochs:
        items = batches(5, 5 * state.epoch)[state.skip :]
        loss = run_epoch(state, items, RECIPE, lambda: state.step / (5 * epochs), lambda facts: state.step == stop_at)
        if state.step == stop_at:
            break
        losses.append(loss)
    return losses


UNBROKEN = fresh_state()
LOSSES = run(UNBROKEN)


@pytest.mark.slow
@given(stops=st.lists(st.integers(1, 10), max_size=3, unique=True).map(sorted))
@settings(deadline=None, max_examples=30)
def test_a_resumed_run_equals_the_unbroken_one_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, stops: list[int]
) -> None:
    """With dropout, Adam's moments, averaged weights, and stops at any steps, also the last ones of epochs."""
    path = tmp_path_factory.mktemp("broken") / "last.ckpt"
    state, losses = fresh_state(), []
    for stop in stops:
        losses += run(state, stop_at=stop)
        assert state.step == stop and state.skip == (stop - 1) % 5 + 1, "the epoch is left open, even at its end"
        save_checkpoint(path, state, "identity", {"word": [1, None]})
        torch.manual_seed(12345)
        state = fresh_state(seed=99)
        checkpoint = load_checkpoint(path)
        assert checkpoint.identity == "identity" and checkpoint.notes == {"word": [1, None]}
        checkpoint.restore(state)
    losses += run(state)
    assert losses == LOSSES
    assert everything(state) == everything(UNBROKEN)


def test_a_checkpoint_goes_from_process_to_process_as_bytes(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "last.ckpt", UNBROKEN, "identity")
    state = fresh_state(seed=99)
    Checkpoint.from_bytes(load_checkpoint(tmp_path / "last.ckpt").to_bytes()).restore(state)
    assert everything(state) == everything(UNBROKEN)


def test_a_longer_run_starts_with_the_rate_that_the_shorter_one_ended_with() -> None:
    state = fresh_state()
    run(state)
    ended = state.rate
    recipe = replace(RECIPE, resumed=ResumePoint(state.step / 100, ended))
    assert train_step(state, batches(1, 10)[0], recipe, state.step / 100).rate == ended
    assert 0 < train_step(state, batches(1, 11)[0], recipe, state.step / 100).rate - ended < 0.1 * RECIPE.rate


class Rootless(torch.autograd.Function):
    """Passes on its input, and a gradient that is no number."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient * torch.nan


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_no_number_stops_the_run_in_the_last_good_state_and_names_the_cases(what: str) -> None:
    """Running statistics, which the forward pass has changed already, are put back as well."""
    state = fresh_state()
    train_step(state, batches(1)[0], RECIPE, 0.5)
    before = everything(state)
    image = torch.full((2, 1, 8, 8), torch.nan) if what == "loss" else torch.rand(2, 1, 8, 8)
    bad = Batch(image, torch.zeros(2, 1, 8, 8, dtype=torch.long), ["broken_scan", "other"])
    loss = RECIPE.loss
    recipe = replace(RECIPE, loss=lambda x, *a, **k: loss(Rootless.apply(x), *a, **k)) if what == "gradient" else RECIPE
    with pytest.raises(Diverged, match=f"the {what} became nan at step 1 with the cases broken_scan, other"):
        train_step(state, bad, recipe, 0.5)
    assert everything(state) == before
    assert everything_after(state) == everything_after(state_of(before_steps=1))


def everything_after(state: TrainState) -> dict[str, object]:
    train_step(state, batches(1, 1)[0], RECIPE, 0.6)
    return everything(state)


def state_of(before_steps: int) -> TrainState:
    state = fresh_state()
    for item in batches(before_steps):
        train_step(state, item, RECIPE, 0.5)
    return state


def test_the_terms_of_an_epoch_add_up_to_its_loss() -> None:
    state = fresh_state()
    loss = train(state, batches(5))
    assert list(state.tally.mean_parts) == ["dice", "cross_entropy"] and min(state.tally.mean_parts.values()) > 0
    assert sum(state.tally.mean_parts.values()) == pytest.approx(loss, rel=1e-6)


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


def test_the_weights_of_a_batch_reach_the_loss() -> None:
    """What weighs nothing teaches nothing, and weights are those that the loss takes."""
    (batch,) = batches(1)
    left = replace(batch, weight=(torch.arange(8) < 4).float().expand(2, 1, 8, 8).clone())
    ignored = replace(batch, label=torch.where(left.weight > 0, batch.label, 255))
    losses = [train_step(fresh_state(), one, RECIPE, 0.5).loss for one in (batch, left, ignored)]
    assert losses[1] == pytest.approx(losses[2]) and losses[0] != pytest.approx(losses[1])
    nothing = replace(batch, weight=torch.zeros(2, 1, 8, 8))
    assert train_step(fresh_state(), nothing, RECIPE, 0.5).norm == 0


@pytest.mark.parametrize(
    ("kind", "changed", "found"),
    [
        ("adamw", {"weight_decay": 0.5, "betas": (0.5, 0.9)}, [(0.5, (0.5, 0.9)), (0.0, (0.5, 0.9))]),
        ("muon", {"weight_decay": 0.5, "betas": (0.5, 0.9)}, [(0.5, (0.5, 0.9)), (0.5, (0.5, 0.9)), (0.0, (0.5, 0.9))]),
        ("sgd", {"weight_decay": 0.5, "momentum": 0.0}, [(0.5, 0.0), (0.0, 0.0)]),
    ],
)
def test_a_resumed_optimiser_is_what_is_asked_for_now(
    tmp_path: Path, kind: str, changed: dict[str, object], found: list[object]
) -> None:
    """With the moments and the rate that it had; matrices inside a network alone are Muon's."""

    def made(**more: object) -> TrainState:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 3, 1))
        return TrainState(network, make_optimiser(OptimiserSettings(kind=kind, **more), network), None)

    before, same, after = made(), made(), made(**changed)
    train(before, batches(3))
    save_checkpoint(tmp_path / "last.ckpt", before, "c")
    for state in (same, after):
        load_checkpoint(tmp_path / "last.ckpt").restore(state)
    saved = before.optimiser.state_dict()
    assert same.optimiser.state_dict()["param_groups"] == saved["param_groups"]
    second = "momentum" if kind == "sgd" else "betas"
    groups = after.optimiser.param_groups
    assert [(group["weight_decay"], group[second]) for group in groups] == found
    assert [group["lr"] for group in groups] == [group["lr"] for group in saved["param_groups"]]
    for state in (before, same, after):
        train(state, batches(2, 3))
    weights = [nn.utils.parameters_to_vector(state.network.parameters()) for state in (before, same, after)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
