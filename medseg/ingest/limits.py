"""How large a volume may be before it is refused unread, so that a lying header cannot fill the memory."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Final

from medseg.errors import Refusal, UsageError
from medseg.geometry import Geometry

__all__ = ["LIMIT_VARIABLE", "check_field_of_view", "check_volume_size", "max_volume_bytes"]

LIMIT_VARIABLE: Final = "MEDSEG_MAX_VOLUME_GIB"
_DEFAULT_GIB: Final = 4.0
_LARGEST_FOV_MM: Final = 10_000.0


def max_volume_bytes() -> int:
    """Largest array that a reader allocates, in bytes: 4 GiB, or what ``MEDSEG_MAX_VOLUME_GIB`` says."""
    given = os.environ.get(LIMIT_VARIABLE, "")
    try:
        gib = float(given) if given else _DEFAULT_GIB
    except ValueError as error:
        raise UsageError(f"{LIMIT_VARIABLE}={given!r} is not a number of GiB, such as 8") from error
    return int(gib * 1024**3)


def check_volume_size(shape: Sequence[int], bytes_per_voxel: int) -> None:
    """Refuse a shape whose array would exceed the limit.

    Raises
    ------
    Refusal
        ``too-large``
    """
    wanted, limit = math.prod(shape) * bytes_per_voxel, max_volume_bytes()
    if wanted > limit:
        sizes = "×".join(str(size) for size in shape)
        raise Refusal(
            "too-large",
            f"the header declares {sizes} voxels, {wanted / 1024**3:.1f} GiB; the limit is {limit / 1024**3:.1f} GiB; "
            f"if the file is genuine, raise {LIMIT_VARIABLE}",
        )


def check_field_of_view(geometry: Geometry) -> None:
    """Refuse a grid that is larger than any scanner: its unit is wrong.

    Raises
    ------
    Refusal
        ``no-geometry``
    """
    if max(geometry.fov_mm) > _LARGEST_FOV_MM:
        raise Refusal(
            "no-geometry",
            f"the volume would span {max(geometry.fov_mm) / 1000:.0f} m; check the unit and the affine in the header",
        )
