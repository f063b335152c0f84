"""Which run an output folder belongs to.

A worker of a cluster may outlive the run that it works for: its driver was killed, and another run has begun, perhaps
with another bundle. Before it writes, it looks here, so that nothing of an old run lands among the files of a new one.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medseg.errors import Interrupted
from medseg.files import write_text

CLAIM_NAME = ".medseg-run"


@contextmanager
def claimed(folder: Path) -> Iterator[str]:
    """Make ``folder`` this run's and give the name of the claim; use it under the folder's lock."""
    claim = secrets.token_hex(8)
    write_text(folder / CLAIM_NAME, claim)
    try:
        yield claim
    finally:
        (folder / CLAIM_NAME).unlink(missing_ok=True)


def holds(folder: Path, claim: str) -> bool:
    """Whether the folder still belongs to the run with this claim."""
    try:
        return (folder / CLAIM_NAME).read_text() == claim
    except OSError:
        return False


def require(folder: Path, claim: str) -> None:
    """Refuse to go on if the folder belongs to another run by now, or to none.

    Raises
    ------
    Interrupted
        If it does.
    """
    if not holds(folder, claim):
        raise Interrupted(f"the run that this case belongs to has ended, or another one has taken over {folder}")
