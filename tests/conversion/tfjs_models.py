"""Small TensorFlow.js layers models, written for tests, and what they compute, step by step in numpy."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def layer(kind: str, name: str, **config: Any) -> dict[str, Any]:
    """One layer of a topology."""
    return {"class_name": kind, "config": {"name": name, **config}}


@dataclass
class TfjsModel:
    """A model whose weights are drawn at random."""

    extent: int = 24
    layers: list[dict[str, Any]] = field(default_factory=list)
    weights: dict[str, Array] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def stack(cls, classes: int = 3, width: int = 4, extent: int = 24, activation: str = "elu") -> TfjsModel:
        """Three dilated convolutions, one with a batch norm, and one of single voxels."""
        model = cls(extent)
        rng = np.random.default_rng(0)
        model.layers.append(layer("InputLayer", "input", batch_input_shape=[None, *[extent] * 3, 1]))
        for number, (dilation, inputs) in enumerate([(1, 1), (2, width), (4, width)]):
            model.convolution(rng, f"conv{number}", 3, dilation, inputs, width)
            if number == 1:
                model.layers.append(layer("BatchNormalization", "norm", axis=[4], epsilon=0.01))
                for part in ("gamma", "moving_variance"):
                    model.weights[f"norm/{part}"] = rng.uniform(0.5, 2, width).astype(np.float32)
                for part in ("beta", "moving_mean"):
                    model.weights[f"norm/{part}"] = rng.normal(size=width).astype(np.float32)
            model.layers.append(layer("Activation", f"act{number}", activation=activation))
        model.convolution(rng, "output", 1, 1, width, classes)
        return model

    def convolution(self, rng: np.random.Generator, name: str, size: int, dilation: int, inputs: int, out: int) -> None:
        """Add a convolution with random weights."""
        self.layers.append(
            layer(
                "Conv3D", name, filters=out, kernel_size=[size] * 3, strides=[1, 1, 1], padding="same", use_bias=True,
                dilation_rate=[dilation] * 3, activation="linear", data_format="channels_last",
            )
        )  # fmt: skip
        scale = (size**3 * inputs) ** -0.5
        self.weights[f"{name}/kernel"] = rng.normal(0, scale, (size, size, size, inputs, out)).astype(np.float32)
        self.weights[f"{name}/bias"] = rng.normal(0, 0.1, out).astype(np.float32)

    def content(self) -> dict[str, Any]:
        """What ``model.json`` says: each layer follows the one before, and the weights lie in two files."""
        chained = []
        for number, one in enumerate(self.layers):
            before = [[[self.layers[number - 1]["config"]["name"], 0, 0, {}]]] if number else []
            chained.append({**one, "name": one["config"]["name"], "inbound_nodes": before})
        described = [
            {"name": name, "shape": list(values.shape), "dtype": "float32"} for name, values in self.weights.items()
        ]
        config = {"class_name": "Functional", "config": {"name": "model", "layers": chained}}
        return {
            "format": "layers-model",
            **self.extra,
            "modelTopology": {"keras_version": "2.6.0", "model_config": config},
            "weightsManifest": [{"paths": ["a.bin", "b.bin"], "weights": described}],
        }

    def write(self, folder: Path, content: dict[str, Any] | None = None) -> Path:
        """Write the model, or another ``content`` beside its weights."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.json").write_text(json.dumps(content or self.content()))
        data = b"".join(values.astype("<f4").tobytes() for values in self.weights.values())
        (folder / "a.bin").write_bytes(data[:100])
        (folder / "b.bin").write_bytes(data[100:])
        return folder

    def scores(self, volume: Array) -> NDArray[np.float64]:
        """What the model gives for a volume ``(H, W, D)``: ``(H, W, D, classes)``, tap by tap in double precision."""
        found: NDArray[np.float64] = volume[..., None].astype(np.float64)
        for one in self.layers[1:]:
            config, name = one["config"], one["config"]["name"]
            if one["class_name"] == "Conv3D":
                found = _convolved(found, self.weights[f"{name}/kernel"], config["dilation_rate"][0])
                found = found + self.weights[f"{name}/bias"]
            elif one["class_name"] == "BatchNormalization":
                mean, variance, gamma, beta = (
                    self.weights[f"{name}/{part}"] for part in ("moving_mean", "moving_variance", "gamma", "beta")
                )
                found = (found - mean) / np.sqrt(variance + config["epsilon"]) * gamma + beta
            elif config["activation"] == "elu":
                found = np.where(found > 0, found, np.expm1(np.minimum(found, 0)))
            else:
                found = np.maximum(found, 0)
        return found


def _convolved(values: NDArray[np.float64], kernel: Array, dilation: int) -> NDArray[np.float64]:
    """A dilated convolution with zeros round the volume, as the sum over its taps."""
    reach = dilation * (kernel.shape[0] // 2)
    padded = np.pad(values, [(reach, reach)] * 3 + [(0, 0)])
    result = np.zeros((*values.shape[:3], kernel.shape[4]))
    for i, j, k in np.ndindex(*kernel.shape[:3]):
        at = tuple(
            slice(n * dilation, n * dilation + size) for n, size in zip((i, j, k), values.shape[:3], strict=True)
        )
        result += padded[at] @ kernel[i, j, k].astype(np.float64)
    return result
