"""``medseg evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medseg.cli._app import Outcome, app, command, terminal
from medseg.evaluation.definitions import Definitions, PercentileRule, SurfaceRule


@app.command()
@command
def evaluate(
    predictions: Annotated[
        Path, typer.Argument(help="Label map, folder of label maps (such as medseg infer leaves), or datalist.")
    ],
    references: Annotated[Path, typer.Argument(help="Reference label map, folder of these, or datalist.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for metrics.csv and metrics.json.")],
    *,
    labels: Annotated[
        Path | None, typer.Option(help='The structures: a JSON file {"1": "liver"}, a datalist or a bundle.')
    ] = None,
    tolerance_mm: Annotated[
        float, typer.Option(min=0.0, help="Tolerance of the normalised surface distance (NSD).")
    ] = 1.0,
    compare: Annotated[
        Path | None, typer.Option(help="Other predictions of the same cases: adds a paired test.")
    ] = None,
    by: Annotated[
        str | None, typer.Option(help="Key of the reference datalist's items: adds a table per value.")
    ] = None,
    percentile_rule: Annotated[
        PercentileRule, typer.Option(help="HD95 per direction, the larger of both; or of both directions together.")
    ] = Definitions.percentile_rule,
    surface: Annotated[
        SurfaceRule, typer.Option(help="Surface voxels with equal weights, or elements weighted by area.")
    ] = Definitions.surface,
    all_metrics: Annotated[
        bool, typer.Option("--all-metrics", help="Add MASD, specificity and lesion-wise scores to metrics.csv.")
    ] = False,
    section: Annotated[
        str | None, typer.Option(help="Of a reference datalist only this section: test, training or validation.")
    ] = None,
    fold: Annotated[
        int | None, typer.Option(help="Of a reference datalist only the cases that this fold holds out.")
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0 takes one per CPU.")] = 0,
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
        definitions=Definitions(percentile_rule=percentile_rule, surface=surface),
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
