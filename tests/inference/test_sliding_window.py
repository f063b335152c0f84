"""Windows lie where MONAI puts them, and stitching in place gives what MONAI's stitching gives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers import SlidingWindowInferer

from medseg.errors import CaseFailed, Refusal
from medseg.inference.sliding_window import WindowSettings, plan_windows, sliding_window


def _network(batch: torch.Tensor) -> torch.Tensor:
    """Depends on the place in the window, so that wrong weights or places show."""
    place = torch.linspace(0, 1, batch[0, 0].numel()).reshape(batch.shape[2:])
    return torch.cat([batch, batch * place, place.expand_as(batch)], dim=1)


def _stitched(volume: torch.Tensor, window: WindowSettings) -> torch.Tensor:
    slabs = [(slab.start, slab.scores.clone()) for slab in sliding_window(volume, window, _network)]
    assert [start for start, _ in slabs] == sorted(start for start, _ in slabs)
    return torch.cat([scores for _, scores in slabs], dim=1)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*[st.integers(3, 14)] * 3),
    roi=st.tuples(*[st.integers(2, 8)] * 3),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.7]),
    mode=st.sampled_from(["gaussian", "constant"]),
    batch=st.integers(1, 4),
)
def test_equals_monai(
    shape: tuple[int, int, int], roi: tuple[int, int, int], overlap: float, mode: str, batch: int
) -> None:
    volume = torch.rand(1, *shape, generator=torch.Generator().manual_seed(1))
    expected = SlidingWindowInferer(roi, batch, overlap, mode)(volume[None], _network)[0]
    window = WindowSettings(roi, (overlap,) * 3, mode, batch_size=batch)
    torch.testing.assert_close(_stitched(volume, window), expected, rtol=1e-5, atol=1e-6)


def test_every_voxel_is_covered_once_by_a_single_window() -> None:
    plan = plan_windows((7, 9, 5), WindowSettings((0, 0, 0)))
    assert plan.starts == ((0, 0, 0),)
    assert plan.roi_size == (7, 9, 5)


def test_the_buffer_is_as_deep_as_a_window_not_as_the_volume() -> None:
    depth = max(
        slab.scores.shape[1] for slab in sliding_window(torch.zeros(1, 64, 8, 8), WindowSettings((8, 8, 8)), _network)
    )
    assert depth <= 8


def test_scores_that_are_not_finite_fail_the_case() -> None:
    with pytest.raises(CaseFailed, match="not finite"):
        list(sliding_window(torch.full((1, 8, 8, 8), torch.nan), WindowSettings((8, 8, 8)), _network))


def test_a_network_that_changes_the_size_fails_the_case() -> None:
    with pytest.raises(CaseFailed, match="expected"):
        list(sliding_window(torch.zeros(1, 8, 8, 8), WindowSettings((8, 8, 8)), lambda batch: batch[..., :4]))


@pytest.mark.parametrize(
    ("shape", "window", "match"),
    [
        (
            (200, 200, 200),
            WindowSettings((96, 96, 96), (0.999,) * 3),
            "1157625 windows, each voxel",
        ),
        ((35, 51, 35), WindowSettings((1, 1, 1), (0.0,) * 3), "62475 windows"),
        ((40, 60, 40), WindowSettings((16, 16, 16), (0.999,) * 3), "28125 windows, each voxel computed 1200 times"),
        ((35, 51, 35), WindowSettings((4096, 4096, 32)), "too large for the volume"),
        ((900, 900, 900), WindowSettings((128, 128, 128), batch_size=10**6), "at once"),
    ],
)
def test_windows_that_cost_too_much_are_refused(shape: tuple[int, ...], window: WindowSettings, match: str) -> None:
    with pytest.raises(Refusal, match=match) as refused:
        plan_windows(shape, window)
    assert refused.value.code == "too-large"


@pytest.mark.parametrize(
    ("shape", "window"),
    [
        ((35, 51, 35), WindowSettings((32, 48, 32), (0.999,) * 3)),
        ((512, 512, 600), WindowSettings((96, 96, 96), (0.8,) * 3)),
        ((512, 512, 1200), WindowSettings((32, 32, 32), (0.5,) * 3)),
        ((512, 512, 400), WindowSettings((512, 512, 1))),
        ((20, 20, 20), WindowSettings((256, 256, 128))),
    ],
)
def test_ordinary_windows_are_laid_out(shape: tuple[int, ...], window: WindowSettings) -> None:
    assert plan_windows(shape, window).starts
