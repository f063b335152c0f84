"""nnU-Net's preprocessing takes the voxel sizes that a header stores, however the grid is turned."""

from __future__ import annotations

import numpy as np
import torch
from monai.data import MetaTensor

from medseg.transforms.nnunet import NNUNetPreprocessd


def test_a_turned_grid_is_resampled_as_an_upright_one() -> None:
    turn = np.deg2rad(17)
    affine = np.diag([0.5, 0.5, 2.0, 1.0])
    affine[:2, :2] = 0.5 * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    stored = affine.astype(np.float32).astype(np.float64)
    assert np.float32(np.linalg.norm(stored[:3, 0])) < 0.5  # so that 7.5 voxels would become 7
    image = MetaTensor(torch.rand(1, 15, 15, 4) + 0.1, affine=torch.from_numpy(stored))
    prepare = NNUNetPreprocessd("image", (1.0, 1.0, 2.0), [{"name": "NoNormalization"}])
    assert prepare({"image": image})["image"].shape == (1, 8, 8, 4)


def test_an_image_of_zeros_has_no_mean_within_what_is_not_zero() -> None:
    prepare = NNUNetPreprocessd("image", (1.0, 1.0, 1.0), [{"name": "ZScoreNormalization", "masked": True}])
    found = prepare({"image": MetaTensor(torch.zeros(1, 5, 6, 7))})["image"]
    assert torch.equal(found.as_tensor(), torch.zeros(1, 5, 6, 7))
