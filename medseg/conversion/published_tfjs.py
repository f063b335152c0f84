"""TensorFlow.js layers models as data: a stack of dilated 3D convolutions, its weights placed as torch has them.

Nothing is believed that the tensors contradict: channels and kernels are those of the weights, whatever the topology
says of them. What is no such stack is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from medseg.errors import BundleError
from medseg.files import shown
from medseg.json_shape import ANYTHING, FILE_NAME, TEXT, either, misfit, one_of, read_json, whole, wholes

if TYPE_CHECKING:
    import torch

_TOPOLOGY_BYTES = 8 << 20
_MOST_LAYERS, _MOST_CHANNELS, _LARGEST_KERNEL, _LARGEST_DILATION = 500, 4096, 15, 256
_LAYER = {"class_name!": TEXT, "config!": {"name!": TEXT, "*": ANYTHING}, "inbound_nodes": [ANYTHING]}
_FORM = {
    "format!": one_of("layers-model"),
    "_comment": TEXT,
    "modelTopology!": {
        "model_config!": {
            "class_name!": one_of("Functional", "Model", "Sequential"),
            "config!": either([_LAYER], {"layers!": [_LAYER]}),
        }
    },
    "weightsManifest!": [
        {
            "paths!": [FILE_NAME],
            "weights!": [{"name!": TEXT, "shape!": wholes(1), "dtype!": one_of("float32"), "quantization": ANYTHING}],
        }
    ],
}
_REMEDY = "give a layers-model that was exported in float32"
_ACTIVATIONS: dict[str, Any] = {
    "relu": ["RELU", {"inplace": True}],
    "elu": ["ELU", {"inplace": True}],
    "gelu": "GELU",
    "sigmoid": "SIGMOID",
    "tanh": "TANH",
}
_LAYER_ACTIVATIONS = {"ReLU": "relu", "ELU": "elu"}
_NORMS = {
    "BatchNormalization": "BATCH",
    "InstanceNormalization": "INSTANCE",
    "Addons>InstanceNormalization": "INSTANCE",
}
_NORM_WEIGHTS = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}


@dataclass
class Stack:
    """A stack of convolutions that keep the size of their input."""

    extent: tuple[int, ...]  # voxels per axis of the images that the model states, or 0 where it takes any
    comment: str = ""
    layers: list[dict[str, Any]] = field(default_factory=list)
    """Definitions of MONAI's ``Convolution`` blocks, in order, each followed by an activation and a norm, if any."""
    state: dict[str, torch.Tensor] = field(default_factory=dict)
    """The weights under the names that a ``torch.nn.Sequential`` of them has, float32, ``(out, in, D, H, W)``."""
    softmax: bool = False  # whether the model ends in a softmax, which is left to the post-processing
    notes: list[str] = field(default_factory=list)  # where the model contradicts itself, and what was believed

    @property
    def margin(self) -> int:
        """Voxels from an edge within which an output depends on what lies beyond it."""
        return max(
            sum(layer["dilation"][axis] * (layer["kernel_size"][axis] - 1) // 2 for layer in self.layers)
            for axis in range(3)
        )

    @property
    def classes(self) -> int:
        """Channels of the output."""
        return int(self.layers[-1]["out_channels"])


def is_layers_model(path: Path) -> bool:
    """Whether a file is the ``model.json`` of a TensorFlow.js layers model, by its beginning."""
    if path.name != "model.json" or not path.is_file():
        return False
    with path.open("rb") as handle:
        return b'"layers-model"' in handle.read(1 << 16)


def read_stack(path: Path) -> Stack:
    """Read ``model.json`` and the weights beside it.

    Raises ``BundleError`` if a part is missing, contradicts itself, holds numbers that are not finite, or is no stack
    of convolutions.
    """
    model = read_json(path, _FORM, _REMEDY, BundleError, _TOPOLOGY_BYTES)
    tensors = dict(_tensors(model["weightsManifest"], path.parent))
    config = model["modelTopology"]["model_config"]["config"]
    layers = config if isinstance(config, list) else config["layers"]
    if len(layers) > _MOST_LAYERS:
        raise BundleError(f"{shown(path)} has {len(layers)} layers, expected at most {_MOST_LAYERS}; {_REMEDY}")
    stack = Stack(_extent(layers, path), str(model.get("_comment") or ""))
    reader = _Reader(stack, tensors, path)
    for number, layer in enumerate(layers):
        reader.follows(layer, layers[number - 1] if number else None)
        reader.add(layer)
    if not stack.layers:
        raise BundleError(f"{shown(path)} holds no convolution; {_REMEDY}")
    ends = isinstance(config, dict) and config.get("output_layers")
    if ends and ends not in ([[(last := layers[-1]["config"]["name"]), 0, 0]], [last, 0, 0]):
        raise BundleError(f"{shown(path)} ends in {shown(ends)}, expected its last layer, {shown(last)}; {_REMEDY}")
    if stack.classes < 2:
        raise BundleError(
            f"{shown(path)} gives one channel of scores, expected one for each class, background included"
        )
    if tensors:
        raise BundleError(f"{shown(path)} has weights of no layer: {shown(next(iter(tensors)))}; {_REMEDY}")
    return stack


def _tensors(manifest: list[dict[str, Any]], folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights by name, as the files hold them one after the other."""
    import torch

    seen: set[str] = set()
    for group in manifest:
        entries = group["weights"]
        elements = [math.prod(entry["shape"]) for entry in entries]
        data = bytearray()
        for name in group["paths"]:
            data += _file(folder, name, 4 * sum(elements) - len(data))
        if len(data) != 4 * sum(elements):
            found = f"{', '.join(map(shown, group['paths']))} hold {len(data)} bytes"
            raise BundleError(f"{found}, model.json describes {4 * sum(elements)}; fetch the files again")
        start = 0
        for entry, count in zip(entries, elements, strict=True):
            name = entry["name"]
            if name in seen or entry.get("quantization"):
                raise BundleError(f"weights {shown(name)} are quantised or stand twice in model.json; {_REMEDY}")
            seen.add(name)
            values = torch.frombuffer(data[start : start + 4 * count], dtype=torch.float32)
            if not bool(values.isfinite().all()):
                raise BundleError(f"weights {shown(name)} are not finite; fetch the files again")
            yield name, values.reshape(entry["shape"])
            start += 4 * count


def _file(folder: Path, name: str, most_bytes: int) -> bytes:
    """One file of weights that lies beside ``model.json``, no longer than what is described."""
    path = folder / name
    if not path.is_file() or path.resolve().parent != folder.resolve():
        raise BundleError(f"cannot find {shown(path)}, a file of weights that model.json names; fetch it, too")
    if (size := path.stat().st_size) > most_bytes:
        raise BundleError(f"{shown(path)} has {size} bytes, model.json describes {most_bytes}; fetch the files again")
    return path.read_bytes()


def _extent(layers: list[dict[str, Any]], path: Path) -> tuple[int, ...]:
    """Voxels per axis of the input, by what the first layer says of it."""
    config = layers[0]["config"] if layers else {}
    shape = config.get("batch_input_shape", config.get("batchInputShape"))
    sizes = [whole(1, 1 << 12), (lambda value: value is None, "null")]
    fits = either(*sizes)[0]
    if not isinstance(shape, list) or len(shape) != 5 or not all(map(fits, shape)):
        raise BundleError(f"{shown(path)} states an input of shape {shown(shape)}, expected volumes with channels")
    spatial = shape[2:] if config.get("data_format") == "channels_first" else shape[1:4]
    return tuple(int(size or 0) for size in spatial)


@dataclass
class _Reader:
    """Adds one layer after the other to a stack, and takes its weights out of ``tensors``."""

    stack: Stack
    tensors: dict[str, torch.Tensor]
    path: Path

    def follows(self, layer: Mapping[str, Any], before: Mapping[str, Any] | None) -> None:
        """Refuse a layer that takes anything but the output of the one before."""
        inbound = layer.get("inbound_nodes")
        if not inbound:
            return
        first = inbound[0][0] if len(inbound) == 1 and isinstance(inbound[0], list) and len(inbound[0]) == 1 else None
        if before is None or not isinstance(first, list) or first[:3] != [before["config"]["name"], 0, 0]:
            self._refuse(layer, "does not follow the layer before it alone")

    def add(self, layer: Mapping[str, Any]) -> None:
        """Add a layer, whose kind is known by its class."""
        kind, config = layer["class_name"], layer["config"]
        if self.stack.softmax:
            self._refuse(layer, "follows a softmax")
        if kind == "Conv3D":
            self._convolution(layer)
        elif kind in _NORMS:
            self._norm(layer)
        elif kind == "Activation" or kind in _LAYER_ACTIVATIONS:
            own = (config.get(key) for key in ("max_value", "threshold", "negative_slope"))
            if config.get("alpha", 1.0) != 1.0 or any(own):
                self._refuse(layer, "has parameters of its own")
            self._activation(layer, _LAYER_ACTIVATIONS.get(kind, config.get("activation")))
        elif kind == "InputLayer" and self.stack.layers:
            self._refuse(layer, "is another input")
        elif kind not in {"InputLayer", "Dropout", "SpatialDropout3D"}:
            self._refuse(layer, f"is a {shown(kind)}")

    def _refuse(self, layer: Mapping[str, Any], what: str) -> NoReturn:
        raise BundleError(
            f"layer {shown(layer['config']['name'])} of {shown(self.path)} {what}; medseg reads stacks of Conv3D,"
            f" {', '.join(_NORMS)} and the activations {', '.join(_ACTIVATIONS)}"
        )

    def _take(self, layer: Mapping[str, Any], what: str) -> torch.Tensor | None:
        return self.tensors.pop(f"{layer['config']['name']}/{what}", None)

    def _convolution(self, layer: Mapping[str, Any]) -> None:
        config, layers = layer["config"], self.stack.layers
        kernel, bias = self._take(layer, "kernel"), self._take(layer, "bias")
        if kernel is None or kernel.ndim != 5:
            self._refuse(layer, "has no kernel of five axes among the weights")
        size, (inputs, outputs) = [int(n) for n in kernel.shape[:3]], (int(n) for n in kernel.shape[3:])
        dilation = config.get("dilation_rate", [1, 1, 1])
        dilation = [dilation] * 3 if isinstance(dilation, int) else dilation
        if misfit(dilation, [whole(1, _LARGEST_DILATION)]) or len(dilation) != 3:
            self._refuse(layer, "has no dilation_rate of three small whole numbers")
        if any(n % 2 == 0 or n > _LARGEST_KERNEL for n in size) or max(inputs, outputs) > _MOST_CHANNELS:
            self._refuse(layer, f"has a kernel of shape {tuple(kernel.shape)}")
        if config.get("padding") != "same" and max(size) > 1:
            self._refuse(layer, f"pads {shown(config.get('padding'))}, which changes the size of its input")
        if config.get("strides", 1) not in (1, [1, 1, 1]) or config.get("groups", 1) != 1:
            self._refuse(layer, "has strides or groups")
        if inputs != (given := layers[-1]["out_channels"] if layers else 1):
            self._refuse(layer, f"takes {inputs} channels and is given {given}")
        if bias is not None and tuple(bias.shape) != (outputs,):
            self._refuse(layer, f"has {tuple(bias.shape)} biases for {outputs} channels")
        self._compare(config, {"filters": outputs, "kernel_size": size, "use_bias": bias is not None})
        at = f"{len(layers)}.conv"
        self.stack.state[f"{at}.weight"] = kernel.permute(4, 3, 0, 1, 2).contiguous()
        if bias is not None:
            self.stack.state[f"{at}.bias"] = bias.clone()
        block = {"spatial_dims": 3, "in_channels": inputs, "out_channels": outputs, "kernel_size": size}
        parts = {"dilation": dilation, "bias": bias is not None, "adn_ordering": "", "act": None, "norm": None}
        layers.append({"_target_": "Convolution", **block, **parts})
        self._activation(layer, config.get("activation", "linear"))

    def _compare(self, config: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        """Note where a description contradicts the weights, which are believed."""
        for key, value in found.items():
            if key in config and config[key] != value:
                stated = shown(config[key])
                self.stack.notes.append(
                    f"layer {shown(config['name'])} states {key} {stated}, its weights have {value}: these are believed"
                )

    def _activation(self, layer: Mapping[str, Any], name: Any) -> None:
        if name == "linear":
            return
        if name == "softmax":
            self.stack.softmax = True
            return
        block = self.stack.layers[-1] if self.stack.layers else None
        if not isinstance(name, str) or name not in _ACTIVATIONS or block is None or block["act"] is not None:
            self._refuse(layer, f"has the activation {shown(name)} in this place")
        block["act"], block["adn_ordering"] = _ACTIVATIONS[name], block["adn_ordering"] + "A"

    def _norm(self, layer: Mapping[str, Any]) -> None:
        import torch

        config, block = layer["config"], self.stack.layers[-1] if self.stack.layers else None
        axis, epsilon, kind = config.get("axis", -1), config.get("epsilon", 1e-3), _NORMS[layer["class_name"]]
        if block is None or block["norm"] is not None:
            self._refuse(layer, "stands in a place where no norm can")
        if axis not in (-1, 4, [-1], [4]) or not isinstance(epsilon, float) or not 0 <= epsilon < 1:
            self._refuse(layer, f"has axis {shown(axis)} and epsilon {shown(epsilon)}")
        channels, batch = block["out_channels"], kind == "BATCH"
        at = f"{len(self.stack.layers) - 1}.adn.N"
        for name, source in list(_NORM_WEIGHTS.items())[: 4 if batch else 2]:
            values = self._take(layer, source)
            if values is None and name in {"weight", "bias"}:  # scale or center is false
                values = torch.ones(channels) if name == "weight" else torch.zeros(channels)
            if values is None:
                self._refuse(layer, f"has no {source} among the weights")
            if tuple(values.shape) != (channels,):
                self._refuse(layer, f"has {source} of shape {tuple(values.shape)} for {channels} channels")
            self.stack.state[f"{at}.{name}"] = values.clone()
        if batch:
            self.stack.state[f"{at}.num_batches_tracked"] = torch.tensor(0)
        block["norm"] = [kind, {"eps": epsilon, **({} if batch else {"affine": True})}]
        block["adn_ordering"] += "N"
