"""The bundle whose U-Net restores corrupted volumes: no kind of corruption gets worse, and it starts the flagship."""

import csv
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, verify_metadata, verify_net_in_out
from monai.networks.nets import BasicUNet

from benchmarks.restoration import ALL, KINDS, NONE, corruptions, markdown, measure, summary, worse
from medseg.bundle import Bundle, audit
from medseg.bundle.findings import blocks
from medseg.files import sha256_file
from medseg.sharing import pack, unpack, verify
from medseg.sharing.verify import SCHEMA_FILE
from medseg.training import image_items, train_bundle
from medseg.training.initialise import initialise_from
from tests.bundles.images import BUNDLES, SMALL_UNET, small_run, workflow, write_volumes, written

BUNDLE = BUNDLES / "volume_restoration_pretraining"
FLAGSHIP = BUNDLES / "hippocampus_mri_segmentation"
AUTOENCODER = BUNDLES / "volume_autoencoder_pretraining"

pytestmark = pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")  # MONAI tries all its readers in LoadImaged


def measured() -> dict[str, Any]:
    """What ``python -m benchmarks.restoration`` found."""
    found: dict[str, Any] = json.loads((BUNDLE / "docs" / "restoration.json").read_text())
    return found


@pytest.mark.filterwarnings("ignore:No hash value provided")  # the schema is a file of the package
def test_it_is_sound() -> None:
    assert not blocks(audit(BUNDLE))
    assert not [f for f in verify(BUNDLE) if f.severity == "block"]
    verify_metadata(meta_file=str(BUNDLE / "configs" / "metadata.json"), filepath=str(SCHEMA_FILE))
    assert (BUNDLE / "models" / "model.pt").stat().st_size < 25_000_000
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(BUNDLE / "configs" / "metadata.json"),
        config_file=str(BUNDLE / "configs" / "inference.json"),
        device="cpu",
        bundle_root=str(BUNDLE),
    )


def test_the_gate_no_kind_gets_worse_than_its_input() -> None:
    """Of the weights that ship, on cases of the fold that they have not seen."""
    found = measured()
    assert found["weights_sha256"] == sha256_file(BUNDLE / "models" / "model.pt"), "measure the weights anew"
    assert set(found["table"]) == {*KINDS.values(), ALL, NONE}
    assert (found["fold"], found["cases"]) == (0, 20)
    assert worse(found["table"]) == []
    assert markdown(found["table"]) in (BUNDLE / "docs" / "README.md").read_text(), "the page shows another table"
    shown = written(BUNDLE, "metadata.json")["eval_metrics"]
    assert shown["psnr_db"] == round(found["table"][ALL]["restored_psnr_db"], 1)


def test_the_gate_sees_one_kind_that_got_worse() -> None:
    table = measured()["table"]
    for metric in ("ssim", "psnr_db"):
        spoilt = {**table, "blur": {**table["blur"], f"restored_{metric}": table["blur"][f"corrupted_{metric}"] - 0.01}}
        assert worse(spoilt) == ["blur"]


def test_a_case_that_nothing_has_happened_to_does_not_hide_what_happened_to_the_others() -> None:
    """Its signal-to-noise ratio is infinite, and so would be the mean."""
    figures = np.array([[[1.0, np.inf], [0.9, 40.0]], [[0.8, 30.0], [0.9, 20.0]]])
    found = summary(figures)
    assert (found["corrupted_psnr_db"], found["restored_psnr_db"], found["better"]) == (30.0, 20.0, 0.0)
    assert worse({ALL: found}) == [ALL]
    assert summary(figures[:1])["corrupted_psnr_db"] is None


def test_alone_every_kind_of_corruption_happens() -> None:
    found = corruptions(written(BUNDLE, "train.json"))
    assert list(found) == [*KINDS.values(), ALL, NONE]
    for kind in KINDS.values():
        assert found[kind][1]["prob"] == 1.0
    assert all(definition["prob"] < 1.0 for definition in found[ALL][1:-1])


def test_inference_needs_medseg_for_the_network_alone() -> None:
    config = written(BUNDLE, "inference.json")
    assert config.pop("network_def")["_target_"] == "medseg.networks.RestoringUNet"
    assert "medseg" not in str(config)
    assert config["preprocessing"]["transforms"] == written(FLAGSHIP, "inference.json")["preprocessing"]["transforms"]
    assert written(BUNDLE, "train.json")["network_def"] == written(BUNDLE, "inference.json")["network_def"]


def test_it_starts_the_flagship_with_encoder_and_decoder() -> None:
    """``medseg train bundles/hippocampus_mri_segmentation --init bundles/volume_restoration_pretraining --rescale``."""
    network: BasicUNet = ConfigParser(written(FLAGSHIP, "train.json")).get_parsed_content("network_def")
    transfer = initialise_from(network, BUNDLE, rescaled=True)
    assert transfer.kept == ("final_conv.weight", "final_conv.bias")  # three classes are not one intensity
    assert transfer.rescaled > 10


def test_both_bundles_hold_out_the_same_cases_as_the_flagship() -> None:
    folds = [
        {item["sha256"]["image"]: item["fold"] for item in written(bundle, "datalist.json")["training"]}
        for bundle in (BUNDLE, AUTOENCODER, FLAGSHIP)
    ]
    assert folds[0] == folds[1] == folds[2]


@pytest.mark.parametrize(("kind", "name"), [("train", "train.json"), ("infer", "inference.json")])
def test_properties_are_clean(tmp_path: Path, kind: str, name: str) -> None:
    given = small_run(tmp_path, SMALL_UNET) if kind == "train" else {"dataset_dir": str(tmp_path), "images": "*.nii.gz"}
    write_volumes(tmp_path)
    assert workflow(BUNDLE, kind, name, **given, output_dir=str(tmp_path / "out")).check_properties() == []


def test_it_trains_and_is_measured_as_the_gate_does(tmp_path: Path) -> None:
    given = small_run(tmp_path, SMALL_UNET)
    train_bundle(BUNDLE, output=tmp_path / "out", device="cpu", overrides=given)
    with (tmp_path / "out" / "metrics.csv").open() as handle:
        first, last = csv.DictReader(handle)
    for name in ("val_ssim", "val_psnr_db", "val_corrupted_ssim"):
        assert np.isfinite(float(last[name]))
    assert first["val_corrupted_ssim"] == last["val_corrupted_ssim"]
    assert (tmp_path / "out" / "samples" / "epoch-0002.png").stat().st_size > 1000
    items = image_items(given["datalist"], tmp_path, 0, "validation")
    table, picture = measure(Bundle.open(BUNDLE), items)
    assert table[NONE]["corrupted_psnr_db"] is None, "of nothing the signal-to-noise ratio is infinite"
    assert table["missing slices"]["corrupted_ssim"] < 1.0  # type: ignore[operator]
    assert picture.shape[2] == 3


def test_inference_restores_on_the_grid_of_the_source(tmp_path: Path) -> None:
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    affine[:3, 3] = 20.0, 30.0, -10.0
    image = np.random.default_rng(0).random((34, 47, 33), dtype=np.float32)
    nib.save(nib.Nifti1Image(image, affine), tmp_path / "case.nii.gz")
    given = {"dataset_dir": str(tmp_path), "images": "*.nii.gz", "output_dir": str(tmp_path / "out")}
    workflow(BUNDLE, "infer", "inference.json", **given).run()
    found = nib.load(tmp_path / "out" / "case_restored.nii.gz")
    assert found.shape == image.shape
    assert np.allclose(found.affine, affine)


def test_packed_and_unpacked_it_is_the_same(tmp_path: Path) -> None:
    pack(BUNDLE, tmp_path / "restoring.zip")
    place = unpack(tmp_path / "restoring.zip", tmp_path / "there").path
    assert not [f for f in verify(place) if f.severity == "block"]
    volume = torch.randn(1, 1, 16, 16, 16)
    here, there = (Bundle.open(path).load_network().eval() for path in (BUNDLE, place))
    assert torch.equal(here(volume), there(volume))
    assert "hippocampus_001" not in (place / "configs" / "datalist.json").read_text()


@pytest.mark.slow
def test_held_out_volumes_are_restored_as_the_page_says(real_data: Path) -> None:
    datalist, data = BUNDLE / "configs" / "datalist.json", real_data / "msd_hippocampus"
    items = image_items(datalist, data, 0, "validation", measured()["cases"])
    table, _ = measure(Bundle.open(BUNDLE), items)
    assert worse(table) == []
    for kind, figures in measured()["table"].items():
        assert table[kind]["restored_psnr_db"] == pytest.approx(figures["restored_psnr_db"], abs=0.05)
        assert table[kind]["restored_ssim"] == pytest.approx(figures["restored_ssim"], abs=0.005)
