"""medseg: 3D medical image segmentation on MONAI, from folders of studies to shareable models.

Importing this package imports neither torch nor MONAI; each room does so when it is used.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("medseg")
except PackageNotFoundError:  # a source tree on sys.path without an installation
    __version__ = "0+unknown"

__all__ = ["__version__"]
