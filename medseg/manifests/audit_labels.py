"""Checks of label maps against the other cases': pieces, holes, border, side, and whether image and label fit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from medseg.manifests.audit_findings import AuditFinding

if TYPE_CHECKING:
    from medseg.manifests.audit_facts import CaseFacts
    from medseg.manifests.audit_shape import LabelShape

ENOUGH_CASES = 8
_MAD_TO_SIGMA = 1.4826
_OUTLIER_Z, _MISFIT_Z = 6.0, 4.5
_CLEAR_SIDE_MM, _SMALLEST_SPREAD_MM = 5.0, 1.0
_RARE = 0.1
_SAME_MEANING = 0.1
_SIDES = (("left", "right"), ("behind", "in front"), ("below", "above"))

_Row = tuple[str, "LabelShape"]


def check_labels(facts: Sequence[CaseFacts], names: Mapping[int, str]) -> Iterator[AuditFinding]:
    """Findings about the structures of all cases; ``names`` are those that the datalist declares, by value."""
    shapes: dict[int, list[_Row]] = defaultdict(list)
    for case in facts:
        for label in case.labels:
            for value, shape in label.shapes.items():
                shapes[value].append((case.case, shape))
    labelled = sum(bool(case.labels) for case in facts)
    for value, rows in sorted(shapes.items()):
        called = f"label {value}" + (f" ({names[value]})" if names.get(value) else "")
        if _cases(rows) == 1 and labelled > 2:
            message = f"only one of {labelled} labelled cases has {called}: it cannot be both learnt and tested"
            yield AuditFinding("label-in-one-case", message, (rows[0][0],))
        yield from _border(called, rows)
        yield from _tiny("tiny-islands", called, rows, "islands_ml", "besides its main part")
        yield from _tiny("tiny-holes", called, rows, "holes_ml", "enclosed in it")
    yield from _no_background(facts)
    yield from _readings(facts)
    yield from _raters(facts)
    yield from _mirrored(facts)
    yield from _misfits(facts)


def _cases(rows: Sequence[_Row]) -> int:
    """How many cases have the structure, however many raters drew it there."""
    return len({case for case, _ in rows})


def _border(called: str, rows: Sequence[_Row]) -> Iterator[AuditFinding]:
    cut = {case: shape.border_mm2 for case, shape in rows if shape.border_mm2 > 0}
    if cut:
        code = "label-at-border" if len(cut) <= _cases(rows) / 2 else "label-often-at-border"
        where = f"{len(cut)} of {_cases(rows)} cases, with up to {max(cut.values()):.0f} mm²"
        message = f"{called} reaches the image's border in {where}"
        yield AuditFinding(code, message, tuple(cut))


def _tiny(
    code: str, called: str, rows: Sequence[_Row], which: Literal["islands_ml", "holes_ml"], where: str
) -> Iterator[AuditFinding]:
    """Tiny pieces or holes; where most cases consist of several pieces anyway, pieces are what the structure is."""
    if which == "islands_ml" and sum(shape.pieces > 1 for _, shape in rows) > len(rows) / 2:
        return
    found = {case: sizes for case, shape in rows if (sizes := getattr(shape, which))}
    if found:
        sizes = [size for of_case in found.values() for size in of_case]
        what = f"{len(sizes)} {'piece' if which == 'islands_ml' else 'hole'}{'s' * (len(sizes) > 1)} {where}"
        message = f"{called} has {what} in {len(found)} of {_cases(rows)} cases, the largest of {max(sizes):.2g} ml"
        yield AuditFinding(code, message, tuple(found))


def _no_background(facts: Sequence[CaseFacts]) -> Iterator[AuditFinding]:
    """Single label maps without background; that none has any is said elsewhere."""
    maps = [(case.case, 0 in label.values.voxels) for case in facts for label in case.labels if label.values.voxels]
    without = tuple(case for case, there in maps if not there)
    if without and len(without) < len(maps):
        yield AuditFinding("no-background", f"no voxel is 0 in {len(without)} of {len(maps)} label maps", without)


def _readings(facts: Sequence[CaseFacts]) -> Iterator[AuditFinding]:
    """What was done to read labels, each of it once with its cases."""
    cases: dict[str, dict[str, None]] = defaultdict(dict)
    for case in facts:
        for note in (note for label in case.labels for note in label.notes):
            cases[note][case.case] = None
    for note, noted in cases.items():
        yield AuditFinding("label-reading", note, tuple(noted))


def _raters(facts: Sequence[CaseFacts]) -> Iterator[AuditFinding]:
    """Raters who do not mean the same: most often a list of files is one for each structure instead."""
    lowest: dict[str, float] = {}
    for case in facts:
        if shares := [label.agreement for label in case.labels if label.agreement is not None]:
            lowest[case.case] = min(shares)
    apart = {case: share for case, share in lowest.items() if share < _SAME_MEANING}
    if apart:
        message = (
            f"two raters of one case share {min(apart.values()):.0%} of their labels (Dice), of {len(lowest)} cases"
        )
        yield AuditFinding("raters-apart", message, tuple(apart))


def _mirrored(facts: Sequence[CaseFacts]) -> Iterator[AuditFinding]:
    """Structures on the other side than in the other cases: of one another, or of the middle of the image.

    A side is clear if the median distance is at least 5 mm and three spreads (scaled median absolute deviations, at
    least 1 mm). A case is mirrored if it is six spreads from the median and within three of its mirror image, and so
    is at most a tenth of the cases: where more are, either side is normal, as with both hippocampi.
    """
    worst: dict[tuple[str, int], tuple[float, str]] = {}
    for what, rows in _distances(facts):
        if len(rows) < ENOUGH_CASES:
            continue
        for axis, values in enumerate(np.array(list(rows.values())).T):
            middle = float(np.median(values))
            spread = max(spread_of(values), _SMALLEST_SPREAD_MM)
            if abs(middle) < max(_CLEAR_SIDE_MM, _OUTLIER_Z / 2 * spread):
                continue
            is_mirrored = (np.abs(values - middle) > _OUTLIER_Z * spread) & (
                np.abs(values + middle) < _OUTLIER_Z / 2 * spread
            )
            if is_mirrored.sum() > max(1, _RARE * len(values)):
                continue
            for case, value in zip(np.array(list(rows))[is_mirrored], values[is_mirrored], strict=True):
                side, other = (_SIDES[axis][int(place > 0)] for place in (value, middle))
                message = f"{what.format(side=side)} by {abs(value):.0f} mm; the median is {abs(middle):.0f} mm {other}"
                clear = abs(middle) / spread
                if clear > worst.get((str(case), axis), (0.0, ""))[0]:
                    worst[str(case), axis] = (clear, message)
    for (case, _), (_, message) in sorted(worst.items()):
        yield AuditFinding("mirrored-labels", message, (case,))


def _distances(facts: Sequence[CaseFacts]) -> Iterator[tuple[str, dict[str, tuple[float, float, float]]]]:
    """How far structures lie from the middle of the image and from one another, in mm (RAS+), by case."""
    centres: dict[int, dict[str, NDArray[np.float64]]] = defaultdict(dict)
    for case in facts:
        for label in case.labels:
            for value, shape in label.shapes.items():
                centres[value][case.case] = np.array(shape.centre_mm)
    for value, of_case in sorted(centres.items()):
        yield f"label {value} lies {{side}} of the image's middle", {case: tuple(c) for case, c in of_case.items()}
    for one, other in combinations(sorted(centres), 2):
        apart = {
            case: tuple(place - centres[other][case]) for case, place in centres[one].items() if case in centres[other]
        }
        yield f"label {one} lies {{side}} of label {other}", apart


def _misfits(facts: Sequence[CaseFacts]) -> Iterator[AuditFinding]:
    """Labels whose surfaces do not follow their image's edges as the other cases' do.

    Only where these do clearly: the median of the logarithm of :func:`~medseg.manifests.audit_shape.edge_fit` is at
    least four spreads above 0. Then a case fits badly that is 4.5 spreads below the median and below half of it.
    """
    rows = {case.case: float(np.log(label.fit)) for case in facts for label in case.labels if label.fit}
    values = np.array(list(rows.values()))
    if len(values) < ENOUGH_CASES:
        return
    middle, spread = float(np.median(values)), max(spread_of(values), 1e-3)
    if middle < 4.0 * spread:
        return
    for case, value in rows.items():
        if value < middle - _MISFIT_Z * spread and value < middle / 2:
            found = f"edges at the label's surface are {np.exp(value):.2f} times those 3 mm beside it"
            yield AuditFinding("label-off-edges", f"{found}; the other cases' median is {np.exp(middle):.2f}", (case,))


def spread_of(values: NDArray[np.float64]) -> float:
    """The standard deviation of normal values as the median absolute deviation tells it: outliers do not change it."""
    return float(_MAD_TO_SIGMA * np.median(np.abs(values - np.median(values))))
