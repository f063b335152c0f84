"""``medseg bundle``: new, clean, audit, verify, pack, unpack, export, keygen."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from medseg.cli._app import BundleArgument, Outcome, command, terminal
from medseg.cli._bundle_app import bundle_app
from medseg.cli._bundle_sources import STYLES, list_, received, warn_of
from medseg.cli._startup import confine_command
from medseg.errors import UsageError
from medseg.files import prepare_file, prepare_folder

if TYPE_CHECKING:
    from medseg.bundle.findings import Finding

__all__ = ["bundle_app", "list_"]

_Format = Literal["torchscript", "onnx", "openvino"]


@bundle_app.command()
@command
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="<anatomy>_<modality>_<task>, lower case.")],
    *,
    datalist: Annotated[Path, typer.Option("--datalist", help="A datalist, or an MSD or nnU-Net dataset.json.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder in which NAME is created.")] = Path("bundles"),
    dataset_dir: Annotated[Path | None, typer.Option("--dataset-dir", help="Where relative paths start.")] = None,
    memory_gb: Annotated[float, typer.Option("--memory-gb", help="Memory that training may take.")] = 4.0,
    minutes: Annotated[float, typer.Option("--minutes", help="Time for one fold on two CPU cores.")] = 20.0,
    encoder: Annotated[str | None, typer.Option("--encoder", help="resnet18, resnet34, resnet50 or vgg16.")] = None,
    weights: Annotated[Path | None, typer.Option("--weights", help="Published weights of that encoder.")] = None,
    authors: Annotated[str, typer.Option("--authors", help="Who makes the bundle.")] = "not stated",
) -> Outcome:
    """Plan a bundle from the data and write it, ready to train; docs/plan.md in it explains every choice.

    Example: medseg bundle new liver_ct_segmentation --datalist datalist.json
    """
    from medseg.planning import Budget, create_bundle

    prepare_folder(output)
    folder, plan = create_bundle(
        name,
        datalist,
        output,
        dataset_dir=dataset_dir,
        budget=Budget(memory_gb, minutes),
        authors=authors,
        encoder=encoder,
        weights=weights,
    )
    for what, choice, why in plan.reasons:
        terminal().print(f"{what}: {choice} ({why})")
    terminal().print(f"Next: medseg train {folder} --fold 0 --publish")
    reasons = [{"what": what, "choice": choice, "why": why} for what, choice, why in plan.reasons]
    return Outcome({"bundle": str(folder), "reasons": reasons})


@bundle_app.command()
@command
def clean(
    bundle: BundleArgument,
    *,
    keep_largest: Annotated[
        list[str] | None, typer.Option("--keep-largest", help="Keep the largest part alone: a structure, or all.")
    ] = None,
    smallest_ml: Annotated[float, typer.Option("--smallest-ml", help="Drop parts below this volume.")] = 0.0,
    fill_holes: Annotated[
        list[str] | None, typer.Option("--fill-holes", help="Fill enclosed background: a structure, or all.")
    ] = None,
) -> Outcome:
    """Say what a bundle does to its label maps at the end, as MONAI transforms in its inference.json; none: nothing.

    Example: medseg bundle clean liver_ct_segmentation --keep-largest liver --smallest-ml 0.1 --fill-holes all
    """
    from medseg.bundle import Bundle
    from medseg.planning import Cleaning, set_cleaning
    from medseg.trust.trust_files import trust_state

    asked = Cleaning(tuple(fill_holes or ()), smallest_ml, tuple(keep_largest or ()))
    made = set_cleaning(Bundle.open(bundle), asked)
    names = ", ".join(str(step["_target_"]) for step in made) or "nothing"
    terminal().print(f"{bundle}: after the labels, {names}")
    state = trust_state(Bundle.open(bundle))
    if state.state == "stale":
        terminal().print(f"no more verdicts: {state.message}", style="yellow")
    terminal().print("figures of the bundle may be of results that were cleaned in another way: evaluate again")
    return Outcome({"bundle": str(bundle), "steps": made, "trust": state.as_json()})


@bundle_app.command()
@command
def audit(bundle: BundleArgument) -> Outcome:
    """Say what a bundle would execute and what is unusual in it, without executing it.

    Exit code 1 if something forbids its use.

    Example: medseg bundle audit downloaded/liver_ct_segmentation --json
    """
    from medseg.bundle import audit as audit_bundle

    findings = audit_bundle(bundle)
    _by_command(findings)
    return _report(bundle, findings, "The audit found nothing outside its allow-lists.", listed=True)


@bundle_app.command()
@command
def verify(bundle: BundleArgument) -> Outcome:
    """Audit, then check that a bundle is complete and its parts belong together. Exit code 1 if something is wrong.

    The bundle's network is built and run once, on random numbers, only if the audit blocks nothing.

    Example: medseg bundle verify bundles/hippocampus_mri_segmentation
    """
    from medseg.bundle import Bundle

    opened = Bundle.open(bundle)
    confine_command([], imports="medseg.sharing")
    from medseg.sharing import verify as verify_bundle
    from medseg.trust.trust_files import trust_state

    outcome = _report(bundle, verify_bundle(bundle), "The bundle is complete and its parts belong together.")
    state = trust_state(opened)
    terminal().print(f"Trust: {state.describe()}")
    return Outcome({**outcome.result, "trust": state.as_json()}, outcome.complete)


@bundle_app.command()
@command
def pack(
    bundle: BundleArgument,
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="The archive to write (.zip).")],
    sign: Annotated[Path | None, typer.Option("--sign", help="Private key file; make one with `keygen`.")] = None,
    with_names: Annotated[
        bool, typer.Option("--with-names", help="Public data: keep the datalist's file names, patient ids and folder.")
    ] = False,
) -> Outcome:
    """Pack a bundle into one archive: the same bundle gives the same bytes, each accounted for, signed if asked.

    File names and patient ids of the datalist become numbers, unless --with-names is given.

    Example: medseg bundle pack bundles/hippocampus_mri_segmentation -o hippocampus.zip --sign site.key
    """
    from medseg.bundle import Bundle

    Bundle.open(bundle)
    from medseg.sharing import pack as pack_bundle

    prepare_file(output)
    packed = pack_bundle(bundle, output, key=sign, with_names=with_names)
    warn_of(bundle)
    signed = f", signed by {packed.signed_by}" if packed.signed_by else ", not signed"
    terminal().print(f"{packed.path}: {len(packed.files)} files{signed}")
    terminal().print(f"SHA-256 {packed.sha256}")
    listed = {"sha256": packed.sha256, "files": list(packed.files), "signed_by": packed.signed_by}
    return Outcome({"archive": str(packed.path), **listed})


@bundle_app.command()
@command
def unpack(
    archive: Annotated[Path, typer.Argument(metavar="FILE", help="An archive that `medseg bundle pack` wrote.")],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder in which the bundle's folder is created.")],
    key: Annotated[Path | None, typer.Option("--key", help="The sender's public key file (.pub).")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace an existing bundle; it is kept aside.")] = False,
    allow_older: Annotated[bool, typer.Option("--allow-older", help="Let --replace go back to an older one.")] = False,
    as_is: Annotated[
        bool,
        typer.Option("--as-is", help="Take an archive that medseg did not pack, or that holds scripts."),
    ] = False,
) -> Outcome:
    """Unpack a bundle after checking every byte; on any doubt nothing is left behind.

    Example: medseg bundle unpack hippocampus.zip -o bundles --key sender.key.pub
    """
    from medseg.sharing import unpack as unpack_bundle

    prepare_folder(output)
    found = unpack_bundle(archive, output, key=key, replace=replace, allow_older=allow_older, as_is=as_is)
    return received(found)


@bundle_app.command()
@command
def export(
    bundle: BundleArgument,
    *,
    format: Annotated[_Format, typer.Option("--format", help="The runtime to export for.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write (.xml for openvino).")],
    image: Annotated[list[Path] | None, typer.Option("--image", help="NIfTI file to compare on; repeatable.")] = None,
    pipeline: Annotated[
        bool, typer.Option("--pipeline", help="With the way from an image to labels, in one zip (onnx).")
    ] = False,
) -> Outcome:
    """Export the network for another runtime, compared with the original before it is written.

    Example: medseg bundle export bundles/hippocampus_mri_segmentation --format onnx -o network.onnx
    """
    if pipeline and format != "onnx":
        raise UsageError(f"--pipeline is for --format onnx, found {format}; {format} holds the network alone")
    from medseg.bundle import Bundle

    Bundle.open(bundle)
    confine_command([prepare_file(output).parent], imports="medseg.conversion")
    from medseg.conversion import export as export_bundle
    from medseg.conversion import export_pipeline

    if pipeline:
        made = export_pipeline(bundle, output, images=image or ())
    else:
        made = export_bundle(bundle, format, output, images=image or ())
    kind = "windows of images" if made.real_windows else "windows of smooth noise"
    terminal().print(
        f"{made.path}: on {made.windows} {kind} at most {made.max_difference:.2g} of the largest logit apart, "
        f"{made.label_agreement:.4%} of the voxels get the same label",
    )
    return Outcome({**asdict(made), "path": str(made.path)})


@bundle_app.command()
@command
def keygen(
    private: Annotated[Path, typer.Argument(metavar="KEY", help="Private key file to create; keep it secret.")],
) -> Outcome:
    """Make a key pair for signing: KEY (secret) and KEY.pub (for those who receive your bundles).

    Example: medseg bundle keygen site.key
    """
    from medseg.sharing import create_key_pair

    prepare_file(private)
    secret, public = create_key_pair(private)
    terminal().print(f"{secret}: keep this file secret")
    terminal().print(f"{public}: give this file to the receivers")
    return Outcome({"private": str(secret), "public": str(public)})


def _by_command(findings: Sequence[Finding]) -> None:
    """For each command whether it is allowed, and what forbids it; what forbids several is listed under the first."""
    from medseg.bundle.findings import COMMANDS, SPOKEN, blocks

    above: set[Finding] = set()
    for name in COMMANDS:
        forbidding = {finding: None for finding in blocks(findings) if name in finding.commands}
        known = len(above & forbidding.keys())
        count = f"{len(forbidding)} finding{'s' if len(forbidding) > 1 else ''}"
        told = f"forbidden by {count}{f', {known} of them above' if known else ''}" if forbidding else "allowed"
        terminal().print(f"{SPOKEN[name]}: {told}", style=STYLES["block"] if forbidding else "")
        for finding in forbidding:
            if finding not in above:
                _print_finding(finding)
        above |= forbidding.keys()
    others = [finding for finding in findings if finding not in above]
    if others:
        terminal().print("no obstacle, but unusual or good to know:", style=STYLES["warn"])
    for finding in others:
        _print_finding(finding)


def _print_finding(finding: Finding) -> None:
    """Where it is, then what and why, within the width of the terminal."""
    console = terminal()
    place = f"{finding.file} at {finding.place}" if finding.place else finding.file
    for indent, text in (("  ", place), ("    ", f"{finding.what}; {finding.why}")):
        width, hanging = console.width, indent if indent != "  " else "      "
        lines = textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=hanging, break_on_hyphens=False)
        for line in lines:
            console.print(line, style=STYLES[finding.severity] if indent == "  " else "")


def _report(bundle: Path, findings: Sequence[Finding], clean: str, *, listed: bool = False) -> Outcome:
    """The outcome of a check; ``listed``: its findings have been printed."""
    from medseg.bundle.findings import COMMANDS, SPOKEN, blocks

    for finding in () if listed else findings:
        terminal().print(str(finding), style=STYLES[finding.severity])
    if not findings:
        terminal().print(clean)
    count = len(blocks(findings))
    result = {
        "bundle": str(bundle),
        "passed": count == 0,
        "blocked": [SPOKEN[name] for name in COMMANDS if any(name in found.commands for found in blocks(findings))],
        "findings": [finding.as_dict() for finding in findings],
    }
    return Outcome(result, complete=count == 0)
