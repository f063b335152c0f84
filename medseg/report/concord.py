"""The page of ``medseg concord``: what several readers say of each case, in one colour each, worst agreement first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from medseg.evaluation.case import StructureResult
from medseg.evaluation.concordance import DEFINITIONS, Concord, Opinion
from medseg.evaluation.definitions import metric_named
from medseg.evaluation.matching import Matched
from medseg.evaluation.raters import Between
from medseg.files import write_text
from medseg.geometry import Geometry
from medseg.pictures import Layer
from medseg.report.collect import Case
from medseg.report.page import CaseRow, Page
from medseg.report.pictures import Pictures, plane, read_case, read_source
from medseg.report.tables import Cell, Column, Table, Tile, number, table

_MOST_PICTURED = 200
_MAPS = Path("label maps in memory")
_PAIR_FIGURES = ("dice", "hd95_mm", "assd_mm")
_ODD = "odd one out"

Maps = tuple[Mapping[str, NDArray[Any]], Geometry]
"""Label maps of a case by reader, and their grid."""


def write_concord(
    path: Path,
    readers: Sequence[str],
    cases: Sequence[Concord],
    structures: Sequence[Matched],
    summary: Mapping[str, Any],
    images: Mapping[str, Path | None],
    read: Mapping[str, Callable[[], Maps]],
    progress: Callable[[int, int], None],
) -> None:
    """Write the page: cases in the order given, the first 200 with pictures, one of them in memory at a time.

    ``images`` and ``read`` give, by case id, where its image lies and its label maps.
    """
    numbers = {reader: place for place, reader in enumerate(readers, start=1)}
    drawn = {}
    for done, case in enumerate(cases[:_MOST_PICTURED], start=1):
        drawn[case.case_id] = _pictures(case.case_id, images[case.case_id], read[case.case_id](), structures, numbers)
        progress(done, min(len(cases), _MOST_PICTURED))
    columns = _columns(numbers)
    rows = [
        CaseRow(
            _case(case, numbers),
            [column.cell(case) for column in columns],
            drawn.get(case.case_id, Pictures(missing=f"only the {_MOST_PICTURED} cases of worst agreement have some.")),
            _opinions(case, numbers),
            "",
            f"{case.case_id} {case.odd}".lower(),
            findings=_pairs(case),
        )
        for case in cases
    ]
    page = Page(
        "Concordance",
        kind="Compared without truth",
        facts=[("compared", ", ".join(readers)), ("structures", ", ".join(one.name for one in structures))],
        cautions=[*_cautions(summary)],
        tiles=_tiles(cases, summary),
        measured=True,
        table_title="Readers",
        structures=_readers(summary, numbers),
        more_tables=[
            ("Pairs", "Means over cases with the 95 % interval below.", _all_pairs(summary)),
            ("Matched structures", "What was taken for the same, and what told so.", _matched(structures, summary, readers)),
        ],
        looked_at="of greatest disagreement",
        columns=columns,
        cases=rows,
        statuses=["done"],
        names={place: reader for reader, place in numbers.items()},
        about=[(term.replace("_", " ").capitalize(), text) for term, text in DEFINITIONS.items()]
        + [("Pictures", "patient's right on your left, in sagittal slices anterior; a colour and a line for each")],
        apart=True,
    )  # fmt: skip
    write_text(path, page.render())


def _pictures(
    case_id: str, image: Path | None, maps: Maps, structures: Sequence[Matched], numbers: Mapping[str, int]
) -> Pictures:
    """Three planes at the slices in which most voxels are in dispute; all outlines of a reader have its colour."""
    arrays, grid = maps
    first = next(iter(arrays.values()))

    def reader(source: str | Path, name: str) -> tuple[NDArray[Any], Geometry]:
        return (first, grid) if source == _MAPS else read_source(source, name)

    volumes = read_case(Case(case_id, image=image, prediction=_MAPS), reader)
    if volumes is None:
        return Pictures()
    turn = nib.io_orientation(grid.affine)
    layers, dispute = [], np.zeros(volumes.prediction.shape, dtype=bool)
    for structure in structures:
        masks = {
            name: np.asarray(
                nib.orientations.apply_orientation(np.isin(arrays[name], structure.members[name].values), turn)
            )
            for name in structure.members
            if name in arrays
        }
        layers += [Layer(mask * np.uint8(numbers[name])) for name, mask in masks.items()]
        if masks:
            dispute |= np.any(list(masks.values()), axis=0) & ~np.all(list(masks.values()), axis=0)
    shown = dispute if dispute.any() else np.any([layer.labels > 0 for layer in layers], axis=0)
    made = [
        plane(
            volumes.affine,
            axis,
            int(np.argmax(np.count_nonzero(shown, axis=tuple({0, 1, 2} - {axis})))),
            volumes.image,
            layers,
        )
        for axis in (2, 1, 0)
    ]
    return Pictures(tuple(made), tuple(note.replace("the prediction", "the label maps") for note in volumes.notes))


def _case(case: Concord, numbers: Mapping[str, int]) -> Case:
    """Readers in place of structures: the page draws each in its colour."""
    own = {name: [one for one in case.opinions if one.reader == name] for name in numbers}
    structures = tuple(
        StructureResult(
            numbers[name],
            f"{name} ({_ODD})" if name == case.odd else name,
            {},
            missed=any(one.missed for one in said),
            invented=any(one.invented for one in said),
        )
        for name, said in own.items()
    )
    return Case(case.case_id, structures=structures)


def _figure(value: float | None, metric: str = "dice") -> Cell:
    return Cell(number(value, metric), "" if value is None else repr(float(value)))


def _columns(numbers: Mapping[str, int]) -> list[Column[Concord]]:
    def odd(case: Concord) -> Cell:
        return Cell(case.odd or "–", case.odd, tone="bad", swatch=numbers.get(case.odd))

    def apart(case: Concord) -> Cell:
        known = [value for one in case.between if (value := one.row.values["hd95_mm"]) is not None]
        return _figure(max(known, default=None), "hd95_mm")

    def flags(case: Concord) -> Cell:
        counts = {what: sum(getattr(one, what) for one in case.opinions) for what in ("missed", "invented")}
        text = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        return Cell(text or "–", str(sum(counts.values())))

    return [
        Column("Case", lambda case: Cell(case.case_id, case.case_id), False, "case"),
        Column("Odd one out", odd, False, "odd"),
        Column("Lowest agreement", lambda case: _figure(case.worst), key="worst"),
        Column("Mean Dice", lambda case: _figure(case.agreement), key="mean"),
        Column("Largest HD95 [mm]", apart, key="hd95", first="descending"),
        Column("Missed, invented", flags, key="flags", first="descending"),
    ]


def _opinions(case: Concord, numbers: Mapping[str, int]) -> Table:
    def flags(one: Opinion) -> Cell:
        named = [what for what, yes in ((_ODD, one.odd), ("missed", one.missed), ("invented", one.invented)) if yes]
        return Cell(pill=", ".join(named), tone="bad")

    columns: list[Column[Opinion]] = [
        Column("Structure", lambda one: Cell(one.structure), numeric=False),
        Column("Reader", lambda one: Cell(one.reader, swatch=numbers[one.reader]), numeric=False),
        Column("", flags, numeric=False),
        Column("Volume [ml]", lambda one: Cell(number(one.volume_ml, "volume_ml"))),
        Column("Agreement", lambda one: _figure(one.agreement)),
        Column("Estimated Dice", lambda one: _figure(one.estimated_dice)),
    ]
    return table(columns, case.opinions)


def _pairs(case: Concord) -> Table:
    columns: list[Column[Between]] = [
        Column("Pair", lambda one: Cell(f"{one.row.name}: {one.compared}, {one.reference}"), numeric=False),
        *(
            Column(metric_named(metric).title, partial(lambda one, of: _figure(one.row.values[of], of), of=metric))
            for metric in _PAIR_FIGURES
        ),
    ]
    return table(columns, case.between)


def _spread(found: Mapping[str, Any], metric: str = "dice") -> Cell:
    if found["mean"] is None:
        return Cell("–")
    limits = " to ".join(number(limit, metric) for limit in found["ci95"] or ())
    return Cell(
        number(found["mean"], metric),
        aside="" if found["std"] is None else f"± {number(found['std'], metric)}",
        notes=(limits,) if limits else (),
    )


def _readers(summary: Mapping[str, Any], numbers: Mapping[str, int]) -> Table:
    rows = [(name, what, found) for name, of in summary["readers"].items() for what, found in of.items()]
    columns: list[Column[tuple[str, str, Mapping[str, Any]]]] = [
        Column("Reader", lambda row: Cell(row[0], swatch=numbers[row[0]]), numeric=False),
        Column("Structure", lambda row: Cell(row[1]), numeric=False),
        Column("Estimated Dice", lambda row: _spread(row[2]["estimated_dice"])),
        Column("Agreement", lambda row: _spread(row[2]["agreement"])),
        Column("Volume [ml]", lambda row: _spread(row[2]["volume_ml"], "volume_ml")),
        Column("Odd one out", lambda row: Cell(str(row[2]["n_odd"]))),
        Column("Missed", lambda row: Cell(str(row[2]["n_missed"]), tone="bad" if row[2]["n_missed"] else "")),
        Column("Invented", lambda row: Cell(str(row[2]["n_invented"]), tone="bad" if row[2]["n_invented"] else "")),
    ]
    return table(columns, rows)


def _all_pairs(summary: Mapping[str, Any]) -> Table:
    rows = [(one, name, found) for one in summary["pairs"] for name, found in one["structures"].items()]
    nothing = {"mean": None}
    columns: list[Column[tuple[Mapping[str, Any], str, Mapping[str, Any]]]] = [
        Column("Pair", lambda row: Cell(f"{row[0]['compared']}, {row[0]['with']}"), numeric=False),
        Column("Structure", lambda row: Cell(row[1]), numeric=False),
        *(
            Column(
                metric_named(metric).title,
                partial(lambda row, of: _spread(row[2]["metrics"].get(of, nothing), of), of=metric),
            )
            for metric in _PAIR_FIGURES
        ),
        Column("One of them lacks it", lambda row: Cell(str(row[2]["n_missed"] + row[2]["n_invented"]))),
    ]
    return table(columns, rows)


def _matched(structures: Sequence[Matched], summary: Mapping[str, Any], readers: Sequence[str]) -> Table:
    rows: list[tuple[str, str, Mapping[str, str]]] = [
        (
            one.name,
            {"code": "coded terms", "name": "names", "table": "the table given"}[one.by],
            {name: f"{o.name} ({'+'.join(map(str, o.values))})" for name, o in one.members.items()},
        )
        for one in structures
    ]
    rows += [(name, "no partner", {who: name}) for who, names in summary["without_partner"].items() for name in names]
    columns: list[Column[tuple[str, str, Mapping[str, str]]]] = [
        Column("Structure", lambda row: Cell(row[0]), numeric=False),
        Column("Matched by", lambda row: Cell(row[1]), numeric=False),
        *(
            Column(name, partial(lambda row, who: Cell(row[2].get(who, "–")), who=name), numeric=False)
            for name in readers
        ),
    ]
    return table(columns, rows)


def _tiles(cases: Sequence[Concord], summary: Mapping[str, Any]) -> list[Tile]:
    known = [one.agreement for one in cases if one.agreement is not None]
    odd = sum(map(len, summary["odd_one_out"].values()))
    return [
        Tile(str(len(cases)), "cases compared"),
        Tile(number(float(np.mean(known)) if known else None, "dice"), "mean Dice", "over all pairs"),
        Tile(str(odd), "with an odd one out", tone="mid" if odd else "good"),
        *([Tile(str(len(summary["missing"])), "results missing", tone="bad")] if summary["missing"] else []),
        *([Tile(str(len(summary["refused"])), "refused", tone="bad")] if summary["refused"] else []),
    ]


def _cautions(summary: Mapping[str, Any]) -> list[str]:
    """What must be known before the figures are believed."""
    refused = [f"{one['case_id']} was refused ({one['code']})" for one in summary["refused"]]
    few = len(summary["readers"]) < 3
    said = "Two alone: who of them is right cannot be told, and no Dice is estimated."
    limit = "Agreement is not truth: an error that the readers share looks right, and estimated Dice is then too high."
    return [said if few else limit, *refused]
