"""Score pairs of label maps on one grid, in this process or in several, with bounded memory.

Label maps from files.

Two ways of storing one grid: axes in another order or direction are undone without touching a value.

Score pairs of label maps, in this process or in several, with at most two cases per worker in memory.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from medseg import labels
from medseg.errors import CaseFailed, Refusal
from medseg.evaluation.case import StructureResult, evaluate_case
from medseg.evaluation.definitions import Definitions
from medseg.evaluation.pairing import Pair
from medseg.geometry import Geometry


def read_label_map(path: Path, mapping: Mapping[int, int] | None = None) -> tuple[NDArray[Any], Geometry]:
    """The labels (axes i, j, k) and the grid of a label map; see :func:`medseg.labels.read_label_map`.

    Raises
    ------
    Refusal
        What makes it no label map; ``unreadable`` if the file is missing, so that one missing file does not stop the
        other cases.
    """
    found = labels.read_label_map(path, mapping=mapping)
    return found.array, found.geometry


def along(array: NDArray[Any], grid: Geometry, target: Geometry) -> tuple[NDArray[Any], Geometry]:
    """Permute and flip the axes of a volume so that they run as closely as possible like ``target``'s.

    No value is interpolated and every voxel stays at its place in the patient.

    Returns
    -------
    array, Geometry
        A view of the volume and its new grid; both unchanged if the axes run that way already.
    """
    turn = nib.io_orientation(np.linalg.solve(target.affine, grid.affine))
    if np.array_equal(turn, [[0, 1], [1, 1], [2, 1]]):
        return array, grid
    turned = np.asarray(nib.orientations.apply_orientation(array, turn))
    return turned, Geometry(turned.shape, grid.affine @ nib.orientations.inv_ornt_aff(turn, array.shape))


POOL_PAYS_AFTER_SECONDS = 3.0
"""Starting workers takes seconds; small cases are finished by then."""


@dataclass(frozen=True)
class Task:
    """What a worker needs to score one case."""

    pair: Pair
    labels: Mapping[int, str] | None
    tolerance_mm: float
    definitions: Definitions
    position_tolerance_mm: float


@dataclass(frozen=True)
class Scored:
    """Rows of one case, or why there are none; ``note`` is what was done to the prediction before."""

    case_id: str
    results: list[StructureResult]
    refusal: dict[str, str] | None = None
    note: str = ""


def score_all(tasks: Sequence[Task], workers: int) -> Iterator[Scored]:
    """Score in this process first; hand the rest to a pool only if it takes long enough to be worth one."""
    start = time.monotonic()
    for done, task in enumerate(tasks):
        if workers > 1 and len(tasks) - done > 1 and time.monotonic() - start > POOL_PAYS_AFTER_SECONDS:
            yield from _in_pool(tasks[done:], workers)
            return
        yield _score(task)


def _score(task: Task) -> Scored:
    """Score one case; a refusal is a result, so that one bad file does not stop the others."""
    case_id = task.pair.case_id
    try:
        prediction, grid = read_label_map(task.pair.prediction, task.pair.prediction_mapping)
        reference, reference_grid = read_label_map(task.pair.reference, task.pair.reference_mapping)
        prediction, note = _on_grid(prediction, grid, reference_grid, task.position_tolerance_mm)
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
        return Scored(case_id, [], {"case_id": case_id, "code": refusal.code, "message": refusal.message})
    return Scored(case_id, [replace(row, case_id=case_id) for row in results], note=note)


def _on_grid(
    prediction: NDArray[Any], grid: Geometry, reference: Geometry, tolerance_mm: float
) -> tuple[NDArray[Any], str]:
    """The prediction on the reference's grid, and what was done for it; refused where that needs interpolation."""
    if grid.displacement_mm(reference) <= tolerance_mm:
        return prediction, ""
    turned, turned_grid = along(prediction, grid, reference)
    if turned_grid.displacement_mm(reference) <= tolerance_mm:
        return turned, (
            f"the prediction's axes ({grid.orientation}) were put in the order and direction of the reference's "
            f"({reference.orientation}); no value was changed"
        )
    raise Refusal("geometry-mismatch", _mismatch(grid, turned_grid, reference))


def _mismatch(grid: Geometry, turned: Geometry, reference: Geometry) -> str:
    """How far apart two grids are, in mm, whatever the order of their axes and their sizes."""
    found = f"the prediction's grid ({grid.describe()})"
    expected = f"the reference's ({reference.describe()})"
    if turned.shape == reference.shape:
        apart_mm = turned.displacement_mm(reference)
        return f"{found} lies up to {apart_mm:.3g} mm from {expected}; resample the prediction to the reference's grid"
    corners = turned.corners_mm() - reference.corners_mm()
    apart_mm = float((corners**2).sum(axis=1).max() ** 0.5)
    return (
        f"{found} has another number of voxels than {expected}, and their outer corners lie up to {apart_mm:.3g} mm "
        "apart; resample the prediction to the reference's grid"
    )


def _in_pool(tasks: Sequence[Task], workers: int) -> Iterator[Scored]:
    """At most two cases per worker are under way, so memory does not grow with the number of cases."""
    waiting = iter(tasks)
    with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=multiprocessing.get_context("spawn")) as pool:
        pending: set[Future[Scored]] = set()
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
