"""``medseg bundle``: list, info, import, pull: which bundles there are, and where they come from."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medseg.cli._app import BundleArgument, Outcome, command, terminal
from medseg.cli._bundle_app import bundle_app
from medseg.cli._startup import confine_command, import_monai_quickly
from medseg.errors import BundleError, UsageError
from medseg.files import prepare_folder

if TYPE_CHECKING:
    from medseg.bundle import Bundle
    from medseg.sharing import Unpacked

STYLES = {"block": "red", "warn": "yellow", "info": "dim"}
"""How findings of an audit are printed, by severity."""


@bundle_app.command(name="list")
@command
def list_() -> Outcome:
    """Show the bundles whose bare names commands understand here: those in ./bundles, and those that ship.

    Example: medseg bundle list
    """
    from medseg.bundle import Bundle
    from medseg.bundle.find import LICENCE_FILE, licence_named, list_bundles, origin_of
    from medseg.bundle.policy import policy_state
    from medseg.bundle.text_limits import read_text_file

    rows = []
    for folder in list_bundles():
        try:
            opened = Bundle.open(folder)
            licence = read_text_file(folder / LICENCE_FILE) if (folder / LICENCE_FILE).is_file() else ""
        except (BundleError, ValueError) as error:
            terminal().print(f"{folder.name}: damaged. {error}", style="yellow")
            rows.append({"name": folder.name, "folder": str(folder), "damage": str(error)})
            continue
        facts = {
            "version": opened.version,
            "task": opened.metadata.get("task", ""),
            "trained": any((folder / "models").glob("model.*")),
            "origin": origin_of(folder, opened.metadata),
            "licence": licence_named(opened.metadata, licence),
            "policy": policy_state(opened),
        }
        rows.append({"name": opened.name, **facts, "folder": str(folder)})
        state = [] if facts["trained"] else ["no weights yet"]
        state += [] if facts["policy"] in (None, "allowed") else ["not allowed by the policy here"]
        terminal().print(f"{opened.name} {opened.version}")
        for line in (facts["task"], ", ".join([facts["origin"], f"licence {facts['licence']}", *state])):
            _print_within(80, line)
        terminal().print(f"    {folder}")
    if not rows:
        terminal().print("There is no bundle in ./bundles, and none comes with this installation.")
    return Outcome({"bundles": rows})


def _print_within(width: int, text: object) -> None:
    for line in textwrap.wrap(str(text), width, initial_indent="    ", subsequent_indent="    "):
        terminal().print(line)


@bundle_app.command()
@command
def info(bundle: BundleArgument) -> Outcome:
    """Show what a bundle is: task, version, input, structures, what it was trained on, figures.

    Of an archive (a zip file) the metadata inside are read; nothing is unpacked.

    Example: medseg bundle info bundles/hippocampus_mri_segmentation
    """
    from medseg.bundle import Bundle

    if bundle.is_file():
        from medseg.sharing import peek

        found = peek(bundle)
        signed = f"signed by {found.signed_by}" if found.signed_by else "not signed"
        archive = {
            "licence": found.licence,
            "archive": f"{len(found.files)} files, {found.size_bytes} bytes unpacked",
            "packed": f"by medseg, {signed}" if found.is_packed else "not by medseg: unpacked with --as-is only",
            "code": [name for name in found.files if name.endswith(".py")],
        }
        return _told({**_facts(found.bundle), **archive}, {"signed_by": found.signed_by, "files": list(found.files)})
    opened = Bundle.open(bundle)  # a wrong path is told before seconds go into imports
    from medseg.bundle.find import origin_of
    from medseg.bundle.policy import policy_state
    from medseg.trust.trust_files import trust_state

    here = {"origin": origin_of(opened.path, opened.metadata), "sha256": opened.sha256, "policy": policy_state(opened)}
    state = trust_state(opened)
    return _told({**_facts(opened), **here, "trust": state.describe()}, {"trust": state.as_json()})


def _facts(bundle: Bundle) -> dict[str, Any]:
    """What the metadata say of a bundle."""
    return {
        "name": bundle.name,
        "version": bundle.version,
        "task": bundle.metadata.get("task"),
        "description": bundle.metadata.get("description"),
        "input_channels": bundle.input_channels,
        "labels": bundle.labels,
        "regions": {name: list(values) for name, values in bundle.scheme.regions.items()},
        "training_range": bundle.training_range,
        "eval_metrics": bundle.metadata.get("eval_metrics"),
        "authors": bundle.metadata.get("authors"),
        "copyright": bundle.metadata.get("copyright"),
        "packages": bundle.packages,
        "imported": bundle.import_state,
    }


def _told(facts: Mapping[str, Any], for_programs: Mapping[str, Any]) -> Outcome:
    """Print facts, and hand them back with what programs are told in another form."""
    for name, value in facts.items():
        if value:
            shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
            terminal().print(f"{name:>15}  {', '.join(shown) if isinstance(shown, list) else shown}")
    return Outcome({**facts, **for_programs})


@bundle_app.command(name="import")
@command
def import_(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A trained model: a folder, or its zip.")],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder in which the bundle's folder is created.")],
    name: Annotated[str | None, typer.Option("--name", help="Name of the bundle.")] = None,
    orientation: Annotated[
        str | None, typer.Option("--orientation", help="How the images it was trained on lay on disk: RAS, LPS ...")
    ] = None,
    like: Annotated[Path | None, typer.Option("--like", help="One of these images, instead.")] = None,
    fetch: Annotated[
        bool, typer.Option("--fetch", help="Fetch weights that the model lists elsewhere (https).")
    ] = False,
    network: Annotated[
        Path | None, typer.Option("--network", help="JSON file with the network of weights that come without one.")
    ] = None,
    check: Annotated[
        Path | None, typer.Option("--check", metavar="IMAGES", help="Images to compare with the origin on.")
    ] = None,
    predicted: Annotated[
        Path | None, typer.Option("--predicted", metavar="LABELS", help="Label maps that the origin gave of them.")
    ] = None,
) -> Outcome:
    """Make a bundle of a model that another tool has trained; nothing of it is executed.

    With --check and --predicted only if it labels as the origin does: at most 0.01 % of the voxels differ.

    Example: medseg bundle import Dataset004_Hippocampus -o bundles --orientation RAS --check imagesTs --predicted out
    """
    from medseg.confinement import Reach, ports_of
    from medseg.conversion.imported import ImportOptions

    missing = [
        str(path) for path in (source, like, network, check, predicted) if path is not None and not path.exists()
    ]
    if missing:
        raise UsageError(f"no such file or folder: {', '.join(missing)}")
    if (check is None) != (predicted is None):
        raise UsageError("--check and --predicted belong together: images, and the label maps that the origin gave")
    reach = Reach(connect=ports_of(["https://"])) if fetch else None
    confine_command([prepare_folder(output)], reach, imports="medseg.workflows.importing")
    import_monai_quickly()
    from medseg.workflows.importing import import_bundle

    pair = None if check is None or predicted is None else (check, predicted)
    options = ImportOptions(name, orientation, like, fetch, network)
    made = import_bundle(source, output, options, check=pair, say=terminal().print)
    for line in (f"{made.path}: made of {made.kind}", *made.notes, f"Next: medseg bundle verify {made.path}"):
        terminal().print(line)
    return Outcome({"bundle": str(made.path), "kind": made.kind, "notes": list(made.notes), "checked": made.checked})


@bundle_app.command()
@command
def pull(
    reference: Annotated[
        str, typer.Argument(metavar="REFERENCE", help="hf://ORG/NAME[@REVISION] or oci://HOST/REPO:TAG.")
    ],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder in which the bundle's folder is created.")],
    key: Annotated[Path | None, typer.Option("--key", help="The sender's public key file (.pub).")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace an existing bundle; it is kept aside.")] = False,
    allow_older: Annotated[bool, typer.Option("--allow-older", help="Let --replace go back to an older one.")] = False,
    as_is: Annotated[
        bool, typer.Option("--as-is", help="Take what medseg did not pack, or that holds scripts.")
    ] = False,
    allow_host: Annotated[
        list[str] | None, typer.Option("--allow-host", help="Another host where it may keep its files; repeatable.")
    ] = None,
    most_gb: Annotated[float, typer.Option("--most-gb", help="Refuse what is larger.")] = 8.0,
) -> Outcome:
    """Fetch a bundle from the Hugging Face hub or an OCI registry, and unpack it as `unpack` does.

    A revision (hf://ORG/NAME@COMMIT) or a digest (oci://HOST/REPO@sha256:...) pins what is fetched; it is told anyway.

    Example: medseg bundle pull oci://registry.example/models/hippocampus:0.2.0 -o bundles --key sender.key.pub
    """
    from medseg.confinement import Reach, ports_of
    from medseg.sharing.pull import parse_reference, pull

    asked = parse_reference(reference)
    hosts = [asked.url, *(f"https://{host}" for host in allow_host or ())]
    confine_command([prepare_folder(output)], Reach(connect=ports_of(hosts)), imports="medseg.sharing.pull")
    found = pull(
        asked,
        output,
        key=key,
        replace=replace,
        allow_older=allow_older,
        as_is=as_is,
        allow_hosts=allow_host or (),
        limit_bytes=int(most_gb * 2**30),
    )
    terminal().print(f"fetched {found.pinned}")
    return received(found.unpacked, pinned=found.pinned)


def received(found: Unpacked, **facts: Any) -> Outcome:
    """Tell of a bundle that was unpacked."""
    from medseg.bundle import Bundle
    from medseg.bundle.policy import policy_state

    warn_of(found.path)
    terminal().print(f"{found.path}: version {found.version}, {found.describe()}")
    policy = policy_state(Bundle.open(found.path))
    if policy not in (None, "allowed"):
        terminal().print(str(policy), style=STYLES["warn"])
    facts |= {"version": found.version, "signed_by": found.signed_by, "authentic": found.authentic, "policy": policy}
    return Outcome({"bundle": str(found.path), **facts})


def warn_of(bundle: Path) -> None:
    """Tell what a bundle holds beside that which labelling reads."""
    from medseg.bundle import audit

    for finding in audit(bundle, "infer"):
        if finding.severity == "warn":
            terminal().print(str(finding), style=STYLES["warn"])
