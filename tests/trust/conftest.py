"""A small bundle, and results of known quality on images whose structures can be seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from medseg.bundle import Bundle
from medseg.results.verdict import Thresholds
from medseg.trust.calibration import FitOptions
from medseg.trust.crop import Crop
from medseg.trust.error_net import FineTuning
from medseg.trust.fit import TrustOptions, fit_trust
from medseg.trust.fit_cases import TrainingCase, TrustCase
from medseg.trust.synthetic_faults import IMAGE_FAULTS, MASK_FAULTS
from tests.bundle.sample import write_bundle

SIDE = 24


def ball(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A bright ball in noise, image ``(H, W, D)`` and mask."""
    rng = np.random.default_rng(seed)
    centre = SIDE / 2 + rng.uniform(-2, 2, 3)
    distance = np.sqrt(sum((g - c) ** 2 for g, c in zip(np.indices((SIDE,) * 3), centre, strict=True)))
    mask = (distance < rng.uniform(5, 7)).astype(np.uint8)
    image = 2.0 * mask + 0.2 * rng.standard_normal(mask.shape)
    return ((image - image.mean()) / image.std()).astype(np.float32), mask


def result(seed: int, fault: str | None = None) -> TrustCase:
    """A soft mask of a ball, with a fault in the image or in the mask if asked for."""
    image, mask = ball(seed)
    soft = np.where(mask, 0.97, 0.03).astype(np.float32)
    probabilities = np.stack([1 - soft, soft])
    if fault is not None and fault in IMAGE_FAULTS:
        image = IMAGE_FAULTS[fault](image, np.random.default_rng(seed))
    elif fault is not None:
        probabilities = MASK_FAULTS[fault](probabilities, np.random.default_rng(seed))
    crop = Crop(torch.from_numpy(image)[None], torch.from_numpy(probabilities))
    return TrustCase(crop, mask, f"p{seed}", fault)


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, nn.Module]:
    """A bundle with everything under ``trust/``, and its network; do not change it."""
    folder: Path = write_bundle(tmp_path_factory.mktemp("trust"))
    bundle = Bundle.open(folder)
    network = bundle.load_network()
    torch.manual_seed(0)
    cases = [result(seed, fault) for seed in range(16) for fault in (None, "shift", "cut", "noise")]
    training = [TrainingCase(torch.from_numpy(image)[None], mask) for image, mask in map(ball, range(100, 140))]
    accepting = FitOptions(thresholds=Thresholds(0.8, 0.5))  # so few patients show no precision
    options = TrustOptions(accepting, FineTuning(steps=40, batch=2), folds=2)
    fit_trust(bundle, network, cases, training, options)
    return bundle, network
