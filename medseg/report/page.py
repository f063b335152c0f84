"""The page: what was collected, put into words, tables and plots, and rendered by the template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from medseg.evaluation.definitions import metric_named
from medseg.evaluation.trained_on import sentence
from medseg.pictures import colour
from medseg.report import charts, tables
from medseg.report.collect import Study
from medseg.report.pictures import SIDE_PX
from medseg.report.tables import label_table


def render(study: Study, pictures: Mapping[str, tables.Pictures], title: str, library: str) -> str:
    """The whole page as HTML; every text in it is escaped by the template.

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
    return (
        _environment()
        .from_string(_asset("page.html.j2"))
        .render(
            title=title,
            version=version("medseg"),
            side=SIDE_PX,
            css=_trusted("page.css"),
            js=_trusted("page.js"),
            colours={label: colour(i) for i, label in enumerate(study.names)},
            **_head(study),
            **_body(study, pictures),
            **_viewer(study, pictures, library),
        )
    )


@cache
def _environment() -> Environment:
    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)


def _asset(name: str) -> str:
    return files("medseg.report").joinpath(f"assets/{name}").read_text(encoding="utf-8")


def _trusted(name: str) -> Markup:
    return Markup(_asset(name))  # noqa: S704  a file of this package, no input


def _head(study: Study) -> dict[str, Any]:
    return {
        "kind": _kind(study),
        "facts": _facts(study),
        "cautions": _cautions(study),
        "measured": study.measured,
        "looked_at": _looked_at(study),
        "tiles": tables.tiles(study),
        "verdicts": tables.verdict_counts(study),
        "not_done": tables.not_done(study),
        "unpaired": tables.unpaired(study),
        "about": _about(study),
    }


def _body(study: Study, pictures: Mapping[str, tables.Pictures]) -> dict[str, Any]:
    columns, structures = tables.structure_table(study)
    plots = charts.sections(study)
    return {
        "columns": columns,
        "structures": structures,
        "charts": plots,
        "sections": _sections(bool(structures), plots),
        "heads": tables.heads(study),
        "cases": tables.case_rows(study, pictures),
        "estimated": any(case.estimates for case in study.cases),
        "case_columns": [metric_named(metric).title for metric in tables.metric_columns(study)],
        "has_status": any(case.status != "done" for case in study.cases),
        "statuses": sorted({case.status for case in study.cases}),
    }


def _viewer(study: Study, pictures: Mapping[str, tables.Pictures], library: str) -> dict[str, Any]:
    drawn = [(f"v{i}", pictures.get(case.case_id)) for i, case in enumerate(study.cases)]
    return {
        "viewer": bool(library),
        "library": library,
        "label_table": Markup(label_table(study.names)),  # noqa: S704  JSON in which < and & are escaped
        "volumes": [(key, Markup(p.inlined)) for key, p in drawn if p and p.inlined],  # noqa: S704  base64 in JSON
    }


def _kind(study: Study) -> str:
    if study.run and study.measured:
        return "Segmentation and evaluation"
    return "Evaluation against references" if study.measured else "Segmentation run"


def _looked_at(study: Study) -> str:
    """Which slice the pictures show."""
    if study.measured:
        return "of greatest disagreement"
    doubted = any(case.look_at_mm is not None or case.doubt is not None for case in study.cases)
    return "of greatest doubt" if doubted else "of largest area"


def _facts(study: Study) -> list[tuple[str, str]]:
    bundle = study.run.get("bundle") or {}
    facts = [
        ("model", " ".join(str(bundle[key]) for key in ("name", "version") if bundle.get(key))),
        ("weights", str(bundle.get("sha256") or "")[:12]),
        ("device", " · ".join(str(study.run[key]) for key in ("device", "precision") if study.run.get(key))),
        ("finished", str(study.run.get("finished") or "")[:16].replace("T", " ")),
    ]
    return [(name, value) for name, value in facts if value]


def _cautions(study: Study) -> list[str]:
    """What has to be known before the figures are believed; warnings may name paths, so they stay in their file."""
    cautions = [told] if (told := sentence(study.trained_on)) else []
    warnings = study.metrics.get("warnings")
    if isinstance(warnings, list) and warnings:
        cautions.append(f"The evaluation gave {len(warnings)} warning(s); metrics.json lists them.")
    return cautions


def _sections(structures: bool, sections: Sequence[charts.Section]) -> list[tuple[str, str]]:
    return [
        ("summary", "Summary"),
        *([("structures", "Structures")] if structures else []),
        ("cases", "Cases"),
        *((section.anchor, section.title) for section in sections),
        ("about", "About"),
    ]


def _about(study: Study) -> list[tuple[str, str]]:
    definitions = study.metrics.get("definitions")
    known = definitions if isinstance(definitions, Mapping) else {}
    terms = [
        (name, str(known[key]))
        for key, name in (("percentile_rule", "Percentiles"), ("surface", "Surface"))
        if known.get(key)
    ]
    if known.get("tolerance_mm") is not None:
        terms.append(("NSD tolerance", f"{known['tolerance_mm']} mm"))
    if study.measured:
        terms += [(metric_named(m).title, metric_named(m).definition) for m in tables.metric_columns(study)]
        terms.append(("Missed, invented", "overlap scores and NSD are 0, distances do not exist"))
    terms += _trust_terms(study)
    terms.append(
        (
            "Pictures",
            "patient's right on your left, in sagittal slices anterior; solid: prediction, dashed: reference",
        )
    )
    terms.append(("Identity", "cases are named by their case id; paths and header fields of the sources are left out"))
    return terms


def _trust_terms(study: Study) -> list[tuple[str, str]]:
    """What the verdicts mean, and why there are none where a calibration cannot be used."""
    stated = study.run.get("trust")
    known = stated if isinstance(stated, Mapping) else {}
    if known.get("state") in {"stale", "damaged"}:
        return [("Trust", "no verdicts: the bundle's calibration does not belong to its weights or cannot be read")]
    limits = known.get("thresholds")
    if known.get("state") != "ready" or not isinstance(limits, Mapping):
        return []
    meaning = (
        f"accept: the lower bound of every structure is at least {float(limits['accept']):.2f}; reject: a predicted "
        f"Dice is below {float(limits['reject']):.2f}; review: everything between. What is flagged is never accepted. "
        f"On cases like those of the calibration, {float(known.get('coverage', 0.9)):.0%} reach their lower bound."
    )
    return [("Trust", meaning)]
