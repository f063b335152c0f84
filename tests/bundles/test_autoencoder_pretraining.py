"""The bundle whose autoencoder learns features by restoring corrupted volumes: the codes of a folder."""

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, verify_metadata, verify_net_in_out
from monai.networks.nets import BasicUNet
from PIL import Image

from medseg.bundle import Bundle, audit
from medseg.bundle.findings import blocks
from medseg.errors import UsageError
from medseg.networks import encoder_state
from medseg.sharing.verify import SCHEMA_FILE
from medseg.tables import read_table
from medseg.training import train_bundle
from medseg.training.initialise import initialise_from
from tests.bundles.images import BUNDLES, SMALL_UNET, small_run, workflow, write_volumes, written

BUNDLE = BUNDLES / "volume_autoencoder_pretraining"
FLAGSHIP = BUNDLES / "hippocampus_mri_segmentation"

pytestmark = pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")  # MONAI tries all its readers in LoadImaged


@pytest.mark.filterwarnings("ignore:No hash value provided")  # the schema is a file of the package
def test_it_is_sound() -> None:
    assert not blocks(audit(BUNDLE))
    verify_metadata(meta_file=str(BUNDLE / "configs" / "metadata.json"), filepath=str(SCHEMA_FILE))
    assert (BUNDLE / "models" / "model.pt").stat().st_size < 25_000_000
    assert Bundle.open(BUNDLE).load_network().state_dict().keys()
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(BUNDLE / "configs" / "metadata.json"),
        config_file=str(BUNDLE / "configs" / "inference.json"),
        device="cpu",
        bundle_root=str(BUNDLE),
    )


def test_inference_needs_medseg_for_the_network_alone() -> None:
    config = written(BUNDLE, "inference.json")
    assert config.pop("network_def")["_target_"] == "medseg.networks.Autoencoder"
    assert "medseg" not in str(config)
    assert config["preprocessing"]["transforms"] == written(FLAGSHIP, "inference.json")["preprocessing"]["transforms"]


def test_training_and_inference_mean_the_same_network() -> None:
    assert written(BUNDLE, "train.json")["network_def"] == written(BUNDLE, "inference.json")["network_def"]


def test_its_encoder_is_that_of_the_flagship() -> None:
    """Key by key, so that what it is worth there can be measured (it does harm: docs/benchmarks.md)."""
    network: BasicUNet = ConfigParser(written(FLAGSHIP, "train.json")).get_parsed_content("network_def")
    transfer = initialise_from(network, BUNDLE)
    pretrained = encoder_state(Bundle.open(BUNDLE).load_network().state_dict())
    assert {name.split(".")[0] for name in pretrained} == {"conv_0", "down_1", "down_2"}
    assert set(pretrained) <= set(transfer.copied)
    assert all(torch.equal(network.state_dict()[name], value) for name, value in pretrained.items())
    assert "final_conv.weight" in transfer.kept  # three classes are not one intensity


def test_what_is_corrupted_stays_the_target(tmp_path: Path) -> None:
    flow = workflow(BUNDLE, "train", "train.json", **small_run(tmp_path, SMALL_UNET), output_dir=str(tmp_path / "out"))
    dataset = flow.parser.get_parsed_content("validate#dataset")
    loader = flow.parser.get_parsed_content("validate#dataloader")
    seen = []
    for _ in range(2):
        batches = iter(loader)
        seen.append([next(batches) for _ in range(len(dataset))])
    originals = [nib.load(tmp_path / f"image{number}.nii.gz").get_fdata() for number in (0, 2)]
    for first, second in zip(*seen, strict=True):
        assert torch.equal(first["image"], second["image"])  # every validation sees the same corruption
        assert not torch.equal(first["image"], first["label"])
        target = first["label"][0, 0].numpy()
        scaled = [(v - v.mean()) / v.std() for v in originals]
        assert min(np.abs(target - v).max() for v in scaled) < 1e-4  # nothing was written into what is cached


@pytest.mark.parametrize(("kind", "name"), [("train", "train.json"), ("infer", "inference.json")])
def test_properties_are_clean(tmp_path: Path, kind: str, name: str) -> None:
    given = small_run(tmp_path, SMALL_UNET) if kind == "train" else {"dataset_dir": str(tmp_path), "images": "*.nii.gz"}
    write_volumes(tmp_path)
    assert workflow(BUNDLE, kind, name, **given, output_dir=str(tmp_path / "out")).check_properties() == []


def test_it_trains_and_says_what_restoring_gained(tmp_path: Path) -> None:
    train_bundle(BUNDLE, output=tmp_path / "out", device="cpu", overrides=small_run(tmp_path, SMALL_UNET))
    with (tmp_path / "out" / "metrics.csv").open() as handle:
        first, last = csv.DictReader(handle)
    assert float(last["loss"]) < float(first["loss"])
    for name in ("val_ssim", "val_psnr_db", "val_corrupted_ssim", "val_corrupted_psnr_db"):
        assert np.isfinite(float(last[name]))
    assert first["val_corrupted_psnr_db"] == last["val_corrupted_psnr_db"]
    assert (tmp_path / "out" / "samples" / "epoch-0002.png").stat().st_size > 1000
    assert not list((tmp_path / "out" / "checkpoints").glob("*discriminator*"))


def test_against_a_discriminator(tmp_path: Path) -> None:
    flow = workflow(
        BUNDLE,
        "train",
        "train.json",
        "adversarial_train.json",
        **small_run(tmp_path, SMALL_UNET),
        output_dir=str(tmp_path / "out"),
        warm_up=1,
        ramp=1,
    )
    flow.run_id = "training"
    flow.run()
    with (tmp_path / "out" / "metrics.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert float(rows[-1]["adversarial_loss"]) > 0.0
    assert (tmp_path / "out" / "checkpoints" / "final_discriminator.pt").exists()


def test_inference_restores_on_the_grid_of_the_source(tmp_path: Path) -> None:
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    affine[:3, 3] = 20.0, 30.0, -10.0
    image = np.random.default_rng(0).random((34, 47, 33), dtype=np.float32)
    nib.save(nib.Nifti1Image(image, affine), tmp_path / "case.nii.gz")
    workflow(
        BUNDLE,
        "infer",
        "inference.json",
        dataset_dir=str(tmp_path),
        images="*.nii.gz",
        output_dir=str(tmp_path / "out"),
    ).run()
    found = nib.load(tmp_path / "out" / "case_restored.nii.gz")
    assert found.shape == image.shape
    assert np.allclose(found.affine, affine)


@pytest.mark.slow
def test_held_out_volumes_are_restored_as_the_readme_says(tmp_path: Path, real_data: Path) -> None:
    workflow(
        BUNDLE,
        "infer",
        "train.json",
        "evaluate.json",
        dataset_dir=str(real_data / "msd_hippocampus"),
        output_dir=str(tmp_path),
    ).run()
    with (tmp_path / "metrics.csv").open() as handle:
        figures = {row[0]: float(row[1]) for row in csv.reader(handle)}
    assert figures["val_psnr_db"] == pytest.approx(21.8, abs=0.3)
    assert figures["val_ssim"] == pytest.approx(0.637, abs=0.02)


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_codes_of_a_folder_tell_which_cases_are_alike(tmp_path: Path, method: str) -> None:
    """Each case lies there twice, the second time brighter and with a little noise: the two are neighbours."""
    generator = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    axes = np.stack(np.meshgrid(*[np.arange(20)] * 3, indexing="ij"), axis=-1)
    for number in range(4):
        ball = np.linalg.norm(axes - generator.integers(8, 12, 3), axis=-1) < 2 + 2 * number
        for twin, (scale, noise) in enumerate(((100.0, 1.0), (300.0, 3.0))):
            volume = ball * scale + generator.normal(0, noise, ball.shape)
            nib.save(
                nib.Nifti1Image(volume.astype(np.float32), np.eye(4)), tmp_path / "in" / f"c{number}_{twin}.nii.gz"
            )
    given = {"dataset_dir": str(tmp_path / "in"), "images": "*.nii.gz", "method": method}
    workflow(BUNDLE, "infer", "inference.json", "codes.json", **given, output_dir=str(tmp_path / "out")).run()
    with np.load(tmp_path / "out" / "codes.npz") as kept:
        ids, codes, places = kept["ids"].tolist(), kept["codes"], kept["places"]
    assert ids == [f"c{number}_{twin}" for number in range(4) for twin in range(2)]
    assert codes.shape == (8, 32)
    assert places.shape == (8, 2)
    rows = read_table(tmp_path / "out" / "codes.csv").rows
    assert [row["nearest_case_id"] for row in rows] == [
        f"c{number}_{1 - twin}" for number in range(4) for twin in (0, 1)
    ]
    assert [float(row["code_3"]) for row in rows] == codes[:, 3].tolist()
    with Image.open(tmp_path / "out" / "neighbourhoods.png") as picture:
        assert picture.size == (1200, 1200)
        assert np.asarray(picture).std() > 5


def test_two_cases_are_no_neighbourhood(tmp_path: Path) -> None:
    for number in range(2):
        nib.save(
            nib.Nifti1Image(np.random.default_rng(number).random((16,) * 3), np.eye(4)), tmp_path / f"{number}.nii"
        )
    given = {"dataset_dir": str(tmp_path), "images": "*.nii", "output_dir": str(tmp_path / "out")}
    with pytest.raises(RuntimeError) as failure:  # MONAI's, for whatever ends a run
        workflow(BUNDLE, "infer", "inference.json", "codes.json", **given).run()
    assert isinstance(failure.value.__cause__, UsageError)
    assert "2 cases" in str(failure.value.__cause__)
