"""The trust verdict as content of a measurement report: per structure, and once for the whole result.

The terms are private (coding scheme ``99MEDSEG``): no published scheme names a Dice coefficient that was predicted
without ground truth.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from highdicom import sr
from highdicom.sr import CodedConcept

__all__ = ["of_result", "of_structure", "verdict_of"]

_NO_UNITS = CodedConcept("1", "UCUM", "no units")
_SCHEME = "99MEDSEG"
_MEASURES = {
    "predicted_dice": CodedConcept("DICE", _SCHEME, "Predicted Dice coefficient"),
    "lower_bound": CodedConcept("DICELOW", _SCHEME, "Lower bound of Dice"),
}
_VERDICT = CodedConcept("TRUST", _SCHEME, "Trust verdict")
_FLAG = CodedConcept("FLAG", _SCHEME, "Trust flag")
_RESULT = CodedConcept("RESULT", _SCHEME, "Whole segmentation result")
_LONGEST_MEANING = 64


def of_structure(trust: Mapping[str, Any], label: int) -> list[sr.Measurement]:
    """Predicted Dice and lower bound of one structure; those of the whole result where structures have none."""
    own = [item for item in trust.get("structures") or () if item.get("label") == label]
    if trust.get("structures") and not own:
        return []
    return _measures(own[0] if own else trust)


def verdict_of(trust: Mapping[str, Any]) -> list[sr.QualitativeEvaluation] | None:
    """The verdict on the case, as it stands in every group: no structure is to be read without it."""
    verdict = trust.get("verdict")
    if not verdict:
        return None
    return [sr.QualitativeEvaluation(name=_VERDICT, value=_term(str(verdict).upper(), str(verdict).capitalize()))]


def of_result(
    trust: Mapping[str, Any], tracking: sr.TrackingIdentifier, algorithm: sr.AlgorithmIdentification
) -> list[sr.MeasurementsAndQualitativeEvaluations]:
    """A group of its own (TID 1501) for what is known of the whole result: both measures, verdict, flags."""
    measures, verdict = _measures(trust), verdict_of(trust)
    flags = [sr.QualitativeEvaluation(name=_FLAG, value=_term(str(flag), str(flag))) for flag in trust.get("flags", ())]
    if not measures and not verdict and not flags:
        return []
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=tracking,
        finding_type=_RESULT,
        algorithm_id=algorithm,
        measurements=measures or None,
        qualitative_evaluations=[*(verdict or ()), *flags],
    )
    return [group]


def _measures(stated: Mapping[str, Any]) -> list[sr.Measurement]:
    values = ((stated.get(key), name) for key, name in _MEASURES.items())
    return [
        sr.Measurement(name=name, value=float(f"{value:.4f}"), unit=_NO_UNITS)
        for value, name in values
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]


def _term(value: str, meaning: str) -> CodedConcept:
    return CodedConcept(value, _SCHEME, meaning[:_LONGEST_MEANING])
