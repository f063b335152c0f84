"""A judge that follows the contract and whose answers can be worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from medseg.bundle import Bundle
from medseg.files import sha256_file
from medseg.trust.calibration import Calibration, Estimate, FitOptions, Thresholds, fit_calibration
from medseg.trust.trust_model import TrustModel

LIMITS = Thresholds(accept=0.7, reject=0.3)


@dataclass(frozen=True)
class FakeTrust:
    """As the judge's own answer."""

    estimates: Mapping[int, Estimate]
    verdict: str
    flags: tuple[str, ...]
    scores: Mapping[str, float]
    doubt: NDArray[np.float32]
    case_class: Mapping[str, float]


@dataclass
class FakeJudge:
    """Predicts a Dice of 0.9 for structure 1; for structure 2 its mean probability where it wins. Doubts by entropy.

    An image whose maximum exceeds 49.5 is flagged as unlike the training, and taken for one with motion.
    """

    seen: list[tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    error: Exception | None = None

    def assess(
        self, image: torch.Tensor, probabilities: torch.Tensor, spacing_mm: tuple[float, float, float]
    ) -> FakeTrust:
        assert image.dtype == probabilities.dtype == torch.float32
        assert image.shape[1:] == probabilities.shape[1:]
        assert all(step > 0 for step in spacing_mm)
        torch.testing.assert_close(probabilities.sum(0), torch.ones(probabilities.shape[1:]))
        if self.error is not None:
            raise self.error
        self.seen.append((tuple(image.shape), tuple(probabilities.shape)))
        won = probabilities.argmax(0) == 2
        second = float(probabilities[2][won].mean()) if bool(won.any()) else 0.0
        estimates = {1: Estimate(0.9, 0.8), 2: Estimate(second, second / 2)}
        flags = ("unlike-training",) if float(image.max()) > 49.5 else ()
        doubt = np.asarray(1.0 - probabilities.amax(0).numpy(), dtype=np.float32)
        kinds = {"usual": 0.17, "motion": 0.83} if flags else {"usual": 0.9, "motion": 0.1}
        return FakeTrust(estimates, LIMITS.verdict(list(estimates.values())), flags, {}, doubt, kinds)


def use(judge: FakeJudge, monkeypatch: pytest.MonkeyPatch) -> FakeJudge:
    """Let inference open this judge."""
    monkeypatch.setattr(TrustModel, "open", lambda *_: judge)
    return judge


@cache
def small_calibration() -> Calibration:
    dice = np.linspace(0.5, 0.95, 20).tolist()
    names = {1: "small", 2: "large"}
    patients = [str(n) for n in range(20)]
    return fit_calibration({"score": dice}, {1: dice, 2: dice}, names, patients, "none", FitOptions(thresholds=LIMITS))


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
