"""Other tools' models as bundles: what a source is, which conversion reads it, and what is told of the result."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from medseg.bundle import Bundle
from medseg.bundle.config import read_config
from medseg.bundle.find import METADATA
from medseg.conversion.imported import Imported, ImportOptions, free_place
from medseg.errors import UsageError
from medseg.files import prepare_folder, shown, write_json

KINDS = {
    "zoo": "a MONAI bundle, as a folder or zip",
    "nnunet": "a trained nnU-Net v2 model (plans.json, dataset.json, fold_*/checkpoint_*.pth), as a folder or zip",
    "published": "a network in TensorFlow.js layers, a TorchScript archive or safetensors",
}
"""Modules of :mod:`medseg.conversion` in the order in which they are asked, and what each reads."""


def import_bundle(
    source: Path,
    output: Path,
    options: ImportOptions | None = None,
    *,
    check: tuple[Path, Path] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Imported:
    """Make a bundle below ``output`` of a model that another tool trained; nothing of the source is executed.

    Parameters
    ----------
    source, output
        The model; the folder in which the bundle's is made. A bundle that is there is not touched.
    options
        What the source does not say of itself.
    check
        Images, and the label maps that the model gave of them where it was trained: the bundle is made only if it
        gives the same, see :func:`medseg.workflows.import_check.check_import`.
    say
        Called with one line for every case that was compared.

    Raises
    ------
    UsageError
        If there is no such source, none of the conversions knows it, or there is a bundle of that name.
    BundleError
        If it is known, and cannot be read, holds what medseg cannot run, or labels otherwise than the origin.
    """
    options = options or ImportOptions()
    if not source.exists():
        raise UsageError(f"cannot find {shown(source)}; give a folder or file of a trained model")
    prepare_folder(output)
    if options.name:
        free_place(output, options.name)
    convert = _conversion(source)
    with tempfile.TemporaryDirectory(prefix=".medseg-partial-", dir=output) as partial:
        made: Imported = convert(source, Path(partial), options)
        target = free_place(output, made.path.name)
        metadata = read_config(made.path / METADATA)
        stated = metadata.get("imported")
        # whoever made the source may have written what it is, and that it was checked
        metadata["imported"] = {**(stated if isinstance(stated, dict) else {}), "origin": made.kind}
        metadata["imported"].pop("checked", None)
        if check is not None:
            from medseg.workflows.import_check import check_import

            metadata["imported"]["checked"] = check_import(made.path, *check, say=say)
        write_json(made.path / METADATA, metadata)
        made.path.rename(target)
    told, checked = Bundle.open(target).import_state, metadata["imported"].get("checked")
    return replace(made, path=target, notes=(*made.notes, told), checked=checked)


def _conversion(source: Path) -> Callable[[Path, Path, ImportOptions], Imported]:
    for kind in KINDS:
        module: Any = import_module(f"medseg.conversion.{kind}")
        if getattr(module, f"is_{kind}")(source):
            convert: Callable[[Path, Path, ImportOptions], Imported] = getattr(module, f"import_{kind}")
            return convert
    raise UsageError(f"{shown(source)} is no model that medseg can read; expected {'; '.join(KINDS.values())}")
