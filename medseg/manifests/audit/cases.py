"""What can be wrong with one case: its grids, its label values, its channels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from medseg.geometry import POSITION_TOLERANCE_MM, SMALLEST_COVERAGE
from medseg.labels import fault_of
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
            message = f"a channel {channel.geometry.mismatch(image)} and covers {share:.0%} of it"
            yield Finding(code, message, (case.case,))
    for label in case.labels:
        if not image.matches(label.geometry):
            message = f"the label {label.geometry.mismatch(image)}"
            yield Finding("geometry-mismatch", message, (case.case,))


def _label_values(case: CaseFacts, declared: Mapping[int, str]) -> Iterator[Finding]:
    name = (case.case,)
    for label in case.labels:
        fault = fault_of(label.values, declared)
        if fault is not None:
            yield Finding(fault.kind, fault.message, name)
        elif not set(label.values.voxels) - {0}:
            yield Finding("empty-label", "the label map holds nothing but background", name)
        if label.values.rounded_by > 0 and not label.values.fractional:
            message = f"values lie up to {label.values.rounded_by:.2g} from whole numbers, and are rounded when read"
            yield Finding("rounded-labels", message, name)


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
