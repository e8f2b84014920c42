"""The planner's rules on made-up fingerprints, and its promises on all of them."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from medunet.config import Config, annotated_yaml, parse_config
from medunet.data.fingerprint import CaseFacts, Fingerprint, Intensities
from medunet.data.labels import table_from_names
from medunet.networks.cost import step_cost
from medunet.plan import Budget, plan, plan_topology

VALUES = Intensities(-900.0, 1200.0, 80.0, 200.0, -1024.0, 3000.0)
SPEED = 3.6e11


def facts(shape: tuple[int, ...], spacing: tuple[float, ...], **other: object) -> CaseFacts:
    given = {"unit": "mm", "content": 1.0, "zeros": 0.0, "voxels": (900, 100), "ignored": 0} | other
    return CaseFacts("case", shape, spacing, **given)  # type: ignore[arg-type]


def fingerprint(*cases: CaseFacts, labels: dict[str, int] | None = None, channels: int = 1) -> Fingerprint:
    table = table_from_names(labels or {"background": 0, "organ": 1}, None)
    return Fingerprint(cases, (VALUES,) * channels, table)


def budget(minutes: float = 15, memory: int = 16 * 2**30) -> Budget:
    return Budget(memory, minutes, lambda dimensions: SPEED, "cpu")


def planned(found: Fingerprint, names: tuple[str, ...] = (), **limits: float) -> Config:
    return plan(found, names, budget(**limits))[0]


def test_a_small_cube_gets_one_patch_for_the_whole_scan() -> None:
    config = planned(fingerprint(facts((35, 51, 36), (1, 1, 1))))
    assert config.network.dimensions == 3
    assert all(p >= n for p, n in zip(config.patches.size, (35, 51, 36), strict=True))
    assert config.network.channels[0] == 16 and config.preprocess.spacing == (1, 1, 1)
    assert config.network.exact


def test_the_target_spacing_is_the_median_and_unknown_without_a_physical_size() -> None:
    same = planned(fingerprint(facts((40, 40, 40), (1, 1, 1.5)), facts((50, 40, 40), (1, 1, 1.503))))
    assert same.preprocess.spacing == (1, 1, 1.5015)
    assert planned(fingerprint(facts((40, 40, 40), (1, 1, 1), unit="pixel"))).preprocess.spacing is None
    mixed = planned(fingerprint(*[facts((60, 60, 60), (s, s, s)) for s in (0.8, 1.0, 2.0)]))
    assert mixed.preprocess.spacing == (1.0, 1.0, 1.0)


def test_thick_slices_keep_kernels_of_one_until_the_axes_are_alike() -> None:
    config = planned(fingerprint(facts((256, 256, 24), (0.8, 0.8, 6.5))))
    kernels, strides = config.network.kernels, config.network.strides
    assert kernels[0] == (3, 3, 1) and strides[0] == (2, 2, 1)
    assert config.augment.coarse_axis == 2


def test_very_different_slice_distances_take_the_finer_ones() -> None:
    cases = [facts((300, 300, 30), (0.7, 0.7, s)) for s in (2.5, 5.0, 5.0, 5.0, 5.0)]
    spacing = planned(fingerprint(*cases)).preprocess.spacing
    assert spacing and 2.5 < spacing[2] < 5.0


def test_too_few_slices_make_it_two_dimensional() -> None:
    config = planned(fingerprint(facts((200, 180, 4), (1, 1, 5))))
    assert config.network.dimensions == 2 and len(config.patches.size) == 2 and config.patches.slice_axis == 2


def test_pictures() -> None:
    config = planned(fingerprint(facts((512, 512), (1, 1), unit="pixel"), labels={"membrane": 0, "cell": 255}))
    assert config.network.dimensions == 2 and config.loss.include_background
    assert config.preprocess.normalise[0].kind == "zscore"


def test_ct_is_clipped_by_the_foregrounds_percentiles() -> None:
    (how,) = planned(fingerprint(facts((80, 80, 80), (1, 1, 1))), ("CT",)).preprocess.normalise
    assert (how.kind, how.low, how.high, how.mean, how.std) == ("ct", -900, 1200, 80, 200)


def test_masked_heads_are_normalised_inside_the_mask_and_cropped() -> None:
    config = planned(fingerprint(facts((80, 90, 80), (2, 2, 2), content=0.5, zeros=0.6)))
    assert config.preprocess.crop == "nonzero" and config.preprocess.normalise[0].nonzero


def test_left_and_right_switch_mirroring_off_across_them() -> None:
    sided = {"background": 0, "kidney_left": 1, "kidney_right": 2}
    assert planned(fingerprint(facts((64, 64, 64), (1, 1, 1)), labels=sided)).augment.flip_axes == (1, 2)
    both = {"background": 0, "upper_left": 1, "upper_right": 2, "lower_left": 3, "lower_right": 4}
    assert planned(fingerprint(facts((64, 64, 64), (1, 1, 1)), labels=both)).augment.flip_axes == (1,)
    ends = {"background": 0, "anterior": 1, "posterior": 2}
    assert planned(fingerprint(facts((64, 64, 64), (1, 1, 1)), labels=ends)).augment.flip_axes == (0, 2)
    picture = fingerprint(facts((64, 64), (1, 1), unit="pixel"), labels=sided)
    assert planned(picture).augment.flip_axes == ()
    plain = {"background": 0, "cleft": 1, "upright": 2, "inferior_vena_cava": 3}
    assert planned(fingerprint(facts((64, 64, 64), (1, 1, 1)), labels=plain)).augment.flip_axes is None


def test_less_time_or_memory_means_less_work() -> None:
    found = fingerprint(facts((180, 200, 180), (1, 1, 1)))
    work = [step_cost(c.network, c.patches.size).operations * c.patches.batch for c in
            (planned(found, minutes=m) for m in (5, 30, 240))]  # fmt: skip
    assert work == sorted(work) and work[0] < work[-1]
    small = planned(found, minutes=240, memory=2**30)
    cost = step_cost(small.network, small.patches.size)
    assert cost.bytes * small.patches.batch <= 2**30


@settings(deadline=None, max_examples=25)
@given(
    shape=st.tuples(*[st.integers(1, 300)] * 3),
    spacing=st.tuples(*[st.floats(0.1, 8)] * 3),
    minutes=st.floats(1, 300),
    channels=st.integers(1, 12),
)
def test_every_plan_is_legal_and_survives_its_file(shape, spacing, minutes, channels) -> None:
    found = fingerprint(facts(shape, spacing), channels=channels)
    config, notes = plan(found, (), budget(minutes))
    config.network.shape.check(config.patches.size)
    assert config.network.in_channels == channels
    assert parse_config(annotated_yaml(config, notes, "h"), "c").config == config


def test_topology_never_pools_below_four_voxels() -> None:
    topology = plan_topology((64, 64, 9), (1, 1, 1), most=6)
    assert math.prod(s[2] for s in topology.strides) == 2
    assert topology.stride[0] == 16
