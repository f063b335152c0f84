"""Data sets on their way in: held on disk and to their limits while they arrive, never whole in memory."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from medseg.ingest.dicom_elements import read_elements
from medseg.pacs.pdu import Violation

_PREFIX = ".medseg-incoming-"
_TICKET_BYTES = 16
_IN_MEMORY_BYTES = 2**20
_CHECKED_BYTES = 16 * 2**20
_STUDY_UID, _SOP_UID = 0x0020000D, 0x00080018
_LONGEST_UID = 64


class Spool:
    """One data set as it arrives, fragment by fragment.

    ``refused`` says why it is not kept; the rest of such a data set is read and dropped, so that its sender gets an
    answer. A data set of more than twice the allowed size gets none.
    """

    def __init__(self, folder: Path, most_bytes: float, min_free_bytes: float) -> None:
        self.file: IO[bytes] = tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES, dir=str(folder))  # noqa: SIM115  closed by its taker
        self.size, self.refused = 0, ""
        self._folder, self._most, self._min_free, self._next_check = folder, most_bytes, min_free_bytes, 0

    def write(self, data: memoryview) -> None:
        """Take a fragment. Raises ``Violation`` if the data set does not end."""
        self.size += len(data)
        if self.size > 2 * self._most:
            raise Violation("a data set of more than twice the allowed size")
        if not self.refused:
            try:
                self._take(data)
            except OSError as error:
                self._refuse(f"it could not be written ({error.strerror})")

    def _take(self, data: memoryview) -> None:
        if self.size > self._most:
            self._refuse(f"it is larger than the {self._most / 2**20:g} MiB of max_instance_mb")
            return
        if self.size > self._next_check:
            self._next_check = self.size + _CHECKED_BYTES
            if shutil.disk_usage(self._folder).free < self._min_free:
                self._refuse(f"less than the {self._min_free / 2**30:g} GB of min_free_gb are free")
                return
        self.file.write(data)

    def _refuse(self, why: str) -> None:
        self.refused = why
        self.file.close()


@dataclass(frozen=True)
class Arrived:
    """An instance in a file of the DICOM format; ``study_uid`` is empty if its data set names none."""

    path: Path
    study_uid: str
    sop_instance_uid: str


def clear_incoming(folder: Path) -> None:
    """Delete what killed processes left half-arrived below ``folder`` (call it while no other process uses it)."""
    for leftover in folder.glob(f"{_PREFIX}*"):
        shutil.rmtree(leftover, ignore_errors=True)


class Incoming:
    """Data sets that are arriving below ``folder``; a context manager that leaves nothing behind."""

    def __init__(self, folder: Path, max_instance_mb: float = 2048, min_free_gb: float = 0.0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._limits = max_instance_mb * 2**20, min_free_gb * 2**30
        self._place = tempfile.TemporaryDirectory(dir=folder, prefix=_PREFIX, ignore_cleanup_errors=True)
        self._waiting: dict[bytes, Spool] = {}
        self._reading = threading.Lock()

    def __enter__(self) -> Incoming:
        return self

    def __exit__(self, *_: object) -> None:
        for ticket in list(self._waiting):
            self.drop(ticket)
        self._place.cleanup()

    def open(self) -> Spool:
        """Room for a data set that begins to arrive."""
        return Spool(Path(self._place.name), *self._limits)

    def deposit(self, spool: Spool) -> bytes:
        """Keep a data set that has come whole; returns the ticket that :meth:`file` finds it by."""
        ticket = secrets.token_bytes(_TICKET_BYTES)
        self._waiting[ticket] = spool
        return ticket

    def drop(self, ticket: bytes) -> None:
        """Forget a data set that nobody asked for."""
        if spool := self._waiting.pop(ticket, None):
            spool.file.close()

    @contextmanager
    def file(self, event: Any) -> Iterator[Arrived | str]:
        """The instance of a C-STORE event as a file that is gone after the block, unless it was moved.

        Gives the reason instead if the instance was refused as it came. Raises ``OSError`` if it cannot be written.
        """
        encoded = event.encoded_dataset()
        data = event.request.DataSet.getvalue()
        spool = self._waiting.pop(data, None)
        if spool is not None and spool.refused:
            yield spool.refused
            return
        stream = BytesIO(data) if spool is None else spool.file
        path = Path(self._place.name) / f"{secrets.token_hex(8)}.dcm"
        try:
            with stream, path.open("xb") as target:
                stream.seek(0)
                target.write(encoded[: len(encoded) - len(data)])
                shutil.copyfileobj(stream, target, _IN_MEMORY_BYTES)
            yield self._look(path)
        finally:
            path.unlink(missing_ok=True)

    def _look(self, path: Path) -> Arrived:
        with self._reading:  # a header may take 64 MiB: one at a time
            found = read_elements(path, {_STUDY_UID, _SOP_UID})
        values = {} if found is None else found.values
        study, instance = (_plain(values.get(tag, b"")) for tag in (_STUDY_UID, _SOP_UID))
        return Arrived(path, study, instance)


def _plain(value: bytes) -> str:
    """A UID without its padding; empty if it is no text, or longer than a UID may be."""
    text = value.rstrip(b"\0 ").decode("ascii", "replace")
    return text if len(text) <= _LONGEST_UID and text.isprintable() else ""
