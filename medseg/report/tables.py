"""Every table of the report: columns, values, formats and remedies.

How numbers and structures look in the report: digits by metric, the structures' colours for the viewer.

What a refusal means and what helps, in the words of the report.

The report's summary: counts, averages per structure, and what was not done.

The report's table of cases: columns, cells, and what a row opens to.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np

from medseg.errors import ReasonCode
from medseg.evaluation.case import StructureResult
from medseg.evaluation.definitions import CSV_METRICS, metric_named
from medseg.evaluation.statistics import Bootstrap, by_structure, summarise, summarise_structures
from medseg.pictures import colour, rgb
from medseg.report.collect import Case, Study
from medseg.report.pictures import Plane

_NOTHING = "–"


def number(value: float | None, metric: str) -> str:
    """A value with the digits that its unit deserves: three for scores, two for mm, three significant for ml."""
    if value is None:
        return _NOTHING
    if metric.endswith("_ml"):
        sign = "+" if metric == "volume_difference_ml" and value > 0 else ""
        return f"{sign}{_significant(value)}".replace("-", "−")
    return f"{value:.2f}" if metric.endswith("_mm") else f"{value:.3f}"


def _significant(value: float) -> str:
    """Three significant digits without an exponent: 0.0123, 3.21, 45.6, 1234."""
    if value == 0:
        return "0"
    size = abs(value)
    decimals = next((d for limit, d in ((100, 0), (10, 1), (1, 2), (0.1, 3)) if size >= limit), 4)
    return f"{value:.{decimals}f}"


def label_table(names: Mapping[int, str]) -> str:
    """Label colours for the viewer, as JSON that is safe inside a script element; above 255 they share one."""
    table: dict[int, tuple[str, str]] = {0: ("#000000", "background")}
    for index, (label, name) in enumerate(names.items()):
        table[min(label, 255)] = (colour(index), name)
    channels = {channel: [rgb(c)[place] for c, _ in table.values()] for place, channel in enumerate("RGB")}
    value = {
        **channels,
        "A": [0] + [255] * (len(table) - 1),
        "I": list(table),
        "labels": [name for _, name in table.values()],
    }
    return json.dumps(value).replace("<", "\\u003c").replace("&", "\\u0026")


_EXPORT_AGAIN = "Export the series again from its source."

REMEDIES: dict[ReasonCode, tuple[str, str]] = {
    "missing-slices": ("A slice is missing from the stack.", "Fetch the complete series again."),
    "non-uniform-spacing": (
        "The slices are not evenly spaced.",
        "Resample the series on purpose, or choose a reconstruction with even spacing.",
    ),
    "mixed-orientation": ("The slices do not share one orientation.", "Select one stack of the series."),
    "mixed-grid": ("The slices differ in size or pixel spacing.", "Select one stack of the series."),
    "mixed-contrast": ("The slices show different contrasts.", "Sort them into one series per contrast."),
    "mixed-rescale": ("Some slices have a rescale, others none.", _EXPORT_AGAIN),
    "duplicate-slices": ("Two images lie at one position.", "Select one time point, echo or b-value."),
    "no-geometry": ("The file does not say where it lies in the patient.", "Export it with position and orientation."),
    "no-pixel-data": ("The file holds no image.", "Leave it out, or fetch the images."),
    "undecodable": (
        "The pixels cannot be decoded.",
        "Run `medseg doctor`; convert the file to a common transfer syntax.",
    ),
    "not-an-image": ("The file is not a medical image.", "Leave it out of the input."),
    "truncated": ("The file ends too early.", _EXPORT_AGAIN),
    "unreadable": ("The file cannot be read.", "Check the file and its permissions."),
    "non-finite": ("The image holds NaN or infinite values.", "Repair the image where it was made."),
    "not-3d": ("The file does not hold one 3D volume.", "Give one 3D volume per case."),
    "single-slice": ("The series has a single slice.", "Choose a volume series; a localizer is none."),
    "colour": ("The image is in colour.", "Choose a grey-scale series."),
    "singular-affine": ("The stated geometry spans no volume.", "Repair the header from the original images."),
    "too-large": ("The volume is larger than the limit.", "Crop it, or raise the limit."),
    "several-volumes": (
        "Several volumes were found where one was asked for.",
        "Select one with --select, or name its files.",
    ),
    "mixed-patients": ("One series mixes several patients.", "Separate them at the source."),
    "mosaic": ("The image is a mosaic of slices.", "Convert it to a volume first."),
    "outside-training-range": (
        "Field of view, spacing or size is far from the training data.",
        "Crop or choose another series, or another bundle.",
    ),
    "geometry-mismatch": ("Two volumes of one case lie on different grids.", "Bring them to one grid."),
    "unexpected-labels": ("The mask holds labels that the bundle does not know.", "Map the labels first."),
    "wrong-modality": (
        "The modality is not the one the bundle was trained on.",
        "Choose another series, or another bundle.",
    ),
    "channel-mismatch": ("The number of channels is not what the bundle expects.", "Give one series per channel."),
    "no-dicom-source": (
        "DICOM output was asked for, but the input is not DICOM.",
        "Give the DICOM series, or write NIfTI only.",
    ),
    "own-output": ("The file is a result that medseg wrote.", "Give the images."),
    "not-judged": ("The result could not be judged.", "Look at it yourself."),
}
"""Meaning and remedy of every reason code."""


def remedy(code: str) -> tuple[str, str]:
    """Meaning and remedy of a reason code; for an unknown one the message of the case has to do."""
    return cast("dict[str, tuple[str, str]]", REMEDIES).get(code, ("", "See the message of the case."))


_MEASURED = ("dice", "nsd", "hd95_mm", "assd_mm", "volume_difference_ml")


def tiles(study: Study) -> list[dict[str, str]]:
    """Figures at the top of the page: what, how many, and in which tone."""
    status = Counter(case.status for case in study.cases)
    found = [
        _tile(
            str(status["done"]), "done" if study.run else "cases", f"of {len(study.cases)} cases" if study.run else ""
        )
    ]
    found += [_tile(str(status[s]), s, tone=tone) for s, tone in (("refused", "mid"), ("failed", "bad")) if status[s]]
    flagged = sum(bool(case.flags) for case in study.cases)
    if flagged:
        unlike = sum("unlike-training" in case.flags for case in study.cases)
        found.append(_tile(str(flagged), "flagged", f"{unlike} unlike the training" if unlike else "", "bad"))
    if study.measured:
        found += _measured_tiles(study)
    seconds = [case.seconds for case in study.cases if case.seconds is not None and case.status == "done"]
    if seconds:
        found.append(_tile(f"{np.median(seconds):.3g} s", "per case", "median"))
    return found


def _measured_tiles(study: Study) -> list[dict[str, str]]:
    results = [s for case in study.cases for s in case.structures]
    dice = [d for case in study.cases for d in case.dice]
    missed, invented = sum(s.missed for s in results), sum(s.invented for s in results)
    mean = [_tile(f"{np.mean(dice):.3f}", "mean Dice", "a miss counts as 0")] if dice else []
    return [
        *mean,
        _tile(str(missed), "missed", "structures only in the reference", "bad" if missed else "good"),
        _tile(str(invented), "invented", "structures only in the prediction", "bad" if invented else "good"),
    ]


def _tile(figure: str, what: str, note: str = "", tone: str = "") -> dict[str, str]:
    return {"figure": figure, "what": what, "note": note, "tone": tone}


def verdict_counts(study: Study) -> list[dict[str, Any]]:
    """How many cases trust accepts, wants reviewed, or rejects; empty if trust was not asked."""
    counts = Counter(case.verdict for case in study.cases if case.verdict)
    return [{"name": name, "count": counts[name]} for name in ("accept", "review", "reject")] if counts else []


def not_done(study: Study) -> list[dict[str, Any]]:
    """Reasons why cases were refused or failed, the most frequent first, each with its remedy."""
    counts = Counter((case.reason or case.status) for case in study.cases if case.status != "done")
    groups = []
    for reason, count in counts.most_common():
        meaning, action = remedy(reason)
        groups.append({"reason": reason, "count": count, "meaning": meaning, "action": action})
    return groups


def unpaired(study: Study) -> str:
    """Sentence about files without a partner; empty if there are none."""
    count = study.metrics.get("n_unpaired")
    if not isinstance(count, int) or not count:
        return ""
    subject = "One file has" if count == 1 else f"{count} files have"
    return f"{subject} no partner and could not be evaluated; metrics.json lists what is missing."


def structure_table(study: Study) -> tuple[list[str], list[dict[str, Any]]]:
    """Column titles, and one row per structure; the numbers are those of ``metrics.json`` where it has them."""
    summaries = _summaries(study)
    wanted = _MEASURED if study.measured else ("volume_ml",)
    columns = [m for m in wanted if any(_has(s["metrics"].get(m)) for s in summaries.values())]
    rows = []
    for name, summary in sorted(summaries.items(), key=lambda item: item[1].get("label", 0)):
        cells = [_cell(summary["metrics"].get(metric), metric) for metric in columns]
        counts = {"n": summary.get("n"), "missed": summary.get("n_missed", 0), "invented": summary.get("n_invented", 0)}
        rows.append({"label": summary.get("label"), "name": name, "cells": cells, **counts})
    return [metric_named(metric).title for metric in columns], rows


def _summaries(study: Study) -> dict[str, dict[str, Any]]:
    written = study.metrics.get("structures")
    if isinstance(written, Mapping) and written:
        return {
            str(name): dict(value)
            for name, value in written.items()
            if isinstance(value, Mapping) and "metrics" in value
        }
    results = [s for case in study.cases for s in case.structures]
    if study.measured:
        return summarise_structures(results, {}, Bootstrap())
    found = {}
    for (label, name), rows in by_structure(results).items():
        volumes = np.array([[v] for row in rows if (v := row.values.get("volume_ml")) is not None], dtype=np.float64)
        volume = (
            summarise(volumes, [row.case_id for row in rows][: len(volumes)], Bootstrap())[0] if len(volumes) else None
        )
        found[name] = {"label": label, "n": len(rows), "metrics": {"volume_ml": asdict(volume)} if volume else {}}
    return found


def _has(summary: object) -> bool:
    return isinstance(summary, Mapping) and summary.get("mean") is not None


def _cell(summary: Mapping[str, Any] | None, metric: str) -> dict[str, str] | None:
    if summary is None or summary.get("mean") is None:
        return None
    interval = summary.get("ci95")
    return {
        "mean": number(summary["mean"], metric),
        "std": number(summary.get("std"), metric).removeprefix("+"),
        "median": number(summary.get("median"), metric),
        "interval": f"{number(interval[0], metric)} to {number(interval[1], metric)}" if interval else "",
    }


_LEARNT = "This image was used to train the model: its figures say nothing about new cases."
_VERDICT_ORDER = {"reject": "0", "review": "1", "accept": "2"}


@dataclass(frozen=True)
class Pictures:
    """What was drawn of one case.

    Parameters
    ----------
    planes
        Thumbnails, empty if there are none.
    notes
        What could not be shown, and why.
    inlined, side_file
        Volumes for the viewer inside the page, or the file beside it; both empty without a viewer.
    missing
        Why there are no thumbnails.
    """

    planes: tuple[Plane, ...] = ()
    notes: tuple[str, ...] = ()
    inlined: str = ""
    side_file: str = ""
    missing: str = "the prediction was not found or could not be read."


def heads(study: Study) -> list[dict[str, str]]:
    """Columns of the table: only those that this study can fill."""
    columns = [("case", "Case", "text", "")]
    if any(case.status != "done" for case in study.cases):
        columns.append(("status", "Status", "text", "descending"))
    if any(case.verdict for case in study.cases):
        columns.append(("verdict", "Trust", "text", ""))
    if any(case.predicted_dice is not None for case in study.cases):
        columns.append(("predicted", "Predicted Dice", "num", ""))
    if study.measured:
        columns += [
            ("dice", "Worst Dice", "num", ""),
            ("mean", "Mean Dice", "num", ""),
            ("hd95", "HD95 [mm]", "num", "descending"),
        ]
    columns.append(("volume", "Volume [ml]", "num", "descending"))
    return [{"key": key, "name": name, "kind": kind, "first": first} for key, name, kind, first in columns]


def metric_columns(study: Study) -> list[str]:
    """Metrics for which some structure of some case has a value."""
    return [m for m in CSV_METRICS if any(s.values.get(m) is not None for case in study.cases for s in case.structures)]


def case_rows(study: Study, pictures: Mapping[str, Pictures]) -> list[dict[str, Any]]:
    """One dictionary per case for the template, in the study's order."""
    columns = [head["key"] for head in heads(study)]
    metrics = metric_columns(study)
    return [
        _row(case, pictures.get(case.case_id, Pictures()), i, (columns, metrics)) for i, case in enumerate(study.cases)
    ]


def _row(case: Case, drawn: Pictures, index: int, shown: tuple[Sequence[str], Sequence[str]]) -> dict[str, Any]:
    columns, metrics = shown
    labels = {label for plane in drawn.planes for label in (*plane.prediction, *plane.reference)}
    flags = [flag for s in case.structures if (flag := _flag(s))]
    return {
        "case_id": case.case_id,
        "status": case.status,
        "verdict": case.verdict,
        "reason": case.reason,
        "message": case.message or _told(case),
        "wrong": bool(flags),
        "search": " ".join([*_words(case), *flags]).lower(),
        "number": index,
        "key": f"v{index}",
        "cells": [_rows_cell(case, column) for column in columns],
        "notes": (*([_LEARNT] if case.trained_on else []), *drawn.notes),
        "planes": drawn.planes,
        "no_picture": drawn.missing,
        "has_reference": any(plane.reference for plane in drawn.planes),
        "viewer": bool(drawn.inlined or drawn.side_file),
        "side_file": drawn.side_file,
        "at": ",".join(str(plane.slice_number - 1) for plane in reversed(drawn.planes)),
        "structures": [
            {
                "label": s.label,
                "name": s.name,
                "flag": _flag(s),
                "drawn": s.label in labels,
                "estimate": _estimate(case, s.label),
                "dice": "" if s.values.get("dice") is None else number(s.values["dice"], "dice"),
                "cells": [number(s.values.get(metric), metric) for metric in metrics],
            }
            for s in sorted(case.structures, key=lambda s: s.label)
        ],
    }


def _words(case: Case) -> list[str]:
    """What the search field finds a case by."""
    learnt = ["trained-on"] if case.trained_on else []
    return [case.case_id, case.status, case.reason, case.verdict, *case.flags, *learnt]


def _estimate(case: Case, label: int) -> str:
    """Predicted Dice and lower bound of one structure; empty without."""
    found = case.estimates.get(label)
    return "" if found is None else f"{found[0]:.3f} (at least {found[1]:.2f})"


def _told(case: Case) -> str:
    """What to say of a case that was not done and whose message cannot be shown."""
    return "" if case.status == "done" else " ".join([*remedy(case.reason), "Details are in run.json."]).strip()


def _flag(structure: StructureResult) -> str:
    return "missed" if structure.missed else "invented" if structure.invented else ""


def _rows_cell(case: Case, column: str) -> dict[str, object]:
    """Text, sorting value and looks of one cell; numbers that do not exist sort last."""
    return _CELLS[column](case)


def _predicted(case: Case) -> dict[str, object]:
    note = "" if case.lower_bound is None else f"at least {case.lower_bound:.2f}"
    return _figure(case.predicted_dice, "dice", note)


def _worst_dice(case: Case) -> dict[str, object]:
    scored = [(d, s.name) for s in case.structures if (d := s.values.get("dice")) is not None]
    value, name = min(scored, default=(None, ""))
    return _figure(value, "dice", name if len(case.structures) > 1 else "")


def _volume(case: Case) -> dict[str, object]:
    volumes = [v for s in case.structures if (v := s.values.get("volume_ml")) is not None]
    return _figure(sum(volumes) if volumes else None, "volume_ml")


def _distance(case: Case) -> dict[str, object]:
    """Worst distance; a missed or invented structure has none, so it is named and sorts above every distance."""
    values = [v for s in case.structures if (v := s.values.get("hd95_mm")) is not None]
    flags = [_flag(s) for s in case.structures if _flag(s)]
    note = ", ".join(f"{flags.count(flag)} {flag}" for flag in ("missed", "invented") if flag in flags)
    cell = _figure(max(values, default=None), "hd95_mm", note)
    return {**cell, "value": "Infinity"} if flags else cell


def _text(text: str, value: str, pill: str = "") -> dict[str, object]:
    return {"kind": "text", "value": value, "text": text, "note": "", "pill": pill, "flags": []}


def _verdict(case: Case) -> dict[str, object]:
    """Badge of the verdict and, below, what was flagged; flagged cases sort first within a verdict."""
    place = _VERDICT_ORDER.get(case.verdict, "")
    cell = _text(case.verdict, place and place + ("0" if case.flags else "1"), pill=case.verdict)
    return {**cell, "flags": [flag.replace("-", " ") for flag in case.flags]}


def _figure(value: float | None, metric: str, note: str = "") -> dict[str, object]:
    return {
        "kind": "num",
        "value": "" if value is None else repr(float(value)),
        "text": number(value, metric),
        "note": note,
        "pill": "",
        "flags": [],
    }


_CELLS: dict[str, Callable[[Case], dict[str, object]]] = {
    "case": lambda case: _text(case.case_id, case.case_id),
    "status": lambda case: _text(case.status, case.status, pill=case.status),
    "verdict": _verdict,
    "predicted": _predicted,
    "dice": _worst_dice,
    "mean": lambda case: _figure(sum(case.dice) / len(case.dice) if case.dice else None, "dice"),
    "hd95": _distance,
    "volume": _volume,
}
