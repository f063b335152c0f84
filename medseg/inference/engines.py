"""What runs the network on a batch of windows, torch or OpenVINO, and the rule by which it is chosen.

Every engine maps windows ``(N, C, H, W, D)`` to scores ``(N, K, H, W, D)``, float32 on the CPU. The rule goes by what
was asked, never by the clock, so that a command gives the same labels: on a CPU and on Apple's MPS the bundle's network
in float32, on CUDA torch's automatic mixed precision. Every other way rounds differently and may move a label here and
there, on the next case if not on the one that was tried; so it is asked for by name.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from monai.networks.blocks import ADN, Convolution
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from medseg.devices import FORMATS, computes_bf16, use_channels_last
from medseg.errors import MissingDependency, UsageError

Engine = Callable[[torch.Tensor], torch.Tensor]
"""Maps windows to scores."""

REFERENCE = "torch-fp32"
"""The network as the bundle defines it, in float32: what the others are compared with."""

AUTOCAST = "cuda-fp16-autocast"
"""torch's automatic mixed precision."""

_FASTER_FP32, _BF16 = "torch-fp32-channels-last", "torch-bf16-channels-last"
_OPENVINO_FP32, _OPENVINO_BF16 = "openvino-fp32", "openvino-bf16"
_OPENVINO_TYPES = {_OPENVINO_FP32: "f32", _OPENVINO_BF16: "bf16"}
_KEPT_SIZES = 2


@dataclass(frozen=True)
class EngineChoice:
    """How the network is run: the name of an engine; windows are always the bundle's own."""

    engine: str = REFERENCE

    @classmethod
    def by_rule(cls, device: str, precision: str = "auto", engine: str = "auto") -> EngineChoice:
        """The engine for what was asked: one by name, or ``"auto"``, that for ``precision`` on a torch device.

        ``precision`` is ``"fp32"``, ``"bf16"`` or ``"auto"``, as the rule says.

        Raises ``UsageError`` if this machine has no such engine, there is no such precision, or both were asked for.
        """
        if engine == "auto":
            by_rule = AUTOCAST if torch.device(device).type == "cuda" else REFERENCE
            by_precision = {"auto": by_rule, "fp32": REFERENCE, "bf16": _BF16}
            if precision not in by_precision:
                raise UsageError(f"--precision {precision}: expected one of {', '.join(by_precision)}")
            return cls(by_precision[precision])
        if precision != "auto":
            raise UsageError(
                f"--engine {engine} fixes the precision, found --precision {precision}, too; give one of them"
            )
        known = candidates(device)
        if engine not in known:
            raise UsageError(f"--engine {engine}: this machine has {', '.join(known)} on {device}; choose one of them")
        return cls(engine)

    @property
    def precision(self) -> str:
        """What the engine computes in: ``fp32``, ``bf16`` or ``amp-fp16``."""
        return "amp-fp16" if self.engine == AUTOCAST else self.engine.split("-")[1]


def candidates(device: str = "cpu") -> list[str]:
    """Engines that a device has, the reference first; bf16 only where the processor computes in it."""
    kind = torch.device(device).type
    if kind == "cuda":
        return [REFERENCE, _FASTER_FP32, _BF16, AUTOCAST]
    names = [REFERENCE, _FASTER_FP32]
    if kind == "cpu":
        has_openvino, has_bf16 = importlib.util.find_spec("openvino") is not None, computes_bf16(torch.device(device))
        names += [_OPENVINO_FP32] if has_openvino else []
        names += [_BF16] if has_bf16 else []
        names += [_OPENVINO_BF16] if has_openvino and has_bf16 else []
    return names


def build_engine(name: str, network: nn.Module, device: str = "cpu") -> Engine:
    """Build one engine around a network in evaluation mode, which stays as it is.

    Raises ``UsageError`` if there is no engine of this name; ``MissingDependency`` if it needs a package that is not
    installed.
    """
    if name == REFERENCE:
        return TorchEngine(network, device)
    if name == AUTOCAST:
        network = copy.deepcopy(network)
        use_channels_last(network)
        return TorchEngine(network, device, channels_last=True, autocast=torch.float16)
    if name in {_FASTER_FP32, _BF16}:
        dtype = FORMATS[name.split("-")[1]]
        network = fold_norms(network).to(dtype)
        use_channels_last(network)
        return TorchEngine(network, device, dtype, channels_last=True)
    if name in _OPENVINO_TYPES:
        return OpenVinoEngine(name, copy.deepcopy(network))
    known = (REFERENCE, _FASTER_FP32, _BF16, AUTOCAST, *_OPENVINO_TYPES)
    raise UsageError(f"no engine {name}; known are {', '.join(known)}")


class TorchEngine:
    """A network under torch, whose weights lie on the device and have the type ``dtype``, as its windows will.

    ``autocast`` is the type of automatic mixed precision; None computes in ``dtype`` throughout.
    """

    def __init__(
        self,
        network: nn.Module,
        device: str,
        dtype: torch.dtype = torch.float32,
        *,
        channels_last: bool = False,
        autocast: torch.dtype | None = None,
    ) -> None:
        self._network, self._device, self._dtype, self._autocast = network, torch.device(device), dtype, autocast
        self._layout = torch.channels_last_3d if channels_last else torch.contiguous_format

    @torch.inference_mode()
    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        """Map windows to scores."""
        windows = batch.to(self._device, self._dtype, memory_format=self._layout)
        with torch.autocast(self._device.type, self._autocast) if self._autocast else nullcontext():
            scores = self._network(windows)
        # networks with deep supervision give a list that starts with the full resolution
        first: torch.Tensor = scores[0] if isinstance(scores, list | tuple) else scores
        return first.float().to("cpu")


class OpenVinoEngine:
    """A network in evaluation mode, compiled by OpenVINO once per size of window; the last few sizes are kept."""

    def __init__(self, name: str, network: nn.Module) -> None:
        if importlib.util.find_spec("openvino") is None:
            raise MissingDependency("OpenVINO", "openvino", f"the engine {name}")
        self._network, self._precision = network, _OPENVINO_TYPES[name]
        self._compiled: dict[tuple[int, ...], Any] = {}

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        """Map windows to scores."""
        size = tuple(batch.shape[1:])
        if size not in self._compiled:
            while len(self._compiled) >= _KEPT_SIZES:
                self._compiled.pop(next(iter(self._compiled)))
            self._compiled[size] = self._compile(batch[:1])
        self._compiled[size] = compiled = self._compiled.pop(size)  # the last one that has been used
        return torch.from_numpy(compiled(batch.contiguous().numpy())[0])

    def _compile(self, example: torch.Tensor) -> Any:
        openvino = import_openvino()
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tracing warns about checks of sizes, which do not change here
            model = openvino.convert_model(self._network, example_input=example)
        model.reshape([-1, *example.shape[1:]])
        hints = {
            "INFERENCE_PRECISION_HINT": self._precision,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": 1,
        }
        return openvino.Core().compile_model(model, "CPU", hints)


def import_openvino() -> Any:
    """The module ``openvino``, kept from reporting its use to its makers, which it does unless told not to."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # it then uses a stub
    import openvino

    return openvino


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
