"""A training run small enough for tests: balls in noise, a U-Net of a few thousand weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.data import Dataset
from monai.engines import SupervisedEvaluator
from monai.handlers import MeanDice, ValidationHandler, from_engine
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from monai.transforms import AsDiscreted, Compose
from monai.utils import set_determinism
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from medseg.devices import Precision
from medseg.networks import ConditionalPatchDiscriminator
from medseg.training import (
    AdversarialSchedule,
    AdversarialSegmentationTrainer,
    Adversary,
    Checkpoints,
    MetricsLogger,
    OneCycle,
    TrainingDataset,
    averaged,
    higher_is_better,
    training_loader,
)
from medseg.transforms import RandSpatiald

SIZE = 16


def balls(cases: int, seed: int = 0) -> list[dict[str, Tensor]]:
    """Noisy images of one bright ball each, with its mask."""
    generator = torch.Generator().manual_seed(seed)
    grid = torch.stack(torch.meshgrid(*[torch.arange(float(SIZE))] * 3, indexing="ij"))
    items = []
    for _ in range(cases):
        centre = 6.0 + 4.0 * torch.rand(3, 1, 1, 1, generator=generator)
        label = ((grid - centre).norm(dim=0, keepdim=True) < 4.0).float()
        items.append({"image": 2.0 * label + 0.5 * torch.randn(label.shape, generator=generator), "label": label})
    return items


def small_generator(norm: str = "instance") -> torch.nn.Module:
    return UNet(3, 1, 2, channels=(4, 8), strides=(2,), num_res_units=0, norm=norm, dropout=0.1)


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., AdversarialSegmentationTrainer]:
    """Factory of complete trainers; the same arguments give the same run."""

    def make(
        folder: Path | None = None,
        *,
        epochs: int = 2,
        iterations: int = 3,
        schedule: AdversarialSchedule | None = None,
        workers: int = 0,
        adversary: dict[str, Any] | None = None,
        norm: str = "instance",
        annealed: bool = False,
        precision: Precision = "fp32",
        **options: Any,
    ) -> AdversarialSegmentationTrainer:
        set_determinism(seed=1)
        network = small_generator(norm)
        optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
        augment = RandSpatiald(["image", "label"], (SIZE,) * 3, mode=["bilinear", "nearest"], margin=2)
        dataset = TrainingDataset(balls(4), Compose([augment]), seed=5)
        opponent = None
        if schedule is not None:
            discriminator = ConditionalPatchDiscriminator(label_channels=2, channels=4, layers=1)
            judge = torch.optim.Adam(discriminator.parameters(), lr=0.002, betas=(0.5, 0.99))
            rates = LambdaLR(judge, OneCycle(epochs * iterations)) if annealed else None
            opponent = Adversary(discriminator, judge, schedule, scheduler=rates, **(adversary or {}))
        average = averaged(network, 0.9)
        one_hot = [
            AsDiscreted("pred", argmax=True, to_onehot=2),
            AsDiscreted("label", to_onehot=2),
        ]
        evaluator = SupervisedEvaluator(
            device="cpu",
            val_data_loader=DataLoader(Dataset(balls(2, seed=9)), batch_size=1),
            network=average.module,
            postprocessing=Compose(one_hot),
            key_val_metric={
                "val_dice": MeanDice(output_transform=from_engine(["pred", "label"]), include_background=False)
            },
            metric_cmp_fn=higher_is_better,
        )
        place = tmp_path if folder is None else folder
        return AdversarialSegmentationTrainer(
            device="cpu",
            max_epochs=epochs,
            train_data_loader=training_loader(dataset, 2, iterations, num_workers=workers),
            network=network,
            optimizer=optimizer,
            loss_function=DiceCELoss(to_onehot_y=True, softmax=True),
            scheduler=LambdaLR(optimizer, OneCycle(epochs * iterations)),
            adversary=opponent,
            averaged=average,
            precision=precision,
            train_handlers=[
                ValidationHandler(interval=1, validator=evaluator),
                MetricsLogger(place, evaluator, ["ball"], tensorboard=False),
                Checkpoints(place / "checkpoints", evaluator),
            ],
            **options,
        )

    return make
