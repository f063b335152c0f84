"""A compiled network trains, resumes exactly, and leaves the state dict of the plain network."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.losses import DiceCELoss

from medseg.training import AdversarialSegmentationTrainer, Checkpoints, DeepSupervision, averaged, compiled
from tests.training.conftest import small_generator


def test_only_what_asks_for_it_is_compiled_and_names_stay() -> None:
    network = small_generator()
    keys = list(network.state_dict())
    assert compiled(network, wanted=False)._compiled_call_impl is None
    assert compiled(network) is network
    assert network._compiled_call_impl is not None
    assert list(network.state_dict()) == keys
    assert deepcopy(network)._compiled_call_impl is None


def test_deep_supervision_of_a_compiled_network_is_refused() -> None:
    network = compiled(small_generator())
    with pytest.raises(ValueError, match="compile"), DeepSupervision(["model.0"], [4], 2).reading(network):
        pass


def _trainer(make_trainer: Callable[..., Any], folder: Path, wanted: bool) -> AdversarialSegmentationTrainer:
    plain = make_trainer(folder, iterations=2)
    torch.manual_seed(3)
    network = compiled(small_generator(), wanted)
    return AdversarialSegmentationTrainer(
        device="cpu",
        max_epochs=2,
        train_data_loader=plain.data_loader,
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.01),
        loss_function=DiceCELoss(to_onehot_y=True, softmax=True),
        averaged=averaged(network, 0.9),
        train_handlers=[Checkpoints(folder)],
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler
def test_a_compiled_run_resumes_exactly_and_equals_the_plain_one(
    make_trainer: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.nn.Dropout, "forward", lambda _, image: image)  # its random numbers are the compiler's
    for name, wanted in (("plain", False), ("whole", True)):
        _trainer(make_trainer, tmp_path / name, wanted).run()
    first = _trainer(make_trainer, tmp_path / "parts", True)
    first.add_event_handler(Events.ITERATION_COMPLETED(once=3), first.terminate)
    first.run()
    Checkpoints(tmp_path / "parts").save(first)
    second = _trainer(make_trainer, tmp_path / "parts", True)
    assert Checkpoints(tmp_path / "parts").resume(second) == 3
    second.run()
    plain, whole, parts = (
        torch.load(tmp_path / name / "final.pt", weights_only=True) for name in ("plain", "whole", "parts")
    )
    assert list(whole) == list(plain)
    assert not any("_orig_mod" in name for name in whole)
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    assert all(torch.allclose(value, plain[name], atol=1e-4) for name, value in whole.items())
