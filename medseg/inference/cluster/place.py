"""Where the workers are: what ``--cluster`` says."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from medseg.errors import UsageError

__all__ = ["Place", "parse_place"]

_FORMS = "local:N (N processes on this machine), slurm, slurm:FILE or the address of a Dask scheduler (tcp://HOST:PORT)"


@dataclass(frozen=True)
class Place:
    """Where the workers are.

    Parameters
    ----------
    kind
        ``"local"``: processes on this machine; ``"slurm"``: jobs; ``"scheduler"``: whatever an address leads to.
    detail
        The number of processes, the settings file (may be empty), or the address.
    """

    kind: Literal["local", "slurm", "scheduler"]
    detail: str


def parse_place(text: str) -> Place:
    """Read what ``--cluster`` says.

    Raises
    ------
    UsageError
        If it is none of the known forms.
    """
    kind, _, detail = text.partition(":")
    if kind == "local" and re.fullmatch(r"[1-9]\d{0,3}", detail):
        return Place("local", detail)
    if kind == "slurm":
        return Place("slurm", detail)
    if re.fullmatch(r"(\w+://)?[^/\s]+:\d+", text) and kind != "local":
        return Place("scheduler", text)
    raise UsageError(f"--cluster {text}: expected {_FORMS}")
