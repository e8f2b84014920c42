"""Several processes are one: what launchers say is checked, batches are split, and sums and norms are those of all."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from medunet.errors import ConfigError
from medunet.learning.distributed import ALONE, World, joined_world, world_of
from medunet.learning.synced_norm import SyncedBatchNorm, synced_norms
from tests.fresh import Fresh

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "a",
            "MASTER_PORT": "1"}  # fmt: skip


def test_the_world_is_what_torchrun_says() -> None:
    assert world_of(TORCHRUN) == World(rank=3, size=4, local_rank=1, local_size=2)
    assert world_of({}) == world_of({**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1"}) == ALONE
    assert ALONE.leads and not World(1, 2).leads


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"MASTER_ADDR": None}, "lacks MASTER_ADDR"),
        ({"LOCAL_RANK": None}, "lacks LOCAL_RANK"),
        ({"WORLD_SIZE": None}, "lacks WORLD_SIZE"),
        ({"RANK": "4"}, "contradict each other"),
        ({"LOCAL_RANK": "-1"}, "contradict each other"),
        ({"RANK": "one"}, "is no number"),
    ],
)
def test_a_launcher_that_is_not_torchrun_is_found_out(changes: dict[str, str | None], words: str) -> None:
    environment = {k: v for k, v in {**TORCHRUN, **changes}.items() if v is not None}
    with pytest.raises(ConfigError, match=words):
        world_of(environment)


def test_one_process_joins_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined_world() as world:
        network = nn.BatchNorm2d(2)
        assert world.joined(network, torch.device("cpu")) is network and not torch.distributed.is_initialized()
        assert world.highest(2.5) == 2.5 and world.first(b"x") == b"x" and world.all("x") == ["x"]
        with pytest.raises(KeyError), world.together():
            raise KeyError


@given(batch=st.integers(1, 200), size=st.integers(1, 16))
@settings(max_examples=100)
def test_a_batch_is_split_evenly_or_legal_ones_are_named(batch: int, size: int) -> None:
    world = World(0, size)
    if batch % size == 0:
        assert world.share(batch) * size == batch
        return
    with pytest.raises(ConfigError) as error:
        world.share(batch)
    legal = [int(word) for word in str(error.value).splitlines()[1].split(";")[0].split() if word.isdigit()]
    assert legal and all(world.share(n) * size == n and abs(n - batch) < size for n in legal)


@pytest.mark.parametrize("shape", [(4, 3, 5, 6), (2, 3, 4, 5, 6), (1, 3, 2, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_shared_norm_of_one_process_is_batch_norm(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    plain = nn.BatchNorm2d(3) if len(shape) == 4 else nn.BatchNorm3d(3)
    nn.init.normal_(plain.weight), nn.init.normal_(plain.bias)
    other = nn.Sequential(type(plain)(3))
    other[0].load_state_dict(plain.state_dict())
    synced_norms(other, lambda sums: sums, torch.device("cpu"))
    assert isinstance(other[0], SyncedBatchNorm) and list(other[0].state_dict()) == list(plain.state_dict())
    for _ in range(3):
        x = (torch.randn(shape) * 3 + 50).to(dtype).requires_grad_()
        y = x.detach().clone().requires_grad_()
        found, expected = other(y), plain(x)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 if dtype == torch.float32 else 0.05)
        assert found.dtype == expected.dtype
        given = torch.randn(shape).to(dtype)
        found.backward(given), expected.backward(given)
        torch.testing.assert_close(y.grad, x.grad, rtol=1e-2, atol=1e-4 if dtype == torch.float32 else 0.02)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(other[0].state_dict()[name], value, rtol=1e-4, atol=1e-4)
    plain.eval(), other.eval()
    torch.testing.assert_close(other(x), plain(x))


@pytest.mark.slow
def test_two_processes_compute_what_one_would(fresh: Fresh) -> None:
    """Messages, errors, first weights, and loss, gradients and statistics of a step; over real gloo."""
    done = fresh.pair("from tests.learning.two_processes import main\nmain()")
    assert done.returncode == 0 and done.stderr.count("all is well") == 2, done.stderr
