from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from medseg.errors import UsageError
from medseg.evaluation.concordance import compare_case, estimated_dice, odd_one_out
from medseg.evaluation.matching import Matched, Offered, match, term_of
from medseg.geometry import Geometry


def ball(size: int = 40, radius: float = 12.0) -> NDArray[np.bool_]:
    axes = np.indices((size,) * 3) - (size - 1) / 2
    return np.asarray((axes**2).sum(axis=0) <= radius**2)


def wrong(mask: NDArray[np.bool_], share: float, seed: int) -> NDArray[np.bool_]:
    """A mask with this share of its voxels lost and as many invented beside it, each by chance."""
    draw = np.random.default_rng(seed).random(mask.shape)
    near = ball(mask.shape[0], 15.0) & ~mask
    return np.asarray((mask & (draw >= share)) | (near & (draw < share * mask.sum() / near.sum())))


def dice(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def test_estimated_dice_is_true_where_errors_are_independent() -> None:
    truth = ball()
    readers = [wrong(truth, share, seed) for seed, share in enumerate((0.05, 0.15, 0.4))]
    estimated = estimated_dice(readers)
    assert estimated == pytest.approx([dice(one, truth) for one in readers], abs=0.04)


def test_an_error_that_readers_share_counts_as_right() -> None:
    truth = ball()
    shared = np.roll(truth, 6, axis=0)
    estimated = estimated_dice([shared, wrong(shared, 0.02, 1), wrong(truth, 0.02, 2)])
    assert estimated is not None
    assert min(estimated[:2]) > dice(shared, truth) + 0.2
    assert estimated[2] < 0.8 < dice(wrong(truth, 0.02, 2), truth)


def test_nothing_is_estimated_of_two_nor_of_nothing() -> None:
    assert estimated_dice([ball(), ball()]) is None
    assert estimated_dice([np.zeros((3, 3, 3), bool)] * 3) is None
    assert estimated_dice([ball()] * 3) == pytest.approx([1.0] * 3)


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ((0.9, 0.9, 0.9), None),
        ((0.9, 0.84, 0.86), None),  # 0.05 is a mean of 0.85
        ((0.9, 0.5, 0.6), 2),
        ((0.0, 0.0, 1.0), 0),
        ((0.2, 0.2, 0.2), None),
    ],
)
def test_the_odd_one_out_is_clearly_below_the_others(pairs: tuple[float, float, float], expected: int | None) -> None:
    ab, ac, bc = pairs
    found = np.array([[np.nan, ab, ac], [ab, np.nan, bc], [ac, bc, np.nan]])
    assert odd_one_out(found, margin=0.051) == expected


def test_nobody_is_odd_where_all_agree_even_without_a_margin() -> None:
    alike = np.where(np.eye(3, dtype=bool), np.nan, 1.0)
    assert odd_one_out(alike, margin=0.0) is None


def test_structures_that_one_has_alone_and_nobody_has() -> None:
    grid = Geometry((6, 6, 6), np.eye(4))
    one, empty = np.zeros((6, 6, 6), np.uint8), np.zeros((6, 6, 6), np.uint8)
    one[2:4, 2:4, 2:4] = 1
    organ = Offered("organ", (1,))
    structures = [
        Matched("organ", dict.fromkeys("abc", organ), "name"),
        Matched("other", dict.fromkeys("ab", Offered("other", (2,))), "name"),
    ]
    found = compare_case("x", {"a": one, "b": empty, "c": empty}, grid, structures)
    assert {o.reader: (o.missed, o.invented, o.odd) for o in found.opinions if o.structure == "organ"} == {
        "a": (False, True, False),  # b and c have no Dice with each other, so that nothing tells who is odd
        "b": (False, False, False),
        "c": (False, False, False),
    }
    assert [one.row.dice for one in found.between] == [0.0, 0.0, None, None]
    assert (found.odd, found.worst, found.agreement) == ("", 0.0, 0.0)


def test_terms_go_before_names_and_a_side_tells_apart() -> None:
    left, right = (
        term_of({"type": ["1", "SCT", "Kidney"], "laterality": [value, "SCT", "side"]}) for value in ("L", "R")
    )
    readers = {
        "a": [Offered("kidney", (1,), left), Offered("liver", (2,))],
        "b": [Offered("kidney", (1,), right), Offered("ren sinister", (5,), left), Offered("Liver", (9,))],
    }
    matched, alone = match(readers)
    assert [(one.name, one.by, one.members["b"].values) for one in matched] == [
        ("kidney", "code", (5,)),
        ("liver", "name", (9,)),
    ]
    assert alone == {"a": [], "b": ["kidney"]}
    with pytest.raises(UsageError, match="--match"):
        match({"a": readers["a"][:1], "b": readers["b"][:1]})


@pytest.mark.parametrize("order", ["acb", "cab", "bca"])
def test_a_name_without_term_does_not_lead_from_one_side_to_the_other(order: str) -> None:
    left, right = (
        term_of({"type": ["1", "SCT", "Kidney"], "laterality": [value, "SCT", "side"]}) for value in ("L", "R")
    )
    terms = {"a": left, "b": right, "c": None}
    matched, alone = match({name: [Offered("kidney", (1,), terms[name])] for name in order})
    [one] = matched
    assert not {"a", "b"} <= one.members.keys()
    assert sum(map(len, alone.values())) == 1
