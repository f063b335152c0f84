"""Check a manifest and its data before training: grids, labels, intensities, duplicates, leakage, checksums."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medseg.errors import UsageError
from medseg.geometry import POSITION_TOLERANCE_MM, SMALLEST_COVERAGE
from medseg.labels.label_map import fault_of
from medseg.labels.scheme import ANNOTATED_KEY, LabelScheme, renumbering_advice
from medseg.manifests.audit_findings import AuditFinding, AuditReport
from medseg.manifests.audit_labels import ENOUGH_CASES, check_labels, spread_of
from medseg.manifests.items import files_of, patient_of
from medseg.manifests.manifest import Manifest
from medseg.manifests.split import describe_missing

if TYPE_CHECKING:
    from medseg.manifests.audit_facts import CaseFacts

_ORDER = {"error": 0, "warning": 1, "note": 2}
_ROUNDING_MM = 1e-6
"""Below this, two grids are equal: double precision leaves about 1e-13 mm."""
_OUTLIER_Z = 6.0
"""Robust z score (Iglewicz and Hoaglin 1993 suggest 3.5 for one look at one variable; here are many)."""
_ONE_SCALE = 20.0
_MOST_OF_ONE_SCAN = 4
"""A step that more cases share is a convention of the dataset (a normalisation), not the mark of one scan."""


def audit(
    manifest: Manifest, *, workers: int | None = None, progress: Callable[[int, int], None] | None = None
) -> AuditReport:
    """Read every case of a manifest once and report what is wrong with it, errors first; nothing is written.

    ``workers``: processes, each of which holds one case in memory; by default up to four. ``progress``: called with the
    number of finished cases and of all.
    """
    from medseg.manifests.audit_facts import gather  # reads volumes: the package costs less without it

    scheme = manifest.scheme  # refused before the work
    facts = gather(manifest, workers=workers, progress=progress)
    findings = [
        *_declarations(manifest),
        *(finding for case in facts for finding in _of_case(case, scheme.values)),
        *_presence(facts, scheme),
        *_knowledge(facts, scheme),
        *check_labels(facts, scheme.names),
        *chain.from_iterable(check(facts) for check in _CHECKS),
    ]
    findings.sort(key=lambda finding: (_ORDER[finding.severity], finding.code, finding.cases))
    return AuditReport(len(facts), len({patient_of(case.item) for case in facts}), findings)


def _of_case(case: CaseFacts, declared: Mapping[int, str]) -> Iterator[AuditFinding]:
    yield from case.problems
    yield from _grids(case)
    yield from _label_values(case, declared)
    if any(image.constant for image in case.images):
        yield AuditFinding("constant-image", "all voxels have the same value", (case.case,))
    if case.section in ("training", "validation") and not case.item.get("label"):
        yield AuditFinding("no-label", "a case to train on has no label", (case.case,))


def _grids(case: CaseFacts) -> Iterator[AuditFinding]:
    if not case.images:
        return
    image = case.images[0].geometry
    for channel in case.images[1:]:
        if not image.matches(channel.geometry):
            share = image.covered_by(channel.geometry)
            other_grid = image.shape != channel.geometry.shape and share >= SMALLEST_COVERAGE
            code = "channels-on-different-grids" if other_grid else "channel-mismatch"
            message = f"a channel {channel.geometry.mismatch(image)} and covers {share:.0%} of it"
            yield AuditFinding(code, message, (case.case,))
    for label in case.labels:
        if not image.matches(label.geometry):
            message = f"the label {label.geometry.mismatch(image)}"
            yield AuditFinding("geometry-mismatch", message, (case.case,))


def _label_values(case: CaseFacts, declared: Mapping[int, str]) -> Iterator[AuditFinding]:
    name = (case.case,)
    for label in case.labels:
        fault = fault_of(label.values, declared)
        if fault is not None:
            yield AuditFinding(fault.code, fault.message, name)
        elif not set(label.values.voxels) - {0}:
            yield AuditFinding("empty-label", "the label map holds nothing but background", name)
        if label.values.rounded_by > 0 and not label.values.fractional:
            message = f"values lie up to {label.values.rounded_by:.2g} from whole numbers, and are rounded when read"
            yield AuditFinding("rounded-labels", message, name)


def _channel_counts(facts: Sequence[CaseFacts]) -> Iterator[AuditFinding]:
    counts = {case.case: len(files_of(case.item["image"])) for case in facts}
    usual = max(set(counts.values()), key=list(counts.values()).count, default=1)
    for case, count in counts.items():
        if count != usual:
            yield AuditFinding("channel-mismatch", f"has {count} channels; the other cases have {usual}", (case,))


def _rounding_noise(facts: Sequence[CaseFacts]) -> Iterator[AuditFinding]:
    both = [(case, label) for case in facts if case.images for label in case.labels]
    noise = {case.case: case.images[0].geometry.displacement_mm(label.geometry) for case, label in both}
    noisy = {name: distance for name, distance in noise.items() if _ROUNDING_MM < distance <= POSITION_TOLERANCE_MM}
    if noisy:
        message = f"image and label differ by up to {max(noisy.values()):.2g} mm, within {POSITION_TOLERANCE_MM} mm"
        yield AuditFinding("rounding-noise", message, tuple(noisy))


def _presence(facts: Sequence[CaseFacts], scheme: LabelScheme) -> Iterator[AuditFinding]:
    """What occurs anywhere, against what is declared; label maps that are no label maps say nothing about it."""
    maps = [label for case in facts for label in case.labels if not label.values.fractional]
    if not maps:
        return
    labels = scheme.names
    present = {value for label in maps for value in label.values.voxels} - {scheme.ignore}
    if 0 not in present:
        yield AuditFinding("no-background", f"no voxel is 0 in any of {len(maps)} label maps: no background occurs")
    if not present - {0}:
        yield AuditFinding("nothing-labelled", f"{len(maps)} label maps hold nothing but background")
        return
    if not labels:
        yield AuditFinding("no-declared-labels", f"label maps hold the values {sorted(present)}, of unknown meaning")
    if advice := renumbering_advice(labels or present):
        yield AuditFinding("label-gaps", advice)
    if never := ", ".join(f"{value} ({labels[value]})" for value in sorted(set(labels) - present - {0})):
        yield AuditFinding("label-never-present", f"no case has {never}")
    trained = [case for case in facts if case.section == "training" and case.labels]
    values_of = [(case.item.get("fold"), set().union(*(one.values.voxels for one in case.labels))) for case in trained]
    if without := describe_missing(values_of, labels):
        yield AuditFinding("fold-without-class", without)


def _knowledge(facts: Sequence[CaseFacts], scheme: LabelScheme) -> Iterator[AuditFinding]:
    """What of the label maps is not known: ignored voxels, structures that a case was not looked through for."""
    value = -1 if scheme.ignore is None else scheme.ignore
    ignored = [case.case for case in facts for one in case.labels if one.values.voxels.get(value)]
    if scheme.ignore is not None and ignored:
        message = f"voxels with the value {scheme.ignore} were judged by nobody: they count in no loss and no score"
        yield AuditFinding("ignored-voxels", message, tuple(ignored))
    partly: dict[str, list[str]] = defaultdict(list)
    for case in facts:
        try:
            unknown = scheme.unknown_of(case.item.get(ANNOTATED_KEY))
        except UsageError as error:
            yield AuditFinding("unlisted-structure", str(error), (case.case,))
            continue
        for label in unknown:
            partly[scheme.structures[label]].append(case.case)
            if not scheme.regions and any(one.values.voxels.get(label) for one in case.labels):
                message = f"the label holds {scheme.structures[label]!r}, which `{ANNOTATED_KEY}` does not list"
                yield AuditFinding("unlisted-structure", message, (case.case,))
    for name, cases in partly.items():
        yield AuditFinding("partly-annotated", f"nobody looked for {name!r}: unknown there, not absent", tuple(cases))


def _duplicates(facts: Sequence[CaseFacts]) -> Iterator[AuditFinding]:
    images: dict[str, list[str]] = defaultdict(list)
    labels: dict[str, list[str]] = defaultdict(list)
    for case in facts:
        for image in case.images:
            images[image.content].append(case.case)
        for label in case.labels:
            if set(label.values.voxels) - {0}:
                labels[label.content].append(case.case)
    for code, groups, words in (
        ("duplicate-content", images, "images have the very same voxel values"),
        ("duplicate-label", labels, "label maps are the very same"),
    ):
        for cases in groups.values():
            if len(cases) > 1:
                yield AuditFinding(code, f"{len(cases)} {words}", tuple(dict.fromkeys(cases)))


def _intensities(facts: Sequence[CaseFacts]) -> Iterator[AuditFinding]:
    by_channel: dict[int, list[tuple[str, tuple[float, float, float]]]] = defaultdict(list)
    for case in facts:
        for channel, image in enumerate(case.images):
            by_channel[channel].append((case.case, image.percentiles))
    for channel, rows in by_channel.items():
        values = np.array([percentiles for _, percentiles in rows])
        extents = np.maximum(values[:, 2] - values[:, 0], 1e-12)
        smallest, largest = np.quantile(extents, [0.02, 0.98])
        if largest > _ONE_SCALE * smallest:
            message = f"channel {channel}: the images' intensity ranges differ by a factor of {largest / smallest:.3g}"
            yield AuditFinding("no-common-scale", message)
            continue
        usual_extent = float(np.median(extents))  # a hundredth of it is no outlier, however equal the others are
        scores = np.abs(np.stack([robust_z(column, 0.02 * usual_extent) for column in values.T])).max(axis=0)
        usual = ", ".join(f"{value:.4g}" for value in np.median(values, axis=0))
        for (case_id, (low, middle, high)), score in zip(rows, scores, strict=True):
            if score > _OUTLIER_Z:
                found = (
                    f"1st, 50th, 99th percentile {low:.4g}, {middle:.4g}, {high:.4g}; the others' medians are {usual}"
                )
                yield AuditFinding("intensity-outlier", f"channel {channel}: {found}", (case_id,))


def _volumes(facts: Sequence[CaseFacts]) -> Iterator[AuditFinding]:
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
                yield AuditFinding("label-volume-outlier", message, (name,))


def _spacings(facts: Sequence[CaseFacts]) -> Iterator[AuditFinding]:
    cases = [case for case in facts if case.images]
    volumes = np.array([case.images[0].geometry.voxel_volume_mm3 for case in cases])
    if len(cases) < ENOUGH_CASES:
        return
    usual = float(np.median(volumes))
    for case, score, volume in zip(cases, robust_z(np.log(volumes)), volumes, strict=True):
        if abs(score) > _OUTLIER_Z and not 0.25 < volume / usual < 4.0:
            message = f"voxels of {volume:.3g} mm³; the median is {usual:.3g} mm³"
            yield AuditFinding("spacing-outlier", message, (case.case,))


def robust_z(values: NDArray[np.float64], least_spread: float = 1e-6) -> NDArray[np.float64]:
    """Distance from the median in units of the spread (scaled median absolute deviation); zero for fewer than eight.

    The spread is at least 2 % of the median, and ``least_spread``, so that nearly equal values have no outliers by
    rounding.
    """
    if len(values) < ENOUGH_CASES:
        return np.zeros(len(values))
    middle = np.median(values)
    return np.asarray((values - middle) / max(spread_of(values), 0.02 * abs(middle), least_spread), dtype=np.float64)


def _leakage(facts: Sequence[CaseFacts]) -> Iterator[AuditFinding]:
    """One patient in two folds, or in training and test; and pairs that look like one scan under two names."""
    by_patient: dict[str, list[CaseFacts]] = defaultdict(list)
    by_step: dict[float, list[CaseFacts]] = defaultdict(list)
    for case in facts:
        by_patient[patient_of(case.item)].append(case)
        for step in {image.step for image in case.images} - {0.0}:
            by_step[step].append(case)
    for cases in by_patient.values():
        names, parts = tuple(case.case for case in cases), {_part(case) for case in cases}
        if "test" in parts and len(parts) > 1:
            yield AuditFinding("patient-in-test", f"one patient is in {' and '.join(sorted(parts))}", names)
        elif len(parts - {"training"}) > 1:
            yield AuditFinding("patient-in-two-folds", f"one patient is in {' and '.join(sorted(parts))}", names)
    for step, cases in by_step.items():
        names, parts = tuple(case.case for case in cases), {_part(case) for case in cases}
        if len({patient_of(case.item) for case in cases}) > 1 and len(parts) > 1 and len(cases) <= _MOST_OF_ONE_SCAN:
            message = f"values in steps of {step:g} in these cases only, which are in {' and '.join(sorted(parts))}"
            yield AuditFinding("suspected-same-scan", message, names)


def _declarations(manifest: Manifest) -> Iterator[AuditFinding]:
    """Licence, patients, folds and checksums: what a reader needs to trust a split."""
    items = [item for _, _, item in manifest.items()]
    training = manifest.training
    if not training:
        yield AuditFinding("no-items", "found no item under `training`")
    if not manifest.licence:
        yield AuditFinding("no-licence", "the manifest names no licence")
    if items and not any(item.get("patient_id") for item in items):
        yield AuditFinding("no-patient-ids", "no item names its patient")
    split = [item for item in training if "fold" in item]
    if training and not split and "validation" not in manifest.content:
        yield AuditFinding("no-folds", "no training item has a fold")
    elif split and len(split) < len(training):
        unsplit = len(training) - len(split)
        yield AuditFinding("partly-split", f"{unsplit} of {len(training)} training items have no fold")
    if without := sum("sha256" not in item for item in items):
        yield AuditFinding("no-checksums", f"{without} of {len(items)} items have no SHA-256 sums")


def _part(case: CaseFacts) -> str:
    if case.section in ("test", "testing"):
        return "test"
    fold = case.item.get("fold")
    return case.section if fold is None else f"fold {fold}"


_CHECKS = (_channel_counts, _rounding_noise, _duplicates, _intensities, _volumes, _spacings, _leakage)
"""Those that need all cases."""
