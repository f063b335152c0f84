"""2D kernels become 3D ones (I3D: Carreira and Zisserman 2017, arXiv 1705.07750)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Inflation", "fit", "inflate"]

Inflation = Literal["mean", "centre"]


def inflate(kernel: Tensor, depth: int, how: Inflation = "mean", axis: int = -1) -> Tensor:
    """3D kernel that answers to a volume of equal slices as the 2D one does to a slice.

    Parameters
    ----------
    kernel
        ``(out, in, kh, kw)``.
    depth
        Extent along the new axis.
    how
        ``"mean"`` repeats the kernel and divides it by ``depth``; ``"centre"`` puts it into the middle of zeros, so
        that at first every slice is seen alone.
    axis
        Place of the new axis in the result; −1, the last, for volumes ``(H, W, D)`` whose slices lie along D.

    Raises
    ------
    ValueError
        If ``how`` is neither, or the kernel is not two-dimensional.
    """
    if how not in ("mean", "centre") or kernel.ndim != 4:
        raise ValueError(f"found the inflation {how!r} of a kernel of {kernel.ndim} axes, expected mean or centre of 4")
    place = axis % 5
    repeated = torch.stack([kernel] * depth, dim=place)
    if how == "mean":
        return repeated / depth
    weights = torch.zeros(depth, dtype=kernel.dtype)
    weights[depth // 2] = 1.0
    return repeated * weights.view([-1 if dim == place else 1 for dim in range(5)])


def fit(value: Tensor, shape: Sequence[int], *, inflation: Inflation = "mean", axis: int = -1) -> Tensor | None:
    """``value`` in the given ``shape``, or None if that has no meaning.

    A 2D kernel is inflated. Kernels that look at several channels, such as the three colours of a photograph, become
    kernels for one channel by their sum, as if the grey image were shown in every colour, and for several channels by
    an equal share of it each.
    """
    wanted = tuple(shape)
    if value.ndim == 4 and len(wanted) == 5:
        value = inflate(value, wanted[axis % 5], inflation, axis)
    if value.ndim in (4, 5) and value.ndim == len(wanted) and value.shape[1] != wanted[1]:
        if value.shape[1] != 3:  # only the first convolution looks at colours
            return None
        value = value.sum(1, keepdim=True).expand(-1, wanted[1], *value.shape[2:]) / wanted[1]
    return value if tuple(value.shape) == wanted else None
