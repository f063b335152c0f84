"""Crop, rotation, scale, shear, flip and elastic deformation as one transform that resamples once."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import convert_to_tensor, ensure_tuple_rep
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from medseg.transforms.known_labels import IGNORED


@dataclass(frozen=True)
class SpatialDraw:
    """One draw: everything that is needed to apply the same deformation again.

    Attributes
    ----------
    centre
        Voxel position in the source, ``(3,)``, that becomes the centre of the patch.
    matrix
        3×3, offset from the patch's centre → offset from ``centre``, in voxels; identity for none.
    displacement
        Control points of the elastic deformation ``(3, a, b, c)`` in voxels, or None.
    """

    centre: NDArray[np.float64]
    matrix: NDArray[np.float64]
    displacement: Tensor | None

    @property
    def is_shift(self) -> bool:
        """Whether the draw is a pure translation, so that cropping is enough."""
        return self.displacement is None and bool(np.array_equal(self.matrix, np.eye(3)))


class RandSpatiald(RandomizableTransform, MapTransform):
    """Random patch of a volume, deformed by rotation, scale, shear, flip and elastic displacement at once.

    All of them are composed into one sampling grid, so a volume is interpolated once instead of once per
    transform. What lies outside the volume becomes 0. Drawing (:meth:`draw`) is apart from applying
    (:meth:`sample`), so a deformation can be replayed.

    Parameters
    ----------
    keys
        Volumes ``(C, H, W, D)`` of one shape; plain tensors come out.
    patch_size
        Size of the result in voxels.
    mode
        ``"bilinear"`` or ``"nearest"`` per key.
    prob_affine, rotate_range, scale_range, shear_range
        Probability of an affine deformation; largest angle in radians, largest relative change of size
        (drawn on a logarithmic scale) and largest shear, each a number or one number per axis.
    prob_elastic, elastic_spacing, elastic_range
        Probability of an elastic deformation; distance of its control points in voxels; range of the standard
        deviation of their displacement in voxels.
    flip_axes, prob_flip
        Axes that may be mirrored, and the probability for each. None by default: anatomy has a left and a right.
    margin
        How far, in voxels, the patch may reach beyond the volume.
    foreground_key, prob_foreground
        With this probability the patch is centred on a random voxel above 0 of that key. Where that key says of voxels
        that nobody judged them (:mod:`medseg.transforms.known_labels`), other patches hold one at least that was.
    allow_missing_keys
        Leave out keys that a case does not have, such as the label of an unlabelled one.
    """

    def __init__(  # noqa: PLR0913  the ranges of one deformation belong together
        self,
        keys: KeysCollection,
        patch_size: Sequence[int],
        *,
        mode: str | Sequence[str] = "bilinear",
        prob_affine: float = 0.8,
        rotate_range: float | Sequence[float] = 0.3,
        scale_range: float | Sequence[float] = 0.2,
        shear_range: float | Sequence[float] = 0.0,
        prob_elastic: float = 0.3,
        elastic_spacing: float = 10.0,
        elastic_range: tuple[float, float] = (0.5, 2.0),
        flip_axes: Sequence[int] = (),
        prob_flip: float = 0.5,
        margin: int = 0,
        foreground_key: Hashable | None = None,
        prob_foreground: float = 0.5,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob=1.0)
        self.patch_size = tuple(int(n) for n in patch_size)
        self.modes = ensure_tuple_rep(mode, len(self.keys))
        self.prob_affine, self.prob_elastic, self.prob_flip = prob_affine, prob_elastic, prob_flip
        self.rotate_range = np.broadcast_to(np.asarray(rotate_range, dtype=float), 3)
        self.scale_range = np.log1p(np.broadcast_to(np.asarray(scale_range, dtype=float), 3))
        self.shear_range = np.broadcast_to(np.asarray(shear_range, dtype=float), 6)
        self.elastic_range = elastic_range
        self.control_points = tuple(int(np.ceil(n / elastic_spacing)) + 1 for n in self.patch_size)
        self.flip_axes = tuple(flip_axes)
        self.margin = margin
        self.foreground_key, self.prob_foreground = foreground_key, prob_foreground
        axes = [torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in self.patch_size]
        self._offsets = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Draw once and apply to every key."""
        result = dict(data)
        volumes = {key: convert_to_tensor(result[key], track_meta=False) for key in self.key_iterator(result)}
        shape = tuple(next(iter(volumes.values())).shape[1:])
        reference = None if self.foreground_key is None else volumes.get(self.foreground_key)
        drawn = self.draw(shape, reference)
        for key, mode in self.key_iterator(result, self.modes):
            result[key] = self.sample(volumes[key], drawn, mode)
        return result

    def draw(self, shape: Sequence[int], reference: Tensor | None = None) -> SpatialDraw:
        """Draw a deformation for a volume of ``shape``; ``reference`` marks the foreground to centre on."""
        matrix = np.eye(3)
        if self.R.random() < self.prob_affine:
            matrix = self._draw_affine()
        for axis in self.flip_axes:
            if self.R.random() < self.prob_flip:
                matrix[:, axis] *= -1.0
        displacement = None
        if self.R.random() < self.prob_elastic:
            sigma = self.R.uniform(*self.elastic_range)
            points = self.R.standard_normal((3, *self.control_points)) * sigma
            displacement = torch.as_tensor(points, dtype=torch.float32)
        return SpatialDraw(self._draw_centre(shape, reference), matrix, displacement)

    def sample(self, volume: Tensor, drawn: SpatialDraw, mode: str = "bilinear") -> Tensor:
        """Apply a draw to a volume ``(C, H, W, D)``; the result has ``patch_size`` and the volume's dtype."""
        if drawn.is_shift:
            return self._crop(volume, drawn.centre)
        grid = self._offsets @ torch.as_tensor(drawn.matrix.T, dtype=torch.float32)
        if drawn.displacement is not None:
            field = interpolate(drawn.displacement[None], self.patch_size, mode="trilinear", align_corners=True)
            grid = grid + field[0].permute(1, 2, 3, 0)
        grid = grid + torch.as_tensor(drawn.centre, dtype=torch.float32)
        extent = torch.tensor(volume.shape[1:], dtype=torch.float32)
        normalised = ((2.0 * grid + 1.0) / extent - 1.0).flip(-1)  # grid_sample wants the last axis first
        sampled = grid_sample(volume[None].float(), normalised[None], mode=mode, align_corners=False)
        return sampled[0].to(volume.dtype)

    def _draw_affine(self) -> NDArray[np.float64]:
        angles = self.R.uniform(-1.0, 1.0, 3) * self.rotate_range
        scales = np.exp(self.R.uniform(-1.0, 1.0, 3) * self.scale_range)
        shear = np.eye(3)
        shear[~np.eye(3, dtype=bool)] = self.R.uniform(-1.0, 1.0, 6) * self.shear_range
        return np.asarray(_rotation(angles) @ shear @ np.diag(scales), dtype=np.float64)

    def _draw_centre(self, shape: Sequence[int], reference: Tensor | None) -> NDArray[np.float64]:
        size = np.asarray(shape, dtype=float)
        if reference is not None and self.R.random() < self.prob_foreground:
            inside = torch.nonzero((reference > 0).any(0))
            if len(inside):
                return inside[self.R.randint(len(inside))].numpy().astype(float)
        room = np.maximum(size - self.patch_size, 0.0) / 2.0 + self.margin
        start = np.round((size - self.patch_size) / 2.0 + self.R.uniform(-1.0, 1.0, 3) * room)
        if reference is not None and bool((reference == IGNORED).any()):
            start = self._start_over_known(start, (reference != IGNORED).any(0))
        return np.asarray(start + (np.asarray(self.patch_size) - 1.0) / 2.0, dtype=np.float64)

    def _start_over_known(self, start: NDArray[np.float64], known: Tensor) -> NDArray[np.float64]:
        """Where a patch starts that holds a known voxel: there, if it does, else anywhere over a random one."""
        low = start.astype(int)
        box = [slice(max(0, at), max(0, at + n)) for at, n in zip(low, self.patch_size, strict=True)]
        places = torch.nonzero(known)
        if bool(known[tuple(box)].any()) or not len(places):
            return start
        place = places[self.R.randint(len(places))].numpy().astype(float)
        return np.asarray(place - [self.R.randint(n) for n in self.patch_size], dtype=np.float64)

    def _crop(self, volume: Tensor, centre: NDArray[np.float64]) -> Tensor:
        start = np.floor(centre - (np.asarray(self.patch_size) - 1.0) / 2.0).astype(int)
        stop = start + self.patch_size
        patch = volume.new_zeros((volume.shape[0], *self.patch_size))
        source = tuple(slice(max(a, 0), max(b, 0)) for a, b in zip(start, stop, strict=True))
        piece = volume[(slice(None), *source)]
        target = tuple(slice(max(-a, 0), max(-a, 0) + n) for a, n in zip(start.tolist(), piece.shape[1:], strict=True))
        patch[(slice(None), *target)] = piece
        return patch


def _rotation(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return np.asarray(about_x @ about_y @ about_z, dtype=np.float64)
