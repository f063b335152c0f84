"""One process per folder: a lock that the operating system lets go when its holder ends, however it ends."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medseg.errors import OutputLocked

__all__ = ["locked_folder"]

_NAME = ".lock"


@contextmanager
def locked_folder(folder: Path, refusal: str) -> Iterator[None]:
    """Keep other processes out of ``folder``, which is made if needed.

    Processes that this one forks meanwhile hold the lock, too. A batch of inference, which must go on at once after
    its driver was killed, has a lock of its own: :func:`medseg.inference.journal.locked`.

    Parameters
    ----------
    folder
        The folder.
    refusal
        What to say if another process holds it.

    Raises
    ------
    OutputLocked
        If another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _NAME).open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputLocked(refusal) from error
        yield
