"""What is known of one volume before it is read (a record), and what an image file's name tells.

The name tells its format, its case id and its other half. Nothing heavy is imported here.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from numpy.typing import NDArray

from medseg.errors import REASON_CODES, ReasonCode
from medseg.files import shown
from medseg.geometry import Geometry
from medseg.ingest.dicom_elements import may_be_dicom
from medseg.json_shape import FLAG, NUMBER, PLACE, TEXT, WHOLE, Spec, misfit, numbers, one_of, parse_json

if TYPE_CHECKING:
    from medseg.ingest.dicom_header import Header

Kind = Literal["dicom", "nifti", "metaimage", "nrrd"]
Rows = tuple[tuple[float, ...], ...]
Volume = tuple[NDArray[Any], Geometry, dict[str, Any]]
"""Values, grid and facts of one volume, as :func:`medseg.ingest.read_volume` returns them."""


@dataclass(frozen=True)
class SeriesRecord:
    """One volume, usable or refused."""

    case_id: str  # name under which results are stored; never derived from what identifies the patient
    source: str  # the folder or file to show, as given
    kind: Kind
    files: tuple[str, ...]  # for DICOM sorted along the normal of the slices
    series_uid_hash: str = ""
    study_uid_hash: str = ""
    patient_hash: str = ""
    """Hashes for grouping; empty where there is nothing to hash."""
    modality: str = ""
    description: str = ""
    shape: tuple[int, int, int] | None = None
    spacing_mm: tuple[float, float, float] | None = None
    affine: Rows | None = None
    orientation: str = ""
    """The grid: sizes along (i, j, k), mm, voxel index → mm in RAS+ as nested tuples, letters such as ``"LPS"``;
    ``None`` or empty where the volume has no sound grid."""
    transfer_syntax: str = ""
    usable: bool = False
    reason: ReasonCode | None = None
    message: str = ""
    """The verdict: whether it is usable, else a reason code and its explanation."""
    notes: tuple[str, ...] = ()  # what is worth knowing about a usable volume
    is_volume: bool = True
    """Whether it is a volume, or was meant as one; reports, single slices, dose reports and screen shots are none."""
    series_number: int | None = None
    contrast: bool | None = None  # whether the header names a contrast agent
    acquired: float | None = None
    """When it was acquired, in days from an arbitrary day (secret, one per patient): good for the order within a
    patient, useless for anything else. Only the index fills it in."""

    def to_json(self) -> str:
        """The record as one line of JSON."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> SeriesRecord:
        """The record that :meth:`to_json` wrote; a ``ValueError`` if it is something else."""
        content = parse_json(text.encode())
        if wrong := misfit(content, _RECORD):
            raise ValueError(f"of a record, {wrong}")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
        return cls(**values | {"affine": values["affine"] and tuple(map(tuple, values["affine"]))})


_SIZES = (
    (lambda value: isinstance(value, list) and len(value) == 3 and all(type(n) is int and n > 0 for n in value)),
    "three sizes",
)
_RECORD: Spec = {
    **dict.fromkeys(("case_id!", "source!"), TEXT),
    "kind!": one_of(*get_args(Kind)),
    "files!": ((lambda value: isinstance(value, list) and value and not misfit(value, [TEXT])), "a list of paths"),
    **dict.fromkeys(("series_uid_hash", "study_uid_hash", "patient_hash", "modality", "description"), TEXT),
    **dict.fromkeys(("orientation", "transfer_syntax", "message"), TEXT),
    "shape": _SIZES,
    "spacing_mm": PLACE,
    "affine": [numbers()],
    "usable!": FLAG,
    "reason": one_of(*REASON_CODES),
    "notes": [TEXT],
    "is_volume": FLAG,
    "series_number": WHOLE,
    "contrast": FLAG,
    "acquired": NUMBER,
}
"""A record as JSON."""


def grid_of(geometry: Geometry | None) -> dict[str, Any]:
    """The fields of a record that describe a grid; none where there is no sound one."""
    if geometry is None:
        return {}
    return {
        "shape": geometry.shape,
        "spacing_mm": geometry.spacing_mm,
        "affine": tuple(tuple(float(value) for value in row) for row in geometry.affine),
        "orientation": geometry.orientation,
    }


IMAGE_SUFFIXES: Final[dict[str, Kind]] = {
    **dict.fromkeys((".nii.gz", ".hdr.gz", ".img.gz", ".nii", ".hdr", ".img"), "nifti"),
    **dict.fromkeys((".mha", ".mhd"), "metaimage"),
    **dict.fromkeys((".nrrd", ".nhdr"), "nrrd"),
}
_SUFFIXES: Final = tuple(IMAGE_SUFFIXES)
_HALVES: Final = {".hdr": ".img", ".hdr.gz": ".img.gz", ".img": ".hdr", ".img.gz": ".hdr.gz"}
_CASE_DIGITS: Final = 12
_APPLE_DOUBLE: Final = (b"\0\x05\x16\x07", b"\0\x05\x16\0")


def is_apple_double(path: str | os.PathLike[str], content: str | os.PathLike[str] | None = None) -> bool:
    """Whether a file is what macOS leaves beside another one on disks that are not its own, by name and content.

    ``._t1.nii.gz`` holds attributes of ``t1.nii.gz`` and no image (RFC 1740). Its bytes may be elsewhere (``content``).
    """
    where = Path(path if content is None else content)
    if not Path(path).name.startswith("._") or not where.is_file():
        return False
    with where.open("rb") as handle:
        head = handle.read(len(_APPLE_DOUBLE[0]))
    return len(head) < len(_APPLE_DOUBLE[0]) or head in _APPLE_DOUBLE


def pair_of(path: str | os.PathLike[str]) -> tuple[str, str] | None:
    """The two halves of a NIfTI or Analyze pair, header first; ``None`` if the name is not that of a half.

    The other half is looked for beside it, whatever the case of its extension and whether it is compressed or not;
    if it is not there, its expected name is returned.
    """
    given = os.fspath(path)
    suffix = next((end for end in sorted(_HALVES, key=len, reverse=True) if given.lower().endswith(end)), None)
    if suffix is None:
        return None
    other = _other_half(given[: -len(suffix)], given[-len(suffix) :])
    return (given, other) if suffix.startswith(".hdr") else (other, given)


def _other_half(stem: str, suffix: str) -> str:
    wanted = _HALVES[suffix.lower()]
    plain = wanted.removesuffix(".gz")
    endings = dict.fromkeys((wanted, plain, f"{plain}.gz"))
    names = [stem + written for ending in endings for written in _spellings(ending, suffix)]
    return next((name for name in names if os.path.exists(name)), names[0])  # noqa: PTH110


def _spellings(ending: str, like: str) -> list[str]:
    """An extension in the letters of the other half's first, then in other ones: ``.IMG``, ``.img``, ``.Img``."""
    same = ending.upper() if like.isupper() else ending
    return list(dict.fromkeys((same, ending, ending.upper(), ending.title())))


def header_path(path: str | os.PathLike[str]) -> str:
    """The file that holds the header of an image: the first of a pair, else the file itself."""
    pair = pair_of(path)
    return os.fspath(path) if pair is None else pair[0]


def first_of_pair(path: str | os.PathLike[str]) -> str:
    """The header where a file holds the values of a pair whose header is there, else the file itself."""
    header = header_path(path)
    return header if os.path.exists(header) else os.fspath(path)  # noqa: PTH110


def is_second_of_pair(path: str | os.PathLike[str]) -> bool:
    """Whether a file holds the values of a pair whose header is there, so that it is no image of its own."""
    return first_of_pair(path) != os.fspath(path)


def image_kind(path: str | os.PathLike[str]) -> Kind | None:
    """The format that a file's name ends in; ``None`` if it is none of those read here."""
    name = os.fspath(path).lower().rstrip("/")
    return IMAGE_SUFFIXES[_suffix_of(name)] if name.endswith(_SUFFIXES) else None


def _suffix_of(name: str) -> str:
    return next((suffix for suffix in _SUFFIXES if name.lower().endswith(suffix)), "")


def dicom_header_of(path: str | os.PathLike[str]) -> Header | None:
    """The header of a file that is DICOM by its content, whatever its name (some are ``.img``); an OSError if closed.

    What reads DICOM is imported only for what may be DICOM.
    """
    if image_kind(path) is not None and not may_be_dicom(path):
        return None
    from medseg.ingest.dicom_header import read_header

    return read_header(path)


def case_id_of(path: str | os.PathLike[str]) -> str:
    """The case id of an image file: its name without the extension, see :func:`plain_name`."""
    name = Path(path).name
    suffix = _suffix_of(name)
    return plain_name(name[: -len(suffix)] if 0 < len(suffix) < len(name) else Path(name).stem)


def case_id_of_series(uid_hash: str) -> str:
    """The case id of a DICOM series: ``series-`` and the first 12 hex digits of the SHA-256 of its UID."""
    return f"series-{uid_hash[:_CASE_DIGITS]}"


def plain_name(name: str) -> str:
    """A name of a case, which names files and stands in tables: odd bytes and control characters are replaced."""
    return shown(name.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))
