"""What can only be seen over all cases: outliers, duplicates, labels that never occur."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from medseg.labels import gap_message
from medseg.manifests.audit.facts import CaseFacts
from medseg.manifests.audit.findings import Finding
from medseg.manifests.fold_gaps import explain_fold_gaps

__all__ = ["check_whole"]

_OUTLIER_Z = 6.0
"""Robust z score (Iglewicz and Hoaglin 1993 suggest 3.5 for one look at one variable; here are many)."""

_ENOUGH_CASES = 8
_ONE_SCALE = 20.0
_MAD_TO_SIGMA = 1.4826


def check_whole(facts: Sequence[CaseFacts], labels: Mapping[int, str]) -> Iterator[Finding]:
    """Findings that need all cases; ``labels`` are the declared values."""
    yield from _presence(facts, labels)
    yield from _duplicates(facts)
    yield from _intensities(facts)
    yield from _volumes(facts)
    yield from _spacings(facts)


def _presence(facts: Sequence[CaseFacts], labels: Mapping[int, str]) -> Iterator[Finding]:
    """What occurs anywhere, against what is declared; label maps that are no label maps say nothing about it."""
    maps = [label for case in facts for label in case.labels if not label.values.fractional]
    if not maps:
        return
    present = {value for label in maps for value in label.values.voxels}
    if 0 not in present:
        message = f"no voxel is 0 in any of the {len(maps)} label maps, so the background never occurs"
        yield Finding("no-background", message)
    if not present - {0}:
        yield Finding("nothing-labelled", f"{len(maps)} label maps hold nothing but background")
        return
    if not labels:
        yield Finding("no-declared-labels", f"the label maps hold the values {sorted(present)}, of unknown meaning")
    gaps = gap_message(labels or present)
    if gaps:
        yield Finding("label-gaps", gaps)
    never = sorted(set(labels) - present - {0})
    if never:
        yield Finding(
            "label-never-present", "no case has " + ", ".join(f"{value} ({labels[value]})" for value in never)
        )
    trained = [(case.item.get("fold"), case) for case in facts if case.section == "training" and case.labels]
    without = explain_fold_gaps([(fold, _values(case)) for fold, case in trained], labels)
    if without:
        yield Finding("fold-without-class", without)


def _values(case: CaseFacts) -> set[int]:
    return {value for label in case.labels for value in label.values.voxels}


def _duplicates(facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    images: dict[str, list[CaseFacts]] = defaultdict(list)
    labels: dict[str, list[CaseFacts]] = defaultdict(list)
    for case in facts:
        for image in case.images:
            images[image.content].append(case)
        for label in case.labels:
            if set(label.values.voxels) - {0}:
                labels[label.content].append(case)
    for cases in images.values():
        if len(cases) > 1:
            names = tuple(dict.fromkeys(case.case for case in cases))
            yield Finding("duplicate-content", f"{len(cases)} images have the very same voxel values", names)
    for cases in labels.values():
        if len(cases) > 1:
            names = tuple(dict.fromkeys(case.case for case in cases))
            yield Finding("duplicate-label", f"{len(cases)} label maps are the very same", names)


def _intensities(facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    by_channel: dict[int, list[tuple[str, tuple[float, float, float]]]] = defaultdict(list)
    for case in facts:
        for channel, image in enumerate(case.images):
            by_channel[channel].append((case.case, image.percentiles))
    for channel, rows in by_channel.items():
        yield from _channel_intensities(channel, rows)


def _channel_intensities(channel: int, rows: Sequence[tuple[str, tuple[float, float, float]]]) -> Iterator[Finding]:
    values = np.array([percentiles for _, percentiles in rows])
    extents = np.maximum(values[:, 2] - values[:, 0], 1e-12)
    smallest, largest = np.quantile(extents, [0.02, 0.98])
    if largest > _ONE_SCALE * smallest:
        message = f"channel {channel}: the images' intensity ranges differ by a factor of {largest / smallest:.3g}"
        yield Finding("no-common-scale", message)
        return
    scores = np.abs(np.stack([robust_z(column) for column in values.T])).max(axis=0)
    for (case, (low, middle, high)), score in zip(rows, scores, strict=True):
        if score > _OUTLIER_Z:
            message = (
                f"channel {channel}: 1st, 50th, 99th percentile {low:.4g}, {middle:.4g}, {high:.4g}; "
                f"the others' medians are {', '.join(f'{value:.4g}' for value in np.median(values, axis=0))}"
            )
            yield Finding("intensity-outlier", message, (case,))


def _volumes(facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    volumes: dict[int, dict[str, float]] = defaultdict(dict)
    for case in facts:
        for label in case.labels:
            for value, count in label.values.voxels.items():
                if value != 0:
                    volumes[value][case.case] = count * label.geometry.voxel_volume_mm3 / 1000.0
    for value, of_case in sorted(volumes.items()):
        scores = robust_z(np.log(np.array(list(of_case.values()))))
        usual = float(np.median(list(of_case.values())))
        for (name, volume_ml), score in zip(of_case.items(), scores, strict=True):
            if abs(score) > _OUTLIER_Z:
                message = f"label {value} has {volume_ml:.3g} ml; the median is {usual:.3g} ml"
                yield Finding("label-volume-outlier", message, (name,))


def _spacings(facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    cases = [case for case in facts if case.images]
    volumes = np.array([case.images[0].geometry.voxel_volume_mm3 for case in cases])
    if len(cases) < _ENOUGH_CASES:
        return
    usual = float(np.median(volumes))
    for case, score, volume in zip(cases, robust_z(np.log(volumes)), volumes, strict=True):
        if abs(score) > _OUTLIER_Z and not 0.25 < volume / usual < 4.0:
            message = f"voxels of {volume:.3g} mm³; the median is {usual:.3g} mm³"
            yield Finding("spacing-outlier", message, (case.case,))


def robust_z(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance from the median in units of the spread (scaled median absolute deviation).

    Zero for fewer than eight values. The spread is at least 2 % of the median, so that a set of nearly equal values
    has no outliers by rounding.
    """
    if len(values) < _ENOUGH_CASES:
        return np.zeros(len(values))
    middle = np.median(values)
    spread = _MAD_TO_SIGMA * np.median(np.abs(values - middle))
    return np.asarray((values - middle) / max(spread, 0.02 * abs(middle), 1e-6), dtype=np.float64)
