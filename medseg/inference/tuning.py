"""Find, by measurement on one case, the fastest way of running a network that gives the bundle's own labels."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from monai.data import MetaTensor

from medseg.errors import CaseFailed, MissingDependency
from medseg.inference import choice as choosing
from medseg.inference.choice import Choice
from medseg.inference.engines import REFERENCE
from medseg.inference.quantised import INT8, can_quantise
from medseg.inference.remembered import Measured, remember
from medseg.inference.restore import LabelMap
from medseg.inference.windows import spread_windows

if TYPE_CHECKING:
    from medseg.inference.predictor import Predictor

__all__ = ["still_holds", "tune"]

_WORTH_TUNING_S = 60.0
_WORTH_COMPILING_S = 900.0
_log = logging.getLogger(__name__)


def tune(predictor: Predictor, image: MetaTensor, modality: str | None, case_id: str, waiting: float) -> Choice:
    """Choose how ``predictor`` runs its network, as :meth:`medseg.inference.Predictor.tune` says."""
    predictor.use(Choice())
    begin = time.perf_counter()
    expected = predictor.predict(image, modality).label_map
    reference_s = time.perf_counter() - begin
    if reference_s * waiting < _WORTH_TUNING_S:
        return predictor.choice
    patient = reference_s * waiting > _WORTH_COMPILING_S
    best = Choice(measured_on=case_id)
    for way in _ways(predictor, image, patient):
        found = _measured(predictor, image, modality, expected, replace(way, measured_on=case_id))
        if found is None:
            continue
        faster = replace(found[0], speedup=round(reference_s / found[1], 2))
        if (faster.speedup or 0.0) > (best.speedup or 1.0):
            best = faster
    predictor.use(best)
    if best.engine != INT8:  # its integers were learnt from this run's images
        remember(predictor.subject, Measured(best, reference_s, thorough=patient))
    return best


def still_holds(measured: Measured, waiting: float) -> bool:
    """Whether an earlier measurement looked as closely as one for ``waiting`` cases would."""
    return measured.thorough or measured.reference_s * waiting <= _WORTH_COMPILING_S


def _ways(predictor: Predictor, image: MetaTensor, patient: bool) -> list[Choice]:
    """What is worth a whole case: the fastest engine with either kind of window, and integers."""
    volume = predictor.prepare(image).as_tensor().float()
    window = next(spread_windows(volume, predictor.networks.own_windows, 1))
    engine, _ = choosing.fastest_engine(window, predictor.networks.copy_of, predictor.device, compiled=patient)
    ways = [Choice(engine.name, "bundle")] if engine.name != REFERENCE else []
    if predictor.recipe.windows is not None:
        ways.append(Choice(engine.name, "large", measured_shape=tuple(volume.shape[1:])))
    if patient and predictor.device == "cpu" and can_quantise():
        ways.append(Choice(INT8, "bundle"))
    return ways


def _measured(
    predictor: Predictor, image: MetaTensor, modality: str | None, expected: LabelMap, way: Choice
) -> tuple[Choice, float] | None:
    """``way`` with its agreement, and its seconds; None if it cannot be used or gives other labels."""
    try:
        predictor.use(way)
        if way.engine == INT8:
            predictor.predict(image, modality)  # quantises, which later cases do not
        begin = time.perf_counter()
        found = predictor.predict(image, modality).label_map
    except (CaseFailed, MissingDependency, MemoryError, RuntimeError) as error:
        _log.info("%s with %s windows cannot be used: %s", way.engine, way.windows, type(error).__name__)
        return None
    seconds = time.perf_counter() - begin
    same = choosing.agreement(found, expected)
    if same is None or same < choosing.SMALLEST_AGREEMENT:
        _log.info("%s with %s windows gives other labels: agreement %s", way.engine, way.windows, same)
        return None
    return replace(predictor.choice, agreement=same), seconds
