"""Segmentations that do not belong to their image: the wrong pairs a matching-aware discriminator learns from.

A discriminator that sees references and predictions alone learns what a network's output looks like, not whether a
segmentation fits its image. Real images with the wrong segmentation, as further fakes, teach it that (Reed et al. 2016,
arXiv 1605.05396). What is drawn (:class:`Mismatch`) is apart from its application, and the operations on segmentations
serve whoever else has to worsen one.

A segmentation is ``(C, H, W[, D])``: one channel per structure, without the background.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

MismatchKind = Literal["shifted", "eroded", "dilated", "swapped", "warped", "another's"]
KINDS: tuple[MismatchKind, ...] = get_args(MismatchKind)
_MODES = {2: "bilinear", 3: "trilinear"}


def eroded(segmentation: Tensor) -> Tensor:
    """One step of erosion: the least value of a voxel and its face neighbours. Nothing is lost at the volume's edge."""
    return _with_neighbours(segmentation, torch.minimum)


def dilated(segmentation: Tensor) -> Tensor:
    """One step of dilation: the largest value of a voxel and its face neighbours."""
    return _with_neighbours(segmentation, torch.maximum)


def _with_neighbours(segmentation: Tensor, combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    found = segmentation.clone()
    for axis in range(1, segmentation.ndim):
        rest = segmentation.shape[axis] - 1
        for here, there in ((0, 1), (1, 0)):
            target = found.narrow(axis, here, rest)
            target.copy_(combine(target, segmentation.narrow(axis, there, rest)))
    return found


def moved(segmentation: Tensor, offset: Sequence[int]) -> Tensor:
    """Moved by whole voxels along each axis; what comes in is empty."""
    found, axes = segmentation, list(range(1, segmentation.ndim))
    for axis, step in zip(axes, offset, strict=True):
        size = segmentation.shape[axis]
        if abs(step) >= size:
            return torch.zeros_like(segmentation)
        if step:
            found = found.roll(step, axis)
            found.narrow(axis, 0 if step > 0 else size + step, abs(step)).zero_()
    return found


def warped(segmentation: Tensor, displacement: Tensor, mode: str = "nearest") -> Tensor:
    """Each voxel takes the value that lies ``displacement`` ``(axes, H, W[, D])`` voxels away; 0 from outside.

    ``mode`` is ``"nearest"``, which keeps labels hard, or ``"bilinear"``.
    """
    shape = segmentation.shape[1:]
    places = torch.meshgrid(*(torch.arange(float(n), device=displacement.device) for n in shape), indexing="ij")
    # grid_sample counts from -1 to 1 between the centres of the outer voxels, and wants the last axis first
    scaled = [(p + d) * (2.0 / max(n - 1, 1)) - 1.0 for p, d, n in zip(places, displacement, shape, strict=True)]
    grid = torch.stack(scaled[::-1], dim=-1)[None]
    return grid_sample(segmentation[None], grid.to(segmentation), mode=mode, align_corners=True)[0]


@dataclass(frozen=True)
class Mismatch:
    """One draw: what is needed to worsen a segmentation in the same way again.

    Attributes
    ----------
    kind
        Which way.
    offset
        Voxels along each axis (shifted).
    steps
        Times (eroded, dilated).
    structures
        Which two change places (swapped).
    displacement
        Control points ``(axes, a, b[, c])`` in voxels (warped).
    """

    kind: MismatchKind
    offset: tuple[int, ...] = ()
    steps: int = 1
    structures: tuple[int, int] = (0, 0)
    displacement: Tensor | None = None


class MismatchedPairs:
    """Draws wrong segmentations for images, from a generator that the caller keeps, so that they can be drawn again.

    Parameters
    ----------
    shift_voxels
        Range of the length of a shift; its direction is any.
    steps
        Largest number of steps of erosion and dilation.
    warp_voxels, warp_spacing
        Range of the standard deviation of a warp's displacement, and the distance of its control points, in voxels.
    overlapping
        Whether a voxel may have several structures (regions with a sigmoid). Otherwise erosion and dilation move the
        outline of all structures together: structures that touch go on to touch, and keep their places.
    """

    def __init__(
        self,
        *,
        shift_voxels: tuple[float, float] = (1.0, 3.0),
        steps: int = 2,
        warp_voxels: tuple[float, float] = (1.0, 3.0),
        warp_spacing: float = 8.0,
        overlapping: bool = False,
    ) -> None:
        self.shift_voxels, self.steps, self.overlapping = shift_voxels, steps, overlapping
        self.warp_voxels, self.warp_spacing = warp_voxels, warp_spacing

    def draw(self, kind: MismatchKind, segmentation: Tensor, generator: torch.Generator) -> Mismatch:
        """Draw for a segmentation ``(C, H, W[, D])``, from a generator on the CPU."""
        shape = segmentation.shape[1:]
        if kind == "shifted":
            direction = torch.randn(len(shape), generator=generator)
            direction = direction / direction.norm().clamp_min(1e-6) * _between(self.shift_voxels, generator)
            return Mismatch(kind, offset=tuple(int(n) for n in direction.round()))
        if kind in ("eroded", "dilated"):
            return Mismatch(kind, steps=int(torch.randint(1, self.steps + 1, (), generator=generator)))
        if kind == "warped":
            points = [max(2, round(n / self.warp_spacing) + 1) for n in shape]
            field = torch.randn((len(shape), *points), generator=generator)
            return Mismatch(kind, displacement=field * _between(self.warp_voxels, generator))
        if kind == "swapped":
            count = len(segmentation)
            present = segmentation.flatten(1).any(1).nonzero().flatten().tolist() or list(range(count))
            one = present[int(torch.randint(len(present), (), generator=generator))]
            others = [n for n in present if n != one] or [n for n in range(count) if n != one] or [one]
            return Mismatch(kind, structures=(one, others[int(torch.randint(len(others), (), generator=generator))]))
        return Mismatch(kind)

    def apply(self, segmentation: Tensor, drawn: Mismatch, another: Tensor | None = None) -> Tensor:
        """The worse segmentation; ``another`` is that of another case, for the kind ``another's``."""
        if drawn.kind == "another's":
            assert another is not None
            return _laid_over(another, segmentation)
        if drawn.kind == "shifted":
            return moved(segmentation, drawn.offset)
        if drawn.kind == "swapped":
            order = list(range(len(segmentation)))
            one, other = drawn.structures
            order[one], order[other] = other, one
            return segmentation[order]
        if drawn.kind == "warped":
            assert drawn.displacement is not None
            shape = tuple(segmentation.shape[1:])
            field = interpolate(drawn.displacement[None], shape, mode=_MODES[len(shape)], align_corners=True)[0]
            return warped(segmentation, field.to(segmentation.device))
        change = self._shrunk if drawn.kind == "eroded" else self._grown
        for _ in range(drawn.steps):
            segmentation = change(segmentation)
        return segmentation

    def __call__(self, references: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A wrong segmentation for each of a batch ``(B, C, H, W[, D])``, of a kind that is drawn.

        Returns them, and which of them ``(B,)`` differ from their reference: of a patch without a structure there may
        be no wrong one. Another case's segmentation is the next one of the batch, none in a batch of one.
        """
        wrong, differs = references.clone(), torch.zeros(len(references), dtype=torch.bool)
        for i, reference in enumerate(references):
            another = references[(i + 1) % len(references)] if len(references) > 1 else None
            for number in torch.randperm(len(KINDS), generator=generator).tolist():
                if not possible(KINDS[number], reference, another):
                    continue
                found = self.apply(reference, self.draw(KINDS[number], reference, generator), another)
                if not torch.equal(found, reference):
                    wrong[i], differs[i] = found, True
                    break
        return wrong, differs

    def _shrunk(self, segmentation: Tensor) -> Tensor:
        return segmentation * eroded(segmentation if self.overlapping else segmentation.amax(0, keepdim=True))

    def _grown(self, segmentation: Tensor) -> Tensor:
        grown = dilated(segmentation)
        if self.overlapping:
            return grown
        outside = grown * (1.0 - segmentation.amax(0, keepdim=True))
        first = outside.cumsum(0) <= 1.0  # where two structures grow into the same voxel, the first has it
        return segmentation + outside * first


def possible(kind: MismatchKind, segmentation: Tensor, another: Tensor | None) -> bool:
    """Whether there can be a wrong segmentation of this kind: a swap needs two structures, another's another case."""
    if kind == "swapped":
        return len(segmentation) > 1
    return kind != "another's" or another is not None


def _laid_over(another: Tensor, segmentation: Tensor) -> Tensor:
    """Another segmentation, moved so that both have their centre at the same place."""
    centres = [_centre(one) for one in (another, segmentation)]
    if centres[0] is None or centres[1] is None:
        return another
    return moved(another, [round(float(n)) for n in centres[1] - centres[0]])


def _centre(segmentation: Tensor) -> Tensor | None:
    inside = segmentation.amax(0).nonzero().float()
    return inside.mean(0).cpu() if len(inside) else None


def _between(limits: tuple[float, float], generator: torch.Generator) -> float:
    low, high = limits
    return low + (high - low) * float(torch.rand((), generator=generator))
