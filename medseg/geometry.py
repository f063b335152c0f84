"""Where a volume lies in the patient: one record, and the tolerances by which two of them are compared.

Affines are in NIfTI's frame: RAS+ (x to the patient's Right → Left axis pointing right, y to Anterior,
z to Superior), in mm, mapping a voxel index ``(i, j, k)`` to the centre of that voxel. DICOM's frame is LPS+;
:func:`lps_to_ras` is the one place where the two meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medseg.errors import Refusal

POSITION_TOLERANCE_MM = 0.05
"""Largest distance between two voxel positions that counts as rounding noise."""

SPACING_TOLERANCE_FRACTION = 0.02
"""Largest deviation of a slice from its regular place, as a fraction of the slice spacing."""

ANGLE_TOLERANCE_DEGREES = 0.06
"""Largest angle between two axes that counts as rounding noise (1e-3 in direction cosines)."""

SMALLEST_COVERAGE = 0.5
"""Share of the first channel's grid that every other channel of a case must cover."""

_SMALLEST_SPACING_MM = 1e-4
_PROBES = 24


@dataclass(frozen=True)
class Geometry:
    """The grid of a volume.

    Parameters
    ----------
    shape
        Number of voxels along the array axes ``(i, j, k)``.
    affine
        4×4 matrix, voxel index → position in mm, RAS+.

    Raises
    ------
    Refusal
        ``singular-affine`` if the affine is not finite, not invertible or its last row is not (0, 0, 0, 1);
        ``not-3d`` if the shape does not have three positive entries.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)
        affine.flags.writeable = False
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise Refusal("not-3d", f"found shape {self.shape}, expected three positive sizes; give one 3D volume")
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or not np.allclose(affine[3], (0, 0, 0, 1)):
            raise Refusal("singular-affine", f"the affine is not a finite 4×4 matrix in mm: {affine.tolist()}")
        if min(self.spacing_mm) < _SMALLEST_SPACING_MM or abs(np.linalg.det(self.directions)) < 1e-3:
            raise Refusal("singular-affine", f"the affine's axes do not span a volume: {affine.tolist()}")

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels along each array axis, in mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def directions(self) -> NDArray[np.float64]:
        """Unit vectors of the array axes as columns (3×3); not orthogonal when the grid is sheared."""
        columns = self.affine[:3, :3]
        return np.asarray(columns / np.linalg.norm(columns, axis=0), dtype=np.float64)

    @property
    def orientation(self) -> str:
        """Closest anatomical direction of each array axis, such as ``"RAS"`` or ``"LPS"``."""
        remaining = np.abs(self.directions)
        letters = ["", "", ""]
        for _ in range(3):
            row, column = np.unravel_index(np.argmax(remaining), (3, 3))
            letters[column] = ["LR", "PA", "IS"][row][int(self.directions[row, column] > 0)]
            remaining[row, :] = remaining[:, column] = -1.0
        return "".join(letters)

    @property
    def fov_mm(self) -> tuple[float, float, float]:
        """Extent along the patient's left–right, posterior–anterior and inferior–superior axes, in mm."""
        corners = self.corners_mm()
        x, y, z = corners.max(axis=0) - corners.min(axis=0)
        return float(x), float(y), float(z)

    @property
    def voxel_volume_mm3(self) -> float:
        """Volume of one voxel in mm³ (the determinant, so that shear is accounted for)."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    @property
    def shear_degrees(self) -> float:
        """Largest deviation of two array axes from a right angle, in degrees; 0 for an orthogonal grid."""
        cosines = self.directions.T @ self.directions
        return float(np.degrees(np.arcsin(np.clip(np.abs(cosines[np.triu_indices(3, 1)]).max(), 0.0, 1.0))))

    @property
    def is_sheared(self) -> bool:
        """Whether the axes are not at right angles, as after a gantry tilt."""
        return self.shear_degrees > ANGLE_TOLERANCE_DEGREES

    def corners_mm(self) -> NDArray[np.float64]:
        """Outer corners of the grid (voxel faces, not centres), 8×3, in mm, RAS+."""
        index = np.array(list(product(*((-0.5, n - 0.5) for n in self.shape))))
        return np.asarray(index @ self.affine[:3, :3].T + self.affine[:3, 3], dtype=np.float64)

    def displacement_mm(self, other: Geometry) -> float:
        """Largest distance between the same voxel's position in both grids, in mm; infinite if shapes differ.

        An affine map is extreme at a corner, so eight corners tell the maximum over all voxels.
        """
        if self.shape != other.shape:
            return float("inf")
        return float(np.linalg.norm(self.corners_mm() - other.corners_mm(), axis=1).max())

    def matches(self, other: Geometry, tolerance_mm: float = POSITION_TOLERANCE_MM) -> bool:
        """Whether both grids have the same shape and no voxel differs by more than ``tolerance_mm``."""
        return self.displacement_mm(other) <= tolerance_mm

    def covered_by(self, other: Geometry) -> float:
        """Share of this grid's voxel centres that lie inside ``other``, from up to 24 planes along each axis."""
        steps = [np.linspace(0, n - 1, min(n, _PROBES)) for n in self.shape]
        index = np.stack(np.meshgrid(*steps, indexing="ij"), axis=-1)
        to_other = np.linalg.solve(other.affine, self.affine)
        found = index @ to_other[:3, :3].T + to_other[:3, 3]
        inside = (found > -0.5 - 1e-6) & (found < np.array(other.shape) - 0.5 + 1e-6)
        return float(inside.all(axis=-1).mean())

    def mismatch(self, image: Geometry) -> str:
        """In what this grid differs from that of its image, in mm and voxels, for messages: ``has …``, ``lies …``."""
        if image.shape != self.shape:
            return f"has {self.describe()}; its image has {image.describe()}"
        distance = image.displacement_mm(self)
        where = f"lies up to {distance:.3g} mm ({distance / min(image.spacing_mm):.2g} voxels) off its image"
        if image.orientation != self.orientation:
            return f"{where}: axes {self.orientation}, the image's are {image.orientation}"
        if not np.allclose(image.spacing_mm, self.spacing_mm, rtol=1e-3):
            return f"{where}: {self.describe()}, the image has {image.describe()}"
        cosines = np.clip(np.sum(image.directions * self.directions, axis=0), -1.0, 1.0)
        angle = float(np.degrees(np.arccos(cosines)).max())
        if angle > ANGLE_TOLERANCE_DEGREES:
            return f"{where}: rotated by {angle:.2g} degrees"
        shift = self.affine[:3, 3] - image.affine[:3, 3]
        return f"{where}: shifted by ({shift[0]:.3g}, {shift[1]:.3g}, {shift[2]:.3g}) mm in RAS"

    def describe(self) -> str:
        """The grid in one line, for messages: ``512×512×300, 0.70×0.70×1.00 mm, LPS``."""
        sizes = "×".join(str(n) for n in self.shape)
        spacing = "×".join(f"{s:.2f}" for s in self.spacing_mm)
        return f"{sizes}, {spacing} mm, {self.orientation}"


def lps_to_ras(affine_lps: ArrayLike | Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """Turn a 4×4 affine in DICOM's LPS+ frame into RAS+ (or back: the map is its own inverse)."""
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.asarray(affine_lps, dtype=np.float64)


def ras_axes(geometry: Geometry) -> list[int]:
    """Array axis that lies closest to each of the patient's x, y and z axes."""
    return [next(i for i, letter in enumerate(geometry.orientation) if letter in pair) for pair in ("LR", "PA", "IS")]


def millimetres(values: Sequence[float]) -> str:
    """Lengths along three axes, for a message."""
    return "×".join(f"{float(value):.2f}" for value in values) + " mm"
