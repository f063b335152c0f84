"""Networks straight from a configuration as generators of the engine: they learn, from labels and discriminator."""

from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigParser
from monai.losses import DiceCELoss
from torch.utils.data import DataLoader

from medseg.networks import ConditionalPatchDiscriminator
from medseg.training import AdversarialSchedule, AdversarialSegmentationTrainer, Adversary

SIDE = 32
GENERATORS: dict[str, dict[str, Any]] = {
    "BasicUNet": {"_target_": "BasicUNet", "out_channels": 2, "features": [4, 4, 8, 8, 16, 4], "norm": "batch"},
    "UNet": {
        "_target_": "UNet",
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": 2,
        "channels": [4, 8, 16],
        "strides": [2, 2],
        "num_res_units": 1,
    },
    "DynUNet": {
        "_target_": "DynUNet",
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": 2,
        "kernel_size": [3, 3, 3],
        "strides": [1, 2, 2],
        "upsample_kernel_size": [2, 2],
        "filters": [4, 8, 16],
    },
    "SegResNet": {
        "_target_": "SegResNet",
        "init_filters": 8,
        "out_channels": 2,
        "blocks_down": [1, 1],
        "blocks_up": [1],
    },
    "FlexibleUNet": {
        "_target_": "FlexibleUNet",
        "in_channels": 1,
        "out_channels": 2,
        "backbone": "resnet10",
        "spatial_dims": 3,
        "decoder_channels": [16, 8, 8, 8, 4],
    },
    "VGGUNet": {
        "_target_": "medseg.networks.VGGUNet",
        "out_channels": 2,
        "channels": [4, 4, 8, 8, 8],
        "decoder_channels": [8, 8, 4, 4],
    },
}


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    grid = torch.stack(torch.meshgrid(*[torch.arange(float(SIDE))] * 3, indexing="ij"))
    label = ((grid - 15.0).norm(dim=0, keepdim=True) < 9.0).float()
    return {"image": 2.0 * label + 0.3 * torch.randn(label.shape, generator=generator), "label": label}


@pytest.mark.parametrize("name", GENERATORS)
def test_it_learns_in_the_engine(name: str) -> None:
    torch.manual_seed(1)
    network: torch.nn.Module = ConfigParser({"network_def": GENERATORS[name]}).get_parsed_content("network_def")
    discriminator = ConditionalPatchDiscriminator(label_channels=2, channels=4)
    before = {key: value.detach().clone() for key, value in network.named_parameters()}
    losses: list[float] = []
    trainer = AdversarialSegmentationTrainer(
        device="cpu",
        max_epochs=3,
        train_data_loader=DataLoader([batch()] * 2, batch_size=2),  # type: ignore[arg-type]
        network=network,
        optimizer=torch.optim.Adam(network.parameters(), lr=0.005),
        loss_function=DiceCELoss(to_onehot_y=True, softmax=True),
        adversary=Adversary(
            discriminator, torch.optim.Adam(discriminator.parameters(), lr=0.001), AdversarialSchedule(share=0.1)
        ),
        decollate=False,
    )
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: losses.append(e.state.output["loss"].item()))
    trainer.run()
    assert losses[-1] < losses[0] - 0.01
    changed = [not torch.equal(value, before[key]) for key, value in network.named_parameters()]
    assert sum(changed) >= 0.9 * len(changed)  # biases ahead of a norm have no effect, so they may stay
    assert "adversarial_loss" in trainer.state.output
