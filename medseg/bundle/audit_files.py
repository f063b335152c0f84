"""Judge the files in a bundle's folder that are no configs: which kinds there are, and what each may hold.

``logging.conf`` names classes and arguments that Python's logging evaluates. Weights are judged in
:mod:`medseg.bundle.audit_weights`.
"""

from __future__ import annotations

import configparser
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from medseg.bundle.findings import Finding
from medseg.bundle.text_limits import read_text_file

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
LARGE_FILES = ("large_files.yml", "large_files.yaml", "large_files.json")
"""Where a bundle lists weights that lie elsewhere, as MONAI looks for it."""
_LARGE_FILE = {
    "path": re.compile(r"(?!/|.*\.\.)[\w./-]+\.(pt|safetensors)", re.ASCII),
    "url": re.compile(r"https://\S+", re.ASCII),
    "hash_val": re.compile(r"[0-9a-fA-F]*"),
    "hash_type": re.compile(r"\w*", re.ASCII),
}
"""What may stand in ``large_files.yml``, as MONAI's model zoo writes it."""


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
            what = f"its name differs from {other} in case only"
            yield Finding("block", name, "", what, "systems disagree on which is read")
        path = PurePosixPath(name.lower())
        suffix = ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix
        if suffix in _CODE:
            why = "a bundle is pure data; medseg never runs code that comes with one"
            yield Finding("block", name, "", _CODE[suffix], why)
        elif suffix not in _KNOWN_SUFFIXES and path.name not in _KNOWN_NAMES and not _TRAINING_LOG.fullmatch(name):
            why = "only known kinds of data belong into a bundle; remove it"
            yield Finding("block", name, "", "a file of an unknown kind", why)


def judge_large_files(content: Any, file: str) -> Iterator[Finding]:
    """Findings on a parsed ``large_files.yml``: weights below the bundle, fetched over https, and nothing else."""
    entries = content.get("large_files") if isinstance(content, dict) else content
    for number, entry in enumerate(entries if isinstance(entries, list) else [entries]):
        if not isinstance(entry, dict):
            yield Finding("block", file, str(number), "no plain list of files", "write path, url, hash_val, hash_type")
            continue
        for key, value in entry.items():
            if key not in _LARGE_FILE or not _LARGE_FILE[key].fullmatch(str(value)):
                why = "only weights below the bundle may be fetched, over https, and checked by a hash"
                yield Finding("block", file, f"{number}::{key}", f"{key} is {value!r}", why)
        if "url" in entry:
            why = "medseg fetches it on request only: medseg bundle import --fetch"
            yield Finding("info", file, str(number), f"fetches {entry['url']}", why)


_HANDLERS = frozenset({"StreamHandler", "logging.StreamHandler", "NullHandler", "logging.NullHandler"})
_ARGUMENTS = re.compile(r"\(\s*(sys\.(stdout|stderr)\s*,?\s*)?\)")
_OPTIONS = {
    "handler": frozenset({"class", "level", "formatter", "args"}),
    "formatter": frozenset({"format", "datefmt", "style", "class", "validate"}),
    "logger": frozenset({"level", "handlers", "qualname", "propagate"}),
}


def judge_logging_conf(path: Path, file: str) -> list[Finding]:
    """Findings on a ``logging.conf``: only handlers that write to the terminal, with literal arguments, are allowed."""
    parser = configparser.RawConfigParser()  # values that name each other can grow without end; they are refused
    try:
        parser.read_string(read_text_file(path))
        problems = list(_problems(parser))
    except (configparser.Error, ValueError) as error:
        problems = [("", f"it cannot be read: {str(error).splitlines()[0]}")]
    why = "Python's logging would import and evaluate it; use a StreamHandler with (sys.stdout,)"
    return [Finding("block", file, place, what, why) for place, what in problems]


_WIDE = re.compile(r"[0-9]{4}")


def _problems(parser: configparser.RawConfigParser) -> Iterator[tuple[str, str]]:
    if parser.defaults():
        yield "DEFAULT", "defaults apply to every section"
    for section in parser.sections():
        if section in {"loggers", "handlers", "formatters"}:
            allowed = frozenset({"keys"})
        else:
            allowed = _OPTIONS.get(section.partition("_")[0], frozenset())
        for option in parser[section]:
            if option not in allowed:
                yield section, f"the option {option!r} is not allowed"
            elif option in {"class", "args"}:
                value = parser.get(section, option)
                classes = _HANDLERS if section.startswith("handler") else {"logging.Formatter"}
                if not (_ARGUMENTS.fullmatch(value.strip()) if option == "args" else value.strip() in classes):
                    yield section, f"{option} = {value!r}"
            elif option in {"format", "datefmt"} and _WIDE.search(parser.get(section, option)):
                yield section, f"{option} pads to more than 999 letters"
