"""``train_bundle``: what it leaves, what it refuses, how it stops and goes on."""

import csv
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events

from medseg.bundle import Bundle
from medseg.bundle.training_run import TrainingRun
from medseg.errors import BundleError, Interrupted, OutputLocked, UsageError
from medseg.files import locked_folder, sha256_file
from medseg.training import TrainingResult, train_bundle
from medseg.training.configuration import check_overrides, parse_overrides
from medseg.training.trainer import AdversarialSegmentationTrainer
from medseg.trust.discriminator_acceptance import DiscriminatorAcceptance
from tests.training.bundles import SMALL, copy_bundle, write_data

pytestmark = pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")  # MONAI tries all its readers in LoadImaged


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return copy_bundle(tmp_path)


def _train(bundle: Path, output: Path, **options: Any) -> TrainingResult:
    data = bundle.parent / "data"
    if not data.exists():
        data.mkdir()
        write_data(data)
    settings = {**SMALL, **options.pop("overrides", {})}
    return train_bundle(
        bundle, datalist=data / "datalist.json", dataset_dir=data, output=output, overrides=settings, **options
    )


class _SignalAt:
    """Watcher that sends SIGTERM to this process after an iteration."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def attach(self, engine: AdversarialSegmentationTrainer) -> None:
        engine.add_event_handler(
            Events.ITERATION_COMPLETED(once=self.iteration), lambda: os.kill(os.getpid(), signal.SIGTERM)
        )


def test_a_run_leaves_what_it_promises_and_publishes(bundle: Path, tmp_path: Path) -> None:
    result = _train(bundle, tmp_path / "out", fold=1, publish=True)
    assert (result.epochs, result.iterations, result.published) == (2, 4, bundle / "models" / "model.pt")
    with (tmp_path / "out" / "metrics.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert {"loss", "discriminator_loss", "val_dice", "val_hd95_mm", "val_dice_anterior_hippocampus"} <= set(rows[1])
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["status"] == "done"
    assert record["overrides"]["fold"] == 1
    assert len(record["inputs"]["datalist_sha256"]) == 64
    assert list((tmp_path / "out" / "tensorboard").iterdir())
    assert sorted(path.name for path in (tmp_path / "out" / "samples").iterdir()) == [
        "epoch-0001.png",
        "epoch-0002.png",
    ]
    published = torch.load(bundle / "models" / "model.pt", weights_only=True)
    best = torch.load(result.best_weights, weights_only=True)
    assert all(torch.equal(published[name], value) for name, value in best.items())
    assert json.loads((bundle / "trust" / "discriminator.json").read_text())["_target_"].endswith("PatchDiscriminator")
    assert (bundle / "trust" / "discriminator.safetensors").stat().st_size > 0
    tried = DiscriminatorAcceptance.read(bundle / "trust" / "discriminator_acceptance.json")
    assert tried.weights_sha256 == sha256_file(bundle / "trust" / "discriminator.safetensors")
    assert (tried.cases, tried.held_out) == (2, True)
    assert result.discriminator is not None
    assert record["result"]["discriminator"]["real"]["of"] == 2
    assert record["result"]["discriminator"]["weights_sha256"] == "", "of the last epoch, which was not published"
    assert float(rows[1]["adversarial_share"]) == 0.1
    assert float(rows[1]["adversarial_weight"]) > 0.0


def test_what_was_missed_is_counted_and_has_no_distance(bundle: Path, tmp_path: Path) -> None:
    """A network that finds nothing: the worst result there is, and not 0 mm away from the reference."""
    blind = {"learning_rate": 0.0, "weight_decay": 0.0, "epochs": 1}
    start = torch.load(_train(bundle, tmp_path / "start", overrides=blind).best_weights, weights_only=True)
    start["final_conv.bias"] += torch.tensor([1000.0, 0.0, 0.0])
    torch.save(start, tmp_path / "blind.pt")
    result = _train(bundle, tmp_path / "out", overrides=blind, init=tmp_path / "blind.pt")
    assert result.best_metric == 0.0
    with (tmp_path / "out" / "metrics.csv").open() as handle:
        [row] = csv.DictReader(handle)
    structures = 2 * 2  # of two cases
    assert (float(row["val_dice"]), row["val_dice_missed"], row["val_dice_invented"]) == (0.0, str(structures), "0")
    assert float(row["val_dice_anterior_hippocampus"]) == float(row["val_dice_posterior_hippocampus"]) == 0.0
    for name in ("val_hd95_mm", "val_hd_mm"):
        assert row[name] == ""
        assert (row[f"{name}_missed"], row[f"{name}_invented"]) == (str(structures), "0")
    assert json.loads((tmp_path / "out" / "run.json").read_text())["last_epoch"]["val_hd95_mm"] is None


def test_a_published_bundle_says_how_it_was_trained(bundle: Path, tmp_path: Path) -> None:
    _train(bundle, tmp_path / "out", fold=1, publish="final")
    opened = Bundle.open(bundle)
    run = TrainingRun.read(opened)
    assert run is not None
    assert (run.model, run.epoch, run.epochs, run.iterations, run.fold) == ("final", 2, 2, 4, 1)
    assert (run.cases, run.held_out_cases) == (2, 2)
    data = tmp_path / "data"
    assert set(run.images) == {sha256_file(data / f"image{number}.nii.gz") for number in (0, 2)}
    assert set(run.labels) == {sha256_file(data / f"label{number}.nii.gz") for number in (0, 2)}
    assert opened.version == "0.3.0", "other weights, another version"
    assert "fold 1 with 2 cases held out" in opened.metadata["eval_metrics"]["cases"]
    assert opened.metadata["eval_metrics"]["dice"] == round(run.figures["dice"], 4)
    opened.load_network()


def test_a_network_that_inference_does_not_build_is_not_published(bundle: Path, tmp_path: Path) -> None:
    changed = {"network_def#features": [2, 2, 4, 4, 4, 4]}
    with pytest.raises(UsageError, match=r"differs in features from .*inference\.json"):
        _train(bundle, tmp_path / "out", publish=True, overrides=changed)
    assert not (tmp_path / "out" / "run.json").exists(), "told before the first epoch"


def test_sigterm_saves_and_the_resumed_run_ends_like_an_uninterrupted_one(bundle: Path, tmp_path: Path) -> None:
    whole = _train(bundle, tmp_path / "whole")
    with pytest.raises(Interrupted, match="--resume") as stopped:
        _train(bundle, tmp_path / "parts", watchers=[_SignalAt(1)])
    assert stopped.value.exit_code == 75
    assert json.loads((tmp_path / "parts" / "run.json").read_text())["status"] == "interrupted"
    resumed = _train(bundle, tmp_path / "parts", resume=True)
    assert resumed.best_metric == whole.best_metric
    one, other = (torch.load(result.best_weights, weights_only=True) for result in (whole, resumed))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    again = _train(bundle, tmp_path / "parts", resume=True)  # nothing is left to do, and nothing starts anew
    assert again.iterations == 4


def test_unlabelled_images_and_deep_supervision_come_from_the_configuration(bundle: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    path = write_data(data)
    content = json.loads(path.read_text())
    content["unlabelled"] = ["image1.nii.gz", "image3.nii.gz"]
    path.write_text(json.dumps(content))
    heads = {
        "_target_": "medseg.training.DeepSupervision",
        "layers": ["upcat_2", "upcat_3"],
        "channels": [2, 4],
        "out_channels": 3,
    }
    settings = {"deep_supervision": heads, "consistency_start": 1, "epochs": 1}
    result = _train(bundle, tmp_path / "out", overrides=settings)
    with (tmp_path / "out" / "metrics.csv").open() as handle:
        [row] = csv.DictReader(handle)
    assert float(row["consistency_loss"]) > 0.0
    plain = _train(bundle, tmp_path / "plain", overrides={"epochs": 1, "consistency_weight": 0.0})
    one, other = (torch.load(found.best_weights, weights_only=True) for found in (result, plain))
    assert list(one) == list(other)


def test_a_folder_with_a_run_is_not_overwritten(bundle: Path, tmp_path: Path) -> None:
    _train(bundle, tmp_path / "out", overrides={"epochs": 1})
    with pytest.raises(UsageError, match="--resume"):
        _train(bundle, tmp_path / "out")
    with locked_folder(tmp_path / "out", "taken"), pytest.raises(OutputLocked, match="another process"):
        _train(bundle, tmp_path / "out", resume=True)


def test_init_copies_what_fits(bundle: Path, tmp_path: Path) -> None:
    first = _train(bundle, tmp_path / "first", overrides={"epochs": 1})
    frozen = {"epochs": 1, "learning_rate": 0.0, "weight_decay": 0.0, "adversarial_share": 0.0}
    second = _train(bundle, tmp_path / "second", overrides=frozen, init=first.best_weights)
    one, other = (torch.load(result.best_weights, weights_only=True) for result in (first, second))
    assert torch.equal(one["final_conv.weight"], other["final_conv.weight"])
    third = _train(bundle, tmp_path / "third", overrides=frozen, init=first.best_weights, rescale=True)
    rescaled, name = torch.load(third.best_weights, weights_only=True), "conv_0.conv_0.conv.weight"
    size = rescaled[name].norm() / one[name].norm()
    assert not torch.isclose(size, torch.tensor(1.0), rtol=1e-6)
    torch.testing.assert_close(rescaled[name], size * one[name])
    with pytest.raises(UsageError, match="--init"):
        _train(bundle, tmp_path / "fourth", init=tmp_path / "nothing")
    with pytest.raises(UsageError, match="give both or neither"):
        _train(bundle, tmp_path / "fourth", rescale=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overrides": {"epoch": 3}}, "did you mean epochs"),
        ({"fold": 7}, r"folds \[0, 1\], not 7"),
        ({"overrides": {"datalist": "nowhere.json"}}, "no datalist at nowhere.json"),
    ],
)
def test_wrong_usage_is_refused_in_words(bundle: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        _train(bundle, tmp_path / "out", **options)


def test_another_trainer_is_refused_with_the_way_to_run_it(bundle: Path, tmp_path: Path) -> None:
    path = bundle / "configs" / "train.json"
    config = json.loads(path.read_text())
    config["train"]["handlers"] = config["train"]["handlers"][:2]
    path.write_text(json.dumps(config))
    with pytest.raises(BundleError, match=r"monai\.bundle run training"):
        _train(bundle, tmp_path / "out")


def test_a_knob_that_is_gone_is_refused_with_what_to_write(bundle: Path, tmp_path: Path) -> None:
    config = json.loads((bundle / "configs" / "train.json").read_text())
    config["adversary"]["scaled"] = 0.6
    config["adversary"]["schedule"]["weight"] = 0.02
    (bundle / "configs" / "train.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"schedule#weight is gone: write .*share.*adversary#scaled is gone: delete"):
        train_bundle(bundle, output=tmp_path / "run", device="cpu", overrides={"adversary::smoothing": 0.1})
    with pytest.raises(UsageError, match="adversarial_weight is gone: write adversarial_share"):
        _train(copy_bundle(tmp_path / "now"), tmp_path / "run", overrides={"adversarial_weight": 0.02})
    assert not (tmp_path / "run" / "run.json").exists()


def test_overrides_are_json_where_they_can_be() -> None:
    assert parse_overrides(["a=1", "b=[1, 2]", "c=null", "d=x=y"]) == {"a": 1, "b": [1, 2], "c": None, "d": "x=y"}
    with pytest.raises(UsageError, match="ID=VALUE"):
        parse_overrides(["epochs"])


def test_nested_ids_are_known_in_both_spellings() -> None:
    check_overrides({"a": {"b": [{"c": 1}]}}, {"a#b#0#c": 2, "a::b": 3})
    with pytest.raises(UsageError, match="a#b#0#c"):
        check_overrides({"a": {"b": [{"c": 1}]}}, {"a#b#0#d": 2})
