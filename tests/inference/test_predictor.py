"""The predictor gives what the bundle's own MONAI evaluator gives, on every kind of grid."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.inference import Predictor
from tests.inference.bundles import (
    CROPPED,
    LABELS_BACK,
    NORMALISED,
    ORIENTED,
    RESAMPLED,
    SCORES_BACK,
    UNET,
    Design,
    run_monai,
    write_bundle,
)
from tests.inference.volumes import blobs, grid, load, meta_tensor, save

GRIDS = ("plain", "permuted", "oblique", "sheared")


@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize(
    ("transforms", "post"),
    [(ORIENTED, SCORES_BACK), (NORMALISED, SCORES_BACK), (NORMALISED, LABELS_BACK), (CROPPED, SCORES_BACK)],
    ids=["oriented", "resampled-scores", "resampled-labels", "cropped"],
)
def test_agrees_with_the_bundles_own_evaluator(
    tmp_path: Path, kind: str, transforms: tuple[dict[str, object], ...], post: tuple[dict[str, object], ...]
) -> None:
    bundle = write_bundle(tmp_path / "tiny", Design(network=UNET, transforms=transforms, post=post))
    image = blobs((37, 22, 19))
    save(image, grid(kind), tmp_path / "images" / "a.nii.gz")
    run_monai(bundle, tmp_path / "images", tmp_path / "monai")
    expected, _ = load(tmp_path / "monai" / "a_seg.nii.gz")
    affine = nib.load(tmp_path / "images" / "a.nii.gz").affine
    found = Predictor(bundle, precision="fp32").predict(meta_tensor(image, affine)).label_map
    assert found.shape == image.shape
    assert len(np.unique(expected)) > 1
    assert np.mean(found == expected) >= 0.9999


@pytest.mark.parametrize("kind", GRIDS)
def test_thresholds_are_where_a_hand_puts_them(tmp_path: Path, kind: str) -> None:
    bundle = write_bundle(tmp_path / "tiny", Design(transforms=ORIENTED))
    image = blobs((20, 33, 17))
    found = Predictor(bundle).predict(meta_tensor(image, grid(kind))).label_map
    np.testing.assert_array_equal(found, (image > 10).astype(int) + (image > 30))
    assert found.dtype == np.uint8


def test_an_empty_result_stays_empty(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "tiny", Design(transforms=RESAMPLED))
    found = Predictor(bundle).predict(meta_tensor(np.ones((9, 9, 9), np.float32), grid("oblique"))).label_map
    assert not found.any()
