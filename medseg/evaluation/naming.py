"""What the names of files tell: whether one may be a label map, to which case it belongs, which names mean one case."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from medseg.ingest.names import IMAGE_SUFFIXES

__all__ = ["EXTENSIONS", "case_id_of_name", "is_image_name", "is_second_half", "map_of", "match_key"]

EXTENSIONS = tuple(sorted({*IMAGE_SUFFIXES, ".mhd", ".nhdr"}, key=lambda suffix: (-len(suffix), suffix)))
"""Ends of names of volumes, longest first; compared without regard to capitals."""

_HEADERS = {".img": ".hdr", ".img.gz": ".hdr.gz"}
_MAPS = re.compile(
    r"[._-](?P<what>doubt|uncertainty|entropy|variance|logits|softmax|prob(?:s|ability|abilities)?)(?:[._-]?\d+)?$",
    re.IGNORECASE,
)
_ROLES = re.compile(
    r"[._-](?:seg|segmentation|pred|prediction|predicted|trans|labels?|mask|gt|truth|ref|reference|manual)$",
    re.IGNORECASE,
)
_CHANNEL = re.compile(r"_0000$")


def is_image_name(name: str) -> bool:
    """Whether a name ends like a volume's, and more than an extension is left of it; hidden files are none."""
    return not name.startswith(".") and _extension(name) is not None


def _extension(name: str) -> str | None:
    lower = name.lower()
    return next((suffix for suffix in EXTENSIONS if lower.endswith(suffix) and len(lower) > len(suffix)), None)


def _stem(name: str) -> str:
    return name[: -len(_extension(name) or "") or None]


def is_second_half(path: Path) -> bool:
    """Whether this is the ``.img`` of a pair whose ``.hdr`` lies beside it: one volume, not two."""
    header = _HEADERS.get(_extension(path.name) or "")
    if header is None:
        return False
    wanted = f"{_stem(path.name)}{header}".lower()
    return any(other.name.lower() == wanted for other in path.parent.iterdir())


def case_id_of_name(name: str) -> str:
    """File name without its extension and without a trailing ``_seg``."""
    stem = _stem(name)
    return stem[: -len("_seg")] if stem.lower().endswith("_seg") and len(stem) > len("_seg") else stem


def map_of(name: str) -> str:
    """Which map a file is by its name (``"doubt"``, ``"probabilities"`` …); empty if it may be a label map."""
    found = _MAPS.search(_stem(name))
    return found["what"].lower() if found else ""


def match_key(case_id: str) -> str:
    """What two names of one case have in common.

    Capitals, the two ways in which Unicode writes an accented letter, blanks round the name, what a file is for
    (``_pred``, ``_mask`` …) and nnU-Net's ``_0000`` of the first channel do not count.
    """
    key = unicodedata.normalize("NFC", case_id).strip()
    while (shorter := _ROLES.sub("", _CHANNEL.sub("", key))) not in ("", key):
        key = shorter
    return key.casefold()
