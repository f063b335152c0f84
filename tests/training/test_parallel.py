"""Two processes that share every batch train like one process with the whole batch."""

from pathlib import Path

import pytest
import torch
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from monai.transforms import Compose, RandScaleIntensityd
from monai.utils import set_determinism
from torch import Tensor
from torch import distributed as dist
from torch.multiprocessing.spawn import spawn

from medseg.networks import ConditionalPatchDiscriminator
from medseg.training import (
    AdversarialSchedule,
    AdversarialSegmentationTrainer,
    Adversary,
    TrainingDataset,
    training_loader,
)
from medseg.training.parallel import world
from tests.training.conftest import balls


def _train(batch_size: int) -> dict[str, Tensor]:
    torch.set_num_threads(1)
    set_determinism(seed=world()[0])  # another start in each process: the first one's weights must win
    network = UNet(3, 1, 2, channels=(4, 8), strides=(2,), norm="instance")
    discriminator = ConditionalPatchDiscriminator(label_channels=2, channels=4, layers=1)
    adversary = Adversary(
        discriminator,
        torch.optim.SGD(discriminator.parameters(), lr=0.01),
        AdversarialSchedule(weight=0.1),
        noise=0.0,
    )
    dataset = TrainingDataset(balls(4), Compose([RandScaleIntensityd("image", 0.2, prob=1.0)]), seed=2)
    AdversarialSegmentationTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=training_loader(dataset, batch_size, 4),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.05),
        loss_function=DiceCELoss(to_onehot_y=True, softmax=True),
        adversary=adversary,
    ).run()
    networks = {"g": network, "d": discriminator}
    return {f"{key}.{name}": v for key, net in networks.items() for name, v in net.state_dict().items()}


def _process(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save(_train(batch_size=2), f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    spawn(_process, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    one = _train(batch_size=4)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert all(torch.allclose(value, first[name], atol=1e-5) for name, value in one.items())
