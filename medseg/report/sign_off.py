"""The page to sign labels off: a picture of every image and label, its volumes and findings, a judgement to give.

The page works offline. A judgement stays in the browser until it is saved as ``signoff.csv``; put beside the page, that
file is where the next page starts from. A judgement on a label that has changed since does not count.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from medseg.errors import MedsegError, Refusal, UsageError
from medseg.evaluation.case import StructureResult
from medseg.files import write_text
from medseg.geometry import Geometry
from medseg.labels.label_map import LabelMap
from medseg.manifests import AuditFinding, AuditReport, Item, Manifest
from medseg.manifests.items import case_names
from medseg.manifests.layouts import path_checksum
from medseg.report.collect import Case
from medseg.report.page import CaseRow, Page, SignOff
from medseg.report.pictures import Pictures, ViewerStore, library, planes, read_case, read_source
from medseg.report.remedies import remedy
from medseg.report.tables import Cell, Column, Table, Tile, number, table
from medseg.tables import read_table

PAGE_NAME = "labels.html"
SIGN_OFF_NAME = "signoff.csv"
SIDE_FOLDER = "labels_files"
COLUMNS = ("case_id", "rater", "judgement", "note", "reviewer", "signed", "label_sha256")
"""Of the file in which judgements are kept."""

JUDGEMENTS = ("right", "wrong", "unsure")
_VIEWER_BUDGET_BYTES = 32 * 2**20
_VOLUMES_SHOWN = 4
_WORST = {"error": 0, "warning": 1, "note": 2}
_PILLS = {"error": "bad", "warning": "review", "note": ""}
_ABOUT = (
    (
        "Judgements",
        f"stay in this browser; save them as {SIGN_OFF_NAME} beside this page, and the next page starts there",
    ),
    ("A changed label", "is open again: its judgement was given on another file, known by its SHA-256 sum"),
    ("Pictures", "at the slice of largest area; patient's right on your left, in sagittal slices anterior"),
    ("Identity", "cases are named by their case id; where something is wrong with a file, its name is shown"),
)


@dataclass(frozen=True)
class Reviewed:
    """The page, and the state of the labels on it by judgement; ``open`` are those without one."""

    page: Path
    judgements: Mapping[str, int]
    refused: int


@dataclass(frozen=True)
class _Entry:
    """One label: of a case, by one rater where there are several."""

    case: Case
    rater: str
    labels: LabelMap | None
    pictures: Pictures
    findings: Sequence[AuditFinding]
    label_sum: str

    @property
    def grade(self) -> int:
        """0 for what is refused or has an error, then warnings, then notes, then nothing."""
        grades = [_WORST[finding.severity] for finding in self.findings]
        return 0 if self.case.status != "done" else min(grades, default=3)


def write_review(
    manifest: Manifest,
    folder: Path,
    *,
    audit: AuditReport | None = None,
    viewer: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Reviewed:
    """Write ``labels.html``: every label of a datalist over its image, to sign off.

    Parameters
    ----------
    manifest
        The datalist; cases without a label are left out. One case is in memory at a time.
    folder
        Where the page goes; a ``signoff.csv`` in it is taken up.
    audit
        Its findings stand beside the cases they are about.
    viewer
        Add the 3D and slice viewer for as many cases as fit into the page (32 MB), the worst first.
    progress
        Called with the number of cases looked at, and of all.

    Raises
    ------
    UsageError
        If the datalist has no label, or ``signoff.csv`` is damaged.
    """
    signed = _read_signed(folder / SIGN_OFF_NAME)
    findings = _by_case(audit)
    items = [item for _, _, item in manifest.items()]
    named = [(item, name) for item, name in zip(items, case_names(items), strict=True) if item.get("label")]
    if not named:
        raise UsageError("no item of the datalist has a label, so there is nothing to sign off; give one with labels")
    named.sort(key=lambda one: min((_WORST[finding.severity] for finding in findings[one[1]]), default=3))
    store = ViewerStore(None, _VIEWER_BUDGET_BYTES) if viewer else None
    entries: list[_Entry] = []
    for done, (item, case_id) in enumerate(named, start=1):
        entries += _entries(manifest, item, Case(case_id), findings[case_id], store)
        if progress is not None:
            progress(done, len(named))
    entries.sort(key=lambda entry: entry.grade)
    kept = [signed.get((entry.case.case_id, entry.rater), {}) for entry in entries]
    judgements = [
        row if row.get("judgement") in JUDGEMENTS and row.get("label_sha256") == entry.label_sum else {}
        for entry, row in zip(entries, kept, strict=True)
    ]
    changed = sum(bool(row.get("judgement")) and not valid for row, valid in zip(kept, judgements, strict=True))
    page = _page(manifest, entries, judgements, audit, changed)
    write_text(folder / PAGE_NAME, page.render())
    counts = Counter(row.get("judgement") or "open" for row in judgements)
    refused = sum(entry.case.status != "done" for entry in entries)
    return Reviewed(folder / PAGE_NAME, {word: counts[word] for word in (*JUDGEMENTS, "open")}, refused)


def _by_case(audit: AuditReport | None) -> dict[str, list[AuditFinding]]:
    found: dict[str, list[AuditFinding]] = defaultdict(list)
    for finding in audit.findings if audit else ():
        for case in finding.cases:
            found[case].append(finding)
    return found


def _read_signed(path: Path) -> dict[tuple[str, str], dict[str, str]]:
    rows = read_table(path).rows if path.is_file() else ()
    return {(row.get("case_id", ""), row.get("rater", "")): row for row in rows}


def _entries(
    manifest: Manifest, item: Item, case: Case, findings: Sequence[AuditFinding], store: ViewerStore | None
) -> Iterator[_Entry]:
    label_sum = _label_sum(manifest, item)
    try:
        maps = manifest.label_maps(item)
    except MedsegError as error:
        code = error.code if isinstance(error, Refusal) else "missing-file"
        refused = replace(case, status="refused", reason=code, message=_without_paths(str(error), manifest))
        yield _Entry(refused, "", None, Pictures(), findings, label_sum)
        return
    names = manifest.scheme.values
    for rater, labels in maps.items():
        structures = tuple(
            StructureResult(value, names.get(value, str(value)), {"volume_ml": volume}, case_id=case.case_id)
            for value, volume in labels.volumes_ml.items()
        )
        drawn = replace(case, structures=structures, image=_image(manifest, item), prediction=Path("label"))
        key = f"v{hashlib.sha256(f'{case.case_id} {rater}'.encode()).hexdigest()[:12]}"
        yield _Entry(drawn, rater, labels, _pictures(drawn, labels, key, store), findings, label_sum)


def _image(manifest: Manifest, item: Item) -> Path | None:
    return next((path for path in manifest.files(item, "image") if path.exists()), None)


def _pictures(case: Case, labels: LabelMap, key: str, store: ViewerStore | None) -> Pictures:
    def read(source: str | Path, case_id: str) -> tuple[Any, Geometry]:
        return (labels.array, labels.geometry) if source == case.prediction else read_source(source, case_id)

    volumes = read_case(case, read)
    if volumes is None:
        return Pictures(missing="the label could not be drawn.")
    inlined = store.add(key, volumes)[0] if store else ""
    notes = (note.replace("the prediction", "the label") for note in volumes.notes)
    return Pictures(planes(volumes), (*labels.notes, *notes), key, inlined)


def _label_sum(manifest: Manifest, item: Item) -> str:
    """One SHA-256 sum for all files of a label, as they are now; empty if one is missing."""
    files = manifest.files(item, "label")
    if not all(path.exists() for path in files):
        return ""
    sums = [path_checksum(path) for path in files]
    return sums[0] if len(sums) == 1 else hashlib.sha256("\n".join(sums).encode()).hexdigest()


def _without_paths(message: str, manifest: Manifest) -> str:
    return message.replace(f"{manifest.dataset_dir}/", "")


def _page(
    manifest: Manifest,
    entries: Sequence[_Entry],
    judgements: Sequence[Mapping[str, str]],
    audit: AuditReport | None,
    changed: int,
) -> Page:
    names = _names(manifest, entries)
    columns = _columns(names, several=any(entry.rater for entry in entries))
    whole = [finding for finding in (audit.findings if audit else ()) if not finding.cases]
    cautions = [f"{one.message}: {one.remedy}." for one in whole if one.severity != "note"]
    if changed:
        cautions.append(f"Labels changed since they were signed off, and open again: {changed}.")
    rows = [
        CaseRow(
            entry.case,
            [column.cell(entry) for column in columns],
            entry.pictures,
            _volumes(entry),
            _message(entry.case),
            " ".join([entry.case.case_id, entry.rater, *(one.code for one in entry.findings)]).lower(),
            findings=_findings(entry.findings),
            key=f"{entry.case.case_id}\n{entry.rater}",
        )
        for entry in entries
    ]
    state = [
        dict.fromkeys(COLUMNS, "")
        | {key: value for key, value in row.items() if key in COLUMNS}
        | {"case_id": entry.case.case_id, "rater": entry.rater, "label_sha256": entry.label_sum}
        for entry, row in zip(entries, judgements, strict=True)
    ]
    return Page(
        str(manifest.content.get("name") or "Labels").replace("_", " "),
        kind="Labels to sign off",
        facts=[("labels", str(len(entries))), ("structures", ", ".join(names.values()) or "none")],
        tiles=_tiles(entries),
        cautions=cautions,
        table_title="Structures",
        structures=_structures(entries, names),
        columns=columns,
        cases=rows,
        statuses=sorted({entry.case.status for entry in entries}),
        names=names,
        library=library() if any(entry.pictures.inlined for entry in entries) else "",
        about=_ABOUT,
        sign_off=SignOff(json.dumps(state).replace("<", "\\u003c").replace("&", "\\u0026"), SIGN_OFF_NAME, JUDGEMENTS),
    )


def _names(manifest: Manifest, entries: Sequence[_Entry]) -> dict[int, str]:
    declared = {value: name for value, name in manifest.scheme.values.items() if value}
    found = {s.label: s.name for entry in entries for s in entry.case.structures}
    return dict(sorted({**found, **declared}.items()))


def _message(case: Case) -> str:
    return case.message if case.message or case.status == "done" else " ".join(remedy(case.reason)).strip()


def _columns(names: Mapping[int, str], *, several: bool) -> list[Column[Any]]:
    columns: list[Column[Any]] = [
        Column("Case", lambda one: Cell(one.case.case_id, one.case.case_id), numeric=False, key="case")
    ]
    if several:
        columns.append(Column("Rater", lambda one: Cell(one.rater, one.rater), numeric=False, key="rater"))
    for label, name in list(names.items())[:_VOLUMES_SHOWN]:
        columns.append(Column(f"{name} (ml)", partial(_volume, label=label), key=f"v{label}"))
    columns.append(Column("Findings", _worst, numeric=False, key="findings"))
    return [*columns, Column("Judgement", lambda _: Cell(), numeric=False, key="judgement")]


def _volume(entry: _Entry, label: int) -> Cell:
    found = {s.label: s.values.get("volume_ml") for s in entry.case.structures}.get(label)
    return Cell(number(found, "volume_ml"), "" if found is None else repr(float(found)))


def _worst(entry: _Entry) -> Cell:
    if entry.case.status != "done":
        return Cell(sort="0", pill=entry.case.reason, tone="bad")
    if not entry.findings:
        return Cell("none", "3")
    worst = min(entry.findings, key=lambda one: _WORST[one.severity])
    more = len({one.code for one in entry.findings}) - 1
    grade = str(_WORST[worst.severity])
    return Cell(sort=grade, pill=worst.code, tone=_PILLS[worst.severity], notes=(f"and {more} more",) if more else ())


def _findings(findings: Sequence[AuditFinding]) -> Table:
    columns: list[Column[AuditFinding]] = [
        Column("Finding", lambda one: Cell(pill=one.code, tone=_PILLS[one.severity]), numeric=False),
        Column("Found", lambda one: Cell(one.message), numeric=False),
        Column("What to do", lambda one: Cell(one.remedy), numeric=False),
    ]
    return table(columns, findings)


def _volumes(entry: _Entry) -> Table:
    voxels = entry.labels.values.voxels if entry.labels else {}
    columns: list[Column[StructureResult]] = [
        Column("Structure", lambda one: Cell(one.name, swatch=one.label), numeric=False),
        Column("Volume (ml)", lambda one: Cell(number(one.values.get("volume_ml"), "volume_ml"))),
        Column("Voxels", lambda one: Cell(str(voxels.get(one.label, 0)))),
    ]
    return table(columns, entry.case.structures)


def _structures(entries: Sequence[_Entry], names: Mapping[int, str]) -> Table:
    volumes: dict[int, list[float]] = {label: [] for label in names}
    for entry in entries:
        for one in entry.case.structures:
            volumes[one.label].append(one.values["volume_ml"] or 0.0)

    def spread(label: int) -> Cell:
        found = volumes[label]
        if not found:
            return Cell("–")
        low, middle, high = (number(float(value), "volume_ml") for value in np.percentile(found, (0, 50, 100)))
        return Cell(middle, aside=f"{low} to {high}")

    columns: list[Column[int]] = [
        Column("Structure", lambda label: Cell(names[label], swatch=label), numeric=False),
        Column("Value", lambda label: Cell(str(label))),
        Column("Labels with it", lambda label: Cell(f"{len(volumes[label])} of {len(entries)}")),
        Column("Median volume (ml), least to most", spread),
    ]
    return table(columns, names)


def _tiles(entries: Sequence[_Entry]) -> list[Tile]:
    tiles = [Tile(str(len({entry.case.case_id for entry in entries})), "cases")]
    for grade, what, tone in ((0, "with an error", "bad"), (1, "with a warning", "mid")):
        count = sum(entry.grade == grade for entry in entries)
        tiles.append(Tile(str(count), what, tone=tone if count else "good"))
    return tiles
