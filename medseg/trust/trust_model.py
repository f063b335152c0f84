"""The trust model of one bundle: how good is this result, can it be believed, and where should one look?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from medseg.errors import BundleError, MedsegError
from medseg.results.verdict import STRUCTURE_MISSING, Interval, StructureQuality, Verdict
from medseg.trust.calibration import Calibration
from medseg.trust.crop import Crop
from medseg.trust.error_net import ErrorNet
from medseg.trust.fault_classifier import FaultClassifier
from medseg.trust.features import case_features
from medseg.trust.out_of_distribution import TrainingStatistics
from medseg.trust.trust_files import TrustFiles
from medseg.trust.volume_interval import VolumeInterval

_CHANCE = "labels by chance"
_SIDE = 16


@dataclass(frozen=True)
class Assessment:
    """What a trust model says of one crop."""

    verdict: Verdict  # how far the result can be believed
    error_map: NDArray[np.float32]
    """``(H, W, D)`` on the grid of the crop, 0 to 1: the share of wrong labels expected round each voxel."""
    features: Mapping[str, float]  # what the estimates rest on, by name


@dataclass(frozen=True)
class TrustModel:
    """Assesses results of the network whose bundle it was opened from."""

    names: Mapping[int, str]  # structures by label
    channels: int  # of the network's image
    classes: int  # that are judged, the background included
    network: nn.Module  # the bundle's, in evaluation mode; its encoder is used
    calibration: Calibration  # from features to Dice
    error_net: ErrorNet | None = None
    training_statistics: TrainingStatistics | None = None
    fault_classifier: FaultClassifier | None = None
    volume_interval: VolumeInterval | None = None  # and the three above: what else the bundle has

    @classmethod
    def open(cls, files: TrustFiles, network: nn.Module, device: str | torch.device = "cpu") -> TrustModel | None:
        """Open the trust model of a bundle; None if it has no calibration.

        Parameters
        ----------
        files
            The bundle's trust.
        network
            Its network, in evaluation mode, on ``device``.
        device
            Where the network and the error net run.

        Raises
        ------
        BundleError
            If something under ``trust/`` cannot be read, belongs to other weights, or does not fit this network: it
            fails on a result that is made up.
        """
        calibration = files.calibration
        if calibration is None:
            return None
        error_net = files.error_net
        model = cls(
            files.bundle.labels,
            files.bundle.input_channels,
            files.classes,
            network,
            calibration,
            None if error_net is None else error_net.to(device),
            files.training_statistics,
            files.fault_classifier,
            files.volume_interval,
        )
        try:
            model.assess(poor_results(model.channels, model.classes)[_CHANCE])
        except (LookupError, ValueError, TypeError, AttributeError, RuntimeError, MedsegError) as error:
            path, why = files.bundle.path / "trust", f"{type(error).__name__}: {str(error).partition(chr(10))[0][:120]}"
            raise BundleError(f"{path} does not fit the network ({why}); fit it again: medseg trust fit") from error
        return model

    def assess(self, crop: Crop) -> Assessment:
        """Assess one result, in a box round its structures with :data:`~medseg.trust.crop.MARGIN_VOXELS` around it."""
        case = case_features(crop, self.error_net)
        features, fault = dict(case.values), None
        if self.training_statistics is not None:
            again = self.training_statistics.reinfer(self.network, case)
            features |= again.features
            if self.fault_classifier is not None:
                fault = self.fault_classifier.most_probable(again.embedding)
                features |= self.fault_classifier.features(again.embedding)
        estimates = self.calibration.estimate(features, fault and fault.name)
        structures = [
            replace(one, name=self.names.get(one.label, str(one.label)), volume_factors=self._factors(one, features))
            for one in estimates
        ]
        flags = self.training_statistics.flags(features) if self.training_statistics else ()
        if any(case.shape[f"largest[{structure.label}]"] == 0 for structure in self.calibration.structures):
            flags = (*flags, STRUCTURE_MISSING)
        verdict = Verdict(
            self.calibration.thresholds.decide(structures),
            tuple(sorted(structures, key=lambda structure: structure.label)),
            flags,
            look_at_mm(case.error_map, crop),
            fault,
        )
        return Assessment(verdict, case.error_map, features)

    def _factors(self, one: StructureQuality, features: Mapping[str, float]) -> Interval | None:
        return None if self.volume_interval is None else self.volume_interval.factors(one.label, features)


def poor_results(channels: int, classes: int) -> dict[str, Crop]:
    """Results that are certainly poor, by what they are, in noise; ``classes`` counts the background."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(channels, _SIDE, _SIDE, _SIDE, generator=generator)
    chance = torch.randn(classes, _SIDE, _SIDE, _SIDE, generator=generator).softmax(0)
    nothing, open_ = torch.zeros_like(chance), torch.full_like(chance, 1.0 / classes)
    nothing[0] = 1.0
    results = {"an empty result": nothing, "all classes alike": open_, _CHANCE: chance}
    return {name: Crop(image, probabilities) for name, probabilities in results.items()}


def look_at_mm(error_map: NDArray[np.float32], crop: Crop) -> tuple[float, float, float] | None:
    """Point (RAS, mm) at which the three planes with most errors meet; None without any error."""
    if not np.any(error_map > 0):
        return None
    planes = [int(np.argmax(error_map.sum(axis=tuple({0, 1, 2} - {axis})))) for axis in range(3)]
    index = [*(a + b for a, b in zip(planes, crop.start, strict=True)), 1]
    x, y, z = (round(float(v), 3) for v in (crop.affine @ np.array(index, dtype=np.float64))[:3])
    return x, y, z
