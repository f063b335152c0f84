"""``medseg evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medseg.cli._app import Outcome, app, command, terminal
from medseg.evaluation.definitions import Definitions, PercentileRule, SurfaceRule

_Predictions = Annotated[
    Path, typer.Argument(help="Label map, folder of label maps (such as medseg infer leaves), or datalist.")
]
_References = Annotated[Path, typer.Argument(help="Reference label map, folder of these, or datalist.")]
_Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for metrics.csv and metrics.json.")]
_Labels = Annotated[
    Path | None, typer.Option(help='The structures: a JSON file {"1": "liver"}, a datalist or a bundle.')
]
_Tolerance = Annotated[float, typer.Option(min=0.0, help="Tolerance of the normalised surface distance (NSD).")]
_Compare = Annotated[Path | None, typer.Option(help="Other predictions of the same cases: adds a paired test.")]
_By = Annotated[str | None, typer.Option(help="Key of the reference datalist's items: adds a table per value.")]
_PercentileRule = Annotated[
    PercentileRule, typer.Option(help="HD95 per direction, the larger of both; or of both directions together.")
]
_Surface = Annotated[SurfaceRule, typer.Option(help="Surface voxels with equal weights, or elements weighted by area.")]
_AllMetrics = Annotated[
    bool, typer.Option("--all-metrics", help="Add MASD, specificity and lesion-wise scores to metrics.csv.")
]
_Lesions = Annotated[
    bool, typer.Option("--lesions", help="Match lesions one to one: lesions.csv, and a table by size.")
]
_LesionIou = Annotated[float, typer.Option(min=0.0, max=1.0, help="Intersection over union from which lesions match.")]
_LesionSizes = Annotated[str, typer.Option(help="Volumes in ml between which lesions are counted apart.")]
_Centreline = Annotated[bool, typer.Option("--centreline", help="Add clDice, for vessels and other tubes.")]
_Section = Annotated[
    str | None, typer.Option(help="Of a reference datalist only this section: test, training or validation.")
]
_Fold = Annotated[int | None, typer.Option(help="Of a reference datalist only the cases that this fold holds out.")]
_Workers = Annotated[int, typer.Option(min=0, help="Processes; 0 takes one per CPU.")]


@app.command()
@command
def evaluate(
    predictions: _Predictions,
    references: _References,
    output: _Output,
    *,
    labels: _Labels = None,
    tolerance_mm: _Tolerance = 1.0,
    compare: _Compare = None,
    by: _By = None,
    percentile_rule: _PercentileRule = Definitions.percentile_rule,
    surface: _Surface = Definitions.surface,
    all_metrics: _AllMetrics = False,
    lesions: _Lesions = False,
    lesion_iou: _LesionIou = 0.25,
    lesion_sizes: _LesionSizes = "0.1,1,10",
    centreline: _Centreline = False,
    section: _Section = None,
    fold: _Fold = None,
    workers: _Workers = 0,
) -> Outcome:
    """Compare label maps with references: Dice, Hausdorff and surface distances in mm, with missed structures counted.

    Example: medseg evaluate runs/infer labelsTr -o runs/evaluation --labels bundles/hippocampus_mr_segmentation
    """
    from medseg.bundle.bundle import find_bundle
    from medseg.cli._evaluation_tables import show_evaluation
    from medseg.cli._progress import counted_progress
    from medseg.evaluation import Options, evaluate_folders
    from medseg.manifests import Part
    from medseg.resources import usable_cores

    options = Options(
        definitions=Definitions(
            percentile_rule=percentile_rule,
            surface=surface,
            lesion_iou=lesion_iou if lesions else None,
            lesion_strata_ml=_volumes(lesion_sizes),
            centreline=centreline,
        ),
        group_by=by,
        all_metrics=all_metrics,
        part=None if section is None and fold is None else Part(section, fold),
        workers=workers or usable_cores(),
    )
    with counted_progress("evaluating") as progress:
        result = evaluate_folders(
            predictions,
            references,
            output,
            labels=None if labels is None else find_bundle(labels),
            tolerance_mm=tolerance_mm,
            compare_with=compare,
            options=options,
            progress=lambda done, total, _: progress(done, total),
        )
    show_evaluation(terminal(), result)
    return Outcome({"output": str(output), **result.summary}, complete=result.complete)


def _volumes(text: str) -> tuple[float, ...]:
    from medseg.errors import UsageError

    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise UsageError(f"found --lesion-sizes {text!r}, expected volumes in ml, such as 0.1,1,10") from None
