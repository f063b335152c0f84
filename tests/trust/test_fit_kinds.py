"""A fit with everything in it: what a calibration is fitted with is what the trust model then says of the same case."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from medseg.bundle import Bundle
from medseg.results.verdict import STRUCTURE_MISSING, USUAL
from medseg.trust.calibration import FEWEST_OF_A_KIND, AboutCases, Calibration, FitOptions, fit_calibration
from medseg.trust.crop import Crop
from medseg.trust.fit import TrustOptions, fit_trust
from medseg.trust.fit_cases import TrustCase
from medseg.trust.trust_files import CALIBRATION_NAME, FAULT_CLASSIFIER_NAME, TrustFiles
from medseg.trust.trust_model import TrustModel
from tests.trust.conftest import result

KINDS = {"noise", USUAL}


def nothing(seed: int) -> TrustCase:
    """A network's own result in which it has found nothing."""
    case = result(seed)
    probabilities = torch.zeros_like(case.crop.probabilities)
    probabilities[0] = 1.0
    return replace(case, crop=Crop(case.crop.image, probabilities))


def test_kinds_are_features_and_have_bounds_of_their_own(fitted: tuple[Bundle, nn.Module]) -> None:
    files = TrustFiles(fitted[0])
    classifier, calibration = files.fault_classifier, files.calibration
    assert classifier is not None
    assert calibration is not None
    assert set(classifier.classes) == KINDS
    assert set(calibration.features) >= classifier.feature_names
    for structure in calibration.structures:
        assert {kind.name for kind in structure.kinds} == KINDS
        assert all(FEWEST_OF_A_KIND <= kind.n_patients <= 16 for kind in structure.kinds)


def test_a_second_fit_knows_of_each_case_what_the_model_says_of_it(
    fitted: tuple[Bundle, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, network = Bundle.open(shutil.copytree(fitted[0].path, tmp_path / "copy")), fitted[1]
    known = dict[str, Any]()

    def watched(features: Any, dice: Any, names: Any, patients: Any, *more: Any) -> Calibration:
        known.update(features=features, about=more[-1])
        return fit_calibration(features, dice, names, patients, *more)

    monkeypatch.setattr("medseg.trust.fit.fit_calibration", watched)
    classifier = (bundle.path / FAULT_CLASSIFIER_NAME).read_bytes()
    cases = [result(seed, fault) for seed in range(50, 60) for fault in (None, "cut", "noise")]
    cases.append(nothing(60))  # the farthest of the own results, so that its distances alone flag nothing
    before = (bundle.path / CALIBRATION_NAME).read_bytes()
    calibration = fit_trust(bundle, network, cases, (), TrustOptions(FitOptions(folds=2), None))
    assert (bundle.path / FAULT_CLASSIFIER_NAME).read_bytes() == classifier  # few do not replace what many taught
    assert (bundle.path / CALIBRATION_NAME).read_bytes() != before
    assert {kind.name for kind in calibration.structures[0].kinds} == KINDS
    files = TrustFiles(bundle)
    assert files.state.state == "ready", files.state.message
    model, about = TrustModel.open(files, network), known["about"]
    assert model is not None
    assert isinstance(about, AboutCases)
    found = [model.assess(case.crop) for case in cases]
    assert [one.verdict.fault and one.verdict.fault.name for one in found] == about.kinds
    assert [bool(one.verdict.flags) for one in found] == about.flagged
    assert found[-1].verdict.flags == (STRUCTURE_MISSING,)
    for name, column in known["features"].items():
        np.testing.assert_allclose([one.features[name] for one in found], column, rtol=1e-5, atol=1e-5, err_msg=name)
    for one in found:
        told = calibration.estimate(one.features, one.verdict.fault and one.verdict.fault.name)
        assert [s.lower_bound for s in told] == [s.lower_bound for s in one.verdict.structures]
