"""LoadVolumed stands where MONAI's LoadImaged stands, and refuses what has no sound geometry."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, set_track_meta
from monai.transforms import Compose, LoadImaged

from medseg.errors import Refusal
from medseg.ingest import inspect_image, save_nifti
from medseg.ingest.read_dicom import read_headers
from medseg.ingest.stacks import record_of_stack, split
from medseg.transforms import LoadVolume, LoadVolumed
from tests.ingest.synthetic import make_series

# MONAI starts all its readers whenever a LoadImage is made, and one of them warns without its GPU library.
pytestmark = pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning")

AFFINE = np.array([[-0.7, 0, 0, 31.0], [0, 0.8, 0, -22.0], [0, 0, 2.5, 100.0], [0, 0, 0, 1.0]])


@pytest.fixture
def nifti(tmp_path: Path) -> Path:
    path = tmp_path / "case.nii.gz"
    save_nifti(np.arange(7 * 6 * 5, dtype=np.int16).reshape(7, 6, 5), AFFINE, path)
    return path


def load(source: Any, **options: Any) -> MetaTensor:
    return LoadVolumed(keys="image", **options)({"image": source})["image"]


@pytest.mark.parametrize("options", [{}, {"ensure_channel_first": True}, {"dtype": np.int16}])
def test_the_result_is_that_of_monais_nibabel_reader(nifti: Path, options: dict[str, Any]) -> None:
    ours = load(nifti, **options)
    theirs = LoadImaged(keys="image", reader="NibabelReader", **options)({"image": nifti})["image"]
    assert isinstance(ours, MetaTensor)
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    assert torch.equal(ours.as_tensor(), theirs.as_tensor())
    assert ours.affine.dtype == torch.float64
    torch.testing.assert_close(ours.affine, theirs.affine)
    assert ours.meta["filename_or_obj"] == theirs.meta["filename_or_obj"]


def test_it_is_a_loadimaged_and_survives_pickling(nifti: Path) -> None:
    transform = LoadVolumed(keys=["image"])
    assert isinstance(transform, LoadImaged)
    again = pickle.loads(pickle.dumps(transform))
    assert torch.equal(again({"image": nifti})["image"].as_tensor(), load(nifti).as_tensor())


def test_a_configuration_for_monais_class_works(nifti: Path) -> None:
    image = load(str(nifti), reader="NibabelReader", image_only=True, simple_keys=True)
    assert set(image.meta) <= {
        "filename_or_obj",
        "affine",
        "original_affine",
        "spatial_shape",
        "space",
        "original_channel_dim",
    }


def test_every_kind_of_source_gives_the_same_volume(tmp_path: Path) -> None:
    folder = make_series().write(tmp_path / "series")
    stack = split(read_headers(folder.iterdir()))[0]
    expected = load(folder)
    assert expected.shape == (12, 10, 8)
    for source in (str(folder), sorted(folder.iterdir()), [str(folder)], record_of_stack(stack)):
        found = load(source)
        assert torch.equal(found.as_tensor(), expected.as_tensor())
        assert torch.equal(found.affine, expected.affine)
    assert expected.meta["case_id"] == stack.case_id
    assert expected.meta["modality"] == "CT"


def test_nothing_in_the_meta_data_identifies_the_patient(tmp_path: Path) -> None:
    image = load(make_series().write(tmp_path / "series"))
    shown = repr({key: value for key, value in image.meta.items() if key != "filename_or_obj"})
    assert "Phantom" not in shown
    assert "synthetic" not in shown


def test_several_files_are_channels_of_one_grid(tmp_path: Path, nifti: Path) -> None:
    other = tmp_path / "other.nii.gz"
    save_nifti(np.ones((7, 6, 5), np.int16), AFFINE, other)
    image = load([nifti, other], ensure_channel_first=True)
    assert image.shape == (2, 7, 6, 5)
    assert float(image[1].sum()) == 210
    moved = AFFINE.copy()
    moved[0, 3] += 1
    save_nifti(np.ones((7, 6, 5), np.int16), moved, other)
    with pytest.raises(Refusal) as caught:
        load([nifti, other])
    assert caught.value.code == "geometry-mismatch"


def test_meta_data_on_request_and_untracked(nifti: Path) -> None:
    found = LoadVolumed(keys="image", image_only=False)({"image": nifti})
    assert found["image_meta_dict"]["filename_or_obj"] == str(nifti)
    pruned = load(nifti, prune_meta_pattern="notes")
    assert "notes" not in pruned.meta
    set_track_meta(False)
    try:
        assert type(load(nifti)) is torch.Tensor
    finally:
        set_track_meta(True)


def test_batches_collate(tmp_path: Path, nifti: Path) -> None:
    series = make_series(tuple(2.5 * k for k in range(5))).write(tmp_path / "series")
    other = tmp_path / "other.nii.gz"
    save_nifti(np.ones((12, 10, 5), np.int16), AFFINE, other)
    items = [{"image": str(series)}, {"image": str(other)}]
    loader = DataLoader(Dataset(items, LoadVolumed(keys="image", ensure_channel_first=True)), batch_size=2)
    (batch,) = list(loader)
    assert batch["image"].shape == (2, 1, 12, 10, 5)


def test_a_refusal_names_its_reason_also_inside_compose(tmp_path: Path) -> None:
    folder = make_series((0, 2.5, 5, 10, 12.5, 15)).write(tmp_path / "series")
    with pytest.raises(Refusal) as caught:
        load(folder)
    assert caught.value.code == "missing-slices"
    with pytest.raises(RuntimeError) as wrapped:
        Compose([LoadVolumed(keys="image")])({"image": folder})
    assert isinstance(wrapped.value.__cause__, Refusal)


def test_resampling_happens_on_request_only_and_is_recorded(tmp_path: Path) -> None:
    folder = make_series((0, 3, 6, 9, 15, 21, 27)).write(tmp_path / "series")
    with pytest.raises(Refusal) as caught:
        load(folder)
    assert caught.value.code == "non-uniform-spacing"
    image = load(folder, allow_resample=True)
    assert image.shape == (12, 10, 10)
    assert image.meta["resampled"] == "uneven slice spacing"


def test_a_record_of_a_file_and_the_array_form(nifti: Path) -> None:
    image = LoadVolume(dtype=None)(inspect_image(nifti))
    assert image.dtype == torch.int16
    assert LoadVolume(image_only=False)(nifti)[1]["case_id"] == "case"
