"""How the channels of a case become one image: where each lies, how it is resampled and how it is scaled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from medseg.sharing.fingerprint import Fingerprint

__all__ = ["channel_keys", "normalisation", "resampling", "stacking"]

_CT_RANGE = (-1024.0, 3071.0)
_MASKED = 0.25
_Reasons = list[tuple[str, str, str]]


def channel_keys(data: Fingerprint, reasons: _Reasons) -> tuple[str, ...]:
    """Names of the channels in the transforms: one for all on one grid, else one for each."""
    if data.one_grid:
        return ("image",)
    why = (
        "the channels lie on different grids: each is loaded by itself and resampled once, onto the resampled grid of "
        f"the first, which carries the labels; the others cover {data.coverage:.0%} of it at least, and are 0 outside"
    )
    reasons.append(("channels", " and ".join(data.modality), why))
    # a name that begins with "image_" would be taken for meta data of "image" by MONAI's Spacingd
    return ("image", *(f"channel_{number}" for number in range(1, data.channels)))


def resampling(keys: Sequence[str]) -> list[dict[str, Any]]:
    """Transforms that bring the other channels onto the grid of the first, ``image``."""
    others = list(keys[1:])
    if not others:
        return []
    return [{"_target_": "ResampleToMatchd", "keys": others, "key_dst": "image", "mode": "bilinear", "padding_mode": "zeros"}]  # fmt: skip  # noqa: E501


def stacking(keys: Sequence[str]) -> list[dict[str, Any]]:
    """Transforms that make one image of the channels; the first one's place in the patient is kept."""
    if len(keys) == 1:
        return []
    return [
        {"_target_": "ConcatItemsd", "keys": list(keys), "name": "image"},
        {"_target_": "DeleteItemsd", "keys": list(keys[1:])},
    ]


def normalisation(data: Fingerprint, reasons: _Reasons) -> tuple[dict[str, Any], ...]:
    """Transforms that bring the intensities to one scale: one for each channel that has a name of its own."""
    if not data.one_grid:
        keys = channel_keys(data, [])
        return tuple(_scaling(data, [number], key, reasons) for number, key in enumerate(keys))
    return (_scaling(data, range(data.channels), "image", reasons),)


def _scaling(data: Fingerprint, channels: Sequence[int], key: str, reasons: _Reasons) -> dict[str, Any]:
    what = "normalisation" if len(channels) == data.channels else f"normalisation of {data.modality[channels[0]]}"
    if {data.modality[number] for number in channels} == {"CT"}:
        low = max(_CT_RANGE[0], min(data.intensity[number].low for number in channels))
        high = min(_CT_RANGE[1], max(data.intensity[number].high for number in channels))
        why = "CT numbers have a fixed meaning: percentiles 0.5 to 99.5 inside the structures become -1 to 1"
        reasons.append((what, f"{low:.0f} to {high:.0f} HU", why))
        return {"_target_": "ScaleIntensityRanged", "keys": key, "a_min": round(low, 1), "a_max": round(high, 1),
                "b_min": -1.0, "b_max": 1.0, "clip": True}  # fmt: skip
    zeros = data.zero_fraction[channels[0]]
    why = "the scale of the intensities differs from case to case, so each channel of each case is normalised alone"
    if data.modality[channels[0]] == "PT":
        why += "; uptake relative to its surroundings needs no units, and tells faint tumours as well as bright ones"
    if zeros > _MASKED:
        why += f"; {zeros:.0%} of the voxels are exactly 0 (a mask) and are left out"
    reasons.append((what, "mean 0, standard deviation 1", why))
    return {"_target_": "NormalizeIntensityd", "keys": key, "channel_wise": True, "nonzero": zeros > _MASKED}
