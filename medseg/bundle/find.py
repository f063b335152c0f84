"""Bundles found by name or folder: in the current folder, in ``bundles/``, among those that come with medseg."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from medseg.errors import UsageError

_PACKAGE = Path(__file__).resolve().parent.parent
_INSTALLED = _PACKAGE / "_shipped" / "bundles"
_PLACES = (_INSTALLED, _PACKAGE.parent / "bundles")
_OWN = Path("bundles")
METADATA = "configs/metadata.json"
"""What makes a folder a bundle."""
LICENCE_FILE = "LICENSE"
_LICENCES = {
    "apache license": "apache-2.0",
    "mit license": "mit",
    "bsd 3-clause": "bsd-3-clause",
    "creative commons attribution-sharealike 4.0": "cc-by-sa-4.0",
    "creative commons attribution-noncommercial 4.0": "cc-by-nc-4.0",
    "creative commons attribution 4.0": "cc-by-4.0",
}


def find_bundle(path: str | PathLike[str], start: Path | None = None) -> Path:
    """Folder of a bundle that is given by its path or by a bare name.

    A folder of that path comes first, then ``bundles/NAME``, then the bundles that come with medseg. Relative paths
    begin at ``start``, by default the current folder. What is found nowhere is returned as it was given: opening it
    says what is wrong.
    """
    base, name = start or Path(), Path(path)
    if (base / name).exists() or len(name.parts) != 1:
        return base / name
    return next((place / name for place in (base / _OWN, *_PLACES) if is_bundle(place / name)), base / name)


def list_bundles() -> list[Path]:
    """Folders of the bundles that a bare name finds from here, sorted by name."""
    return list(_bundles_in(_OWN, *_PLACES).values())


def _bundles_in(*places: Path) -> dict[str, Path]:
    """Bundles by name, sorted; of several of one name that of the first place counts."""
    folders = (folder for place in reversed(places) if place.is_dir() for folder in place.iterdir())
    return dict(sorted({folder.name: folder for folder in folders if is_bundle(folder)}.items()))


def shipped_bundle(name: str) -> Path:
    """Folder of a bundle that comes with medseg (else ``UsageError``); copy it before training writes into it."""
    shipped = _bundles_in(*_PLACES)
    if name not in shipped:
        raise UsageError(f"medseg ships no bundle {name!r}; it ships {', '.join(shipped)}")
    return shipped[name]


def is_installed_with_medseg(folder: str | PathLike[str]) -> bool:
    """Whether a folder belongs to the installed package, where the next update would overwrite what is written."""
    return Path(folder).resolve().is_relative_to(_INSTALLED)


def licence_in(text: str) -> str:
    """Name of the licence whose text this is, as Hugging Face spells it; empty if it is another."""
    words = " ".join(text.lower().split())
    return next((name for phrase, name in _LICENCES.items() if phrase in words), "")


def licence_named(metadata: Mapping[str, Any], text: str) -> str:
    """The licence that a bundle's metadata state, else that of its licence file's text, else where to read it."""
    stated = metadata.get("license")
    return str(stated) if stated else licence_in(text) or (f"see its {LICENCE_FILE}" if text else "not stated")


def origin_of(folder: Path, metadata: Mapping[str, Any]) -> str:
    """Where a bundle comes from: shipped with medseg, imported from another tool, or made or unpacked here."""
    if any(folder.resolve().is_relative_to(place.resolve()) for place in _PLACES):
        return "shipped with medseg"
    imported = metadata.get("imported")
    return f"imported: {imported.get('origin', 'of unknown origin')}" if imported else "local"


def is_bundle(folder: Path) -> bool:
    """Whether a folder holds a bundle's metadata."""
    return (folder / METADATA).is_file()


def no_bundle(folder: Path) -> str:
    """What is wrong with a folder that is no bundle, and what to do."""
    if folder.is_file():
        remedy = f"open an archive with: medseg bundle unpack {folder} -o bundles"
        return f"{folder} is a file, not a bundle's folder; {remedy}"
    what = "configs/metadata.json is missing" if folder.exists() else "there is no such folder"
    names = ", ".join(path.name for path in list_bundles())
    return f"{folder} is not a bundle: {what}; give a bundle's folder, or a name that is known here: {names or 'none'}"
