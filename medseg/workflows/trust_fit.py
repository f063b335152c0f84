"""Trust calibrated anew on corrected cases, and what the old calibration was worth on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medseg.bundle import Bundle
from medseg.errors import BundleError, UsageError
from medseg.inference.predictor import Predictor
from medseg.results.accept_table import AcceptTable
from medseg.results.verdict import Thresholds
from medseg.trust.calibration import Calibration, FitOptions
from medseg.trust.error_net import FineTuning
from medseg.trust.fit import TrustOptions, fit_trust
from medseg.trust.fit_cases import CaseCache, TrustCase
from medseg.trust.trust_files import CALIBRATION_NAME, STATISTICS_NAME, VOLUME_INTERVAL_NAME, TrustFiles
from medseg.trust.trust_model import TrustModel
from medseg.trust.volume_interval import VolumeInterval
from medseg.workflows.corrected_cases import IMAGE_FAULTS_EACH, MASK_FAULTS_EACH, CorrectedCases, Skipped, TrainingCases

_OWN_WEIGHT = 5.0 * (IMAGE_FAULTS_EACH + MASK_FAULTS_EACH)
"""What is asked is how good the hospital's own results are: they count five times as much as the faults together.

Counted as one of six, an own result would be taken for a poor one, and its bound would be that of poor ones."""


@dataclass(frozen=True)
class FitRequest:
    """What to calibrate, on what."""

    bundle: Path  # the bundle's folder
    predictions: Path  # what ``medseg infer`` left
    references: Path  # corrected masks: a folder, or a datalist
    images: tuple[Path, ...] = ()  # where the images are, if ``run.json`` does not lead to them
    coverage: float = 0.9  # how often the Dice shall lie above its lower bound
    # accept and reject: thresholds; those of the calibration so far if None, and accept is chosen if that has chosen it
    accept: float | None = None
    reject: float | None = None
    precision: float | None = None  # share of good ones among accepted results that accept is chosen for
    good_dice: float | None = None  # Dice that every structure of a good result has; both: as before, or 0.9 and 0.8
    # datalist of training cases, to tell what is unlike them; what the bundle knows of them if None
    training: Path | None = None
    fine_tune: bool = False  # whether the bundle's error net is trained further on these cases
    device: str = "auto"  # torch device; ``"auto"``: CUDA, else Apple's MPS, else the CPU


@dataclass
class Coverage:
    """How many structures of how many reach their lower bound."""

    structures: int = 0
    reached: int = 0

    @property
    def coverage(self) -> float:
        """Share that reaches it."""
        return self.reached / self.structures if self.structures else 0.0

    def count(self, case: TrustCase, model: TrustModel) -> None:
        """Compare what the model says of a case with its ground truth."""
        for structure in model.assess(case.crop).verdict.structures:
            measured = case.dice(structure.label)
            if measured is not None:
                self.structures += 1
                self.reached += measured >= structure.lower_bound


@dataclass(frozen=True)
class Recalibration:
    """What :func:`recalibrate` found and wrote."""

    path: Path
    calibration: Calibration  # path and calibration: where it is, and what
    n_cases: int
    n_patients: int  # n_cases and n_patients: what it was fitted on
    before: Coverage | None = None
    """Coverage of the calibration so far on the same cases; None if there was none for these weights."""
    skipped: tuple[Skipped, ...] = ()  # cases that could not be used
    removed: tuple[str, ...] = ()  # files under ``trust/`` that belonged to other weights
    flags: bool = False  # whether images unlike those of the training can be flagged
    volumes: VolumeInterval | None = None  # intervals round the volumes, fitted on the results that are not flagged

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        before = None if self.before is None else {**asdict(self.before), "coverage": self.before.coverage}
        return {
            "calibration": str(self.path),
            "coverage": self.calibration.coverage,
            "n_cases": self.n_cases,
            "n_patients": self.n_patients,
            "structures": [
                {
                    **s.facts(),
                    "bounded": s.quantile is not None,
                    "holds_at_least": coverage_at_least(self.calibration.coverage, s.n_patients),
                }
                for s in self.calibration.structures
            ],
            "before": before,
            "skipped": [asdict(skipped) for skipped in self.skipped],
            "removed": list(self.removed),
            "flags": self.flags,
            "thresholds": asdict(self.calibration.thresholds),
            "accepted": self.calibration.accepted and self.calibration.accepted.to_json(),
            "volume_intervals": self.volumes and self.volumes.facts(),
        }


def fewest_patients(coverage: float) -> int:
    """From how many patients on there is a bound that holds so often: the largest of n errors does in n/(n+1)."""
    return math.ceil(coverage / (1.0 - coverage) - 1e-9)


def coverage_at_least(coverage: float, patients: int) -> float | None:
    """What 19 of 20 calibrations with so many patients hold at least; None if they are too few for a bound.

    A conformal bound holds as often as stated on average over calibrations. That of one calibration is drawn from a
    beta distribution (Vovk, JMLR W&CP 25:475, 2012), here as if every patient had one result.
    """
    from scipy.stats import beta

    if patients < fewest_patients(coverage):
        return None
    rank = math.ceil(coverage * (patients + 1) - 1e-9)
    return round(float(beta.ppf(0.05, rank, patients + 1 - rank)), 4)


def recalibrate(request: FitRequest, progress: Callable[[int, int], None] = lambda _, __: None) -> Recalibration:
    """Fit trust on corrected cases and write it into the bundle.

    What the bundle has under ``trust/`` for its weights is kept and adapted; what belongs to other weights is removed.
    Raises ``UsageError`` if no case can be used, or too few for a calibration; ``BundleError`` if the bundle has no
    weights.
    """
    bundle = Bundle.open(request.bundle)
    if bundle.scheme.regions:
        raise UsageError(f"{bundle.name} has regions that overlap, of which there is no verdict: nothing can be fit")
    files, predictor = TrustFiles(bundle), Predictor(bundle, request.device, "fp32", trust=False)
    if predictor.config.prompts or predictor.config.post.names:
        raise UsageError(
            f"the labels of {bundle.name} are not the channels of its network (it is asked by class, or its"
            " postprocessing renumbers them), so that its scores are no probabilities of them: there is nothing to fit"
        )
    options = _options(request, files)
    cases = CorrectedCases(predictor, request.predictions, request.references, request.images, progress)
    training = TrainingCases(predictor, request.training) if request.training else ()
    ready = files.state.state == "ready"
    model = TrustModel.open(files, predictor.network, predictor.device) if ready else None
    with CaseCache() as cache:
        patients, before = _collect(cases, cache, model)
        if not cache:
            raise UsageError(f"no case can be used; {cases.skipped[0].case_id}: {cases.skipped[0].message}")
        removed = tuple(name for name, _ in files.unusable() if name != VOLUME_INTERVAL_NAME)
        for name in removed:  # of other weights: they say nothing of these, and would stand in the way
            (bundle.path / name).unlink()
        calibration = fit_trust(bundle, predictor.network, cache, training, options)
    path, flags, counts = bundle.path / CALIBRATION_NAME, (bundle.path / STATISTICS_NAME).is_file(), len(set(patients))
    volumes, skipped = VolumeInterval.read(bundle.path / VOLUME_INTERVAL_NAME), tuple(cases.skipped)
    return Recalibration(path, calibration, len(patients), counts, before, skipped, removed, flags, volumes)


def _options(request: FitRequest, files: TrustFiles) -> TrustOptions:
    """Options of the fit; what is not given stays as it was: a threshold, or the precision that one was chosen for."""
    if request.accept is not None and request.precision is not None:
        raise UsageError("accept is given, and a precision to choose it for; give one of both")
    try:
        stated = files.stated_calibration
    except BundleError:  # an unusable calibration is what is being replaced
        stated = None
    usual, accept = FitOptions(), request.accept
    old, table = (Thresholds(), None) if stated is None else (stated.thresholds, stated.accepted)
    table = table or AcceptTable(usual.good_dice, None)
    if accept is None and request.precision is None and table.precision is None:
        accept = old.accept
    reject = old.reject if request.reject is None else request.reject
    if not 0.0 <= reject <= (1.0 if accept is None else accept) <= 1.0:
        raise UsageError(f"accept from {accept} and reject below {reject}: expected 0 ≤ reject ≤ accept ≤ 1")
    calibration = FitOptions(
        coverage=request.coverage,
        thresholds=Thresholds(accept, reject),
        precision=(table.precision or usual.precision) if request.precision is None else request.precision,
        good_dice=table.good_dice if request.good_dice is None else request.good_dice,
    )
    return TrustOptions(calibration, FineTuning() if request.fine_tune else None, own_weight=_OWN_WEIGHT)


def _collect(
    cases: Iterable[TrustCase], cache: CaseCache, model: TrustModel | None
) -> tuple[list[str], Coverage | None]:
    """Keep the cases; the patient of each, and whether the calibration so far holds for the results as they came."""
    patients, before = list[str](), None if model is None else Coverage()
    for case in cases:
        cache.append(case)
        if case.fault is None:
            patients.append(case.patient)
            if model is not None and before is not None:
                before.count(case, model)
    return patients, before
