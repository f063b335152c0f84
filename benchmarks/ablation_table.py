"""The ablation in figures: metrics and topology per case, means over draws, tests against plain training."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cc3d
import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import stats

from medseg.evaluation import StructureResult, evaluate_case
from medseg.evaluation.statistics import compare, holm
from medseg.files import write_json, write_text

METRICS = ("dice", "hd95_mm", "assd_mm")
TOPOLOGY = ("extra_components", "holes")
OUTLINE = "outline_dice"
"""Dice of all structures as one: what of an error is in the outline, and not in the border between structures."""
BASE = "plain"


def topology(mask: NDArray[np.bool_]) -> dict[str, int]:
    """Components beyond the first (26 neighbours), and cavities (components of the outside, 6 neighbours)."""
    components = int(cc3d.connected_components(mask.astype(np.uint8), connectivity=26, return_N=True)[1])
    outside = np.pad(~mask, 1, constant_values=True).astype(np.uint8)
    cavities = int(cc3d.connected_components(outside, connectivity=6, return_N=True)[1]) - 1
    return {"extra_components": max(0, components - 1), "holes": cavities}


def measure_case(item: Mapping[str, Any], predictions: Path, labels: Mapping[int, str]) -> list[dict[str, Any]]:
    """One row per structure, from the saved label map."""
    name = Path(item["image"]).name.removesuffix(".nii.gz")
    reference = nib.load(item["label"])
    truth = np.asarray(reference.dataobj).astype(np.uint8)
    found = np.asarray(nib.load(predictions / f"{name}_seg.nii.gz").dataobj).astype(np.uint8)
    spacing_mm = tuple(float(s) for s in reference.header.get_zooms()[:3])
    outline = 2 * int(((found > 0) & (truth > 0)).sum()) / max(1, int((found > 0).sum()) + int((truth > 0).sum()))
    return [
        {
            "case_id": name,
            "label": result.label,
            "structure": result.name,
            **{metric: result.values[metric] for metric in METRICS},
            "missed": result.missed,
            OUTLINE: outline,
            **topology(found == result.label),
            **{f"reference_{key}": value for key, value in topology(truth == result.label).items()},
        }
        for result in evaluate_case(found, truth, spacing_mm, labels)
    ]


def write_tables(output: Path, folders: Sequence[str]) -> None:
    """``ablation.md``, ``ablation.json`` and ``ablation.csv`` from the runs that are finished."""
    finished = [output / folder / "cases.json" for folder in folders]
    runs = [json.loads(path.read_text()) for path in finished if path.exists()]
    if not runs:
        return
    rows = [{**run["run"], **row} for run in runs for row in run["rows"]]
    summary = [_summary(labels, variant, rows) for labels, variant in _groups(rows)]
    tests = [test for labels in dict.fromkeys(row["labels"] for row in rows) for test in _tests(labels, rows)]
    seconds = sum(run["cpu_seconds"] for run in runs)
    write_text(output / "ablation.csv", _csv(rows))
    content = {"runs": len(runs), "planned": len(folders), "core_minutes": round(seconds / 60, 1)}
    write_json(output / "ablation.json", {**content, "summary": summary, "tests": tests})
    write_text(output / "ablation.md", _markdown(summary, tests, rows))


def _groups(rows: Sequence[Mapping[str, Any]]) -> list[tuple[int, str]]:
    return list(dict.fromkeys((row["labels"], row["variant"]) for row in rows))


def _summary(labels: int, variant: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over the cases of each draw, then mean and standard deviation over the draws."""
    mine = [row for row in rows if (row["labels"], row["variant"]) == (labels, variant)]
    draws = sorted({row["draw"] for row in mine})
    result: dict[str, Any] = {"labels": labels, "variant": variant, "draws": draws}
    for metric in (*METRICS, *TOPOLOGY, OUTLINE, "missed"):
        means = [_mean(row[metric] for row in mine if row["draw"] == draw) for draw in draws]
        spread = float(np.std(means, ddof=1)) if len(means) > 1 else None
        result[metric] = {"mean": float(np.mean(means)), "std": spread, "draws": means}
    return result


def _mean(values: Any) -> float:
    return float(np.mean([value for value in values if value is not None]))


def _results(labels: int, variant: str, rows: Sequence[Mapping[str, Any]]) -> list[StructureResult]:
    """Per case and draw the mean of both structures, as the evaluation's tests want it."""
    cells: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if (row["labels"], row["variant"]) == (labels, variant):
            cells.setdefault(f"{row['case_id']}#{row['draw']}", []).append(row)
    found = []
    for case, parts in cells.items():
        values = {m: None if any(p[m] is None for p in parts) else _mean(p[m] for p in parts) for m in METRICS}
        found.append(StructureResult(1, "both structures", values, case_id=case))
    return found


def _tests(labels: int, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every variant against plain training with the same labels: per patient over the draws, Holm over all tests."""
    base = _results(labels, BASE, rows)
    tests: list[dict[str, Any]] = []
    for variant in [variant for count, variant in _groups(rows) if count == labels and variant != BASE]:
        mine = _results(labels, variant, rows)
        common = {row.case_id for row in mine} & {row.case_id for row in base}
        if not common:
            continue
        first, second = ([row for row in side if row.case_id in common] for side in (mine, base))
        patients = {case: case.partition("#")[0] for case in common}
        names = {"labels": labels, "variant": variant}
        tests += [{**names, **test} for test in compare(first, second, patients, METRICS)]
        tests += [{**names, **_topology_test(labels, variant, metric, rows)} for metric in TOPOLOGY]
    for test, corrected in zip(tests, holm([test["p"] for test in tests]), strict=True):
        test["p_holm"] = corrected
    return tests


def _topology_test(labels: int, variant: str, metric: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    sums: dict[str, float] = {}
    draws = {row["draw"] for row in rows if (row["labels"], row["variant"]) == (labels, variant)}
    for row in rows:
        if row["labels"] == labels and row["draw"] in draws and row["variant"] in (variant, BASE):
            sign = 1.0 if row["variant"] == variant else -1.0
            sums[row["case_id"]] = sums.get(row["case_id"], 0.0) + sign * row[metric] / (2 * len(draws))
    values = np.array(list(sums.values()))
    p = float(stats.wilcoxon(values, zero_method="pratt").pvalue) if values.any() else 1.0
    return {"name": "both structures", "metric": metric, "difference": {"mean": float(values.mean())}, "p": p}


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _markdown(
    summary: Sequence[Mapping[str, Any]], tests: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> str:
    columns = ["labels", "variant", "draws", "Dice", "gain, Dice points (p)", "outline's Dice"]
    columns += ["HD95, mm", "ASSD, mm", "extra components", "holes"]
    lines = [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    for row in summary:
        dice = next((t for t in tests if _same(t, row) and t["metric"] == "dice"), None)
        gain = "" if dice is None else f"{100 * dice['difference']['mean']:+.2f} ({dice['p_holm']:.2g})"
        cells = [str(row["labels"] or "all"), row["variant"], str(len(row["draws"])), _cell(row["dice"], 4), gain]
        cells += [_cell(row[OUTLINE], 3), _cell(row["hd95_mm"], 2), _cell(row["assd_mm"], 3)]
        cells += [_starred(row, metric, tests) for metric in TOPOLOGY]
        lines.append(f"| {' | '.join(cells)} |")
    truth = [_mean(row[f"reference_{metric}"] for row in rows) for metric in TOPOLOGY]
    lines.append(f"| | the references | | | | | | | {truth[0]:.3f} | {truth[1]:.3f} |")
    return "\n".join(lines) + "\n"


def _same(test: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    return (test["labels"], test["variant"]) == (row["labels"], row["variant"])


def _cell(value: Mapping[str, Any], digits: int) -> str:
    spread = "" if value["std"] is None else f" ± {value['std']:.{digits}f}"
    return f"{value['mean']:.{digits}f}{spread}"


def _starred(row: Mapping[str, Any], metric: str, tests: Sequence[Mapping[str, Any]]) -> str:
    """Mean per case and structure, with the corrected p beside it where there is a test."""
    test = next((t for t in tests if _same(t, row) and t["metric"] == metric), None)
    return f"{row[metric]['mean']:.3f}" + ("" if test is None else f" ({test['p_holm']:.2g})")
