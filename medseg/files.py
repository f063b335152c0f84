"""Files whole or not at all, places tried before the work, SHA-256 sums, bounded reading, one process per folder."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import lzma
import os
import secrets
import shutil
import time
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medseg.errors import OutputLocked, OutputUnusable

_PREFIX = ".medseg-partial-"
_PROBE_BYTES = 4096


def shown(text: object) -> str:
    """A name or path as it may be printed: bytes that are no text and control characters are replaced by marks.

    A file's name may hold an escape sequence for the terminal, or a line break that forges a line of a log.
    """
    readable = str(text)
    if readable.isprintable():
        return readable
    readable = readable.encode("utf-8", "replace").decode()
    return "".join("\N{REPLACEMENT CHARACTER}" if _is_control(c) else c for c in readable)


def _is_control(character: str) -> bool:
    """Control and format characters (which turn the direction of writing, too), and separators of lines."""
    category = unicodedata.category(character)
    return category.startswith("C") or category in {"Zl", "Zp"}


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary name beside ``path`` to write to; on success it becomes ``path`` in one step.

    The temporary name keeps the extension(s), since writers choose their format by it. If the body raises,
    nothing is left under either name. A killed process leaves the temporary file, which
    :func:`remove_leftovers` clears at the next start.
    """
    target = Path(path)
    _refuse_special(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{_PREFIX}{secrets.token_hex(4)}-{target.name}")
    try:
        yield partial
        with partial.open("rb+") as handle:
            os.fsync(handle.fileno())
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def prepare_folder(path: str | os.PathLike[str]) -> Path:
    """Make a folder for results and write a little into it, so that an unusable place is known before the work.

    Raises ``OutputUnusable`` if it cannot be made or written: no room, no permission, a file where a folder should be.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _try_to_write(folder)
    except (OSError, ValueError) as error:
        raise OutputUnusable(f"{shown(folder)} cannot be the folder for results: {_why(folder, error)}") from error
    return folder


def prepare_file(path: str | os.PathLike[str]) -> Path:
    """As :func:`prepare_folder`, for a file that is still to be written; one that is there is left as it is.

    Raises ``OutputUnusable`` if no file can be written there.
    """
    target = Path(path)
    try:
        _refuse_special(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        _try_to_write(target.parent, target.name)
    except (OSError, ValueError) as error:
        raise OutputUnusable(f"{shown(target)} cannot be written: {_why(target.parent, error)}") from error
    return target


def _try_to_write(folder: Path, name: str = "") -> None:
    probe = folder / f"{_PREFIX}{secrets.token_hex(4)}-{name}"
    try:
        with probe.open("xb") as handle:
            handle.write(bytes(_PROBE_BYTES))
            os.fsync(handle.fileno())
    finally:
        probe.unlink(missing_ok=True)


def _refuse_special(target: Path) -> None:
    """A folder, or a device such as /dev/full, is not replaced by a file."""
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    if target.exists() and not target.is_file():
        raise FileExistsError(errno.EEXIST, "it is not a regular file", str(target))


def _why(folder: Path, error: OSError | ValueError) -> str:
    """What stands in the way, and what to do."""
    for place in (folder, *folder.parents):
        if os.path.isfile(place):  # noqa: PTH113  False, and no error, for a name that is too long
            return f"{shown(place)} is a file, expected a folder; give another place"
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return f"{reason}; make room, change its permissions, or give another place"


@contextmanager
def whole_or_gone(folder: Path) -> Iterator[None]:
    """Nothing is left of a folder that the body writes and does not finish."""
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Delete what killed processes left half-written in ``folder`` (call it under the folder's lock)."""
    for leftover in Path(folder).glob(f"{_PREFIX}*"):
        leftover.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` to ``path``, whole or not at all."""
    with atomic_path(path) as partial:
        partial.write_bytes(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8 to ``path``, whole or not at all; bytes of a name that are no text become ``?``."""
    write_bytes(path, text.encode(errors="replace"))


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as indented JSON to ``path``, whole or not at all; NaN is refused, since JSON has none.

    A path that is not UTF-8 keeps its odd bytes as escapes (``\\udcff``), by which Python finds the file again.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_bounded(path: str | os.PathLike[str], most_bytes: int) -> bytes:
    """The bytes of a file; a ``ValueError`` if there are more, also where its size is not known before (a device)."""
    with Path(path).open("rb") as handle:
        data = handle.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise ValueError(f"it has more than {most_bytes} bytes")
    return data


class _BoundedFile(io.FileIO):
    """A file that gives no more than a limit at once."""

    def __init__(self, path: str | os.PathLike[str], limit_bytes: int) -> None:
        super().__init__(path)
        self._limit_bytes = limit_bytes

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > self._limit_bytes:
            raise zipfile.BadZipFile(f"its directory is of {size} bytes, expected at most {self._limit_bytes}")
        return super().read(-1 if size is None else size)


@contextmanager
def open_zip(path: str | os.PathLike[str], largest_directory_bytes: int = 4 << 20) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive that somebody else made, whose directory is no larger than the limit.

    ``zipfile`` reads the directory whole and makes an object of each of its entries, twenty times as large. Read
    members by :func:`read_member`, or in pieces that are smaller than the limit. Raises ``zipfile.BadZipFile`` if it is
    no zip archive, or the directory is larger; if a member that the body reads cannot be unpacked.
    """
    try:
        with _BoundedFile(path, largest_directory_bytes) as handle, zipfile.ZipFile(handle) as archive:
            yield archive
    except (zlib.error, lzma.LZMAError, NotImplementedError) as error:
        raise zipfile.BadZipFile(str(error)) from error


def read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit_bytes: int) -> bytes:
    """One member of an archive, whole, unpacking no more of it than the limit, whatever size it states.

    ``ZipFile.read`` unpacks a member to its end and cuts it to the stated size afterwards. Raises ``ValueError`` if it
    states more than ``limit_bytes``; ``zipfile.BadZipFile`` if it holds something else than it states.
    """
    if (size := max(info.file_size, info.compress_size)) > limit_bytes:
        raise ValueError(f"{info.filename} is of {size} bytes, expected at most {limit_bytes}")
    with archive.open(info) as member:
        return member.read(limit_bytes)


def arriving(read: Callable[[int], bytes], patience_s: float, least_bytes_per_s: int = 10_000) -> Iterator[bytes]:
    """What a server sends, in pieces of at most 1 MiB, each as it comes.

    ``read``: gives up to so many bytes, what is there by now, and none at the end: the ``read1`` of a response.
    (``read`` waits for all of them, however slowly they come.) ``patience_s``: over how many seconds so many bytes
    have to come in each second, on average. Raises ``TimeoutError`` if it comes more slowly than that.
    """
    begin, count = time.monotonic(), 0
    while piece := read(1 << 20):
        yield piece
        count += len(piece)
        if (passed := time.monotonic() - begin) > patience_s:
            if count < least_bytes_per_s * passed:
                raise TimeoutError("it comes too slowly to come to an end")
            begin, count = begin + passed, 0


def sha256_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits, in constant memory."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


_NAME = ".lock"


@contextmanager
def locked_folder(folder: Path, refusal: str) -> Iterator[None]:
    """Keep other processes out of ``folder``, which is made if needed.

    Processes that this one forks meanwhile hold the lock, too. A batch of inference, which must go on at once after
    its driver was killed, has a lock of its own: :func:`medseg.inference.run.state.locked`.

    Raises ``OutputLocked`` with the text ``refusal`` if another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _NAME).open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputLocked(refusal) from error
        yield
