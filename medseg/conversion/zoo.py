"""Bundles of MONAI's model zoo, and others made for ``monai.bundle``: taken in as they are, nothing of them executed.

What labelling never reads is left behind: TorchScript, pickles, notebooks, links. Python code under ``scripts/`` comes
along, as some networks are defined there; it runs under ``--trust-bundle`` alone.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from medseg.bundle import Bundle, require_trusted
from medseg.bundle.audit_files import judge_names, list_files
from medseg.bundle.config import config_file
from medseg.bundle.find import METADATA, is_bundle
from medseg.bundle.findings import Finding
from medseg.bundle.large_files import fetch, missing_files
from medseg.bundle.unpacking import LARGEST_DIRECTORY, extract, most_bytes, safe_members
from medseg.conversion.imported import Imported, ImportOptions, free_place
from medseg.errors import BundleError, UntrustedBundle, UsageError
from medseg.files import open_zip, prepare_folder

_LARGEST_BYTES = 16 << 30
_LEFT_OUT = ("runs/", "eval/", ".git")
_SHOWN = 8


def is_zoo(source: Path) -> bool:
    """Whether a source is the folder of a bundle for ``monai.bundle``, or a zip that holds one such folder."""
    if source.is_dir():
        return is_bundle(source) and config_file(source, "inference") is not None
    if not zipfile.is_zipfile(source):
        return False
    try:
        with open_zip(source, LARGEST_DIRECTORY) as archive:
            return any(re.fullmatch(rf"[^/]+/{METADATA}", name) for name in archive.namelist())
    except (zipfile.BadZipFile, ValueError) as error:
        raise UntrustedBundle(f"{source} is a damaged or unusual zip file ({error}); fetch it again") from error


def import_zoo(source: Path, output: Path, options: ImportOptions) -> Imported:
    """Take a bundle in, as ``output/NAME``; on an error nothing is left behind.

    The notes say what was left out, which weights are missing and where they can be had, and what of the bundle medseg
    does not run. Raises ``UntrustedBundle`` if the archive holds names outside its folder, links or a bomb, or fetched
    weights are not what was promised; ``UsageError`` if a bundle of that name exists, the source was packed by medseg,
    or weights cannot be fetched; ``BundleError`` if its metadata cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix=".medseg-partial-", dir=prepare_folder(output)) as partial:
        name, strange = _copy(source, Path(partial))
        folder, place = Path(partial) / name, free_place(output, options.name or name)
        notes = [*_left_out(folder, strange)]
        bundle = Bundle.open(folder)
        wanted, others = missing_files(folder)
        for file in wanted if options.fetch else ():
            own = fetch(file, folder)
            checked = f"{file.check}, as its list says" if file.hash_val else "its list states no hash to compare with"
            notes.append(f"{file.path} was fetched from {file.url}: {checked}; its SHA-256 is {own}")
        if not options.fetch:
            notes += [f"{file.path} is missing: give --fetch, or {file.instruction}" for file in wanted]
        notes += others
        if bundle.metadata.get("monai_version"):
            notes.append(f"made with MONAI {bundle.metadata['monai_version']}")
        try:
            require_trusted(folder, "infer")
        except BundleError as error:  # it may be run once it is trusted
            notes.append(str(error))
        folder.rename(place)
    return Imported(place, "a bundle for monai.bundle", tuple(notes))


def _copy(source: Path, partial: Path) -> tuple[str, list[Finding]]:
    """Write a bundle's files below ``partial``; its name, and what was not copied."""
    if source.is_dir():
        name = source.resolve().name
        files, strange = list_files(source)
        if strange and not strange[-1].file:
            raise UntrustedBundle(f"{source} holds {strange[-1].what}; give a copy without what runs and git left")
        for file in files:
            target = partial / name / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / file, target)
        return name, strange
    try:
        with open_zip(source, LARGEST_DIRECTORY) as archive:
            name, members = safe_members(archive, min(_LARGEST_BYTES, most_bytes(source.stat().st_size)))
            if "manifest.json" in members:
                raise UsageError(f"{source} was packed by medseg; check and open it with: medseg bundle unpack")
            extract(archive, members, {}, partial / name)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError) as error:
        raise UntrustedBundle(f"{source} is a damaged or unusual zip file ({error}); fetch it again") from error
    return name, []


def _left_out(folder: Path, strange: Sequence[Finding]) -> Iterator[str]:
    """Remove what labelling never reads; what that was, and what was not even copied, for people."""
    names, _ = list_files(folder)
    refused = {finding.file: finding.what for finding in judge_names(names)}
    kept_code = {name for name in refused if name.startswith("scripts/") and name.endswith(".py")}
    gone = {name: refused.get(name, "left by a run") for name in names if name.startswith(_LEFT_OUT) or name in refused}
    gone = {name: what for name, what in gone.items() if name not in kept_code}
    for name in gone:
        (folder / name).unlink()
    gone = {finding.file: finding.what for finding in strange} | gone
    shown = [f"{name} ({what})" for name, what in list(gone.items())[:_SHOWN]]
    if gone:
        more = f" and {len(gone) - _SHOWN} more" if len(gone) > _SHOWN else ""
        yield f"left out, since labelling never reads it: {', '.join(shown)}{more}"
