"""Two processes that share every batch train like one with the whole batch, and decide together."""

import json
import math
import os
import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigWorkflow
from monai.losses import DiceCELoss
from monai.networks.nets import BasicUNet, UNet
from monai.transforms import Compose, RandScaleIntensityd
from monai.utils import set_determinism
from torch import Tensor
from torch import distributed as dist
from torch.multiprocessing.spawn import spawn

from medseg.networks import ConditionalPatchDiscriminator
from medseg.signals import signals_noted
from medseg.training import (
    AdversarialSchedule,
    AdversarialSegmentationTrainer,
    Adversary,
    TrainingDataset,
    training_loader,
)
from medseg.training.distributed import world
from medseg.training.run import OrderlyStop
from tests.training.bundles import SMALL, copy_bundle, write_data
from tests.training.conftest import balls


def _train(batch_size: int) -> dict[str, Tensor]:
    torch.set_num_threads(1)
    set_determinism(seed=world()[0])  # another start in each process: the first one's weights must win
    network = UNet(3, 1, 2, channels=(4, 8), strides=(2,), norm="instance")
    discriminator = ConditionalPatchDiscriminator(label_channels=2, channels=4, layers=1)
    adversary = Adversary(
        discriminator,
        torch.optim.SGD(discriminator.parameters(), lr=0.01),
        AdversarialSchedule(share=0.1),
        noise=0.0,
        wrong_pairs=0.0,  # drawn for each item of a batch, whatever its size
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
        precision="fp32",  # a reduced format rounds half a batch otherwise than the whole
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


def _joined(rank: int, meeting: Path) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    torch.set_num_threads(1)


def _two(work: Callable[..., None], folder: Path) -> list[dict[str, Any]]:
    """What both processes told about each scenario."""
    spawn(work, args=(str(folder),), nprocs=2)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


def _trainer(length: int = 4) -> AdversarialSegmentationTrainer:
    set_determinism(seed=0)
    network = UNet(3, 1, 2, channels=(4, 8), strides=(2,), norm="instance")
    judge = ConditionalPatchDiscriminator(label_channels=2, channels=4, layers=1)
    optimizer = torch.optim.SGD(judge.parameters(), lr=0.05)
    adversary = Adversary(judge, optimizer, AdversarialSchedule(share=0.1), too_good=0.95)
    dataset = TrainingDataset(balls(4), Compose([]), seed=2)
    return AdversarialSegmentationTrainer(
        device="cpu",
        max_epochs=4,
        train_data_loader=training_loader(dataset, 1, length),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.05),
        loss_function=DiceCELoss(to_onehot_y=True, softmax=True),
        adversary=adversary,
    )


def _bad_loss(trainer: AdversarialSegmentationTrainer, at: Callable[[int], bool]) -> None:
    honest = trainer.loss_function
    trainer.loss_function = lambda prediction, label: (
        honest(prediction, label) * (math.inf if at(trainer.state.iteration) else 1.0)
    )


def _bad_gradient(trainer: AdversarialSegmentationTrainer) -> None:
    weight = next(iter(trainer.network.parameters()))
    weight.register_hook(lambda gradient: gradient * (math.nan if trainer.state.iteration == 3 else 1.0))


def _resting(trainer: AdversarialSegmentationTrainer) -> None:
    assert trainer.adversary is not None
    trainer.adversary.accuracy = 1.3


def _signalled(trainer: AdversarialSegmentationTrainer) -> None:
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=5), lambda: os.kill(os.getpid(), signal.SIGTERM))


def _failing(trainer: AdversarialSegmentationTrainer) -> None:
    def fail(*_: Any) -> None:
        if trainer.state.iteration == 3:
            raise ZeroDivisionError

    next(iter(trainer.network.parameters())).register_hook(fail)  # in the middle of the step


def _frozen(trainer: AdversarialSegmentationTrainer) -> None:
    """No gradient for one parameter, in this process only."""
    weight = next(iter(trainer.network.parameters()))
    weight.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))


_SCENARIOS: dict[str, Callable[[AdversarialSegmentationTrainer], None]] = {
    "loss": lambda trainer: _bad_loss(trainer, lambda iteration: iteration == 3),
    "gradient": _bad_gradient,
    "rest": _resting,
    "frozen": _frozen,
    "diverged": lambda trainer: _bad_loss(trainer, lambda _: True),
    "signal": _signalled,
    "length": lambda _: None,
    "failing": _failing,  # the last one: the group of processes is not used after it
}


def _scenarios(rank: int, folder: str) -> None:
    told: dict[str, Any] = {}
    for name, spoil in _SCENARIOS.items():
        _joined(rank, Path(folder) / f"meeting-{name}")
        trainer = _trainer(length=5 if name == "length" and rank == 1 else 4)
        if rank == 1:
            spoil(trainer)
        error = None
        stop = OrderlyStop(trainer)
        with signals_noted(stop.request):
            try:
                trainer.run()
            except Exception as found:  # noqa: BLE001  it is told
                error = f"{type(found).__name__}: {found}"
        assert trainer.adversary is not None
        networks = (trainer.network, trainer.adversary.discriminator)
        weights = [float(weight.double().abs().sum()) for network in networks for weight in network.parameters()]
        told[name] = {
            "error": error,
            "weights": weights,
            "iteration": trainer.state.iteration,
            "skipped": trainer.generator_step.skipped,
            "stopped": stop.stopped,
        }
        dist.destroy_process_group()
    (Path(folder) / f"rank{rank}.json").write_text(json.dumps(told))


@pytest.mark.slow
def test_two_processes_decide_together(tmp_path: Path) -> None:
    first, second = _two(_scenarios, tmp_path)
    for name in ("loss", "gradient", "rest", "frozen", "diverged", "signal"):
        assert first[name] == second[name], name
    assert all(first[name]["error"] is None for name in ("loss", "gradient", "rest", "frozen", "signal"))
    assert [first[name]["skipped"] for name in ("loss", "gradient", "rest")] == [1, 1, 0]
    assert first["diverged"]["error"].startswith("TrainingDiverged")
    assert (first["signal"]["stopped"], first["signal"]["iteration"]) == (True, 5)
    assert "epoch_length" in first["length"]["error"]
    assert "epoch_length" in second["length"]["error"]
    assert second["failing"]["error"].startswith("ZeroDivisionError")
    assert first["failing"]["error"].startswith("TrainingFailed: 1 of the 2 processes")
    assert first["failing"]["iteration"] == 3


def _shipped(rank: int, folder: str) -> None:
    place = Path(folder)
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=(place / "port").read_text())
    torch.set_num_threads(1)
    configs = place / "hippocampus_mri_segmentation" / "configs"
    workflow = ConfigWorkflow(
        config_file=[str(configs / "train.json"), str(configs / "multi_gpu_train.json")],
        meta_file=str(configs / "metadata.json"),
        logging_file=False,
        workflow_type="train",
        run_id="training",
        bundle_root=str(configs.parent),
        dataset_dir=str(place),
        datalist=str(place / "datalist.json"),
        output_dir=str(place / "out"),
        **{**SMALL, "iterations": 6, "epochs": 2, "teachers": [str(place / "teacher.pt")]},
    )
    workflow.initialize()
    trainer = workflow.parser.get_parsed_content("train#trainer")
    if rank == 1:
        _bad_loss(trainer, lambda iteration: iteration == 3)
        trainer.adversary.accuracy = 1.5
    workflow.run()
    networks = (trainer.network, trainer.adversary.discriminator)
    weights = [float(weight.double().abs().sum()) for network in networks for weight in network.parameters()]
    figures = {name: value for name, value in trainer.stateful["journal"].rows[-1].items() if "loss" in name}
    told = {"weights": weights, "skipped": trainer.generator_step.skipped, "figures": figures}
    (place / f"rank{rank}.json").write_text(json.dumps(told))
    workflow.finalize()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_shipped_configuration_survives_one_bad_process(tmp_path: Path) -> None:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        (tmp_path / "port").write_text(str(free.getsockname()[1]))
    copy_bundle(tmp_path)
    write_data(tmp_path)
    teacher = BasicUNet(3, 1, 3, SMALL["network_def#features"], norm="batch", bias=False)
    torch.save(teacher.state_dict(), tmp_path / "teacher.pt")
    first, second = _two(_shipped, tmp_path)
    assert first == second  # the losses in the journal are those of both, too
    assert first["skipped"] == 1
    assert (tmp_path / "out" / "checkpoints" / "checkpoint-000012.pt").exists()
