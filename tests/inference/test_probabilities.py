"""Probabilities as NIfTI: on the source grid, as the network gave them, in steps that the header states."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from medseg.errors import UsageError
from medseg.inference import Options, Predictor, run_batch
from medseg.ingest.left_out import is_own_output, mark
from tests.inference.bundles import CROPPED, LABELS_BACK, NORMALISED, ORIENTED, SCORES_BACK, UNET, Design, write_bundle
from tests.inference.volumes import blobs, grid, meta_tensor, save

SOFTMAX = SCORES_BACK[:1]
ACTIVATED_LABELS_BACK = (*SOFTMAX, *LABELS_BACK)


@pytest.mark.parametrize("kind", ["plain", "permuted", "oblique", "sheared"])
@pytest.mark.parametrize("transforms", [ORIENTED, NORMALISED, CROPPED], ids=["oriented", "resampled", "cropped"])
def test_they_lie_on_the_source_grid_and_their_largest_is_the_label(
    tmp_path: Path, kind: str, transforms: tuple[dict[str, object], ...]
) -> None:
    bundle = write_bundle(tmp_path / "tiny", Design(network=UNET, transforms=transforms))
    image = meta_tensor(blobs((26, 22, 19)), grid(kind))
    found = Predictor(bundle, precision="fp32").predict(image, probabilities=tmp_path)
    assert found.probabilities is not None
    maps = np.stack(list(found.probabilities))
    assert maps.shape == (3, *found.label_map.shape)
    assert maps.dtype == np.uint8
    total = maps.astype(int).sum(axis=0)
    inside = total > 0  # a crop leaves nothing outside
    assert np.abs(total[inside] - 255).max() <= 8
    clear = np.sort(maps, axis=0)[-1].astype(int) - np.sort(maps, axis=0)[-2] > 4
    assert np.array_equal(maps.argmax(axis=0)[clear & inside], found.label_map[clear & inside])
    assert (clear & inside).mean() > 0.5


def test_without_resampling_they_are_the_softmax_of_the_network(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "tiny", Design(network=UNET, transforms=ORIENTED, roi_size=(16, 16, 16)))
    predictor = Predictor(bundle, precision="fp32")
    values = blobs((16, 16, 16))
    found = predictor.predict(meta_tensor(values, np.diag([1.0, 1.0, 1.0, 1.0])), probabilities=tmp_path)
    with torch.no_grad():
        scores = predictor.network(torch.from_numpy(values.astype(np.float32))[None, None])
    expected = np.rint(torch.softmax(scores, dim=1)[0].numpy() * 255)
    assert found.probabilities is not None
    assert np.abs(np.stack(list(found.probabilities)) - expected).max() <= 1


def test_a_run_writes_them_with_their_scale(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "tiny", Design(network=UNET, transforms=NORMALISED, post=ACTIVATED_LABELS_BACK))
    save(blobs((20, 18, 16)), grid("permuted"), tmp_path / "images" / "a.nii.gz")
    options = Options(write=("nifti", "probabilities"), roi="voxels:2,2,2,15,15,13", device="cpu")
    report = run_batch(bundle, [tmp_path / "images"], tmp_path / "out", options)
    assert report.cases[0].outputs == ("a_probabilities.nii.gz", "a_seg.nii.gz") or set(report.cases[0].outputs) == {
        "a_seg.nii.gz",
        "a_probabilities.nii.gz",
    }
    path = tmp_path / "out" / "a_probabilities.nii.gz"
    image, labels = nib.load(path), nib.load(tmp_path / "out" / "a_seg.nii.gz")
    assert image.shape == (*labels.shape, 3)
    assert image.get_data_dtype() == np.uint8
    assert image.dataobj.slope == pytest.approx(1 / 255)
    np.testing.assert_allclose(image.affine, labels.affine)
    values = np.asarray(image.dataobj)
    assert np.abs(values[3:14, 3:14, 3:12].sum(axis=-1) - 1).max() < 0.03
    assert not values[:2].any()  # nobody looked outside the region
    assert image.header["descrip"].item().decode() == mark("probability-map")
    assert is_own_output(path)
    again = run_batch(bundle, [tmp_path / "out", tmp_path / "images"], tmp_path / "out2", options)
    assert len(again.cases) == 1  # what medseg wrote is no input
    assert [file.name for file in (tmp_path / "out").iterdir() if file.suffix == ".tmp"] == []


@pytest.mark.parametrize(
    ("post", "words"),
    [
        (LABELS_BACK, "no softmax or sigmoid"),
        (
            (*SCORES_BACK, {"_target_": "KeepLargestConnectedComponentd", "keys": "pred"}, *SCORES_BACK[1:2]),
            "as written",
        ),
    ],
)
def test_what_cannot_be_given_is_refused_before_the_first_case(
    tmp_path: Path, post: tuple[dict[str, object], ...], words: str
) -> None:
    bundle = write_bundle(tmp_path / "tiny", Design(network=UNET, transforms=ORIENTED, post=post))
    save(blobs((20, 18, 16)), grid("plain"), tmp_path / "images" / "a.nii.gz")
    with pytest.raises(UsageError, match=words):
        run_batch(bundle, [tmp_path / "images"], tmp_path / "out", Options(write=("probabilities",), device="cpu"))
