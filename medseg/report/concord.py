"""The page of ``medseg concord``: what several readers say of each case, in one colour each, worst agreement first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from medseg.evaluation.case import StructureResult
from medseg.evaluation.concordance import DEFINITIONS, Concord, Opinion
from medseg.evaluation.definitions import metric_named
from medseg.evaluation.matching import Matched, Offered
from medseg.evaluation.raters import Between
from medseg.files import write_text
from medseg.geometry import Geometry
from medseg.pictures import Layer
from medseg.report.collect import Case
from medseg.report.page import CaseRow, Page
from medseg.report.pictures import Pictures, plane, read_case, read_source
from medseg.report.tables import Cell, Column, Table, Tile, averaged, number, table

_MOST_PICTURED = 200
_IN_MEMORY = Path("label maps in memory")
_FIGURES = ("dice", "hd95_mm", "assd_mm")
_ODD = "odd one out"
_SHARED = (
    "Agreement is not truth: errors that readers share look right, and alike readers share many. Estimated Dice is "
    "therefore too high; it tells who fails, not who is best."
)
_TWO = "Two alone: which of them is right cannot be told, and no Dice is estimated."
_MATCHED_BY = {"code": "coded terms", "name": "names", "table": "the table given"}

Maps = tuple[Mapping[str, NDArray[Any]], Geometry]
"""Label maps of a case by reader, and their grid."""


def write_concord(
    path: Path,
    cases: Sequence[Concord],
    structures: Sequence[Matched],
    summary: Mapping[str, Any],
    images: Mapping[str, Path | None],
    read: Callable[[str], Maps],
    progress: Callable[[int, int], None],
) -> None:
    """Write the page: cases in the order given, the first 200 with pictures, one of them in memory at a time.

    ``summary`` is the content of ``concord.json``; ``images`` says by case id where its image lies, ``read`` gives its
    label maps.
    """
    numbers = {one["name"]: place for place, one in enumerate(summary["compared"], start=1)}
    drawn = {}
    for done, case in enumerate(cases[:_MOST_PICTURED], start=1):
        drawn[case.case_id] = _pictures(case.case_id, images.get(case.case_id), read(case.case_id), structures, numbers)
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
    refused = [f"{one['case_id']} was refused ({one['code']})." for one in summary["refused"]]
    told = {term.replace("_", " ").capitalize(): text for term, text in DEFINITIONS.items()}
    page = Page(
        "Concordance",
        kind="Compared without truth",
        facts=[("compared", ", ".join(numbers)), ("structures", ", ".join(one.name for one in structures))],
        cautions=[_SHARED if len(numbers) > 2 else _TWO, *refused],
        tiles=_tiles(cases, summary),
        measured=True,
        table_title="Readers",
        structures=_readers(summary, numbers),
        more_tables=[("Pairs", _all_pairs(summary)), ("Matched structures", _matched(structures, summary, numbers))],
        looked_at="of greatest disagreement",
        columns=columns,
        cases=rows,
        statuses=["done"],
        names={place: reader for reader, place in numbers.items()},
        about=[
            *told.items(),
            ("Pictures", "patient's right on your left; a colour and a kind of line for each reader"),
        ],
        apart=True,
    )
    write_text(path, page.render())


def _pictures(
    case_id: str, image: Path | None, maps: Maps, structures: Sequence[Matched], numbers: Mapping[str, int]
) -> Pictures:
    """Three planes at the slices in which most voxels are in dispute; all outlines of a reader have its colour."""
    arrays, grid = maps

    def reader(source: str | Path, name: str) -> tuple[NDArray[Any], Geometry]:
        return (next(iter(arrays.values())), grid) if source == _IN_MEMORY else read_source(source, name)

    volumes = read_case(Case(case_id, image=image, prediction=_IN_MEMORY), reader)
    if volumes is None:
        return Pictures()
    turn = nib.io_orientation(grid.affine)
    turned = {name: np.asarray(nib.orientations.apply_orientation(array, turn)) for name, array in arrays.items()}
    common = [one for one in structures if turned.keys() <= one.members.keys()] or structures
    numbered = [_numbered(array, [one.members.get(name) for one in common]) for name, array in turned.items()]
    marked, dispute = numbered[0] > 0, np.zeros(volumes.prediction.shape, dtype=bool)
    for other in numbered[1:]:
        marked |= other > 0
        dispute |= other != numbered[0]
    planes = []
    for axis in (2, 1, 0):
        counts = np.count_nonzero(dispute if dispute.any() else marked, axis=tuple({0, 1, 2} - {axis}))
        index = int(np.argmax(counts))
        layers = [
            Layer(np.isin(np.take(turned[name], index, axis), own.values) * np.uint8(numbers[name]))
            for one in structures
            for name, own in one.members.items()
            if name in turned
        ]
        planes.append(plane(volumes, axis, index, layers, marked))
    return Pictures(tuple(planes), tuple(note.replace("the prediction", "the label maps") for note in volumes.notes))


def _numbered(array: NDArray[Any], structures: Sequence[Offered | None]) -> NDArray[np.uint16]:
    """The label map with the number of each structure as its value; of structures that overlap the last one counts."""
    values = np.zeros(int(array.max()) + 1, np.uint16)
    for place, one in enumerate(structures, start=1):
        values[[value for value in (one.values if one else ()) if value < len(values)]] = place
    return values[array]


def _case(case: Concord, numbers: Mapping[str, int]) -> Case:
    """Readers in place of structures: the page draws each in its colour."""
    said = {name: [one for one in case.opinions if one.reader == name] for name in numbers}
    structures = tuple(
        StructureResult(
            numbers[name],
            f"{name} ({_ODD})" if name == case.odd else name,
            {},
            missed=any(one.missed for one in own),
            invented=any(one.invented for one in own),
        )
        for name, own in said.items()
    )
    return Case(case.case_id, structures=structures)


def _columns(numbers: Mapping[str, int]) -> list[Column[Concord]]:
    def flags(case: Concord) -> Cell:
        counts = {what: sum(getattr(one, what) for one in case.opinions) for what in ("missed", "invented")}
        text = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        return Cell(text or "–", str(sum(counts.values())))

    return [
        Column("Case", lambda case: Cell(case.case_id, case.case_id), False, "case"),
        Column("Odd one out", lambda case: Cell(case.odd or "–", case.odd, swatch=numbers.get(case.odd)), False, "odd"),
        Column("Lowest agreement", lambda case: _figure(case.worst), key="worst"),
        Column("Mean Dice", lambda case: _figure(case.agreement), key="mean"),
        Column("Largest HD95 [mm]", lambda case: _figure(case.apart_mm, "hd95_mm"), key="hd95", first="descending"),
        Column("Missed, invented", flags, key="flags", first="descending"),
    ]


def _figure(value: float | None, metric: str = "dice") -> Cell:
    return Cell(number(value, metric), "" if value is None else repr(float(value)))


def _table(words: Mapping[str, Callable[[Any], Cell]], figures: Mapping[str, Any], rows: Iterable[Any]) -> Table:
    columns = [Column(head, cell, numeric=False) for head, cell in words.items()]
    return table([*columns, *(Column(head, cell) for head, cell in figures.items())], rows)


def _opinions(case: Concord, numbers: Mapping[str, int]) -> Table:
    def flags(one: Opinion) -> Cell:
        named = [what for what, yes in ((_ODD, one.odd), ("missed", one.missed), ("invented", one.invented)) if yes]
        return Cell(pill=", ".join(named), tone="bad")

    words: dict[str, Callable[[Opinion], Cell]] = {
        "Structure": lambda one: Cell(one.structure),
        "Reader": lambda one: Cell(one.reader, swatch=numbers[one.reader]),
        "": flags,
    }
    figures: dict[str, Callable[[Opinion], Cell]] = {
        "Volume [ml]": lambda one: _figure(one.volume_ml, "volume_ml"),
        "Agreement": lambda one: _figure(one.agreement),
        "Estimated Dice": lambda one: _figure(one.estimated_dice),
    }
    return _table(words, figures, case.opinions)


def _pairs(case: Concord) -> Table:
    def cell(one: Between, metric: str) -> Cell:
        return _figure(one.row.values[metric], metric)

    figures = {metric_named(metric).title: partial(cell, metric=metric) for metric in _FIGURES}
    pair = {"Pair": lambda one: Cell(f"{one.row.name}: {one.compared}, {one.reference}")}
    return _table(pair, figures, case.between)


def _readers(summary: Mapping[str, Any], numbers: Mapping[str, int]) -> Table:
    rows = [(name, what, found) for name, of in summary["readers"].items() for what, found in of.items()]
    words = {"Reader": lambda row: Cell(row[0], swatch=numbers[row[0]]), "Structure": lambda row: Cell(row[1])}
    figures = {
        "Estimated Dice": lambda row: averaged(row[2].get("estimated_dice"), "dice"),
        "Agreement": lambda row: averaged(row[2].get("agreement"), "dice"),
        "Volume [ml]": lambda row: averaged(row[2].get("volume_ml"), "volume_ml"),
        "Odd one out": lambda row: Cell(str(row[2]["n_odd"])),
        "Missed": lambda row: Cell(str(row[2]["n_missed"]), tone="bad" if row[2]["n_missed"] else ""),
        "Invented": lambda row: Cell(str(row[2]["n_invented"]), tone="bad" if row[2]["n_invented"] else ""),
    }
    return _table(words, figures, rows)


def _all_pairs(summary: Mapping[str, Any]) -> Table:
    def cell(row: Any, metric: str) -> Cell:
        return averaged(row[2]["metrics"].get(metric), metric)

    rows = [(one, name, found) for one in summary["pairs"] for name, found in one["structures"].items()]
    words = {
        "Pair": lambda row: Cell(f"{row[0]['compared']}, {row[0]['with']}"),
        "Structure": lambda row: Cell(row[1]),
    }
    figures = {metric_named(metric).title: partial(cell, metric=metric) for metric in _FIGURES}
    lacks = {"One of them lacks it": lambda row: Cell(str(row[2]["n_missed"] + row[2]["n_invented"]))}
    return _table(words, {**figures, **lacks}, rows)


def _matched(structures: Sequence[Matched], summary: Mapping[str, Any], readers: Iterable[str]) -> Table:
    def cell(row: Any, reader: str) -> Cell:
        return Cell(row[2].get(reader, "–"))

    rows: list[tuple[str, str, Mapping[str, str]]] = []
    for one in structures:
        own = {who: f"{what.name} ({'+'.join(map(str, what.values))})" for who, what in one.members.items()}
        rows.append((one.name, _MATCHED_BY[one.by], own))
    rows += [(name, "no partner", {who: name}) for who, names in summary["without_partner"].items() for name in names]
    words = {"Structure": lambda row: Cell(row[0]), "Matched by": lambda row: Cell(row[1])}
    return _table({**words, **{who: partial(cell, reader=who) for who in readers}}, {}, rows)


def _tiles(cases: Sequence[Concord], summary: Mapping[str, Any]) -> list[Tile]:
    known = [one.agreement for one in cases if one.agreement is not None]
    odd = sum(map(len, summary["odd_one_out"].values()))
    tiles = [
        Tile(str(len(cases)), "cases compared"),
        Tile(number(float(np.mean(known)) if known else None, "dice"), "mean Dice", "over all pairs"),
        Tile(str(odd), "with an odd one out", tone="mid" if odd else "good"),
    ]
    left = {"results missing": len(summary["missing"]), "refused": len(summary["refused"])}
    return [*tiles, *(Tile(str(count), what, tone="bad") for what, count in left.items() if count)]
