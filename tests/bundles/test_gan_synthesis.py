"""The bundle that makes patches out of noise, in 3D and as slices."""

import csv
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, verify_metadata
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from typer.testing import CliRunner, Result

from medseg.bundle import Bundle, audit
from medseg.bundle.findings import blocks
from medseg.cli.main import app, load_commands
from medseg.networks import ENCODER_PREFIXES
from medseg.sharing.verify import SCHEMA_FILE
from medseg.training import train_bundle
from tests.bundles.images import BUNDLES, small_run, workflow, written

BUNDLE = BUNDLES / "volume_gan_synthesis"
SMALL: dict[str, Any] = {
    "validation_patches": 20,
    "network_def#size": [16, 16, 16],
    "discriminator_def#size": [16, 16, 16],
    "network_def#features": [4, 4, 2],
    "discriminator_def#features": [2, 4, 4],
}

pytestmark = pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")  # MONAI tries all its readers in LoadImaged


@pytest.mark.filterwarnings("ignore:No hash value provided")  # the schema is a file of the package
def test_it_is_sound() -> None:
    assert not blocks(audit(BUNDLE))
    verify_metadata(meta_file=str(BUNDLE / "configs" / "metadata.json"), filepath=str(SCHEMA_FILE))
    assert (BUNDLE / "models" / "model.pt").stat().st_size < 25_000_000
    noise = torch.randn(2, 64, 1, 1, 1)
    created = Bundle.open(BUNDLE).load_network()(noise)
    assert created.shape == (2, 1, 32, 32, 32)
    assert all(name.startswith(ENCODER_PREFIXES) for name in load_file(BUNDLE / "features" / "encoder.safetensors"))


def test_configurations_mean_the_same_networks() -> None:
    train, inference = written(BUNDLE, "train.json"), written(BUNDLE, "inference.json")
    assert train["network_def"] == inference["network_def"]
    assert train["network_def"]["latent"] == train["latent"]
    assert train["network_def"]["features"] == train["discriminator_def"]["features"][::-1]
    preset = written(BUNDLE, "slices_2d.json")
    assert preset["latent"] == preset["network_def"]["latent"] == 100
    images, creates = written(BUNDLE, "images_2d.json"), written(BUNDLE, "inference_2d.json")
    for other in (preset, images, creates):
        assert other["latent"] == 100
        assert other["network_def"]["features"] == [256, 128, 64]
    assert images["network_def"]["halvings"] == images["discriminator_def"]["halvings"]


@pytest.mark.parametrize(("kind", "name"), [("train", "train.json"), ("infer", "inference.json")])
def test_properties_are_clean(tmp_path: Path, kind: str, name: str) -> None:
    given = small_run(tmp_path, SMALL) if kind == "train" else {}
    assert workflow(BUNDLE, kind, name, **given, output_dir=str(tmp_path / "out")).check_properties() == []


def test_it_trains_and_measures_the_distance_to_real_patches(tmp_path: Path) -> None:
    train_bundle(BUNDLE, output=tmp_path / "out", device="cpu", overrides=small_run(tmp_path, SMALL))
    with (tmp_path / "out" / "metrics.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert all(float(row["val_frechet"]) > 0.0 for row in rows)
    assert rows[0]["val_frechet"] != rows[1]["val_frechet"]
    assert sorted(path.name for path in (tmp_path / "out" / "samples").iterdir()) == [
        "epoch-0001.png",
        "epoch-0002.png",
    ]
    assert (tmp_path / "out" / "checkpoints" / "best.pt").exists()


def test_the_preset_makes_slices(tmp_path: Path) -> None:
    given = small_run(tmp_path, SMALL)
    for name in ("patch_size", "network_def#size", "discriminator_def#size"):
        given.pop(name)
    given |= {"output_dir": str(tmp_path / "out"), "train#handlers#3#count": 4}
    flow = workflow(BUNDLE, "train", "train.json", "slices_2d.json", **given)
    flow.run_id = "training"
    flow.run()
    weights = torch.load(tmp_path / "out" / "checkpoints" / "final.pt", weights_only=True)
    assert weights["layers.0.conv.weight"].shape[0] == 100
    batch = next(iter(flow.parser.get_parsed_content("train#dataloader")))
    assert batch["label"].shape == (2, 1, 48, 32)
    assert batch["image"].shape == (2, 100, 1, 1)
    figures = figures_of(tmp_path / "out")
    assert all(row[name] > 0.0 for row in figures for name in ("val_frechet", "val_spectrum_db"))
    given |= {"weights": str(tmp_path / "out" / "checkpoints" / "final.pt")}
    measured = workflow(BUNDLE, "train", "train.json", "slices_2d.json", "evaluate.json", **given)
    measured.run_id = "evaluating"
    measured.run()
    metrics = measured.parser.get_parsed_content("validate#evaluator").state.metrics
    assert metrics == pytest.approx({name: figures[-1][name] for name in ("val_frechet", "val_spectrum_db")})


def figures_of(folder: Path) -> list[dict[str, float]]:
    with (folder / "metrics.csv").open() as handle:
        return [{name: float(value or "nan") for name, value in row.items()} for row in csv.DictReader(handle)]


def write_digits(folder: Path, count: int, *, classes: bool) -> None:
    """Handwritten digits (scikit-learn), 8×8, as PNG files: flat, or in one subfolder per class."""
    digits = load_digits()
    for number in range(count):
        where = folder / str(digits.target[number]) if classes else folder
        where.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[number] * 15.9).astype(np.uint8)).save(where / f"{number:04d}.png")


def pixels(file: Path) -> NDArray[Any]:
    with Image.open(file) as picture:
        return np.asarray(picture)


@pytest.mark.parametrize("classes", [False, True], ids=["flat", "a folder per class"])
def test_the_preset_for_pictures_learns_digits_and_creates_some(tmp_path: Path, classes: bool) -> None:
    write_digits(tmp_path / "digits", 50, classes=classes)
    given: dict[str, Any] = {
        "dataset_dir": str(tmp_path / "digits"),
        "output_dir": str(tmp_path / "out"),
        "num_workers": 0,
        "epochs": 2,
        "iterations": 2,
        "batch_size": 4,
        "val_interval": 1,
        "validation_patches": 20,
        "network_def#features": [4, 4, 2],
        "discriminator_def#features": [2, 4, 4],
    }
    flow = workflow(BUNDLE, "train", "train.json", "images_2d.json", **given)
    flow.run_id = "training"
    flow.run()
    batch = next(iter(flow.parser.get_parsed_content("train#dataloader")))
    assert batch["label"].shape == (4, 1, 28, 28)
    assert batch["image"].shape == (4, 100, 1, 1)
    assert float(batch["label"].min()) == -1.0
    assert float(batch["label"].max()) > 0.8
    assert len(figures_of(tmp_path / "out")) == len(list((tmp_path / "out" / "samples").glob("epoch-*.png"))) == 2
    created = workflow(
        BUNDLE,
        "infer",
        "inference.json",
        "inference_2d.json",
        **{"network_def#features": [4, 4, 2], "network_def#size": [28, 28], "network_def#halvings": 2, "count": 3},
        weights=str(tmp_path / "out" / "checkpoints" / "final.pt"),
        output_dir=str(tmp_path / "png"),
    )
    created.run()
    files = sorted((tmp_path / "png").glob("*.png"))
    assert [pixels(file).shape for file in files] == [(28, 28)] * 3


def test_one_command_learns_pictures_and_goes_on(tmp_path: Path) -> None:
    load_commands("train")
    write_digits(tmp_path / "digits", 50, classes=True)
    small = ["epochs=2", "iterations=1", "batch_size=4", "val_interval=2", "validation_patches=10", "precision=fp32",
             "network_def#features=[4, 4, 2]", "discriminator_def#features=[2, 4, 4]"]  # fmt: skip

    def train(*more: str, preset: str = "images_2d") -> Result:
        command = ["train", str(BUNDLE), "--preset", preset, "--dataset-dir", str(tmp_path / "digits")]
        given = [part for setting in [*small, *more] for part in ("--set", setting)]
        return CliRunner().invoke(app, [*command, "-o", str(tmp_path / "out"), "--device", "cpu", "--resume", *given])

    assert train("image_size=[20, 24]").exit_code == 0
    assert train("image_size=[20, 24]", "epochs=3").exit_code == 0
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["inputs"]["datalist"] == str(tmp_path / "digits")
    assert [part["to_iteration"] for part in record["parts"]] == [2, 3]
    assert sorted(path.name for path in (tmp_path / "out" / "samples").iterdir())[-1] == "epoch-0003.png"
    assert "no configs/images_3d.json" in train(preset="images_3d").output
    assert "image_sise" in train("image_sise=[20, 24]").output


def test_shipped_slices_are_pictures(tmp_path: Path) -> None:
    workflow(BUNDLE, "infer", "inference.json", "inference_2d.json", count=2, output_dir=str(tmp_path)).run()
    first, second = (pixels(file) for file in sorted(tmp_path.glob("*.png")))
    assert first.shape == (48, 32)
    assert not np.array_equal(first, second)


def test_inference_makes_the_same_volumes_from_the_same_seed(tmp_path: Path) -> None:
    made = []
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        workflow(BUNDLE, "infer", "inference.json", count=2, seed=seed, output_dir=str(tmp_path / folder)).run()
        files = sorted((tmp_path / folder).glob("*_synthetic.nii.gz"))
        made.append([nib.load(file).get_fdata() for file in files])
    first, again, other = made
    assert len(first) == 2
    assert first[0].shape == (32, 32, 32)
    assert all(np.array_equal(one, two) for one, two in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])
    assert not np.array_equal(first[0], first[1])


def test_the_encoder_of_the_distance_is_an_autoencoders() -> None:
    config = {**written(BUNDLE, "train.json"), "bundle_root": str(BUNDLE)}
    encoder = ConfigParser(config).get_parsed_content("feature_encoder_def")
    assert encoder(torch.randn(3, 1, 32, 32, 32)).shape == (3, 128)
