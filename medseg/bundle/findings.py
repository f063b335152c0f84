"""What an audit or a verification found: how serious, where, and why it matters."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

__all__ = ["Finding", "Severity", "blocks", "sort_findings"]

Severity = Literal["block", "warn", "info"]

_RANK: dict[str, int] = {"block": 0, "warn": 1, "info": 2}


@dataclass(frozen=True)
class Finding:
    """One thing a reader of the bundle should know.

    Parameters
    ----------
    severity
        ``block``: the bundle must not be used as it is; ``warn``: it works, but something is unusual; ``info``:
        what it does, for the record.
    file
        Path inside the bundle, with forward slashes.
    place
        Where in the file: the config id (``train::trainer``), a pickle opcode, a section; empty for the whole file.
    what
        What was found.
    why
        Why it matters and what to do.
    """

    severity: Severity
    file: str
    place: str
    what: str
    why: str

    def __str__(self) -> str:
        where = f"{self.file} at {self.place}" if self.place else self.file
        return f"{self.severity}: {where}: {self.what}; {self.why}"

    def as_dict(self) -> dict[str, str]:
        """Plain dictionary for ``--json``."""
        return asdict(self)


def blocks(findings: Iterable[Finding]) -> list[Finding]:
    """Only the findings that forbid the use of the bundle."""
    return [finding for finding in findings if finding.severity == "block"]


def sort_findings(findings: Iterable[Finding]) -> list[Finding]:
    """Most serious first, then by file and place."""
    return sorted(findings, key=lambda finding: (_RANK[finding.severity], finding.file, finding.place))
