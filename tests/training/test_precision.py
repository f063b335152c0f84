"""Reduced formats are tried against fp32 before the first step, and what disagrees computes in fp32."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from torch import Tensor, nn
from torch.nn.functional import conv3d

from medseg.training import AdversarialSchedule, AdversarialSegmentationTrainer, Checkpoints
from medseg.training.layer_check import FILLS, LayerCheck, difference, filled_memory, keep_in_fp32

Make = Callable[..., AdversarialSegmentationTrainer]
SCHEDULE = AdversarialSchedule(share=0.1, warm_up=1)


class _Broken(torch.autograd.Function):
    """Hands on its input; under bf16 its gradient goes through ``harm``."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, harm: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.harm = harm if torch.is_autocast_enabled("cpu") else None
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None]:
        return gradients[0] if ctx.harm is None else ctx.harm(gradients[0]), None


def _unwritten(gradient: Tensor) -> Tensor:
    return gradient + torch.empty_like(gradient)  # whatever the memory holds


def _huge(gradient: Tensor) -> Tensor:
    return gradient * 1e6


def _half(gradient: Tensor) -> Tensor:
    return gradient * 0.5


class _FaultyConvolution(nn.Conv3d):
    """A convolution whose kernel for the weight's gradient is wrong in bf16."""

    def __init__(self, like: nn.Conv3d, harm: Callable[[Tensor], Tensor]) -> None:
        shape: Any = {"kernel_size": like.kernel_size, "stride": like.stride, "padding": like.padding}
        super().__init__(like.in_channels, like.out_channels, **shape, bias=like.bias is not None)
        self.load_state_dict(like.state_dict())
        self.harm = harm

    def forward(self, input: Tensor) -> Tensor:
        weight: Tensor = _Broken.apply(self.weight, self.harm)
        return conv3d(input, weight, self.bias, self.stride, self.padding)


class _FaultyActivation(nn.Module):
    """No weights of its own; its gradient is wrong in bf16."""

    def forward(self, value: Tensor) -> Tensor:
        result: Tensor = _Broken.apply(value, lambda gradient: -1e3 * gradient)
        return result


def _replace(network: nn.Module, path: str, change: Callable[[Any], nn.Module]) -> None:
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, change(network.get_submodule(path)))


def _first_convolution(network: nn.Module) -> str:
    return next(name for name, module in network.named_modules() if isinstance(module, nn.Conv3d))


def _faulty(make_trainer: Make, harm: Callable[[Tensor], Tensor], part: str, *folder: Path, **options: Any) -> Any:
    trainer = make_trainer(*folder, schedule=SCHEDULE, precision="bf16", **options)
    assert trainer.adversary is not None
    network = {"generator": trainer.network, "discriminator": trainer.adversary.discriminator}[part]
    path = _first_convolution(network)
    _replace(network, path, lambda layer: _FaultyConvolution(layer, harm))
    step = trainer.generator_step if part == "generator" else trainer.adversary.step
    step.optimizer.param_groups[0]["params"] = list(network.parameters())
    return trainer, f"{part}.{path}"


@pytest.mark.parametrize("part", ["generator", "discriminator"])
@pytest.mark.parametrize("harm", [_unwritten, _huge, _half])
def test_a_layer_whose_kernel_is_wrong_computes_in_fp32(
    make_trainer: Make, harm: Callable[[Tensor], Tensor], part: str
) -> None:
    trainer, layer = _faulty(make_trainer, harm, part, epochs=1)
    trainer.run()
    record = trainer.format.record()
    assert (record["asked"], record["used"], record["kept_in_fp32"]) == ("bf16", "bf16", [layer])
    assert float(record["disagreement"][layer]) > 0.1
    module = trainer.format.networks[part].get_submodule(layer.partition(".")[2])
    assert module.forward(torch.zeros(1, module.in_channels, 4, 4, 4)).dtype == torch.float32


def test_a_fault_that_no_layer_shows_takes_the_whole_run_to_fp32(make_trainer: Make) -> None:
    trainer = make_trainer(epochs=1, precision="bf16")
    activation = next(name for name, module in trainer.network.named_modules() if isinstance(module, nn.PReLU))
    _replace(trainer.network, activation, lambda layer: nn.Sequential(layer, _FaultyActivation()))
    trainer.optimizer.param_groups[0]["params"] = list(trainer.network.parameters())
    trainer.run()
    assert trainer.format.record()["used"] == "fp32"
    assert trainer.dtype == torch.float32
    assert any(float(error) > 1.0 for error in trainer.format.record()["disagreement"].values())


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_sound_kernels_lose_nothing_and_the_trial_leaves_no_trace(
    make_trainer: Make, tmp_path: Path, norm: str
) -> None:
    tried = make_trainer(tmp_path / "tried", epochs=1, schedule=SCHEDULE, precision="bf16", norm=norm)
    tried.run()
    assert tried.format.record()["kept_in_fp32"] == []
    assert tried.format.record()["used"] == "bf16"
    plain = make_trainer(tmp_path / "plain", epochs=1, schedule=SCHEDULE, precision="bf16", norm=norm)
    plain.format.settle()
    plain.run()
    one, other = (_everything(trainer) for trainer in (tried, plain))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def _everything(trainer: AdversarialSegmentationTrainer) -> dict[str, Tensor]:
    assert trainer.adversary is not None
    networks = {"g": trainer.network, "d": trainer.adversary.discriminator, "a": trainer.averaged}
    return {f"{key}.{name}": v.clone() for key, net in networks.items() if net for name, v in net.state_dict().items()}


def test_a_run_that_goes_on_keeps_what_was_decided(make_trainer: Make, tmp_path: Path) -> None:
    whole, layer = _faulty(make_trainer, _unwritten, "generator", tmp_path / "whole")
    whole.run()
    first, _ = _faulty(make_trainer, _unwritten, "generator", tmp_path / "parts")
    first.add_event_handler(Events.ITERATION_COMPLETED(once=2), first.terminate)
    first.run()
    checkpoints = Checkpoints(tmp_path / "parts" / "checkpoints")
    checkpoints.save(first)
    second, _ = _faulty(make_trainer, _unwritten, "generator", tmp_path / "parts")
    checkpoints.resume(second)
    assert second.format.tried
    assert second.format.record()["kept_in_fp32"] == [layer]
    second.run()
    one, other = (_everything(trainer) for trainer in (whole, second))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_another_processor_is_tried_again(make_trainer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(precision="bf16")
    trainer.format.settle()
    assert trainer.format.tried
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "ANOTHER")
    assert not trainer.format.tried


def test_memory_that_does_not_suffice_is_said(make_trainer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(epochs=1, precision="bf16")
    sizes: list[int] = []

    def fail(_: Any, __: Any, image: Tensor, ___: Tensor) -> None:
        sizes.append(len(image))
        raise torch.OutOfMemoryError

    monkeypatch.setattr("medseg.training.precision.Trial._check_layers", fail)
    trainer.run()
    assert sizes == [2, 1]
    assert "memory" in trainer.format.record()["unchecked"]


def test_fp32_needs_no_trial(make_trainer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medseg.training.precision.Trial.run", lambda *_: pytest.fail("tried"))
    trainer = make_trainer(epochs=1, precision="fp32")
    trainer.run()
    assert trainer.format.record()["used"] == "fp32"


@pytest.mark.parametrize("size", [(2, 3, 2), (2, 2, 2), (2, 4, 4), (1, 2, 2), (3, 3, 3)])
def test_the_bottom_of_a_u_net_has_the_gradient_of_fp32(size: tuple[int, int, int]) -> None:
    """Kernels for some processors are wrong for features of depth two; where they are, the layer is kept in fp32."""
    torch.manual_seed(0)
    layer, image = nn.Conv3d(16, 32, 3, padding=1), torch.randn(2, 16, *size)
    check = LayerCheck({"network": layer}, torch.bfloat16)
    with check.watching(), torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        layer(image)
    if check.errors:
        keep_in_fp32(layer)
    wanted = torch.autograd.grad(nn.Conv3d.forward(layer, image).pow(2).mean(), [layer.weight])[0]
    for fill in FILLS:
        with torch.autocast("cpu", torch.bfloat16):
            loss = layer(image).float().pow(2).mean()
        filled_memory([layer.weight, image], fill)
        assert difference(torch.autograd.grad(loss, [layer.weight])[0], wanted) < 0.1


def test_layers_with_parametrised_weights_are_looked_at() -> None:
    layer = nn.utils.parametrizations.spectral_norm(nn.Conv3d(2, 3, 3, bias=False))
    check = LayerCheck({"judge": nn.Sequential(layer)}, torch.bfloat16)
    assert "judge.0" in check.layers
    with check.watching(), torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        layer(torch.randn(1, 2, 5, 5, 5))
    assert check.errors == {}


def test_a_copy_of_a_layer_kept_in_fp32_uses_its_own_weights() -> None:
    from copy import deepcopy

    layer = nn.Conv3d(1, 1, 1)
    keep_in_fp32(layer)
    copied = deepcopy(layer)
    with torch.no_grad():
        copied.weight.fill_(2.0)
        copied.bias.fill_(0.0)  # type: ignore[union-attr]
    assert copied(torch.ones(1, 1, 1, 1, 1)).item() == 2.0
