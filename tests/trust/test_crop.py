"""The box that is assessed: what is kept of it equals what the network said, however the volume was cut."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.errors import UsageError
from medseg.labels.decoding import Activation, LabelDecoding
from medseg.trust.crop import MARGIN_VOXELS, Crop, ProbabilityCrop, structure_box

SOFTMAX = LabelDecoding("softmax")


def _scores(seed: int, classes: int, shape: tuple[int, int, int]) -> torch.Tensor:
    """Scores of a sure background with a random block of doubtful structures."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(classes, *shape)).astype(np.float32)
    scores[0] += 20
    low = [int(rng.integers(0, n)) for n in shape]
    block = tuple(slice(a, a + 4) for a in low)
    scores[(slice(1, None), *block)] += rng.uniform(21, 30, (classes - 1, 1, 1, 1)).astype(np.float32)
    return torch.from_numpy(scores)


def _crop(scores: torch.Tensor, decoding: LabelDecoding, cuts: list[int]) -> Crop:
    kept = ProbabilityCrop(decoding)
    edges = sorted({0, scores.shape[1], *(cut for cut in cuts if 0 < cut < scores.shape[1])})
    for begin, end in pairwise(edges):
        kept.add(begin, scores[:, begin:end])
    crop = kept.crop(torch.arange(scores[0].numel()).reshape(1, *scores.shape[1:]), np.eye(4))
    assert crop is not None
    return crop


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(2, 6),
    st.lists(st.integers(1, 60), max_size=5),
    st.sampled_from(["softmax", "none"]),
)
def test_equals_the_softmax_in_the_box_whatever_the_chunks(
    seed: int, classes: int, cuts: list[int], activation: Activation
) -> None:
    scores = _scores(seed, classes, (60, 24, 18))
    crop = _crop(scores, LabelDecoding(activation), cuts)
    expected = torch.softmax(scores, 0)
    label = expected.argmax(0) > 0
    assert bool(label.any())
    torch.testing.assert_close(crop.probabilities, expected[(slice(None), *crop.slices)], atol=2e-3, rtol=1e-3)
    image = torch.arange(label.numel()).reshape(1, *label.shape).float()
    assert torch.equal(crop.image, image[(slice(None), *crop.slices)])
    index = label.nonzero()
    for axis in range(3):
        assert crop.start[axis] == max(int(index[:, axis].min()) - MARGIN_VOXELS, 0)
        stop = min(int(index[:, axis].max()) + 1 + MARGIN_VOXELS, label.shape[axis])
        assert crop.slices[axis].stop == stop
    whole = _crop(scores, LabelDecoding(activation), [])
    assert torch.equal(whole.probabilities, crop.probabilities)


def test_an_empty_prediction_keeps_the_whole_volume() -> None:
    scores = torch.zeros(3, 8, 9, 10)
    scores[0] = 30
    crop = _crop(scores, SOFTMAX, [3])
    assert crop.start == (0, 0, 0)
    assert torch.equal(crop.probabilities[0], torch.ones(8, 9, 10))


def test_one_channel_becomes_two() -> None:
    scores = torch.full((1, 6, 6, 6), -20.0)
    scores[0, 2:4, 2:4, 2:4] = 1.0
    crop = _crop(scores, LabelDecoding("none", 0.5), [])
    assert crop.probabilities.shape == (2, 6, 6, 6)
    assert float(crop.probabilities[1, 2, 2, 2]) == pytest.approx(torch.sigmoid(torch.tensor(1.0)).item(), abs=1e-3)
    activated = _crop(torch.sigmoid(scores), LabelDecoding("sigmoid", 0.5), [])
    assert activated.slices == crop.slices


def test_probabilities_are_not_put_through_a_softmax_again() -> None:
    probabilities = torch.softmax(_scores(1, 3, (12, 12, 12)), 0)
    crop = _crop(probabilities, LabelDecoding("none"), [])
    torch.testing.assert_close(crop.probabilities, probabilities[(slice(None), *crop.slices)], atol=2e-3, rtol=1e-3)


def test_above_the_limit_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medseg.trust.crop.LIMIT_BYTES", 50_000)
    scores = torch.randn(4, 20, 20, 20)
    kept = ProbabilityCrop(SOFTMAX)
    for begin in range(0, 20, 5):
        kept.add(begin, scores[:, begin : begin + 5])
    assert kept._kept_bytes < 3 * 50_000
    assert not kept._pieces
    assert kept.crop(scores[:1], np.eye(4)) is None


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="on one grid"):
        Crop(torch.zeros(1, 5, 6, 7), torch.zeros(2, 5, 6, 8))


def test_the_region_is_the_structures_with_a_margin() -> None:
    labels = torch.zeros(80, 60, 50, dtype=torch.long)
    labels[40:44, 20, 5:10] = 1
    expected = (slice(40 - MARGIN_VOXELS, 44 + MARGIN_VOXELS), slice(4, 37), slice(0, 26))
    assert structure_box(labels) == expected
    assert structure_box(torch.zeros(5, 6, 7)) == (slice(0, 5), slice(0, 6), slice(0, 7))


def test_a_huge_region_is_trimmed_about_its_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medseg.trust.crop._LARGEST_BOX", 30 * 30 * 30)
    box = structure_box(torch.ones(100, 40, 30))
    assert box == (slice(35, 65), slice(5, 35), slice(0, 30))
