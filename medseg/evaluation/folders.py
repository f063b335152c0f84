"""Evaluate a folder of predictions against a folder of references, case by case, in bounded memory.

What a person must know before believing an evaluation, although nothing went wrong in carrying it out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from medseg.errors import UsageError
from medseg.evaluation.case import StructureResult, absent_structure
from medseg.evaluation.definitions import METRICS, Definitions, percentile_name
from medseg.evaluation.pairing import Collection, collect, pair_up
from medseg.evaluation.scoring import Scored, Task, score_all
from medseg.evaluation.statistics import Bootstrap, compare, subgroups, summarise_structures
from medseg.evaluation.structure_names import Structures, structures_of
from medseg.evaluation.tables import Evaluated, header, lists_of_cases, write_csv
from medseg.evaluation.trained_on import summarised, trained_on
from medseg.files import prepare_folder, write_json
from medseg.geometry import POSITION_TOLERANCE_MM
from medseg.manifests import Part

Progress = Callable[[int, int, str], None]
"""Called after each case with: cases done, cases in all, the case id."""


@dataclass(frozen=True)
class Options:
    """How an evaluation is carried out, besides what it compares.

    Parameters
    ----------
    definitions
        Choices among definitions that differ in the field.
    bootstrap
        How confidence intervals are drawn.
    group_by
        Key of the reference datalist's items; adds a table per value of it.
    all_metrics
        Append the metrics that ``metrics.csv`` does not have by default, after its documented columns.
    workers
        Processes; 1 stays in this process. Above 1 the calling script needs ``if __name__ == "__main__":``.
    position_tolerance_mm
        How far the grids of prediction and reference may lie apart.
    part
        Which items of the references' datalist count; all by default.
    """

    definitions: Definitions = field(default_factory=Definitions)
    bootstrap: Bootstrap = field(default_factory=Bootstrap)
    group_by: str | None = None
    all_metrics: bool = False
    workers: int = 1
    position_tolerance_mm: float = POSITION_TOLERANCE_MM
    part: Part | None = None


@dataclass(frozen=True)
class EvaluationResult:
    """What :func:`evaluate_folders` found and wrote.

    Parameters
    ----------
    output
        The folder with ``metrics.csv`` and ``metrics.json``.
    results
        One row per case and structure.
    summary
        The content of ``metrics.json``.
    """

    output: Path
    results: list[StructureResult]
    summary: dict[str, Any]

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
    labels: str | Path | Mapping[int, str] | None = None,
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
    output
        Folder to write to.
    labels
        The declared structures: names by value, a JSON file, or a bundle's folder. Without it, what the
        references' datalist declares, else every value that occurs, named by what lies beside the label maps
        (:func:`~medseg.evaluation.structure_names.structures_of`).
    tolerance_mm
        Tolerance of the normalised surface distance.
    compare_with
        A second set of predictions, tested against the first on the same references.
    options
        Everything else.
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
    sources = [Path(predictions), *([Path(compare_with)] if compare_with is not None else [])]
    truth = _Truth(Path(references), collect(Path(references), "references", options.part), labels, tolerance_mm)
    plans = [_plan(source, truth, options) for source in sources]
    if options.group_by is not None:
        _groups(truth.found, options.group_by, truth.source)  # an unknown key is told before the work
    prepare_folder(output)  # an unusable place is told before the work, and not made for unusable input
    steps = _Steps(sum(len(plan.tasks) for plan in plans), progress)
    evaluated = [_evaluate(plan, options.workers, steps) for plan in plans]
    names = _names(plans[0].structures, [row for one in evaluated for row in one.results])
    evaluated = [_completed(one, names, options.definitions) for one in evaluated]
    return _write(evaluated, plans, truth, Path(output), options)


@dataclass(frozen=True)
class _Truth:
    """The side that is believed, and what was asked to be measured against it."""

    source: Path
    found: Collection
    labels: str | Path | Mapping[int, str] | None
    tolerance_mm: float

    @property
    def patients(self) -> dict[str, str]:
        return {case: file.patient for case, file in self.found.files.items()}


@dataclass(frozen=True)
class _Plan:
    source: Path
    found: Collection
    structures: Structures
    tasks: list[Task]
    unpaired: dict[str, list[str]]


def _plan(source: Path, truth: _Truth, options: Options) -> _Plan:
    found = collect(source, "predictions")
    pairs, unpaired = pair_up(found, truth.found)
    if not pairs:
        raise UsageError(
            f"no prediction in {source} has a reference in {truth.source}: predictions are called like "
            f"{sorted(found.files)[:2]}, references like {sorted(truth.found.files)[:2]}; file names must agree "
            "(what they are for, such as a trailing _seg, is ignored)"
        )
    structures = structures_of(truth.labels, (source, found), (truth.source, truth.found))
    settings = (structures.declared, truth.tolerance_mm, options.definitions, options.position_tolerance_mm)
    return _Plan(source, found, structures, [Task(pair, *settings) for pair in pairs], unpaired)


@dataclass
class _Steps:
    total: int
    progress: Progress | None
    done: int = 0

    def step(self, case_id: str) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total, case_id)


def _evaluate(plan: _Plan, workers: int, steps: _Steps) -> Evaluated:
    scored: list[Scored] = []
    for case in score_all(plan.tasks, workers):
        scored.append(case)
        steps.step(case.case_id)
    scored.sort(key=lambda case: case.case_id)
    return Evaluated(
        plan.source,
        [row for case in scored for row in case.results],
        plan.unpaired,
        [case.refusal for case in scored if case.refusal is not None],
        [task.pair for task in plan.tasks],
        [{"case_id": case.case_id, "note": case.note} for case in scored if case.note],
    )


def _names(structures: Structures, results: Iterable[StructureResult]) -> dict[int, str]:
    """Every structure of the tables: the declared ones, else those that have a name or occur."""
    if structures.declared is not None:
        return dict(structures.declared)
    occur = {row.label: row.name for row in results}
    return dict(sorted({**occur, **structures.names}.items()))


def _completed(evaluated: Evaluated, names: Mapping[int, str], definitions: Definitions) -> Evaluated:
    """Give every case a row for every structure, so that absent ones are counted, under the structure's name."""
    rows = {(row.case_id, row.label): row for row in evaluated.results}
    full = [
        replace(rows[pair.case_id, label], name=name)
        if (pair.case_id, label) in rows
        else absent_structure(label, name, definitions, case_id=pair.case_id)
        for pair in evaluated.scored
        for label, name in names.items()
    ]
    return replace(evaluated, results=full)


def _write(
    evaluated: Sequence[Evaluated], plans: Sequence[_Plan], truth: _Truth, output: Path, options: Options
) -> EvaluationResult:
    first, plan, patients = evaluated[0], plans[0], truth.patients
    summary = header(first, truth.source, truth.tolerance_mm, options.definitions, options.bootstrap)
    summary["n_patients"] = len({patients[pair.case_id] for pair in first.scored})
    learnt = trained_on(first.pairs, plan.found, truth.found, truth.labels)
    summary["trained_on"] = summarised(learnt, [pair.case_id for pair in first.scored])
    summary["warnings"] = [*plan.found.warnings, *warnings_of(first, plan.structures)]
    summary["structures"] = summarise_structures(first.results, patients, options.bootstrap)
    if options.group_by is not None:
        groups = _groups(truth.found, options.group_by, truth.source)
        tables = subgroups(first.results, groups, patients, options.bootstrap)
        summary["subgroups"] = {"column": options.group_by, "groups": tables}
    more = [metric.name for metric in METRICS if not metric.csv] if options.all_metrics else []
    more = [*(percentile_name(p) for p in options.definitions.percentiles), *more]
    for second, other in zip(evaluated[1:], plans[1:], strict=True):
        summary["comparison"] = _comparison(first, second, patients, options.bootstrap)
        known = trained_on(second.pairs, other.found, truth.found, None)  # --labels speaks of the first model
        summary["comparison"]["trained_on"] = summarised(known, [pair.case_id for pair in second.scored])
        write_csv(output / "compared_metrics.csv", second.results, more)
    summary.update(lists_of_cases(first, plan.found.left_out))
    write_csv(output / "metrics.csv", first.results, more, trained_on=learnt)
    write_json(output / "metrics.json", summary)
    return EvaluationResult(output, first.results, summary)


def _comparison(
    first: Evaluated, second: Evaluated, patients: Mapping[str, str], bootstrap: Bootstrap
) -> dict[str, Any]:
    one_sided = {pair.case_id for pair in first.scored} ^ {pair.case_id for pair in second.scored}
    return {
        "predictions": str(second.source),
        "n_uncompared": len(one_sided),
        "uncompared": sorted(one_sided),
        "refused": second.refused,
        "notes": second.notes,
        "structures": summarise_structures(second.results, patients, bootstrap),
        "tests": compare(first.results, second.results, patients, bootstrap=bootstrap),
    }


def _groups(truth: Collection, column: str, references: Path) -> dict[str, str]:
    groups = {case: str(file.attributes[column]) for case, file in truth.files.items() if column in file.attributes}
    if not groups:
        raise UsageError(f"no item of {references} has {column!r}; subgroups need a reference datalist with that key")
    return groups


_SHOWN = 8


def warnings_of(evaluated: Evaluated, structures: Structures) -> list[str]:
    """Sentences for ``metrics.json`` and the terminal; empty if there is nothing to say."""
    return [*_nothing_scored(evaluated), *_same_files(evaluated), *structures.warnings, *_values(evaluated, structures)]


def _nothing_scored(evaluated: Evaluated) -> Iterator[str]:
    if any(not row.absent for row in evaluated.results):
        return
    if not evaluated.scored:
        yield f"no structure was scored: all {len(evaluated.pairs)} cases were refused"
    else:
        yield (
            "no structure was scored: all masks are empty on both sides; look whether these are the label maps you "
            "meant, and whether their values survived"
        )


def _same_files(evaluated: Evaluated) -> Iterator[str]:
    same = [pair for pair in evaluated.scored if pair.prediction.samefile(pair.reference)]
    if same:
        yield (
            f"{len(same)} of {len(evaluated.scored)} predictions are the very files that they are compared with: their "
            "figures say nothing about a model"
        )


def _values(evaluated: Evaluated, structures: Structures) -> Iterator[str]:
    """Structures that occur nowhere, and values that occur but have no name."""
    occur = {row.label: row.name for row in evaluated.results if not row.absent}
    if not occur:
        return
    never = [name for label, name in structures.names.items() if label not in occur]
    if never:
        yield f"never on either side, so not scored: {', '.join(never[:_SHOWN])}{_more(never)}"
    unnamed = [label for label in occur if label not in structures.names] if structures.names else []
    if unnamed:
        shown = ", ".join(str(label) for label in unnamed[:_SHOWN])
        yield f"values that no structure is named for are scored under their number: {shown}{_more(unnamed)}"


def _more(things: list[str] | list[int]) -> str:
    return f" and {len(things) - _SHOWN} more" if len(things) > _SHOWN else ""
