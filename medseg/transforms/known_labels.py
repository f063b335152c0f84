"""What is known of every voxel: ignored voxels, structures that a case was not looked through for, and regions.

In a label map for training a value from 0 on is a class that is known. A value below 0 says that it is not:

* ``-1``: nobody judged the voxel; any class is possible.
* ``-(1 + 2^a + 2^b …)``: background, or one of the structures a, b … that were not looked for in this case.

As regions the label has a channel for each, with 1, 0, and ``-1`` where it is not known. One tensor says it all, so
crops, deformations by the nearest voxel, coarser grids and batches keep label and knowledge together.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

from medseg.errors import Refusal, UsageError
from medseg.labels import ANNOTATED_KEY, LabelScheme

IGNORED = -1
"""The value of a voxel of which nothing is known."""

MOST_PARTLY_ANNOTATED = 22
"""Structures of a case with some that were not looked for: every set of them is a number that float32 holds exactly."""


class KnownLabelsd(MapTransform):
    """Label maps of declared values → classes or regions, with what is not known.

    The case's list ``annotated``, as :func:`medseg.training.fold_items` puts it there, is taken out of the case: all
    other structures are unknown where nothing else was drawn. Unknown is not background (Shi et al. 2021,
    arXiv 2007.03868).

    Parameters
    ----------
    keys
        Label maps ``(1, i, j, k)``.
    labels, regions_class_order
        The datalist's table of labels: classes 1, 2, … without gaps, ``ignore``, or regions. With regions the result is
        ``(regions, i, j, k)``.
    allow_missing_keys
        Pass cases without a label.

    Raises
    ------
    UsageError
        If the table is odd, or classes have gaps; when called, if the label's type cannot say what is not known.
    Refusal
        When called: ``unexpected-labels`` for a value that is not declared; a structure that a case lists as annotated
        and nobody declares, or a value in the map of a structure that it does not list.
    """

    def __init__(
        self,
        keys: KeysCollection,
        labels: Mapping[str, Any],
        *,
        regions_class_order: Sequence[int] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        content = {
            "labels": labels,
            "regions_class_order": None if regions_class_order is None else list(regions_class_order),
        }
        self.scheme = LabelScheme.of(content, "KnownLabelsd")
        classes = list(self.scheme.structures)
        if not self.scheme.regions and classes != list(range(1, len(classes) + 1)):
            raise UsageError(f"the classes are {classes}, expected 1 to {len(classes)}; renumber them in the datalist")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The case with what is known of its labels."""
        case = dict(data)
        unknown = self.scheme.unknown_of(case.pop(ANNOTATED_KEY, None))
        for key in self.key_iterator(case):
            label = case[key]
            values = label.as_tensor() if isinstance(label, MetaTensor) else torch.as_tensor(label)
            known = (
                known_regions(values, self.scheme, unknown)
                if self.scheme.regions
                else known_classes(values, self.scheme, unknown)
            )
            case[key] = MetaTensor(known, meta=label.meta) if isinstance(label, MetaTensor) else known
        return case


KnownLabelsD = KnownLabelsDict = KnownLabelsd


def known_classes(label: Tensor, scheme: LabelScheme, unknown: Sequence[int] = ()) -> Tensor:
    """Values ``(1, …)`` → classes and what is not known, where the labels ``unknown`` were not looked for."""
    found = _checked(label, scheme, unknown)
    if unknown and max(scheme.structures) > MOST_PARTLY_ANNOTATED:
        raise Refusal(
            "unexpected-labels",
            f"a case is partly annotated for {len(scheme.structures)} structures, expected {MOST_PARTLY_ANNOTATED} at "
            "most; leave structures out (map them to 0), or train them in groups",
        )
    result = found.clone()
    if unknown:
        result[found == 0] = -(1 + sum(1 << value for value in unknown))
    if scheme.ignore is not None:
        result[found == scheme.ignore] = IGNORED
    return _in_type_of(label, result)


def known_regions(label: Tensor, scheme: LabelScheme, unknown: Sequence[int] = ()) -> Tensor:
    """Values ``(1, …)`` → one channel per region, ``(R, …)``: 1 inside, 0 outside, ``-1`` where it is not known."""
    found = _checked(label, scheme, ())
    result = torch.empty(len(scheme.regions), *label.shape[1:], dtype=torch.int8, device=label.device)
    for channel, (name, values) in zip(result, scheme.regions.items(), strict=True):
        if scheme.paints[name] in unknown:
            channel.fill_(IGNORED)
        else:
            channel.copy_(torch.isin(found[0], torch.tensor(values, device=label.device)))
    if scheme.ignore is not None:
        result[:, found[0] == scheme.ignore] = IGNORED
    return _in_type_of(label, result)


def _in_type_of(label: Tensor, known: Tensor) -> Tensor:
    """What is known in the type of the label; bytes would make classes of what is not known, half floats round it."""
    lowest = known.min()
    if int(lowest.to(label.dtype)) != int(lowest):
        raise UsageError(
            f"labels of type {label.dtype} cannot hold {int(lowest)} for what is not known; load them as float32"
        )
    return known.to(label.dtype)


def _checked(label: Tensor, scheme: LabelScheme, unknown: Sequence[int]) -> Tensor:
    """The label as whole numbers; refused where it holds what is not declared, or was not looked for."""
    found = label.round().long()
    values = set(torch.unique(found).tolist())
    if odd := sorted(values - {0, *scheme.values}):
        raise Refusal(
            "unexpected-labels",
            f"the label holds {odd[:5]}, declared are {', '.join(f'{v} ({n})' for v, n in scheme.values.items())}; "
            "declare the value, map it, or correct the label map",
        )
    if drawn := sorted(values & set(unknown)):
        name = scheme.structures[drawn[0]]
        raise Refusal(
            "unexpected-labels",
            f"the label holds {drawn[0]} ({name}), which the case does not list under `{ANNOTATED_KEY}`; list it, or "
            "take it out of the label map",
        )
    return found


def possible_classes(label: Tensor, classes: int) -> Tensor:
    """Label ``(B, 1, …)`` → which of the ``classes`` each voxel may be, ``(B, classes, …)``; one where it is known."""
    codes = label.round().long()
    numbers = torch.arange(classes, device=label.device).view(1, -1, *[1] * (label.ndim - 2))
    among = ((-codes).clamp_min(0) >> numbers.clamp_max(62)) & 1
    return (codes == numbers) | (codes == IGNORED) | ((codes < IGNORED) & among.bool())
