"""Scores of regions become one label map: in the order of the table, on every way back, as MONAI's masks say."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Activationsd, AsDiscreted, Compose, FillHolesd, Invertd, Orientationd, Spacingd

from medseg.errors import BundleError
from medseg.inference.config import InferenceConfig
from medseg.inference.invert import Inverter
from medseg.inference.postprocessing import read_postprocessing
from medseg.inference.sliding_window import Chunk, WindowSettings
from medseg.labels import LabelScheme

_SCHEME = LabelScheme.of({"labels": {"whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}})
_BY_SPACING = Compose([Orientationd("image", axcodes="RAS", labels=None), Spacingd("image", pixdim=(1.5, 1.0, 2.0))])
_SHEARED = np.array([[1.0, 0.2, 0, 0], [0, 1, 0.1, 0], [0, 0, 2, 0], [0, 0, 0, 1]])


def _source(affine: np.ndarray) -> MetaTensor:
    return MetaTensor(torch.randn(1, 14, 12, 9, generator=torch.Generator().manual_seed(1)), affine=affine)


@pytest.mark.parametrize(
    ("affine", "where"),
    [(np.diag([-1.0, -1.0, 2.5, 1.0]), "scores"), (_SHEARED, "scores"), (np.diag([1.0, 1, 2.5, 1]), "labels")],
    ids=["aligned", "sheared", "labels first"],
)
def test_the_label_map_is_what_monais_masks_paint(affine: np.ndarray, where: str) -> None:
    image = _source(affine)
    prepared = _BY_SPACING({"image": image})["image"]
    scores = torch.randn(3, *prepared.shape[1:], generator=torch.Generator().manual_seed(2)) * 3
    back = Invertd("pred", _BY_SPACING, orig_keys="image", nearest_interp=where == "labels")
    threshold = AsDiscreted("pred", threshold=0.5)
    sigmoid = Activationsd("pred", sigmoid=True)
    written = [sigmoid, back, threshold] if where == "scores" else [sigmoid, threshold, back]
    post = read_postprocessing(Compose(written), _BY_SPACING, (1, 3), "b", _SCHEME.table)
    assert any("painted" in note for note in post.notes)
    config = InferenceConfig(_BY_SPACING, WindowSettings((0, 0, 0)), post)
    chunks = [Chunk(start, scores[:, start : start + 4]) for start in range(0, scores.shape[1], 4)]
    found = Inverter(config, image, prepared).labels(chunks)
    masks = Compose(written)({"image": prepared, "pred": MetaTensor(scores, meta=prepared.meta,
        applied_operations=prepared.applied_operations)})["pred"]  # fmt: skip
    expected = np.zeros(image.shape[1:], np.uint8)
    for value, mask in enumerate(masks, start=1):
        expected[mask.numpy() > 0] = value
    assert found.dtype == np.uint8
    assert np.mean(found != expected) < 2e-3  # positions halfway between voxels are rounded by noise


def test_every_combination_is_painted() -> None:
    combinations = torch.tensor(list(product([-1.0, 1.0], repeat=3))).T.reshape(3, 2, 2, 2)
    image = MetaTensor(torch.zeros(1, 2, 2, 2))
    steps = Compose([Activationsd("pred", sigmoid=True), AsDiscreted("pred", threshold=0.5)])
    post = read_postprocessing(steps, None, (1, 3), "b", _SCHEME.table)
    found = Inverter(InferenceConfig(Compose([]), WindowSettings((0, 0, 0)), post), image, image)
    assert found.labels([Chunk(0, combinations)]).flatten().tolist() == [0, 3, 2, 3, 1, 3, 2, 3]


def test_post_processing_that_is_none_of_regions_is_refused() -> None:
    sigmoid, threshold = Activationsd("pred", sigmoid=True), AsDiscreted("pred", threshold=0.5)
    for steps in ([sigmoid, AsDiscreted("pred", argmax=True)], [sigmoid, threshold, FillHolesd("pred")]):
        with pytest.raises(BundleError, match="b has regions"):
            read_postprocessing(Compose(steps), None, (1, 3), "b", _SCHEME.table)
    with pytest.raises(BundleError, match=r"gives 3 channels.*regions_class_order"):
        read_postprocessing(Compose([sigmoid, threshold]), None, (1, 3), "b")
