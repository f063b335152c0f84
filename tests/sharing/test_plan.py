"""Plans for very different data: each fits its network, its budget and its anatomy."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.bundle import ConfigParser

from medseg.errors import UsageError
from medseg.sharing import Budget, Plan, make_plan
from medseg.sharing.fingerprint import Fingerprint, Intensity

_MR = Fingerprint(
    cases=30,
    cases_read=30,
    channels=1,
    modality=("MR",),
    labels={1: "a"},
    spacing_mm=np.tile([1.0, 1.0, 1.0], (30, 1)),
    shape=np.tile([64.0, 64.0, 64.0], (30, 1)),
    intensity=(Intensity(0, 900, 300, 100),),
    zero_fraction=0.0,
    structure_ml={1: 5.0},
    structure_fraction=0.02,
)


def _data(spacing: tuple[float, ...], shape: tuple[float, ...], **more: Any) -> Fingerprint:
    grids = {"spacing_mm": np.tile(spacing, (30, 1)), "shape": np.tile(shape, (30, 1))}
    return replace(_MR, **{**grids, **more})


CASES = {
    "isotropic": _MR,
    "thick slices": _data((0.6, 0.6, 5.0), (320, 320, 24)),
    "sagittal slices": _data((4.0, 0.5, 0.5), (20, 256, 256)),
    "half a millimetre": _data((0.5, 0.5, 0.5), (300, 300, 200), structure_ml={1: 40.0}),
    "two millimetres": _data((2.0, 2.0, 2.0), (40, 40, 40)),
    "few slices": _data((1.0, 1.0, 8.0), (128, 128, 7)),
    "fourteen labels": replace(_MR, labels={i: str(i) for i in range(1, 15)}),
    "two channels": replace(_MR, channels=2, modality=("MR", "PT"), intensity=_MR.intensity * 2),
}


def _network(plan: Plan) -> torch.nn.Module:
    network: torch.nn.Module = ConfigParser({"net": plan.network}).get_parsed_content("net")
    return network.eval()


@pytest.mark.parametrize("name", CASES)
def test_the_network_takes_the_patch(name: str) -> None:
    data = CASES[name]
    plan = make_plan(data, Budget(minutes=8))
    with torch.inference_mode():
        answer = _network(plan)(torch.zeros(1, data.channels, *plan.patch_size))
    assert answer.shape == (1, len(data.labels) + 1, *plan.patch_size)


@given(
    st.tuples(*[st.floats(0.4, 6.0)] * 3),
    st.tuples(*[st.integers(6, 400)] * 3),
    st.integers(1, 40),
    st.floats(8, 64),
)
@settings(max_examples=100, deadline=None)
def test_plans_keep_the_budget(
    spacing: tuple[float, ...], shape: tuple[int, ...], labels: int, memory_gb: float
) -> None:
    data = _data(spacing, tuple(float(n) for n in shape), labels={i: str(i) for i in range(1, labels + 1)})
    plan = make_plan(data, Budget(memory_gb=memory_gb, minutes=60))
    floats = 20 * plan.width + 6 * (labels + 1) + 40
    assert math.prod(plan.patch_size) * plan.batch_size * floats * 4 <= 1.06e9 * (memory_gb - 1)
    assert plan.epochs * plan.iterations <= 5000
    assert plan.warm_up + plan.ramp < plan.epochs * plan.iterations
    assert all(a >= b * 0.999 for a, b in zip(plan.spacing_mm, np.round(spacing, 3), strict=True))


def test_thick_slices_are_pooled_less_and_not_rotated_through() -> None:
    plan = make_plan(CASES["thick slices"])
    assert plan.network["_target_"] == "DynUNet"
    assert plan.network["strides"][1] == [2, 2, 1]
    assert plan.rotate_range[2] > plan.rotate_range[0]


def test_thin_slices_among_thick_ones_set_the_spacing() -> None:
    spacing = np.tile([1.0, 1.0, 5.0], (30, 1))
    spacing[:6, 2] = 3.0
    plan = make_plan(replace(_MR, spacing_mm=spacing, shape=np.tile([128.0, 128.0, 30.0], (30, 1))))
    assert plan.spacing_mm == (1.0, 1.0, 3.0)


def test_ct_is_clipped_to_what_the_structures_hold() -> None:
    plan = make_plan(replace(_MR, modality=("CT",), intensity=(Intensity(-80, 260, 90, 50),)))
    assert (plan.normalisation["a_min"], plan.normalisation["a_max"]) == (-80, 260)


def test_masked_images_are_normalised_inside_the_mask() -> None:
    assert make_plan(replace(_MR, zero_fraction=0.6)).normalisation["nonzero"] is True
    assert make_plan(_MR).normalisation["nonzero"] is False


def test_huge_fine_cases_get_larger_voxels_but_small_structures_keep_theirs() -> None:
    coarse = make_plan(CASES["half a millimetre"])
    assert min(coarse.spacing_mm) > 0.5
    small = make_plan(replace(CASES["half a millimetre"], structure_ml={1: 0.02}))
    assert small.spacing_mm == (0.5, 0.5, 0.5)


def test_rare_structures_are_looked_for() -> None:
    data = _data((1.0, 1.0, 1.0), (256, 256, 256), structure_fraction=0.001)
    assert make_plan(data).prob_foreground > 0.5
    assert make_plan(_data((1, 1, 1), (32, 32, 32))).prob_foreground == 0


def test_too_small_a_budget_is_refused() -> None:
    with pytest.raises(UsageError, match="larger budget"):
        make_plan(_MR, Budget(memory_gb=1.01))


def test_every_choice_has_a_reason() -> None:
    for data in CASES.values():
        assert len(make_plan(data).reasons) >= 6
        assert all(all(part for part in reason) for reason in make_plan(data).reasons)
