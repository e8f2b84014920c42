"""Plans: what they say, what they choose, and whether segmenting needs the memory that they promise."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from medunet.errors import ConfigError
from medunet.networks.settings import UNetSettings
from medunet.prediction.planning import PredictSettings, ScanPlan
from medunet.prediction.segmenter import Segmenter
from medunet.transforms.preprocess import PreprocessSettings
from tests.fresh import Fresh
from tests.measured import typical
from tests.prediction.made import SMALL, make_model, make_scan

FP32 = PredictSettings(precision="fp32")


def plan_of(
    shape: tuple[int, ...], settings: PredictSettings = FP32, slowest: int | None = None, **card: object
) -> ScanPlan:
    segmenter = Segmenter([make_model(**card)], settings)  # type: ignore[arg-type]
    return segmenter.plan(segmenter.open(make_scan(*shape)), slowest)


def test_a_plan_says_how_and_how_much() -> None:
    said = plan_of((40, 30, 20)).describe()
    assert said.startswith("streamed: what one pass over the whole scan gives") and "slabs of 64 along axis 0" in said
    assert said.endswith("MiB")
    said = plan_of((40, 30, 20), replace(FP32, method="blend", tta=True), mirror_axes=(0, 1)).describe()
    assert "windows of 16×16×16, overlap 0.5; mean of 4" in said
    flat = UNetSettings(dimensions=2, channels=(4, 8), classes=3)
    assert "slice by slice along axis 1" in plan_of((40, 30, 20), network=flat, slice_axis=1).describe()
    record = plan_of((40, 30, 20)).record()
    assert json.loads(json.dumps(record)) == record and record["way"] == "stream" and record["parts"] == [1, 1, 1]


def test_scans_that_differ_in_size_alone_are_announced_once() -> None:
    small, larger = plan_of((40, 30, 20)), plan_of((20, 30, 44))
    assert small.describe() != larger.describe() and small.kind == larger.kind
    assert small.kind != plan_of((40, 30, 20), replace(FP32, method="blend")).kind


@pytest.mark.slow
def test_a_scan_in_a_file_is_streamed_as_it_lies_there_if_that_fits() -> None:
    shape, settings = (600, 40, 40), replace(FP32, memory=2**27)
    assert plan_of(shape).axis == 0
    assert plan_of(shape, settings, slowest=2).axis == 2
    while (plan := plan_of(shape, settings, slowest=2)).axis == 2:
        settings = replace(settings, memory=settings.memory - 2**22)
    assert plan.axis == 0 and len(plan.parts) == 1 and plan.bytes <= settings.memory


@pytest.mark.slow
def test_a_split_that_would_take_forever_is_refused() -> None:
    deep = UNetSettings(channels=(4, 4, 4, 4, 4), classes=2)
    with pytest.raises(ConfigError, match=r"smallest parts worth it, a scan of 300×300×300 voxels needs about"):
        plan_of((300, 300, 300), replace(FP32, memory=22 * 2**20), network=deep)


MEASURE = """
import ctypes, gc, sys, torch
from pathlib import Path
from medunet.transforms.preprocess import PreprocessSettings
from medunet.networks.unet import UNetSettings
from medunet.prediction.planning import PredictSettings
from medunet.prediction.segmenter import Segmenter
from tests.prediction.made import make_model, make_scan
from tests.fresh import Fresh

def status(key):
    return next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").open() if line.startswith(key))

torch.set_num_threads(1)
network = UNetSettings(channels=(16, 32, 64), **{network})
card = dict(mirror_axes=(0, 1), patch=(64, 64, 64), preprocess=PreprocessSettings(spacing={spacing}))
models = [make_model(network, seed, **card) for seed in range({models})]
segmenter = Segmenter(models, PredictSettings(precision="fp32", **{settings}))
for shape in ((16, 16, 16), {shape}):  # the first one warms up
    scan = segmenter.open(make_scan(*shape))
    plan = segmenter.plan(scan)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    for _ in segmenter.pieces(scan, plan, scores=True):
        pass
print(plan.bytes / (status("VmHWM") - before))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's count of peak memory")
@pytest.mark.parametrize(
    ("shape", "spacing", "models", "settings", "network"),
    [
        ((80, 90, 120), None, 1, {}, {}),
        ((80, 90, 60), None, 1, {"tta": True}, {}),
        ((70, 80, 90), None, 3, {}, {}),
        ((90, 100, 110), (0.8, 0.9, 1.5), 1, {}, {"classes": 20}),
        ((64, 80, 130), None, 1, {"method": "blend"}, {"classes": 8}),
        ((110, 110, 120), None, 1, {"memory": 110 * 2**20}, {}),
    ],
)
def test_segmenting_needs_the_memory_that_was_planned(
    fresh: Fresh, shape: tuple[int, ...], spacing: object, models: int, settings: dict, network: dict
) -> None:
    code = MEASURE.format(shape=shape, spacing=spacing, models=models, settings=settings, network=network)

    def planned_of_measured() -> float:
        answer = fresh.run(code)
        assert answer.returncode == 0, answer.stderr
        return float(answer.stdout)

    assert 0.8 < typical(planned_of_measured, 0.8, 1.25) < 1.25


def test_growth_counts_the_voxels_of_the_networks_grid() -> None:
    segmenter = Segmenter([make_model(SMALL, preprocess=PreprocessSettings(spacing=(0.5, 0.5, 1.0)))], FP32)
    assert segmenter.open(make_scan(10, 10, 10)).growth == pytest.approx(4)
