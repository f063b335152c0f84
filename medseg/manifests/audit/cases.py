"""What can be wrong with one case: its grids, its label values, its channels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from medseg.geometry import ANGLE_TOLERANCE_DEGREES, POSITION_TOLERANCE_MM, SMALLEST_COVERAGE, Geometry
from medseg.manifests.audit.facts import CaseFacts
from medseg.manifests.audit.findings import Finding

__all__ = ["check_cases"]

_ROUNDING_MM = 1e-6
"""Below this, two grids are equal: double precision leaves about 1e-13 mm."""

_TRAINING = ("training", "validation")


def check_cases(facts: Sequence[CaseFacts], labels: Mapping[int, str]) -> Iterator[Finding]:
    """Findings that concern one case each; ``labels`` are the declared values."""
    for case in facts:
        yield from case.problems
        yield from _grids(case)
        yield from _label_values(case, labels)
        if any(image.constant for image in case.images):
            yield Finding("constant-image", "all voxels have the same value", (case.case,))
        if case.section in _TRAINING and not case.item.get("label"):
            yield Finding("no-label", "a case to train on has no label", (case.case,))
    yield from _channel_counts(facts)
    yield from _rounding_noise(facts)


def _grids(case: CaseFacts) -> Iterator[Finding]:
    if not case.images:
        return
    image = case.images[0].geometry
    for channel in case.images[1:]:
        if not image.matches(channel.geometry):
            share = image.covered_by(channel.geometry)
            other_grid = image.shape != channel.geometry.shape and share >= SMALLEST_COVERAGE
            code = "channels-on-different-grids" if other_grid else "channel-mismatch"
            message = f"a channel {explain_mismatch(image, channel.geometry)} and covers {share:.0%} of it"
            yield Finding(code, message, (case.case,))
    for label in case.labels:
        if not image.matches(label.geometry):
            message = f"the label {explain_mismatch(image, label.geometry)}"
            yield Finding("geometry-mismatch", message, (case.case,))


def explain_mismatch(image: Geometry, other: Geometry) -> str:
    """In what two grids differ, in mm and voxels."""
    if image.shape != other.shape:
        return f"has {other.describe()}; its image has {image.describe()}"
    distance = image.displacement_mm(other)
    where = f"lies up to {distance:.3g} mm ({distance / min(image.spacing_mm):.2g} voxels) off its image"
    if image.orientation != other.orientation:
        return f"{where}: axes {other.orientation}, the image's are {image.orientation}"
    if not np.allclose(image.spacing_mm, other.spacing_mm, rtol=1e-3):
        return f"{where}: {other.describe()}, the image has {image.describe()}"
    cosines = np.clip(np.sum(image.directions * other.directions, axis=0), -1.0, 1.0)
    angle = float(np.degrees(np.arccos(cosines)).max())
    if angle > ANGLE_TOLERANCE_DEGREES:
        return f"{where}: rotated by {angle:.2g} degrees"
    shift = other.affine[:3, 3] - image.affine[:3, 3]
    return f"{where}: shifted by ({shift[0]:.3g}, {shift[1]:.3g}, {shift[2]:.3g}) mm in RAS"


def _label_values(case: CaseFacts, declared: Mapping[int, str]) -> Iterator[Finding]:
    name = (case.case,)
    for label in case.labels:
        unknown = sorted(set(label.voxels) - set(declared) - {0})
        if declared and unknown:
            counts = ", ".join(f"{value} ({label.voxels[value]} voxels)" for value in unknown[:5])
            yield Finding("unexpected-labels", f"values {counts}; declared are {sorted(declared)}", name)
        if label.fractional:
            yield Finding("fractional-labels", f"{label.fractional} voxels hold no whole number", name)
        elif not set(label.voxels) - {0}:
            yield Finding("empty-label", "the label map holds nothing but background", name)


def _channel_counts(facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    counts = {case.case: 1 if isinstance(case.item["image"], str) else len(case.item["image"]) for case in facts}
    usual = max(set(counts.values()), key=list(counts.values()).count, default=1)
    for case, count in counts.items():
        if count != usual:
            yield Finding("channel-mismatch", f"has {count} channels; the other cases have {usual}", (case,))


def _rounding_noise(facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    noise = {
        case.case: case.images[0].geometry.displacement_mm(label.geometry)
        for case in facts
        for label in case.labels
        if case.images
    }
    noisy = {name: distance for name, distance in noise.items() if _ROUNDING_MM < distance <= POSITION_TOLERANCE_MM}
    if noisy:
        message = f"image and label differ by up to {max(noisy.values()):.2g} mm, within {POSITION_TOLERANCE_MM} mm"
        yield Finding("rounding-noise", message, tuple(noisy))
