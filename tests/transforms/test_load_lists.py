"""Lists given to LoadVolumed: every entry is read, as channel or as slice, or the list is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medseg.errors import MedsegError, Refusal, UsageError
from medseg.ingest import inspect_image, read_volume, save_nifti
from medseg.transforms import LoadVolume, LoadVolumed
from tests.ingest.synthetic import make_series

AFFINE = np.diag([-0.7, 0.8, 2.5, 1.0])


def load(source: Any, **options: Any) -> MetaTensor:
    return LoadVolumed(keys="image", **options)({"image": source})["image"]


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Two images of one grid."""
    names = ["t1.nii.gz", "t2.nii"]
    for number, name in enumerate(names):
        save_nifti(np.full((5, 4, 3), number, np.int16), AFFINE, tmp_path / name)
    return [str(tmp_path / name) for name in names]


@pytest.fixture
def slices(tmp_path: Path) -> list[str]:
    return sorted(map(str, make_series().write(tmp_path / "series").iterdir()))


HOLDERS: dict[str, Callable[[list[str]], Any]] = {
    "list": list,
    "tuple": tuple,
    "iterator": iter,
    "array": np.array,
    "array of characters": np.char.array,
    "generator": lambda found: (file for file in found),
    "paths": lambda found: [Path(file) for file in found],
}


@pytest.mark.parametrize("holder", HOLDERS.values(), ids=HOLDERS)
def test_channels_in_whatever_holds_them(files: list[str], holder: Callable[[list[str]], Any]) -> None:
    image = load(holder(files))
    assert image.shape == (2, 5, 4, 3)
    assert image.as_tensor().amax((1, 2, 3)).tolist() == [0, 1]
    assert image.meta["filename_or_obj"] == files[0]


def test_slices_in_whatever_holds_them(slices: list[str]) -> None:
    folder = Path(slices[0]).parent
    expected = load(folder)
    for source in (slices, tuple(slices), folder.glob("*"), np.array(slices), reversed(slices)):
        assert torch.equal(load(source).as_tensor(), expected.as_tensor())


def test_one_entry_is_one_volume(files: list[str], slices: list[str]) -> None:
    assert load(files[:1]).shape == (5, 4, 3)
    assert load(np.array(files[0])).shape == (5, 4, 3)
    assert load([str(Path(slices[0]).parent)]).shape == (12, 10, 8)


def test_two_folders_are_two_channels_of_one_grid(tmp_path: Path) -> None:
    first = make_series().write(tmp_path / "A")
    second = shutil.copytree(first, tmp_path / "B")
    image = load([str(first), str(second)])
    assert image.shape == (2, 12, 10, 8)
    assert torch.equal(image[0].as_tensor(), load(first).as_tensor())
    shifted = make_series(tuple(2.5 * k + 1 for k in range(8))).write(tmp_path / "C")
    with pytest.raises(Refusal) as caught:
        load([first, shifted])
    assert caught.value.code == "geometry-mismatch"


def test_a_folder_beside_an_image_is_a_channel(tmp_path: Path) -> None:
    series = make_series().write(tmp_path / "series")
    values, geometry, _ = read_volume(series)
    save_nifti(values, geometry.affine, tmp_path / "same.nii")
    image = load([tmp_path / "same.nii", series])
    assert image.shape == (2, 12, 10, 8)
    assert torch.equal(image[0].as_tensor(), image[1].as_tensor())


def test_records_are_channels(files: list[str]) -> None:
    sources: Any = [inspect_image(files[0]), files[1]]
    image = LoadVolume()(sources)
    assert image.shape == (2, 5, 4, 3)


def test_a_channel_given_twice_is_noted(files: list[str]) -> None:
    assert load(files).meta["notes"] == ""
    assert "channel 2 is channel 1 once more" in load([files[0], files[0]]).meta["notes"]


@pytest.mark.parametrize(
    ("spoil", "error", "says"),
    [
        (lambda a, b: [a, b + "x"], UsageError, "1 of 2 entries of the list do not exist"),
        (lambda a, b: [b + "x", a, b + "y"], UsageError, "2 of 3 entries"),
        (lambda a, b: [a, ""], UsageError, "entry 2 of the list is ''"),
        (lambda a, b: [a, None], UsageError, "entry 2 of the list is NoneType"),
        (lambda a, b: [a, [b]], UsageError, "entry 2 of the list is list"),
        (lambda a, b: [[a, b]], UsageError, "entry 1 of the list is list"),
        (lambda a, b: np.array([[a], [b]]), UsageError, "entry 1 of the list is list"),
        (lambda a, b: [], UsageError, "the list is empty"),
        (lambda a, b: iter(()), UsageError, "the list is empty"),
        (lambda a, b: {a, b}, UsageError, "found set"),
        (lambda a, b: {a: b}, UsageError, "found dict"),
        (lambda a, b: None, UsageError, "found NoneType"),
        (lambda a, b: 7, UsageError, "found int"),
        (lambda a, b: a.encode(), UsageError, "found bytes"),
        (lambda a, b: [a, a + ".mgz"], Refusal, "channel 2: neither DICOM nor"),
        (lambda a, b: [a, str(Path(a).parent / "empty")], MedsegError, "channel 2: "),
        (lambda a, b: [a, str(Path(a).parent / "series" / "image-000.dcm")], Refusal, "channel 2: "),
    ],
)
def test_a_list_of_which_something_cannot_be_read_is_refused(
    files: list[str], slices: list[str], spoil: Callable[[str, str], Any], error: type[MedsegError], says: str
) -> None:
    shutil.copy(files[0], files[0] + ".mgz")
    (Path(files[0]).parent / "empty").mkdir()
    with pytest.raises(error, match=says):
        load(spoil(*files))
    with pytest.raises(UsageError, match="2 of 10 entries of the list do not exist"):
        load([*slices, "no-slice-8.dcm", "no-slice-9.dcm"])
