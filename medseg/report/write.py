"""The report: one self-contained HTML page about an ``infer``, ``evaluate`` or ``train`` folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from medseg.files import write_text
from medseg.report.collect import Case, Locations, collect
from medseg.report.page import page_of
from medseg.report.pictures import Pictures, Reader, ViewerStore, library, planes, read_case
from medseg.report.training import read_training

REPORT_NAME = "report.html"
SIDE_FOLDER = "report_files"
"""Where ``viewer="always"`` puts volumes that are too large for the page."""

ViewerChoice = Literal["auto", "always", "never"]

_MOST_PICTURED = 400
_VIEWER_BUDGET_BYTES = 32 * 2**20


def write_report(
    folder: Path,
    *,
    images: Locations = None,
    references: Locations = None,
    title: str | None = None,
    viewer: ViewerChoice = "auto",
    reader: Reader | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write ``report.html`` into a folder that ``medseg infer``, ``evaluate`` (or both) or ``train`` filled.

    The page needs no server and no network. It names cases by their id only: no path, no header field of a
    source is copied into it. One case is in memory at a time.

    Parameters
    ----------
    folder
        Holds ``run.json``, or ``metrics.csv`` and ``metrics.json``, and the ``CASE_seg.nii.gz`` to show; or the
        ``run.json``, ``metrics.csv`` and ``samples/`` of a training, for which only ``title`` counts.
    images, references
        Folder, or path per case id, if the folder's own files do not say where images and references lie.
    title
        Heading; by default the name of the model, or plainly "Segmentation report".
    viewer
        ``"auto"``: the 3D and slice viewer for the worst cases, as many as fit into 32 MB inside the page;
        ``"always"``: for every case, what does not fit goes to ``report_files/`` beside the page; ``"never"``.
    reader
        Replaces the readers of :mod:`medseg.ingest`.
    progress
        Called with the number of cases looked at, and of all.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    UsageError
        If the folder holds nothing to report on, or a file in it is damaged.
    """
    if training := read_training(folder):
        write_text(folder / REPORT_NAME, training.page(title).render())
        return folder / REPORT_NAME
    study = collect(folder, images, references)
    store = None
    if viewer != "never":
        store = ViewerStore(folder / SIDE_FOLDER if viewer == "always" else None, _VIEWER_BUDGET_BYTES)
    pictures = {}
    for index, case in enumerate(study.cases):
        pictures[case.case_id] = _pictures(case, index, store, reader)
        if progress is not None:
            progress(index + 1, len(study.cases))
    used = any(p.inlined or p.side_file for p in pictures.values())
    heading = title or study.model.replace("_", " ").capitalize() or "Segmentation report"
    write_text(folder / REPORT_NAME, page_of(study, pictures, heading, library() if used else "").render())
    return folder / REPORT_NAME


def _pictures(case: Case, index: int, store: ViewerStore | None, reader: Reader | None) -> Pictures:
    if case.status != "done":
        return Pictures()
    if index >= _MOST_PICTURED and (store is None or store.folder is None):
        return Pictures(missing=f"only the worst {_MOST_PICTURED} cases have some.")
    volumes = read_case(case, reader)
    if volumes is None:
        return Pictures()
    inlined, side_file = store.add(f"v{index}", volumes) if store else ("", "")
    notes = volumes.notes
    if store and not inlined and not side_file:
        notes = (*notes, "No viewer for this case: the page is full. Write the report with --viewer always.")
    return Pictures(planes(volumes), notes, f"v{index}", inlined, side_file)
