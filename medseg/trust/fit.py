"""Fit everything that a bundle's ``trust/`` holds, from results whose ground truth is known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from torch import nn

from medseg.bundle import Bundle
from medseg.bundle.checkpoints import WEIGHT_FILES, read_weights
from medseg.errors import BundleError, UsageError
from medseg.json_shape import read_json
from medseg.results.verdict import USUAL
from medseg.trust.calibration import AboutCases, Calibration, FitOptions, fit_calibration, predicted_kind
from medseg.trust.discriminator import DEFINITION
from medseg.trust.discriminator_acceptance import DISCRIMINATOR_NAME
from medseg.trust.error_net import ErrorNet, ErrorNetShape, FineTuning, fine_tune
from medseg.trust.fault_classifier import FaultClassifier, fit_fault_classifier
from medseg.trust.features import case_features
from medseg.trust.fit_cases import Subset, TrainingCase, TrustCase
from medseg.trust.out_of_distribution import Reinference, TrainingStatistics, fit_training_statistics, limits_of
from medseg.trust.regression import fold_of
from medseg.trust.synthetic_faults import IMAGE_FAULTS
from medseg.trust.trust_files import (
    CALIBRATION_NAME,
    ERROR_NET_NAME,
    FAULT_CLASSIFIER_NAME,
    STATISTICS_NAME,
    VOLUME_INTERVAL_NAME,
    TrustFiles,
)
from medseg.trust.volume_interval import VolumeInterval, fit_volume_interval

FALSE_FLAGS = 0.04
"""Share of cases like the training cases that may be flagged."""

Features = Mapping[str, float]


@dataclass(frozen=True)
class TrustOptions:
    """How trust is fitted."""

    calibration: FitOptions = field(default_factory=FitOptions)  # coverage, folds, thresholds
    fine_tuning: FineTuning | None = field(default_factory=FineTuning)
    """How the discriminator becomes an error net; None keeps the bundle's error net, if it has one."""
    folds: int = 5  # parts of the patients for cross-fitting the error net
    own_weight: float = 1.0  # how much a patient's own result counts beside each with a synthetic fault


def fit_trust(
    bundle: Bundle,
    network: nn.Module,
    cases: Sequence[TrustCase],
    training: Sequence[TrainingCase] = (),
    options: TrustOptions | None = None,
) -> Calibration:
    """Fit and write what ``trust/`` holds: error net, statistics, calibration, volume intervals, fault classifier.

    Parameters
    ----------
    bundle
        Where to write; its labels, its weights and its ``trust/discriminator.safetensors`` are read.
    network
        Its network, in evaluation mode.
    cases
        Results with ground truth: own ones, and for a range of qualities some with faults
        (:mod:`medseg.trust.synthetic_faults`). With own results alone nothing is known of poor ones.
    training
        Training cases; without any, what the bundle knows of them is kept.
    options
        Defaults fine-tune the discriminator; a second hospital with few cases keeps the error net.

    Raises
    ------
    UsageError
        If there are too few patients, or references and probabilities do not fit together.
    BundleError
        If the bundle has no weights, or what it has under ``trust/`` cannot be used.
    """
    options = options or TrustOptions()
    if bundle.scheme.regions:
        raise UsageError(
            f"{bundle.name} has regions that overlap, of which no verdict is given: there is nothing to fit"
        )
    files = TrustFiles(bundle)
    if not files.weights:
        raise BundleError(f"{bundle.name} has no weights; train it first")
    sha256 = files.weights.get(WEIGHT_FILES[0]) or next(iter(files.weights.values()))
    statistics = (
        fit_training_statistics(network, training, bundle.output_channels, sha256)
        if training
        else files.training_statistics
    )
    features, error_net = _crossfitted(files, cases, options)
    faults: FaultClassifier | None = None
    if statistics is not None:
        again = [statistics.reinfer(network, case_features(case.crop, None)) for case in cases]
        statistics = replace(statistics, limits=_limits(statistics, again, cases))
        # few cases must not replace what many taught
        kept = None if training else files.fault_classifier
        faults, told = _fault_kinds(again, cases, sha256, kept)
        parts = zip(features, again, told, strict=True)
        features = [{**first, **second.features, **third} for first, second, third in parts]
    kinds, own = [predicted_kind(row) for row in features], [case.fault is None for case in cases]
    flagged = [_is_flagged(row, statistics, bundle.labels) for row in features]
    calibration = fit_calibration(
        {name: [row[name] for row in features] for name in features[0]},
        {label: [case.dice(label) for case in cases] for label in bundle.labels},
        bundle.labels,
        [case.patient for case in cases],
        sha256,
        options.calibration,
        [options.own_weight if is_own else 1.0 for is_own in own],
        AboutCases(kinds, own, flagged),
    )
    calibration = replace(calibration, cleaning=files.cleaning)
    volumes = _volume_interval(cases, features, flagged, calibration, bundle, options.own_weight)
    write_trust(bundle, error_net, statistics, calibration, faults, volumes)
    return calibration


def _is_flagged(features: Features, statistics: TrainingStatistics | None, labels: Iterable[int]) -> bool:
    """Whether a result has a flag, as :meth:`medseg.trust.trust_model.TrustModel.assess` gives it."""
    missing = any(features[f"largest[{label}]"] == 0 for label in labels)
    return missing or (statistics is not None and bool(statistics.flags(features)))


def _volume_interval(
    cases: Sequence[TrustCase],
    features: Sequence[Features],
    flagged: Sequence[bool],
    calibration: Calibration,
    bundle: Bundle,
    own_weight: float,
) -> VolumeInterval:
    """Intervals round the volumes of results that are not flagged, for what the calibration is for."""
    return fit_volume_interval(
        {name: [row[name] for row in features] for name in calibration.features},
        {
            label: [None if told else case.overlap(label).log_ratio for case, told in zip(cases, flagged, strict=True)]
            for label in bundle.labels
        },
        bundle.labels,
        [case.patient for case in cases],
        calibration.weights_sha256,
        calibration.coverage,
        [own_weight if case.fault is None else 1.0 for case in cases],
        calibration.cleaning,
    )


def write_trust(
    bundle: Bundle,
    error_net: ErrorNet | None,
    statistics: TrainingStatistics | None,
    calibration: Calibration,
    faults: FaultClassifier | None,
    volumes: VolumeInterval,
) -> None:
    """Write the parts of trust into a bundle; a part that is None stays as it is. The calibration comes last."""
    if faults is not None:
        faults.write(bundle.path / FAULT_CLASSIFIER_NAME)
    if error_net is not None:
        error_net.write(bundle.path / ERROR_NET_NAME, calibration.weights_sha256)
    if statistics is not None:
        statistics.write(bundle.path / STATISTICS_NAME)
    volumes.write(bundle.path / VOLUME_INTERVAL_NAME)
    calibration.write(bundle.path / CALIBRATION_NAME)


def _limits(
    statistics: TrainingStatistics, again: Sequence[Reinference], cases: Sequence[TrustCase]
) -> dict[str, float]:
    own = [one.features for one, case in zip(again, cases, strict=True) if case.fault is None]
    own = own or [one.features for one in again]
    distances = {name: [features[f"{name}-distance"] for features in own] for name in statistics.detectors}
    return limits_of(distances, FALSE_FLAGS)


def _fault_kinds(
    again: Sequence[Reinference], cases: Sequence[TrustCase], sha256: str, kept: FaultClassifier | None
) -> tuple[FaultClassifier | None, list[dict[str, float]]]:
    """A new classifier of faults, if there are enough of them, and what one that has not seen it says of each case."""
    if kept is not None:
        return None, [kept.features(one.embedding) for one in again]
    imaged = {None, "crop", *IMAGE_FAULTS}
    classes = [(case.fault or USUAL) if case.fault in imaged else None for case in cases]
    embeddings = np.array([one.embedding for one in again])
    found = fit_fault_classifier(embeddings, classes, [case.patient for case in cases], sha256)
    return found or (None, [{} for _ in cases])


def _crossfitted(
    files: TrustFiles, cases: Sequence[TrustCase], options: TrustOptions
) -> tuple[list[Features], ErrorNet | None]:
    """Features of every case by an error net that has not seen its patient, and a new error net, if there is one."""
    if options.fine_tuning is None:
        kept = files.error_net
        return [case_features(case.crop, kept).values for case in cases], None
    fold = fold_of([case.patient for case in cases], options.folds)
    features: list[Features] = [{}] * len(cases)
    for number in range(options.folds):
        others = Subset(cases, np.flatnonzero(fold != number))
        error_net = fine_tune(start_error_net(files.bundle), others, options.fine_tuning)
        for i in np.flatnonzero(fold == number):
            features[i] = case_features(cases[int(i)].crop, error_net).values
    return features, fine_tune(start_error_net(files.bundle), cases, options.fine_tuning)


def start_error_net(bundle: Bundle, discriminator: Path | None = None) -> ErrorNet:
    """An error net that begins as a trained discriminator: a given one, else the bundle's, else with nothing.

    Raises ``BundleError`` if the weights are not those of such a discriminator.
    """
    path = bundle.path / "trust" / "discriminator.json"
    remedy = "train with --publish again, or remove it"
    stated = read_json(path, DEFINITION, remedy, BundleError) if path.is_file() else {}
    how = {key: int(stated[key]) for key in ("channels", "layers", "products") if key in stated}
    error_net = ErrorNet(ErrorNetShape(bundle.output_channels, bundle.input_channels, **how))
    path = discriminator or bundle.path / DISCRIMINATOR_NAME
    if path.is_file():
        finest = {key: value for key, value in read_weights(path).items() if key.startswith("scales.0.")}
        try:
            error_net.discriminator.load_state_dict(finest)
        except RuntimeError as error:
            raise BundleError(f"{path} is no discriminator that an error net can begin as: {error}") from error
    return error_net
