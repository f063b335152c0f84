"""What a run says of the calibration behind its verdicts, and what fits together in a bundle's ``trust/``."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from medseg.bundle import Bundle
from medseg.json_shape import misfit
from medseg.results.run_report import RUN
from medseg.trust.calibration import Calibration, KindBound
from medseg.trust.trust_files import CALIBRATION_NAME, TrustFiles, trust_state
from medseg.trust.trust_model import TrustModel
from tests.trust.conftest import result

FLAGSHIP = Path(__file__).parents[2] / "bundles" / "hippocampus_mri_segmentation"


def test_the_flagship_says_what_its_calibration_was_fitted_on() -> None:
    state = trust_state(Bundle.open(FLAGSHIP))
    assert state.state == "ready"
    assert "calibrated for these weights on 150 patients: 90% of the lower bounds hold" in state.describe()
    assert "held-out results of folds 0, 1, 2, 3, 4" in state.as_json()["provenance"]
    assert state.describe().endswith("accept from 0.80, reject below 0.50")  # an older file, which says no more


def bounded(calibration: Calibration, kind: str, factor: float) -> Calibration:
    """With a bound of its own for one kind of image, so many times as far below the predicted Dice."""
    structures = (
        replace(one, kinds=(KindBound(kind, factor * (one.quantile or 1.0), 20),)) for one in calibration.structures
    )
    return replace(calibration, structures=tuple(structures))


def test_the_kind_of_image_lowers_the_bound(fitted: tuple[Bundle, nn.Module]) -> None:
    bundle, network = fitted
    model = TrustModel.open(TrustFiles(bundle), network)
    assert model is not None
    crop = result(41, "noise").crop
    plain = model.assess(crop).verdict
    assert plain.fault is not None
    by_kind = {
        (kind, factor): replace(model, calibration=bounded(model.calibration, kind, factor)).assess(crop).verdict
        for kind, factor in ((plain.fault.name, 3.0), (plain.fault.name, 0.1), ("another", 3.0))
    }
    lower = by_kind[plain.fault.name, 3.0].structures[0]
    assert lower.predicted_dice == plain.structures[0].predicted_dice
    assert lower.lower_bound < plain.structures[0].lower_bound - 0.01
    assert by_kind[plain.fault.name, 0.1] == by_kind["another", 3.0] == plain


@pytest.mark.parametrize(("kind", "state"), [("noise", "ready"), ("telepathy", "damaged")])
def test_a_kind_that_nothing_tells_has_no_bound(
    fitted: tuple[Bundle, nn.Module], kind: str, state: str, tmp_path: Path
) -> None:
    path = shutil.copytree(fitted[0].path, tmp_path / "copy")
    calibration = bounded(Calibration.read(path / CALIBRATION_NAME), kind, 3.0)
    calibration.write(path / CALIBRATION_NAME)
    found = trust_state(Bundle.open(path))
    assert found.state == state, found.message
    assert state == "ready" or "look like telepathy" in found.message
    assert found.as_json()["wider_for"] == [kind]
    assert misfit({"cases": [], "trust": found.as_json()}, RUN) == ""
    (path / "trust" / "case_class.json").unlink()
    assert trust_state(Bundle.open(path)).state == "damaged"


def test_a_fit_says_what_its_threshold_is_worth(fitted: tuple[Bundle, nn.Module]) -> None:
    state = trust_state(fitted[0])
    calibration = TrustFiles(fitted[0]).calibration
    assert calibration is not None
    table = calibration.accepted
    assert table is not None
    assert (table.precision, table.good_dice) == (None, 0.8)
    assert {row.accepted.n_results for row in table.own} == {16}
    assert {row.accepted.n_results for row in table.worse} == {48}
    assert table.choose(0.9) is None  # 16 patients show no such precision
    assert "accept from 0.80, reject below 0.50; accepted are" in state.describe()
    assert state.as_json()["accepted"] == table.at(0.8).to_json()
