"""What a bundle's trust calibration is worth, told from its files alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from medseg.bundle import Bundle
from medseg.bundle.config import config_file
from medseg.errors import BundleError
from medseg.files import sha256_file
from medseg.trust.calibration import Calibration

CALIBRATION_NAME = "trust/calibration.json"


@dataclass(frozen=True)
class TrustState:
    """Whether results come with a verdict, and by what.

    Parameters
    ----------
    state
        ``"ready"``; ``"none"``: no calibration; ``"stale"``: it belongs to other weights; ``"damaged"``: it cannot be
        used; ``"off"``: not asked for. Only ``"ready"`` gives verdicts.
    message
        Why not, and what to do.
    facts
        Coverage, thresholds, what it was fitted on, and per structure the number of cases and patients, if it can be
        read.
    """

    state: Literal["ready", "none", "stale", "damaged", "off"]
    message: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """For ``run.json`` and ``--json``."""
        return {"state": self.state, "message": self.message, **self.facts}


def weights_of(bundle: Bundle) -> set[str]:
    """SHA-256 of every file of weights that a bundle's network is filled from."""
    if config_file(bundle.path, "inference") is not None:
        return {sha256_file(bundle.path / name) for name in bundle.weight_files}
    return {sha256_file(path) for path in (bundle.path / "models").glob("model.*") if path.is_file()}


def calibration_of(bundle: Bundle) -> Calibration | None:
    """The calibration of a bundle for the weights it holds; None if it has none.

    Raises
    ------
    BundleError
        If it cannot be read or belongs to other weights.
    """
    path = bundle.path / CALIBRATION_NAME
    return Calibration.read(path, weights_of(bundle)) if path.is_file() else None


def trust_state(bundle: Bundle) -> TrustState:
    """Look at a bundle's calibration; nothing of it is executed."""
    path = bundle.path / CALIBRATION_NAME
    if not path.is_file():
        return TrustState("none", f"{bundle.name} has no {CALIBRATION_NAME}; fit one: medseg trust fit")
    if bundle.output_channels > 1 and not bundle.has_background:
        why = "channel_def names no background, which probabilities are judged against"
        return TrustState("none", f"{bundle.name} cannot be judged: {why}")
    try:
        found = Calibration.read(path)
    except BundleError as error:
        return TrustState("damaged", str(error))
    try:
        Calibration.read(path, weights_of(bundle))
    except BundleError as error:
        return TrustState("stale", str(error), _facts(found))
    try:
        _check_others(bundle)
    except BundleError as error:
        return TrustState("stale", str(error), _facts(found))
    return TrustState("ready", "", _facts(found))


def _check_others(bundle: Bundle) -> None:
    """Raise if what lies beside a calibration cannot be used with it."""
    from medseg.trust.fault_classifier import CASE_CLASS_NAME, FaultClassifier
    from medseg.trust.out_of_distribution import REFERENCE_NAME, TrainingStatistics
    from medseg.trust.trust_model import read_error_net

    weights = weights_of(bundle)
    read_error_net(bundle, weights)
    if (bundle.path / REFERENCE_NAME).is_file():
        TrainingStatistics.read(bundle.path / REFERENCE_NAME, weights)
    if (bundle.path / CASE_CLASS_NAME).is_file():
        FaultClassifier.read(bundle.path / CASE_CLASS_NAME, weights)


def _facts(calibration: Calibration) -> dict[str, Any]:
    structures = [
        {"label": s.label, "name": s.name, "n_cases": s.n_cases, "n_patients": s.n_patients}
        for s in calibration.structures
    ]
    return {
        "coverage": calibration.coverage,
        "thresholds": asdict(calibration.thresholds),
        "weights_sha256": calibration.weights_sha256,
        "scores": list(calibration.scores),
        "provenance": calibration.provenance,
        "structures": structures,
    }
