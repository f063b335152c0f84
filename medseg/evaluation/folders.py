"""Evaluate a folder of predictions against a folder of references, case by case, in bounded memory."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

from medseg._version import medseg_version
from medseg.errors import UsageError
from medseg.evaluation.accepted import acceptances, volume_coverage
from medseg.evaluation.case import StructureResult, absent_structure
from medseg.evaluation.definitions import EMPTY_POLICY, METRICS, Definitions, describe, percentile_name
from medseg.evaluation.overlap import summarise_lesions
from medseg.evaluation.pairing import Collection, Pair, collect, pair_up
from medseg.evaluation.raters import RATERS_CSV, summarise_raters, write_raters
from medseg.evaluation.scoring import ScoredCase, score_all
from medseg.evaluation.statistics import Bootstrap, compare, subgroups, summarise_structures
from medseg.evaluation.structures import Structures, structures_of
from medseg.evaluation.tables import LESIONS_CSV, METRICS_CSV, METRICS_JSON, write_csv, write_lesions
from medseg.evaluation.trained_on import summarised, trained_on
from medseg.files import prepare_folder, write_json
from medseg.labels.scheme import LabelScheme, listed
from medseg.manifests import Part

Progress = Callable[[int, int, str], None]
"""Called after each case with: cases done, cases in all, the case id."""

_LIBRARIES = ("numpy", "scipy", "edt", "connected-components-3d", "nibabel")
_SHOWN = 8


@dataclass(frozen=True)
class Options:
    """How an evaluation is carried out, besides what it compares."""

    definitions: Definitions = field(default_factory=Definitions)  # choices among definitions that differ in the field
    bootstrap: Bootstrap = field(default_factory=Bootstrap)  # how confidence intervals are drawn
    group_by: str | None = None  # key of the reference datalist's items; adds a table per value of it
    all_metrics: bool = False
    """Append the metrics that ``metrics.csv`` does not have by default, after its documented columns."""
    workers: int = 1  # processes; 1 stays in this one
    part: Part | None = None  # which items of the references' datalist count; all by default


@dataclass(frozen=True)
class EvaluationResult:
    """What :func:`evaluate_folders` found and wrote."""

    output: Path  # the folder with ``metrics.csv`` and ``metrics.json``
    results: list[StructureResult]  # one row per case and structure
    summary: dict[str, Any]  # the content of ``metrics.json``

    @property
    def complete(self) -> bool:
        """Whether every case had a partner and could be scored, and some structure was."""
        compared = self.summary.get("comparison", {"n_uncompared": 0})
        left = self.summary["n_unpaired"] or self.summary["n_refused"] or compared["n_uncompared"]
        return bool(self.summary["n_scored"]) and not left


def evaluate_folders(
    predictions: str | Path,
    references: str | Path,
    output: str | Path,
    *,
    labels: str | Path | Mapping[int, str] | LabelScheme | None = None,
    tolerance_mm: float = 1.0,
    compare_with: str | Path | None = None,
    options: Options | None = None,
    progress: Progress | None = None,
) -> EvaluationResult:
    """Score every case, and write ``metrics.csv`` and ``metrics.json`` into ``output``.

    Parameters
    ----------
    predictions, references
        Label maps, folders of label maps, or datalists; paired by case id, ``_seg`` ignored.
    labels
        The declared structures: names by value, a scheme with regions, a JSON file, or a bundle's folder. Without it,
        what the references' datalist declares, else every value that occurs, named by what lies beside the label maps
        (:func:`~medseg.evaluation.structures.structures_of`).
    compare_with
        A second set of predictions, tested against the first on the same references.
    progress
        Called after each case.

    Raises
    ------
    UsageError
        If a folder, datalist or labels file cannot be used, or no prediction has a reference.
    OutputUnusable
        If nothing can be written to ``output``.
    CaseFailed
        If a worker process dies.
    """
    options = options or Options()
    truth = collect(Path(references), "references", options.part)
    sides = [_match(Path(source), truth, labels) for source in (predictions, compare_with) if source is not None]
    groups = None if options.group_by is None else _groups(truth, options.group_by)  # refused before the work
    prepare_folder(output)  # an unusable place is refused before the work, and not made for unusable input
    done, total = count(1), sum(len(side.pairs) for side in sides)
    scores: list[list[ScoredCase]] = []
    for side in sides:
        scores.append([])
        for case in score_all(side.pairs, side.structures, tolerance_mm, options.definitions, options.workers):
            scores[-1].append(case)
            if progress is not None:
                progress(next(done), total, case.case_id)
    structures = sides[0].structures  # in the tables: the declared ones, else those that have a name or occur
    occur = {row.label: row.name for cases in scores for case in cases for row in case.rows}
    names = structures.declared
    names = dict(sorted({**occur, **structures.names}.items())) if names is None else names
    evaluated = [
        _Evaluated.of(side, cases, names, options.definitions) for side, cases in zip(sides, scores, strict=True)
    ]
    return _write(evaluated, truth, groups, labels, tolerance_mm, Path(output), options)


@dataclass(frozen=True)
class _Side:
    """One set of predictions, paired with the references."""

    found: Collection
    structures: Structures
    pairs: list[Pair]
    unpaired: dict[str, list[str]]


@dataclass(frozen=True)
class _Evaluated:
    """One set of predictions, scored: cases in order of their ids, and a row for every scored case and structure."""

    side: _Side
    cases: list[ScoredCase]
    rows: list[StructureResult]

    @classmethod
    def of(cls, side: _Side, cases: list[ScoredCase], names: Mapping[int, str], definitions: Definitions) -> _Evaluated:
        """With a row for absent structures, too, so that they are counted, and under the structures' names."""
        cases = sorted(cases, key=lambda case: case.case_id)
        rows = {(row.case_id, row.label): row for case in cases for row in case.rows}
        completed = [
            replace(rows[case.case_id, label], name=name)
            if (case.case_id, label) in rows
            else absent_structure(label, name, definitions, case_id=case.case_id)
            for case in cases
            if case.refusal is None
            for label, name in names.items()
        ]
        return cls(side, cases, completed)

    @property
    def scored(self) -> list[Pair]:
        return [case.pair for case in self.cases if case.refusal is None]

    @property
    def refused(self) -> list[dict[str, str]]:
        found = [(case.case_id, case.refusal) for case in self.cases if case.refusal is not None]
        return [{"case_id": case_id, "code": why.code, "message": why.message} for case_id, why in found]

    @property
    def notes(self) -> list[dict[str, str]]:
        return [{"case_id": case.case_id, "note": case.note} for case in self.cases if case.note]

    def trained_on(self, labels: object) -> tuple[dict[str, bool | None], dict[str, Any] | None]:
        """What is known of each case, and what ``metrics.json`` says of it."""
        known = trained_on(self.side.pairs, self.side.found, labels)
        return known, summarised(known, [pair.case_id for pair in self.scored])

    def judged(self, known: Mapping[str, bool | None]) -> dict[str, Any]:
        """What the judgements and volume intervals of the run that made the predictions are worth, where it has any."""
        if (run := self.side.found.run) is None:
            return {}
        judged = {pair.case_id: case for pair in self.scored if (case := run.case(pair.prediction.case_id))}
        learnt = [case for case, yes in known.items() if yes]
        limit = (run.trust.get("thresholds") or {}).get("accept")
        found = {
            "accepted": acceptances(judged, self.rows, bundle_dice=limit, learnt=learnt),
            "volume_intervals": volume_coverage(judged, self.rows, learnt),
        }
        return {key: value for key, value in found.items() if value is not None}


def _match(source: Path, truth: Collection, labels: str | Path | Mapping[int, str] | LabelScheme | None) -> _Side:
    found = collect(source, "predictions")
    pairs, unpaired = pair_up(found, truth)
    if not pairs:
        raise UsageError(
            f"no prediction in {source} has a reference in {truth.source}: predictions are called like "
            f"{sorted(found.files)[:2]}, references like {sorted(truth.files)[:2]}; file names must agree "
            "(what they are for, such as a trailing _seg, is ignored)"
        )
    return _Side(found, structures_of(labels, found, truth), pairs, unpaired)


def _groups(truth: Collection, key: str) -> dict[str, str]:
    groups = {case: str(file.attributes[key]) for case, file in truth.files.items() if key in file.attributes}
    if not groups:
        raise UsageError(f"no item of {truth.source} has {key!r}; subgroups need a reference datalist with that key")
    return groups


def _write(
    evaluated: list[_Evaluated],
    truth: Collection,
    groups: Mapping[str, str] | None,
    labels: str | Path | Mapping[int, str] | LabelScheme | None,
    tolerance_mm: float,
    output: Path,
    options: Options,
) -> EvaluationResult:
    first, *others = evaluated
    patients = {case: file.patient for case, file in truth.files.items()}
    known, learnt = first.trained_on(labels)
    summary = _header(first, truth, tolerance_mm, options)
    summary["n_patients"] = len({patients[pair.case_id] for pair in first.scored})
    summary["trained_on"] = learnt
    summary["warnings"] = [*first.side.found.warnings, *_warnings(first)]
    summary["structures"] = summarise_structures(first.rows, patients, options.bootstrap)
    if groups is not None:
        tables = subgroups(first.rows, groups, patients, options.bootstrap)
        summary["subgroups"] = {"column": options.group_by, "groups": tables}
    more = [percentile_name(p) for p in options.definitions.percentiles]
    known_figures = {
        name for row in first.rows for name in ("cldice", "ece", "ace") if row.values.get(name) is not None
    }
    more += [
        metric.name for metric in METRICS if not metric.csv and (options.all_metrics or metric.name in known_figures)
    ]
    if between := [one for case in first.cases for one in case.between]:
        names = {row.label: row.name for row in first.rows}
        between = [replace(one, row=replace(one.row, name=names.get(one.row.label, one.row.name))) for one in between]
        write_raters(output / RATERS_CSV, between)
        summary["raters"] = summarise_raters(between, patients, options.bootstrap)
    edges_ml = options.definitions.lesion_strata_ml
    if options.definitions.lesion_iou is not None:
        write_lesions(output / LESIONS_CSV, first.rows, edges_ml)
        summary["lesions"] = {
            name: summarise_lesions([one for row in first.rows if row.name == name for one in row.lesions], edges_ml)
            for name in summary["structures"]
        }
    summary |= first.judged(known)
    for second in others:
        summary["comparison"] = _comparison(first, second, patients, options.bootstrap)
        write_csv(output / "compared_metrics.csv", second.rows, more)
    summary |= {
        "unpaired": first.side.unpaired,
        "refused": first.refused,
        "notes": first.notes,
        "left_out": dict(first.side.found.left_out),
        "cases": [_files(pair) for pair in first.side.pairs],
    }
    write_csv(output / METRICS_CSV, first.rows, more, trained_on=known)
    write_json(output / METRICS_JSON, summary)
    return EvaluationResult(output, first.rows, summary)


def _header(evaluated: _Evaluated, truth: Collection, tolerance_mm: float, options: Options) -> dict[str, Any]:
    """What stands in ``metrics.json`` before the tables: what was compared, how, by which versions."""
    rows = evaluated.rows
    return {
        "medseg": medseg_version(),
        "predictions": str(evaluated.side.found.source),
        "references": str(truth.source),
        "n_cases": len(evaluated.scored),
        "n_scored": sum(not row.absent for row in rows),
        "n_missed": sum(row.missed for row in rows),
        "n_invented": sum(row.invented for row in rows),
        "n_not_annotated": sum(bool(row.not_scored) for row in rows),
        "n_unpaired": sum(len(cases) for cases in evaluated.side.unpaired.values()),
        "n_refused": len(evaluated.refused),
        "empty_masks": EMPTY_POLICY,
        "definitions": describe(options.definitions, tolerance_mm),
        "statistics": {
            "std": "of a sample (n - 1)",
            "ci95": "percentile bootstrap of the mean, whole patients drawn with replacement",
            **asdict(options.bootstrap),
        },
        "versions": {
            "medseg": medseg_version(),
            "python": platform.python_version(),
            **{library: version(library) for library in _LIBRARIES},
        },
    }


def _files(pair: Pair) -> dict[str, str]:
    """The files of a case; where its prediction's side calls it otherwise, that name, by which its run knows it."""
    files = {"case_id": pair.case_id, "prediction": str(pair.prediction.path), "reference": str(pair.reference.path)}
    other = pair.prediction.case_id
    return files if other == pair.case_id else {**files, "prediction_case_id": other}


def _comparison(
    first: _Evaluated, second: _Evaluated, patients: Mapping[str, str], bootstrap: Bootstrap
) -> dict[str, Any]:
    one_sided = {pair.case_id for pair in first.scored} ^ {pair.case_id for pair in second.scored}
    return {
        "predictions": str(second.side.found.source),
        "n_uncompared": len(one_sided),
        "uncompared": sorted(one_sided),
        "refused": second.refused,
        "notes": second.notes,
        "structures": summarise_structures(second.rows, patients, bootstrap),
        "tests": compare(first.rows, second.rows, patients, bootstrap=bootstrap),
        "trained_on": second.trained_on(None)[1],  # --labels speaks of the first model
    }


def _warnings(evaluated: _Evaluated) -> Iterator[str]:
    """What a person must know before believing the figures, although nothing went wrong."""
    structures, scored = evaluated.side.structures, evaluated.scored
    occur = {row.label: row.name for row in evaluated.rows if not row.absent}
    if not occur and not scored:
        yield f"no structure was scored: all {len(evaluated.side.pairs)} cases were refused"
    elif not occur:
        what = "look whether these are the label maps you meant, and whether their values survived"
        yield f"no structure was scored: all masks are empty on both sides; {what}"
    unknown = Counter(row.name for row in evaluated.rows if row.not_scored)
    if unknown:
        shown = listed([f"{name} in {count} case(s)" for name, count in unknown.items()], _SHOWN)
        yield f"not annotated, so not scored: {shown}"
    same = sum(pair.prediction.path.samefile(pair.reference.path) for pair in scored)
    if same:
        what = f"{same} of {len(scored)} predictions are the very files that they are compared with"
        yield f"{what}: their figures say nothing about a model"
    yield from structures.warnings
    never = [name for label, name in structures.names.items() if label not in occur]
    if occur and never:
        yield f"never on either side, so not scored: {listed(never, _SHOWN)}"
    unnamed = [label for label in occur if label not in structures.names] if structures.names else []
    if unnamed:
        yield f"values that no structure is named for are scored under their number: {listed(unnamed, _SHOWN)}"
