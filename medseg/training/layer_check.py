"""Whether each layer of a network computes in a reduced format what it computes in fp32, on the shapes of this run.

Kernels of reduced formats are younger than those of fp32 and have been wrong for single shapes, among them the weight
gradient of a convolution that added memory which nobody had written. Such an error shows in one layer, and only if
that memory holds something: so every layer is compared by itself, with its real input, in memory filled on purpose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from medseg.training.step import Buffers

TOLERANCE = 0.1
"""Largest relative error of a layer: rounding to bf16 makes half a percent, the faults looked for 100 and more."""

FILLS = (0x7F, 0x4B, 0xC2)
"""Bytes that free memory is filled with: in fp32 and bf16 they are 3e38, 1e7 and −50, in fp16 NaN, 15 and −3."""

_BLOCKS, _LARGEST_BLOCK = 4, 64 * 2**20


class LayerCheck:
    """Compares each layer that has weights of its own with itself in fp32, while networks run.

    ``errors`` holds the largest relative error of each layer that disagrees, by ``"network.module"``.
    """

    def __init__(self, networks: Mapping[str, nn.Module], dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.layers = {
            f"{name}.{path}".rstrip("."): module
            for name, network in networks.items()
            for path, module in network.named_modules()
            if next(module.parameters(recurse=False), None) is not None or hasattr(module, "parametrizations")
        }
        self.errors: dict[str, float] = {}
        self._comparing = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While open, layers that run are compared; one that disagrees hands on what it gives in fp32."""
        with ExitStack() as hooks:
            for name, layer in self.layers.items():
                hook = layer.register_forward_hook(partial(self._hook, name), with_kwargs=True)
                hooks.callback(hook.remove)
            yield

    def _hook(self, name: str, layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
        if self._comparing:  # a layer that is called by the comparison itself
            return None
        self._comparing = True
        before = Buffers(layer)
        try:
            expected = self._run(layer, args, named, None)
            worst = 0.0
            for fill in FILLS:
                before.restore()
                pairs = zip(self._run(layer, args, named, fill), expected, strict=True)
                worst = max([worst, *(difference(found, right) for found, right in pairs)])
        finally:
            self._comparing = False
        if worst <= TOLERANCE:
            return None
        self.errors[name] = max(worst, self.errors.get(name, 0.0))
        return expected[0].to(output.dtype) if isinstance(output, Tensor) else None

    def _run(self, layer: nn.Module, args: Any, named: Any, fill: int | None) -> list[Tensor]:
        """Outputs and gradients: in fp32 without ``fill``, else in the reduced format and filled memory."""
        device = next(layer.parameters()).device
        inside = [name for name, _ in layer.named_children() if name != "parametrizations"]
        weights = [weight for weight in layer.parameters(recurse=not inside) if weight.requires_grad]
        maps = any(weight.ndim > 1 for weight in layer.parameters())
        copies: list[Tensor] = []

        def own(value: Tensor) -> Tensor:
            kept = value.detach().clone()
            if fill is None and value.is_floating_point():
                kept = kept.float()
            if maps and value.is_floating_point():  # what a normalisation answers to its input is next to nothing
                copies.append(kept.requires_grad_())
                return kept.clone()  # the layer may write into it
            return kept

        inputs, keywords = _mapped(args, own), _mapped(named, own)
        devices = [device] if device.type == "cuda" else []
        # without the cache of cast weights: it would hold some that were cast where no gradient is recorded
        context = torch.autocast(device.type, dtype=self.dtype, enabled=fill is not None, cache_enabled=False)
        with torch.enable_grad(), torch.random.fork_rng(devices), context:
            torch.manual_seed(0)  # of dropout inside a layer
            if fill is not None:
                filled_memory([*copies, *weights], fill)
            outputs = _tensors(layer(*inputs, **keywords))
            teachable = [output for output in outputs if output.requires_grad]
            answers = [_answer(output, self.dtype) for output in teachable]
            if fill is not None:
                filled_memory([*copies, *weights, *outputs], fill)
            taught = [*weights, *copies] if teachable else []
            found = torch.autograd.grad(teachable, taught, answers, allow_unused=True) if taught else ()
        return [*(output.detach() for output in outputs), *(gradient for gradient in found if gradient is not None)]


def difference(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference of two tensors, relative to the norm of the second; 0 if that is not finite itself."""
    norm = float(expected.float().norm())
    if norm == 0.0 or not math.isfinite(norm):
        return 0.0
    error = float((found.float() - expected.float()).norm()) / norm
    return math.inf if math.isnan(error) else error


def filled_memory(like: Iterable[Tensor], fill: int) -> None:
    """Leave free memory that holds ``fill`` in every byte, in blocks as large as the tensors in any format."""
    blocks = [
        torch.full((size,), fill, dtype=torch.uint8, device=tensor.device)
        for tensor in like
        for size in (2 * tensor.numel(), 4 * tensor.numel())
        for _ in range(_BLOCKS)
        if size <= _LARGEST_BLOCK
    ]
    del blocks  # the allocator hands it out again


def keep_in_fp32(module: nn.Module) -> None:
    """Let a module compute in fp32 under autocast, whatever comes in; copies of the module do so, too."""
    module.forward = partial(_in_fp32, module)


def _in_fp32(module: nn.Module, *args: Any, **named: Any) -> Any:
    def whole(value: Tensor) -> Tensor:
        return value.float() if value.is_floating_point() else value

    parameter = next(module.parameters(), None)
    with torch.autocast("cpu" if parameter is None else parameter.device.type, enabled=False):
        return type(module).forward(module, *_mapped(args, whole), **_mapped(named, whole))


def _answer(output: Tensor, dtype: torch.dtype) -> Tensor:
    """A gradient for ``output`` that both formats can hold, so small that the sums over all voxels stay in range."""
    source = torch.Generator().manual_seed(output.numel())
    channels = output.shape[1] if output.ndim > 1 else 1
    answer = torch.randn(output.shape, generator=source) / max(1.0, output.numel() / max(1, channels)) ** 0.5
    return answer.to(dtype).to(output.device, output.dtype)


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(each, change) for key, each in value.items()}
    if isinstance(value, list | tuple):
        parts = [_mapped(each, change) for each in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for part in parts for tensor in _tensors(part)]
