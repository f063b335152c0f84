"""Trust in a batch: the bundle's judge looks at every case after the network did, and never at one it was not made for.

A calibration that belongs to other weights, or cannot be read, gives no verdict at all: the run goes on without and
says so. A case that cannot be judged (its structures are too large for the memory allowed, or the judge fails) is to
be reviewed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray

from medseg.errors import BundleError, MedsegError
from medseg.inference.invert import field_on_source
from medseg.inference.predictor import Prediction, Predictor
from medseg.inference.sliding_window import Chunk
from medseg.labels.decoding import LabelDecoding
from medseg.results.verdict import NOT_JUDGED, TOO_LARGE, Verdict
from medseg.trust.crop import Crop, ProbabilityCrop
from medseg.trust.trust_files import TrustFiles, TrustState

if TYPE_CHECKING:
    from medseg.trust.trust_model import TrustModel

_log = logging.getLogger(__name__)


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
        files = TrustFiles(predictor.bundle)
        state = files.state if wanted else TrustState("off", "switched off")
        if state.state != "ready":
            if state.state in {"stale", "damaged"}:
                _log.warning("no verdicts: %s", state.message)
            return cls(None, state)
        try:
            judge = _open_judge(files, predictor.network, predictor.device)
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
        keeper = _Timed(ProbabilityCrop(LabelDecoding(predictor.recipe.activation, predictor.recipe.threshold)))
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
            crop = keeper.crop(prepared.as_tensor(), prepared.affine.numpy())
            if crop is None:
                return Assessment(Verdict.not_assessed(TOO_LARGE).to_json())
            found = self._judge.assess(crop)
        except (MedsegError, MemoryError, RuntimeError, ValueError, ArithmeticError) as error:
            _log.warning("the judge failed with %s", type(error).__name__)
            return Assessment(Verdict.not_assessed(NOT_JUDGED).to_json())
        content = found.verdict.to_json()
        if not self._keep_doubt:
            return Assessment(content)
        return Assessment(content, _doubt_on_source(found.error_map, crop, (predictor, source, prepared)))


class _Timed:
    """Adds up the time that keeping takes."""

    def __init__(self, keeper: ProbabilityCrop) -> None:
        self.keeper, self.seconds = keeper, 0.0

    def __call__(self, slab: Chunk) -> None:
        begin = time.perf_counter()
        self.keeper.add(slab.start, slab.scores)
        self.seconds += time.perf_counter() - begin


def _open_judge(files: TrustFiles, network: torch.nn.Module, device: str) -> TrustModel | None:
    from medseg.trust.trust_model import TrustModel

    return TrustModel.open(files, network, device)


def _doubt_on_source(
    doubt: NDArray[Any], crop: Crop, where: tuple[Predictor, MetaTensor, MetaTensor]
) -> NDArray[np.uint8]:
    """Doubt in per cent on the source grid; none outside the box that was judged."""
    predictor, source, prepared = where
    whole = torch.zeros(tuple(prepared.shape[1:]))
    whole[crop.slices] = torch.from_numpy(np.ascontiguousarray(doubt, dtype=np.float32))
    restored = field_on_source(whole, predictor.recipe, source, prepared)
    return np.asarray(np.rint(np.clip(restored, 0.0, 1.0) * 100.0), dtype=np.uint8)
