"""Judge the files in a bundle's folder that are no configs: which kinds there are, and what each may hold.

``logging.conf`` names classes and arguments that Python's logging evaluates. A PyTorch archive holds ``data.pkl``, a
program for the pickle machine, read here opcode by opcode: only the opcodes and the few globals that a bare state dict
needs are allowed. (torch lists the globals of a checkpoint, too, but has to be imported for it, and looks neither at
the opcodes nor at the rest of the archive.) The header of safetensors is judged by its own library.
"""

from __future__ import annotations

import configparser
import os
import pickletools
import re
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from medseg.bundle.findings import Finding

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
            yield Finding("info", file, str(number), f"fetches {entry['url']}", "medseg itself never fetches it")


_HANDLERS = frozenset({"StreamHandler", "logging.StreamHandler", "NullHandler", "logging.NullHandler"})
_ARGUMENTS = re.compile(r"\(\s*(sys\.(stdout|stderr)\s*,?\s*)?\)")
_OPTIONS = {
    "handler": frozenset({"class", "level", "formatter", "args"}),
    "formatter": frozenset({"format", "datefmt", "style", "class", "validate"}),
    "logger": frozenset({"level", "handlers", "qualname", "propagate"}),
}


def judge_logging_conf(text: str, file: str) -> list[Finding]:
    """Findings on a ``logging.conf``: only handlers that write to the terminal, with literal arguments, are allowed."""
    parser = configparser.ConfigParser()
    try:
        parser.read_string(text)
        problems = list(_problems(parser))
    except (configparser.Error, ValueError) as error:
        problems = [("", f"it cannot be read: {str(error).splitlines()[0]}")]
    why = "Python's logging would import and evaluate it; use a StreamHandler with (sys.stdout,)"
    return [Finding("block", file, place, what, why) for place, what in problems]


def _problems(parser: configparser.ConfigParser) -> Iterator[tuple[str, str]]:
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


_PICKLE_LIMIT = 64 * 1024 * 1024
_STORAGES = "Float Double Half BFloat16 Long Int Short Char Byte Bool"
_GLOBALS = frozenset(
    {
        "collections OrderedDict",
        "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_parameter",
        "torch.storage UntypedStorage",
        "torch Size",
        *(f"torch {name}Storage" for name in _STORAGES.split()),
    }
)
_OPCODES = frozenset(
    {"PROTO", "FRAME", "STOP", "MARK", "MEMOIZE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "NONE", "NEWTRUE"}
    | {"NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
    | {"EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "DICT", "LIST", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "SETITEM"}
    | {"SETITEMS", "APPEND", "APPENDS", "GLOBAL", "REDUCE", "BUILD", "BINPERSID"}
)


def judge_torch_archive(path: Path, file: str) -> list[Finding]:
    """Findings on a ``.pt`` file; a PyTorch zip archive whose pickle builds a state dict and no more passes."""

    def found(what: str, why: str = "loading it can run code; save a bare state_dict()", place: str = "") -> Finding:
        return Finding("block", file, place, what, why)

    if not zipfile.is_zipfile(path):
        return [found("not a PyTorch zip archive", "the older formats are bare pickles; save it again with torch.save")]
    try:
        with zipfile.ZipFile(path) as archive:
            if problem := _layout_problem(archive, path):
                return [found(problem)]
            pickled = [info for info in archive.infolist() if info.filename.endswith("/data.pkl")]
            if pickled[0].file_size > _PICKLE_LIMIT:
                return [found("its pickle is implausibly large")]
            return [found(problem, place=place) for place, problem in _pickle_problems(archive.read(pickled[0]))]
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, RuntimeError, EOFError) as error:
        return [found(f"the archive cannot be read: {error}", "readers disagree on broken archives; save it again")]


def _layout_problem(archive: zipfile.ZipFile, path: Path) -> str | None:
    names = [info.filename for info in archive.infolist()]
    roots = {name.partition("/")[0] for name in names}
    if len(set(names)) != len(names) or len(roots) != 1 or archive.comment:
        return "the archive has doubled members, several roots or a comment"
    if any(info.compress_type != zipfile.ZIP_STORED or ".." in info.filename.split("/") for info in archive.infolist()):
        return "the archive holds compressed or misnamed members"
    with path.open("rb") as handle:
        if handle.read(4) != b"PK\x03\x04":
            return "something stands before the archive"
    inside = {name.partition("/")[2] for name in names}
    if any(name.startswith("code/") or name in {"constants.pkl", "data.ts"} for name in inside):
        return "a TorchScript archive: it holds code"
    allowed = {"data.pkl", "version", "byteorder", ".format_version", ".storage_alignment", ".data/serialization_id"}
    strange = sorted(name for name in inside - allowed if not (name.startswith("data/") and name[5:].isdigit()))
    if strange:
        return f"the archive holds {strange[0]!r}, which is no part of a state dict"
    return None if "data.pkl" in inside else "the archive holds no data.pkl"


def _pickle_problems(data: bytes) -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    for opcode, argument, position in pickletools.genops(data):
        problem = None
        if opcode.name not in _OPCODES:
            problem = f"the pickle uses {opcode.name}"
        elif opcode.name == "GLOBAL" and argument not in _GLOBALS:
            problem = f"the pickle imports {str(argument).replace(' ', '.')}"
        elif opcode.name == "STOP" and position != len(data) - 1:
            problem = "something follows the end of the pickle"
        if problem and problem not in seen:
            seen.add(problem)
            yield f"data.pkl byte {position}", problem


def judge_safetensors(path: Path, file: str) -> list[Finding]:
    """Findings on a safetensors file: its header must describe the whole file, without overlaps and gaps."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):
            return []
    except (SafetensorError, OSError) as error:
        why = "the file is damaged or tampered with"
        return [Finding("block", file, "header", f"its header does not describe the file: {error}", why)]
