"""OHIF on Orthanc's DICOMweb; ``test_ohif.py`` runs this file inside a namespace with loopback only.

What is judged are the pixels on the screen: the viewer says where in the patient each of them lies, and there they
must show the image and the mask that the files hold.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread
from scipy.ndimage import map_coordinates

from medseg import outputs
from medseg.geometry import Geometry
from medseg.ingest import SeriesRecord, read_volume, scan
from medseg.pacs.web import WebRemote
from tests.outputs.series import FakeBundle, rotation, write_series
from tests.pacs import orthanc_checks
from tests.pacs.ohif_site import serve
from tests.report.browser import Browser, browser

orthanc = orthanc_checks._orthanc
_BUNDLE = FakeBundle(
    name="reference_contour",
    version="1.0",
    labels={1: "tumour"},
    label_codes={
        1: {
            "category": ["49755003", "SCT", "Morphologically Abnormal Structure"],
            "type": ["108369006", "SCT", "Neoplasm"],
            "colour": "#3cb4f0",
        }
    },
)
_MARGIN = 30
_SEGMENTATION = '[data-cy="study-browser-thumbnail-no-image"]'
_VIEWPORT = (
    "services.cornerstoneViewportService.getCornerstoneViewport(services.viewportGridService.getActiveViewportId())"
)
_PLACE = f"""
const v = {_VIEWPORT}, r = v.canvas.getBoundingClientRect();
return {{corner: [r.x, r.y], size: [v.canvas.width, v.canvas.height],
         origin: v.canvasToWorld([0.5, 0.5]), right: v.canvasToWorld([1.5, 0.5]), down: v.canvasToWorld([0.5, 1.5])}};
"""
_WITHOUT_DATES = """
const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (texts.nextNode()) if (/\\d{2}-[A-Z][a-z]{2}-\\d{4}/.test(texts.currentNode.data)) texts.currentNode.data = '';
"""


@dataclass(frozen=True)
class Study:
    """What Orthanc holds of a study, on the image's grid."""

    image: NDArray[np.generic]
    mask: NDArray[np.bool_]
    geometry: Geometry
    uid: str
    kind: str


@dataclass(frozen=True)
class View:
    """One slice as the screen shows it: colours (row, column, RGB) and the voxel (row, column, ijk) of each pixel."""

    colours: NDArray[np.int16]
    voxels: NDArray[np.float64]

    last: tuple[int, ...]

    @property
    def inside(self) -> NDArray[np.bool_]:
        """Pixels that show the image, but for a margin in which the viewer draws its scroll bar and buttons."""
        margin = np.zeros(self.voxels.shape[:2], dtype=bool)
        margin[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN] = True
        rounded = np.rint(self.voxels)
        return margin & (rounded >= 0).all(axis=-1) & (rounded <= self.last).all(axis=-1)

    @property
    def slice(self) -> int:
        return round(float(self.voxels[0, 0, 2]))


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with serve(Path(os.environ["MEDSEG_TEST_OHIF"])) as address:
        yield address


def _tumour(real_data: Path) -> tuple[SeriesRecord, NDArray[np.bool_], Geometry]:
    folder = real_data / "ibsi_sts"
    (record,) = scan([folder / "dicom" / "STS_002" / "MR_T1" / "image"])
    _, geometry, _ = read_volume(record)
    reference = nibabel.load(folder / "nifti" / "STS_002" / "MR_T1_mask.nii.gz")
    assert np.allclose(reference.affine, geometry.affine, atol=1e-3)
    return record, np.asarray(reference.dataobj) > 0, geometry


def _blob(folder: Path) -> tuple[SeriesRecord, NDArray[np.bool_], Geometry]:
    """An oblique, anisotropic series made here, and a tapering corner in it, unlike itself in every mirror."""
    affine = np.eye(4)
    affine[:3, :3] = rotation(23.0) @ np.diag([0.7, -1.1, 2.9])
    affine[:3, 3] = (-31.5, 47.25, -120.0)
    write_series(folder, affine, (64, 48, 11))
    (record,) = scan([folder])
    _, geometry, _ = read_volume(record)
    i, j, k = (np.indices(geometry.shape).T / np.array(geometry.shape)).T
    return record, (i > 0.2) & (j > 0.3) & (k > 0.15) & (i + 0.8 * j + 0.5 * k < 1.1), geometry


@pytest.fixture(params=["tumour", "blob"])
def study(request: pytest.FixtureRequest, real_data: Path, orthanc: None, tmp_path: Path) -> Study:
    """A series and its segmentation, both stored in Orthanc; of the second the frames fill whole bytes."""
    record, mask, geometry = _tumour(real_data) if request.param == "tumour" else _blob(tmp_path / "series")
    path = tmp_path / "seg.dcm"
    outputs.write("seg", mask.astype(np.uint8), geometry, record, _BUNDLE, path)
    assert WebRemote(orthanc_checks._WEB).send([*map(Path, record.files), path]).failed == {}
    written = dcmread(path, stop_before_pixels=True)
    return Study(read_volume(record)[0], mask, geometry, str(written.StudyInstanceUID), str(written.SegmentationType))


def _settled(page: Browser) -> tuple[NDArray[np.int16], dict[str, Any]]:
    """The screen and where it lies in the patient, when neither changes any longer."""
    last = None
    for _ in range(100):
        time.sleep(0.3)
        shown = page.run(f"return {_VIEWPORT}.canvas.toDataURL()"), page.run(_PLACE)
        if shown == last:
            screen = np.asarray(Image.open(BytesIO(page.screenshot())).convert("RGB")).astype(np.int16)
            if (page.run(f"return {_VIEWPORT}.canvas.toDataURL()"), page.run(_PLACE)) == shown:
                return screen, shown[1]
        last = shown
    raise TimeoutError("the viewport kept changing for 30 s")


def _view(page: Browser, geometry: Geometry, index: int) -> View:
    assert page.run(f"return {_VIEWPORT}.setImageIdIndex(arguments[0]).then(() => true)", index)
    page.wait(f"{_VIEWPORT}.getCurrentImageIdIndex() === {index} && {_VIEWPORT}.viewportStatus === 'rendered'", 120)
    screen, place = _settled(page)
    (x, y), (width, height) = np.rint(place["corner"]).astype(int), place["size"]
    origin = np.array(place["origin"])
    right, down = np.array(place["right"]) - origin, np.array(place["down"]) - origin
    world = origin + np.arange(height)[:, None, None] * down + np.arange(width)[None, :, None] * right
    to_voxel = np.linalg.inv(geometry.affine)
    voxels = (world * (-1, -1, 1)) @ to_voxel[:3, :3].T + to_voxel[:3, 3]
    return View(screen[y : y + height, x : x + width], voxels, tuple(n - 1 for n in geometry.shape))


def _open(page: Browser, site: str, study: Study) -> None:
    page.visit(f"{site}/app-config.js")
    page.run("localStorage.setItem('shownTours', JSON.stringify(['basicViewerTour']))")
    page.visit(f"{site}/viewer?StudyInstanceUIDs={study.uid}")
    page.wait(f"window.services && document.querySelector('{_SEGMENTATION}')", 120)
    rendered = f"{_VIEWPORT}.viewportStatus === 'rendered'"
    page.wait(f"(() => {{ try {{ return {rendered}; }} catch {{ return false; }} }})()", 120)
    page.run("document.querySelector('[data-cy=\"panelSegmentation-btn\"]').click()")
    _settled(page)


def _load_segmentation(page: Browser) -> None:
    page.run(
        f"document.querySelector('{_SEGMENTATION} div').dispatchEvent("
        "new MouseEvent('dblclick', {bubbles: true, cancelable: true, view: window}))"
    )
    page.wait("services.segmentationService.getSegmentations().length === 1", 120)
    _settled(page)


def _dice(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return 2 * float((one & other).sum()) / max(1, int(one.sum() + other.sum()))


def _check_image(view: View, image: NDArray[np.generic]) -> None:
    """The image itself stands where the viewer says, so that its places can be believed."""
    expected = map_coordinates(image.astype(np.float32), view.voxels[view.inside].T, order=1, mode="nearest")
    shown = view.colours[view.inside].mean(axis=-1)
    assert np.corrcoef(expected, shown)[0, 1] > 0.97


def _check_mask(bare: View, covered: View, study: Study) -> list[float]:
    """Dice of what the segmentation coloured with the mask, and with the mask mirrored along each axis."""
    inside, voxels = covered.inside, np.rint(covered.voxels).astype(int)[covered.inside]
    blueness = [(view.colours[..., 2] - view.colours[..., 0])[inside] for view in (bare, covered)]
    coloured = blueness[1] - blueness[0] > 30
    masks = [study.mask, *(np.flip(study.mask, axis) for axis in range(3))]
    expected, *wrong = (mask[tuple(voxels.T)] for mask in masks)
    if not expected.any():
        assert coloured.mean() < 0.001
        return []
    distance = (voxels[coloured].mean(axis=0) - voxels[expected].mean(axis=0)) * study.geometry.spacing_mm
    assert np.linalg.norm(distance) < 0.2, "the centre of the coloured pixels, in mm"
    return [_dice(coloured, mask) for mask in (expected, *wrong)]


def _index_of(page: Browser, study: Study) -> Callable[[int], int]:
    """Index in the viewer of a slice; the viewer may sort either way."""
    last = study.mask.shape[2] - 1
    first = _view(page, study.geometry, 0).slice
    assert first in (0, last)
    return lambda k: k if first == 0 else last - k


def test_the_segmentation_lies_over_the_image_in_its_place(study: Study, site: str, tmp_path: Path) -> None:
    full = np.flatnonzero(study.mask.any(axis=(0, 1)))
    slices = [full[0] - 1, full[0], full[len(full) // 3], full[len(full) // 2], full[-1]]
    with browser(tmp_path / "profile", 1100, 760) as page:
        _open(page, site, study)
        index_of = _index_of(page, study)
        bare = {k: _view(page, study.geometry, index_of(int(k))) for k in slices}
        _load_segmentation(page)
        covered = {k: _view(page, study.geometry, index_of(int(k))) for k in slices}
        _keep(page, study, index_of)
    assert all(view.slice == k for views in (bare, covered) for k, view in views.items())
    for view in bare.values():
        _check_image(view, study.image)
    scores = [scores for k in slices if (scores := _check_mask(bare[k], covered[k], study))]
    assert len(scores) == len(slices) - 1
    right, *mirrored = np.array(scores).T
    assert right.min() > 0.97
    assert max(other.mean() for other in mirrored) < 0.9


def _keep(page: Browser, study: Study, index_of: Callable[[int], int]) -> None:
    """Keep a picture for the documentation where ``MEDSEG_KEEP_OHIF`` says, without dates."""
    if "MEDSEG_KEEP_OHIF" not in os.environ or study.kind == "BINARY":
        return
    _view(page, study.geometry, index_of(int(np.argmax(study.mask.sum(axis=(0, 1))))))
    page.run(_WITHOUT_DATES)
    picture = Image.fromarray(_settled(page)[0].astype(np.uint8))
    picture.quantize(256, dither=Image.Dither.NONE).save(os.environ["MEDSEG_KEEP_OHIF"], optimize=True)
