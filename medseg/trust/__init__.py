"""How far a result can be believed without its ground truth: predicted Dice with a lower bound, flags, an error map."""

from typing import TYPE_CHECKING

from medseg._lazy import lazily

if TYPE_CHECKING:
    from medseg.trust.crop import Crop
    from medseg.trust.fit import TrustOptions, fit_trust
    from medseg.trust.fit_cases import TrainingCase, TrustCase
    from medseg.trust.trust_files import TrustFiles, TrustState
    from medseg.trust.trust_model import Assessment, TrustModel

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

__getattr__ = lazily(
    __name__,
    {
        "crop": "Crop",
        "fit": "TrustOptions fit_trust",
        "fit_cases": "TrainingCase TrustCase",
        "trust_files": "TrustFiles TrustState",
        "trust_model": "Assessment TrustModel",
    },
)
