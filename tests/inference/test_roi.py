"""A region of interest means the same place in every image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medseg.errors import Refusal, UsageError
from medseg.geometry import Geometry
from medseg.inference.roi import parse_region
from tests.inference.volumes import grid, meta_tensor, save


def test_millimetres_are_found_on_any_grid() -> None:
    region = parse_region("0,0,0,10,20,30")
    assert region.box(Geometry((50, 50, 50), np.eye(4))).slices == (slice(0, 11), slice(0, 21), slice(0, 31))
    flipped = np.diag([-2.0, 1.0, 1.0, 1.0])
    flipped[0, 3] = 20.0
    assert region.box(Geometry((50, 50, 50), flipped)).slices == (slice(5, 11), slice(0, 21), slice(0, 31))


def test_the_crop_keeps_its_place_in_the_patient() -> None:
    whole = Geometry((20, 20, 20), grid("oblique"))
    box = parse_region("voxels:3,4,5,10,11,12").box(whole)
    values = np.arange(20.0**3, dtype=np.float32).reshape(20, 20, 20)
    part = box.crop(meta_tensor(values, grid("oblique")))
    np.testing.assert_array_equal(part[0].numpy(), values[3:11, 4:12, 5:13])
    np.testing.assert_allclose(np.asarray(part.affine)[:, 3], whole.affine @ [3, 4, 5, 1])
    pasted = box.paste(part[0].numpy(), whole.shape)
    np.testing.assert_array_equal(pasted[3:11, 4:12, 5:13], part[0].numpy())
    assert pasted.sum() == pytest.approx(part.sum())


def test_a_mask_is_the_box_around_it(tmp_path: Path) -> None:
    mask = np.zeros((20, 18, 16), np.float32)
    mask[4:9, 5, 7:10] = 1
    region = parse_region(str(save(mask, grid("oblique"), tmp_path / "mask.nii.gz")))
    found = region.box(Geometry(mask.shape, grid("oblique")))
    assert found.slices == (slice(4, 9), slice(5, 6), slice(7, 10))


def test_a_box_outside_the_volume_is_refused() -> None:
    with pytest.raises(Refusal, match="outside the volume"):
        parse_region("100,100,100,120,120,120").box(Geometry((20, 20, 20), np.eye(4)))


def test_a_box_is_cut_off_at_the_edge() -> None:
    box = parse_region("-50,-50,-50,5,5,5").box(Geometry((20, 20, 20), np.eye(4)))
    assert box.slices == (slice(0, 6), slice(0, 6), slice(0, 6))


@pytest.mark.parametrize("text", ["1,2,3", "no-such-mask.nii.gz", "1,2,3,4,5,nan", "voxels:"])
def test_what_is_not_a_region_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--roi"):
        parse_region(text)


def test_an_empty_mask_is_refused(tmp_path: Path) -> None:
    path = save(np.zeros((5, 5, 5), np.float32), np.eye(4), tmp_path / "mask.nii.gz")
    with pytest.raises(UsageError, match="empty"):
        parse_region(str(path))
