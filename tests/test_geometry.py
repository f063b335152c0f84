from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from medseg.errors import Refusal
from medseg.geometry import Geometry, lps_to_ras


def _affine(spacing: tuple[float, float, float] = (1, 1, 1), degrees: float = 0.0) -> NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", [degrees, degrees / 2, -degrees], degrees=True).as_matrix() * spacing
    return affine


@given(
    spacing=st.tuples(*[st.floats(0.1, 9)] * 3),
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
)
def test_spacing_and_orientation_agree_with_nibabel(
    spacing: tuple[float, float, float], angles: tuple[float, float, float]
) -> None:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * spacing
    geometry = Geometry((4, 5, 6), affine)
    assert np.allclose(geometry.spacing_mm, spacing)
    assert len({frozenset(p) for p in ({"L", "R"}, {"P", "A"}, {"I", "S"}) if p & set(geometry.orientation)}) == 3
    assert not geometry.is_sheared
    assert geometry.voxel_volume_mm3 == pytest.approx(np.prod(spacing))


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PIR", "SAL", "ILA"])
def test_orientation_letters_are_nibabels(axes: str) -> None:
    transform = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(axes), (3, 4, 5))
    affine = np.linalg.inv(transform)
    assert Geometry((3, 4, 5), affine).orientation == "".join(nib.aff2axcodes(affine)) == axes


def test_field_of_view_counts_whole_voxels() -> None:
    assert Geometry((10, 20, 30), _affine((2, 1, 0.5))).fov_mm == pytest.approx((20, 20, 15))


def test_displacement_is_the_largest_over_all_voxels() -> None:
    one = Geometry((5, 4, 3), _affine((2, 2, 2)))
    stretched = np.array(one.affine)
    stretched[0, 0] = 2.1
    corners = 4.5 * 0.1  # the outer face of the last voxel along i
    assert one.displacement_mm(Geometry((5, 4, 3), stretched)) == pytest.approx(corners)
    assert one.displacement_mm(Geometry((5, 4, 4), one.affine)) == float("inf")
    assert one.matches(one)


def test_shear_is_measured_in_degrees() -> None:
    affine = np.eye(4)
    affine[1, 2] = np.tan(np.radians(15))
    geometry = Geometry((4, 4, 4), affine)
    assert geometry.shear_degrees == pytest.approx(15)
    assert geometry.is_sheared
    assert geometry.voxel_volume_mm3 == pytest.approx(1.0)


@pytest.mark.parametrize(
    "affine",
    [np.zeros((4, 4)), np.full((4, 4), np.nan), np.diag([1.0, 1, 0, 1]), np.diag([1.0, 1, 1, 2]), np.ones((4, 4))],
)
def test_an_affine_that_spans_no_volume_is_refused(affine: NDArray[np.float64]) -> None:
    with pytest.raises(Refusal) as caught:
        Geometry((4, 4, 4), affine)
    assert caught.value.code == "singular-affine"


def test_a_shape_that_is_not_3d_is_refused() -> None:
    with pytest.raises(Refusal, match="not-3d"):
        Geometry((4, 4), np.eye(4))  # type: ignore[arg-type]


def test_the_affine_cannot_be_changed_in_place() -> None:
    geometry = Geometry((4, 4, 4), np.eye(4))
    with pytest.raises(ValueError, match="read-only"):
        geometry.affine[0, 0] = 2


def test_lps_and_ras_differ_by_two_signs() -> None:
    affine = _affine((1, 2, 3), degrees=10)
    assert np.allclose(lps_to_ras(affine)[:3, 3], affine[:3, 3] * (-1, -1, 1))
    assert np.allclose(lps_to_ras(lps_to_ras(affine)), affine)


def test_the_description_is_one_line_for_messages() -> None:
    assert Geometry((512, 512, 30), _affine((0.7, 0.7, 1))).describe() == "512×512×30, 0.70×0.70×1.00 mm, RAS"
