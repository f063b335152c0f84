"""What is known of a label map: regions, ignored voxels, structures that were not looked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.data import MetaTensor

from medseg.errors import Refusal, UsageError
from medseg.transforms import KnownLabelsd, RandSpatiald

_BRATS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}
_LABEL = torch.tensor([0.0, 1, 2, 3, 4]).view(1, 1, 1, 5)


def test_regions_get_a_channel_each() -> None:
    case = KnownLabelsd("label", _BRATS)({"label": MetaTensor(_LABEL)})
    assert isinstance(case["label"], MetaTensor)
    assert case["label"][:, 0, 0].tolist() == [[0, 1, 1, 1, -1], [0, 0, 1, 1, -1], [0, 0, 0, 1, -1]]
    partly = KnownLabelsd("label", _BRATS)({"label": _LABEL.clamp_max(1), "annotated": ["whole"]})
    assert "annotated" not in partly
    assert partly["label"][:, 0, 0].tolist() == [[0, 1, 1, 1, 1], [-1] * 5, [-1] * 5]


def test_classes_keep_their_numbers() -> None:
    table = {"0": "background", "1": "liver", "2": "tumour", "3": "ignore"}
    case: dict[Any, Any] = {"label": torch.tensor([0.0, 1, 3]).view(1, 1, 1, 3)}
    assert KnownLabelsd("label", table)(case)["label"].flatten().tolist() == [0, 1, -1]
    assert KnownLabelsd("label", table)({**case, "annotated": ["liver"]})["label"].flatten().tolist() == [-5, 1, -1]
    full = KnownLabelsd("label", table)({**case, "annotated": ["tumour", "liver"]})
    assert full["label"].flatten().tolist() == [0, 1, -1]
    assert KnownLabelsd("label", table, allow_missing_keys=True)({"image": 1}) == {"image": 1}


@pytest.mark.parametrize(
    ("case", "error", "words"),
    [
        ({"label": _LABEL * 3}, Refusal, r"the label holds \[3, 6, 9, 12\], declared are"),
        ({"label": _LABEL.clamp_max(2), "annotated": ["liver"]}, Refusal, "holds 2 .tumour., which the case does not"),
        ({"label": _LABEL * 0, "annotated": ["spleen"]}, UsageError, "expected a list of declared structures"),
        ({"label": _LABEL * 0, "annotated": "liver"}, UsageError, "expected a list of declared structures"),
    ],
)
def test_what_contradicts_the_table_is_refused(case: dict[Any, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        KnownLabelsd("label", {"0": "background", "1": "liver", "2": "tumour"})(case)


def test_more_structures_than_a_code_holds_are_refused() -> None:
    table = {f"s{n}": n for n in range(1, 31)}
    known = KnownLabelsd("label", table)({"label": _LABEL * 6})
    assert known["label"].max() == 24
    with pytest.raises(Refusal, match="30 structures, expected 22 at most"):
        KnownLabelsd("label", table)({"label": _LABEL * 0, "annotated": ["s1"]})
    with pytest.raises(UsageError, match="expected 1 to 2; renumber"):
        KnownLabelsd("label", {"liver": 1, "tumour": 5})


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.int16, torch.float32])
def test_what_is_not_known_is_kept_or_refused_in_any_type(dtype: torch.dtype) -> None:
    """In a byte -1 would be class 255, in half a float -513 would be -512."""
    table = {**{f"s{n}": n for n in range(1, 10)}, "ignore": 10}
    label = torch.tensor([0, 1, 10]).view(1, 1, 1, 3).to(dtype)
    case: dict[Any, Any] = {"label": label, "annotated": [f"s{n}" for n in range(1, 9)]}
    if dtype in (torch.uint8, torch.bfloat16):
        with pytest.raises(UsageError, match="cannot hold -513 for what is not known; load them as float32"):
            KnownLabelsd("label", table)(case)
    else:
        assert KnownLabelsd("label", table)(case)["label"].flatten().tolist() == [-513, 1, -1]
    if dtype == torch.uint8:
        with pytest.raises(UsageError, match="cannot hold -1"):
            KnownLabelsd("label", _BRATS)({"label": _LABEL.to(dtype)})
        assert KnownLabelsd("label", _BRATS)({"label": _LABEL.clamp_max(3).to(dtype)})["label"].dtype == dtype


def test_patches_hold_a_voxel_that_was_judged() -> None:
    label = torch.full((1, 40, 40, 40), -1.0)
    label[:, 36, 3, 20] = 1.0
    patch = RandSpatiald(["image", "label"], (8, 8, 8), prob_affine=0, prob_elastic=0, foreground_key="label",
                         prob_foreground=0.0)  # fmt: skip
    patch.set_random_state(seed=0)
    for _ in range(20):
        drawn = patch({"image": torch.zeros(1, 40, 40, 40), "label": label})
        assert (drawn["label"] == 1).any()
    nothing = patch({"image": torch.zeros(1, 40, 40, 40), "label": torch.full_like(label, -1.0)})
    assert nothing["label"].shape == (1, 8, 8, 8)
