"""DICOMweb (PS3.18) through dicomweb-client: QIDO-RS, WADO-RS, STOW-RS."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from medseg.errors import MissingDependency
from medseg.files import arriving
from medseg.pacs.receive import store_instance
from medseg.pacs.remote import LimitExceeded, Meter, PacsError, SendResult, StudyMatch
from medseg.pacs.settings import WebNode

try:
    import requests
    from dicomweb_client.api import DICOMwebClient
    from dicomweb_client.session_utils import create_session, create_session_from_user_pass
    from urllib3.exceptions import HTTPError as TransportError
except ImportError as error:
    raise MissingDependency("dicomweb-client", "pacs", "DICOMweb") from error

_AS_STORED = (("application/dicom", "*"),)
"""Ask for instances in the transfer syntax they are stored in, so that nothing is decoded on the way."""

_BATCH_BYTES = 64 * 2**20

_CONTENT_REFUSED = (400, 409, 413, 415, 422)
"""HTTP states that may be the fault of one instance in a request, not of the URL or the credentials."""


_MOST_LIST_BYTES = 256 * 2**20
"""Largest list of matches that is read."""

_MOST_REDIRECTS = 3
_MIN_BYTES_PER_SECOND = 1024

_UNREADABLE = (InvalidDicomError, ValueError, TypeError, LookupError, AttributeError, RecursionError, struct.error)
"""What reading an answer raises that is not what was asked for."""


class _Held:
    """A hook of requests that holds the answers of a server to a size and a pace, as they come.

    ``taken`` counts the bytes since it was last set to 0. Answers must not be packed: asked for so, and checked.
    """

    def __init__(self, node: WebNode) -> None:
        self._node, self.taken = node, 0

    def __call__(self, response: requests.Response, **_: object) -> requests.Response:
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise PacsError(f"{self._node} packs what it answers, which was not asked for")
        response.iter_content = partial(self._chunks, response)
        return response

    def _chunks(self, response: requests.Response, *_: object, **__: object) -> Iterator[bytes]:
        is_instance = "json" not in (kind := response.headers.get("Content-Type", "")) and "xml" not in kind
        most = self._node.max_instance_mb * 2**20 if is_instance else _MOST_LIST_BYTES
        self.taken, read = 0, partial(response.raw.read1, decode_content=False)
        with response:
            try:
                for chunk in arriving(read, self._node.timeout_seconds, _MIN_BYTES_PER_SECOND):
                    self.taken += len(chunk)
                    if self.taken > most:
                        raise PacsError(f"{self._node} answers more than {most / 2**20:g} MiB without end")
                    yield chunk
            except TimeoutError as error:
                raise PacsError(f"{self._node} answers too slowly to come to an end") from error
            except TransportError as error:
                raise requests.ConnectionError(error) from error


class _ContentRefused(PacsError):
    """The server answered, and wants nothing of a request because of what is in it."""


class WebRemote:
    """Client of one DICOMweb server."""

    def __init__(self, node: WebNode) -> None:
        self._node = node
        password, token = node.secret(node.password_env), node.secret(node.token_env)
        session = create_session_from_user_pass(node.user, password or "") if node.user else create_session()
        if node.ca:
            session.verify = node.ca
        headers = {"Authorization": f"Bearer {token}"} if token else None
        self._held = _Held(node)
        session.hooks["response"].append(self._held)
        session.headers["Accept-Encoding"] = "identity"
        session.max_redirects = _MOST_REDIRECTS
        self._client = DICOMwebClient(node.url, session=session, headers=headers, timeout=node.timeout_seconds)
        self._client.set_http_retry_params(retry=True, max_attempts=3, wait_exponential_multiplier=200)

    def echo(self) -> float:
        """Seconds that a query for one study takes."""
        begin = time.perf_counter()
        self._call(self._client.search_for_studies, limit=1)
        return time.perf_counter() - begin

    def find(self, query: Mapping[str, str], *, level: str = "STUDY", limit: int = 100) -> list[StudyMatch]:
        """Studies or series that match; at most ``limit``."""
        search = self._client.search_for_series if level == "SERIES" else self._client.search_for_studies
        found = self._call(search, search_filters=dict(query), limit=limit)
        return [self._call(lambda item: StudyMatch.of(Dataset.from_json(item)), item) for item in found]

    def meter(self) -> Meter:
        """Counter of one transfer under this server's limits."""
        return Meter(self._node.limits, str(self._node))

    def fetch(
        self, study_uid: str, series_uid: str | None, folder: Path, *, meter: Meter | None = None
    ) -> Iterator[Path]:
        """Bring a study or series by WADO-RS, streamed, as stored."""
        meter = meter or self.meter()
        if series_uid:
            arriving = self._call(self._client.iter_series, study_uid, series_uid, media_types=_AS_STORED)
        else:
            arriving = self._call(self._client.iter_study, study_uid, media_types=_AS_STORED)
        while (instance := self._call(next, arriving, None)) is not None:
            self._held.taken = 0
            data = self._call(_encoded, instance, study_uid)
            meter.count(len(data))
            yield self._keep(folder, study_uid, str(instance.SOPInstanceUID), data)

    def _keep(self, folder: Path, study_uid: str, sop_instance_uid: str, data: bytes) -> Path:
        try:
            return store_instance(folder, study_uid, sop_instance_uid, data)[0]
        except OSError as error:
            why = f"an instance could not be written ({error.strerror})"
            raise PacsError(f"{why}; free space and start again") from error

    def send(self, files: Sequence[Path]) -> SendResult:
        """Store files by STOW-RS in requests of bounded size."""
        sent: list[Path] = []
        failed: dict[Path, str] = {}
        meter = self.meter()
        for batch in _batches(files):
            allowed = []
            for path in batch:
                try:
                    meter.count(_size(path))
                    allowed.append(path)
                except LimitExceeded as error:
                    failed[path] = str(error)
            self._store(allowed, sent, failed)
        return SendResult(tuple(sent), failed)

    def _store(self, paths: Sequence[Path], sent: list[Path], failed: dict[Path, str]) -> None:
        instances: dict[str, tuple[Path, Dataset]] = {}
        for path in paths:
            try:
                instance = dcmread(path)
                instances[str(instance.SOPInstanceUID)] = (path, instance)
            except (OSError, InvalidDicomError, AttributeError) as error:
                failed[path] = f"not a DICOM file that can be sent: {error}"
        if not instances:
            return
        try:
            answer = self._call(self._client.store_instances, [instance for _, instance in instances.values()])
        except _ContentRefused as error:
            self._store_halves([path for path, _ in instances.values()], sent, failed, str(error))
            return
        # On success FailedSOPSequence may be present and empty: its length tells, not its presence.
        refused = {
            str(item.get("ReferencedSOPInstanceUID", "")): item.get("FailureReason", 0)
            for item in answer.get("FailedSOPSequence") or []
        }
        for uid, (path, _) in instances.items():
            if uid in refused:
                failed[path] = f"STOW-RS failed with reason 0x{refused[uid]:04X}"
            else:
                sent.append(path)

    def _store_halves(self, paths: Sequence[Path], sent: list[Path], failed: dict[Path, str], reason: str) -> None:
        """Some servers refuse a whole request because of one instance: find it, so that the others go."""
        if len(paths) == 1:
            failed[paths[0]] = reason
            return
        middle = len(paths) // 2
        self._store(paths[:middle], sent, failed)
        self._store(paths[middle:], sent, failed)

    def _call(self, function: Any, *args: Any, **options: Any) -> Any:
        try:
            return function(*args, **options)
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else "?"
            if status in _CONTENT_REFUSED:
                raise _ContentRefused(f"{self._node} answered HTTP {status}; it does not take this content") from error
            raise PacsError(f"{self._node} answered HTTP {status}; check the URL and the credentials") from error
        except requests.RequestException as error:
            raise PacsError(f"{self._node} cannot be reached ({type(error).__name__}); check the URL") from error
        except _UNREADABLE as error:
            raise PacsError(f"{self._node} answered what cannot be read ({type(error).__name__})") from error


def _encoded(instance: Dataset, study_uid: str) -> bytes:
    """The bytes of an instance's file. Raises ``ValueError`` if it is of another study."""
    if str(instance.StudyInstanceUID) != study_uid or not instance.SOPInstanceUID:
        raise ValueError("an instance of another study")
    buffer = BytesIO()
    dcmwrite(buffer, instance)
    return buffer.getvalue()


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _batches(files: Sequence[Path]) -> Iterator[list[Path]]:
    batch: list[Path] = []
    size = 0
    for path in files:
        if batch and size + _size(path) > _BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(path)
        size += _size(path)
    if batch:
        yield batch
