"""A second look at what was found: once more, in one window of its own, and whether the network says the same there."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch

from medseg.errors import Interrupted
from medseg.inference.sliding_window import Chunk, WindowSettings, plan_windows
from medseg.results.case_result import is_out_of_memory
from medseg.trust.crop import Slices, structure_box
from medseg.trust.default_judge import Labels, ScoreTally

_log = logging.getLogger(__name__)

_ENOUGH = 4
"""From as many windows on one more of them costs a quarter at most; before, the window is a smaller one."""
_MOST = 0.5
"""A second look at more than this share of the first costs too much, and sees what the first has seen."""
_MARGIN_VOXELS = 4
_MULTIPLE, _LONGEST = 32, 96
"""Of a network that takes whole volumes: what its sides are made multiples of, and their longest."""
_RIM = 8
"""An eighth of a window at each end is not compared where the image goes on beyond, since less is seen from there."""


def second_look(
    image: torch.Tensor,
    first: ScoreTally,
    scores_of: Callable[..., Iterable[Chunk]],
    windows: WindowSettings,
    slice_axis: int | None = None,
) -> float | None:
    """How well a second look agrees with the first, as Dice of all structures together.

    The window is one of the bundle's own, where the volume holds at least four of them, else as small as the structures
    allow. Of a network of slices a quarter of the slices is looked at.

    ``image`` is ``(C, H, W, D)`` as the network saw it; ``scores_of`` runs the network over a volume, in the given
    ``windows``; these and ``slice_axis`` are as of the ``first`` look. None if there is nothing to compare, it would
    cost too much, or the network does not take such a window; the log says which. A signal, or memory that runs out,
    says nothing of the network and is raised.
    """
    labels = first.labels
    if not labels.any():
        return None
    plan = plan_windows(labels.shape, windows)
    box, sides, inner = _place(labels, windows, len(plan.starts), slice_axis)
    looked = math.prod(max(one.stop - one.start, side) for one, side in zip(box, sides, strict=True))
    if looked > _MOST * len(plan.starts) * math.prod(plan.roi_size):
        _log.info("no second look: the first had little more in view")
        return None
    try:
        second = ScoreTally(first.decoding)
        for chunk in scores_of(image[(slice(None), *box)], windows=replace(windows, roi_size=sides)):
            second.add(chunk.scores)
    except Exception as error:  # a network of one size alone says so as it likes, with assert as well
        if isinstance(error, Interrupted) or is_out_of_memory(error):
            raise
        _log.info("no second look: the network raised %s", type(error).__name__)
        return None
    one, two = labels[box][inner], second.labels[inner]
    labelled = int(np.count_nonzero(one)) + int(np.count_nonzero(two))
    return 2 * int(np.count_nonzero((one == two) & (one > 0))) / labelled if labelled else None


def _place(
    labels: Labels, windows: WindowSettings, count: int, slice_axis: int | None
) -> tuple[Slices, tuple[int, ...], Slices]:
    """The box that is looked at, the windows in it, and what of the box is compared."""
    found = structure_box(torch.from_numpy(labels > 0), _MARGIN_VOXELS)
    count //= labels.shape[slice_axis] if slice_axis is not None else 1
    box, sides, inner = [], [], []
    for axis, (side, extent, roi, middle) in enumerate(
        zip(found, labels.shape, windows.roi_size, _middle(labels), strict=True)
    ):
        span = side.stop - side.start
        if axis == slice_axis:
            length, window = min(span, max(extent // 4, 1)), 1
        elif count >= _ENOUGH:
            length = window = roi
        else:
            multiple = math.gcd(roi, _MULTIPLE) if roi > 0 else _MULTIPLE
            length = window = min(-(-span // multiple) * multiple, roi if roi > 0 else _LONGEST)
        length = min(length, extent)
        centre = (side.start + side.stop) // 2 if length >= span else middle
        start = min(max(centre - length // 2, 0), extent - length)
        rim = 0 if axis == slice_axis or length >= span else length // _RIM
        box.append(slice(start, start + length))
        sides.append(window)
        inner.append(slice(rim * (start > 0), length - rim * (start + length < extent)))
    return (box[0], box[1], box[2]), tuple(sides), (inner[0], inner[1], inner[2])


def _middle(labels: Labels) -> Sequence[int]:
    """A labelled voxel where there are many: in the fullest plane the fullest row, and there the middle one."""
    mask = labels > 0
    i = int(np.argmax(np.count_nonzero(mask, axis=(1, 2))))
    j = int(np.argmax(np.count_nonzero(mask[i], axis=1)))
    row = np.flatnonzero(mask[i, j])
    return i, j, int(row[len(row) // 2])
