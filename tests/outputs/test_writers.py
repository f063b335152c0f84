from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from medseg import outputs
from medseg.errors import BundleError, CaseFailed, Refusal, UsageError
from medseg.geometry import Geometry
from medseg.ingest import SeriesRecord
from medseg.labels.canvas import Painted
from medseg.labels.rasterise import fill_plane
from medseg.outputs.sr import longest_diameter_mm
from tests.outputs.series import CODES, FakeBundle, blobs, read, write_series
from tests.outputs.validators import errors, needs_validator

SHAPE = (9, 8, 6)
Series = tuple[SeriesRecord, Geometry]


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Series:
    affine = np.diag([0.8, 1.1, 2.0, 1.0])
    affine[:3, 3] = (10.0, -20.0, 30.0)
    return write_series(tmp_path_factory.mktemp("in"), affine, SHAPE)


@pytest.mark.parametrize("kind", outputs.KINDS)
def test_patient_study_and_provenance(series: Series, tmp_path: Path, kind: str) -> None:
    record, geometry = series
    source, written = (
        read(Path(record.files[0])),
        read(outputs.write(kind, blobs(SHAPE), geometry, record, FakeBundle(), tmp_path / "o.dcm")),
    )
    for keyword in (
        "PatientName",
        "PatientID",
        "PatientBirthDate",
        "PatientAge",
        "StudyInstanceUID",
        "StudyID",
        "AccessionNumber",
    ):
        assert written[keyword].value == source[keyword].value
    for keyword in ("PatientIdentityRemoved", "DeidentificationMethod"):
        assert written[keyword].value == source[keyword].value
    assert written.SeriesInstanceUID != source.SeriesInstanceUID
    assert written.ManufacturerModelName == "brain_mr_test"
    assert "not for clinical use" in written.SeriesDescription
    assert len(written.SeriesDescription) <= 64


@pytest.mark.parametrize(
    ("stated", "name"),
    [("", "Test^One"), (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"), ("ISO 2022 IR 100", "Müller^Test")],
)
@pytest.mark.parametrize("kind", outputs.KINDS)
def test_names_survive_old_character_sets(tmp_path: Path, kind: str, stated: str | list[str], name: str) -> None:
    record, geometry = write_series(tmp_path / "in", np.diag([0.8, 1.1, 2.0, 1.0]), SHAPE)
    for file in record.files:
        dataset = read(Path(file))
        dataset.SpecificCharacterSet, dataset.PatientName = stated, name
        dataset.save_as(file)
    written = read(outputs.write(kind, blobs(SHAPE), geometry, record, FakeBundle(), tmp_path / "o.dcm"))
    assert str(written.PatientName) == name


@pytest.mark.parametrize("kind", outputs.KINDS)
def test_same_inputs_same_identifiers_other_results_others(series: Series, tmp_path: Path, kind: str) -> None:
    record, geometry = series
    labels = blobs(SHAPE)
    options = outputs.WriteOptions(when=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))

    def uids(labels: NDArray[np.uint8], options: outputs.WriteOptions) -> tuple[str, str]:
        written = read(outputs.write(kind, labels, geometry, record, FakeBundle(), tmp_path / "o.dcm", options=options))
        return written.SOPInstanceUID, written.SeriesInstanceUID

    first = uids(labels, options)
    assert uids(labels, options) == first
    assert not set(uids(labels, replace(options, run="other"))) & set(first)
    assert not set(uids(np.where(labels == 1, 3, labels).astype(np.uint8), options)) & set(first)


def test_segments_carry_terms_and_colours(series: Series, tmp_path: Path) -> None:
    record, geometry = series
    written = read(outputs.write("seg", blobs(SHAPE), geometry, record, FakeBundle(), tmp_path / "o.dcm"))
    first, second = written.SegmentSequence
    assert first.SegmentedPropertyTypeCodeSequence[0].CodeValue == "2421000"
    modifier = first.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence[0]
    assert modifier.CodeMeaning == "Left"
    assert second.AnatomicRegionSequence[0].CodeValue == "12738006"
    assert len(first.RecommendedDisplayCIELabValue) == 3
    assert first.SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion == "1.2.3"


def test_report_states_volumes_tied_to_segments(series: Series, tmp_path: Path) -> None:
    record, geometry = series
    labels = blobs(SHAPE)
    written = read(outputs.write("sr", labels, geometry, record, FakeBundle(), tmp_path / "o.dcm"))
    segmentation = read(outputs.write("seg", labels, geometry, record, FakeBundle(), tmp_path / "s.dcm"))
    text = str(written)
    volume_ml = float((labels == 1).sum()) * 0.8 * 1.1 * 2.0 / 1000
    assert f"{volume_ml:.6g}" in text
    assert segmentation.SOPInstanceUID in text
    assert "99MEDSEG" not in text  # no word of trust where there is no calibration


def test_structure_set_states_its_round_trip(series: Series, tmp_path: Path) -> None:
    record, geometry = series
    written = read(outputs.write("rtstruct", blobs(SHAPE), geometry, record, FakeBundle(), tmp_path / "o.dcm"))
    assert "1.0000" in written.StructureSetROISequence[0].ROIDescription
    kinds = {c.ContourGeometricType for c in written.ROIContourSequence[0].ContourSequence}
    assert "CLOSEDPLANAR_XOR" in kinds
    texts = [str(v) for roi in written.ROIContourSequence for c in roi.ContourSequence for v in c.ContourData]
    assert max(len(t) for t in texts) <= 16


def test_pictures_start_with_the_worst_slice(series: Series, tmp_path: Path) -> None:
    record, geometry = series
    labels = blobs(SHAPE)
    doubt = np.zeros(SHAPE, np.float32)
    doubt[:, :, 4] = 1
    options = outputs.WriteOptions(doubt=doubt)
    written = read(outputs.write("sc", labels, geometry, record, FakeBundle(), tmp_path / "o.dcm", options=options))
    pictures = written.pixel_array
    shown = [k for k in range(SHAPE[2]) if labels[:, :, k].any()]
    assert len(pictures) == 1 + len(shown)
    again = pictures[1 + shown.index(4)]
    rows = np.flatnonzero(
        (pictures[0] != again).any(axis=(1, 2))
    )  # the same slice: only the number of the page differs
    assert 0 < np.ptp(rows) < 20
    assert (pictures[0] == (60, 180, 240)).all(axis=-1).any()


@pytest.mark.parametrize("kind", outputs.KINDS)
def test_an_empty_mask_is_written_too(series: Series, tmp_path: Path, kind: str) -> None:
    record, geometry = series
    assert outputs.write(kind, np.zeros(SHAPE, np.uint8), geometry, record, FakeBundle(), tmp_path / "o.dcm").is_file()


def test_fractional_needs_probabilities(series: Series, tmp_path: Path) -> None:
    record, geometry = series
    labels = blobs(SHAPE)
    options = outputs.WriteOptions(segmentation_type="FRACTIONAL")
    with pytest.raises(UsageError, match="probabilities"):
        outputs.write("seg", labels, geometry, record, FakeBundle(), tmp_path / "o.dcm", options=options)
    given = {label: (labels == label) * np.float32(0.5) for label in (1, 3)}
    options = outputs.WriteOptions(segmentation_type="FRACTIONAL", probabilities=given)
    written = read(outputs.write("seg", labels, geometry, record, FakeBundle(), tmp_path / "o.dcm", options=options))
    assert set(np.unique(written.pixel_array)) == {0, 128}


def test_refusals(series: Series, tmp_path: Path) -> None:
    record, geometry = series
    labels = blobs(SHAPE)
    out = tmp_path / "o.dcm"
    shifted = geometry.affine.copy()
    shifted[:3, 3] += (0.3, 0.0, 0.0)
    cases = [
        ("geometry-mismatch", labels[:-1], geometry, record),
        ("geometry-mismatch", labels, Geometry(SHAPE, shifted), record),
        ("geometry-mismatch", labels[:-1], Geometry((8, 8, 6), geometry.affine), record),
        ("geometry-mismatch", labels, Geometry(SHAPE, geometry.affine @ np.diag([1.1, 1, 1, 1])), record),
        ("unexpected-labels", labels * 2, geometry, record),
        ("no-dicom-source", labels, geometry, replace(record, kind="nifti")),
    ]
    for code, mask, grid, source in cases:
        with pytest.raises(Refusal) as caught:
            outputs.write("seg", mask, grid, source, FakeBundle(), out)
        assert caught.value.code == code
    with pytest.raises(UsageError, match="pdf"):
        outputs.write("pdf", labels, geometry, record, FakeBundle(), out)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "codes",
    [{}, {1: CODES[1]}, {1: {"category": CODES[1]["category"]}, 3: CODES[3]},
     {1: {**CODES[1], "type": ["1", "SCT", "m" * 65]}, 3: CODES[3]},
     {1: {**CODES[1], "colour": "yellow"}, 3: CODES[3]}],
)  # fmt: skip
def test_there_are_no_default_codes(series: Series, tmp_path: Path, codes: dict[int, object]) -> None:
    record, geometry = series
    for kind in outputs.KINDS:
        with pytest.raises(BundleError, match="segment_codes"):
            outputs.write(kind, blobs(SHAPE), geometry, record, FakeBundle(label_codes=codes), tmp_path / "o.dcm")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kind", "reader"), [("seg", "medseg.outputs.seg.read_seg"), ("rtstruct", "medseg.outputs.rtstruct.read_rtstruct")]
)
def test_a_file_that_reads_back_otherwise_never_appears(
    series: Series, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, reader: str
) -> None:
    record, geometry = series
    labels = blobs(SHAPE)
    monkeypatch.setattr(reader, lambda *_: Painted(np.roll(labels, 1, axis=2), geometry))
    with pytest.raises(CaseFailed):
        outputs.write(kind, labels, geometry, record, FakeBundle(), tmp_path / "o.dcm")
    assert not list(tmp_path.iterdir())


@settings(deadline=None)
@given(arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_filling_outlines_gives_any_mask_back(mask: NDArray[np.bool_]) -> None:
    from contourpy import LineType, contour_generator

    lines = contour_generator(z=np.pad(mask, 1).astype(np.float32), line_type=LineType.Separate).lines(0.5)
    rings = [np.round(np.asarray(line)[:-1] - 1.0, 5) for line in lines]
    found = fill_plane([ring[:, ::-1] for ring in rings], (mask.shape[0], mask.shape[1]))
    assert np.array_equal(found.inside, mask)
    assert (found.repeated, found.crossing) == (0, 0)


@settings(deadline=None)
@given(arrays(np.bool_, st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))))
def test_longest_diameter_by_brute_force(mask: NDArray[np.bool_]) -> None:
    affine = np.diag([0.5, 1.5, 3.0, 1.0])
    points = np.argwhere(mask) @ affine[:3, :3]
    expected = max((float(np.linalg.norm(a - b)) for a in points for b in points), default=0.0)
    assert longest_diameter_mm(mask, affine) == pytest.approx(expected)


@needs_validator
@pytest.mark.parametrize("kind", outputs.KINDS)
def test_dciodvfy_finds_no_error(series: Series, tmp_path: Path, kind: str) -> None:
    record, geometry = series
    assert errors(outputs.write(kind, blobs(SHAPE), geometry, record, FakeBundle(), tmp_path / "o.dcm")) == set()
