"""``medseg evaluate``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medseg.cli._app import Outcome, app, command, terminal
from medseg.evaluation.definitions import Definitions, PercentileRule, SurfaceRule

if TYPE_CHECKING:
    from medseg.manifests import Part

_PREDICTIONS = "predictions"
_Predictions = Annotated[
    Path,
    typer.Argument(
        help="Label map, folder of label maps (such as medseg infer leaves), or datalist; with --bundle a datalist of "
        "labelled images."
    ),
]
_References = Annotated[
    Path | None, typer.Argument(help="Reference label map, folder of these, or datalist; none with --bundle.")
]
_Bundle = Annotated[Path | None, typer.Option(help="Label the images first, those that are not labelled yet.")]
_Device = Annotated[str, typer.Option(help="With --bundle: auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:N or mps.")]
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
    references: _References = None,
    *,
    output: _Output,
    bundle: _Bundle = None,
    device: _Device = "auto",
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

    Both at once: medseg evaluate --bundle hippocampus_mri_segmentation datalist.json --section test -o runs/evaluation
    """
    from medseg.bundle.find import find_bundle
    from medseg.cli._evaluation_tables import show_evaluation
    from medseg.cli._progress import counted_progress
    from medseg.evaluation import Options, evaluate_folders
    from medseg.manifests import Part
    from medseg.resources import usable_cores

    options = Options(
        definitions=replace(
            _lesion_definitions(lesion_iou if lesions else None, lesion_sizes),
            percentile_rule=percentile_rule,
            surface=surface,
            centreline=centreline,
        ),
        group_by=by,
        all_metrics=all_metrics,
        part=None if section is None and fold is None else Part(section, fold),
        workers=workers or usable_cores(),
    )
    if bundle is not None:
        _label_images(find_bundle(bundle), predictions, references, output, options.part, device)
        predictions, references, labels = output / _PREDICTIONS, predictions, labels or bundle
    with counted_progress("evaluating") as progress:
        result = evaluate_folders(
            predictions,
            _given(references),
            output,
            labels=None if labels is None else find_bundle(labels),
            tolerance_mm=tolerance_mm,
            compare_with=compare,
            options=options,
            progress=lambda done, total, _: progress(done, total),
        )
    show_evaluation(terminal(), result)
    return Outcome({"output": str(output), **result.summary}, complete=result.complete)


def _given(references: Path | None) -> Path:
    from medseg.errors import UsageError

    if references is None:
        raise UsageError("found no REFERENCES; give them, or --bundle BUNDLE and a datalist of labelled images")
    return references


def _label_images(
    bundle: Path, datalist: Path, references: Path | None, output: Path, part: Part | None, device: str
) -> None:
    """Label the images of a datalist that are not labelled yet; a run that was interrupted goes on."""
    from medseg.cli._progress import counted_progress
    from medseg.errors import UsageError
    from medseg.inference import Options, run_batch

    if references is not None or datalist.suffix.lower() != ".json":
        raise UsageError(f"--bundle labels the images of one datalist (.json), found {datalist} {references or ''}")
    asked = Options(section=part.section if part else None, fold=part.fold if part else None, device=device)
    folder = output / _PREDICTIONS
    with counted_progress("labelling") as progress:
        run_batch(bundle, [datalist], folder, asked, progress=lambda done, total, _: progress(done, total))


def _lesion_definitions(iou: float | None, sizes: str) -> Definitions:
    from medseg.errors import UsageError

    try:
        edges_ml = tuple(float(part) for part in sizes.split(",") if part.strip())
    except ValueError:
        raise UsageError(f"found --lesion-sizes {sizes!r}, expected volumes in ml, such as 0.1,1,10") from None
    return Definitions(lesion_iou=iou, lesion_strata_ml=edges_ml)
