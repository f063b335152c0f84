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
from medseg.planning import Budget, Plan, make_plan
from medseg.planning.fingerprint import Fingerprint, Intensity

_MR = Fingerprint(
    cases=30,
    cases_read=30,
    channels=1,
    modality=("MR",),
    labels={1: "a"},
    spacing_mm=np.tile([1.0, 1.0, 1.0], (30, 1)),
    shape=np.tile([64.0, 64.0, 64.0], (30, 1)),
    intensity=(Intensity(0, 900, 300, 100),),
    zero_fraction=(0.0,),
    structure_ml={1: 5.0},
    structure_fraction=0.02,
)


def _data(spacing: tuple[float, ...], shape: tuple[float, ...], **more: Any) -> Fingerprint:
    grids = {"spacing_mm": np.tile(spacing, (30, 1)), "shape": np.tile(shape, (30, 1))}
    return replace(_MR, **{**grids, **more})


def _channels(*modality: str, **more: Any) -> Fingerprint:
    count = len(modality)
    per_channel: dict[str, Any] = {
        "modality": modality,
        "intensity": _MR.intensity * count,
        "zero_fraction": (0.0,) * count,
    }
    return replace(_MR, channels=count, **per_channel, **more)


CASES = {
    "isotropic": _MR,
    "thick slices": _data((0.6, 0.6, 5.0), (320, 320, 24)),
    "sagittal slices": _data((4.0, 0.5, 0.5), (20, 256, 256)),
    "half a millimetre": _data((0.5, 0.5, 0.5), (300, 300, 200), structure_ml={1: 40.0}),
    "two millimetres": _data((2.0, 2.0, 2.0), (40, 40, 40)),
    "few slices": _data((1.0, 1.0, 8.0), (128, 128, 7)),
    "fourteen labels": replace(_MR, labels={i: str(i) for i in range(1, 15)}),
    "two channels": _channels("MR", "PT"),
    "two grids": _channels("MR", "PT", one_grid=False, coverage=0.9),
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
    (scaling,) = plan.normalisation
    assert (scaling["a_min"], scaling["a_max"]) == (-80, 260)


def test_masked_images_are_normalised_inside_the_mask() -> None:
    assert make_plan(replace(_MR, zero_fraction=(0.6,))).normalisation[0]["nonzero"] is True
    assert make_plan(_MR).normalisation[0]["nonzero"] is False


def test_channels_on_one_grid_stay_one_image() -> None:
    plan = make_plan(CASES["two channels"])
    assert plan.keys == ("image",)
    assert [step["keys"] for step in plan.normalisation] == ["image"]
    assert plan.normalisation[0]["channel_wise"] is True


def test_channels_on_different_grids_are_loaded_and_scaled_one_by_one() -> None:
    plan = make_plan(_channels("CT", "PT", one_grid=False, coverage=0.9))
    assert plan.keys == ("image", "channel_1")
    targets = [(step["_target_"], step["keys"]) for step in plan.normalisation]
    assert targets == [("ScaleIntensityRanged", "image"), ("NormalizeIntensityd", "channel_1")]
    assert any(what == "channels" and "90%" in why for what, _, why in plan.reasons)


def test_no_key_is_mistaken_for_meta_data_of_the_image() -> None:
    for data in CASES.values():
        assert not any(key.startswith(("image_", "label_")) for key in make_plan(data).keys)


@pytest.mark.parametrize(
    ("names", "axes"), [(["sarcoma"], (0,)), (["liver tumour", "lesion"], (0,)), (["liver", "tumour"], ()), (["a"], ())]
)
def test_only_what_grows_on_either_side_is_mirrored(names: list[str], axes: tuple[int, ...]) -> None:
    plan = make_plan(replace(_MR, labels=dict(enumerate(names, start=1))))
    assert plan.flip_axes == axes


TABLE = {
    # spacing, shape, ml of the smallest structure: network, at least this spacing, slices pooled less than pixels
    "0.5 mm, small structures": ((0.5, 0.5, 0.5), (300, 300, 200), 0.02, "BasicUNet", 0.5, False),
    "0.5 mm, large structures": ((0.5, 0.5, 0.5), (300, 300, 200), 400.0, "BasicUNet", 2.0, False),
    "2 mm": ((2.0, 2.0, 2.0), (40, 40, 40), 5.0, "BasicUNet", 2.0, False),
    "5 mm slices": ((0.8, 0.8, 5.0), (256, 256, 30), 5.0, "DynUNet", 0.8, True),
    "5 mm slices of large structures": ((0.8, 0.8, 5.0), (256, 256, 30), 1500.0, "DynUNet", 1.5, True),
}


@pytest.mark.parametrize("name", TABLE)
def test_choices_for_fine_coarse_and_thick_data(name: str) -> None:
    spacing, shape, millilitres, network, finest, thick = TABLE[name]
    plan = make_plan(_data(spacing, shape, structure_ml={1: millilitres}))
    assert plan.network["_target_"] == network
    assert min(plan.spacing_mm) >= finest
    assert max(plan.spacing_mm) >= max(spacing)
    slices_pooled = sum(stride[2] > 1 for stride in plan.network.get("strides", [[2, 2, 2]] * 4))
    pixels_pooled = sum(stride[0] > 1 for stride in plan.network.get("strides", [[2, 2, 2]] * 4))
    assert (slices_pooled < pixels_pooled) == thick
    assert millilitres * 1000 / math.prod(plan.spacing_mm) >= min(200, millilitres * 1000 / math.prod(spacing))


def test_wide_networks_come_before_fine_voxels_of_large_structures() -> None:
    data = _data((1.0, 1.0, 3.3), (124, 118, 54), structure_ml={1: 278.0})
    coarse, fine = (make_plan(data, Budget(minutes=minutes)) for minutes in (8, 20))
    assert coarse.width == fine.width == 16
    assert min(coarse.spacing_mm) > min(fine.spacing_mm) > 1.0


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
