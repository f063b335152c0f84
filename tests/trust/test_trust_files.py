"""What a run says of the calibration behind its verdicts."""

from pathlib import Path

from medseg.bundle import Bundle
from medseg.trust.trust_files import trust_state

FLAGSHIP = Path(__file__).parents[2] / "bundles" / "hippocampus_mri_segmentation"


def test_the_flagship_says_what_its_calibration_was_fitted_on() -> None:
    state = trust_state(Bundle.open(FLAGSHIP))
    assert state.state == "ready"
    assert "calibrated for these weights on 150 patients: 90% of the lower bounds hold" in state.describe()
    assert "held-out results of folds 0, 1, 2, 3, 4" in state.as_json()["provenance"]
