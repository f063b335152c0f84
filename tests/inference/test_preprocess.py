"""Channels on different grids: taken where the bundle resamples them itself, with what MONAI alone gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monai.data import MetaTensor

from medseg.bundle import Bundle
from medseg.errors import Refusal
from medseg.geometry import Geometry
from medseg.inference import Predictor, run_batch
from medseg.inference.cases import collect, load
from medseg.inference.config import Channels, channels_of
from medseg.inference.preprocess import check_together
from medseg.ingest import SeriesRecord
from tests.inference.bundles import SCORES_BACK, UNET, Design, run_monai, write_bundle
from tests.inference.volumes import blobs
from tests.inference.volumes import load as load_nifti

FINE = np.array([[-1.0, 0, 0, 20], [0, -1.0, 0, 15], [0, 0, 3.0, -30], [0, 0, 0, 1]])
COARSE = np.array([[-3.0, 0.2, 0, 25], [0.2, -3.0, 0, 20], [0, 0, 3.0, -36], [0, 0, 0, 1]])
TOGETHER = (
    {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
    {"_target_": "Spacingd", "keys": "image", "pixdim": [2.0, 2.0, 3.0], "mode": "bilinear"},
    {
        "_target_": "ResampleToMatchd",
        "keys": ["other"],
        "key_dst": "image",
        "mode": "bilinear",
        "padding_mode": "zeros",
    },
    {"_target_": "NormalizeIntensityd", "keys": ["image", "other"]},
    {"_target_": "ConcatItemsd", "keys": ["image", "other"], "name": "image"},
    {"_target_": "DeleteItemsd", "keys": ["other"]},
)
APART = tuple(step for step in TOGETHER if step["_target_"] != "ResampleToMatchd")


def _bundle(folder: Path, transforms: tuple[dict[str, Any], ...] = TOGETHER) -> Path:
    network = {**UNET, "in_channels": 2}
    design = Design(network=network, transforms=transforms, post=SCORES_BACK, input_channels=2)
    bundle = write_bundle(folder / "tiny", design)
    path = bundle / "configs" / "inference.json"
    config = json.loads(path.read_text())
    for step in config["preprocessing"]["transforms"][:2]:
        step["keys"] = ["image", "other"]
    config["datalist"] = "$sorted(glob.glob(os.path.join(@dataset_dir, '*_mr.nii.gz')))"
    config["dataset"]["data"] = "$[{'image': i, 'other': i.replace('_mr', '_pet')} for i in @datalist]"
    path.write_text(json.dumps(config))
    return bundle


def _case(folder: Path, other: np.ndarray = COARSE) -> Path:
    from medseg.ingest import save_nifti

    save_nifti(blobs((40, 30, 20), 1), FINE, folder / "a_mr.nii.gz")
    save_nifti(blobs((20, 16, 24), 2), other, folder / "a_pet.nii.gz")
    path = folder / "datalist.json"
    path.write_text(json.dumps({"testing": [{"image": ["a_mr.nii.gz", "a_pet.nii.gz"]}]}))
    return path


def test_labels_are_those_of_the_bundles_own_evaluator(tmp_path: Path) -> None:
    bundle, datalist = _bundle(tmp_path), _case(tmp_path / "images")
    run_monai(bundle, tmp_path / "images", tmp_path / "monai")
    report = run_batch(bundle, [datalist], tmp_path / "out")
    (case,) = report.content["cases"]
    assert (case["status"], case["message"]) == ("done", "channel 2 covers 100% of the first")
    expected, affine = load_nifti(tmp_path / "monai" / "a_mr_seg.nii.gz")
    found, own = load_nifti(tmp_path / "out" / "a_mr_seg.nii.gz")
    np.testing.assert_allclose(own, FINE, atol=1e-5)
    np.testing.assert_allclose(affine, FINE, atol=1e-5)
    assert len(np.unique(expected)) > 1
    assert np.mean(found == expected) >= 0.9999


def test_the_other_channel_counts(tmp_path: Path) -> None:
    predictor = Predictor(_bundle(tmp_path), precision="fp32")
    image, other = (_tensor(blobs(shape, 1), grid) for shape, grid in (((40, 30, 20), FINE), ((20, 16, 24), COARSE)))
    found = predictor.predict({"image": image, "other": other}).label_map
    moved = MetaTensor(other.as_tensor().flip(1), affine=other.affine)
    assert (predictor.predict({"image": image, "other": moved}).label_map != found).any()


def test_a_region_of_interest_cuts_the_first_channel_only(tmp_path: Path) -> None:
    from medseg.inference import Options

    bundle, datalist = _bundle(tmp_path), _case(tmp_path / "images")
    report = run_batch(bundle, [datalist], tmp_path / "out", Options(roi="voxels:4,4,2,35,25,17"))
    assert report.content["cases"][0]["status"] == "done"
    found, _ = load_nifti(tmp_path / "out" / "a_mr_seg.nii.gz")
    assert found.shape == (40, 30, 20)
    assert not found[:4].any()


def test_a_missing_channel_is_refused(tmp_path: Path) -> None:
    predictor = Predictor(_bundle(tmp_path))
    with pytest.raises(Refusal, match="expects 2 in all"):
        predictor.predict(_tensor(blobs((40, 30, 20)), FINE))
    with pytest.raises(Refusal, match="expects 2 in all"):
        predictor.predict(_tensor(np.stack([blobs((40, 30, 20))] * 2), FINE))


def test_a_value_that_is_not_finite_in_the_other_channel_is_refused(tmp_path: Path) -> None:
    other = blobs((20, 16, 24))
    other[3, 3, 3] = np.nan
    with pytest.raises(Refusal, match="non-finite"):
        Predictor(_bundle(tmp_path)).predict(
            {"image": _tensor(blobs((40, 30, 20)), FINE), "other": _tensor(other, COARSE)}
        )


def test_bundles_that_do_not_resample_keep_the_refusal(tmp_path: Path) -> None:
    taken = channels_of(Bundle.open(_bundle(tmp_path, APART)))
    assert taken == Channels(("image", "other"), resampled=False)
    report = run_batch(_bundle(tmp_path, APART), [_case(tmp_path / "images")], tmp_path / "out")
    assert report.content["cases"][0]["reason"] == "geometry-mismatch"


@pytest.mark.parametrize(("shift_mm", "share"), [(0.0, "100%"), (13.0, None), (25.0, "refused"), (500.0, "refused")])
def test_how_much_is_covered_is_said_or_refused(tmp_path: Path, shift_mm: float, share: str | None) -> None:
    other = COARSE.copy()
    other[0, 3] -= shift_mm + 5.0
    (case,) = collect([_case(tmp_path, other)], 2)
    object.__setattr__(case, "taken", Channels(("image", "other"), resampled=True))
    if share == "refused":
        with pytest.raises(Refusal, match="covers") as refusal:
            load(case)
        assert refusal.value.code == "geometry-mismatch"
        return
    loaded = load(case)
    assert tuple(loaded.images) == ("image", "other")
    by_hand = np.mean([_inside(index, other) for index in np.ndindex(40, 30, 20)])
    said = float(loaded.note.split("covers ")[1].split("%")[0])
    assert said == pytest.approx(100 * by_hand, abs=2.0)


def _inside(index: tuple[int, ...], other: np.ndarray) -> bool:
    place = np.linalg.inv(other) @ FINE @ [*index, 1]
    return bool((place[:3] >= -0.5).all() and (place[:3] <= np.array([19.5, 15.5, 23.5])).all())


def test_frames_of_reference_must_agree_where_they_are_known() -> None:
    grid = Geometry((40, 30, 20), FINE)
    records = [SeriesRecord(name, name, "dicom", (), patient_hash="p") for name in ("mr", "pet")]
    facts = [{"frame_of_reference_hash": "a"}, {"frame_of_reference_hash": "b"}]
    with pytest.raises(Refusal, match="another frame of reference"):
        check_together(records, [grid, grid], facts)
    assert "only one of them" in check_together(records, [grid, grid], [facts[0], {}])
    assert "frame" not in check_together(records, [grid, grid], [facts[0], facts[0]])
    other = SeriesRecord("pet", "pet", "dicom", (), patient_hash="q")
    with pytest.raises(Refusal, match="mixed-patients"):
        check_together([records[0], other], [grid, grid], [facts[0], facts[0]])


def test_of_a_case_only_what_the_bundle_takes_is_used(tmp_path: Path) -> None:
    predictor = Predictor(_bundle(tmp_path), precision="fp32")
    image, other = (_tensor(blobs(shape, 1), grid) for shape, grid in (((40, 30, 20), FINE), ((20, 16, 24), COARSE)))
    case = {"case_id": "a", "other": other, "label": image, "image": image}
    found = predictor.predict(case)
    np.testing.assert_array_equal(found.label_map, predictor.predict({"image": image, "other": other}).label_map)
    assert found.geometry.matches(Geometry((40, 30, 20), FINE))


def _tensor(values: np.ndarray, affine: np.ndarray) -> MetaTensor:
    return MetaTensor(values if values.ndim == 4 else values[None], affine=affine)


def test_a_voxel_size_for_which_there_is_no_memory_is_refused(tmp_path: Path) -> None:
    fine = ({"_target_": "Spacingd", "keys": "image", "pixdim": [0.001, 0.001, 0.001], "mode": "bilinear"},)
    predictor = Predictor(write_bundle(tmp_path / "tiny", Design(transforms=fine)), "cpu")
    with pytest.raises(Refusal, match=r"voxel size of 0.001×0.001×0.001 mm, which gives 6e\+12 voxels") as refused:
        predictor.predict(MetaTensor(np.ones((1, 20, 20, 15), dtype=np.float32), affine=np.eye(4)))
    assert refused.value.code == "too-large"
