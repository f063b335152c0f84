"""What MONAI's own tests expect of ``LoadImage`` and ``LoadImaged``, asked of ``LoadVolume`` and ``LoadVolumed``.

Each expectation is a function over a shim that drops the options of MONAI's readers. Those of :data:`BY_DESIGN` are not
met, for the reason given there; the test then makes sure that they are refused or answered otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import itk
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import ITKReader, MetaTensor, NibabelReader, set_track_meta
from monai.transforms import Compose, LoadImage, LoadImaged, Orientationd, SaveImaged, Spacingd
from PIL import Image
from pydicom import Dataset

from medseg.errors import MedsegError
from medseg.transforms import LoadVolume, LoadVolumed
from medseg.transforms.load import DictionaryOptions, LoadOptions
from tests.ingest.synthetic import make_series, set_pixels

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning"),
]

SIDE = 64
SHAPE = (SIDE, SIDE, SIDE)
CT_AFFINE = np.array([[-0.488281, 0, 0, 125.0], [0, -0.488281, 0, 128.1], [0, 0, 68.3333, -99.48], [0, 0, 0, 1.0]])

BY_DESIGN = {
    "mgz_files_become_channels": "MGZ is not read: what is not DICOM, NIfTI, MetaImage or NRRD is refused by name",
    "channel_dim_joins_files_along_it": "several files always become a new first axis, each of them one channel",
    "reverse_indexing_turns_the_axes": "the axes are always (i, j, k), as the affine says",
    "affine_in_lps_on_request": "the affine is always RAS+ in mm",
    "names_can_be_filtered": "there is no filter of names: all files of a folder count, or none",
    "a_single_slice_is_a_volume": "one slice has no spacing: single-slice, where MONAI makes up 1 mm",
    "a_colour_picture_is_an_image": "a PNG has no place in the patient",
    "a_grey_picture_is_an_image": "a PNG has no place in the patient",
    "channels_inside_one_file": "one file holds one 3D volume: not-3d; give one file per channel",
    "vectors_inside_one_file": "one file holds one 3D volume: not-3d; give one file per channel",
    "a_reader_of_ones_own_is_used": "which reader is right is no matter of choice; a path that is not there is refused",
    "header_fields_in_the_meta_data": "the header may tell the patient; meta data hold nothing of it",
    "a_reader_that_is_not_installed_is_an_error": "no reader of MONAI is used, so none need be installed",
    "a_missing_file_is_a_runtime_error": "it is a UsageError, which Compose turns into a RuntimeError",
    "channels_survive_a_nifti_file": "SaveImaged puts them into one 4D file, which is refused as not-3d",
}
"""Expectations that are not met, and why."""

Expectation = Callable[[Path], None]
EXPECTATIONS: dict[str, Expectation] = {}


def expectation(check: Expectation) -> Expectation:
    EXPECTATIONS[check.__name__] = check
    return check


def shim(**options: Any) -> LoadVolume:
    """``LoadImage`` with the options of MONAI's tests; what only its readers understand is left out."""
    return LoadVolume(**{name: value for name, value in options.items() if name in LoadOptions.__annotations__})


def shim_d(keys: Any, **options: Any) -> LoadVolumed:
    known = {*LoadOptions.__annotations__, *DictionaryOptions.__annotations__}
    return LoadVolumed(keys, **{name: value for name, value in options.items() if name in known})


def nifti(path: Path, values: Any = None, affine: Any = None) -> Path:
    array = np.random.default_rng(0).random(SHAPE) if values is None else values
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def three(folder: Path, ending: str = ".nii.gz") -> list[Path]:
    return [nifti(folder / f"test_image{number}{ending}") for number in ("", 2, 3)]


def ct(folder: Path) -> Path:
    """Four slices with the grid of MONAI's ``CT_DICOM``."""

    def place(item: Dataset, number: int) -> None:
        set_pixels(item, (np.arange(256).reshape(16, 16) + 256 * number).astype(np.uint16))
        item.PixelSpacing, item.SliceThickness = [0.488281, 0.488281], 68.3333
        item.ImagePositionPatient = [-125.0, -128.1, round(-99.48 + 68.3333 * number, 4)]

    return make_series((0.0, 1.0, 2.0, 3.0), change=place).write(folder)


# --- met ------------------------------------------------------------------------------------------------------------


@expectation
def a_nifti_file_with_any_reader(folder: Path) -> None:
    path = nifti(folder / "test_image.nii.gz")
    readers: tuple[Any, ...] = (None, NibabelReader(mmap=False), ITKReader(), "nibabelreader", "monai.data.ITKReader")
    for reader in readers:
        result = shim(reader=reader, mmap=False, to_gpu=False, fallback_only=False)([str(path)])
        assert (tuple(result.shape), result.meta["filename_or_obj"]) == (SHAPE, str(path))
        assert result.meta["space"] == "RAS"
        torch.testing.assert_close(result.affine, torch.eye(4, dtype=torch.float64))


@expectation
def several_files_become_channels(folder: Path) -> None:
    paths = three(folder)
    result = shim()(list(map(str, paths)))
    assert tuple(result.shape) == (3, *SHAPE)
    assert result.meta["filename_or_obj"] == str(paths[0])
    torch.testing.assert_close(result.affine, torch.eye(4, dtype=torch.float64))


@expectation
def a_dicom_series_by_its_folder(folder: Path) -> None:
    source = ct(folder / "CT_DICOM")
    for reader in ("ITKReader", "PydicomReader"):
        result = shim(reader=reader, force=True)(str(source))
        assert (tuple(result.shape), result.meta["filename_or_obj"]) == ((16, 16, 4), str(source))
        np.testing.assert_allclose(result.affine, CT_AFFINE, atol=1e-4)
        assert tuple(shim(reader=reader, ensure_channel_first=True)(str(source)).shape) == (1, 16, 16, 4)
        theirs = LoadImage(reader=reader)(str(source))
        np.testing.assert_array_equal(result, theirs)
        np.testing.assert_allclose(result.affine, theirs.affine, atol=1e-4)


@expectation
def a_file_that_itk_wrote(folder: Path) -> None:
    path = folder / "test_image.nii.gz"
    itk.imwrite(itk.image_view_from_array(np.random.default_rng(0).random((32, 64, 128))), str(path))
    loader = shim()
    loader.register(ITKReader())  # accepted, as a reader by option is
    assert tuple(loader(path).shape) == (128, 64, 32)
    keyed = shim_d("img")
    keyed.register(ITKReader())
    assert tuple(keyed({"img": path})["img"].shape) == (128, 64, 32)


@expectation
def meta_data_are_tracked_and_pruned(folder: Path) -> None:
    path = nifti(folder / "im.nii.gz")
    for tracked in (False, True):
        set_track_meta(tracked)
        try:
            result = shim(prune_meta_pattern="glmax|notes", prune_meta_sep="%")(path)
        finally:
            set_track_meta(True)
        assert (tuple(result.shape), isinstance(result, MetaTensor)) == (SHAPE, tracked)
        assert not tracked or not {"glmax", "notes"} & set(result.meta)


@expectation
def several_keys(folder: Path) -> None:
    keys = ["image", "label", "extra"]
    item = {key: str(nifti(folder / f"{key}.nii.gz")) for key in keys}
    found = shim_d(keys, reader="ITKReader", prune_meta_pattern=".*_code$", prune_meta_sep=" ")(item)
    assert set(found) == set(keys)
    for key in keys:
        assert tuple(found[key].shape) == SHAPE
        assert (found[key].meta["space"], "qform_code" in found[key].meta) == ("RAS", False)


@expectation
def a_series_survives_a_nifti_file(folder: Path) -> None:
    image = Compose([shim_d("img", ensure_channel_first=True)])({"img": str(ct(folder / "CT_DICOM"))})
    again = saved_and_loaded(image, folder)
    np.testing.assert_allclose(again, image["img"], rtol=1e-3)
    np.testing.assert_allclose(again.affine, image["img"].affine, rtol=1e-3, atol=1e-4)


@expectation
def two_series_become_channels(folder: Path) -> None:
    source = str(ct(folder / "CT_DICOM"))
    assert tuple(shim_d("img", ensure_channel_first=True)({"img": [source, source]})["img"].shape) == (2, 16, 16, 4)


@expectation
def orientation_and_spacing_follow_the_affine(folder: Path) -> None:
    turn = np.radians(20)
    oblique = np.array(
        [[np.cos(turn), -np.sin(turn), 0, 3], [np.sin(turn), np.cos(turn), 0, 4], [0, 0, 1, 5], [0, 0, 0, 1]]
    )
    permuted = np.array([[0, 0, -2.0, 10], [1.5, 0, 0, -20], [0, 0.8, 0, 30], [0, 0, 0, 1.0]])
    for number, affine in enumerate((np.diag([-0.7, 0.8, 2.5, 1]), permuted, oblique @ np.diag([0.7, -0.8, 2.5, 1]))):
        path = str(nifti(folder / f"{number}.nii.gz", np.random.default_rng(0).random((20, 18, 12)), affine))
        steps = [Orientationd("image", axcodes="RAS", labels=None), Spacingd("image", pixdim=(1.0, 1.0, 2.0))]
        ours = Compose([shim_d("image", ensure_channel_first=True), *steps])({"image": path})["image"]
        theirs = Compose([LoadImaged("image", reader="NibabelReader", ensure_channel_first=True), *steps])
        expected = theirs({"image": path})["image"]
        torch.testing.assert_close(ours.affine, expected.affine, atol=1e-5, rtol=1e-6)
        torch.testing.assert_close(ours.as_tensor(), expected.as_tensor(), atol=1e-4, rtol=1e-4)


def saved_and_loaded(item: dict[str, Any], folder: Path) -> MetaTensor:
    SaveImaged("img", output_dir=folder / "saved", squeeze_end_dims=False, output_ext=".nii.gz", print_log=False)(item)
    (path,) = (folder / "saved").rglob("*.nii.gz")
    return shim_d("img", ensure_channel_first=True)({"img": str(path)})["img"]


# --- not met, by design ---------------------------------------------------------------------------------------------


@expectation
def mgz_files_become_channels(folder: Path) -> None:
    assert tuple(shim(reader="nibabelreader")(list(map(str, three(folder, ".mgz")))).shape) == (3, *SHAPE)


@expectation
def channel_dim_joins_files_along_it(folder: Path) -> None:
    assert tuple(shim(reader=ITKReader(channel_dim=0))(list(map(str, three(folder)))).shape) == (3 * SIDE, SIDE, SIDE)


@expectation
def reverse_indexing_turns_the_axes(folder: Path) -> None:
    assert tuple(shim(reader="ITKReader", reverse_indexing=True)(str(ct(folder / "a"))).shape) == (4, 16, 16)


@expectation
def affine_in_lps_on_request(folder: Path) -> None:
    result = shim(reader="PydicomReader", affine_lps_to_ras=False)(str(ct(folder / "a")))
    np.testing.assert_allclose(result.affine, np.diag([-1, -1, 1, 1]) @ CT_AFFINE, atol=1e-4)


@expectation
def names_can_be_filtered(folder: Path) -> None:
    with pytest.raises(RuntimeError):
        shim(reader="PydicomReader", fname_regex=r"^(?!.*).*")(str(ct(folder / "a")))


@expectation
def a_single_slice_is_a_volume(folder: Path) -> None:
    source = ct(folder / "a")
    for path in sorted(source.iterdir())[1:]:
        path.unlink()
    result = shim(reader="ITKReader")(str(source))
    assert tuple(result.shape) == (16, 16, 1)
    np.testing.assert_allclose(result.affine[2, 2], 1.0)


@expectation
def a_colour_picture_is_an_image(folder: Path) -> None:
    Image.fromarray(np.zeros((256, 224, 3), np.uint8)).save(folder / "a.png")
    assert tuple(shim(reader=ITKReader())(folder / "a.png").shape) == (224, 256, 3)


@expectation
def a_grey_picture_is_an_image(folder: Path) -> None:
    Image.fromarray(np.zeros((256, 224), np.uint8)).save(folder / "a.png")
    assert tuple(shim()(folder / "a.png").shape) == (224, 256)


@expectation
def channels_inside_one_file(folder: Path) -> None:
    path = nifti(folder / "a.nii.gz", np.random.default_rng(0).random((3, 16, 16, 16)))
    assert tuple(shim(reader="nibabelreader", channel_dim=0)(path).shape) == (3, 16, 16, 16)


@expectation
def vectors_inside_one_file(folder: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (31, 64, 16, 2)).astype(np.float32)
    itk.imwrite(itk.image_view_from_array(values, is_vector=True), str(folder / "a.nii.gz"))
    assert tuple(shim(reader=ITKReader())(folder / "a.nii.gz").shape) == (16, 64, 31, 2)


@expectation
def a_reader_of_ones_own_is_used(folder: Path) -> None:
    class Mine(NibabelReader):
        def read(self, data: Any, **_: Any) -> Any:
            return data

    shim(reader=Mine)("test")


@expectation
def header_fields_in_the_meta_data(folder: Path) -> None:
    assert "0008|103e" in shim(reader="ITKReader", series_meta=True)(str(ct(folder / "a"))).meta


@expectation
def a_reader_that_is_not_installed_is_an_error(folder: Path) -> None:
    with pytest.raises(RuntimeError):
        shim(reader="NoSuchReader")


@expectation
def a_missing_file_is_a_runtime_error(folder: Path) -> None:
    with pytest.raises(RuntimeError):
        shim_d("img")({"img": str(folder / "unknown")})


@expectation
def channels_survive_a_nifti_file(folder: Path) -> None:
    source = str(ct(folder / "CT_DICOM"))
    image = shim_d("img", ensure_channel_first=True)({"img": [source, source]})
    assert tuple(saved_and_loaded(image, folder).shape) == (2, 16, 16, 4)


@pytest.mark.parametrize("name", EXPECTATIONS)
def test_what_monai_expects_is_met_or_differs_for_a_reason(name: str, tmp_path: Path) -> None:
    if name not in BY_DESIGN:
        EXPECTATIONS[name](tmp_path)
        return
    with pytest.raises((MedsegError, AssertionError, pytest.fail.Exception)):
        EXPECTATIONS[name](tmp_path)


def test_every_reason_belongs_to_an_expectation() -> None:
    assert set(BY_DESIGN) < set(EXPECTATIONS)
