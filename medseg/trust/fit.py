"""Fit everything that a bundle's ``trust/`` holds, from results whose ground truth is known."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from medseg.bundle import Bundle
from medseg.bundle.checkpoints import read_weights
from medseg.errors import BundleError, UsageError
from medseg.files import sha256_file
from medseg.trust.calibration import Calibration, FitOptions, fit_calibration
from medseg.trust.error_net import CRITIC_NAME, ErrorNet, ErrorNetShape, FineTuning, fine_tune
from medseg.trust.fault_classifier import CASE_CLASS_NAME, USUAL, FaultClassifier, fit_fault_classifier
from medseg.trust.features import case_features
from medseg.trust.out_of_distribution import REFERENCE_NAME, TrainingStatistics, fit_training_statistics, limits_of
from medseg.trust.synthetic_faults import IMAGE_FAULTS
from medseg.trust.trust_files import CALIBRATION_NAME, weights_of
from medseg.trust.trust_model import read_error_net

DISCRIMINATOR_NAME = "trust/discriminator.safetensors"

_Looked = tuple[Mapping[str, float], NDArray[np.float64] | None]


@dataclass(frozen=True)
class TrustCase:
    """A result with its ground truth, of a case that the network was not trained on.

    Parameters
    ----------
    image
        ``(C, H, W, D)`` as the network saw it.
    probabilities
        ``(K, H, W, D)``, background first; of a mask alone, its one-hot.
    reference
        Label map ``(H, W, D)`` on that grid.
    patient
        Results of one patient are never on both sides of a fold.
    spacing_mm
        Voxel size.
    kind
        ``"own"`` for the network's own result on an untouched image, else how it was made worse.
    second_look
        Scores of :meth:`TrainingStatistics.second_look`, if another network of the same training (a fold's)
        gave the result; else computed.
    """

    image: Tensor
    probabilities: Tensor
    reference: NDArray[np.uint8]
    patient: str
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    kind: str = "own"
    second_look: Mapping[str, float] | None = None


@dataclass(frozen=True)
class TrainingCase:
    """A case that the network was trained on: image ``(C, H, W, D)`` as it saw it, reference ``(H, W, D)``."""

    image: Tensor
    reference: NDArray[np.uint8]
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class TrustOptions:
    """How trust is fitted.

    Parameters
    ----------
    calibration
        Coverage, folds, thresholds.
    finishing
        How the discriminator is finished; None keeps the bundle's critic, if it has one.
    false_flags
        Share of cases like the training cases that may be flagged.
    groups
        Parts of the patients for cross-fitting the critic.
    own_importance
        How much a patient's own result counts beside each that was made worse.
    """

    calibration: FitOptions = field(default_factory=FitOptions)
    finishing: FineTuning | None = field(default_factory=FineTuning)
    false_flags: float = 0.04
    groups: int = 5
    own_importance: float = 1.0


def fit_trust(
    bundle: Bundle,
    network: nn.Module,
    cases: Sequence[TrustCase],
    training: Sequence[TrainingCase] = (),
    options: TrustOptions | None = None,
) -> Calibration:
    """Fit and write what ``trust/`` holds: critic, reference, calibration, and the head that tells kinds of cases.

    Parameters
    ----------
    bundle
        Where to write; its labels, its weights and its ``trust/discriminator.safetensors`` are read.
    network
        Its network, in evaluation mode.
    cases
        Results with ground truth: own ones, and for a range of qualities some made worse
        (:mod:`medseg.trust.synthetic_faults`). With own results alone nothing is known of poor ones.
    training
        Training cases for the reference; without any, what the bundle has of reference and head is kept.
    options
        Defaults finish the discriminator; a second hospital with few cases keeps the critic (``finishing=None``).

    Raises
    ------
    UsageError
        If there are too few patients, or references and probabilities do not fit together.
    BundleError
        If the bundle has no weights, or what it has under ``trust/`` cannot be used.
    """
    options = options or TrustOptions()
    sha256 = _weights(bundle)
    reference = _reference(bundle, network, training, sha256)
    looks = _second_looks(network, reference, cases)
    if reference is not None:
        own = [look for (look, _), case in zip(looks, cases, strict=True) if case.kind == "own"]
        own = own or [look for look, _ in looks]
        distances = {name: [look[f"{name}-distance"] for look in own] for name in reference.likeness}
        reference = replace(reference, limits=limits_of(distances, options.false_flags))
    scores, critic = _scored(bundle, cases, options)
    rows = [{**first, **second} for first, (second, _) in zip(scores, looks, strict=True)]
    calibration = fit_calibration(
        {name: [row[name] for row in rows] for name in rows[0]},
        {label: [dice_of(case, label) for case in cases] for label in bundle.labels},
        bundle.labels,
        [case.patient for case in cases],
        sha256,
        options.calibration,
        [options.own_importance if case.kind == "own" else 1.0 for case in cases],
    )
    has_head = (bundle.path / CASE_CLASS_NAME).is_file() and not training
    head = None if has_head else _case_class(looks, cases, sha256)  # few cases must not replace what many taught
    write_trust(bundle, critic, reference, calibration, head)
    return calibration


def write_trust(
    bundle: Bundle,
    critic: ErrorNet | None,
    reference: TrainingStatistics | None,
    calibration: Calibration,
    case_class: FaultClassifier | None = None,
) -> None:
    """Write the parts of trust into a bundle; a part that is None stays as it is. The calibration comes last."""
    if case_class is not None:
        case_class.write(bundle.path / CASE_CLASS_NAME)
    if critic is not None:
        critic.write(bundle.path / CRITIC_NAME, calibration.weights_sha256)
    if reference is not None:
        reference.write(bundle.path / REFERENCE_NAME)
    calibration.write(bundle.path / CALIBRATION_NAME)


def dice_of(case: TrustCase, label: int) -> float | None:
    """Dice of one structure; None where neither mask has it."""
    found, wanted = case.probabilities.numpy().argmax(0) == label, case.reference == label
    total = int(found.sum()) + int(wanted.sum())
    return 2.0 * int((found & wanted).sum()) / total if total else None


def _weights(bundle: Bundle) -> str:
    for name in ("model.safetensors", "model.pt"):
        if (bundle.path / "models" / name).is_file():
            return sha256_file(bundle.path / "models" / name)
    raise BundleError(f"{bundle.name} has no weights; train it first")


def _reference(
    bundle: Bundle, network: nn.Module, training: Sequence[TrainingCase], sha256: str
) -> TrainingStatistics | None:
    if training:
        triples = [(case.image, case.reference, case.spacing_mm) for case in training]
        return fit_training_statistics(network, triples, bundle.output_channels, sha256)
    path = bundle.path / REFERENCE_NAME
    return TrainingStatistics.read(path, weights_of(bundle)) if path.is_file() else None


def _second_looks(
    network: nn.Module, reference: TrainingStatistics | None, cases: Sequence[TrustCase]
) -> list[_Looked]:
    """Scores of the second look, and what the encoder saw if it is that of this network."""
    found: list[_Looked] = []
    for case in cases:
        if case.second_look is not None or reference is None:
            found.append((case.second_look or {}, None))
        else:
            scored = case_features(case.image, case.probabilities, case.spacing_mm, None)
            found.append(reference.second_look(network, scored))
    return found


def _case_class(looks: Sequence[_Looked], cases: Sequence[TrustCase], sha256: str) -> FaultClassifier | None:
    """A head that tells usual cases from those with a fault in the image, if there are enough of them."""
    kinds = {"own": USUAL, "crop": "crop"} | {name: name for name in IMAGE_FAULTS}
    known = [
        (description, kinds[case.kind], case.patient)
        for (_, description), case in zip(looks, cases, strict=True)
        if description is not None and case.kind in kinds
    ]
    if not known:
        return None
    features, classes, patients = zip(*known, strict=True)
    return fit_fault_classifier(np.array(features), classes, patients, sha256)


def _scored(
    bundle: Bundle, cases: Sequence[TrustCase], options: TrustOptions
) -> tuple[list[Mapping[str, float]], ErrorNet | None]:
    """Scores of every case by a critic that has not seen its patient, and a new critic, if there is one."""
    if options.finishing is None:
        kept = read_error_net(bundle, weights_of(bundle))
        return [_score(case, kept) for case in cases], None
    group = groups_of([case.patient for case in cases], options.groups)
    found: list[Mapping[str, float]] = [{}] * len(cases)
    for number in range(options.groups):
        others = Part(cases, np.flatnonzero(group != number))
        critic = fine_tune(start_error_net(bundle), others, options.finishing)
        for i in np.flatnonzero(group == number):
            found[i] = _score(cases[int(i)], critic)
    return found, fine_tune(start_error_net(bundle), cases, options.finishing)


def _score(case: TrustCase, critic: ErrorNet | None) -> Mapping[str, float]:
    return case_features(case.image, case.probabilities, case.spacing_mm, critic).scores


def groups_of(patients: Sequence[str], groups: int, seed: int = 0) -> NDArray[np.int64]:
    """Which part of the patients each case belongs to."""
    known, index = np.unique(np.asarray(patients), return_inverse=True)
    if len(known) < groups:
        raise UsageError(f"found {len(known)} patients, expected at least {groups}; give more cases")
    return np.asarray((np.random.default_rng(seed).permutation(len(known)) % groups)[index], dtype=np.int64)


class Part(Sequence[TrustCase]):
    """Some of the cases, read when asked for."""

    def __init__(self, cases: Sequence[TrustCase], where: NDArray[np.int64]) -> None:
        self._cases, self._where = cases, where

    def __len__(self) -> int:
        return len(self._where)

    def __getitem__(self, index: Any) -> Any:
        return self._cases[int(self._where[index])]


def start_error_net(bundle: Bundle, discriminator: Path | None = None) -> ErrorNet:
    """A critic that begins as a trained discriminator: a given one, else the bundle's, else it begins with nothing.

    Raises
    ------
    BundleError
        If the weights are not those of such a discriminator.
    """
    described = _described(bundle)
    layers = int(described.get("layers", 2))
    shape = ErrorNetShape(bundle.output_channels, bundle.input_channels, int(described.get("channels", 16)), layers)
    critic = ErrorNet(shape)
    path = discriminator or bundle.path / DISCRIMINATOR_NAME
    if path.is_file():
        finest = {key: value for key, value in read_weights(path).items() if key.startswith("scales.0.")}
        try:
            critic.discriminator.load_state_dict(finest)
        except RuntimeError as error:
            raise BundleError(f"{path} is no discriminator that a critic can begin as: {error}") from error
    return critic


def _described(bundle: Bundle) -> Mapping[str, Any]:
    path = bundle.path / "trust" / "discriminator.json"
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise BundleError(f"{path} cannot be read: {error}") from error
