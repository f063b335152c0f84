"""The form of a bundle's ``configs/metadata.json``, as far as medseg reads it."""

from __future__ import annotations

from medseg.json_shape import ANYTHING, PLACE, TEXT, Spec, either, numbered, whole

_DIGITS = (lambda value: isinstance(value, str) and value.isdecimal() and 0 < int(value[:5]) <= 4096), "its digits"
_COUNT = either(whole(1, 4096), _DIGITS)
_TENSOR: Spec = {
    "num_channels": _COUNT,
    "spatial_shape": [ANYTHING],
    "channel_def": numbered(ANYTHING),
    "segment_codes": numbered(ANYTHING),
}
_LIMITS = {"low": PLACE, "high": PLACE}
METADATA_FORM: Spec = {
    "network_data_format": {"inputs": {"*": _TENSOR}, "outputs": {"*": _TENSOR}},
    "segment_codes": numbered(ANYTHING),
    "training_range": {"spacing_mm": _LIMITS, "fov_mm": _LIMITS, "modality": [TEXT]},
    "changelog": {"*": ANYTHING},
    "eval_metrics": {"*": ANYTHING},
}
"""What fits is read; what a shared bundle must say beyond it, :mod:`medseg.sharing.verify` knows."""
