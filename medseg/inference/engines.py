"""Engines that run a network on a batch of windows, and which of them this machine can use.

Every engine maps windows ``(N, C, H, W, D)`` to scores ``(N, K, H, W, D)``, float32 on the CPU. Which one runs is
decided in :mod:`medseg.inference.choice`.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import sys
import warnings
from collections.abc import Callable
from typing import Any, Protocol

import torch
from monai.networks.blocks import ADN, Convolution
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from medseg.errors import MissingDependency, UsageError

_KEPT_SIZES = 2

REFERENCE = "torch-fp32"
"""The network as the bundle defines it, in float32: what the others are compared with."""

AUTOCAST = "cuda-fp16-autocast"
"""torch's automatic mixed precision."""


class Engine(Protocol):
    """Something that runs a batch of windows."""

    name: str

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        """Map windows to scores."""
        ...


class _TorchEngine:
    """The network under torch, with chosen weights type, memory layout and autocast."""

    def __init__(self, name: str, network: nn.Module, device: str, dtype: torch.dtype, *, last: bool) -> None:
        self.name = name
        self.network = network
        self._device, self._dtype = torch.device(device), dtype
        self._layout = torch.channels_last_3d if last else torch.contiguous_format

    @torch.inference_mode()
    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        """Map windows to scores."""
        windows = batch.to(self._device, self._dtype, memory_format=self._layout)
        return _first(self.network(windows)).float().to("cpu")


class _AutocastEngine:
    """float32 weights under torch's automatic mixed precision, for CUDA."""

    def __init__(self, name: str, network: nn.Module, device: str, dtype: torch.dtype) -> None:
        self.name = name
        self.network = _relaid(network)
        self._device, self._dtype = torch.device(device), dtype

    @torch.inference_mode()
    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        """Map windows to scores."""
        windows = batch.to(self._device, memory_format=torch.channels_last_3d)
        with torch.autocast(self._device.type, self._dtype):
            scores = _first(self.network(windows))
        return scores.float().to("cpu")


class OpenVinoEngine:
    """The network compiled by OpenVINO, once per window size; the last few sizes are kept.

    Parameters
    ----------
    name
        Name of the engine.
    network
        The network in evaluation mode.
    precision
        OpenVINO's name of the type that is computed in, such as ``"f32"``.
    """

    def __init__(self, name: str, network: nn.Module, precision: str) -> None:
        if importlib.util.find_spec("openvino") is None:
            raise MissingDependency("OpenVINO", "openvino", f"the engine {name}")
        self.name = name
        self._network, self._precision = network, precision
        self._compiled: dict[tuple[int, ...], Any] = {}

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        """Map windows to scores."""
        size = tuple(batch.shape[1:])
        if size not in self._compiled:
            while len(self._compiled) >= _KEPT_SIZES:
                self._compiled.pop(next(iter(self._compiled)))
            self._compiled[size] = self._compile(batch[:1])
        return torch.from_numpy(self._compiled[size](batch.contiguous().numpy())[0])

    def model(self, example: torch.Tensor) -> Any:
        """OpenVINO's model for windows like ``example``, ``(1, C, H, W, D)``, with any number in a batch."""
        openvino = import_openvino()
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tracing warns about checks of sizes, which do not change here
            model = openvino.convert_model(self._network, example_input=example)
        model.reshape([-1, *example.shape[1:]])
        return model

    def _compile(self, example: torch.Tensor) -> Any:
        openvino = import_openvino()
        hints = {
            "INFERENCE_PRECISION_HINT": self._precision,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": 1,
        }
        return openvino.Core().compile_model(self.model(example), "CPU", hints)


def import_openvino() -> Any:
    """The module ``openvino``, kept from reporting its use to its makers, which it does unless told not to."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # it then uses a stub
    import openvino

    return openvino


def _first(scores: Any) -> torch.Tensor:
    """The full-resolution output; networks with deep supervision give a list that starts with it."""
    first: torch.Tensor = scores[0] if isinstance(scores, list | tuple) else scores
    return first


def fold_norms(network: nn.Module) -> nn.Module:
    """A copy of a network with batch norms folded into the convolutions before them.

    In evaluation a batch norm is a fixed scale and shift per channel, so that the folded convolution computes the same
    up to rounding. Only MONAI's ``Convolution`` blocks in the order convolution, norm are folded.
    """
    folded = copy.deepcopy(network)
    for block in folded.modules():
        if isinstance(block, Convolution) and [name for name, _ in block.named_children()][:2] == ["conv", "adn"]:
            _fold(block)
    return folded


def _fold(block: nn.Module) -> None:
    convolution, adn = block.get_submodule("conv"), block.get_submodule("adn")
    first = next(adn.named_children(), ("", None))
    if isinstance(adn, ADN) and first[0] == "N" and isinstance(first[1], nn.BatchNorm3d):
        transposed = isinstance(convolution, nn.ConvTranspose3d)
        block.conv = fuse_conv_bn_eval(convolution, first[1], transpose=transposed)  # type: ignore[type-var]
        adn.N = nn.Identity()


def _channels_last(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    return _relaid(fold_norms(network).to(dtype))


def _relaid(network: nn.Module) -> nn.Module:
    return network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


_BUILDERS: dict[str, Callable[[nn.Module, str], Engine]] = {
    REFERENCE: lambda net, dev: _TorchEngine(REFERENCE, net, dev, torch.float32, last=False),
    "torch-fp32-channels-last": lambda net, dev: _TorchEngine(
        "torch-fp32-channels-last", _channels_last(net, torch.float32), dev, torch.float32, last=True
    ),
    "torch-bf16-channels-last": lambda net, dev: _TorchEngine(
        "torch-bf16-channels-last", _channels_last(net, torch.bfloat16), dev, torch.bfloat16, last=True
    ),
    AUTOCAST: lambda net, dev: _AutocastEngine(AUTOCAST, copy.deepcopy(net), dev, torch.float16),
    "openvino-fp32": lambda net, _: OpenVinoEngine("openvino-fp32", net, "f32"),
    "openvino-bf16": lambda net, _: OpenVinoEngine("openvino-bf16", net, "bf16"),
}


def build_engine(name: str, network: nn.Module, device: str = "cpu") -> Engine:
    """Build one engine around a network in evaluation mode.

    Raises
    ------
    UsageError
        If there is no engine of this name.
    MissingDependency
        If it needs a package that is not installed.
    """
    if name not in _BUILDERS:
        raise UsageError(f"no engine {name}; known are {', '.join(_BUILDERS)}")
    return _BUILDERS[name](network, device)


def candidates(device: str = "cpu") -> list[str]:
    """Engines that a device has, the reference first.

    bf16 is among them only where the processor computes in it: elsewhere it is emulated, some thirty times slower.
    """
    if torch.device(device).type == "cuda":
        return [REFERENCE, "torch-fp32-channels-last", "torch-bf16-channels-last", AUTOCAST]
    names = [REFERENCE, "torch-fp32-channels-last"]
    if torch.device(device).type != "cpu":
        return names
    has_openvino = importlib.util.find_spec("openvino") is not None
    if has_openvino:
        names.append("openvino-fp32")
    if _computes_bf16():
        names += ["torch-bf16-channels-last", *(["openvino-bf16"] if has_openvino else [])]
    return names


def _computes_bf16() -> bool:
    with contextlib.suppress(AttributeError, RuntimeError):
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and "AVX512" in _cpu_capability()
    return False


def _cpu_capability() -> str:
    return str(torch.backends.cpu.get_cpu_capability()).upper()
