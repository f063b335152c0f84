"""A plan round a published encoder: sides that it can halve, weights that fit, and a bundle that starts from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from torch import Tensor, nn

from medseg.bundle import Bundle, audit
from medseg.errors import BundleError, UsageError
from medseg.files import sha256_file, write_json
from medseg.inference import run_batch
from medseg.networks import read_checkpoint
from medseg.phantom import write_dataset as write_phantoms
from medseg.phantom.anatomy import STRUCTURES, label_names
from medseg.planning import Budget, create_bundle, make_plan
from medseg.planning.encoder import ENCODERS
from medseg.sharing import pack, unpack, verify
from medseg.training import FrozenFirst, train_bundle
from tests.networks.checkpoints import imagenet_resnet50, imagenet_vgg16_bn, medicalnet_resnet18
from tests.planning.test_create import write_dataset
from tests.planning.test_plan import CASES

PUBLISHED: dict[str, Callable[[], dict[str, Any]]] = {
    "resnet18": medicalnet_resnet18,
    "resnet50": imagenet_resnet50,
    "vgg16": lambda: imagenet_vgg16_bn((64, 128, 256, 512, 512)),
}


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("data", CASES)
def test_every_side_can_be_halved_as_often_as_the_encoder_does(name: str, data: str) -> None:
    encoder = ENCODERS[name]
    plan = make_plan(CASES[data], Budget(memory_gb=8, minutes=240), encoder)
    assert all(side % 2**encoder.halvings == 0 and side >= 32 for side in plan.patch_size)
    assert plan.network["out_channels"] == len(CASES[data].labels) + 1
    assert plan.width <= 16, "it is the discriminator's, too"


def test_a_costly_encoder_asks_for_time() -> None:
    with pytest.raises(UsageError, match="larger budget"):
        make_plan(CASES["isotropic"], Budget(minutes=5), ENCODERS["vgg16"])


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("published") / "resnet_18.pth"
    torch.save(medicalnet_resnet18(), path)
    return path


def test_the_bundle_starts_from_the_weights_and_says_so(tmp_path: Path, weights: Path) -> None:
    datalist = write_dataset(tmp_path / "data")
    folder, plan = create_bundle("ball_mri_segmentation", datalist, tmp_path, encoder="resnet18", weights=weights)
    assert plan.reasons[-1][:2] == ("weights", "resnet_18.pth")
    assert plan.reasons[-1][2].startswith("102 tensors copied")
    assert not [finding for finding in audit(folder) if finding.severity == "block"]
    train, inference = (Bundle.open(folder).config(name) for name in ("train", "inference"))
    assert str(weights.parent) not in json.dumps(train), "the bundle holds a copy of what it uses"
    kept = read_checkpoint(folder / "pretrained" / "encoder.safetensors")
    assert kept.keys() == {name.removeprefix("module.") for name in medicalnet_resnet18()["state_dict"]}
    assert train["encoder_rate"] == 0.1
    assert train["frozen_epochs"] == train["epochs"] // 10
    assert {"encoder_weights", "encoder_rate", "frozen_epochs"} <= set(train["known_ids"])
    assert "medseg" not in json.dumps(inference), "its network is MONAI's own"
    assert "encoder_weights" not in inference, "what is shipped holds the trained weights"
    assert "<" not in json.dumps([train, inference])
    with pytest.raises(BundleError, match="has no weights"):
        pack(folder, tmp_path / "untrained.zip")  # the encoder alone is no network to share


@pytest.mark.parametrize(
    ("encoder", "words"), [("resnet50", "another architecture"), ("vgg16", "no convolution"), (None, "--encoder")]
)
def test_weights_of_another_encoder_are_refused(tmp_path: Path, weights: Path, encoder: str | None, words: str) -> None:
    datalist, budget = write_dataset(tmp_path / "data", cases=2), Budget(minutes=240)
    with pytest.raises(UsageError, match=words):
        create_bundle("ball_mri_seg", datalist, tmp_path, encoder=encoder, weights=weights, budget=budget)
    assert not (tmp_path / "ball_mri_seg").exists()


def test_counters_that_old_checkpoints_lack_are_no_matter(tmp_path: Path) -> None:
    state = {name: value for name, value in medicalnet_resnet18()["state_dict"].items() if "num_batches" not in name}
    torch.save(state, tmp_path / "old.pth")
    words, tensors = ENCODERS["resnet18"].match(tmp_path / "old.pth", 1)
    assert words.startswith("85 tensors copied")
    assert len(tensors) == 85


def test_an_unknown_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="resnet18, resnet34"):
        create_bundle("ball_mri_seg", write_dataset(tmp_path / "data", cases=2), tmp_path, encoder="resnet19")


class _Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv1d(1, 2, 1), nn.BatchNorm1d(2))
        self.decoder = nn.Conv1d(2, 1, 1)

    def forward(self, signal: Tensor) -> Tensor:
        answer: Tensor = self.decoder(self.encoder(signal))
        return answer


def test_the_encoder_rests_in_the_first_epochs_and_learns_then() -> None:
    torch.manual_seed(0)
    network = _Parts()
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1, weight_decay=0.1)

    def step(engine: Engine, signal: Tensor) -> None:
        network(signal).square().mean().backward()
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        optimizer.step()
        optimizer.zero_grad()

    engine = Engine(step)
    engine.register_events(*IterationEvents)
    FrozenFirst(network, "encoder", 2).attach(engine)
    states: list[dict[str, Tensor]] = []

    def keep() -> None:
        states.append({name: value.clone() for name, value in network.state_dict().items()})

    keep()
    engine.add_event_handler(Events.EPOCH_COMPLETED, keep)
    engine.run([torch.randn(4, 1, 8) + 3.0], max_epochs=3)
    counters = {"encoder.1.num_batches_tracked"}
    for before, after, rests in zip(states[:-1], states[1:], (True, True, False), strict=True):
        moved = {name for name in before if not torch.equal(before[name], after[name])} - counters
        assert any(name.startswith("decoder") for name in moved)
        assert ({name for name in moved if name.startswith("encoder")} == set()) is rests
    assert {"encoder.0.weight", "encoder.1.running_mean"} <= moved


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.filterwarnings("ignore:Setting affine:UserWarning:monai")
def test_from_published_weights_to_labels(tmp_path: Path, name: str) -> None:
    """New, train, publish, infer: of the published file nothing is needed any more once the bundle is written."""
    torch.manual_seed(0)
    file = tmp_path / "published.pth"
    torch.save(PUBLISHED[name](), file)
    patients = write_phantoms(tmp_path / "data", 3, form="nifti", shape=(48, 48, 32))
    items = [{"image": str(p.image), "label": str(p.label), "patient_id": p.patient_id} for p in patients]
    labels = {0: "background", **label_names(len(STRUCTURES))}
    datalist = tmp_path / "datalist.json"
    write_json(datalist, {"modality": {"0": "CT"}, "labels": labels, "licence": "CC0", "training": items})
    budget = Budget(memory_gb=8, minutes=120)
    folder, _ = create_bundle("body_ct_seg", datalist, tmp_path, encoder=name, weights=file, budget=budget)
    overrides = {"epochs": 2, "iterations": 1, "frozen_epochs": 1, "val_interval": 2, "warm_up": 1, "ramp": 0}
    small = {"patch_size": [32, 32, 32], "batch_size": 2}
    train_bundle(folder, fold=0, output=tmp_path / "out", device="cpu", overrides=overrides | small, publish="final")
    start = read_checkpoint(file)
    file.unlink()
    bundle = Bundle.open(folder)
    trained = bundle.load_network().get_submodule("encoder").state_dict()
    assert start.keys() & trained.keys()
    for key in (key for key in trained if trained[key].ndim == 5 and start[key].ndim == 5):
        assert torch.corrcoef(torch.stack([trained[key].flatten(), start[key].flatten()]))[0, 1] > 0.9
    assert not [finding for finding in verify(folder) if finding.severity == "block"]
    pack(folder, tmp_path / "packed.zip")
    there = unpack(tmp_path / "packed.zip", tmp_path / "there").path
    kept = Path("pretrained", "encoder.safetensors")
    assert sha256_file(there / kept) == sha256_file(folder / kept), "training can start again from them there"
    assert not [finding for finding in verify(there) if finding.severity == "block"]
    report = run_batch(folder, [patients[0].image], tmp_path / "found")
    assert [case["status"] for case in report.content["cases"]] == ["done"]
