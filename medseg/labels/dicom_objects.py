"""DICOM objects that hold labels: which kind a file is, its data set behind checks, and which image it belongs to.

They are found out by their SOP class, whatever their names. A length that lies allocates nothing: the data set is read
from a mapping of the file, which gives no more bytes than there are. Whatever contradicts the standard on the way is
``malformed-object``, with what pydicom said of it.
"""

from __future__ import annotations

import mmap
import os
import struct
import traceback
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Final, Literal

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_dataset

from medseg.errors import Refusal
from medseg.ingest.dicom_elements import DEFLATED, open_file
from medseg.ingest.dicom_header import Header
from medseg.ingest.pseudonyms import uid_hash
from medseg.ingest.record import dicom_header_of
from medseg.labels.image_grid import ImageGrid

ObjectKind = Literal["seg", "rtstruct"]

_CLASSES: Final[dict[str, ObjectKind]] = {
    "1.2.840.10008.5.1.4.1.1.66.4": "seg",
    "1.2.840.10008.5.1.4.1.1.66.7": "seg",  # Label Map Segmentation
    "1.2.840.10008.5.1.4.1.1.481.3": "rtstruct",
}
_DELIMITERS: Final = 0xFFFE
"""Group of the tags that begin and end items: among the elements of a data set a length before them was wrong."""
_LARGEST_INFLATED: Final = 256 * 1024 * 1024
_BROKEN = (
    ArithmeticError, AttributeError, BytesLengthException, EOFError, InvalidDicomError, LookupError, MemoryError,
    NotImplementedError, RecursionError, TypeError, ValueError, struct.error, zlib.error,
)  # fmt: skip
_LONGEST_COMPLAINT = 200


def object_kind(path: str | os.PathLike[str]) -> ObjectKind | None:
    """Whether a file is a DICOM segmentation or structure set by its content; ``None`` for anything else."""
    found = label_object(path)
    return None if found is None else kind_of(found)


def label_object(path: str | os.PathLike[str]) -> Header | None:
    """The header of a DICOM segmentation or structure set; ``None`` for anything else, and for what is not readable.

    A folder that holds one file, as archives hand out series of one object, is that file.
    """
    try:
        if os.path.isdir(path):  # noqa: PTH112  names that are not UTF-8 survive
            files = list(os.scandir(path))
            path = files[0].path if len(files) == 1 and files[0].is_file() else path
        header = dicom_header_of(path)
    except OSError:
        return None
    return header if header is not None and header.sop_class_uid in _CLASSES else None


def kind_of(header: Header) -> ObjectKind:
    """The kind of a header that :func:`label_object` gave."""
    return _CLASSES[header.sop_class_uid]


@contextmanager
def well_formed(name: str) -> Iterator[None]:
    """Whatever goes wrong within while an object is taken apart is a Refusal: ``malformed-object``."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd values are judged where they are used
            yield
    except (*_BROKEN, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the file system; pydicom has its own for bytes that are no elements
        raise Refusal(
            "malformed-object",
            f"{name} cannot be read as the standard says ({_complaint(error)}); export it again, or write a label map "
            "instead",
        ) from error


def _complaint(error: BaseException) -> str:
    """What an error says if it is of this room; of a library's the class alone: it may quote what the file holds."""
    raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    said = f"{type(error).__name__}: {error}" if raised_in.parent == Path(__file__).parent else type(error).__name__
    return " ".join(said.split())[:_LONGEST_COMPLAINT]


def read_object(header: Header, name: str) -> Dataset:
    """The data set of a DICOM object without its pixel data, unless these are deflated.

    Raises ``Refusal``: ``truncated``, ``too-large``, ``unreadable``.
    """
    if header.defect == "truncated":
        raise Refusal("truncated", f"{name}: {header.defect_message}")
    try:
        with well_formed(name), open_file(header.path) as file:
            if header.size == 0:
                raise EOFError("the file is empty")
            if header.transfer_syntax == DEFLATED:
                return _inflated(file.readall()[header.data_set_offset :], name)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                return pydicom.dcmread(mapped, stop_before_pixels=True, force=True)
    except OSError as error:
        raise Refusal("unreadable", f"{name} cannot be read: {error.strerror or error}; check the file") from error


def items_of(dataset: Dataset, keyword: str) -> list[Dataset]:
    """The items of a sequence, none where it is absent; within :func:`well_formed`.

    A sequence whose length is too small leaves its items to the data set around it: they would be lost without a word.
    """
    items = list(dataset.get(keyword) or [])
    for item in (dataset, *items):
        if any(tag.group == _DELIMITERS for tag in item.keys()):  # noqa: SIM118  a data set iterates over elements
            raise ValueError(f"items lie outside of their sequence, in or beside {keyword}: a length is wrong")
    return items


def _inflated(packed: bytes, name: str) -> Dataset:
    data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, _LARGEST_INFLATED + 1)
    if len(data) > _LARGEST_INFLATED:
        raise Refusal(
            "too-large",
            f"{name} inflates to more than {_LARGEST_INFLATED >> 20} MiB; write it in Explicit VR Little Endian",
        )
    return read_dataset(BytesIO(data), is_implicit_VR=False, is_little_endian=True)


def check_belongs(
    name: str, series: frozenset[str], frame_of_reference: str, image: ImageGrid | None
) -> tuple[str, ...]:
    """Notes on how an object was found to belong to its image.

    ``name``: of the object, for messages. ``series``, ``frame_of_reference``: what the object refers to:
    SeriesInstanceUIDs and FrameOfReferenceUID, hashed. ``image``: the image that its datalist or folder pairs it with.
    Raises ``Refusal``: ``other-frame-of-reference``.
    """
    if image is None:
        return ()
    if not image.series and not image.frame_of_reference:
        return (f"{name} was paired with an image that says no series or frame of reference: by its place alone",)
    same_series = bool(image.series) and image.series in series
    if image.frame_of_reference and image.frame_of_reference == frame_of_reference:
        if same_series or not series:
            return ()
        return (f"{name} refers to another series of its image's frame of reference",)
    if same_series and not (image.frame_of_reference and frame_of_reference):
        return ()
    found = "has no frame of reference, and does not refer to the series of its image"
    if frame_of_reference:
        found = "refers to another frame of reference than its image" + (
            ", though to its series" if same_series else ""
        )
    raise Refusal(
        "other-frame-of-reference",
        f"{name} {found}: its positions mean another place; pair it with the image it was drawn on, or register the "
        "two and write the labels again on the image's grid",
    )


def hashed(uid: object) -> str:
    """A UID of an object as the index keeps them; empty where there is none."""
    return uid_hash(str(uid or "").strip("\0 "))
