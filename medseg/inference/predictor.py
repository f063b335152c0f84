"""One case through a bundle: preprocess, run windows, label on the source grid, and say how far to believe it.

Trust needs a calibration for the bundle's weights and its cleaning of labels. One that belongs to others, or cannot be
read, gives no verdict at all; where there is none, results are not calibrated, and only the implausible is flagged. A
case that cannot be judged (its structures are too large for the memory allowed, or the trust model fails) is to be
reviewed.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray

from medseg.bundle import Bundle
from medseg.devices import resolve_device
from medseg.errors import BundleError, CaseFailed, Interrupted, MedsegError
from medseg.geometry import Geometry
from medseg.inference.config import read_inference_config
from medseg.inference.engines import EngineChoice
from medseg.inference.ensemble import check_mirror, mirrored_axes
from medseg.inference.interpolation import nearest_labels
from medseg.inference.invert import Inverter, LabelMap
from medseg.inference.preprocess import Case, geometry_of, preprocess
from medseg.inference.probabilities import ProbabilityMaps, ProbabilitySpool, require_probabilities
from medseg.inference.scoring import Scoring
from medseg.inference.second_look import second_look
from medseg.inference.sliding_window import Chunk
from medseg.results.case_result import LocatedPart
from medseg.results.verdict import NOT_CALIBRATED, NOT_JUDGED, TOO_LARGE, DiscriminatorVerdict, Verdict
from medseg.trust.crop import Crop, ProbabilityCrop
from medseg.trust.default_judge import ScoreTally, plausibility
from medseg.trust.trust_files import TrustFiles, TrustState

if TYPE_CHECKING:
    from medseg.trust.discriminator import DiscriminatorJudge
    from medseg.trust.trust_model import TrustModel

_log = logging.getLogger(__name__)
_FAILURES = (MedsegError, MemoryError, RuntimeError, ValueError, ArithmeticError)
"""What a judge may raise without taking the labels along."""
_A = TypeVar("_A")
_R = TypeVar("_R")


@dataclass(frozen=True)
class Prediction:
    """What one case gave.

    Attributes
    ----------
    label_map
        uint8 or uint16, on the source image's grid, axes ``(i, j, k)`` as there.
    geometry
        That grid.
    seconds
        Wall time per stage: ``prepare``, ``network``, ``restore`` (stitching, labels, back to the source grid), and
        ``trust`` if there is a verdict.
    verdict
        How far the labels can be believed; None unless asked for, or if the calibration cannot be used.
    error_map
        Per cent of wrong labels expected round each voxel, uint8 on the source grid; None unless asked for.
    prepared
        The image as the network saw it, ``(C, H, W, D)``; None unless the network's output was watched.
    discriminator
        What the bundle's discriminator takes the result for; None unless it may judge.
    probabilities
        Of every channel, on the source grid; None unless asked for.
    parts, note
        Of a structure that was located first: its parts, and what is worth noting of them.
    """

    label_map: LabelMap
    geometry: Geometry
    seconds: Mapping[str, float]
    verdict: Verdict | None = None
    error_map: NDArray[np.uint8] | None = None
    prepared: MetaTensor | None = None
    discriminator: DiscriminatorVerdict | None = None
    probabilities: ProbabilityMaps | None = None
    parts: tuple[LocatedPart, ...] = ()
    note: str = ""


class Predictor:
    """A bundle, opened once, that labels any number of cases.

    Parameters
    ----------
    bundle
        The bundle, or its folder or name.
    device
        Torch device; ``"auto"``: CUDA, else Apple's MPS, else the CPU.
    precision, engine
        As for :meth:`medseg.inference.engines.EngineChoice.by_rule`.
    mirror
        Axes of the patient (``"lr"``, ``"ap"``, ``"is"``) along which every window is also seen mirrored; the
        probabilities of all combinations are averaged.
    ensemble
        Bundles or weights files whose networks are averaged with the bundle's own, see
        :func:`medseg.inference.ensemble.load_models`.
    trust
        Whether cases get a verdict: by the bundle's trust calibration for its weights, or without one "not calibrated",
        and the implausible flagged (``trust_state`` says which, or why there is none). It holds for the plain network
        alone: with ``mirror`` or ``ensemble`` there is none. The same goes for the judgement of a discriminator that
        may judge.
    structures
        Names of the structures that a VISTA3D is asked for; by default all that it labels by itself.

    Examples
    --------
    >>> predictor = Predictor("bundles/hippocampus_mri_segmentation")  # doctest: +SKIP
    >>> predictor.predict(image).label_map.shape == image.shape[1:]  # doctest: +SKIP
    True
    """

    def __init__(
        self,
        bundle: Bundle | str | Path,
        device: str = "auto",
        precision: str = "auto",
        *,
        engine: str = "auto",
        mirror: Sequence[str] = (),
        ensemble: Sequence[str] = (),
        trust: bool = True,
        structures: Sequence[str] = (),
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        self.device, self.mirror = resolve_device(device), tuple(mirror)
        self.choice = EngineChoice.by_rule(self.device, precision, engine)
        check_mirror(self.mirror, self.bundle)
        self.config = read_inference_config(self.bundle, structures)
        self.network = self.bundle.load_network(self.device)
        # a calibration holds for the plain network, whose channels are the labels
        plain = not self.mirror and not ensemble and not self.config.prompts and not self.config.post.names
        self._scoring = Scoring(
            self.bundle,
            self.config,
            self.network,
            self.choice,
            self.device,
            ensemble=ensemble,
            mirrored=bool(self.mirror),
        )
        self.trust_state, self._trust = TrustState("off"), None
        if trust and plain:
            self.trust_state, self._trust = _open_trust(self.bundle, self.network, self.device)
        elif trust and not self.mirror and not ensemble:
            self.trust_state = TrustState("none", f"not calibrated: {self.bundle.name} names what it is asked for")
        self._plain = plain
        self._judge = _open_judge(self.bundle, self.device) if trust and plain else None
        self._cleans = self._judge is not None and bool(TrustFiles(self.bundle).cleaning)

    def predict(
        self,
        image: MetaTensor | Mapping[str, Any],
        modality: str | None = None,
        *,
        error_map: bool = False,
        probabilities: Path | None = None,
        watch: Callable[[Chunk], None] | None = None,
    ) -> Prediction:
        """Label one case.

        Parameters
        ----------
        image
            Channel-first image ``(C, H, W, D)`` on its own grid with its affine (RAS, mm), or a case with the
            key ``image`` and, for a bundle that takes channels on different grids, the keys of the others.
        modality
            DICOM modality code, if known; compared with what the bundle was trained on.
        error_map
            Whether to say where the labels may be wrong, if there is a verdict.
        probabilities
            A folder for a temporary file, if the probabilities of all channels are asked for, too.
        watch
            Called with every chunk of the network's output before it is labelled; the prepared image is handed back.

        Raises
        ------
        Refusal
            ``channel-mismatch``, ``non-finite``, ``outside-training-range``, ``wrong-modality`` or
            ``singular-affine``.
        CaseFailed
            If the network returns values that are not finite.
        UsageError
            If the bundle gives no probabilities, and they are asked for.
        """
        clock, case = _Stopwatch(), self._case(image)
        source = case["image"]
        with clock.stage("prepare"):
            prepared = self.prepare(case, modality)
        inverter = Inverter(self.config, source, prepared)
        crop = ProbabilityCrop(self.config.post.decoding) if self._trust or self._judge else None
        watching: list[Callable[[Chunk], None]] = [watch] if watch else []
        spool = None
        if probabilities is not None:
            require_probabilities(self.config, self.bundle.name)
            spool = ProbabilitySpool(tuple(prepared.shape[1:]), inverter.activated, probabilities)
            watching.append(spool.add)
        if crop is not None:
            watching.append(clock.timed("trust", lambda chunk: crop.add(chunk.start, chunk.scores)))
        default = self.trust_state.state == "none"
        tally = ScoreTally(self.config.post.decoding) if default and self._plain else None
        if tally is not None:
            watching.append(clock.timed("trust", lambda chunk: tally.add(chunk.scores)))
        with clock.stage("restore"):
            axes = mirrored_axes(self.mirror, geometry_of(prepared)) if self.mirror else ()
            volume = prepared.as_tensor().float()
            chunks = self._scoring.chunks(volume, axes, partial(clock.timed, "network"))
            labels = inverter.labels(self._scoring.labels(_watched(chunks, watching)))
        clock.seconds["restore"] -= clock.seconds["network"] + clock.seconds.get("trust", 0.0)
        if labels.shape != tuple(source.shape[1:]):
            raise CaseFailed(f"the label map has shape {labels.shape}, the source image {tuple(source.shape[1:])}")
        found = _Judgement()
        if crop is not None:
            with clock.stage("trust"):
                written = nearest_labels(labels, source, prepared) if self._cleans else None
                found = self._assess(crop, prepared, inverter if error_map else None, written)
        if default:
            with clock.stage("trust"):
                found = replace(found, verdict=self._plausible(labels, prepared, tally))
        watched = prepared if watch else None
        seconds = dict(clock.seconds)
        maps = None if spool is None else spool.maps(inverter.field)
        return Prediction(
            labels, geometry_of(source), seconds, found.verdict, found.error_map, watched, found.discriminator, maps
        )

    def prepare(self, image: MetaTensor | Mapping[str, Any], modality: str | None = None) -> MetaTensor:
        """The image as the network sees it, see :func:`medseg.inference.preprocess.preprocess`."""
        return preprocess(self._case(image), self.bundle, self.config, modality)

    def _case(self, image: MetaTensor | Mapping[str, Any]) -> Case:
        """What the bundle's preprocessing acts on."""
        if isinstance(image, Mapping):
            return {key: image[key] for key in self.config.channels.keys if key in image}
        return {"image": image}

    def _assess(
        self,
        kept: ProbabilityCrop,
        prepared: MetaTensor,
        inverter: Inverter | None,
        written: NDArray[np.uint8] | None,
    ) -> _Judgement:
        """What the trust model and the discriminator say; the error map if there is an inverter to the source grid.

        ``written``: The labels on the network's grid, where they were cleaned.
        """
        try:
            crop = kept.crop(prepared.as_tensor(), prepared.affine.numpy())
            if crop is None:
                return _Judgement(Verdict.not_assessed(TOO_LARGE) if self._trust else None)
            real = None if self._judge is None else self._real(self._judge, prepared, crop, written)
            if self._trust is None:
                return _Judgement(discriminator=real)
            found = self._trust.assess(crop)
        except Interrupted:
            raise
        except _FAILURES as error:
            _log.warning("the trust model failed with %s", type(error).__name__)
            return _Judgement(Verdict.not_assessed(NOT_JUDGED) if self._trust else None)
        if inverter is None:
            return _Judgement(found.verdict, None, real)
        # none outside the box that was judged
        whole = torch.zeros(tuple(prepared.shape[1:]))
        whole[crop.slices] = torch.from_numpy(np.ascontiguousarray(found.error_map, dtype=np.float32))
        percent = np.rint(np.clip(inverter.field(whole), 0.0, 1.0) * 100.0)
        return _Judgement(found.verdict, np.asarray(percent, dtype=np.uint8), real)

    def _plausible(self, labels: LabelMap, prepared: MetaTensor, tally: ScoreTally | None) -> Verdict:
        """What can be said without a calibration; ``tally`` is of the scores, where they are those of the labels."""
        config, sure, agrees = self.config, None, None
        try:
            if tally is not None:
                sure = tally.confidence
                scores_of = partial(self._scoring.chunks, mirrored=(), timed=lambda network: network)
                agrees = second_look(prepared.as_tensor().float(), tally, scores_of, config.windows, config.slice_axis)
            return plausibility(labels, self.bundle.scheme.members, sure, agrees).verdict
        except Interrupted:
            raise
        except _FAILURES as error:
            _log.warning("the default judge failed with %s", type(error).__name__)
            return Verdict(NOT_CALIBRATED, flags=(NOT_JUDGED,))

    def _real(
        self, judge: DiscriminatorJudge, prepared: MetaTensor, crop: Crop, written: NDArray[np.uint8] | None
    ) -> DiscriminatorVerdict | None:
        """What the discriminator takes the result for; the verdict does not depend on whether it can say."""
        try:
            image = prepared.as_tensor().float()
            if written is None:
                return judge.judge(image, crop)
            return judge.judge_labels(image, torch.from_numpy(written)[None])
        except Interrupted:
            raise
        except _FAILURES as error:
            _log.warning("the discriminator failed with %s", type(error).__name__)
            return None


@dataclass(frozen=True)
class _Judgement:
    """What is said of one result: by the trust model, where its errors are, and by the discriminator."""

    verdict: Verdict | None = None
    error_map: NDArray[np.uint8] | None = None
    discriminator: DiscriminatorVerdict | None = None


class _Stopwatch:
    """Adds up the wall time of stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the body."""
        begin = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - begin

    def timed(self, name: str, function: Callable[[_A], _R]) -> Callable[[_A], _R]:
        """The function, its calls counted."""

        def call(argument: _A) -> _R:
            with self.stage(name):
                return function(argument)

        return call


def _watched(chunks: Iterable[Chunk], watching: Sequence[Callable[[Chunk], None]]) -> Iterator[Chunk]:
    for chunk in chunks:
        for watch in watching:
            watch(chunk)
        yield chunk


def _open_trust(bundle: Bundle, network: torch.nn.Module, device: str) -> tuple[TrustState, TrustModel | None]:
    """The trust model of a bundle; without a calibration for its weights there is none, and the state says why."""
    from medseg.trust.trust_model import TrustModel

    files = TrustFiles(bundle)
    state = files.state
    if state.state in {"stale", "damaged"}:
        _log.warning("no verdicts: %s", state.message)
    if state.state != "ready":
        return state, None
    try:
        return state, TrustModel.open(files, network, device)
    except BundleError as error:
        _log.warning("no verdicts: %s", error)
        return replace(state, state="damaged", message=str(error)), None


def _open_judge(bundle: Bundle, device: str) -> DiscriminatorJudge | None:
    """The discriminator of a bundle, if it may judge."""
    from medseg.trust.discriminator import DiscriminatorJudge

    try:
        return DiscriminatorJudge.open(bundle, device)
    except BundleError as error:
        _log.warning("the discriminator does not judge: %s", error)
        return None
