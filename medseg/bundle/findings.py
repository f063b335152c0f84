"""What an audit or a verification found: how serious, where, which commands it concerns, and why it matters."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["block", "warn", "info"]

Command = Literal["infer", "train", "evaluate", "monai"]
"""What may read a bundle: ``medseg infer`` and all that runs its network (verify, pack, export, trust); ``medseg
train``; ``python -m monai.bundle run`` with ``evaluate.json`` laid over ``train.json``, and with whatever config it is
given."""

COMMANDS: tuple[Command, ...] = ("infer", "train", "evaluate", "monai")
SPOKEN: dict[Command, str] = {
    "infer": "medseg infer",
    "train": "medseg train",
    "evaluate": "python -m monai.bundle run evaluating",
    "monai": "python -m monai.bundle run",
}
"""How the commands are called."""

_READ: tuple[tuple[re.Pattern[str], tuple[Command, ...]], ...] = (
    (re.compile(r"configs/inference\.(json|ya?ml)|trust/.*"), ("infer", "monai")),
    (re.compile(r"configs/metadata\.json"), COMMANDS),
    # readers of images follow what such a header names
    (re.compile(r".*\.(mhd|mha|nhdr|nrrd|hdr|vti)", re.IGNORECASE), COMMANDS),
    # a data set of the bundle's own may name such arrays
    (re.compile(r".*\.(npy|npz|pkl|pickle)", re.IGNORECASE), ("train", "evaluate", "monai")),
    (re.compile(r"configs/(train|datalist)\.(json|ya?ml)"), ("train", "evaluate", "monai")),
    (re.compile(r"configs/(evaluate\.(json|ya?ml)|logging\.conf)"), ("evaluate", "monai")),
    (re.compile(r".*\.(ipynb|sh)"), ()),  # for people
    # MONAI puts the bundle's folder before all others on the path of Python's imports while it trains or runs it, so
    # that a file of another place can hide a module of any library; a script is imported where a config names it alone
    (re.compile(r"(?!scripts/).*\.(py|pyc|pyd|so|pth)"), ("train", "evaluate", "monai")),
)
"""Which command reads a file, by its path in the bundle: MONAI's own may read any, and weights that ``inference.json``
names count for all."""

_RANK: dict[str, int] = {"block": 0, "warn": 1, "info": 2}


@dataclass(frozen=True)
class Finding:
    """One thing a reader of the bundle should know."""

    # ``block``: the bundle must not be used as it is; ``warn``: it works, but something is unusual; ``info``: what it
    # does, for the record
    severity: Severity
    file: str  # path inside the bundle, with forward slashes
    # where in the file: the config id (``train::trainer``), a pickle opcode, a section; empty for the whole file
    place: str
    what: str  # what was found
    why: str  # why it matters and what to do
    # the commands that read the file, and which a ``block`` therefore concerns
    commands: tuple[Command, ...] = COMMANDS

    def __str__(self) -> str:
        where = f"{self.file} at {self.place}" if self.place else self.file
        limited = self.severity != "info" and self.commands != COMMANDS
        scope = f" [{', '.join(SPOKEN[command] for command in self.commands)}]" if limited else ""
        return f"{self.severity}{scope}: {where}: {self.what}; {self.why}"

    def as_dict(self) -> dict[str, Any]:
        """Plain dictionary for ``--json``."""
        return {**asdict(self), "commands": list(self.commands)}


def read_by(file: str, weights: Collection[str] = (), others: Collection[str] = ()) -> tuple[Command, ...]:
    """The commands that read a file of a bundle.

    ``file``: Path inside the bundle. ``weights``: Files of weights that its ``inference.json`` may load. ``others``:
    All its files: medseg reads no YAML config that lies beside one of the same name in JSON.
    """
    if not file or file == "configs" or file in weights:
        return COMMANDS
    if file.endswith((".yaml", ".yml")) and {f"{file.rpartition('.')[0]}{s}" for s in (".json", ".yaml")} & (
        set(others) - {file}
    ):
        return ("monai",)
    return next((commands for pattern, commands in _READ if pattern.fullmatch(file)), ("monai",))


def blocks(findings: Iterable[Finding]) -> list[Finding]:
    """Only the findings that forbid the use of the bundle."""
    return [finding for finding in findings if finding.severity == "block"]


def sort_findings(findings: Iterable[Finding]) -> list[Finding]:
    """Most serious first, then by file and place."""
    return sorted(findings, key=lambda finding: (_RANK[finding.severity], finding.file, finding.place))
