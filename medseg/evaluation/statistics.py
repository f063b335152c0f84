"""From rows to statements: averages with intervals, paired comparison, subgroups.

The unit of resampling and of testing is the patient: two scans of one patient are not two independent
observations (Bland and Altman, BMJ 1994;308:896). A structure that was missed never leaves a table quietly: its
overlap scores are 0, its missing distances are counted beside the average, and in tests a missing
distance is worse than every distance.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.evaluation.case import StructureResult
from medseg.evaluation.definitions import metric_named

Floats = NDArray[np.float64]

COMPARED_METRICS = ("dice", "nsd", "hd95_mm", "assd_mm")
"""Metrics that a paired comparison tests unless asked otherwise."""

FEWEST_PATIENTS = 6
"""With fewer, the smallest possible p of Wilcoxon's two-sided test is above 0.05."""

_CHUNK = 200


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are drawn: percentile bootstrap of the mean, whole patients drawn with replacement."""

    resamples: int = 2000  # number of resamples
    confidence: float = 0.95  # coverage of the interval
    seed: int = 0  # seed of the generator, so that a table can be reproduced

    def intervals(self, values: Floats, patients: Sequence[str]) -> Floats:
        """Intervals of the column means of ``values`` (cases × columns, NaN where a case has no value).

        Columns × 2 (low, high); NaN for a column with values of fewer than two patients.
        """
        names, index = np.unique(np.asarray(patients, dtype=object).astype(str), return_inverse=True)
        present = np.isfinite(values)
        sums, counts = (
            np.stack([np.bincount(index, column, len(names)) for column in part.T], axis=1, dtype=np.float64)
            for part in (np.where(present, values, 0.0), present.astype(np.float64))
        )
        low_high = np.full((values.shape[1], 2), np.nan)
        enough = (counts > 0).sum(axis=0) >= 2
        if enough.any():
            means = self._resampled_means(sums[:, enough], counts[:, enough])
            tail = 50.0 * (1.0 - self.confidence)
            low_high[enough] = np.nanpercentile(means, [tail, 100.0 - tail], axis=0).T
        return low_high

    def _resampled_means(self, sums: Floats, counts: Floats) -> Floats:
        """Column means of each resample, in chunks, so that memory does not grow with patients × resamples."""
        generator = np.random.default_rng(self.seed)
        share = np.full(len(sums), 1.0 / len(sums))
        chunks = []
        for start in range(0, self.resamples, _CHUNK):
            size = min(_CHUNK, self.resamples - start)
            times = generator.multinomial(len(sums), share, size=size).astype(np.float64)
            drawn = times @ counts
            # A resample without any value of a column has no mean.
            chunks.append(np.divide(times @ sums, drawn, out=np.full_like(drawn, np.nan), where=drawn > 0))
        return np.concatenate(chunks)


@dataclass(frozen=True)
class Summary:
    """One metric over the cases that have a value for it; ``None`` where a number does not exist."""

    n: int
    mean: float | None = None
    std: float | None = None
    median: float | None = None
    q1: float | None = None
    q3: float | None = None
    iqr: float | None = None
    min: float | None = None
    max: float | None = None
    ci95: list[float] | None = None


def summarise(values: Floats, patients: Sequence[str], bootstrap: Bootstrap) -> list[Summary]:
    """Summaries of the columns of ``values`` (cases × columns, NaN where there is no value)."""
    intervals = bootstrap.intervals(values, patients)
    return [
        _summary(column[np.isfinite(column)], interval) for column, interval in zip(values.T, intervals, strict=True)
    ]


def _summary(values: Floats, interval: Floats) -> Summary:
    if not len(values):
        return Summary(0)
    q1, median, q3 = (float(q) for q in np.percentile(values, [25, 50, 75]))
    return Summary(
        n=len(values),
        mean=float(values.mean()),
        std=float(values.std(ddof=1)) if len(values) > 1 else None,
        median=median,
        q1=q1,
        q3=q3,
        iqr=q3 - q1,
        min=float(values.min()),
        max=float(values.max()),
        ci95=None if np.isnan(interval).any() else interval.tolist(),
    )


def by_structure(results: Iterable[StructureResult]) -> dict[tuple[int, str], list[StructureResult]]:
    """Rows grouped by (label, name), in order of labels."""
    groups: dict[tuple[int, str], list[StructureResult]] = {}
    for result in results:
        groups.setdefault((result.label, result.name), []).append(result)
    return dict(sorted(groups.items()))


def summarise_structures(
    results: Iterable[StructureResult], patients: Mapping[str, str], bootstrap: Bootstrap
) -> dict[str, dict[str, Any]]:
    """Per structure: how many cases, how many missed and invented, and every metric's :class:`Summary` as JSON."""
    tables = {}
    for (label, name), rows in by_structure(results).items():
        metrics = [metric for metric in rows[0].values if any(row.values[metric] is not None for row in rows)]
        matrix = _matrix(rows, metrics)
        # Volumes exist for absent structures too, but such a case is not part of what is averaged.
        matrix[[row.absent for row in rows]] = np.nan
        summaries = summarise(matrix, [patients.get(row.case_id, row.case_id) for row in rows], bootstrap)
        tables[name] = {
            "label": label,
            "name": name,
            "n": sum(not row.absent for row in rows),
            "n_missed": sum(row.missed for row in rows),
            "n_invented": sum(row.invented for row in rows),
            "n_absent": sum(row.absent and not row.not_scored for row in rows),
            "n_not_annotated": sum(bool(row.not_scored) for row in rows),
            "metrics": {metric: asdict(summary) for metric, summary in zip(metrics, summaries, strict=True)},
        }
    return tables


def _matrix(rows: Sequence[StructureResult], metrics: Sequence[str]) -> Floats:
    cells = [[np.nan if (value := row.values.get(metric)) is None else value for metric in metrics] for row in rows]
    return np.array(cells, dtype=np.float64).reshape(len(rows), len(metrics))


def subgroups(
    results: Sequence[StructureResult], groups: Mapping[str, str], patients: Mapping[str, str], bootstrap: Bootstrap
) -> dict[str, dict[str, Any]]:
    """One table of structures per group; cases without a group stand under ``(none)``."""
    members: dict[str, list[StructureResult]] = {}
    for result in results:
        members.setdefault(groups.get(result.case_id, "(none)"), []).append(result)
    return {group: summarise_structures(rows, patients, bootstrap) for group, rows in sorted(members.items())}


def compare(
    first: Sequence[StructureResult],
    second: Sequence[StructureResult],
    patients: Mapping[str, str],
    metrics: Sequence[str] = COMPARED_METRICS,
    bootstrap: Bootstrap | None = None,
) -> list[dict[str, Any]]:
    """Test two result sets on the same cases against each other, structure by structure and metric by metric.

    Wilcoxon's signed-rank test on the differences per patient (two-sided, zeros by Pratt), the matched-pairs
    rank-biserial correlation as effect size (Kerby, Comprehensive Psychology 2014), Holm's correction over all
    tests that could reject: with fewer than six patients Wilcoxon's test never reaches 5 %, such tests have no
    ``p_holm`` and do not burden the others. A distance that exists on one side only differs by more than every
    other pair, to the disadvantage of the side without it.

    ``difference`` is first minus second; ``effect_size`` runs from −1 to 1 and is positive if the first is better;
    ``n_one_sided`` counts pairs in which only one side has a value.
    """
    bootstrap = bootstrap or Bootstrap()
    others = {(row.case_id, row.label): row for row in second}
    tests = []
    for (label, name), rows in by_structure(first).items():
        pairs = [(row, others[row.case_id, label]) for row in rows if (row.case_id, label) in others]
        for metric in metrics:
            test = _paired_test(pairs, metric, patients, bootstrap)
            if test is not None:
                tests.append({"label": label, "name": name, "metric": metric, **test})
    family = [test for test in tests if test["n_patients"] >= FEWEST_PATIENTS]
    for test, corrected in zip(family, holm([test["p"] for test in family]), strict=True):
        test["p_holm"] = corrected
    return tests


def _paired_test(
    pairs: Sequence[tuple[StructureResult, StructureResult]],
    metric: str,
    patients: Mapping[str, str],
    bootstrap: Bootstrap,
) -> dict[str, Any] | None:
    scored = [(a, b) for a, b in pairs if not (a.absent and b.absent)]
    if not scored:
        return None
    values = np.stack([_matrix([pair[side] for pair in scored], [metric])[:, 0] for side in (0, 1)], axis=1)
    who = [patients.get(a.case_id, a.case_id) for a, _ in scored]
    both = np.isfinite(values).all(axis=1)
    plain = np.where(both, values[:, 0] - values[:, 1], np.nan)
    [summary] = summarise(plain[:, None], who, bootstrap)
    sign = -1.0 if metric_named(metric).lower_is_better else 1.0
    gains = _gains(values, sign, who)
    p, effect = _signed_rank(gains)
    return {
        "n_pairs": len(scored),
        "n_patients": len(gains),
        "n_one_sided": int((np.isfinite(values).sum(axis=1) == 1).sum()),
        "n_missed_first": sum(a.missed for a, _ in scored),
        "n_missed_second": sum(b.missed for _, b in scored),
        "difference": asdict(summary),
        "effect_size": effect,
        "p": p,
        "p_holm": None,
    }


def _gains(values: Floats, sign: float, patients: Sequence[str]) -> Floats:
    """How much better the first side is per patient; a value on one side only beats every other difference."""
    gains = sign * (values[:, 0] - values[:, 1])
    beyond = 1.0 + np.nanmax(np.abs(gains), initial=0.0)
    first, second = np.isfinite(values).T
    gains[first & ~second], gains[second & ~first], gains[~first & ~second] = beyond, -beyond, 0.0
    _, index = np.unique(np.asarray(patients), return_inverse=True)
    return np.asarray(np.bincount(index, weights=gains) / np.bincount(index), dtype=np.float64)


def _signed_rank(gains: Floats) -> tuple[float, float]:
    """Two-sided p and rank-biserial correlation; identical sides give p = 1 and no effect."""
    if not np.any(gains):
        return 1.0, 0.0
    from scipy import stats  # half a second that few evaluations need

    p = float(stats.wilcoxon(gains, zero_method="pratt").pvalue)
    ranks = stats.rankdata(np.abs(gains))
    up, down = ranks[gains > 0].sum(), ranks[gains < 0].sum()
    return p, float((up - down) / (up + down))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Scandinavian Journal of Statistics 1979) for any number of tests."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(stepped, 1.0)
    return [float(value) for value in corrected]
