"""Large windows lie on the volume's own voxels, in step with the network, and fit into memory."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from monai.networks.nets import BasicUNet, UNet

from medseg.inference.engines import REFERENCE, build_engine
from medseg.inference.footprint import Footprint, large_window, measure_footprint
from medseg.inference.sliding_window import WindowSettings, plan_windows, sliding_window

OWN = WindowSettings((32, 48, 32), (0.5, 0.5, 0.5), "gaussian", batch_size=4)
PLENTY = 1e15


def _need(stride: int = 8, bytes_per_voxel: float = 1.0) -> Footprint:
    return Footprint(bytes_per_voxel, (stride, stride, stride))


def test_memory_is_counted_per_voxel() -> None:
    layer = torch.nn.Sequential(torch.nn.Conv3d(1, 3, 1), torch.nn.ReLU())
    counted = measure_footprint(build_engine(REFERENCE, layer), torch.zeros(1, 1, 4, 4, 4))
    assert counted == Footprint(2 * 3 * 4, (1, 1, 1))  # two layers, three channels, four bytes


@pytest.mark.parametrize(
    ("network", "strides"),
    [
        (UNet(3, 1, 2, (4, 4, 4), (2, 2)), (4, 4, 4)),
        (UNet(3, 1, 2, (4, 4, 4), ((2, 2, 1), (2, 2, 2))), (4, 4, 2)),
        (BasicUNet(3, 1, 2, (4,) * 6), (16, 16, 16)),
        (torch.nn.Sequential(torch.nn.Conv3d(1, 2, 1), torch.nn.AdaptiveAvgPool3d(1)), (16, 16, 16)),
    ],
)
def test_strides_are_seen_from_the_layers(network: torch.nn.Module, strides: tuple[int, ...]) -> None:
    found = measure_footprint(build_engine(REFERENCE, network.eval()), torch.zeros(1, 1, 48, 48, 16 * 3))
    assert found.strides == strides


def test_an_engine_that_cannot_be_watched_keeps_the_bundles_windows() -> None:
    need = measure_footprint(lambda batch: batch, torch.zeros(1, 1, 8, 8, 8))  # type: ignore[arg-type]
    assert large_window((100, 100, 100), OWN, need, PLENTY) is OWN


def test_one_window_covers_an_axis_that_the_network_takes_as_it_is() -> None:
    found = large_window((104, 96, 20), OWN, _need(), PLENTY)
    assert found.roi_size == (104, 96, 32)  # the last axis is padded, as the bundle's own window would
    assert len(plan_windows((104, 96, 20), found).starts) == 1


def test_two_windows_that_end_where_the_volume_ends_cover_any_other() -> None:
    found = large_window((101, 96, 32), OWN, _need(), PLENTY)
    assert found.roi_size == (64, 96, 32)  # half of 101 + 16, and the next multiple of 8
    assert [start[0] for start in plan_windows((101, 96, 32), found).starts] == [0, 37]


def test_memory_makes_them_smaller_down_to_the_bundles_own() -> None:
    whole = large_window((128, 96, 64), OWN, _need(), 128 * 96 * 64)
    assert whole.roi_size == (128, 96, 64)
    less = large_window((128, 96, 64), OWN, _need(), 128 * 96 * 64 - 1)
    assert math.prod(less.roi_size) < 128 * 96 * 64
    assert large_window((128, 96, 64), OWN, _need(), 1.0) is OWN
    assert large_window((30, 40, 20), OWN, _need(), PLENTY) is OWN  # smaller than the window on every axis


@settings(max_examples=60, deadline=None)
@example((5, 5, 61), (24, 24, 48), 0.7, 4, 1e5)  # larger windows, and as many
@given(
    shape=st.tuples(*[st.integers(5, 120)] * 3),
    own=st.tuples(*[st.sampled_from([24, 32, 48])] * 3),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.7]),
    stride=st.sampled_from([1, 4, 8]),
    budget=st.sampled_from([1e4, 1e5, 5e5, PLENTY]),
)
def test_they_cover_the_volume_in_step_with_the_network(
    shape: tuple[int, int, int], own: tuple[int, int, int], overlap: float, stride: int, budget: float
) -> None:
    bundles = WindowSettings(own, (overlap,) * 3, "gaussian")
    found = large_window(shape, bundles, _need(stride), budget)
    if found is bundles:
        return
    plan, reference = plan_windows(shape, found), plan_windows(shape, bundles)
    assert math.prod(found.roi_size) <= budget
    assert plan.padded_shape == reference.padded_shape
    assert len(plan.starts) < len(reference.starts)
    for axis in range(3):
        size, length = found.roi_size[axis], plan.padded_shape[axis]
        assert size % stride == 0
        assert own[axis] <= size <= length
        starts = sorted({start[axis] for start in plan.starts})
        assert starts[0] == 0
        assert starts[-1] + size == length
        assert all(start % stride == 0 for start in starts[:-1])
        assert all(b <= a + size for a, b in pairwise(starts))


def test_a_network_that_sees_a_few_voxels_gives_what_it_gives_on_the_whole_volume() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv3d(4, 2, 3, 2, 1))
    grown = torch.nn.Sequential(network, torch.nn.Upsample(scale_factor=2)).eval()
    engine = build_engine(REFERENCE, grown)
    volume = torch.randn(1, 50, 32, 32)
    own = WindowSettings((16, 16, 16), (0.5,) * 3, "gaussian")
    need = measure_footprint(engine, torch.zeros(1, 1, 16, 16, 16))
    found = large_window(volume.shape[1:], own, need, 50 * 32 * 32 * need.bytes_per_voxel - 1)
    assert found.roi_size == (30, 32, 32)  # two windows, since one would need a byte too much
    assert [start for start, _, _ in plan_windows(volume.shape[1:], found).starts] == [0, 20]
    scores = torch.cat([slab.scores.clone() for slab in sliding_window(volume, found, engine)], 1)
    whole = engine(volume[None])[0]
    for alone in (slice(0, 20), slice(30, 50)):  # planes that only one of the windows covers
        torch.testing.assert_close(scores[:, alone], whole[:, alone], rtol=1e-5, atol=1e-5)
    assert (scores - whole).abs().max() > 1e-3  # where they overlap, either sees a border that is not there
