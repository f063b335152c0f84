"""``medseg manifest``: create, split, audit, download."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medseg.cli._app import Outcome, app, command, is_quiet, terminal
from medseg.files import prepare_file, prepare_folder

if TYPE_CHECKING:
    from medseg.manifests import AuditReport, Manifest

manifest_app = typer.Typer(help="Datalists: create, split by patient, audit, download.", no_args_is_help=True)
app.add_typer(manifest_app, name="manifest")

_ManifestFile = Annotated[Path, typer.Argument(metavar="FILE", help="A datalist, or an MSD or nnU-Net dataset.json.")]
_DatasetDir = Annotated[
    Path | None, typer.Option("--dataset-dir", help="Where relative paths start; by default as the datalist says.")
]
_STYLES = {"error": "red", "warning": "yellow", "note": "dim"}
_CASES_SHOWN = 3


@manifest_app.command()
@command
def create(
    *,
    images: Annotated[Path, typer.Option("--images", help="A folder of images, a BIDS dataset, or a dataset.json.")],
    labels: Annotated[Path | None, typer.Option("--labels", help="A folder of labels, or a BIDS derivative.")] = None,
    image: Annotated[
        list[str] | None,
        typer.Option(
            "--image", metavar="PATTERN", help="Images below --images, such as '*/t1.nii.gz'; one for each channel."
        ),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            "--label",
            metavar="PATTERN or VALUE=NAME",
            help="Labels below --labels or --images, such as '*/seg.nii.gz'; or the name of a label, such as 1=liver.",
        ),
    ] = None,
    map_: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="VALUE=LABEL", help="What a value in the files means: 255=1, or 7=1,200=2."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The datalist to write (.json).")],
    patient_pattern: Annotated[
        str | None,
        typer.Option("--patient-pattern", help="Regular expression: the patient in an image's path."),
    ] = None,
    licence: Annotated[str | None, typer.Option("--licence", help="Licence or approval of the data.")] = None,
    checksums: Annotated[bool, typer.Option(help="Add SHA-256 sums of all files.")] = True,
) -> Outcome:
    """Make a datalist from folders, an MSD or nnU-Net dataset.json, or BIDS derivatives.

    Example: medseg manifest create --images data/images --labels data/labels -o datalist.json

    One folder for each patient: medseg manifest create --images study --image '*/t1.nii.gz' --label '*/seg.nii.gz'
    --label 1=tumour --map 255=1 -o datalist.json
    """
    from medseg.labels import parse_mapping, parse_names
    from medseg.manifests import create as create_manifest

    prepare_file(output)
    label = label or []
    manifest = create_manifest(
        images,
        labels,
        patient_pattern=patient_pattern,
        image_patterns=image or [],
        label_pattern=_label_pattern([text for text in label if "=" not in text]),
        names=parse_names([text for text in label if "=" in text]),
        mapping=parse_mapping(map_ or []),
        checksums=checksums,
    )
    if licence is not None:
        manifest = manifest.with_content(licence=licence)
    manifest.write(output)
    facts = _counts(manifest)
    terminal().print(
        f"{output}: {facts['training']} training and {facts['test']} test cases, {facts['patients']} patients"
    )
    terminal().print(f"Next: medseg manifest split {output} --folds 5 --seed 0", style="dim")
    return Outcome({"manifest": str(output), **facts})


@manifest_app.command()
@command
def split(
    file: _ManifestFile,
    *,
    folds: Annotated[int, typer.Option("--folds", help="Number of folds.")],
    seed: Annotated[int, typer.Option("--seed", help="The same seed gives the same split.")],
    test: Annotated[float, typer.Option("--test", help="Share of the cases to hold out as test set.")] = 0.0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write here instead of into FILE.")] = None,
    dataset_dir: _DatasetDir = None,
    stratify: Annotated[bool, typer.Option(help="Balance what the labels contain (reads every label).")] = True,
) -> Outcome:
    """Split a datalist by patient into folds and a test set, balanced by what the labels contain.

    Example: medseg manifest split datalist.json --folds 5 --test 0.2 --seed 0
    """
    from medseg.manifests import Manifest

    found, target = Manifest.read(file, dataset_dir=dataset_dir), output or file
    prepare_file(target)
    manifest = found.split(folds, seed, test, stratify=stratify)
    manifest.write(target)
    sizes = [sum(item["fold"] == fold for item in manifest.training) for fold in range(folds)]
    terminal().print(f"{target}: folds of {', '.join(map(str, sizes))} cases, {len(manifest.test)} in the test set")
    return Outcome({"manifest": str(target), "folds": sizes, **_counts(manifest)})


@manifest_app.command()
@command
def audit(file: _ManifestFile, *, dataset_dir: _DatasetDir = None) -> Outcome:
    """Check grids, labels, intensities, duplicates, leakage between folds, checksums; exit 1 if training is blocked.

    Example: medseg manifest audit datalist.json --json
    """
    from medseg.cli._progress import counted_progress
    from medseg.manifests import Manifest
    from medseg.manifests import audit as audit_manifest

    manifest = Manifest.read(file, dataset_dir=dataset_dir)
    with counted_progress("auditing") as progress:
        report = audit_manifest(manifest, progress=progress)
    _show(report, file)
    return Outcome(report.as_json(), complete=not report.blocks_training)


@manifest_app.command()
@command
def download(
    task: Annotated[str, typer.Argument(help="A task of the Medical Segmentation Decathlon: hippocampus, 9, ...")],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the archive and the dataset.")],
) -> Outcome:
    """Download a public dataset (Medical Segmentation Decathlon, CC BY-SA 4.0) and check it.

    Example: medseg manifest download hippocampus -o data
    """
    from medseg.manifests.download import download_task

    prepare_folder(output)
    folder = download_task(task, output, progress=not is_quiet())
    terminal().print(f"{folder}: complete")
    return Outcome({"dataset": str(folder)})


def _label_pattern(patterns: list[str]) -> str | None:
    from medseg.errors import UsageError

    if len(patterns) > 1:
        raise UsageError(f"found {len(patterns)} patterns for labels, expected one label map for each case")
    return patterns[0] if patterns else None


def _counts(manifest: Manifest) -> dict[str, int]:
    from medseg.manifests import patient_of

    patients = {patient_of(item) for _, _, item in manifest.items()}
    return {"training": len(manifest.training), "test": len(manifest.test), "patients": len(patients)}


def _show(report: AuditReport, file: Path) -> None:
    from rich.markup import escape
    from rich.table import Table

    console = terminal()
    console.print(f"{file}: {report.n_cases} cases of {report.n_patients} patients")
    table = Table("finding", "cases", "found, and what to do", box=None, header_style="bold", padding=(0, 2, 0, 0))
    for code in dict.fromkeys(finding.code for finding in report.findings):
        same = [finding for finding in report.findings if finding.code == code]
        first = same[0]
        cases = list(dict.fromkeys(case for finding in same for case in finding.cases))
        more = f" and {len(cases) - _CASES_SHOWN} more" if len(cases) > _CASES_SHOWN else ""
        shown = escape(", ".join(cases[:_CASES_SHOWN]) + more) or "all"
        severity = f"[{_STYLES[first.severity]}]{first.severity}[/]"
        messages = list(dict.fromkeys(finding.message for finding in same))
        also = f" (and {len(messages) - 1} more like it)" if len(messages) > 1 else ""
        what = escape(messages[0] + also)
        if console.is_terminal:
            table.add_row(f"{severity}\n{code}", shown, f"{what}\n[dim]→[/] {escape(first.remedy)}")
        else:
            console.print(": ".join((severity, code, shown, what, escape(first.remedy))), markup=True)
    if console.is_terminal and report.findings:
        console.print(table, markup=True)
    verdict = "something blocks training" if report.blocks_training else "nothing blocks training"
    console.print(verdict, style="red" if report.blocks_training else "green")
