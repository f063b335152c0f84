"""The page: what was collected, put into words, tables and plots, and rendered by the template."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from medseg._version import medseg_version
from medseg.evaluation.definitions import metric_named
from medseg.evaluation.trained_on import sentence
from medseg.pictures import colour
from medseg.report import tables
from medseg.report.charts import Section, sections
from medseg.report.collect import Case, Study, Trust
from medseg.report.pictures import SIDE_PX, Pictures

_LEARNT = "This image was used to train the model: its figures say nothing about new cases."


@dataclass(frozen=True)
class CaseRow:
    """A case with what its row of the table opens to."""

    case: Case
    cells: list[tables.Cell]
    pictures: Pictures
    structures: tables.Table
    message: str
    search: str
    findings: tables.Table = field(default_factory=tables.Table)
    key: str = ""

    @property
    def notes(self) -> tuple[str, ...]:
        """What has to be known of the case and its pictures."""
        return (*([_LEARNT] if self.case.trained_on else []), *self.pictures.notes)

    @property
    def wrong(self) -> bool:
        """Whether a structure was missed or invented."""
        return any(map(tables.flag_of, self.case.structures))

    @property
    def legend(self) -> list[tuple[int, str]]:
        """Label and name of each structure that is drawn, with its Dice."""
        drawn = {label for plane in self.pictures.planes for label in (*plane.prediction, *plane.reference)}
        dice = {s.label: s.values.get("dice") for s in self.case.structures}
        return [
            (s.label, s.name if (d := dice[s.label]) is None else f"{s.name} (Dice {tables.number(d, 'dice')})")
            for s in sorted(self.case.structures, key=lambda s: s.label)
            if s.label in drawn
        ]


@dataclass(frozen=True)
class SignOff:
    """What a page needs so that its cases can be judged: state as JSON, the file it is saved as, possible verdicts."""

    state: str
    file: str
    verdicts: Sequence[str]


@dataclass(frozen=True)
class Page:
    """What the template shows; what is empty takes no room."""

    title: str
    kind: str
    facts: Sequence[tuple[str, str]]
    """``title``, ``kind``, ``facts``: heading, what sort of result it is, what computed it."""
    tiles: Sequence[tables.Tile]  # figures at the top
    about: Sequence[tuple[str, str]]  # terms and what they mean
    charts: Sequence[Section] = ()  # plots under their headings
    cautions: Sequence[str] = ()  # what must be known before the figures are believed
    verdicts: Mapping[str, int] = field(default_factory=dict)
    not_done: tables.Table = field(default_factory=tables.Table)
    unpaired: str = ""
    measured: bool = False
    table_title: str = "Structures"
    structures: tables.Table = field(default_factory=tables.Table)
    accepted: tables.Table = field(default_factory=tables.Table)
    looked_at: str = ""
    columns: Sequence[tables.Column[Any]] = ()
    cases: Sequence[CaseRow] | None = None  # None for a page that is not about cases
    statuses: Sequence[str] = ()
    samples: Sequence[tuple[str, str]] = ()  # caption and picture (a data URI) of what a training has shown
    names: Mapping[int, str] = field(default_factory=dict)
    library: str = ""
    sign_off: SignOff | None = None  # for a page on which every case is given a verdict
    more_tables: Sequence[tuple[str, tables.Table]] = ()  # title and table of what stands below the table of structures
    apart: bool = False  # whether colours stand for readers, whose lines then differ in their dashes, too

    @property
    def sections(self) -> list[tuple[str, str]]:
        """Anchor and name of every section."""
        found = [("summary", "Summary", True), ("structures", self.table_title, bool(self.structures.rows))]
        found += [("cases", "Cases", self.cases is not None)]
        found += [(section.anchor, section.title, True) for section in self.charts]
        found += [("samples", "Samples", bool(self.samples))]
        return [(anchor, name) for anchor, name, shown in (*found, ("about", "About", True)) if shown]

    def render(self) -> str:
        """The whole page as HTML; every text in it is escaped by the template."""
        return (
            _environment()
            .from_string(_asset("page.html.j2"))
            .render(
                page=self,
                version=medseg_version(),
                side=SIDE_PX,
                css=_asset("page.css"),
                js=_asset("page.js"),
                sign_js=_asset("sign_off.js") if self.sign_off else "",
                colours={label: colour(i) for i, label in enumerate(self.names)},
                series=[
                    colour(i) for i in range(max((len(c.legend) for s in self.charts for c in s.charts), default=0))
                ],
                label_table=tables.label_table(self.names),
            )
        )


@cache
def _environment() -> Environment:
    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)


def _asset(name: str) -> str:
    return files("medseg.report").joinpath(f"assets/{name}").read_text(encoding="utf-8")


def page_of(study: Study, pictures: Mapping[str, Pictures], title: str, library: str) -> Page:
    """The page about the cases of a run, an evaluation, or both.

    Parameters
    ----------
    study
        Cases worst first.
    pictures
        What was drawn, by case id.
    title
        Heading of the page.
    library
        Viewer script in base64; empty if the page has no viewer.
    """
    cases = tables.case_table(study)
    warned = f"The evaluation gave {study.n_warnings} warning(s); metrics.json lists them."
    subject = "One file has" if study.n_unpaired == 1 else f"{study.n_unpaired} files have"
    unpaired = f"{subject} no partner and could not be evaluated; metrics.json lists what is missing."
    return Page(
        title,
        kind=_kind(study),
        facts=study.facts,
        cautions=[*filter(None, (sentence(study.trained_on), warned if study.n_warnings else ""))],
        tiles=tables.tiles(study),
        verdicts=tables.verdict_counts(study),
        not_done=tables.not_done(study),
        unpaired=unpaired if study.n_unpaired else "",
        measured=study.measured,
        structures=tables.structure_table(study),
        accepted=_accepted(study),
        looked_at=_looked_at(study),
        charts=sections(study),
        columns=cases.columns,
        cases=[
            CaseRow(
                case,
                cells,
                pictures.get(case.case_id, Pictures()),
                tables.structures_of_case(case, study),
                tables.message_of(case),
                tables.search_text(case),
            )
            for case, cells in zip(study.cases, cases.rows, strict=True)
        ],
        statuses=sorted({case.status for case in study.cases}),
        names=study.names,
        library=library,
        about=[*_about(study)],
    )


def _kind(study: Study) -> str:
    if study.of_run and study.measured:
        return "Segmentation and evaluation"
    return "Evaluation against references" if study.measured else "Segmentation run"


def _looked_at(study: Study) -> str:
    """Which slice the pictures show."""
    if study.measured:
        return "of greatest disagreement"
    doubted = any(case.look_at_mm or case.doubt for case in study.cases)
    return "of greatest doubt" if doubted else "of largest area"


def _accepted(study: Study) -> tables.Table:
    """What each judge accepted without references, and how good that is; empty unless judgements were evaluated."""
    judges: Sequence[Mapping[str, Any]] = (study.accepted or {}).get("judges") or ()
    limits = [*(judges[0]["good"] if judges else ())]
    columns: list[tables.Column[Mapping[str, Any]]] = [
        tables.Column("Judge", lambda one: tables.Cell(one["judge"]), numeric=False),
        tables.Column("Accepted", lambda one: _of_cases(one["accepted"])),
    ]
    columns += [tables.Column(f"Good: Dice ≥ {limit}", partial(_good, limit=limit)) for limit in limits]
    for metric in ("dice", "hd95_mm"):
        for part in ("accepted", "others"):
            columns.append(
                tables.Column(f"{metric_named(metric).title}, {part}", partial(_spread, metric=metric, part=part))
            )
    return tables.table(columns, judges)


def _good(judge: Mapping[str, Any], limit: str) -> tables.Cell:
    return _of_cases(judge["good"][limit])


def _of_cases(share: Mapping[str, Any]) -> tables.Cell:
    if not share["of"]:
        return tables.Cell("–")
    return tables.Cell(f"{share['count']} of {share['of']}", notes=(f"{share['low']:.0%} to {share['high']:.0%}",))


def _spread(judge: Mapping[str, Any], metric: str, part: str) -> tables.Cell:
    found = judge[metric][part]
    return tables.Cell(
        tables.number(found.get("mean"), metric),
        aside=f"± {tables.number(found.get('std'), metric)}" if found["n"] else "",
    )


def _about(study: Study) -> Iterator[tuple[str, str]]:
    yield from study.definitions
    if study.measured:
        yield from ((metric_named(m).title, metric_named(m).definition) for m in tables.metric_columns(study))
        yield "Missed, invented", "overlap scores and NSD are 0, distances do not exist"
    if trust := _trust(study.trust, judged=any(case.verdict for case in study.cases)):
        yield "Trust", trust
    if coverage := next((one.coverage for case in study.cases for one in case.volumes.values()), None):
        yield (
            "Volume interval",
            (
                f"where the volume of a reference lies in {coverage:.0%} of cases like those of the calibration; what "
                "is flagged, or was not found, has no such interval"
            ),
        )
    yield "Pictures", "patient's right on your left, in sagittal slices anterior; solid: prediction, dashed: reference"
    yield "Identity", "cases are named by their case id; paths and header fields of the sources are left out"


def _trust(trust: Trust, *, judged: bool) -> str:
    """What the verdicts mean, and why there are none where a calibration cannot be used."""
    if trust.state == "none" and judged:
        return (
            "not calibrated: nothing is known of how good results of this bundle are, and none is accepted; review: "
            "something about the result is implausible. What is not flagged is not thereby right."
        )
    if trust.state in {"stale", "damaged"}:
        return "no verdicts: the bundle's calibration does not belong to its weights or cannot be read"
    if trust.state != "ready" or trust.reject is None:
        return ""
    accept = "" if trust.accept is None else f"the lower bound of every structure is at least {trust.accept:.2f}; "
    kinds = (
        f", also on images that look like {', '.join(trust.wider_for)}, where it is lower" if trust.wider_for else ""
    )
    return (
        f"accept: {accept}{trust.worth or ('' if accept else 'nothing')}; reject: a predicted Dice is below "
        f"{trust.reject:.2f}; review: everything between. What is flagged is never accepted. On cases like those of "
        f"the calibration, {trust.coverage:.0%} reach their lower bound{kinds}."
    )
