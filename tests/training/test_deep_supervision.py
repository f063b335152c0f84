"""Deep supervision: the heads learn and teach, and leave no trace in the model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.losses import DiceCELoss
from monai.networks.nets import BasicUNet
from monai.transforms import Compose, RandScaleIntensityd
from torch import Tensor

from medseg.devices import Precision
from medseg.networks import ConditionalPatchDiscriminator
from medseg.training import (
    AdversarialLoss,
    AdversarialSchedule,
    AdversarialSegmentationTrainer,
    Adversary,
    Checkpoints,
    DeepSupervision,
    averaged,
    parameters_of,
    unlabelled_cases,
)
from tests.training.conftest import SIZE, balls

FEATURES = (4, 4, 6, 8, 8, 4)
LOSS = DiceCELoss(to_onehot_y=True, softmax=True)


def _unet() -> BasicUNet:
    return BasicUNet(3, 1, 2, FEATURES, norm="batch")  # the lowest level is a single voxel


def _heads() -> DeepSupervision:
    return DeepSupervision(["upcat_2", "upcat_3"], [4, 6], out_channels=2)


def _batch() -> tuple[Tensor, Tensor]:
    items = balls(2)
    image, label = (torch.stack([item[key] for item in items]) for key in ("image", "label"))
    return image, label


def test_the_loss_is_that_of_three_levels_weighted_one_half_quarter() -> None:
    torch.manual_seed(0)
    network, heads, (image, label) = _unet(), _heads(), _batch()
    with heads.reading(network):
        logits = network(image)
    coarse = heads(len(image))
    assert [tuple(c.shape) for c in coarse] == [(2, 2, SIZE // 2, SIZE // 2, SIZE // 2), (2, 2, *[SIZE // 4] * 3)]
    labels = [label, label[..., 1::2, 1::2, 1::2], label[..., 2::4, 2::4, 2::4]]
    parts = [LOSS(p, t).item() for p, t in zip([logits, *coarse], labels, strict=True)]
    assert heads.loss(LOSS, logits, label).item() == pytest.approx(parts[0] + parts[1] / 2 + parts[2] / 4)


def test_the_heads_teach_the_encoder_and_the_network_keeps_its_keys() -> None:
    network, heads, (image, label) = _unet(), _heads(), _batch()
    keys = set(network.state_dict())
    with heads.reading(network):
        logits = network(image)
    (heads.loss(LOSS, logits, label) - LOSS(logits, label)).backward()  # what the heads alone add
    gradient = network.down_4.convs.conv_0.conv.weight.grad
    assert gradient is not None
    assert float(gradient.abs().sum()) > 0.0
    assert set(network.state_dict()) == keys
    assert not any(module._forward_hooks for module in network.modules())


def test_only_the_labelled_part_of_a_batch_is_judged() -> None:
    network, heads, (image, _) = _unet(), _heads(), _batch()
    with heads.reading(network):
        network(image)
    assert [len(logits) for logits in heads(1)] == [1, 1]


@pytest.mark.parametrize(("layers", "channels"), [([], []), (["upcat_2"], [4, 6])])
def test_layers_and_channels_must_fit(layers: list[str], channels: list[int]) -> None:
    with pytest.raises(ValueError, match="channels"):
        DeepSupervision(layers, channels, 2)


def test_an_unknown_layer_is_named() -> None:
    with pytest.raises(AttributeError, match="upcat_9"), DeepSupervision(["upcat_9"], [4], 2).reading(_unet()):
        pass


def _trainer(
    make_trainer: Callable[..., Any], folder: Path, precision: Precision = "fp32", **options: Any
) -> AdversarialSegmentationTrainer:
    torch.manual_seed(3)
    network, heads = _unet(), _heads()
    optimizer = torch.optim.AdamW(parameters_of(network, heads, None), lr=0.01)
    plain = make_trainer(folder, iterations=2)
    return AdversarialSegmentationTrainer(
        device="cpu",
        max_epochs=2,
        train_data_loader=plain.data_loader,
        network=network,
        optimizer=optimizer,
        loss_function=LOSS,
        averaged=averaged(network, 0.9),
        deep_supervision=heads,
        precision=precision,
        train_handlers=[Checkpoints(folder)],
        **options,
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_moves_the_heads_ships_the_plain_network_and_resumes_exactly(
    make_trainer: Callable[..., Any], tmp_path: Path, precision: Precision
) -> None:
    whole = _trainer(make_trainer, tmp_path / "whole", precision)
    assert whole.deep_supervision is not None
    before = {name: value.clone() for name, value in whole.deep_supervision.state_dict().items()}
    whole.run()
    assert not any(torch.equal(value, before[name]) for name, value in whole.deep_supervision.state_dict().items())
    shipped = torch.load(tmp_path / "whole" / "final.pt", weights_only=True)
    assert set(shipped) == set(_unet().state_dict())

    first = _trainer(make_trainer, tmp_path / "parts", precision)
    first.add_event_handler(Events.ITERATION_COMPLETED(once=3), first.terminate)
    first.run()
    Checkpoints(tmp_path / "parts").save(first)
    second = _trainer(make_trainer, tmp_path / "parts", precision)
    assert Checkpoints(tmp_path / "parts").resume(second) == 3
    second.run()
    again = torch.load(tmp_path / "parts" / "final.pt", weights_only=True)
    assert all(torch.equal(value, again[name]) for name, value in shipped.items())
    assert second.deep_supervision is not None
    heads = second.deep_supervision.state_dict()
    assert all(torch.equal(value, heads[name]) for name, value in whole.deep_supervision.state_dict().items())


@pytest.mark.parametrize("kind", [{"feature_weight": 1.0}, {"penalty": 1.0, "loss": AdversarialLoss("hinge")}])
@pytest.mark.parametrize("spectral", [False, True])
def test_every_option_works_together_in_a_reduced_format(
    make_trainer: Callable[..., Any], tmp_path: Path, kind: dict[str, Any], spectral: bool
) -> None:
    judge = ConditionalPatchDiscriminator(label_channels=2, channels=4, layers=1, scales=2, spectral=spectral)
    schedule = AdversarialSchedule(share=0.1, discriminator_steps=2, generator_steps=2)
    adversary = Adversary(judge, torch.optim.AdamW(judge.parameters(), lr=0.001), schedule, **kind)
    images = [{"image": item["image"]} for item in balls(3)]
    unlabelled = unlabelled_cases(images, Compose([RandScaleIntensityd("image", 0.2)]), batch_size=2, iterations=2)
    trainer = _trainer(
        make_trainer,
        tmp_path,
        "bf16",
        adversary=adversary,
        unlabelled=unlabelled,
        accumulation_steps=2,
        max_norm=1.0,
    )
    before = [weight.clone() for weight in (*trainer.network.parameters(), *judge.parameters())]
    trainer.run()
    after = [*trainer.network.parameters(), *judge.parameters()]
    assert all(bool(torch.isfinite(weight).all()) for weight in after)
    assert sum(not torch.equal(one, other) for one, other in zip(before, after, strict=True)) > 0.8 * len(after)
    assert trainer.format.record()["used"] == "bf16"
    assert trainer.format.record()["unchecked"] is None
