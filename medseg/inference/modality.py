"""Whether a series is of the modality that a bundle was made for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from medseg.bundle import Bundle
from medseg.inference.cases import InputCase
from medseg.ingest import SeriesRecord

_CODES = {
    **dict.fromkeys(("MR", "MRI", "T1", "T1W", "T1C", "T1CE", "T1GD", "T2", "T2W", "FLAIR", "DWI", "ADC"), "MR"),
    **dict.fromkeys(("CT", "CTA", "CBCT"), "CT"),
    **dict.fromkeys(("PT", "PET", "SUV"), "PT"),
    **dict.fromkeys(("NM", "SPECT"), "NM"),
    "US": "US",
}
"""What metadata say in free text, and the code of Modality (0008,0060) that it stands for (PS3.3 C.7.3.1.1.1)."""
_WORDS = re.compile(r"[A-Za-z0-9]+")


def expected_modalities(bundle: Bundle) -> tuple[frozenset[str], ...]:
    """DICOM modality codes that a bundle takes, per input channel; empty where its metadata do not tell.

    ``channel_def`` of the input names a channel; a name that holds no modality, such as ``image``, leaves it to the
    input's ``modality``. What ``training_range`` names for the first channel is allowed, too.
    """
    stated = bundle.metadata.get("network_data_format", {}).get("inputs", {})
    image: Mapping[str, Any] = stated.get("image") or next(iter(stated.values()), {})
    channels, overall = image.get("channel_def"), _codes(image.get("modality"))
    names = channels if isinstance(channels, Mapping) else {}
    found = [_codes(names.get(str(number))) or overall for number in range(bundle.input_channels)]
    if found and found[0]:
        found[0] |= _codes((bundle.training_range or {}).get("modality"))
    return tuple(found)


def check_modality(case: InputCase, expected: tuple[frozenset[str], ...], bundle: str) -> InputCase:
    """The case, refused as ``wrong-modality`` if a channel's series states another one; NIfTI files state none."""
    if case.refusal is not None or len(case.channels) != len(expected):
        return case
    channels = tuple(_checked(record, codes, bundle) for record, codes in zip(case.channels, expected, strict=True))
    return replace(case, channels=channels)


def _checked(record: SeriesRecord, codes: frozenset[str], bundle: str) -> SeriesRecord:
    if not codes or not record.modality or record.modality.upper() in codes:
        return record
    message = f"found {record.modality}, {bundle} takes {' or '.join(sorted(codes))}; choose such a series"
    return replace(record, usable=False, reason="wrong-modality", message=message)


def _codes(stated: Any) -> frozenset[str]:
    texts = stated if isinstance(stated, list) else [stated]
    words = (word.upper() for text in texts if isinstance(text, str) for word in _WORDS.findall(text))
    return frozenset(_CODES[word] for word in words if word in _CODES)
