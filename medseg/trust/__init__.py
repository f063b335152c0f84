"""How far a result can be believed without its ground truth: predicted Dice with a lower bound, flags, an error map."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medseg.trust.crop import Crop
    from medseg.trust.fit import TrustOptions, fit_trust
    from medseg.trust.fit_cases import TrainingCase, TrustCase
    from medseg.trust.trust_files import TrustFiles, TrustState
    from medseg.trust.trust_model import Assessment, TrustModel

_HOMES = {
    "Assessment": "trust_model",
    "Crop": "crop",
    "TrainingCase": "fit_cases",
    "TrustCase": "fit_cases",
    "TrustFiles": "trust_files",
    "TrustModel": "trust_model",
    "TrustOptions": "fit",
    "TrustState": "trust_files",
    "fit_trust": "fit",
}

__all__ = [
    "Assessment",
    "Crop",
    "TrainingCase",
    "TrustCase",
    "TrustFiles",
    "TrustModel",
    "TrustOptions",
    "TrustState",
    "fit_trust",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
