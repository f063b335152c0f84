"""Weights that a bundle keeps elsewhere: what its ``large_files.yml`` says of them, and fetching one, checked.

A file appears under its name only after its hash was compared and it was judged as weights; until then it lies beside,
and is gone if anything is wrong. Only https is spoken, whatever a server redirects to.
"""

from __future__ import annotations

import hashlib
import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from medseg.bundle.audit_files import LARGE_FILES, judge_large_files
from medseg.bundle.audit_weights import judge_safetensors, judge_torch_archive
from medseg.bundle.config import parse_config
from medseg.bundle.findings import blocks
from medseg.bundle.text_limits import read_config_bytes
from medseg.errors import BundleError, UntrustedBundle, UsageError
from medseg.files import arriving, atomic_path

_HASHES = ("md5", "sha1", "sha256", "sha512")
_TIMEOUT_S = 60.0
_LARGEST_BYTES = 16 << 30


@dataclass(frozen=True)
class LargeFile:
    """One entry: where the file belongs in the bundle, where it can be had, and its hash (empty if none is stated)."""

    path: str
    url: str
    hash_val: str = ""
    hash_type: str = "md5"

    @property
    def check(self) -> str:
        """What the file is compared with, for people."""
        return f"{self.hash_type} {self.hash_val}" if self.hash_val else "no hash is stated"

    @property
    def instruction(self) -> str:
        """How to put the file into the bundle's folder by hand."""
        where = f"put it at {self.path} in the bundle's folder"
        return f"fetch {self.url} on a machine with internet access ({self.check}) and {where}"


def missing_files(folder: Path) -> tuple[list[LargeFile], list[str]]:
    """Weights that a bundle lists and has not, and what else it lists, for people.

    Raises ``BundleError`` if the list cannot be read, or names a file twice: the second would replace the first.
    """
    found = next((folder / name for name in LARGE_FILES if (folder / name).is_file()), None)
    if found is None:
        return [], []
    try:
        content = parse_config(read_config_bytes(found), found.name)
    except (ValueError, OSError) as error:
        raise BundleError(f"{found} cannot be read: {error}") from error
    listed = content.get("large_files") if isinstance(content, Mapping) else content
    files, others, known = list[LargeFile](), list[str](), set[str]()
    for entry in listed if isinstance(listed, list) else [listed]:
        problem = next(iter(blocks(judge_large_files([entry], found.name))), None)
        file = _entry(entry) if problem is None and isinstance(entry, Mapping) else None
        if file is None:
            others.append(f"{found.name}: {problem.what if problem else 'an entry without path or url'}: not fetched")
            continue
        if (place := PurePosixPath(file.path).as_posix().casefold()) in known:
            raise BundleError(f"{found} lists {file.path} twice, expected one address for each file; correct it")
        known.add(place)
        if not (folder / file.path).is_file():
            files.append(file)
    return files, others


def _entry(entry: Mapping[str, Any]) -> LargeFile | None:
    if not {"path", "url"} <= entry.keys():
        return None
    stated = {name: str(entry.get(name) or "") for name in ("hash_val", "hash_type")}
    return LargeFile(str(entry["path"]), str(entry["url"]), stated["hash_val"].lower(), stated["hash_type"] or "md5")


def fetch(file: LargeFile, folder: Path, limit_bytes: int = _LARGEST_BYTES) -> str:
    """Fetch a file into the bundle in ``folder``; gives its SHA-256.

    Raises ``UsageError`` if it cannot be had; the message says how to put it there by hand; ``UntrustedBundle`` if what
    came has another hash, is no file of weights, or holds code.
    """
    if file.hash_val and file.hash_type not in _HASHES:
        raise BundleError(f"{file.path} has a {file.hash_type} sum, expected one of {', '.join(_HASHES)}")
    target = folder / file.path
    if not target.resolve().is_relative_to(folder.resolve()):
        raise UntrustedBundle(f"{file.path} would lie outside the bundle; not fetched")
    with atomic_path(target) as partial:
        try:
            own = _download(file.url, partial, limit_bytes)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise UsageError(f"cannot fetch {file.url}: {error}; without --fetch, {file.instruction}") from error
        _check(file, partial)
    return own


class _OnlyHttps(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if not newurl.startswith("https://"):
            raise urllib.error.URLError(f"it redirects to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _download(url: str, path: Path, limit_bytes: int) -> str:
    """Write what a server gives to ``path``, whole; its SHA-256. Certificates are those of the system."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _OnlyHttps(),
    ):
        opener.add_handler(handler)
    digest, size = hashlib.sha256(), 0
    answer = opener.open(urllib.request.Request(url), timeout=_TIMEOUT_S)  # noqa: S310  it has a handler for https alone
    if answer is None:
        raise ValueError("only https is fetched")
    with answer, path.open("xb") as handle:
        stated = answer.headers.get("Content-Length", "")
        for chunk in arriving(answer.read1, _TIMEOUT_S):
            size += len(chunk)
            if size > limit_bytes:
                raise ValueError(f"it is larger than {limit_bytes} bytes")
            digest.update(chunk)
            handle.write(chunk)
    if re.fullmatch(r"\d+", stated) and int(stated) != size:
        raise ValueError(f"{size} of {stated} bytes came")
    return digest.hexdigest()


def _check(file: LargeFile, partial: Path) -> None:
    if file.hash_val:
        with partial.open("rb") as handle:
            found = hashlib.file_digest(handle, file.hash_type).hexdigest()
        if found != file.hash_val:
            what = f"what came from {file.url} has the {file.hash_type} sum {found}, expected {file.hash_val}"
            raise UntrustedBundle(f"{what}; it was thrown away: try again, or ask whoever made the bundle")
    judge = judge_safetensors if file.path.endswith(".safetensors") else judge_torch_archive
    if problem := next(iter(blocks(judge(partial, file.path))), None):
        what = f"what came from {file.url} cannot be used as weights: {problem.what}"
        raise UntrustedBundle(f"{what}; it was thrown away: fetch the file by hand and look at it")
