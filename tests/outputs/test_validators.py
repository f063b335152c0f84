"""Every accepted series of the test data, written as every kind of object, before validators that we did not write."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from medseg import outputs
from medseg.geometry import Geometry
from medseg.ingest import SeriesRecord, scan
from tests.outputs.series import FakeBundle, read
from tests.outputs.validators import entity_findings, errors, findings, kind_of, needs_validator

_FOLDERS = (
    "brain_mr_dicom",
    "dcmqi_seg",
    "dicom2nifti_cases",
    "ibsi_sts/dicom",
    "pydicom_data_subset",
)
_KNOWN_WARNINGS = {
    ("sc", "Laterality"): "whether the body part is paired is not known from the images",
}
"""Warnings of dciodvfy that the source has not got, by kind of object and attribute; docs/outputs.md explains them."""


def _write_all(record: SeriesRecord, folder: Path) -> dict[str, Path]:
    assert record.shape is not None
    i, j, k = record.shape
    labels = np.zeros(record.shape, np.uint8)
    labels[i // 4 : i - i // 3, j // 5 : j - j // 4, k // 4 : max(k // 4 + 1, k - 1)] = 1
    labels[i // 2, j // 2, :] = 3
    geometry = Geometry(record.shape, np.array(record.affine))
    return {
        kind: outputs.write(kind, labels, geometry, record, FakeBundle(), folder / f"{kind}.dcm")
        for kind in outputs.KINDS
    }


def _check_object(kind: str, path: Path, record: SeriesRecord) -> None:
    source = findings(Path(record.files[0]))
    assert errors(path) <= source, (record.case_id, kind)
    seen = {kind_of(warning) for warning in source}
    for warning in findings(path) - source - errors(path):
        attribute = re.search(r"attribute <(\w+)>", warning)
        known = attribute is not None and (kind, attribute[1]) in _KNOWN_WARNINGS
        assert known or kind_of(warning) in seen, (record.case_id, kind, warning)


def _check_study(paths: dict[str, Path], record: SeriesRecord) -> None:
    """What dcentvfy holds against the objects beside their source, and not against the source alone."""
    files = [Path(file) for file in record.files]
    study = str(read(paths["rtstruct"]).StudyInstanceUID)
    for finding in entity_findings([*files, *paths.values()]) - entity_findings(files):
        if finding.startswith("Error"):
            assert finding.startswith(f"Error - Missing SOPInstanceUID that was referenced - {study} "), finding
        elif "Attribute present in one instance but not the other" in finding:
            assert _left_empty(finding, paths, record), finding
        else:
            assert "Different information entities for attribute - Element=<AccessionNumber>" in finding, finding


def _left_empty(finding: str, paths: dict[str, Path], record: SeriesRecord) -> bool:
    """Whether the attribute is missing in the source and stands empty in what was written (type 2)."""
    attribute = re.search(r"Element=<(\w+)>", finding)
    assert attribute is not None
    written = [read(path).get(attribute[1]) for path in paths.values()]
    return attribute[1] not in read(Path(record.files[0])) and not any(written)


@needs_validator
@pytest.mark.slow
@pytest.mark.parametrize("folder", _FOLDERS)
def test_validators_hold_nothing_against_real_series_that_is_not_explained(
    real_data: Path, tmp_path: Path, folder: str
) -> None:
    """Errors that the source has in its own patient and study attributes are copied with them, and only those."""
    records = [record for record in scan([real_data / folder]) if record.kind == "dicom" and record.usable]
    assert records
    for record in records:
        paths = _write_all(record, tmp_path)
        for kind, path in paths.items():
            _check_object(kind, path, record)
        _check_study(paths, record)
