"""How large and how deep a bundle's texts may be, asked before, while and after they are parsed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medseg.files import read_bounded
from medseg.json_shape import ANYTHING, FLAG, PLACE, TEXT, Spec, either, number, numbered, one_of, whole

_LARGEST_BYTES = {".json": 64 << 20, ".yaml": 1 << 20, ".yml": 1 << 20}  # YAML is parsed a hundred times slower
_MOST_PARTS = {".json": 1_000_000, ".yaml": 50_000, ".yml": 50_000}
"""Commas, colons and brackets, 15 for a case of a datalist. Reading and judging one takes some 10 µs."""
_LARGEST_TEXT = 16 << 20
_MOST_DIGITS = 100
_DEEPEST = 64


def read_text_file(path: Path) -> str:
    """A readme, a licence, a ``logging.conf`` or a config as text, bytes that are none replaced.

    Raises ``ValueError`` if it is far larger than such a file.
    """
    return read_bounded(path, _LARGEST_BYTES.get(path.suffix.lower(), _LARGEST_TEXT)).decode(errors="replace")


def read_config_bytes(path: Path) -> bytes:
    """The bytes of a JSON or YAML file; raises ``ValueError`` if there are more than :func:`check_text` allows."""
    return read_bounded(path, _LARGEST_BYTES[path.suffix.lower()])


def check_text(data: bytes, suffix: str) -> None:
    """Refuse a JSON or YAML text with a ``ValueError`` if it is too large to be parsed, in bytes or in parts."""
    if len(data) > _LARGEST_BYTES[suffix]:
        raise ValueError(f"{len(data)} bytes are too many for a config, expected at most {_LARGEST_BYTES[suffix]}")
    if (parts := sum(map(data.count, (b",", b":", b"[", b"{", b"\n- ")))) > _MOST_PARTS[suffix]:
        raise ValueError(f"{parts} parts are too many for a config, expected at most {_MOST_PARTS[suffix]}")


def whole_number(text: str) -> int:
    """A whole number that arithmetic with real ones survives; raises ``ValueError`` for others."""
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(text)} digits, expected at most {_MOST_DIGITS}")
    return int(text)


def shallow(value: Any) -> Any:
    """A parsed text, unless whoever goes through it level by level would fail; raises ``ValueError`` then."""
    level = [value]
    for _ in range(_DEEPEST):
        level = [part for held in level for part in _parts(held)]
        if not level:
            return value
    raise ValueError(f"it is nested more than {_DEEPEST} levels deep")


def _parts(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


# --- the form of configs/metadata.json, as far as it is read ----------------------------------------------------------


def _counts(value: object) -> bool:
    return isinstance(value, str) and value.isdecimal() and len(value) < 5 and 0 < int(value) <= 4096


_COUNT = either(whole(1, 4096), (_counts, "its digits"))
_TENSOR: Spec = {
    "num_channels": _COUNT,
    "spatial_shape": [ANYTHING],
    "channel_def": numbered(ANYTHING),
    "segment_codes": numbered(ANYTHING),
}
_LIMITS = {"low": PLACE, "high": PLACE}
_CHECKED = {"cases": whole(1), "voxels": whole(1), "different_voxels": whole(0), "mirror": [TEXT]}
METADATA_FORM: Spec = {
    "network_data_format": {"inputs": {"*": _TENSOR}, "outputs": {"*": _TENSOR}},
    "segment_codes": numbered(ANYTHING),
    "training_range": {"spacing_mm": _LIMITS, "fov_mm": _LIMITS, "modality": [TEXT]},
    "locate": {
        "bundle": TEXT,
        "structure": TEXT,
        "margin_mm": number(0, 1000),
        "sides": FLAG,
        "trained_side": one_of("left", "right"),
    },
    "changelog": {"*": ANYTHING},
    "eval_metrics": {"*": ANYTHING},
    "imported": {"origin": TEXT, "orientation": TEXT, "mirror": [TEXT], "checked": _CHECKED},
}
"""What fits is read; what a shared bundle must say beyond it, :mod:`medseg.sharing.verify` knows."""
