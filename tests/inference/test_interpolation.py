"""Leaving out classes that cannot win changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from medseg.inference.interpolation import Lerp, TiledLabels


def _scores(classes: int, shape: tuple[int, int, int], sharpness: float, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, classes, *(max(n // 3, 1) for n in shape), generator=generator) * sharpness
    return torch.nn.functional.interpolate(coarse, size=shape, mode="trilinear")[0]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 6),
    st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 20)),
    st.tuples(st.integers(1, 150), st.integers(1, 150)),
    st.sampled_from((0.5, 5.0, 50.0)),
    st.booleans(),
    st.integers(0, 1000),
)
def test_the_largest_interpolated_score_wins(
    classes: int,
    shape: tuple[int, int, int],
    fine: tuple[int, int],
    sharpness: float,
    normalised: bool,
    seed: int,
) -> None:
    scores = _scores(classes, shape, sharpness, seed)
    scores = torch.softmax(scores, dim=0) if normalised else scores
    random = np.random.default_rng(seed)
    rows, columns = (np.sort(random.uniform(0, n - 1, m)) for n, m in zip(shape[1:], fine, strict=True))
    if seed % 2:
        rows = rows[::-1].copy()
    found = TiledLabels(rows, columns, shape[1:], normalised=normalised)(scores)
    dense = Lerp(columns, shape[2])(Lerp(rows, shape[1])(scores, 2), 3)
    best = dense.max(dim=0)[0]
    chosen = dense.gather(0, torch.from_numpy(found)[None])[0]
    assert found.shape == (shape[0], *fine)
    assert torch.all(chosen >= best - 1e-5 * (1 + best.abs()))  # equal, or a tie within rounding


def test_interpolation_is_linear_as_scipy_computes_it() -> None:
    plane = np.random.default_rng(0).normal(size=(7, 9)).astype(np.float32)
    rows, columns = np.linspace(0, 6, 23), np.linspace(8, 0, 31)
    expected = map_coordinates(plane, np.stack(np.meshgrid(rows, columns, indexing="ij")), order=1)
    found = Lerp(columns, 9)(Lerp(rows, 7)(torch.from_numpy(plane), 0), 1)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_tiles_in_which_one_class_is_left_are_not_interpolated(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.full((3, 1, 40, 40), 0.05)
    scores[0] = 0.9
    scores[:, :, 30:, 30:] = torch.tensor([0.1, 0.2, 0.7]).reshape(3, 1, 1, 1)
    calls: list[tuple[int, ...]] = []
    plain = Lerp.__call__

    def counted(self: Lerp, values: torch.Tensor, axis: int) -> torch.Tensor:
        calls.append(tuple(values.shape))
        return plain(self, values, axis)

    monkeypatch.setattr(Lerp, "__call__", counted)
    fine = np.linspace(0, 39, 400)
    labels = TiledLabels(fine, fine, (40, 40), normalised=True)(scores)
    assert labels[0, 0, 0] == 0
    assert labels[0, 399, 399] == 2
    assert len(calls) < 2 * 49 / 4  # of 7 × 7 tiles, two axes each
    assert all(shape[0] == 2 for shape in calls)  # the class that is nowhere large is left out
