"""A judge that follows the contract and whose answers can be worked out by hand."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from medseg.bundle import Bundle
from medseg.files import sha256_file
from medseg.results.verdict import (
    UNLIKE_TRAINING,
    USUAL,
    Decision,
    FaultKind,
    StructureQuality,
    Thresholds,
    Verdict,
)
from medseg.trust.calibration import Calibration, FitOptions, fit_calibration
from medseg.trust.crop import Crop
from medseg.trust.trust_model import Assessment, TrustModel, look_at_mm

LIMITS = Thresholds(accept=0.7, reject=0.3)


@dataclass
class FakeJudge:
    """Predicts a Dice of 0.9 for structure 1; for structure 2 its mean probability where it wins; errors by margin.

    An image whose maximum exceeds 49.5 is flagged as unlike the training, and taken for one with motion.
    """

    seen: list[tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    error: Exception | None = None
    decision: Decision | None = None

    def assess(self, crop: Crop) -> Assessment:
        image, probabilities = crop.image, crop.probabilities
        assert image.dtype == probabilities.dtype == torch.float32
        assert all(step > 0 for step in crop.spacing_mm)
        torch.testing.assert_close(probabilities.sum(0), torch.ones(probabilities.shape[1:]))
        if self.error is not None:
            raise self.error
        self.seen.append((tuple(image.shape), tuple(probabilities.shape)))
        won = probabilities.argmax(0) == 2
        second = float(probabilities[2][won].mean()) if bool(won.any()) else 0.0
        structures = (StructureQuality(1, "small", 0.9, 0.8), StructureQuality(2, "large", second, second / 2))
        flags = (UNLIKE_TRAINING,) if float(image.max()) > 49.5 else ()
        errors = np.asarray(1.0 - probabilities.amax(0).numpy(), dtype=np.float32)
        fault = FaultKind("motion", 0.83) if flags else FaultKind(USUAL, 0.9)
        decision = self.decision or LIMITS.decide(structures)
        return Assessment(Verdict(decision, structures, flags, look_at_mm(errors, crop), fault), errors, {})


def use(judge: FakeJudge, monkeypatch: pytest.MonkeyPatch) -> FakeJudge:
    """Let inference open this judge."""
    monkeypatch.setattr(TrustModel, "open", lambda *_: judge)
    return judge


@cache
def small_calibration() -> Calibration:
    dice = np.linspace(0.5, 0.95, 20).tolist()
    names = {1: "small", 2: "large"}
    patients = [str(n) for n in range(20)]
    return fit_calibration(
        {"entropy": dice}, {1: dice, 2: dice}, names, patients, "none", FitOptions(thresholds=LIMITS)
    )


def calibrate(bundle: Path, weights_sha256: str | None = None) -> Path:
    """Write a small but real calibration into a bundle, for its own weights or others."""
    path = bundle / "trust" / "calibration.json"
    path.parent.mkdir(exist_ok=True)
    sha256 = weights_sha256 or sha256_file(bundle / "models" / "model.pt")
    replace(small_calibration(), weights_sha256=sha256).write(path)
    assert Bundle.open(bundle).labels == {1: "small", 2: "large"}
    return path


def read_run(folder: Path) -> dict[str, object]:
    return dict(json.loads((folder / "run.json").read_text()))
