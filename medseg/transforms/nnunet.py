"""nnU-Net's way to its network's grid and back: crop to what is not zero, normalise, resample; scores back, pasted.

Values, shapes and rounding are those of nnU-Net v2, so that imported networks label as at home. It resamples with
scikit-image (cubic forth, linear back), or torch in newer plans; through-plane apart, by the nearest slice, where the
voxels are anisotropic. One channel is resampled at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.transforms import InvertibleTransform, MapTransform
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes, find_objects, zoom
from skimage.transform import resize
from torch.nn.functional import interpolate

from medseg.errors import Refusal
from medseg.resources import max_volume_bytes

Volume = NDArray[np.floating[Any]]
"""One channel ``(H, W, D)``."""

RESAMPLING = ("resize", "torch", "none")
"""``resize`` by scikit-image, ``torch`` by ``interpolate``, or none."""
_MODES = {"nearest-exact": "nearest-exact", "nearest": "nearest", "linear": "trilinear"}


@dataclass(frozen=True)
class Resampling:
    """How a channel is resampled.

    ``by`` is one of :data:`RESAMPLING`; ``order`` is that of the splines in-plane (or everywhere), ``order_z`` that of
    the splines through-plane. An axis is taken apart if ``separate_z`` says so, or if that is None and voxels are more
    than ``threshold`` times longer than wide; ``mode_z`` is torch's mode for it.
    """

    by: str = "resize"
    order: int = 3
    order_z: int = 0
    separate_z: bool | None = None
    threshold: float = 3.0
    mode_z: str = "nearest-exact"

    def __post_init__(self) -> None:
        """Refuse what there is not."""
        if self.by not in RESAMPLING or not (0 <= self.order <= 5 and 0 <= self.order_z <= 5):
            raise ValueError(f"found {self}, expected by one of {', '.join(RESAMPLING)} and orders from 0 to 5")
        if self.mode_z not in _MODES:
            raise ValueError(f"found mode_z={self.mode_z!r}, expected one of {', '.join(_MODES)}")

    def axis_apart(self, spacing: Sequence[float], wanted: Sequence[float]) -> int | None:
        """The axis that is resampled on its own: the only longest one of the grid that is anisotropic."""
        if self.separate_z is not None:
            decisive = spacing if self.separate_z else None
        else:
            decisive = next((s for s in (spacing, wanted) if max(s) / min(s) > self.threshold), None)
        longest = [axis for axis, size in enumerate(decisive or ()) if max(decisive or ()) / size == 1]
        return longest[0] if len(longest) == 1 else None

    def __call__(
        self, volume: Volume, shape: Sequence[int], spacing: Sequence[float], wanted: Sequence[float]
    ) -> Volume:
        """A channel on a grid of ``shape`` over the same extent; voxel sizes before and after tell the axis apart."""
        if self.by == "none" or volume.shape == tuple(shape):
            return volume
        axis = self.axis_apart(spacing, wanted)
        if self.by == "torch":
            return self._by_torch(volume, shape, axis)
        if axis is None:
            return _resized(volume, shape, self.order)
        return self._by_slices(np.moveaxis(volume, axis, 0), shape, axis)

    def _by_slices(self, slices: Volume, shape: Sequence[int], axis: int) -> Volume:
        across = [size for number, size in enumerate(shape) if number != axis]
        count, wanted = len(slices), shape[axis]
        if self.order_z:
            flat = np.stack([_resized(part, across, self.order) for part in slices])
            moved = flat if count == wanted else zoom(
                flat, (wanted / count, 1, 1), order=self.order_z, mode="nearest", grid_mode=True
            )  # fmt: skip
            return np.moveaxis(moved, 0, axis)
        moved = np.empty((wanted, *across), dtype=slices.dtype)
        place = np.clip(count / wanted * (np.arange(wanted) + 0.5) - 0.5, 0, count - 1)
        nearest = np.floor(place + 0.5).astype(int)
        for index in np.unique(nearest):
            moved[nearest == index] = _resized(slices[index], across, self.order)
        return np.moveaxis(moved, 0, axis)

    def _by_torch(self, volume: Volume, shape: Sequence[int], axis: int | None) -> Volume:
        values = torch.from_numpy(np.ascontiguousarray(volume))
        if axis is not None:
            across = [size for number, size in enumerate(shape) if number != axis]
            flat = interpolate(values.movedim(axis, 0)[:, None], across, mode="bilinear")[:, 0].movedim(0, axis)
            return np.asarray(interpolate(flat[None, None], tuple(shape), mode=_MODES[self.mode_z])[0, 0].numpy())
        return np.asarray(interpolate(values[None, None], tuple(shape), mode="trilinear")[0, 0].numpy())


def _resized(values: Volume, shape: Sequence[int], order: int) -> Volume:
    """Scikit-image's result in the precision given, computed in double; no value lies beyond those given."""
    if values.shape == tuple(shape):
        return values
    return np.asarray(resize(values, shape, order, mode="edge", anti_aliasing=False))  # type: ignore[no-untyped-call]


def _ct(values: Volume, scheme: Mapping[str, Any], _: NDArray[np.bool_] | None) -> None:
    np.clip(values, scheme["low"], scheme["high"], out=values)
    values -= scheme["mean"]
    values /= max(scheme["std"], 1e-8)


def _z_score(values: Volume, _: Mapping[str, Any], mask: NDArray[np.bool_] | None) -> None:
    """By the values inside the mask, if there is one; those outside stay."""
    inside = values if mask is None else values[mask]
    if not inside.size:  # an image of zeros
        return
    mean, deviation = inside.mean(), max(inside.std(), 1e-8)
    if mask is None:
        values -= mean
        values /= deviation
    else:
        values[mask] = (inside - mean) / deviation


def _to_01(values: Volume, _: Mapping[str, Any], __: NDArray[np.bool_] | None) -> None:
    values -= values.min()
    values /= max(values.max(), 1e-8)


def _rgb(values: Volume, _: Mapping[str, Any], __: NDArray[np.bool_] | None) -> None:
    if values.min() < 0 or values.max() > 255:
        found = f"values from {values.min():g} to {values.max():g}, expected 0 to 255"
        raise Refusal("outside-training-range", f"{found}: the network was trained on 8-bit pictures")
    values /= 255.0


SCHEMES: dict[str, Callable[[Volume, Mapping[str, Any], NDArray[np.bool_] | None], None]] = {
    "CTNormalization": _ct,
    "ZScoreNormalization": _z_score,
    "NoNormalization": lambda *_: None,
    "RescaleTo01Normalization": _to_01,
    "RGBTo01Normalization": _rgb,
}
"""nnU-Net's normalisations, by its names; each changes a channel in place."""


class NNUNetPreprocessd(MapTransform, InvertibleTransform):
    """Crop, normalise and resample an image as nnU-Net does; the inverse takes scores back to the whole image.

    Outside the crop scores are −∞: no class, and no region, is there.

    Parameters
    ----------
    keys
        Images ``(C, H, W, D)``, axes in the network's order.
    spacing
        Voxel size of the network's grid, mm per axis; None keeps the image's own (slices of a 2D network).
    schemes
        Per channel: ``name`` of one of :data:`SCHEMES`; ``masked``: only within the filled shape of what is not zero;
        for ``CTNormalization`` ``low``, ``high``, ``mean`` and ``std``.
    forth, back
        Arguments of :class:`Resampling` for images and for scores.
    """

    def __init__(
        self,
        keys: KeysCollection,
        spacing: Sequence[float | None],
        schemes: Sequence[Mapping[str, Any]],
        forth: Mapping[str, Any] | None = None,
        back: Mapping[str, Any] | None = None,
    ) -> None:
        MapTransform.__init__(self, keys)
        self.spacing = tuple(None if size is None else float(size) for size in spacing)
        self.schemes = tuple(dict(scheme) for scheme in schemes)
        if (
            len(self.spacing) != 3
            or min(size or 1 for size in self.spacing) <= 0
            or any(s["name"] not in SCHEMES for s in self.schemes)
        ):
            raise ValueError(f"found {self.spacing} mm and {[s['name'] for s in self.schemes]}; known: {[*SCHEMES]}")
        self.forth, self.back = Resampling(**(forth or {})), Resampling(**{"order": 1, **(back or {})})

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Prepare the image of every key."""
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = self._prepared(result[key])
        return result

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Take scores ``(K, …)`` on the network's grid back to the grid that the image of their key had."""
        result = dict(data)
        for key in self.key_iterator(result):
            info = self.pop_transform(result[key])
            result[key] = self._restored(result[key], info["orig_size"], info["extra_info"])
        return result

    def _prepared(self, image: MetaTensor) -> MetaTensor:
        values = np.asarray(image.as_tensor().numpy(), dtype=np.float32)
        if len(values) != len(self.schemes):
            raise Refusal("channel-mismatch", f"found {len(values)} channels, expected {len(self.schemes)}")
        box = _box(values)
        spacing = [_stored(float(size)) for size in affine_to_spacing(image.affine)]
        size = [part.stop - part.start for part in box]
        wanted = self._wanted(spacing)
        shape = [max(1, round(a / b * n)) for a, b, n in zip(spacing, wanted, size, strict=True)]
        shape = size if self.forth.by == "none" else shape
        if math.prod(shape) * 4 > max_volume_bytes():
            found = "×".join(map(str, shape))
            raise Refusal("too-large", f"resampled it has {found} voxels, too many; crop with --roi")
        masked = any(scheme.get("masked") for scheme in self.schemes)
        mask = binary_fill_holes((values[(slice(None), *box)] != 0).any(axis=0)) if masked else None
        prepared = torch.empty(len(values), *shape)
        for channel, scheme in enumerate(self.schemes):
            cropped = values[channel][box].copy()
            SCHEMES[scheme["name"]](cropped, scheme, mask if scheme.get("masked") else None)
            moved = self.forth(cropped, shape, spacing, wanted)
            prepared[channel] = torch.from_numpy(np.ascontiguousarray(moved))
        meta = {**image.meta, "affine": torch.from_numpy(_affine(image, box, shape))}
        result = MetaTensor(prepared, meta=meta, applied_operations=image.applied_operations)
        where = {"box": [[part.start, part.stop] for part in box], "spacing": spacing, "affine": image.affine.tolist()}
        self.push_transform(result, orig_size=values.shape[1:], extra_info=where)
        return result

    def _wanted(self, spacing: Sequence[float]) -> list[float]:
        return [own if size is None else size for size, own in zip(self.spacing, spacing, strict=True)]

    def _restored(self, scores: MetaTensor, shape: Sequence[int], where: Mapping[str, Any]) -> MetaTensor:
        box = tuple(slice(int(start), int(stop)) for start, stop in where["box"])
        size = [part.stop - part.start for part in box]
        # nnU-Net's scores have half precision, and again once they are resampled by scikit-image, in double
        precise, rounded = (torch.double, torch.half) if self.back.by == "resize" else (torch.float, torch.float)
        whole = torch.full((len(scores), *(int(n) for n in shape)), -torch.inf)
        for channel, values in enumerate(scores.as_tensor().cpu()):
            moved = self.back(values.to(precise).numpy(), size, self._wanted(where["spacing"]), where["spacing"])
            whole[channel][box] = torch.from_numpy(np.ascontiguousarray(moved)).to(rounded).float()
        meta = {**scores.meta, "affine": torch.tensor(where["affine"], dtype=torch.float64)}
        return MetaTensor(whole, meta=meta, applied_operations=scores.applied_operations)


def _stored(size: float) -> float:
    """A voxel size as headers store it: single precision, of a short decimal where an oblique affine is that close."""
    short = float(f"{size:.6g}")
    return float(np.float32(short if abs(short - size) <= np.finfo(np.float32).eps * size else size))


def _box(values: Volume) -> tuple[slice, ...]:
    """The smallest box that holds all that is not zero in any channel ``(C, H, W, D)``; all of it if nothing is."""
    found = find_objects(values.any(axis=0).view(np.uint8))
    return found[0] if found else tuple(slice(0, size) for size in values.shape[1:])


def _affine(image: MetaTensor, box: Sequence[slice], shape: Sequence[int]) -> NDArray[np.float64]:
    """The affine of the resampled crop: both grids cover the same extent."""
    scale = np.array([(part.stop - part.start) / n for part, n in zip(box, shape, strict=True)])
    moved = np.diag([*scale, 1.0])
    moved[:3, 3] = [part.start for part in box] + (scale - 1) / 2
    return np.asarray(image.affine, dtype=np.float64) @ moved
