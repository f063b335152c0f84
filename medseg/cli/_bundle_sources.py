"""``medseg bundle``: list, info, import: which bundles there are, and where they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from medseg.cli._app import BundleArgument, Outcome, command, terminal
from medseg.cli._bundle_app import bundle_app
from medseg.cli._startup import confine_command, import_monai_quickly
from medseg.errors import UsageError
from medseg.files import prepare_folder


@bundle_app.command(name="list")
@command
def list_() -> Outcome:
    """Show the bundles whose bare names commands understand here: those in ./bundles, and those that ship.

    Example: medseg bundle list
    """
    from medseg.bundle import Bundle
    from medseg.bundle.find import list_bundles

    rows = []
    for opened in map(Bundle.open, list_bundles()):
        trained = any((opened.path / "models").glob("model.*"))
        facts = {"version": opened.version, "task": opened.metadata.get("task", ""), "trained": trained}
        rows.append({"name": opened.name, **facts, "folder": str(opened.path)})
        state = "" if trained else ", no weights yet"
        for line in (f"{opened.name} {opened.version}{state}", f"    {facts['task']}", f"    {opened.path}"):
            terminal().print(line)
    if not rows:
        terminal().print("There is no bundle in ./bundles, and none comes with this installation.")
    return Outcome({"bundles": rows})


@bundle_app.command()
@command
def info(bundle: BundleArgument) -> Outcome:
    """Show what a bundle is: task, version, input, structures, what it was trained on, figures.

    Example: medseg bundle info bundles/hippocampus_mri_segmentation
    """
    from medseg.bundle import Bundle

    opened = Bundle.open(bundle)  # a wrong path is told before seconds go into imports
    from medseg.trust.trust_files import trust_state

    facts: dict[str, Any] = {
        "name": opened.name,
        "version": opened.version,
        "task": opened.metadata.get("task"),
        "description": opened.metadata.get("description"),
        "input_channels": opened.input_channels,
        "labels": opened.labels,
        "regions": {name: list(values) for name, values in opened.scheme.regions.items()},
        "training_range": opened.training_range,
        "eval_metrics": opened.metadata.get("eval_metrics"),
        "authors": opened.metadata.get("authors"),
        "copyright": opened.metadata.get("copyright"),
        "packages": opened.packages,
        "sha256": opened.sha256,
        "imported": opened.import_state,
    }
    state = trust_state(opened)
    for name, value in {**facts, "trust": state.describe()}.items():
        if value:
            shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
            terminal().print(f"{name:>15}  {shown}")
    return Outcome({**facts, "trust": state.as_json()})


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
    from medseg.conversion.imported import ImportOptions

    missing = [str(path) for path in (source, like, check, predicted) if path is not None and not path.exists()]
    if missing:
        raise UsageError(f"no such file or folder: {', '.join(missing)}")
    if (check is None) != (predicted is None):
        raise UsageError("--check and --predicted belong together: images, and the label maps that the origin gave")
    confine_command([prepare_folder(output)], imports="medseg.workflows.importing")
    import_monai_quickly()
    from medseg.workflows.importing import import_bundle

    pair = None if check is None or predicted is None else (check, predicted)
    options = ImportOptions(name, orientation, like, fetch)
    made = import_bundle(source, output, options, check=pair, say=terminal().print)
    for line in (f"{made.path}: made of {made.kind}", *made.notes, f"Next: medseg bundle verify {made.path}"):
        terminal().print(line)
    return Outcome({"bundle": str(made.path), "kind": made.kind, "notes": list(made.notes), "checked": made.checked})
