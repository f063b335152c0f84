"""Other tools' models as bundles: what a source is, and which conversion reads it."""

from __future__ import annotations

from pathlib import Path

from medseg.conversion.imported import Imported, ImportOptions
from medseg.errors import UsageError
from medseg.files import prepare_folder


def import_bundle(source: Path, output: Path, options: ImportOptions | None = None) -> Imported:
    """Make a bundle below ``output`` of a model that another tool trained; nothing of the source is executed.

    Raises
    ------
    UsageError
        If there is no such source, or none of the conversions knows it.
    BundleError
        If it is known, and cannot be read or holds what medseg cannot run.
    """
    if not source.exists():
        raise UsageError(f"cannot find {source}; give a folder or file of a trained model")
    prepare_folder(output)
    raise UsageError(f"{source} is no model that medseg can read")
