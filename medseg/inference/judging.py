"""Trust in a batch: the bundle's judge looks at every case after the network did, and never at one it was not made for.

A calibration that belongs to other weights, or cannot be read, gives no verdict at all: the run goes on without and
says so. A case that cannot be judged (its structures are too large for the memory allowed, or the judge fails) is to
be reviewed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray

from medseg.bundle import Bundle
from medseg.errors import BundleError, MedsegError
from medseg.inference.foreground import Crop, ProbabilityCrop
from medseg.inference.invert import field_on_source
from medseg.inference.predictor import Prediction, Predictor
from medseg.trust.trust_files import TrustState, trust_state

if TYPE_CHECKING:
    from medseg.trust.trust_model import TrustModel, Verdict

_log = logging.getLogger(__name__)

TOO_LARGE = "too-large"
"""Flag of a case whose structures are too large to be judged in the memory allowed."""

NOT_JUDGED = "not-judged"
"""Flag of a case that the judge failed on."""


@dataclass(frozen=True)
class Assessment:
    """What trust says of one case.

    Parameters
    ----------
    trust
        As in ``run.json``.
    doubt
        Doubt in per cent on the source grid, uint8; None unless asked for.
    """

    trust: Mapping[str, Any]
    doubt: NDArray[np.uint8] | None = None


class Judging:
    """The judge of one bundle, or the reason why there is none.

    Parameters
    ----------
    judge
        From :meth:`open`; None gives predictions without an assessment.
    state
        What the bundle's calibration is worth.
    keep_doubt
        Whether the map of doubt is wanted on the source grid.
    """

    def __init__(self, judge: TrustModel | None, state: TrustState, *, keep_doubt: bool = False) -> None:
        self._judge, self.state, self._keep_doubt = judge, state, keep_doubt

    @classmethod
    def open(cls, predictor: Predictor, *, wanted: bool = True, keep_doubt: bool = False) -> Judging:
        """Open the judge of a predictor's bundle; without a calibration for its weights there is none."""
        state = trust_state(predictor.bundle) if wanted else TrustState("off", "switched off")
        if state.state != "ready":
            if state.state in {"stale", "damaged"}:
                _log.warning("no verdicts: %s", state.message)
            return cls(None, state)
        try:
            judge = _open_judge(predictor.bundle, predictor.network, predictor.device)
        except BundleError as error:
            _log.warning("no verdicts: %s", error)
            return cls(None, TrustState("damaged", str(error)))
        return cls(judge, state, keep_doubt=keep_doubt)

    def predict(
        self, predictor: Predictor, image: MetaTensor, modality: str | None
    ) -> tuple[Prediction, Assessment | None, float]:
        """Label one volume and judge the result; also the seconds that trust took.

        The time is that of the judge and of keeping the probabilities it needs.
        """
        if self._judge is None:
            return predictor.predict(image, modality), None, 0.0
        keeper = _Timed(ProbabilityCrop(predictor.recipe))
        prediction = predictor.predict(image, modality, watch=keeper)
        begin = time.perf_counter()
        assert prediction.prepared is not None
        assessment = self._assess(predictor, image, prediction.prepared, keeper.keeper)
        return prediction, assessment, time.perf_counter() - begin + keeper.seconds

    def _assess(
        self, predictor: Predictor, source: MetaTensor, prepared: MetaTensor, keeper: ProbabilityCrop
    ) -> Assessment:
        assert self._judge is not None
        try:
            crop = keeper.crop(prepared.shape[1:])
            if crop is None:
                return _unjudged(TOO_LARGE)
            image = prepared.as_tensor()[(slice(None), *crop.slices)].float()
            trust = self._judge.assess(image, crop.probabilities, spacing_mm_of(prepared))
        except (MedsegError, MemoryError, RuntimeError, ValueError, ArithmeticError) as error:
            _log.warning("the judge failed with %s", type(error).__name__)
            return _unjudged(NOT_JUDGED)
        content = _as_json(trust, predictor.bundle, _look_at_mm(trust.doubt, crop, prepared))
        if not self._keep_doubt:
            return Assessment(content)
        return Assessment(content, _doubt_on_source(trust.doubt, crop, (predictor, source, prepared)))


class _Timed:
    """Adds up the time that keeping takes."""

    def __init__(self, keeper: ProbabilityCrop) -> None:
        self.keeper, self.seconds = keeper, 0.0

    def __call__(self, slab: Any) -> None:
        begin = time.perf_counter()
        self.keeper(slab)
        self.seconds += time.perf_counter() - begin


def _open_judge(bundle: Bundle, network: torch.nn.Module, device: str) -> TrustModel | None:
    from medseg.trust.trust_model import TrustModel

    return TrustModel.open(bundle, network, device)


def _as_json(trust: Verdict, bundle: Bundle, look_at_mm: Sequence[float] | None) -> dict[str, Any]:
    structures = [
        {
            "label": label,
            "name": bundle.labels.get(label, str(label)),
            "predicted_dice": round(float(estimate.predicted_dice), 6),
            "lower_bound": round(float(estimate.lower_bound), 6),
        }
        for label, estimate in sorted(trust.estimates.items())
    ]
    # what is flagged is never accepted unseen, whatever the estimates say
    verdict = "review" if trust.flags and trust.verdict == "accept" else trust.verdict
    return {**_of_case(structures, verdict, trust.flags), "look_at_mm": look_at_mm, "case_class": _kind(trust)}


def _kind(trust: Verdict) -> dict[str, Any] | None:
    """The most probable kind of case; None if the bundle does not tell kinds."""
    if not trust.case_class:
        return None
    name, probability = max(trust.case_class.items(), key=lambda item: item[1])
    return {"name": name, "probability": round(probability, 4)}


def _of_case(structures: Sequence[Mapping[str, Any]], verdict: str, flags: Sequence[str]) -> dict[str, Any]:
    predicted = [float(s["predicted_dice"]) for s in structures]
    return {
        "predicted_dice": round(sum(predicted) / len(predicted), 6) if predicted else None,
        "lower_bound": min((float(s["lower_bound"]) for s in structures), default=None),
        "verdict": verdict,
        "structures": list(structures),
        "flags": list(flags),
    }


def _unjudged(flag: str) -> Assessment:
    return Assessment({**_of_case([], "review", [flag]), "look_at_mm": None, "case_class": None})


def spacing_mm_of(image: MetaTensor) -> tuple[float, float, float]:
    """Voxel size along the three axes of an image with its affine."""
    x, y, z = np.linalg.norm(np.asarray(image.affine, dtype=np.float64)[:3, :3], axis=0)
    return float(x), float(y), float(z)


def _look_at_mm(doubt: NDArray[Any], crop: Crop, prepared: MetaTensor) -> list[float] | None:
    """Point (RAS, mm) at which the three planes with most doubt meet; None without any doubt."""
    if not np.any(doubt > 0):
        return None
    planes = [int(np.argmax(doubt.sum(axis=tuple(a for a in range(3) if a != axis)))) for axis in range(3)]
    index = [*(a + b for a, b in zip(planes, crop.start, strict=True)), 1]
    point = np.asarray(prepared.affine, dtype=np.float64) @ np.array(index, dtype=np.float64)
    return [round(float(v), 3) for v in point[:3]]


def _doubt_on_source(
    doubt: NDArray[Any], crop: Crop, where: tuple[Predictor, MetaTensor, MetaTensor]
) -> NDArray[np.uint8]:
    """Doubt in per cent on the source grid; none outside the box that was judged."""
    predictor, source, prepared = where
    whole = torch.zeros(tuple(prepared.shape[1:]))
    whole[crop.slices] = torch.from_numpy(np.ascontiguousarray(doubt, dtype=np.float32))
    restored = field_on_source(whole, predictor.recipe, source, prepared)
    return np.asarray(np.rint(np.clip(restored, 0.0, 1.0) * 100.0), dtype=np.uint8)
