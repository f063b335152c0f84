"""Trust calibrated anew on corrected cases, and what the old calibration was worth on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medseg.bundle import Bundle
from medseg.errors import BundleError, UsageError
from medseg.inference.predictor import Predictor
from medseg.inference.spool import CaseCache
from medseg.trust.calibration import Calibration, FitOptions, Thresholds
from medseg.trust.error_net import CRITIC_NAME, FineTuning
from medseg.trust.fault_classifier import CASE_CLASS_NAME, FaultClassifier
from medseg.trust.fit import TrustCase, TrustOptions, dice_of, fit_trust
from medseg.trust.out_of_distribution import REFERENCE_NAME, TrainingStatistics
from medseg.trust.trust_files import CALIBRATION_NAME, trust_state, weights_of
from medseg.trust.trust_model import TrustModel, Verdict, read_error_net
from medseg.workflows.corrected_cases import CorrectedCases, Skipped, TrainingCases


@dataclass(frozen=True)
class FitRequest:
    """What to calibrate, on what.

    Parameters
    ----------
    bundle
        The bundle's folder.
    predictions
        What ``medseg infer`` left.
    references
        Corrected masks: a folder, or a datalist.
    images
        Where the images are, if ``run.json`` does not lead to them.
    coverage
        How often the Dice shall lie above its lower bound.
    accept, reject
        Thresholds; those of the calibration so far, or the usual ones, if None.
    training
        Datalist of training cases, to tell what is unlike them; what the bundle knows of them if None.
    finish
        Whether the critic is trained further on these cases.
    device
        Torch device.
    """

    bundle: Path
    predictions: Path
    references: Path
    images: tuple[Path, ...] = ()
    coverage: float = 0.9
    accept: float | None = None
    reject: float | None = None
    training: Path | None = None
    finish: bool = False
    device: str = "cpu"


@dataclass
class Coverage:
    """How many structures of how many reach their lower bound."""

    structures: int = 0
    reached: int = 0

    @property
    def coverage(self) -> float:
        """Share that reaches it."""
        return self.reached / self.structures if self.structures else 0.0


@dataclass(frozen=True)
class Recalibration:
    """What :func:`recalibrate` found and wrote.

    Parameters
    ----------
    path
        The calibration.
    asked
        Coverage asked for.
    n_cases, n_patients
        What it was fitted on.
    structures
        Label, name, number of cases and patients, and whether there are enough for a lower bound.
    before
        Coverage of the calibration so far on the same cases; None if there was none for these weights.
    skipped
        Cases that could not be used.
    removed
        Files under ``trust/`` that belonged to other weights.
    flags
        Whether images unlike those of the training can be flagged.
    """

    path: Path
    asked: float
    n_cases: int
    n_patients: int
    structures: tuple[dict[str, Any], ...]
    before: Coverage | None = None
    skipped: tuple[Skipped, ...] = ()
    removed: tuple[str, ...] = ()
    flags: bool = False

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        before = None if self.before is None else {**asdict(self.before), "coverage": self.before.coverage}
        return {
            "calibration": str(self.path),
            "coverage": self.asked,
            "n_cases": self.n_cases,
            "n_patients": self.n_patients,
            "structures": list(self.structures),
            "before": before,
            "skipped": [asdict(skipped) for skipped in self.skipped],
            "removed": list(self.removed),
            "flags": self.flags,
        }


def recalibrate(request: FitRequest, progress: Callable[[int, int], None] | None = None) -> Recalibration:
    """Fit trust on corrected cases and write it into the bundle.

    What the bundle has under ``trust/`` for its weights is kept and adapted; what belongs to other weights is removed.

    Raises
    ------
    UsageError
        If no case can be used, or too few for a calibration.
    BundleError
        If the bundle has no weights.
    """
    bundle = Bundle.open(request.bundle)
    predictor = Predictor(bundle, request.device, "fp32", trust=False)
    cases = CorrectedCases(predictor, request.predictions, request.references, request.images, progress)
    training = TrainingCases(predictor, request.training) if request.training else ()
    witness = _Witness(bundle, predictor)
    with CaseCache() as spool:
        for case in witness.watched(cases):
            spool.append(case)
        if not spool:
            raise UsageError(f"no case can be used; {cases.skipped[0].case_id}: {cases.skipped[0].message}")
        removed = _remove_stale(bundle)
        finishing = FineTuning() if request.finish else None
        options = TrustOptions(_options(request, bundle), finishing, own_importance=_own_importance(cases.worse))
        calibration = fit_trust(bundle, predictor.network, spool, training, options)
    return Recalibration(
        bundle.path / CALIBRATION_NAME,
        request.coverage,
        len(witness.patients),
        len(set(witness.patients)),
        tuple(_described(calibration)),
        witness.coverage if witness.judge is not None else None,
        tuple(cases.skipped),
        removed,
        (bundle.path / REFERENCE_NAME).is_file(),
    )


def _own_importance(worse: tuple[int, int]) -> float:
    """What is asked is how good the hospital's own results are: they count five times as much as the faults together.

    Counted as one of six, an own result would be taken for a poor one, and its bound would be that of poor ones.
    """
    return 5.0 * max(sum(worse), 1)


def _remove_stale(bundle: Bundle) -> tuple[str, ...]:
    """Remove parts of trust that belong to other weights: they say nothing of these, and would stand in the way."""
    weights = weights_of(bundle)
    readers: dict[str, Callable[[], object]] = {
        CRITIC_NAME: lambda: read_error_net(bundle, weights),
        REFERENCE_NAME: lambda: TrainingStatistics.read(bundle.path / REFERENCE_NAME, weights),
        CASE_CLASS_NAME: lambda: FaultClassifier.read(bundle.path / CASE_CLASS_NAME, weights),
    }
    removed = []
    for name, reader in readers.items():
        if not (bundle.path / name).is_file():
            continue
        try:
            reader()
        except BundleError:
            (bundle.path / name).unlink()
            removed.append(name)
    return tuple(removed)


class _Witness:
    """Looks at the cases as they pass by: who they are, and whether the calibration so far holds for them."""

    def __init__(self, bundle: Bundle, predictor: Predictor) -> None:
        self.bundle, self.patients, self.coverage = bundle, list[str](), Coverage()
        self.judge: TrustModel | None = None
        if trust_state(bundle).state == "ready":
            try:
                self.judge = TrustModel.open(bundle, predictor.network, predictor.device)
            except BundleError:  # an unusable calibration is what is being replaced
                self.judge = None

    def watched(self, cases: Iterable[TrustCase]) -> Iterator[TrustCase]:
        """Hand the cases on; those made worse on purpose are not counted."""
        for case in cases:
            if case.kind == "own":
                self.patients.append(case.patient)
                if self.judge is not None:
                    self._count(case, self.judge.assess(case.image, case.probabilities, case.spacing_mm))
            yield case

    def _count(self, case: TrustCase, trust: Verdict) -> None:
        for label, estimate in trust.estimates.items():
            measured = dice_of(case, label)
            if measured is not None:
                self.coverage.structures += 1
                self.coverage.reached += measured >= estimate.lower_bound


def _options(request: FitRequest, bundle: Bundle) -> FitOptions:
    """Options of the fit; thresholds that are not given stay as they were."""
    path = bundle.path / CALIBRATION_NAME
    try:
        old = Calibration.read(path).thresholds if path.is_file() else Thresholds()
    except BundleError:
        old = Thresholds()
    accept = old.accept if request.accept is None else request.accept
    reject = old.reject if request.reject is None else request.reject
    if not 0.0 <= reject <= accept <= 1.0:
        raise UsageError(f"accept from {accept} and reject below {reject}: expected 0 ≤ reject ≤ accept ≤ 1")
    return FitOptions(coverage=request.coverage, thresholds=Thresholds(accept, reject))


def _described(calibration: Calibration) -> Iterator[dict[str, Any]]:
    for structure in calibration.structures:
        yield {
            "label": structure.label,
            "name": structure.name,
            "n_cases": structure.n_cases,
            "n_patients": structure.n_patients,
            "bounded": structure.quantile is not None,
        }
