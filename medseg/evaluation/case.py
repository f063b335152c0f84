"""All metrics of all structures of one case: one look at the volumes, then one pass per structure on its box."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.errors import Refusal, UsageError
from medseg.evaluation.definitions import METRICS, Definitions, percentile_name
from medseg.evaluation.overlap import Lesion, Mask, centreline_dice, lesion_scores, match_lesions, voxel_scores
from medseg.evaluation.surfaces import measure_surface_elements, measure_voxel_surfaces
from medseg.labels.label_map import Box, check_labels, find_boxes, joined
from medseg.labels.scheme import LARGEST_LABEL

_DEFAULT = Definitions()
_MOST_UNDECLARED_LABELS = 512
_EMPTY_SCORES = {metric.name: metric.empty_score for metric in METRICS if metric.empty_score is not None}


@dataclass(frozen=True)
class StructureResult:
    """The metrics of one structure in one case."""

    label: int
    name: str
    """``label``, ``name``: the structure."""
    values: Mapping[str, float | None]
    """Metric name → value; ``None`` where the value does not exist. Names and meanings are in
    :data:`medseg.evaluation.definitions.METRICS`. Each is also an attribute: ``result.dice``."""
    missed: bool = False  # the reference has the structure, the prediction does not
    invented: bool = False  # the prediction has the structure, the reference does not
    case_id: str = field(default="", kw_only=True)  # the case; empty outside :func:`medseg.evaluation.evaluate_folders`
    not_scored: str = field(default="", kw_only=True)
    """Why there are no values although there may be something to score; empty otherwise."""
    lesions: tuple[Lesion, ...] = field(default=(), kw_only=True)
    """Its lesions one by one, if the definitions ask for them."""

    def __getattr__(self, name: str) -> float | None:
        # Only reached for names that are no field; `values` itself is missing while an instance is unpickled.
        values: Mapping[str, float | None] = self.__dict__.get("values", {})
        if name in values:
            return values[name]
        raise AttributeError(f"{type(self).__name__} has no metric {name!r}; it has {', '.join(values)}")

    @property
    def absent(self) -> bool:
        """Neither prediction nor reference has the structure: there is nothing to score."""
        return self.values.get("dice") is None


@dataclass(frozen=True)
class Reference:
    """What is to be known of a reference besides its labels."""

    members: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """Values by label of a region; a structure that is not listed has its label alone."""
    ignore: int | None = None  # the value of voxels that nobody judged; they are background on both sides
    unknown: tuple[int, ...] = ()  # structures that were not looked for in this case; they are not scored


NOT_ANNOTATED = "not annotated"
"""Why a structure is not scored in a case that was not looked through for it."""


def evaluate_case(
    prediction: NDArray[Any],
    reference: NDArray[Any],
    spacing_mm: Sequence[float],
    labels: Mapping[int, str] | Sequence[int] | None,
    tolerance_mm: float | Mapping[int, float] = 1.0,
    *,
    definitions: Definitions = _DEFAULT,
    axes_mm: NDArray[np.float64] | None = None,
    truth: Reference | None = None,
) -> list[StructureResult]:
    """Compare two label maps, structure by structure.

    Parameters
    ----------
    prediction, reference
        Label maps of one shape, axes (i, j, k); integers, or floats that hold integers; 0 is background.
    spacing_mm
        Distance between neighbouring voxels along i, j, k.
    labels
        The declared structures, label → name, or labels alone. ``None`` takes whatever either volume holds.
    tolerance_mm
        Tolerance of the normalised surface distance; a mapping gives each label its own.
    definitions
        Choices among definitions that differ in the field.
    axes_mm
        3×3, for grids whose axes are not at right angles: column a is the step in mm along array axis a (the
        upper left part of an affine). Replaces ``spacing_mm``; distances are then between true positions.
    truth
        Regions that overlap, and what the reference does not know.

    Returns
    -------
    list of StructureResult
        One per declared structure in order of labels, also for structures that neither volume holds.

    Raises
    ------
    Refusal
        ``geometry-mismatch`` if the shapes differ, ``not-3d``, ``non-finite`` if a volume holds NaN or infinity,
        ``unexpected-labels`` if it holds a value that is not declared, or no integer within 1e-3.
    UsageError
        If a spacing or a tolerance is not positive.

    Examples
    --------
    >>> reference = np.zeros((9, 9, 9), np.uint8)
    >>> reference[2:6, 2:6, 2:6] = 1
    >>> shifted = np.roll(reference, 1, axis=0)
    >>> [result] = evaluate_case(shifted, reference, (2.0, 1.0, 1.0), {1: "box"})
    >>> result.dice, result.hd_mm
    (0.75, 2.0)
    """
    if prediction.shape != reference.shape:
        found = f"the prediction has shape {prediction.shape} and the reference {reference.shape}"
        raise Refusal("geometry-mismatch", f"{found}; resample the prediction to the reference's grid")
    truth = truth or Reference()
    if truth.ignore is not None:
        judged = reference != truth.ignore
        prediction, reference = (np.where(judged, volume, 0) for volume in (prediction, reference))
    pair = _Pair.of(prediction, reference, _axes(spacing_mm, axes_mm), truth.members)
    return [
        StructureResult(label, name, dict.fromkeys(_no_values(definitions)), not_scored=NOT_ANNOTATED)
        if label in truth.unknown
        else _score(pair, label, name, _tolerance(tolerance_mm, label), definitions)
        for label, name in _declared(labels, pair).items()
    ]


def _axes(spacing_mm: Sequence[float], axes_mm: NDArray[np.float64] | None) -> NDArray[np.float64]:
    axes = np.diag(np.asarray(spacing_mm, dtype=np.float64)) if axes_mm is None else np.asarray(axes_mm, np.float64)
    volume = abs(np.linalg.det(axes)) if axes.shape == (3, 3) and np.isfinite(axes).all() else 0.0
    if volume < 1e-12 or (axes_mm is None and min(spacing_mm) <= 0):
        raise UsageError(f"the spacing is {tuple(spacing_mm)}; give three positive distances in mm")
    return axes


def _tolerance(tolerance_mm: float | Mapping[int, float], label: int) -> float:
    value = tolerance_mm.get(label, 1.0) if isinstance(tolerance_mm, Mapping) else tolerance_mm
    if not value >= 0 or not np.isfinite(value):
        raise UsageError(f"the tolerance is {value} mm; give a distance of at least 0")
    return float(value)


def _declared(labels: Mapping[int, str] | Sequence[int] | None, pair: _Pair) -> dict[int, str]:
    found = sorted({*pair.prediction_boxes, *pair.reference_boxes})
    if labels is None:
        if len(found) > _MOST_UNDECLARED_LABELS:
            raise Refusal(
                "unexpected-labels",
                f"found {len(found)} different values, which looks like an image and not like a label map; "
                "give label maps, or declare the labels",
            )
        return {label: str(label) for label in found}
    names = dict(labels) if isinstance(labels, Mapping) else {int(label): str(label) for label in labels}
    names.pop(0, None)
    for who, boxes in (("prediction", pair.prediction_boxes), ("reference", pair.reference_boxes)):
        unexpected = sorted(set(boxes) - {value for label in names for value in pair.values_of(label)})
        if unexpected:
            raise Refusal(
                "unexpected-labels",
                f"the {who} holds the values {unexpected[:8]} that are not among the declared labels "
                f"{sorted(names)[:40]}; declare them or correct the volume",
            )
    return dict(sorted(names.items()))


@dataclass(frozen=True)
class _Pair:
    """Both label maps in C order, their axes, and where each label lies."""

    prediction: NDArray[np.integer]
    reference: NDArray[np.integer]
    axes_mm: NDArray[np.float64]
    voxel_mm3: float
    prediction_boxes: dict[int, Box]
    reference_boxes: dict[int, Box]
    members: Mapping[int, tuple[int, ...]]

    @classmethod
    def of(
        cls,
        prediction: NDArray[Any],
        reference: NDArray[Any],
        axes_mm: NDArray[np.float64],
        members: Mapping[int, tuple[int, ...]],
    ) -> _Pair:
        maps = [_label_map(volume, who) for volume, who in ((prediction, "prediction"), (reference, "reference"))]
        # NIfTI readers give Fortran order; walking it along memory is four times faster.
        transposed = not maps[0].flags.c_contiguous and maps[0].flags.f_contiguous
        first, second = (np.ascontiguousarray(m.T if transposed else m) for m in maps)
        axes, voxel_mm3 = axes_mm[:, ::-1] if transposed else axes_mm, float(abs(np.linalg.det(axes_mm)))
        boxes = find_boxes(first), find_boxes(second)
        return cls(first, second, _diagonal_if_possible(axes), voxel_mm3, *boxes, members)

    def values_of(self, label: int) -> tuple[int, ...]:
        """What belongs to a structure: its label alone, or the values of a region."""
        return self.members.get(label, (label,))

    def holds(self, label: int) -> tuple[bool, bool]:
        """Whether prediction and reference have a structure."""
        values = self.values_of(label)
        boxes = self.prediction_boxes, self.reference_boxes
        return not boxes[0].keys().isdisjoint(values), not boxes[1].keys().isdisjoint(values)

    def crop(self, label: int) -> tuple[Mask, Mask]:
        """Both masks of a structure, in the box that holds it in both volumes."""
        values = self.values_of(label)
        found = (self.prediction_boxes, self.reference_boxes)
        box = joined(side[value] for side in found for value in values if value in side)
        if len(values) == 1:
            return self.prediction[box] == values[0], self.reference[box] == values[0]
        return np.isin(self.prediction[box], values), np.isin(self.reference[box], values)


def _label_map(volume: NDArray[Any], who: str) -> NDArray[np.integer]:
    if volume.ndim != 3:
        raise Refusal("not-3d", f"the {who} has shape {volume.shape}; give one 3D label map")
    if volume.dtype.kind == "b":
        return volume.view(np.uint8)
    if volume.dtype.kind not in "iuf":
        raise Refusal("unexpected-labels", f"the {who} has values of type {volume.dtype}; give an integer label map")
    if volume.dtype.kind == "f":
        if not np.isfinite(volume).all():
            raise Refusal("non-finite", f"the {who} holds NaN or infinite values; give an integer label map")
        return check_labels(volume, f"the {who}")[0]
    if volume.size and (volume.max() > LARGEST_LABEL or (volume.dtype.kind == "i" and volume.min() < 0)):
        raise Refusal(
            "unexpected-labels",
            f"the {who} holds values from {volume.min()} to {volume.max()}; "
            f"labels are integers from 0 to {LARGEST_LABEL}",
        )
    return volume


def _diagonal_if_possible(axes_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotate orthogonal axes into a diagonal matrix (distances do not change); leave sheared axes as they are."""
    gram = axes_mm.T @ axes_mm
    lengths = np.sqrt(np.diagonal(gram))
    cosines = gram / np.outer(lengths, lengths) - np.eye(3)
    return np.diag(lengths) if np.abs(cosines).max() < 1e-6 else axes_mm


def _no_values(definitions: Definitions) -> dict[str, float | None]:
    values: dict[str, float | None] = dict.fromkeys(metric.name for metric in METRICS)
    values.update({percentile_name(p): None for p in definitions.percentiles})
    values.update(volume_ml=0.0, reference_volume_ml=0.0, volume_difference_ml=0.0)
    return values


def absent_structure(label: int, name: str, definitions: Definitions, case_id: str = "") -> StructureResult:
    """The row of a structure that neither prediction nor reference has."""
    return StructureResult(label, name, _no_values(definitions), case_id=case_id)


def _score(pair: _Pair, label: int, name: str, tolerance_mm: float, chosen: Definitions) -> StructureResult:
    """One structure, in the box that holds it on both sides."""
    in_prediction, in_reference = pair.holds(label)
    values = _no_values(chosen)
    matched: tuple[Lesion, ...] = ()
    if in_prediction or in_reference:
        prediction, reference = pair.crop(label)
        both, ours, theirs = (int(np.count_nonzero(m)) for m in (prediction & reference, prediction, reference))
        outside, to_ml = pair.reference.size - theirs, pair.voxel_mm3 / 1000.0
        values.update(
            volume_ml=ours * to_ml,
            reference_volume_ml=theirs * to_ml,
            volume_difference_ml=(ours - theirs) * to_ml,
            specificity=(outside - ours + both) / outside if outside else None,
        )
        if in_prediction and in_reference:
            values.update(voxel_scores(both, ours, theirs))
            values.update(lesion_scores(prediction, reference, chosen.lesion_connectivity, chosen.lesion_overlap))
            values.update(_distances(prediction, reference, pair.axes_mm, tolerance_mm, chosen))
        else:
            values.update(_EMPTY_SCORES)
        if chosen.centreline:
            values["cldice"] = centreline_dice(prediction, reference) if in_prediction and in_reference else 0.0
        if chosen.lesion_iou is not None:
            matched = match_lesions(prediction, reference, to_ml, chosen.lesion_connectivity, chosen.lesion_iou)
    missed, invented = in_reference and not in_prediction, in_prediction and not in_reference
    return StructureResult(label, name, values, missed=missed, invented=invented, lesions=matched)


def _distances(
    prediction: Mask, reference: Mask, axes_mm: NDArray[np.float64], tolerance_mm: float, chosen: Definitions
) -> dict[str, float | None]:
    measure = measure_voxel_surfaces if chosen.surface == "voxels" else measure_surface_elements
    found = measure(prediction, reference, axes_mm)
    return {
        "hd_mm": found.hausdorff_mm(),
        **{percentile_name(p): found.percentile_mm(p, chosen.percentile_rule) for p in (95.0, *chosen.percentiles)},
        "assd_mm": found.average_mm(),
        "masd_mm": found.mean_of_directions_mm(),
        "nsd": found.share_within(tolerance_mm),
    }
