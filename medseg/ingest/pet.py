"""What a PET header says about how its values become standardised uptake values (SUV).

SUV by body weight, after the Quantitative Imaging Biomarkers Alliance's FDG-PET profile:
SUV = activity concentration [Bq/ml] × body weight [g] / injected dose [Bq], the dose decayed to the start of the scan.
The factor is reported, never applied: whether to use it is the user's decision.
"""

from __future__ import annotations

import io
import os
from datetime import datetime, timedelta
from typing import Any, Final

from medseg.ingest.elements import open_file

__all__ = ["suv_facts"]

_ADMINISTERED: Final = "ADMIN"
_AT_START: Final = "START"
_LONGEST_UPTAKE_S: Final = 12 * 3600


def suv_facts(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Units, decay correction and, where the header allows it, the factor from stored units to SUV by body weight.

    Returns
    -------
    dict
        ``units`` (such as ``"BQML"`` or ``"GML"``), ``decay_correction``, ``corrections``, ``suv_bw_factor``
        (``None`` where it cannot be known), ``suv_missing`` (what the header lacks for it).
    """
    from pydicom import dcmread

    with open_file(path) as handle:
        dataset = dcmread(io.BytesIO(handle.read()), stop_before_pixels=True)
    units = str(dataset.get("Units", "") or "")
    factor, missing = _factor(dataset, units)
    return {
        "units": units,
        "decay_correction": str(dataset.get("DecayCorrection", "") or ""),
        "corrections": tuple(str(part) for part in dataset.get("CorrectedImage", None) or ()),
        "suv_bw_factor": factor,
        "suv_missing": missing,
    }


def _factor(dataset: Any, units: str) -> tuple[float | None, str]:
    if units == "GML":
        return 1.0, ""
    if units != "BQML":
        return None, f"units are {units or 'absent'}, expected BQML or GML"
    tracer = (dataset.get("RadiopharmaceuticalInformationSequence") or [{}])[0]
    weight_kg, dose_bq = dataset.get("PatientWeight"), tracer.get("RadionuclideTotalDose")
    half_life_s = tracer.get("RadionuclideHalfLife")
    if not weight_kg or not dose_bq or not half_life_s:
        return None, "patient weight, injected dose or half-life is absent"
    correction = dataset.get("DecayCorrection")
    if correction == _ADMINISTERED:
        return float(weight_kg) * 1000 / float(dose_bq), ""
    uptake_s = _uptake_s(dataset, tracer)
    if correction != _AT_START or uptake_s is None:
        return None, "decay correction or the times of injection and scan are absent or contradict each other"
    decayed = float(dose_bq) * 2.0 ** (-uptake_s / float(half_life_s))
    return float(weight_kg) * 1000 / decayed, ""


def _uptake_s(dataset: Any, tracer: Any) -> float | None:
    """Seconds from injection to the start of the scan; ``None`` if unknown or implausible."""
    injected, scanned = tracer.get("RadiopharmaceuticalStartTime"), dataset.get("SeriesTime")
    acquired = dataset.get("AcquisitionTime")
    if not injected or not scanned or not acquired or float(acquired) < float(scanned):
        return None  # a SeriesTime after the acquisition is the time of a later reconstruction
    difference = _time(str(scanned)) - _time(str(injected))
    seconds = (difference + timedelta(days=1) if difference < timedelta(0) else difference).total_seconds()
    return seconds if seconds <= _LONGEST_UPTAKE_S else None


def _time(text: str) -> datetime:
    return datetime.strptime(text.split(".")[0].ljust(6, "0")[:6], "%H%M%S")
