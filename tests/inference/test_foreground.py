"""What is kept for trust equals what the network said, however the volume was cut."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.inference.foreground import MARGIN_VOXELS, ProbabilityCrop
from medseg.inference.sliding_window import Chunk
from medseg.labels.decoding import LabelDecoding


def _recipe(activation: str = "softmax", threshold: float | None = None) -> LabelDecoding:
    return LabelDecoding(activation, threshold)  # type: ignore[arg-type]


def _scores(seed: int, classes: int, shape: tuple[int, int, int]) -> torch.Tensor:
    """Scores of a sure background with a random block of doubtful structures."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(classes, *shape)).astype(np.float32)
    scores[0] += 20
    low = [int(rng.integers(0, n)) for n in shape]
    block = tuple(slice(a, a + 4) for a in low)
    scores[(slice(1, None), *block)] += rng.uniform(21, 30, (classes - 1, 1, 1, 1)).astype(np.float32)
    return torch.from_numpy(scores)


def _keep(scores: torch.Tensor, recipe: LabelDecoding, cuts: list[int]) -> ProbabilityCrop:
    keeper = ProbabilityCrop(recipe)
    edges = sorted({0, scores.shape[1], *(cut for cut in cuts if 0 < cut < scores.shape[1])})
    for begin, end in pairwise(edges):
        keeper(Chunk(begin, scores[:, begin:end]))
    return keeper


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(2, 6),
    st.lists(st.integers(1, 60), max_size=5),
    st.sampled_from(["softmax", "none"]),
)
def test_equals_the_softmax_in_the_box_whatever_the_slabs(
    seed: int, classes: int, cuts: list[int], activation: str
) -> None:
    scores = _scores(seed, classes, (60, 24, 18))
    crop = _keep(scores, _recipe(activation), cuts).crop(scores.shape[1:])
    assert crop is not None
    expected = torch.softmax(scores, 0)
    label = expected.argmax(0) > 0
    assert bool(label.any())
    torch.testing.assert_close(crop.probabilities, expected[(slice(None), *crop.slices)], atol=2e-3, rtol=1e-3)
    index = label.nonzero()
    for axis in range(3):
        assert crop.start[axis] == max(int(index[:, axis].min()) - MARGIN_VOXELS, 0)
        stop = min(int(index[:, axis].max()) + 1 + MARGIN_VOXELS, label.shape[axis])
        assert crop.slices[axis].stop == stop
    whole = _keep(scores, _recipe(activation), []).crop(scores.shape[1:])
    assert whole is not None
    assert torch.equal(whole.probabilities, crop.probabilities)


def test_an_empty_prediction_keeps_the_whole_volume() -> None:
    scores = torch.zeros(3, 8, 9, 10)
    scores[0] = 30
    crop = _keep(scores, _recipe(), [3]).crop((8, 9, 10))
    assert crop is not None
    assert crop.start == (0, 0, 0)
    assert torch.equal(crop.probabilities[0], torch.ones(8, 9, 10))


def test_one_channel_becomes_two() -> None:
    scores = torch.full((1, 6, 6, 6), -20.0)
    scores[0, 2:4, 2:4, 2:4] = 1.0
    crop = _keep(scores, _recipe("none", 0.5), []).crop((6, 6, 6))
    assert crop is not None
    assert crop.probabilities.shape == (2, 6, 6, 6)
    assert float(crop.probabilities[1, 2, 2, 2]) == pytest.approx(torch.sigmoid(torch.tensor(1.0)).item(), abs=1e-3)
    activated = _keep(torch.sigmoid(scores), _recipe("sigmoid", 0.5), []).crop((6, 6, 6))
    assert activated is not None


def test_probabilities_are_not_put_through_a_softmax_again() -> None:
    probabilities = torch.softmax(_scores(1, 3, (12, 12, 12)), 0)
    crop = _keep(probabilities, _recipe("none"), []).crop((12, 12, 12))
    assert crop is not None
    torch.testing.assert_close(crop.probabilities, probabilities[(slice(None), *crop.slices)], atol=2e-3, rtol=1e-3)


def test_above_the_limit_nothing_is_kept() -> None:
    scores = torch.randn(4, 20, 20, 20)
    keeper = ProbabilityCrop(_recipe(), limit_bytes=50_000)
    for begin in range(0, 20, 5):
        keeper(Chunk(begin, scores[:, begin : begin + 5]))
    assert keeper._kept_bytes < 3 * 50_000
    assert not keeper._pieces
    assert keeper.crop((20, 20, 20)) is None
