"""Run in two processes from `test_distributed.py`: each compares with what one process would compute."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

import torch
from torch import nn

from medunet.errors import ConfigError, MedunetError
from medunet.learning.distributed import World, joined_world
from medunet.learning.loop import Diverged, Recipe, TrainState, train_step
from medunet.learning.optimisers import OptimiserSettings, make_optimiser
from medunet.learning.schedules import ScheduleSettings
from medunet.losses.build import LossSettings, make_loss

KINDS = ("dice_cross_entropy", "dice_focal", "tversky_cross_entropy", "generalized_dice")
CPU = torch.device("cpu")


def check_messages(world: World) -> None:
    assert world.highest(float(world.rank)) == 1.0
    assert world.first(b"from the first" if world.leads else b"") == b"from the first"
    assert world.first(b"") == b""
    assert world.all("ä" * world.rank) == ["", "ä"]
    with world.together():
        pass
    try:
        with world.together():
            if world.rank == 1:
                raise ConfigError("broken here")
    except MedunetError as error:
        expected = "broken here" if world.rank == 1 else "process 0 of 2 ends, because process 1 reported an error"
        assert str(error) == expected, error
    else:
        raise AssertionError("the error of one process ends both")


def made(double: bool) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """The same network, images and labels in both processes; the second half of the batch lacks a class."""
    torch.manual_seed(5)
    network = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 3, 1))
    image, label = torch.randn(4, 1, 9, 8), torch.randint(0, 3, (4, 7, 6))
    label[2:][label[2:] == 2] = 1
    label[3, :4] = 255
    return (network.double(), image.double(), label) if double else (network, image, label)


def check_step(world: World, settings: LossSettings, double: bool) -> None:
    """Loss, its terms, gradients and running statistics of two halves, joined, against those of the whole batch."""
    network, image, label = made(double)
    parts: dict[str, torch.Tensor] = {}
    loss = make_loss(settings, 3)(network(image), label, parts=parts)
    loss.backward()
    half, _, _ = made(double)
    joined = world.joined(half, CPU)
    mine = slice(2 * world.rank, 2 * world.rank + 2)
    shared: dict[str, torch.Tensor] = {}
    found = make_loss(settings, 3, reduce=world.sum)(joined(image[mine]), label[mine], parts=shared)
    found.backward()
    near = {"rtol": 1e-9, "atol": 1e-12} if double else {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(found, loss, **near)
    torch.testing.assert_close(shared, parts, **near, msg=lambda m: f"{settings}, each term: {m}")
    assert len(list(network.parameters())) == len(list(half.parameters()))
    for (name, one), (_, other) in zip(network.named_parameters(), half.named_parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, **near, msg=lambda m, name=name: f"{settings} {name}: {m}")
    for (name, one), (other_name, other) in zip(network.state_dict().items(), half.state_dict().items(), strict=True):
        assert name == other_name
        torch.testing.assert_close(other, one, **near)
    network.eval(), half.eval()
    torch.testing.assert_close(half(image), network(image), **near)


def check_first_weights(world: World) -> None:
    torch.manual_seed(world.rank)
    network = nn.Conv2d(1, 2, 1)
    world.joined(network, CPU)
    torch.manual_seed(0)
    assert torch.equal(network.weight, nn.Conv2d(1, 2, 1).weight), "all start as the first process"


@dataclass
class Batch:
    image: torch.Tensor
    label: torch.Tensor
    cases: list[str]
    weight: torch.Tensor | None = None


def check_divergence(world: World) -> None:
    """What is wrong with one process' patches stops both, before the step, and the whole batch is named."""
    network, image, label = made(False)
    forward = world.joined(network, CPU)
    state = TrainState(forward, make_optimiser(OptimiserSettings(), network), None)
    loss = make_loss(LossSettings(), 3, reduce=world.sum)
    recipe = Recipe(loss, ScheduleSettings(), 0.01, 12.0, CPU, None, 0, world=world)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    mine = slice(2 * world.rank, 2 * world.rank + 2)
    batch = Batch(image[mine].clone(), label[mine], [f"case_{world.rank}"])
    if world.rank == 1:
        batch.image[0, 0, 0, 0] = torch.nan
    try:
        train_step(state, batch, recipe, 0.5)
    except Diverged as error:
        assert "with the cases case_0, case_1;" in str(error), error
    else:
        raise AssertionError("a loss that is no number stops both")
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items()) and state.step == 0


def main() -> None:
    with joined_world() as world:
        assert (world.size, world.leads) == (2, world.rank == 0)
        check_messages(world)
        check_first_weights(world)
        check_divergence(world)
        for kind in KINDS:
            for batch_dice in (True, False):
                settings = LossSettings(kind, batch_dice=batch_dice)  # type: ignore[arg-type]
                check_step(world, settings, double=True)
        check_step(world, replace(LossSettings(), class_weights=(1.0, 2.0, 3.0), blob_weight=0.5), double=True)
        check_step(world, LossSettings(), double=False)
    print("all is well", file=sys.stderr)


if __name__ == "__main__":
    main()
