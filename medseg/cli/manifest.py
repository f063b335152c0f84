"""``medseg manifest``: create, split, audit, review, download."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medseg.cli._app import Outcome, app, command, is_quiet, terminal
from medseg.cli._manifest_creation import Missing, Several, created, proposed, show_labels, written
from medseg.files import prepare_file, prepare_folder

if TYPE_CHECKING:
    from medseg.manifests import AuditReport, Manifest

manifest_app = typer.Typer(help="Datalists: create, split by patient, audit, review, download.", no_args_is_help=True)
app.add_typer(manifest_app, name="manifest")

_ManifestFile = Annotated[Path, typer.Argument(metavar="FILE", help="A datalist, or an MSD or nnU-Net dataset.json.")]
_DatasetDir = Annotated[
    Path | None, typer.Option("--dataset-dir", help="Where relative paths start; by default as the datalist says.")
]
_STYLES = {"error": "red", "warning": "yellow", "note": "dim"}
_CASES_SHOWN = 3


_Texts = list[str] | None
_Images = Annotated[Path, typer.Option("--images", help="A folder of images or DICOM, BIDS, or a dataset.json.")]
_Labels = Annotated[Path | None, typer.Option("--labels", help="A folder of labels, or a BIDS derivative.")]
_Image = Annotated[
    _Texts,
    typer.Option(
        "--image",
        metavar="PATTERN",
        help="Images below --images, such as '{patient}/MR*.nii.gz' or '*/t1.nii.gz'; one for each channel.",
    ),
]
_Label = Annotated[
    _Texts,
    typer.Option(
        "--label",
        metavar="PATTERN|VALUE=NAME|NAME",
        help="Labels below --labels or --images, such as '{patient}/seg*.nii.gz' ({session}, {structure}, {rater} "
        "too); or the name of a value, such as 1=liver; or a structure to take of those that have names.",
    ),
]
_Map = Annotated[
    _Texts, typer.Option("--map", metavar="VALUE=LABEL", help="What a value in the files means: 255=1, or 7=1,200=2.")
]
_Merge = Annotated[
    _Texts,
    typer.Option("--merge", metavar="NAME=PART,PART", help="Several values, labels or ROIs as one: tumour=1,2,3."),
]
_RoiTable = Annotated[
    Path | None, typer.Option("--roi-table", help="The accepted table of what names of ROIs or segments mean.")
]
_Missing = Annotated[Missing, typer.Option("--missing", help="What a structure is where a case has no mask of it.")]
_Reading = Annotated[
    _Texts,
    typer.Option(
        "--reading",
        metavar="KEY=VALUE",
        help="How SEG and RTSTRUCT are read: order=liver,tumour (which lies above), missing_slices=fill, "
        "threshold=0.5, resample=true.",
    ),
]
_Several = Annotated[
    Several, typer.Option("--several", help="What several SEG, RTSTRUCT or BIDS maps of an image are.")
]
_Modality = Annotated[str, typer.Option("--modality", help="Of a DICOM tree the series of this modality, such as MR.")]
_Select = Annotated[
    Path | None,
    typer.Option("--select", metavar="RULES", help="Rules that choose a study's series, one for each channel."),
]
_Links = Annotated[
    Path | None, typer.Option("--links", help="Folder for links that sort DICOM series apart which share a folder.")
]
_LeaveOut = Annotated[bool, typer.Option("--leave-out", help="Leave out what has no partner, and say so.")]
_WriteLabels = Annotated[
    Path | None, typer.Option("--write-labels", help="Write label maps there, once, and list them instead.")
]
_Output = Annotated[Path, typer.Option("--output", "-o", help="The datalist to write (.json).")]
_PatientPattern = Annotated[
    str | None, typer.Option("--patient-pattern", help="Regular expression: the patient in an image's path.")
]
_Licence = Annotated[str | None, typer.Option("--licence", help="Licence or approval of the data.")]
_Checksums = Annotated[bool, typer.Option(help="Add SHA-256 sums of all files.")]


@manifest_app.command()
@command
def create(
    *,
    images: _Images,
    labels: _Labels = None,
    image: _Image = None,
    label: _Label = None,
    map_: _Map = None,
    merge: _Merge = None,
    roi_table: _RoiTable = None,
    missing: _Missing = "background",
    reading: _Reading = None,
    several: _Several = "refuse",
    modality: _Modality = "",
    select: _Select = None,
    links: _Links = None,
    leave_out: _LeaveOut = False,
    write_labels: _WriteLabels = None,
    output: _Output,
    patient_pattern: _PatientPattern = None,
    licence: _Licence = None,
    checksums: _Checksums = True,
) -> Outcome:
    """Make a datalist from folders, DICOM with SEG or RTSTRUCT, masks by structure, MSD, nnU-Net or BIDS.

    Example: medseg manifest create --images data/images --labels data/labels -o datalist.json

    One folder for each patient: medseg manifest create --images study --image '{patient}/MR*.nii.gz'
    --label '{patient}/seg*.nii.gz' --label 1=tumour --map 255=1 -o datalist.json

    A DICOM tree: medseg manifest create --images export --modality CT --label 1=liver -o datalist.json
    """
    from medseg.cli._progress import counted_progress
    from medseg.errors import UndecidedNames

    prepare_file(output)
    try:
        with counted_progress("looking at the labels") as progress:
            manifest = created(
                images,
                labels,
                label or [],
                image_patterns=image or [],
                patient_pattern=patient_pattern,
                maps=map_ or [],
                merges=merge or [],
                roi_table=roi_table,
                missing=missing,
                readings=reading or [],
                dicom=(several, modality, select, links, leave_out),
                checksums=checksums,
                progress=progress,
            )
            if write_labels is not None:
                manifest = written(manifest, write_labels, progress)
    except UndecidedNames as undecided:
        return proposed(undecided, output)
    if licence is not None:
        manifest = manifest.with_content(licence=licence)
    manifest.write(output)
    facts = _counts(manifest)
    terminal().print(
        f"{output}: {facts['training']} training and {facts['test']} test cases, {facts['patients']} patients"
    )
    show_labels(manifest)
    terminal().print(f"Next: medseg manifest audit {output}", style="dim")
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
def review(
    file: _ManifestFile,
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the page; holds signoff.csv, too.")],
    dataset_dir: _DatasetDir = None,
    findings: Annotated[bool, typer.Option("--audit/--no-audit", help="Audit, and show the findings.")] = True,
    viewer: Annotated[bool, typer.Option(help="Add the 3D and slice viewer, as far as the page has room.")] = True,
) -> Outcome:
    """Write a page with a picture of every image and label, to sign off; exit 1 if a label cannot be read.

    Example: medseg manifest review datalist.json -o review
    """
    from medseg.cli._progress import counted_progress
    from medseg.manifests import Manifest
    from medseg.manifests import audit as audit_manifest
    from medseg.report.sign_off import SIGN_OFF_NAME, write_review

    manifest = Manifest.read(file, dataset_dir=dataset_dir)
    prepare_folder(output)
    report = None
    if findings:
        with counted_progress("auditing") as progress:
            report = audit_manifest(manifest, progress=progress)
    with counted_progress("drawing") as progress:
        page = write_review(manifest, output, audit=report, viewer=viewer, progress=progress)
    state = ", ".join(f"{count} {word}" for word, count in page.judgements.items() if count)
    console = terminal()
    console.print(f"{page.page}: labels by judgement: {state}")
    if page.refused:
        console.print(f"{page.refused} cannot be read, and the page says why", style="red")
    console.print(f"Open it, judge, and save {SIGN_OFF_NAME} beside it: the next page starts from there.", style="dim")
    told = {"page": str(page.page), "labels": dict(page.judgements), "refused": page.refused}
    return Outcome(told, complete=not page.refused)


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


def _counts(manifest: Manifest) -> dict[str, int]:
    from medseg.manifests import patient_of

    patients = {patient_of(item) for _, _, item in manifest.items()}
    return {"training": len(manifest.training), "test": len(manifest.test), "patients": len(patients)}


def _show(report: AuditReport, file: Path) -> None:
    from rich.markup import escape
    from rich.padding import Padding

    console = terminal()
    console.print(f"{file}: {report.n_cases} cases of {report.n_patients} patients")
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
            console.print(f"{severity} [bold]{code}[/]: {shown}", markup=True)
            for line in (what, f"[dim]→[/] {escape(first.remedy)}"):
                console.print(Padding(line, (0, 0, 0, 2)), markup=True)
        else:
            console.print(": ".join((severity, code, shown, what, escape(first.remedy))), markup=True)
    verdict = "something blocks training" if report.blocks_training else "nothing blocks training"
    console.print(verdict, style="red" if report.blocks_training else "green")
