"""The flagship bundle, run the way its users run it."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow, ckpt_export, verify_metadata, verify_net_in_out
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems
from monai.fl.utils.exchange_object import ExchangeObject
from safetensors.torch import load_file

import medseg.sharing
from medseg.bundle import Bundle
from medseg.networks import ConditionalPatchDiscriminator
from medseg.training import train_bundle
from tests.training.bundles import FLAGSHIP, SMALL, copy_bundle, write_data

CONFIGS = FLAGSHIP / "configs"
SCHEMA = Path(medseg.sharing.__file__).parent / "schema" / "meta_schema_20240725.json"

pytestmark = pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")  # MONAI tries all its readers in LoadImaged


def _workflow(kind: str, *files: str, **overrides: Any) -> ConfigWorkflow:
    workflow = ConfigWorkflow(
        config_file=[str(CONFIGS / name) for name in files],
        meta_file=str(CONFIGS / "metadata.json"),
        logging_file=False,
        workflow_type=kind,
        bundle_root=str(FLAGSHIP),
        device="cpu",
        **overrides,
    )
    workflow.initialize()
    return workflow


def _names(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [name for child in value.values() for name in _names(child)]
    if isinstance(value, list):
        return [name for child in value for name in _names(child)]
    return [value] if isinstance(value, str) else []


@pytest.mark.filterwarnings("ignore:No hash value provided")  # the schema is a file of the package
def test_metadata_is_valid_offline() -> None:
    verify_metadata(meta_file=str(CONFIGS / "metadata.json"), filepath=str(SCHEMA))
    metadata = json.loads((CONFIGS / "metadata.json").read_text())
    assert metadata["version"] in metadata["changelog"]


def test_the_weights_are_data_and_fit() -> None:
    assert (FLAGSHIP / "models" / "model.pt").stat().st_size < 25_000_000
    bundle = Bundle.open(FLAGSHIP)
    assert bundle.labels == {1: "anterior hippocampus", 2: "posterior hippocampus"}
    weights = torch.load(FLAGSHIP / "models" / "model.pt", weights_only=True)
    assert weights.keys() == bundle.load_network().state_dict().keys()


def test_the_published_discriminator_fits_its_definition() -> None:
    definition = json.loads((FLAGSHIP / "trust" / "discriminator.json").read_text())
    assert definition.pop("_target_") == "medseg.networks.ConditionalPatchDiscriminator"
    network = ConditionalPatchDiscriminator(**definition)
    network.load_state_dict(load_file(FLAGSHIP / "trust" / "discriminator.safetensors"))


def test_input_and_output_are_as_stated() -> None:
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(CONFIGS / "metadata.json"),
        config_file=str(CONFIGS / "inference.json"),
        device="cpu",
        bundle_root=str(FLAGSHIP),
    )


def test_the_model_exports_to_torchscript(tmp_path: Path) -> None:
    ckpt_export(
        net_id="network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(FLAGSHIP / "models" / "model.pt"),
        meta_file=str(CONFIGS / "metadata.json"),
        config_file=str(CONFIGS / "inference.json"),
        key_in_ckpt="",
        bundle_root=str(FLAGSHIP),
    )
    image = torch.randn(1, 1, 32, 48, 32)
    with torch.no_grad():
        exported = torch.jit.load(str(tmp_path / "model.ts"))(image)
        assert torch.allclose(exported, Bundle.open(FLAGSHIP).load_network()(image), atol=1e-4)


def test_inference_names_nothing_but_monai() -> None:
    text = (CONFIGS / "inference.json").read_text()
    assert "medseg" not in text
    assert "NibabelReader" in text


@pytest.mark.parametrize(("kind", "name"), [("train", "train.json"), ("infer", "inference.json")])
def test_properties_are_clean(tmp_path: Path, kind: str, name: str) -> None:
    write_data(tmp_path)
    overrides: dict[str, Any] = {"dataset_dir": str(tmp_path), "output_dir": str(tmp_path / "out")}
    if kind == "train":
        overrides |= {"datalist": str(tmp_path / "datalist.json"), **SMALL}
    else:
        overrides |= {"images": "image*.nii.gz"}
    assert _workflow(kind, name, **overrides).check_properties() == []


def test_inference_keeps_the_grid_of_the_source(tmp_path: Path) -> None:
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    affine[:3, 3] = 20.0, 30.0, -10.0
    image = np.random.default_rng(0).random((34, 47, 33), dtype=np.float32)
    nib.save(nib.Nifti1Image(image, affine), tmp_path / "case.nii.gz")
    workflow = _workflow(
        "infer", "inference.json", dataset_dir=str(tmp_path), images="case.nii.gz", output_dir=str(tmp_path / "out")
    )
    workflow.run()
    found = nib.load(tmp_path / "out" / "case_seg.nii.gz")
    assert found.shape == image.shape
    assert np.allclose(found.affine, affine)
    assert found.get_data_dtype() == np.uint8


def test_evaluate_overlays_train(tmp_path: Path) -> None:
    write_data(tmp_path)
    workflow = _workflow(
        "infer",
        "train.json",
        "evaluate.json",
        dataset_dir=str(tmp_path),
        datalist=str(tmp_path / "datalist.json"),
        output_dir=str(tmp_path / "out"),
        **{"validate#inferer#roi_size": [16, 16, 16]},
    )
    workflow.run()
    assert (tmp_path / "out" / "metrics.csv").exists()


def test_multi_gpu_overlays_train() -> None:
    overlay = json.loads((CONFIGS / "multi_gpu_train.json").read_text())
    assert set(overlay) <= {*json.loads((CONFIGS / "train.json").read_text()), "finalize", "+known_ids"}
    assert not any("os.environ" in name for name in _names(overlay))


@pytest.mark.slow
def test_training_through_monai_bundle_raises_dice(tmp_path: Path, real_data: Path) -> None:
    """The documented command, on 24 real cases and with few steps."""
    bundle = copy_bundle(tmp_path)
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--bundle_root", str(bundle)]
    command += ["--config_file", str(bundle / "configs" / "train.json")]
    command += ["--meta_file", str(bundle / "configs" / "metadata.json"), "--logging_file", "False"]
    command += ["--dataset_dir", str(real_data / "msd_hippocampus"), "--output_dir", str(tmp_path / "out")]
    command += ["--epochs", "2", "--iterations", "20", "--val_interval", "1", "--training_cases", "24"]
    subprocess.run(command, check=True, cwd=tmp_path)
    with (tmp_path / "out" / "metrics.csv").open() as handle:
        dice = [float(row["val_dice"]) for row in csv.DictReader(handle)]
    assert len(dice) == 2
    assert dice[1] > max(dice[0], 0.3)
    torch.load(tmp_path / "out" / "checkpoints" / "best.pt", weights_only=True)


@pytest.mark.slow
def test_weights_and_windows_belong_together(tmp_path: Path, real_data: Path) -> None:
    """These cases were in the training: other weights or windows would show, not how good the network is."""
    from medseg.evaluation import evaluate_case

    data = real_data / "msd_hippocampus"
    items = [i for i in json.loads((CONFIGS / "datalist.json").read_text())["training"] if i["fold"] == 0][:10]
    listed = [{"image": str(data / item["image"])} for item in items]
    _workflow("infer", "inference.json", datalist=listed, output_dir=str(tmp_path)).run()
    dice: dict[int, list[float]] = {1: [], 2: []}
    for item in items:
        name = Path(item["image"]).name.replace(".nii.gz", "_seg.nii.gz")
        found, wanted = (
            np.asarray(nib.load(path).dataobj).astype(np.uint8) for path in (tmp_path / name, data / item["label"])
        )
        for result in evaluate_case(found, wanted, (1.0, 1.0, 1.0), Bundle.open(FLAGSHIP).labels):
            dice[result.label].append(result.values["dice"] or 0.0)
    assert np.mean(dice[1]) > 0.89
    assert np.mean(dice[2]) > 0.87


@pytest.mark.slow
def test_monai_bundle_and_medseg_train_alike(tmp_path: Path) -> None:
    write_data(tmp_path)
    settings = {**SMALL, "datalist": str(tmp_path / "datalist.json"), "dataset_dir": str(tmp_path)}
    train_bundle(FLAGSHIP, output=tmp_path / "ours", device="cpu", overrides=settings)
    workflow = _workflow("train", "train.json", **settings, output_dir=str(tmp_path / "theirs"))
    workflow.run_id = "training"
    workflow.run()
    tables = []
    for folder in ("ours", "theirs"):
        with (tmp_path / folder / "metrics.csv").open() as handle:
            tables.append([{k: v for k, v in row.items() if "seconds" not in k} for row in csv.DictReader(handle)])
    assert tables[0] == tables[1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:executing the bundle config")  # it is this project's own bundle
def test_one_federated_round(tmp_path: Path) -> None:
    """MONAI's federated client takes the global weights, trains one epoch and sends back other ones."""
    bundle = copy_bundle(tmp_path)
    write_data(tmp_path)
    settings = {**SMALL, "datalist": str(tmp_path / "datalist.json"), "dataset_dir": str(tmp_path), "device": "cpu"}
    train = ConfigWorkflow(
        config_file=str(bundle / "configs" / "train.json"),
        meta_file=str(bundle / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="train",
        bundle_root=str(bundle),
        output_dir=str(tmp_path / "out"),
        **settings,
    )
    client = MonaiAlgo(bundle_root=str(bundle), local_epochs=1, train_workflow=train, config_evaluate_filename=None)
    client.initialize(extra={ExtraItems.CLIENT_NAME: "site"})
    start = {name: value.clone() for name, value in train.parser.get_parsed_content("network").state_dict().items()}
    client.train(data=ExchangeObject(weights=start), extra={})
    update = client.get_weights(extra={}).weights
    assert any(not np.array_equal(np.asarray(update[name]), start[name].numpy()) for name in update)
    client.finalize()
