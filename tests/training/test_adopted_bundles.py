"""Bundles of others, whose training MONAI's own trainer would run: the same training, watched, and resumed exactly."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigParser

from medseg.bundle import Bundle
from medseg.errors import BundleError, Interrupted, UsageError
from medseg.training import ExactEpochs, train_bundle
from tests.inference.volumes import save

Config = dict[str, Any]

pytestmark = pytest.mark.filterwarnings("ignore")  # what MONAI's parts warn of is up to who wrote the bundle


def _config() -> Config:
    """In the manner of the public zoo."""
    both = ["image", "label"]
    steps = [
        {"_target_": "LoadImaged", "keys": both},
        {"_target_": "EnsureChannelFirstd", "keys": both},
        {"_target_": "ScaleIntensityd", "keys": "image"},
    ]
    crop = {"_target_": "RandSpatialCropd", "keys": both, "roi_size": [8, 8, 8], "random_size": False}
    noise = {"_target_": "RandGaussianNoised", "keys": "image", "prob": 0.5}
    return {
        "imports": ["$import glob"],
        "bundle_root": ".",
        "ckpt_dir": "$@bundle_root + '/models'",
        "output_dir": "$@bundle_root + '/eval'",
        "dataset_dir": "/nowhere",
        "images": "$list(sorted(glob.glob(@dataset_dir + '/images/*.nii.gz')))",
        "labels": "$list(sorted(glob.glob(@dataset_dir + '/labels/*.nii.gz')))",
        "epochs": 4,
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": {
            "_target_": "UNet",
            "spatial_dims": 3,
            "in_channels": 1,
            "out_channels": 2,
            "channels": [4, 8],
            "strides": [2],
            "dropout": 0.2,
        },
        "network": "$@network_def.to(@device)",
        "loss": {"_target_": "DiceCELoss", "to_onehot_y": True, "softmax": True},
        "optimizer": {"_target_": "torch.optim.Adam", "params": "$@network.parameters()", "lr": 0.01},
        "lr_scheduler": {
            "_target_": "torch.optim.lr_scheduler.StepLR",
            "optimizer": "@optimizer",
            "step_size": 2,
            "gamma": 0.1,
        },
        "train": {
            "deterministic_transforms": steps,
            "random_transforms": [crop, noise],
            "preprocessing": {
                "_target_": "Compose",
                "transforms": "$@train#deterministic_transforms + @train#random_transforms",
            },
            "dataset": {
                "_target_": "CacheDataset",
                "data": "$[{'image': i, 'label': l} for i, l in zip(@images[:4], @labels[:4])]",
                "transform": "@train#preprocessing",
                "progress": False,
            },
            "dataloader": {
                "_target_": "DataLoader",
                "dataset": "@train#dataset",
                "batch_size": 1,
                "shuffle": True,
                "num_workers": 0,
            },
            "inferer": {"_target_": "SimpleInferer"},
            "handlers": [
                {"_target_": "LrScheduleHandler", "lr_scheduler": "@lr_scheduler", "print_lr": False},
                {
                    "_target_": "ValidationHandler",
                    "validator": "@validate#evaluator",
                    "epoch_level": True,
                    "interval": 1,
                },
            ],
            "trainer": {
                "_target_": "SupervisedTrainer",
                "max_epochs": "@epochs",
                "device": "@device",
                "train_data_loader": "@train#dataloader",
                "network": "@network",
                "loss_function": "@loss",
                "optimizer": "@optimizer",
                "inferer": "@train#inferer",
                "train_handlers": "@train#handlers",
            },
        },
        "validate": {
            "preprocessing": {"_target_": "Compose", "transforms": "%train#deterministic_transforms"},
            "dataset": {
                "_target_": "Dataset",
                "data": "$[{'image': i, 'label': l} for i, l in zip(@images[4:], @labels[4:])]",
                "transform": "@validate#preprocessing",
            },
            "dataloader": {"_target_": "DataLoader", "dataset": "@validate#dataset", "batch_size": 1},
            "postprocessing": {
                "_target_": "Compose",
                "transforms": [
                    {"_target_": "AsDiscreted", "keys": ["pred", "label"], "argmax": [True, False], "to_onehot": 2}
                ],
            },
            "handlers": [
                {
                    "_target_": "CheckpointSaver",
                    "save_dir": "@ckpt_dir",
                    "save_dict": {"model": "@network"},
                    "save_key_metric": True,
                    "key_metric_filename": "model.pt",
                }
            ],
            "key_metric": {
                "val_mean_dice": {
                    "_target_": "MeanDice",
                    "include_background": False,
                    "output_transform": "$monai.handlers.from_engine(['pred', 'label'])",
                }
            },
            "evaluator": {
                "_target_": "SupervisedEvaluator",
                "device": "@device",
                "val_data_loader": "@validate#dataloader",
                "network": "@network",
                "postprocessing": "@validate#postprocessing",
                "key_val_metric": "@validate#key_metric",
                "val_handlers": "@validate#handlers",
            },
        },
        "initialize": ["$monai.utils.set_determinism(seed=123)"],
        "run": ["$@train#trainer.run()"],
    }


@pytest.fixture
def data(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for name in ("images", "labels"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for number in range(6):
        mask = np.zeros((16, 16, 12), np.float32)
        i, j, k = generator.integers(1, 6, 3)
        mask[i : i + 8, j : j + 8, k : k + 6] = 1
        image = mask + generator.normal(0, 0.3, mask.shape).astype(np.float32)
        save(image, np.eye(4), tmp_path / "data" / "images" / f"{number}.nii.gz")
        save(mask, np.eye(4), tmp_path / "data" / "labels" / f"{number}.nii.gz")
    return tmp_path / "data"


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Config], Path]:
    """Write a bundle of others with a training."""

    def _write(config: Config) -> Path:
        folder = tmp_path / "others_ct_segmentation"
        (folder / "configs").mkdir(parents=True, exist_ok=True)
        (folder / "models").mkdir(exist_ok=True)
        tensor = {"type": "image", "num_channels": 1, "spatial_shape": [8, 8, 8], "dtype": "float32"}
        names = {"0": "background", "1": "box"}
        formats = {
            "inputs": {"image": tensor},
            "outputs": {"pred": {**tensor, "num_channels": 2, "channel_def": names}},
        }
        metadata = {"version": "0.1.0", "network_data_format": formats}
        (folder / "configs" / "metadata.json").write_text(json.dumps(metadata))
        (folder / "configs" / "train.json").write_text(json.dumps(config))
        return folder

    return _write


def _weights(folder: Path, name: str = "final") -> dict[str, torch.Tensor]:
    return dict(torch.load(folder / "checkpoints" / f"{name}.pt", weights_only=True))


def _equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class _Stop:
    """A watcher that asks the run to stop after an iteration."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def attach(self, engine: Any) -> None:
        engine.add_event_handler(
            Events.ITERATION_COMPLETED(once=self.iteration), lambda: os.kill(os.getpid(), signal.SIGTERM)
        )


def _read(file: Path) -> Config:
    return dict(json.loads(file.read_text()))


def test_it_trains_with_checks_and_a_journal_and_writes_into_its_output_alone(
    data: Path, write: Callable[[Config], Path], tmp_path: Path
) -> None:
    bundle, output = write(_config()), tmp_path / "out"
    before = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    result = train_bundle(bundle, dataset_dir=data, output=output, device="cpu")
    assert (result.epochs, result.iterations) == (4, 16)
    assert result.best_weights.is_file()
    assert result.best_metric is not None
    assert result.best_metric > 0.3
    run = _read(output / "run.json")
    assert run["status"] == "done"
    assert any("CheckpointSaver is left out" in note for note in run["notes"])
    assert len((output / "metrics.csv").read_text().splitlines()) == 5
    assert {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("workers", "stops"), [(0, (6, 8)), (2, (5,))])
def test_it_goes_on_as_if_it_had_not_stopped(
    workers: int, stops: tuple[int, ...], data: Path, write: Callable[[Config], Path], tmp_path: Path
) -> None:
    config = _config()
    config["train"]["dataloader"]["persistent_workers"] = workers > 0  # these would go on with what they have drawn
    bundle, given = write(config), {"train#dataloader#num_workers": workers}
    train_bundle(bundle, dataset_dir=data, output=tmp_path / "whole", device="cpu", overrides=given)
    for stop in stops:
        parts = tmp_path / f"parts-{stop}"
        options: Any = {"dataset_dir": data, "output": parts, "device": "cpu", "overrides": given}
        with pytest.raises(Interrupted):
            train_bundle(bundle, watchers=[_Stop(stop)], **options)
        train_bundle(bundle, resume=True, **options)
        assert _equal(_weights(tmp_path / "whole"), _weights(parts))
        assert _equal(_weights(tmp_path / "whole", "best"), _weights(parts, "best"))


def test_parts_written_into_handlers_go_on_too(data: Path, write: Callable[[Config], Path], tmp_path: Path) -> None:
    config = _config()
    schedule, validation = config["train"]["handlers"]
    schedule["lr_scheduler"], validation["validator"] = config.pop("lr_scheduler"), config["validate"].pop("evaluator")
    config["train"]["handlers"], config["schedule"] = ["@schedule", validation], schedule
    bundle = write(config)
    options: Any = {"dataset_dir": data, "device": "cpu"}
    whole = train_bundle(bundle, output=tmp_path / "whole", **options)
    assert whole.best_metric is not None
    with pytest.raises(Interrupted):
        train_bundle(bundle, output=tmp_path / "parts", watchers=[_Stop(9)], **options)
    train_bundle(bundle, output=tmp_path / "parts", resume=True, **options)
    assert _equal(_weights(tmp_path / "whole"), _weights(tmp_path / "parts"))
    assert not list((bundle / "models").iterdir())


def test_ids_of_other_handlers_mean_what_they_meant_when_one_gives_way(
    data: Path, write: Callable[[Config], Path], tmp_path: Path
) -> None:
    config = _config()
    config["train"]["handlers"].insert(0, config["validate"]["handlers"][0])
    config["initialize"].append("$@train#handlers#1.lr_scheduler.step_size")  # which the validation has not
    options: Any = {"dataset_dir": data, "device": "cpu", "permission": "everything"}
    result = train_bundle(write(config), output=tmp_path / "out", **options)
    assert result.epochs == 4
    assert not list((tmp_path / "others_ct_segmentation" / "models").iterdir())


def test_generators_of_a_sampler_begin_anew_too(data: Path, write: Callable[[Config], Path], tmp_path: Path) -> None:
    config = _config()
    sampler = {"_target_": "torch.utils.data.RandomSampler", "data_source": "@train#dataset", "generator": "@draws"}
    config["draws"] = {"_target_": "torch.Generator"}
    config["train"]["dataloader"] |= {"shuffle": False, "sampler": sampler}
    bundle = write(config)
    options: Any = {"dataset_dir": data, "device": "cpu", "permission": "everything"}
    train_bundle(bundle, output=tmp_path / "whole", **options)
    with pytest.raises(Interrupted):
        train_bundle(bundle, output=tmp_path / "parts", watchers=[_Stop(6)], **options)
    train_bundle(bundle, output=tmp_path / "parts", resume=True, **options)
    assert _equal(_weights(tmp_path / "whole"), _weights(tmp_path / "parts"))


def test_it_trains_as_the_trainer_of_monai(data: Path, write: Callable[[Config], Path], tmp_path: Path) -> None:
    bundle = write(_config())
    given = {"network_def#dropout": 0.0}  # the trial of number formats is the only other thing that draws
    train_bundle(bundle, dataset_dir=data, output=tmp_path / "ours", device="cpu", overrides=given)
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "train.json"))
    parser.update({"dataset_dir": str(data), "ckpt_dir": str(tmp_path / "theirs"), "device": "cpu", **given})
    parser.get_parsed_content("initialize")
    trainer = parser.get_parsed_content("train#trainer")
    trainer.stateful = {}
    ExactEpochs(0).attach(trainer)
    trainer.run()
    ours = _weights(tmp_path / "ours")
    for name, tensor in parser.get_parsed_content("network").state_dict().items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=1e-5)


def test_its_parts_may_stand_on_the_first_level(data: Path, write: Callable[[Config], Path], tmp_path: Path) -> None:
    config = _config()
    train, validate = config["train"], config["validate"]
    config |= {
        "handlers": train.pop("handlers"),
        "trainer": train.pop("trainer"),
        "evaluator": validate.pop("evaluator"),
    }
    config["trainer"]["train_handlers"], config["run"] = "@handlers", ["$@trainer.run()"]
    config["handlers"][1]["validator"] = "@evaluator"
    result = train_bundle(write(config), dataset_dir=data, output=tmp_path / "out", device="cpu")
    assert (result.epochs, result.iterations) == (4, 16)
    assert result.best_metric is not None
    assert not list((tmp_path / "others_ct_segmentation" / "models").iterdir())


def test_starting_weights_can_be_given(data: Path, write: Callable[[Config], Path], tmp_path: Path) -> None:
    bundle = write(_config())
    options: Any = {"dataset_dir": data, "device": "cpu"}
    first = train_bundle(bundle, output=tmp_path / "first", **options)
    rest = {"optimizer#lr": 0.0}
    second = train_bundle(bundle, output=tmp_path / "second", init=first.best_weights, overrides=rest, **options)
    trained, kept = _weights(second.output), _weights(first.output, "best")
    assert all(
        torch.equal(trained[name], kept[name]) for name in kept if "num_batches" not in name and "running" not in name
    )


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ({"train#dataloader#_target_": "ThreadDataLoader"}, "ThreadDataLoader"),
        ({"train#dataset#_target_": "SmartCacheDataset", "train#dataset#replace_rate": 0.5}, "SmartCacheDataset"),
    ],
)
def test_what_cannot_be_resumed_is_said_at_the_start_and_refused(
    part: Config,
    told: str,
    data: Path,
    write: Callable[[Config], Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    parser = ConfigParser(_config())
    parser.update(part)
    bundle = write(parser.config)
    options: Any = {"dataset_dir": data, "output": tmp_path / "out", "device": "cpu"}
    with pytest.raises(Interrupted):
        train_bundle(bundle, watchers=[_Stop(4)], **options)
    assert told in caplog.text
    with pytest.raises(UsageError, match=told):
        train_bundle(bundle, resume=True, **options)


def test_steps_of_its_own_and_other_trainers_are_refused_at_once(write: Callable[[Config], Path]) -> None:
    config = _config()
    config["train"]["trainer"]["iteration_update"] = "$lambda engine, batch: {}"
    with pytest.raises(BundleError, match="iteration_update"):
        Bundle.open(write(config)).check_trainable()
    config["train"]["trainer"] = {"_target_": "GanTrainer"}
    with pytest.raises(BundleError, match="GanTrainer"):
        Bundle.open(write(config)).check_trainable()


def test_the_best_of_a_run_can_be_published(data: Path, write: Callable[[Config], Path], tmp_path: Path) -> None:
    bundle, config = write(_config()), _config()
    inference = {name: config[name] for name in ("bundle_root", "device", "network_def")}
    (bundle / "configs" / "inference.json").write_text(json.dumps(inference))
    result = train_bundle(bundle, dataset_dir=data, output=tmp_path / "out", device="cpu", publish=True)
    assert result.published == bundle / "models" / "model.pt"
    assert _equal(dict(torch.load(result.published, weights_only=True)), _weights(tmp_path / "out", "best"))
    assert _read(bundle / "docs" / "training_run.json")["cases"] == 4
    metrics = _read(bundle / "configs" / "metadata.json")["eval_metrics"]
    assert metrics["cases"] == "2 cases held out, which chose the epoch"
    assert metrics["mean_dice"] == pytest.approx(result.best_metric, abs=1e-3)


def test_figures_of_cases_that_were_trained_on_are_not_published(
    data: Path, write: Callable[[Config], Path], tmp_path: Path
) -> None:
    config = _config()
    config["validate"]["dataset"]["data"] = config["train"]["dataset"]["data"]
    bundle = write(config)
    inference = {name: config[name] for name in ("bundle_root", "device", "network_def")}
    (bundle / "configs" / "inference.json").write_text(json.dumps(inference))
    train_bundle(bundle, dataset_dir=data, output=tmp_path / "out", device="cpu", publish=True)
    assert _read(bundle / "configs" / "metadata.json")["eval_metrics"] == {"cases": "none held out"}
