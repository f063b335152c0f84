"""The files a case leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from medseg.bundle import Bundle
from medseg.errors import BundleError, Refusal, UsageError
from medseg.files import sha256_file
from medseg.inference.cases import InputCase
from medseg.inference.predictor import Prediction
from medseg.ingest import save_nifti
from medseg.ingest.left_out import mark
from medseg.trust.trust_files import TrustState

KINDS = {
    "nifti": "seg.nii.gz",
    "doubt": "doubt.nii.gz",
    "seg": "seg.dcm",
    "sr": "sr.dcm",
    "rtstruct": "rtstruct.dcm",
    "sc": "sc.dcm",
}
"""Kinds of output and the ends of their file names; a report refers to the segmentation, so that comes first."""

_ANY_SOURCE = ("nifti", "doubt")


@dataclass
class Written:
    """What became of the outputs of a case.

    Parameters
    ----------
    checksums
        Number of bytes and SHA-256 of each file, by name.
    missing
        Why the source cannot have an output, by kind.
    failed
        Kind and error of the output at which writing stopped; None if it did not.
    """

    checksums: dict[str, Mapping[str, int | str]] = field(default_factory=dict)
    missing: dict[str, Refusal] = field(default_factory=dict)
    failed: tuple[str, Exception] | None = None


def check_kinds(bundle: Bundle, kinds: Sequence[str], trust: TrustState, cases: Sequence[InputCase]) -> None:
    """Refuse a run that asks for what none of its cases can have, before the first one is computed.

    Raises
    ------
    BundleError
        If DICOM objects are asked for and the bundle states no coded term for a label.
    UsageError
        If doubt is asked for and nothing judges this bundle's weights, or nothing that is asked for can be written.
    """
    if "doubt" in kinds and trust.state != "ready":
        raise UsageError(f"--write doubt: no case can have it, since {trust.message}; leave doubt out of --write")
    usable = [case for case in cases if case.refusal is None]
    if usable and all(refusal_of(case, kinds) for case in usable):
        raise UsageError(f"--write {','.join(kinds)}: {_no_source(usable[0]).message}")
    if any(set(kinds) - {*_ANY_SOURCE, *_unavailable(case, kinds)} for case in usable):
        _check_codes(bundle)


def _check_codes(bundle: Bundle) -> None:
    from medseg.labels.codes import segment_codes

    try:
        segment_codes(bundle)
    except (TypeError, ValueError, AttributeError) as error:
        raise BundleError(
            f"segment_codes of {bundle.name} are not an object with label values for keys ({error}); correct"
            " configs/metadata.json, or write nifti only"
        ) from error


def _unavailable(case: InputCase, kinds: Sequence[str]) -> tuple[str, ...]:
    """Kinds that cannot be written for a case: DICOM objects refer to the DICOM images they were made from."""
    return () if case.channels[0].kind == "dicom" else tuple(kind for kind in kinds if kind not in _ANY_SOURCE)


def refusal_of(case: InputCase, kinds: Sequence[str]) -> Refusal | None:
    """Why a case is not worth computing: nothing that was asked for could be written of it."""
    return _no_source(case) if len(_unavailable(case, kinds)) == len(kinds) else None


def _no_source(case: InputCase) -> Refusal:
    return Refusal(
        "no-dicom-source",
        f"DICOM objects need DICOM images to refer to, {case.source} is {case.channels[0].kind}; give the DICOM series,"
        " or write nifti, too",
    )


def write_outputs(
    prediction: Prediction, case: InputCase, bundle: Bundle, kinds: Sequence[str], folder: Path
) -> Written:
    """Write what can be written of a case, each file whole or not at all.

    An output that the source cannot have is noted and the others are written. At an error of another kind, such as a
    full disk, writing stops. Files of an older run that do not belong to this result are removed.
    """
    found = Written(missing=dict.fromkeys(_unavailable(case, kinds), _no_source(case)))
    for kind in (kind for kind in KINDS if kind in kinds):
        path = folder / f"{case.case_id}_{KINDS[kind]}"
        if found.failed is not None or kind in found.missing:
            path.unlink(missing_ok=True)
            continue
        try:
            _write(kind, prediction, case, bundle, path)
            found.checksums[path.name] = checksum(path)
        except Refusal as refusal:
            found.missing[kind] = refusal
            path.unlink(missing_ok=True)
        except Exception as error:  # noqa: BLE001  becomes the case's result, beside what was written of it
            found.failed = kind, error
            path.unlink(missing_ok=True)
    return found


def checksum(path: Path) -> Mapping[str, int | str]:
    """Number of bytes and SHA-256 of an output, by which a later run knows it again."""
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def _write(kind: str, prediction: Prediction, case: InputCase, bundle: Bundle, path: Path) -> None:
    if kind == "nifti":
        save_nifti(prediction.label_map, prediction.geometry.affine, path, description=mark("label-map"))
    elif kind == "doubt":
        if prediction.error_map is None:
            raise Refusal(
                "not-judged", "the case could not be judged (see the flags of its trust), so there is no doubt"
            )
        save_nifti(prediction.error_map, prediction.geometry.affine, path, description=mark("doubt-map"))
    else:
        _write_dicom(kind, prediction, case, bundle, path)


def _write_dicom(kind: str, prediction: Prediction, case: InputCase, bundle: Bundle, path: Path) -> None:
    from medseg.outputs.common import WriteOptions
    from medseg.outputs.write import write

    options = None
    if prediction.verdict is not None:
        errors = prediction.error_map.astype(np.float32) if prediction.error_map is not None and kind == "sc" else None
        options = WriteOptions(trust=prediction.verdict, doubt=errors)
    write(kind, prediction.label_map, prediction.geometry, case.channels[0], bundle, path, options=options)
