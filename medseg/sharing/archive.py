"""Pack a bundle into one archive and unpack it again, byte by byte accounted for.

The archive is a zip file with one folder named like the bundle. ``manifest.json`` lists the SHA-256 and the size of
every other file; it is closed, so an extra file is an error like a missing one. ``manifest.sig``, if present, signs
the manifest. The same bundle gives the same bytes: files are sorted, dates and permissions are fixed, and nothing is
compressed, since compressors differ between systems.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import secrets
import shutil
import stat
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg._version import medseg_version
from medseg.bundle import Bundle, require_trusted
from medseg.bundle.audit_files import list_files
from medseg.bundle.config import read_config
from medseg.bundle.policy import MANIFEST, SIGNATURE
from medseg.bundle.privacy import DATALIST, is_text, without_names
from medseg.bundle.signing import read_private_key, sign
from medseg.bundle.training_run import TRAINING_RUN
from medseg.bundle.unpacking import FOLDER_NAME, LARGEST_DIRECTORY, extract, most_bytes, safe_members
from medseg.errors import BundleError, UntrustedBundle, UsageError
from medseg.files import atomic_path, open_zip, read_bounded, sha256_file
from medseg.sharing.archive_reader import LARGEST_MANIFEST, check_signature, member_bytes, read_manifest
from medseg.sharing.model_card import model_card
from medseg.sharing.verify import vocabulary

PROVENANCE = "provenance.json"
_LEFT_OUT = ("runs/", "eval/", ".git", MANIFEST, SIGNATURE, PROVENANCE)
_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest date that a zip file can hold
_CHUNK = 1 << 20
_LARGEST_TEXT = 64 << 20  # a datalist of a hundred thousand cases
PARTIAL = ".medseg-partial-"


@dataclass(frozen=True)
class Packed:
    """What :func:`pack` wrote: the archive, its SHA-256, its files, and the fingerprint of the signing key."""

    path: Path
    sha256: str
    files: tuple[str, ...]
    signed_by: str | None


@dataclass(frozen=True)
class Unpacked:
    """What :func:`unpack` left: the bundle's folder, its version, and the fingerprint of the key that signed it.

    ``authentic`` is true only if the signature was checked against a key that the caller gave; ``as_is``: if it was
    taken however it was packed.
    """

    path: Path
    version: str
    signed_by: str | None
    authentic: bool
    as_is: bool = False

    def describe(self) -> str:
        """Who it comes from, as far as that is known."""
        if self.authentic:
            return f"signed by {self.signed_by}, the key you gave"
        if self.signed_by:
            return f"signed by {self.signed_by}; give --key to check that this is the sender's key"
        if self.as_is:
            return "not signed, and taken as it is: nothing shows where it comes from, or that it is complete"
        return "not signed: complete and unchanged since it was packed, but anyone can have packed it"


def pack(bundle: str | Path, output: str | Path, *, key: str | Path | None = None, with_names: bool = False) -> Packed:
    """Pack the bundle in a folder into one deterministic archive.

    Adds ``models/model.safetensors`` (from ``model.pt``, if it is missing), a model card (``README.md``),
    ``provenance.json`` and ``manifest.json``; the bundle itself is not changed. Folders that runs leave behind
    (``runs/``, ``eval/``) are left out. The packed datalist has numbers for file names and patients, and the configs
    name no folder of this machine (:mod:`medseg.bundle.privacy`).

    Parameters
    ----------
    with_names
        Keep file names, patient ids and folders as they are, for public data.

    Raises
    ------
    UntrustedBundle
        If the bundle does not pass the audit; nobody could use it.
    BundleError
        If it has no weights, or one of its texts tells a file name or patient id of the datalist, or a folder of this
        machine.
    """
    opened = Bundle.open(bundle)
    require_trusted(opened.path, "infer")
    private = read_private_key(key) if key is not None else None
    sources = _contents(opened, with_names=with_names)
    manifest = _manifest(opened, sources)
    sources[MANIFEST] = manifest
    if private is not None:
        sources[SIGNATURE] = sign(manifest, private)
    with atomic_path(output) as partial:
        _write_zip(partial, opened.name, sources)
    signed_by = json.loads(_bytes_of(sources[SIGNATURE]))["fingerprint"] if private is not None else None
    return Packed(Path(output), sha256_file(output), tuple(sorted(sources)), signed_by)


def unpack(
    archive: str | Path,
    output: str | Path,
    *,
    key: str | Path | None = None,
    replace: bool = False,
    allow_older: bool = False,
    as_is: bool = False,
    limit_bytes: int = 8 << 30,
) -> Unpacked:
    """Unpack an archive of one bundle into ``output/NAME``; on any doubt nothing is left behind.

    Parameters
    ----------
    output
        Folder in which the bundle's folder is created.
    key
        The sender's public key file; with it an unsigned bundle or one signed by another key is refused.
    replace
        Put the bundle in the place of an existing one, which is kept as ``NAME-VERSION``.
    allow_older
        Let ``replace`` go back to an older version.
    as_is
        Take an archive that :func:`pack` did not write, whose completeness nobody can check, and let it hold what
        labelling never reads, such as scripts: the commands that would read it refuse it then.

    Raises
    ------
    UntrustedBundle
        Names outside the folder, links, doubled or extra files, wrong sums, wrong signature, a bomb, a roll-back, or
        contents that do not pass the audit.
    UsageError
        If the archive is missing, or the bundle exists and ``replace`` is not given.
    """
    path = Path(archive)
    if not path.is_file():
        raise UsageError(f"{path} is not a file; give the archive that `medseg bundle pack` wrote")
    target = Path(output)
    target.mkdir(parents=True, exist_ok=True)
    partial = target / f"{PARTIAL}{secrets.token_hex(4)}"
    try:
        with open_zip(path, LARGEST_DIRECTORY) as source:
            name, members = safe_members(source, min(limit_bytes, most_bytes(path.stat().st_size)))
            manifest = member_bytes(source, members, MANIFEST, LARGEST_MANIFEST)
            signed_by = check_signature(source, members, manifest, key)
            sums = {} if as_is and manifest is None else read_manifest(manifest, members, name)
            extract(source, members, sums, partial / name)
        require_trusted(partial / name, "infer" if as_is else "all")
        version = Bundle.open(partial / name).version
        _install(partial / name, target / name, replace=replace, allow_older=allow_older)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError) as error:
        raise UntrustedBundle(f"{path} is a damaged or unusual zip file ({error}); ask for it again") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Unpacked(target / name, version, signed_by, key is not None, as_is)


def _open(source: Path | bytes) -> io.BytesIO | io.BufferedReader:
    return io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")


def _size(source: Path | bytes) -> int:
    return len(source) if isinstance(source, bytes) else source.stat().st_size


def _bytes_of(source: Path | bytes) -> bytes:
    return source if isinstance(source, bytes) else source.read_bytes()


def _text_of(source: Path | bytes) -> bytes:
    """The bytes of a text, which is read for names."""
    if isinstance(source, bytes):
        return source
    try:
        return read_bounded(source, _LARGEST_TEXT)
    except ValueError as error:
        raise BundleError(f"{source} cannot be a text to share: {error}") from error


def _contents(bundle: Bundle, *, with_names: bool) -> dict[str, Path | bytes]:
    """Relative path of every file to pack, with where its bytes are."""
    names, _ = list_files(bundle.path)
    sources: dict[str, Path | bytes] = {
        name: bundle.path / name for name in names if not name.startswith(_LEFT_OUT) and PARTIAL not in name
    }
    if not FOLDER_NAME.fullmatch(bundle.name):
        raise BundleError(f"the folder name {bundle.name!r} cannot be shared; use letters, digits, _, - and .")
    if "models/model.safetensors" not in sources:
        from safetensors.torch import save

        state = {
            name: tensor.detach().clone().contiguous() for name, tensor in bundle.load_network().state_dict().items()
        }
        # one metadata key, since more make the bytes depend on chance
        sources["models/model.safetensors"] = save(state, {"format": "pt"})
    sources.setdefault("README.md", model_card(bundle).encode())
    if not with_names:
        texts = {name: _text_of(source) for name, source in sources.items() if is_text(name)}
        sources.update(without_names(texts, (bundle.name, *bundle.labels.values()), vocabulary()))
    sources[PROVENANCE] = _json(_provenance(bundle, sources))
    return sources


def _provenance(bundle: Bundle, sources: Mapping[str, Path | bytes]) -> dict[str, Any]:
    """Where the bundle comes from: code, data and training run; no dates, so that it is reproducible."""
    run = bundle.path / TRAINING_RUN
    return {
        "medseg": medseg_version(),
        "bundle": {"name": bundle.name, "version": bundle.version},
        "datalist_sha256": hashlib.sha256(_bytes_of(sources[DATALIST])).hexdigest() if DATALIST in sources else None,
        "training_run": read_config(run) if run.is_file() else bundle.metadata.get("training_run"),
        "monai": bundle.metadata.get("monai_version"),
        "torch": bundle.metadata.get("pytorch_version"),
    }


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def _manifest(bundle: Bundle, sources: Mapping[str, Path | bytes]) -> bytes:
    files = {}
    for name, source in sorted(sources.items()):
        with _open(source) as handle:
            files[name] = {"sha256": hashlib.file_digest(handle, "sha256").hexdigest(), "bytes": _size(source)}
    return _json({"format": "medseg-bundle-1", "name": bundle.name, "version": bundle.version, "files": files})


def _write_zip(path: Path, root: str, sources: Mapping[str, Path | bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, source in sorted(sources.items()):
            info = zipfile.ZipInfo(f"{root}/{name}", _DATE)
            info.create_system = 3
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            info.file_size = _size(source)
            with archive.open(info, "w") as member, _open(source) as handle:
                shutil.copyfileobj(handle, member, _CHUNK)


def _install(new: Path, place: Path, *, replace: bool, allow_older: bool) -> None:
    """Move the checked folder to its place; an existing bundle is kept under its version."""
    if not place.exists():
        new.replace(place)
        return
    old, found = Bundle.open(place).version, Bundle.open(new).version
    if not allow_older and _version(found) < _version(old):
        why = f"{place} holds version {old}, the archive is older ({found})"
        raise UntrustedBundle(f"{why}; give --allow-older to go back")
    if not replace:
        raise UsageError(f"{place} exists (version {old}); give --replace to put version {found} in its place")
    kept = place.with_name(f"{place.name}-{old}")
    if kept.exists():
        raise UsageError(f"{kept} exists, where version {old} would be kept; move it away")
    place.rename(kept)
    new.replace(place)


def _version(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d+(\.\d+){0,3}", text):
        raise BundleError(f"the version {text!r} is not of the form 1.2.3, so it cannot be compared")
    return tuple(int(part) for part in text.split("."))
