"""Received instances on disk, under names of our own.

A file is named by the SHA-256 of its SOPInstanceUID and lies in a folder named by that of its StudyInstanceUID:
UIDs from the network are never part of a path, and the same instance sent twice is one file.
"""

from __future__ import annotations

import hashlib
import warnings
from io import BytesIO
from pathlib import Path

from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError

from medseg.files import write_bytes


def hash_uid(uid: str) -> str:
    """First 24 hex digits of the SHA-256 of a UID."""
    return hashlib.sha256(uid.encode()).hexdigest()[:24]


def instance_path(folder: Path, study_uid: str, sop_instance_uid: str) -> Path:
    """Where an instance of a study lies below ``folder``."""
    return folder / hash_uid(study_uid) / f"{hash_uid(sop_instance_uid)}.dcm"


def store_instance(folder: Path, study_uid: str, sop_instance_uid: str, data: bytes) -> tuple[Path, bool]:
    """Write a DICOM file's bytes, whole or not at all.

    Returns
    -------
    tuple
        The path, and whether it is new; a file that says the same is left alone, a different one under the same
        SOPInstanceUID is replaced and counts as new.
    """
    path = instance_path(folder, study_uid, sop_instance_uid)
    if path.is_file() and _same(path.read_bytes(), data):
        return path, False
    write_bytes(path, data)
    return path, True


def _same(known: bytes, data: bytes) -> bool:
    """Whether two files hold the same instance; archives write lengths of sequences and groups in their own ways."""
    if known == data:
        return True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # odd values are no matter here
            one, other = _elements(known), _elements(data)
            return one.file_meta.TransferSyntaxUID == other.file_meta.TransferSyntaxUID and one == other
    except (InvalidDicomError, EOFError, ValueError, TypeError, LookupError, AttributeError, NotImplementedError):
        return False  # what cannot be read cannot be known to be the same


def _elements(data: bytes) -> Dataset:
    dataset: Dataset = dcmread(BytesIO(data))
    for tag in [tag for tag in dataset.keys() if tag.element == 0 or tag == 0xFFFCFFFC]:  # noqa: SIM118  a Dataset yields values
        del dataset[tag]  # lengths of groups, padding at the end
    return dataset
