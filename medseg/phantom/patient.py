"""One synthetic patient as arrays: image, label map and affine."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from medseg.errors import UsageError
from medseg.geometry import Geometry
from medseg.phantom.anatomy import Anatomy, draw_anatomy, rasterise, rotation
from medseg.phantom.appearance import LIMITS, Appearance, Kind, draw_appearance
from medseg.phantom.catalogue import FIRST_STRUCTURE, STRUCTURES, label_names

__all__ = ["Phantom", "make_patient"]

_FIELD_OF_VIEW_MM = (336.0, 336.0, 216.0)
_MR_OBLIQUE_DEGREES = 8.0
_SLAB_VOXELS = 4_000_000


@dataclass(frozen=True)
class Phantom:
    """A synthetic patient.

    Parameters
    ----------
    image
        int16, axes (i, j, k) towards the patient's left, posterior and superior (up to the obliquity); HU or MR units.
    label
        uint8 on the same grid; 0 is background.
    affine
        4×4, voxel index → mm, RAS+.
    kind
        ``"ct"`` or ``"mr"``.
    seed
        What it was made from.
    labels
        Label value → structure name, background left out. A lesion may be named and absent.
    anatomy, appearance
        What image and label were made from; they fit any grid.
    """

    image: NDArray[np.int16]
    label: NDArray[np.uint8]
    affine: NDArray[np.float64]
    kind: Kind
    seed: int
    labels: dict[int, str]
    anatomy: Anatomy = field(repr=False, compare=False)
    appearance: Appearance = field(repr=False, compare=False)

    @property
    def geometry(self) -> Geometry:
        """The grid of image and label."""
        return Geometry(self.image.shape, self.affine)

    @property
    def has_lesion(self) -> bool:
        """Whether a lesion is labelled."""
        return any(name == "lesion" and bool((self.label == value).any()) for value, name in self.labels.items())

    def on_grid(self, shape: tuple[int, int, int], affine: NDArray[np.float64]) -> Phantom:
        """Make the same patient on another grid, as in another series of the study; the noise is drawn anew."""
        image, label = _render(self.anatomy, self.appearance, affine, shape, self.seed)
        label[label > len(self.labels)] = 0
        return replace(self, image=image.T, label=label.T, affine=affine)


def make_patient(
    seed: int,
    kind: Kind = "ct",
    *,
    shape: tuple[int, int, int] = (64, 64, 40),
    spacing_mm: tuple[float, float, float] | None = None,
    structures: int = 5,
    lesion: bool | None = None,
    oblique_degrees: float | None = None,
    noise: float = 1.0,
) -> Phantom:
    """Make one synthetic patient; the same arguments give the same voxels, and one seed is one anatomy on any grid.

    Parameters
    ----------
    seed
        Non-negative; stands for the patient.
    kind
        ``"ct"`` (Hounsfield units, straight axial) or ``"mr"`` (arbitrary units, bias field, oblique).
    shape
        Voxels along (i, j, k).
    spacing_mm
        Along (i, j, k); by default the shape spans the upper abdomen, give or take 4 %.
    structures
        How many of :data:`medseg.phantom.catalogue.STRUCTURES` are labelled (1 to 14); the others are still visible.
    lesion
        True or False to decide, None for three patients in five.
    oblique_degrees
        Largest rotation of the grid about each axis; by default 0 for CT, 8 for MR.
    noise
        Factor on the usual amount of noise.

    Returns
    -------
    Phantom
        Memory beyond the result is bounded: the volume is made in slabs.

    Raises
    ------
    UsageError
        If an argument is outside what is stated above.
    """
    _check(seed, kind, shape, structures)
    anatomy = draw_anatomy(np.random.default_rng([seed, 0]), lesion)
    look = draw_appearance(np.random.default_rng([seed, 1, kind == "mr"]), kind, noise)
    angles = oblique_degrees if oblique_degrees is not None else (_MR_OBLIQUE_DEGREES if kind == "mr" else 0.0)
    affine = _draw_affine(np.random.default_rng([seed, 2]), shape, spacing_mm, angles)
    image, label = _render(anatomy, look, affine, shape, seed)
    label[label > structures] = 0
    return Phantom(image.T, label.T, affine, kind, seed, label_names(structures), anatomy, look)


def _check(seed: int, kind: str, shape: tuple[int, int, int], structures: int) -> None:
    if seed < 0:
        raise UsageError(f"the seed is {seed}; give a non-negative number")
    if kind not in LIMITS:
        raise UsageError(f"the kind is {kind!r}; expected 'ct' or 'mr'")
    if len(shape) != 3 or min(shape) < 1:
        raise UsageError(f"the shape is {shape}; give three positive sizes")
    if not 1 <= structures <= len(STRUCTURES):
        raise UsageError(f"{structures} structures were asked for; give 1 to {len(STRUCTURES)}")


def _draw_affine(
    random: np.random.Generator,
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float] | None,
    oblique_degrees: float,
) -> NDArray[np.float64]:
    in_plane, between = random.uniform(0.96, 1.04, 2)
    if spacing_mm is None:
        pixel = _FIELD_OF_VIEW_MM[0] / shape[0] * in_plane
        spacing_mm = (pixel, pixel, _FIELD_OF_VIEW_MM[2] / shape[2] * between)
    turn = rotation(random.uniform(-1, 1, 3) * oblique_degrees)
    centre_mm = random.uniform(-5, 5, 3)
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-spacing_mm[0], -spacing_mm[1], spacing_mm[2]])
    affine[:3, 3] = centre_mm - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    # DICOM writes 16 characters a number; with more digits the DICOM and the NIfTI of a patient would differ.
    return np.asarray(np.round(affine, 9), dtype=np.float64)


def _render(
    anatomy: Anatomy, look: Appearance, affine: NDArray[np.float64], shape: tuple[int, int, int], seed: int
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    slices = shape[2]
    image = np.empty(shape[::-1], dtype=np.int16)
    label = np.empty(shape[::-1], dtype=np.uint8)
    low, high = LIMITS[look.kind]
    halo = look.halo(np.linalg.norm(affine[:3, :3], axis=0))
    step = max(1, _SLAB_VOXELS // (shape[0] * shape[1]))
    for start in range(0, slices, step):
        stop = min(start + step, slices)
        first, last = max(0, start - halo), min(slices, stop + halo)
        tissue = rasterise(anatomy, affine, shape, first, last)
        signal = look.signal(tissue, affine, first)[start - first : stop - first]
        inner = tissue[start - first : stop - first]
        label[start:stop] = np.where(inner >= FIRST_STRUCTURE, inner - (FIRST_STRUCTURE - 1), 0)
        for k, clean in enumerate(signal, start=start):
            noisy = look.add_noise(clean, np.random.default_rng([seed, 3, slices, k]))
            image[k] = np.rint(np.clip(noisy, low, high))
    return image, label
