"""A stack of convolutions over a whole volume in little memory, with the same result.

Where a network is nothing but convolutions that keep the size and act on their own, one after the other, a layer's
planes depend on few planes of the layer before. So each layer is computed some planes at a time and written over its
input; and where the last one looks at single voxels, its many classes are computed as they are asked for. A head of
256³ voxels takes the memory of one layer, 2 GiB for 30 channels, whatever the number of classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from itertools import pairwise

import torch
from monai.networks.blocks import ADN, Convolution
from torch import nn
from torch.nn import functional

from medseg.inference.sliding_window import Chunk

_SLAB_ELEMENTS = 1 << 25
"""Elements of a layer that are computed at once, an eighth of a GiB."""
_POINTWISE = (
    nn.BatchNorm3d,
    nn.ReLU,
    nn.ELU,
    nn.GELU,
    nn.LeakyReLU,
    nn.PReLU,
    nn.Sigmoid,
    nn.Tanh,
    nn.Identity,
    nn.Dropout,
)

Head = Callable[[Iterable[Chunk]], Iterator[Chunk]]
"""Scores of the features in chunks, in smaller chunks."""


def split_stack(network: nn.Module) -> tuple[nn.Module, Head] | None:
    """A network in evaluation mode as what gives features of a whole volume ``(1, C, H, W, D)``, and what scores them.

    None if it is no stack of convolutions, or its last one looks beyond single voxels. Weights are shared.
    """
    layers = _flat(network) if type(network) is nn.Sequential else []
    starts = [place for place, layer in enumerate(layers) if isinstance(layer, nn.Conv3d)]
    if len(starts) < 2 or starts[0] or not all(_is_local(layer) for layer in layers):
        return None
    last = layers[starts[-1]]
    if not isinstance(last, nn.Conv3d) or set(last.kernel_size) != {1}:
        return None
    steps = [nn.Sequential(*layers[a:b]) for a, b in pairwise(starts)]
    return _Slabs(*steps), _Head(nn.Sequential(*layers[starts[-1] :]))


def _flat(module: nn.Module) -> list[nn.Module]:
    if type(module) not in {nn.Sequential, Convolution, ADN}:
        return [module]
    return [layer for child in module.children() for layer in _flat(child)]


def _is_local(layer: nn.Module) -> bool:
    if type(layer) is not nn.Conv3d:
        return type(layer) in _POINTWISE
    same = tuple(d * (k - 1) // 2 for d, k in zip(layer.dilation, layer.kernel_size, strict=True))
    odd = all(k % 2 for k in layer.kernel_size)
    return odd and set(layer.stride) == {1} and layer.padding == same and layer.padding_mode == "zeros"


class _Slabs(nn.Sequential):
    """Steps of one convolution and what follows it voxel by voxel."""

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        """Features of a volume, which is left as it is."""
        features = volume
        for step in self:
            features = _in_slabs(step, features, writable=features is not volume)
        return features


def _in_slabs(step: nn.Module, source: torch.Tensor, *, writable: bool) -> torch.Tensor:
    """One step over all planes of the first axis; over its own source where that is ``writable`` and as large."""
    convolution, *rest = step.children()
    assert isinstance(convolution, nn.Conv3d)
    assert isinstance(convolution.padding, tuple)
    reach, across = convolution.padding[0], (0, *convolution.padding[1:])
    count = source.shape[2]
    channels = max(convolution.in_channels, convolution.out_channels)
    planes = max(1, _SLAB_ELEMENTS // (channels * source.shape[3] * source.shape[4]))
    before = torch.zeros_like(source[:, :, :1]).expand(-1, -1, reach, -1, -1)  # as padding has it
    result: torch.Tensor | None = None
    for first in range(0, count, planes):
        end = min(first + planes, count)
        slab = torch.cat([before, source[:, :, first : end + reach]], dim=2)
        missing = end + reach - min(end + reach, count)
        slab = functional.pad(slab, (0, 0, 0, 0, 0, missing)) if missing else slab
        before = slab[:, :, end - first : end - first + reach].clone()
        values = functional.conv3d(
            slab, convolution.weight, convolution.bias, 1, across, convolution.dilation, convolution.groups
        )
        for layer in rest:
            values = layer(values)
        if result is None:
            result = source if writable and _fits(values, source) else _like(values, count)
        result[:, :, first:end] = values
    assert result is not None, "a volume has planes"
    return result


def _fits(values: torch.Tensor, source: torch.Tensor) -> bool:
    return values.dtype == source.dtype and values.shape[1] == source.shape[1]


def _like(values: torch.Tensor, planes: int) -> torch.Tensor:
    """Room for as many planes of such values, in their layout."""
    last = values.is_contiguous(memory_format=torch.channels_last_3d)
    layout = torch.channels_last_3d if last else torch.contiguous_format
    shape = (*values.shape[:2], planes, *values.shape[3:])
    return torch.empty(shape, dtype=values.dtype, device=values.device, memory_format=layout)


class _Head:
    """The last layers of a stack, on the CPU in float32."""

    def __init__(self, layers: nn.Module) -> None:
        self._layers = deepcopy(layers).float().cpu()
        self._channels = max(int(weight.shape[0]) for weight in self._layers.parameters())

    @torch.inference_mode()
    def _scores(self, features: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self._layers(features[None])[0]
        return scores

    def __call__(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """Scores of chunks of features, some planes at a time."""
        for chunk in chunks:
            features = chunk.scores
            planes = max(1, _SLAB_ELEMENTS // (self._channels * features[0, 0].numel()))
            for first in range(0, features.shape[1], planes):
                yield Chunk(chunk.start + first, self._scores(features[:, first : first + planes]))
