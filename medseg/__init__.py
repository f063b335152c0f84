"""medseg: 3D medical image segmentation on MONAI, from folders of studies to shareable models.

Importing this package imports neither torch nor MONAI; each room does so when it is used.
"""

from __future__ import annotations

__all__ = ["__version__"]


def __getattr__(name: str) -> str:
    if name == "__version__":  # looked up on demand: reading package metadata takes longer than the rest of this import
        from medseg._version import medseg_version

        return medseg_version()
    raise AttributeError(f"module 'medseg' has no attribute {name!r}")
