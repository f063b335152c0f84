"""The judge of one bundle: how good is this result, can it be believed, and where should one look?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medseg.bundle import Bundle
from medseg.errors import UsageError
from medseg.trust.calibration import Calibration, Estimate
from medseg.trust.error_net import CRITIC_NAME, ErrorNet
from medseg.trust.fault_classifier import CASE_CLASS_NAME, FaultClassifier
from medseg.trust.features import case_features
from medseg.trust.out_of_distribution import REFERENCE_NAME, TrainingStatistics
from medseg.trust.stored import check_weights
from medseg.trust.trust_files import calibration_of, weights_of

NOTHING_FOUND = "structure-missing"
"""Flag of a result that lacks a structure which every training case has."""


@dataclass(frozen=True)
class Verdict:
    """What is said of one result without its ground truth.

    Parameters
    ----------
    estimates
        By label.
    verdict
        ``"accept"``, ``"review"`` or ``"reject"``; what is flagged is never accepted.
    flags
        ``"unlike-training"``: estimates do not hold for such an image; ``"implausible-shape"``;
        ``"structure-missing"``.
    scores
        What the estimates rest on, by name.
    doubt
        ``(H, W, D)`` on the grid of the image, 0 to 1: the share of wrong labels expected round each voxel.
    case_class
        Probability of every kind of case (usual, noise, motion …), if the bundle has a head that tells them.
    """

    estimates: Mapping[int, Estimate]
    verdict: str
    flags: tuple[str, ...]
    scores: Mapping[str, float]
    doubt: NDArray[np.float32]
    case_class: Mapping[str, float] = field(default_factory=dict)


class TrustModel:
    """Judges results of the network whose bundle it was opened from.

    Parameters
    ----------
    calibration
        From scores to Dice.
    network
        The bundle's network in evaluation mode; its encoder is used.
    critic
        The finished discriminator, if the bundle has one.
    reference
        What training cases look like, if the bundle says.
    case_class
        The head that tells kinds of cases, if the bundle has one.
    """

    def __init__(
        self,
        calibration: Calibration,
        network: nn.Module,
        critic: ErrorNet | None,
        reference: TrainingStatistics | None,
        case_class: FaultClassifier | None = None,
    ) -> None:
        self.calibration, self._network = calibration, network
        self._critic, self._reference, self._case_class = critic, reference, case_class

    @classmethod
    def open(cls, bundle: Bundle, network: nn.Module, device: str | torch.device = "cpu") -> TrustModel | None:
        """Open the judge of a bundle; None if it has no calibration.

        Parameters
        ----------
        bundle
            The bundle.
        network
            Its network, in evaluation mode, on ``device``.
        device
            Where the network and the critic run.

        Raises
        ------
        BundleError
            If something under ``trust/`` cannot be read or belongs to other weights.
        """
        calibration = calibration_of(bundle)
        if calibration is None:
            return None
        weights = weights_of(bundle)
        critic = read_error_net(bundle, weights)
        path = bundle.path / REFERENCE_NAME
        reference = TrainingStatistics.read(path, weights) if path.is_file() else None
        path = bundle.path / CASE_CLASS_NAME
        case_class = FaultClassifier.read(path, weights) if path.is_file() else None
        return cls(calibration, network, critic.to(device) if critic else None, reference, case_class)

    def assess(self, image: Tensor, probabilities: Tensor, spacing_mm: Sequence[float]) -> Verdict:
        """Judge one result.

        Parameters
        ----------
        image
            ``(C, H, W, D)`` as the network saw it; a box round the structures will do if it has a margin of
            :data:`medseg.trust.crop.MARGIN_VOXELS`.
        probabilities
            ``(K, H, W, D)`` on that grid, background first, adding up to one.
        spacing_mm
            Voxel size.

        Raises
        ------
        UsageError
            If the shapes do not fit together.
        """
        if image.ndim != 4 or probabilities.ndim != 4 or image.shape[1:] != probabilities.shape[1:]:
            raise UsageError(
                f"found an image of shape {tuple(image.shape)} and probabilities of shape {tuple(probabilities.shape)},"
                " expected (C, H, W, D) and (K, H, W, D) on one grid"
            )
        scored = case_features(image, probabilities, spacing_mm, self._critic)
        scores, kinds = dict(scored.scores), dict[str, float]()
        if self._reference is not None:
            look = self._reference.second_look(self._network, scored)
            scores |= look.scores
            kinds = self._case_class.probabilities(look.description) if self._case_class else kinds
        estimates = self.calibration.estimate(scores)
        flags = self._flags(scores, scored.shape)
        verdict = self.calibration.verdict(estimates)
        verdict = "review" if flags and verdict == "accept" else verdict
        return Verdict(estimates, verdict, flags, scores, scored.doubt, kinds)

    def _flags(self, scores: Mapping[str, float], shape: Mapping[str, float]) -> tuple[str, ...]:
        flags: tuple[str, ...] = ()
        if self._reference is not None:
            flags = self._reference.flags(scores)
        if any(shape[f"largest[{structure.label}]"] == 0 for structure in self.calibration.structures):
            flags += (NOTHING_FOUND,)
        return flags


def read_error_net(bundle: Bundle, weights_sha256: set[str]) -> ErrorNet | None:
    """The critic of a bundle, None if there is none.

    Raises
    ------
    BundleError
        If it cannot be read or belongs to other weights.
    """
    path = bundle.path / CRITIC_NAME
    if not path.is_file():
        return None
    critic, belongs_to = ErrorNet.read(path)
    check_weights(path, belongs_to, weights_sha256)
    return critic
