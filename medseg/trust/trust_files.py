"""What a bundle keeps under ``trust/``: every file is opened once, and checked once against the bundle.

Everything belongs to one set of weights. The calibration alone speaks of results as they are written, and so belongs to
one way of cleaning their labels, too; the other parts see what the network says before it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from medseg.bundle import Bundle
from medseg.bundle.config import config_file, spelled_out, steps, target_of
from medseg.errors import BundleError, OtherCleaning, OtherWeights
from medseg.files import sha256_file
from medseg.trust.calibration import Calibration
from medseg.trust.fault_classifier import FaultClassifier
from medseg.trust.stored import check_weights
from medseg.trust.volume_interval import VolumeInterval

if TYPE_CHECKING:
    from medseg.trust.error_net import ErrorNet
    from medseg.trust.out_of_distribution import TrainingStatistics

CALIBRATION_NAME = "trust/calibration.json"
ERROR_NET_NAME = "trust/critic.safetensors"
STATISTICS_NAME = "trust/reference.json"
FAULT_CLASSIFIER_NAME = "trust/case_class.json"
VOLUME_INTERVAL_NAME = "trust/volume_interval.json"

_CLEANERS = ("FillHoles", "RemoveSmallObjects", "KeepLargestConnectedComponent", "LabelFilter")
"""What MONAI's transforms are called that change labels once they are made."""
_FEW = 5
_Part = TypeVar("_Part")


@dataclass(frozen=True)
class TrustState:
    """Whether results come with a verdict, and by what."""

    state: Literal["ready", "none", "stale", "damaged", "off"]
    """``"ready"``; ``"none"``: no calibration, so that only the implausible is flagged; ``"stale"``: it belongs to
    other weights, or to another cleaning of labels; ``"damaged"``: it cannot be used; ``"off"``: not asked for. Only
    ``"ready"`` gives estimates."""
    message: str = ""  # why not, and what to do
    calibration: Calibration | None = None  # coverage, thresholds, what it was fitted on, if it can be read
    volume_interval: VolumeInterval | None = None  # how often its intervals hold, and how wide they are; None without

    def as_json(self) -> dict[str, Any]:
        """For ``run.json`` and ``--json``."""
        facts: dict[str, Any] = {}
        if (known := self.calibration) is not None:
            facts = {
                "coverage": known.coverage,
                "thresholds": asdict(known.thresholds),
                "accepted": known.accepted and known.accepted.at(known.thresholds.accept).to_json(),
                "wider_for": list(known.wider_for),
                "weights_sha256": known.weights_sha256,
                "scores": list(known.features),
                "provenance": known.provenance,
                "structures": [structure.facts() for structure in known.structures],
            }
            facts |= {} if self.volume_interval is None else {"volume_intervals": self.volume_interval.facts()}
        return {"state": self.state, "message": self.message, **facts}

    def describe(self) -> str:
        """One line for people."""
        if self.state != "ready" or self.calibration is None:
            return f"{self.state}: {self.message}"
        known, patients = self.calibration, min(s.n_patients for s in self.calibration.structures)
        accept = "accept nothing" if known.thresholds.accept is None else f"accept from {known.thresholds.accept:.2f}"
        worth = f"; {known.accepted.describe(known.thresholds.accept)}" if known.accepted else ""
        return (
            f"calibrated for these weights on {patients} patients: {known.coverage:.0%} of the lower bounds hold;"
            f" {accept}, reject below {known.thresholds.reject:.2f}{worth}"
        )


class TrustFiles:
    """The parts of a bundle's trust; each is None if the bundle does not have it.

    Nothing in them is executed. A part is read when it is first asked for; what cannot be read, or belongs to other
    weights, raises a ``BundleError`` that says what to do.

    Parameters
    ----------
    bundle
        The bundle as it is on disk now; make another of these after its files were changed.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    @cached_property
    def weights(self) -> dict[str, str]:
        """SHA-256 of every file of weights that the bundle's network is filled from, by its place in the bundle."""
        folder = self.bundle.path
        if config_file(folder, "inference") is not None:
            names = self.bundle.weight_files
        else:
            names = [f"models/{path.name}" for path in sorted((folder / "models").glob("model.*")) if path.is_file()]
        return {name: sha256_file(folder / name) for name in names}

    @cached_property
    def cleaning(self) -> tuple[str, ...]:
        """What the bundle does to labels once they are made, as :attr:`Calibration.cleaning` states it."""
        if config_file(self.bundle.path, "inference") is None or (place := self.bundle.pipeline.postprocessing) is None:
            return ()
        config = self.bundle.inference
        found = [step for step in steps(config, place) if target_of(step).startswith(_CLEANERS)]
        return tuple(
            _as_text(target_of(step), spelled_out(config, step, ("_target_", "_disabled_", "keys"))) for step in found
        )

    @cached_property
    def stated_calibration(self) -> Calibration | None:
        """The calibration, whatever weights it belongs to; a ``BundleError`` if it is not of this bundle's labels."""
        path = self.bundle.path / CALIBRATION_NAME
        if not path.is_file():
            return None
        stated = Calibration.read(path)
        labels, own = sorted(one.label for one in stated.structures), sorted(self.bundle.labels)
        if labels != own:
            raise BundleError(
                f"{path} is of the labels {_few(labels)}, the bundle has {_few(own)}; fit it again: medseg trust fit"
            )
        return stated

    @property
    def calibration(self) -> Calibration | None:
        """From features to Dice."""
        if (stated := self.stated_calibration) is not None:
            path = self.bundle.path / CALIBRATION_NAME
            check_weights(path, stated.weights_sha256, self.weights.values())
            self._check_cleaning(path, stated.cleaning)
        return stated

    @cached_property
    def volume_interval(self) -> VolumeInterval | None:
        """From features to an interval round a volume."""
        part = self._part(VOLUME_INTERVAL_NAME, VolumeInterval.read)
        if part is not None:
            path = self.bundle.path / VOLUME_INTERVAL_NAME
            if unknown := sorted({one.label for one in part.structures} - {*self.bundle.labels}):
                raise BundleError(
                    f"{path} is of the labels {_few(unknown)}, which the bundle does not have; fit it again: medseg"
                    " trust fit"
                )
            self._check_cleaning(path, part.cleaning)
        return part

    def _check_cleaning(self, path: Path, stated: tuple[str, ...]) -> None:
        """Refuse what speaks of labels that were cleaned in another way."""
        if stated != self.cleaning:
            was, now = (_few(cleaning, 200) for cleaning in (stated, self.cleaning))
            raise OtherCleaning(
                f"{path} was fitted on labels with the cleaning: {was}; the bundle has now: {now}. Label anew and"
                " fit it again: medseg infer, medseg trust fit; or set the cleaning back: medseg bundle clean"
            )

    @cached_property
    def error_net(self) -> ErrorNet | None:
        """The fine-tuned discriminator, on the CPU."""
        from medseg.trust.error_net import ErrorNet

        net = self._part(ERROR_NET_NAME, ErrorNet.read)
        if net is not None:
            found, own = net.shape, (self.classes, self.bundle.input_channels)
            if (found.label_channels, found.image_channels) != own:
                raise BundleError(
                    f"{self.bundle.path / ERROR_NET_NAME} takes {found.label_channels} classes and"
                    f" {found.image_channels} channels, the bundle has {own[0]} and {own[1]}; fit it again:"
                    " medseg trust fit"
                )
        return net

    @cached_property
    def training_statistics(self) -> TrainingStatistics | None:
        """What the training cases look like."""
        from medseg.trust.out_of_distribution import TrainingStatistics

        return self._part(STATISTICS_NAME, TrainingStatistics.read)

    @cached_property
    def fault_classifier(self) -> FaultClassifier | None:
        """Which fault an image may have."""
        return self._part(FAULT_CLASSIFIER_NAME, FaultClassifier.read)

    @property
    def classes(self) -> int:
        """Classes that are judged, the background included."""
        return max(self.bundle.output_channels, 2)

    def _check_features(self, name: str, features: Sequence[str]) -> None:
        """Refuse a part that asks for what these files do not tell of a case."""
        from medseg.trust.features import feature_names

        known = feature_names(self.classes, error_net=self.error_net is not None)
        if self.training_statistics is not None:
            known |= self.training_statistics.feature_names(self.classes)
            known |= self.fault_classifier.feature_names if self.fault_classifier is not None else frozenset()
        if unknown := [feature for feature in features if feature not in known]:
            raise BundleError(
                f"{self.bundle.path / name} rests on {_few(unknown)}, which nothing in trust/ tells of a case; fit it"
                " again: medseg trust fit"
            )

    def _check_kinds(self, calibration: Calibration) -> None:
        """Refuse bounds for kinds of image that these files do not tell."""
        bounded = {kind.name for structure in calibration.structures for kind in structure.kinds}
        told = set(self.fault_classifier.classes if self.fault_classifier and self.training_statistics else ())
        if silent := sorted(bounded - told):
            raise BundleError(
                f"{self.bundle.path / CALIBRATION_NAME} has bounds for images that look like {_few(silent)}, which"
                f" {FAULT_CLASSIFIER_NAME} does not tell; fit it again: medseg trust fit"
            )

    def _part(self, name: str, read: Callable[[Path, Collection[str]], _Part]) -> _Part | None:
        path = self.bundle.path / name
        return read(path, self.weights.values()) if path.is_file() else None

    def unusable(self) -> Iterator[tuple[str, BundleError]]:
        """Files beside the calibration that cannot be used, by their place in the bundle, and why."""
        names = (ERROR_NET_NAME, STATISTICS_NAME, FAULT_CLASSIFIER_NAME, VOLUME_INTERVAL_NAME)
        parts = ("error_net", "training_statistics", "fault_classifier", "volume_interval")
        for name, part in zip(names, parts, strict=True):
            try:
                getattr(self, part)
            except BundleError as error:
                yield name, error

    @cached_property
    def state(self) -> TrustState:
        """Whether results come with a verdict."""
        bundle = self.bundle
        if bundle.scheme.regions:
            return TrustState("none", f"not calibrated: {bundle.name} has regions that overlap")
        if not (bundle.path / CALIBRATION_NAME).is_file():
            return TrustState(
                "none", f"not calibrated: {bundle.name} has no {CALIBRATION_NAME}; fit one: medseg trust fit"
            )
        if bundle.output_channels > 1 and not bundle.has_background:
            why = "channel_def names no background, which probabilities are judged against"
            return TrustState("none", f"not calibrated: {bundle.name} cannot be: {why}")
        stated = None
        try:
            stated = self.stated_calibration
            _ = self.calibration
            for _, reason in self.unusable():
                raise reason
            assert stated is not None
            self._check_features(CALIBRATION_NAME, stated.features)
            self._check_kinds(stated)
            self._check_features(VOLUME_INTERVAL_NAME, self.volume_interval.features if self.volume_interval else ())
        except (OtherWeights, OtherCleaning) as error:
            return TrustState("stale", str(error), stated)
        except BundleError as error:
            return TrustState("damaged", str(error), stated)
        return TrustState("ready", "", stated, self.volume_interval)


def _as_text(name: str, arguments: Mapping[str, Any]) -> str:
    """A step of a config in one line, the same for the same step."""
    return f"{name}({', '.join(f'{key}={json.dumps(value)}' for key, value in sorted(arguments.items()))})"


def _few(values: Sequence[object], most: int = 40) -> str:
    """Some of many values, in a message; ``most`` characters of each."""
    shown = [str(value)[:most] for value in values[:_FEW]]
    return ", ".join(shown + (["…"] if len(values) > _FEW else [])) or "none"


def trust_state(bundle: Bundle) -> TrustState:
    """Whether results of a bundle come with a verdict; nothing of it is executed."""
    return TrustFiles(bundle).state
