"""Wrong pairs: each operation against scipy's, each kind by what a hand can check, draws that come again."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from medseg.transforms import KINDS, MismatchedPairs
from medseg.transforms.mismatched_pairs import Mismatch, MismatchKind, dilated, eroded, moved, possible, warped


def _halves(shape: tuple[int, ...] = (20, 20, 20)) -> Tensor:
    """A block of two structures that touch, ``(2, H, W[, D])``."""
    found = torch.zeros(2, *shape)
    found[0, 5:10, 6:14], found[1, 10:15, 6:14] = 1.0, 1.0
    if len(shape) == 3:
        found[..., :6], found[..., 14:] = 0.0, 0.0
    return found


def _source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(1, 7, 6), (2, 7, 6, 5)])
def test_erosion_and_dilation_are_scipys(shape: tuple[int, ...]) -> None:
    grey = torch.rand(shape, generator=_source())
    cross = ndimage.generate_binary_structure(len(shape) - 1, 1)
    for ours, theirs in ((eroded, ndimage.grey_erosion), (dilated, ndimage.grey_dilation)):
        expected = [theirs(channel, footprint=cross) for channel in grey.numpy()]
        np.testing.assert_array_equal(ours(grey).numpy(), np.stack(expected))


def test_a_warp_is_scipys_inside() -> None:
    grey, field = torch.rand((1, 9, 8, 7), generator=_source()), torch.rand((3, 9, 8, 7), generator=_source(1))
    places = np.indices((9, 8, 7)) + field.numpy()
    expected = ndimage.map_coordinates(grey[0].numpy(), places, order=1)
    found = warped(grey, field, mode="bilinear")[0].numpy()
    np.testing.assert_allclose(found[:-1, :-1, :-1], expected[:-1, :-1, :-1], atol=1e-5)


def test_what_moves_in_is_empty() -> None:
    row = torch.tensor([[1.0, 2.0, 3.0]])
    assert moved(row, [1]).tolist() == [[0.0, 1.0, 2.0]]
    assert moved(row, [-2]).tolist() == [[3.0, 0.0, 0.0]]
    assert moved(row, [5]).tolist() == [[0.0, 0.0, 0.0]]
    assert row.tolist() == [[1.0, 2.0, 3.0]]


@pytest.mark.parametrize("shape", [(20, 20), (20, 20, 20)])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_wrong_hard_and_comes_again(kind: MismatchKind, shape: tuple[int, ...]) -> None:
    pairs, reference, another = MismatchedPairs(), _halves(shape), _halves(shape).flip(1) * 1.0
    for seed in range(8):
        found = [pairs.apply(reference, pairs.draw(kind, reference, _source(seed)), another) for _ in range(2)]
        assert torch.equal(*found)
        assert found[0].shape == reference.shape
        assert not torch.equal(found[0], reference)
        assert set(found[0].unique().tolist()) <= {0.0, 1.0}
        assert found[0].sum(0).max() <= 1.0, "one structure a voxel"


def test_the_kinds_do_what_they_say() -> None:
    pairs, reference = MismatchedPairs(), _halves()
    volume = reference.sum()
    assert pairs.apply(reference, Mismatch("eroded")).sum() == 8 * 6 * 6
    grown = pairs.apply(reference, Mismatch("dilated"))
    assert grown.sum() == volume + 2 * (10 * 8 + 10 * 8 + 8 * 8)
    assert torch.equal(grown * reference.sum(0), reference), "structures that touch keep their places"
    assert torch.equal(pairs.apply(reference, Mismatch("swapped", structures=(0, 1))), reference.flip(0))
    lengths = [torch.tensor(pairs.draw("shifted", reference, _source(n)).offset).float().norm() for n in range(50)]
    assert 0.5 < min(lengths) < max(lengths) < 4.0
    far = moved(reference, [3, -4, 2])
    assert torch.equal(pairs.apply(reference, Mismatch("another's"), far), reference), "laid over it"
    nothing = torch.zeros_like(reference)
    assert torch.equal(pairs.apply(reference, Mismatch("another's"), nothing), nothing)


def test_regions_that_overlap_shrink_and_grow_each_for_itself() -> None:
    pairs, nested = MismatchedPairs(overlapping=True), torch.zeros(2, 20, 20)
    nested[0, 4:16, 4:16], nested[1, 7:12, 7:12] = 1.0, 1.0
    assert pairs.apply(nested, Mismatch("eroded")).sum((1, 2)).tolist() == [100.0, 9.0]
    assert pairs.apply(nested, Mismatch("dilated")).sum((1, 2)).tolist() == [144.0 + 48.0, 25.0 + 20.0]


def test_a_batch_has_a_wrong_pair_for_each_that_can_have_one() -> None:
    references = torch.stack([_halves(), torch.zeros(2, 20, 20, 20), moved(_halves(), [2, 0, 0])])
    wrong, differs = MismatchedPairs()(references, _source(5))
    again, _ = MismatchedPairs()(references, _source(5))
    assert torch.equal(wrong, again)
    assert differs.tolist() == [True, True, True], "another's can be laid into an empty one"
    alone, differs = MismatchedPairs()(references[1:2], _source())
    assert differs.tolist() == [False]
    assert torch.equal(alone, references[1:2])


def test_what_a_bundle_cannot_have() -> None:
    one = torch.ones(1, 4, 4)
    assert [kind for kind in KINDS if not possible(kind, one, None)] == ["swapped", "another's"]
    wrong, differs = MismatchedPairs()(_halves()[None, :1], _source())
    assert differs.tolist() == [True]
    assert wrong.shape == (1, 1, 20, 20, 20)
