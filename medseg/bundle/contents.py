"""Judge what lies in a bundle's folder: which kinds of files, and what each kind may hold."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from medseg.bundle.findings import Finding

__all__ = ["AMBIGUOUS", "judge_large_files", "judge_names", "list_files"]

AMBIGUOUS = ("a file name outside plain ASCII", "its name differs from", "more than ", "a symbolic link", "neither ")
"""How findings begin that concern what is read for what, whichever command reads it."""

_MOST_FILES = 10_000
_KNOWN_SUFFIXES = frozenset(
    {".json", ".md", ".txt", ".rst", ".conf", ".pt", ".safetensors", ".yml", ".yaml", ".csv", ".tsv", ".nii.gz"}
    | {".cff", ".bib"}
    | {".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp", ".pdf", ".sha256", ".sig"}
)
_KNOWN_NAMES = frozenset(
    {"license", "licence", "notice", "copying", "citation", "authors", "readme", ".gitattributes", ".gitignore"}
)
_TRAINING_LOG = re.compile(r"runs/.+/(\.lock|events\.out\.tfevents\.[^/]+)")
"""What training leaves below ``runs/`` beside pictures, tables and checkpoints: data that nothing executes."""
_CODE = {
    ".py": "Python code",
    ".pyc": "compiled Python code",
    ".pyd": "native code",
    ".so": "native code",
    ".pth": "a file that Python runs or unpickles",
    ".ts": "TorchScript code",
    ".ipynb": "a notebook",
    ".sh": "a shell script",
    ".pkl": "a pickle",
    ".pickle": "a pickle",
    ".npy": "an array that can be a pickle",
    ".npz": "arrays that can be pickles",
}
_LARGE_LINE = re.compile(
    r"\s*(?:-\s+)?(path|url|hash_val|hash_type)\s*:\s*(?:\"([^\"\\]*)\"|'([^']*)'|([^\s\"'#&*!|>{}\[\]%@`]\S*))\s*"
)


def list_files(folder: Path) -> tuple[list[str], list[Finding]]:
    """Regular files below ``folder`` as relative paths with forward slashes, and findings on all that is not one.

    Links are neither followed nor read.
    """
    names: list[str] = []
    findings: list[Finding] = []
    for root, folders, files in os.walk(folder, followlinks=False):
        here = Path(root)
        for entry in sorted([*folders, *files]):
            name = (here / entry).relative_to(folder).as_posix()
            mode = (here / entry).lstat().st_mode
            if stat.S_ISLNK(mode):
                findings.append(Finding("block", name, "", "a symbolic link", "it can lead out of the bundle"))
            elif stat.S_ISREG(mode):
                names.append(name)
            elif not stat.S_ISDIR(mode):
                findings.append(Finding("block", name, "", "neither a file nor a folder", "reading it can hang"))
        folders[:] = sorted(entry for entry in folders if not (here / entry).is_symlink())
        if len(names) > _MOST_FILES:
            findings.append(Finding("block", "", "", f"more than {_MOST_FILES} files", "a bundle has a few dozen"))
            break
    return names, findings


def judge_names(names: list[str]) -> Iterator[Finding]:
    """Findings on file names: only known kinds of data, plain ASCII, none that differ in case only."""
    folded: dict[str, str] = {}
    for name in names:
        if not name.isascii() or not name.isprintable() or "\\" in name:
            yield Finding("block", name, "", "a file name outside plain ASCII", "it can pass for another file")
        other = folded.setdefault(name.casefold(), name)
        if other != name:
            yield Finding(
                "block", name, "", f"its name differs from {other} in case only", "systems disagree on which is read"
            )
        yield from _kind(name)


def _kind(name: str) -> Iterator[Finding]:
    path = PurePosixPath(name.lower())
    suffix = ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix
    if suffix in _CODE:
        why = "a bundle is pure data; medseg never runs code that comes with one"
        yield Finding("block", name, "", _CODE[suffix], why)
    elif suffix not in _KNOWN_SUFFIXES and path.name not in _KNOWN_NAMES and not _TRAINING_LOG.fullmatch(name):
        why = "only known kinds of data belong into a bundle; remove it"
        yield Finding("block", name, "", "a file of an unknown kind", why)


def judge_large_files(text: str, file: str) -> Iterator[Finding]:
    """Findings on ``large_files.yml``; the simple form that MONAI's model zoo writes is read, nothing else."""
    for number, line in enumerate(text.splitlines(), 1):
        if not line.split("#", 1)[0].strip() or line.strip() in {"large_files:", "---", "-"}:
            continue
        match = _LARGE_LINE.fullmatch(line)
        place = f"line {number}"
        if match is None:
            yield Finding(
                "block", file, place, "a line that is not a plain path, url or hash", "it is not read as data"
            )
            continue
        key, value = match.group(1), next(part for part in match.groups()[1:] if part is not None)
        path = PurePosixPath(value)
        if key == "path" and (path.is_absolute() or ".." in path.parts or path.suffix not in {".pt", ".safetensors"}):
            yield Finding(
                "block", file, place, f"a download to {value!r}", "only weights below the bundle may be fetched"
            )
        if key == "url" and not value.startswith("https://"):
            yield Finding("block", file, place, f"a download from {value!r}", "only https is allowed")
        if key == "url":
            yield Finding("info", file, place, f"fetches {value}", "medseg itself never fetches it")
