"""Evaluate a folder of predictions against a folder of references, case by case, in bounded memory."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from medseg.errors import CaseFailed, Refusal, UsageError
from medseg.evaluation.case import StructureResult, absent_structure, evaluate_case
from medseg.evaluation.definitions import METRICS, Definitions, percentile_name
from medseg.evaluation.pairing import Collection, Pair, collect, pair_up, read_labels
from medseg.evaluation.reading import read_label_map
from medseg.evaluation.statistics import Bootstrap, compare, subgroups, summarise_structures
from medseg.evaluation.tables import Evaluated, header, lists_of_cases, write_csv
from medseg.files import write_json
from medseg.geometry import POSITION_TOLERANCE_MM

__all__ = ["EvaluationResult", "Options", "evaluate_folders"]

Progress = Callable[[int, int, str], None]
"""Called after each case with: cases done, cases in all, the case id."""

_POOL_PAYS_AFTER_SECONDS = 3.0
"""Starting workers takes seconds; small cases are finished by then."""


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
    """

    definitions: Definitions = field(default_factory=Definitions)
    bootstrap: Bootstrap = field(default_factory=Bootstrap)
    group_by: str | None = None
    all_metrics: bool = False
    workers: int = 1
    position_tolerance_mm: float = POSITION_TOLERANCE_MM


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
        """Whether every case had a partner and could be scored."""
        compared = self.summary.get("comparison", {"n_uncompared": 0})
        return not (self.summary["n_unpaired"] or self.summary["n_refused"] or compared["n_uncompared"])


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
        Folders of label maps, or datalists; paired by case id, ``_seg`` ignored.
    output
        Folder to write to.
    labels
        The declared structures: names by value, a JSON file, or a bundle's folder. Without it, what the
        references' datalist declares, else every value that occurs.
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
    CaseFailed
        If a worker process dies.
    """
    options = options or Options()
    truth = collect(Path(references), "references")
    declared = _declared(labels, truth)
    runs = [Path(predictions), *([Path(compare_with)] if compare_with is not None else [])]
    plans = [_plan(source, truth, declared, tolerance_mm, options) for source in runs]
    steps = _Steps(sum(len(plan.tasks) for plan in plans), progress)
    evaluated = [_evaluate(plan, options.workers, steps) for plan in plans]
    names = declared or _found([row for one in evaluated for row in one.results])
    evaluated = [_completed(one, names, options.definitions) for one in evaluated]
    return _write(evaluated, truth, Path(output), Path(references), tolerance_mm, options)


def _declared(labels: str | Path | Mapping[int, str] | None, truth: Collection) -> dict[int, str] | None:
    if isinstance(labels, Mapping):
        return {int(label): name for label, name in labels.items() if label != 0}
    if labels is not None:
        return read_labels(Path(labels))
    return {label: name for label, name in truth.labels.items() if label != 0} or None


@dataclass(frozen=True)
class _Task:
    """What a worker needs to score one case."""

    pair: Pair
    labels: Mapping[int, str] | None
    tolerance_mm: float
    definitions: Definitions
    position_tolerance_mm: float


@dataclass(frozen=True)
class _Plan:
    source: Path
    tasks: list[_Task]
    unpaired: dict[str, list[str]]


@dataclass(frozen=True)
class _Scored:
    case_id: str
    results: list[StructureResult]
    refusal: dict[str, str] | None = None


def _plan(
    source: Path, truth: Collection, labels: Mapping[int, str] | None, tolerance_mm: float, options: Options
) -> _Plan:
    pairs, unpaired = pair_up(collect(source, "predictions"), truth)
    if not pairs:
        raise UsageError(
            f"no prediction in {source} has a reference: predictions are called like {unpaired['predictions'][:2]}, "
            f"references like {unpaired['references'][:2]}; file names must agree (a trailing _seg is ignored)"
        )
    tasks = [_Task(pair, labels, tolerance_mm, options.definitions, options.position_tolerance_mm) for pair in pairs]
    return _Plan(source, tasks, unpaired)


def _score(task: _Task) -> _Scored:
    """Score one case; a refusal is a result, so that one bad file does not stop the others."""
    case_id = task.pair.case_id
    try:
        prediction, grid = read_label_map(task.pair.prediction)
        reference, reference_grid = read_label_map(task.pair.reference)
        apart_mm = grid.displacement_mm(reference_grid)
        if apart_mm > task.position_tolerance_mm:
            raise Refusal(
                "geometry-mismatch",
                f"the prediction's grid ({grid.describe()}) lies up to {apart_mm:.3g} mm from the reference's "
                f"({reference_grid.describe()}); resample the prediction to the reference's grid",
            )
        results = evaluate_case(
            prediction,
            reference,
            reference_grid.spacing_mm,
            task.labels,
            task.tolerance_mm,
            definitions=task.definitions,
            axes_mm=reference_grid.affine[:3, :3],
        )
    except Refusal as refusal:
        return _Scored(case_id, [], {"case_id": case_id, "code": refusal.code, "message": refusal.message})
    return _Scored(case_id, [replace(row, case_id=case_id) for row in results])


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
    scored: list[_Scored] = []
    for case in _scores(plan.tasks, workers):
        scored.append(case)
        steps.step(case.case_id)
    scored.sort(key=lambda case: case.case_id)
    return Evaluated(
        plan.source,
        [row for case in scored for row in case.results],
        plan.unpaired,
        [case.refusal for case in scored if case.refusal is not None],
        [task.pair for task in plan.tasks],
    )


def _scores(tasks: Sequence[_Task], workers: int) -> Iterator[_Scored]:
    """Score in this process first; hand the rest to a pool only if it takes long enough to be worth one."""
    start = time.monotonic()
    for done, task in enumerate(tasks):
        if workers > 1 and len(tasks) - done > 1 and time.monotonic() - start > _POOL_PAYS_AFTER_SECONDS:
            yield from _scores_in_pool(tasks[done:], workers)
            return
        yield _score(task)


def _scores_in_pool(tasks: Sequence[_Task], workers: int) -> Iterator[_Scored]:
    """At most two cases per worker are under way, so memory does not grow with the number of cases."""
    waiting = iter(tasks)
    with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=multiprocessing.get_context("spawn")) as pool:
        pending: set[Future[_Scored]] = set()
        try:
            for task in waiting:
                pending.add(pool.submit(_score, task))
                if len(pending) >= 2 * workers:
                    finished, pending = wait(pending, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in finished)
            yield from (future.result() for future in pending)
        except BrokenProcessPool as error:
            raise CaseFailed(
                "a worker process died, most likely for want of memory; nothing was written; use fewer workers"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _found(results: Iterable[StructureResult]) -> dict[int, str]:
    return dict(sorted({row.label: row.name for row in results}.items()))


def _completed(evaluated: Evaluated, names: Mapping[int, str], definitions: Definitions) -> Evaluated:
    """Give every case a row for every structure, so that absent ones are counted."""
    rows = {(row.case_id, row.label): row for row in evaluated.results}
    full = [
        rows.get((pair.case_id, label)) or absent_structure(label, name, definitions, case_id=pair.case_id)
        for pair in evaluated.scored
        for label, name in names.items()
    ]
    return replace(evaluated, results=full)


def _write(
    evaluated: Sequence[Evaluated],
    truth: Collection,
    output: Path,
    references: Path,
    tolerance_mm: float,
    options: Options,
) -> EvaluationResult:
    first = evaluated[0]
    patients = {case: file.patient for case, file in truth.files.items()}
    summary = header(first, references, tolerance_mm, options.definitions, options.bootstrap)
    summary["n_patients"] = len({patients[row.case_id] for row in first.results})
    summary["structures"] = summarise_structures(first.results, patients, options.bootstrap)
    if options.group_by is not None:
        groups = _groups(truth, options.group_by, references)
        tables = subgroups(first.results, groups, patients, options.bootstrap)
        summary["subgroups"] = {"column": options.group_by, "groups": tables}
    more = [metric.name for metric in METRICS if not metric.csv] if options.all_metrics else []
    more = [*(percentile_name(p) for p in options.definitions.percentiles), *more]
    for second in evaluated[1:]:
        one_sided = {pair.case_id for pair in first.scored} ^ {pair.case_id for pair in second.scored}
        summary["comparison"] = {
            "predictions": str(second.source),
            "n_uncompared": len(one_sided),
            "uncompared": sorted(one_sided),
            "refused": second.refused,
            "structures": summarise_structures(second.results, patients, options.bootstrap),
            "tests": compare(first.results, second.results, patients, bootstrap=options.bootstrap),
        }
        write_csv(output / "compared_metrics.csv", second.results, more)
    summary.update(lists_of_cases(first))
    write_csv(output / "metrics.csv", first.results, more)
    write_json(output / "metrics.json", summary)
    return EvaluationResult(output, first.results, summary)


def _groups(truth: Collection, column: str, references: Path) -> dict[str, str]:
    groups = {case: str(file.attributes[column]) for case, file in truth.files.items() if column in file.attributes}
    if not groups:
        raise UsageError(f"no item of {references} has {column!r}; subgroups need a reference datalist with that key")
    return groups
