"""The version of this package, as its metadata says."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version


@cache
def medseg_version() -> str:
    """The installed version of medseg."""
    return version("medseg")
