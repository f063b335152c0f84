"""A trained nnU-Net v2 folder with random weights; what its network and its predictor compute, from the formulas."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes, gaussian_filter, map_coordinates
from skimage.transform import resize
from torch import Tensor
from torch.nn import functional

ISO = ((3, 3, 3),) * 3
ANISO = ((1, 3, 3), (3, 3, 3), (3, 3, 3))
ISO_STRIDES = ((1, 1, 1), (2, 2, 2), (2, 2, 2))
ANISO_STRIDES = ((1, 1, 1), (1, 2, 2), (2, 2, 2))


@dataclass(frozen=True)
class Fake:
    """What the folder says."""

    residual: bool = False
    kernels: tuple[tuple[int, ...], ...] = ISO
    strides: tuple[tuple[int, ...], ...] = ISO_STRIDES
    filters: tuple[int, ...] = (4, 6, 8)
    depths: tuple[int, ...] = (2, 2, 2)
    decoder: tuple[int, ...] = (2, 2)
    patch: tuple[int, ...] = (16, 16, 16)
    spacing: tuple[float, ...] = (1.5, 1.5, 1.5)
    channels: tuple[str, ...] = ("CT",)
    schemes: tuple[str, ...] = ("CTNormalization",)
    masked: tuple[bool, ...] = (False,)
    labels: Mapping[str, Any] = field(default_factory=lambda: {"background": 0, "liver": 1, "spleen": 2})
    order: tuple[int, ...] | None = None
    transpose: tuple[int, ...] = (0, 1, 2)
    mirror: tuple[int, ...] | None = (0, 1, 2)
    folds: int = 1
    old: bool = False
    flat: bool = False
    """A 2D network: kernels, strides and patch are 1 along the first axis, and left out."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    plans: Mapping[str, Any] = field(default_factory=dict)

    @property
    def outputs(self) -> int:
        """Channels of the scores."""
        return len(self.order) if self.order else len([name for name in self.labels if name != "ignore"])


def write_model(root: Path, fake: Fake) -> Path:
    """Write the folder of results below ``root``, as nnU-Net lays it."""
    folder = root / "Dataset007_Fake" / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans_of(fake)))
    dataset = {"channel_names": dict(enumerate(fake.channels)), "labels": fake.labels, "file_ending": ".nii.gz"}
    order = {"regions_class_order": list(fake.order)} if fake.order else {}
    (folder / "dataset.json").write_text(json.dumps({**dataset, **order}))
    for fold in range(fake.folds):
        (folder / f"fold_{fold}").mkdir()
        torch.save(checkpoint_of(fake, fold), folder / f"fold_{fold}" / "checkpoint_final.pth")
    return folder


def plans_of(fake: Fake) -> dict[str, Any]:
    """``plans.json``."""
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    settings: dict[str, Any] = {
        "preprocessor_name": "DefaultPreprocessor",
        "patch_size": list(fake.patch[int(fake.flat) :]),
        "spacing": list(fake.spacing[int(fake.flat) :]),
        "normalization_schemes": list(fake.schemes),
        "use_mask_for_norm": list(fake.masked),
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {**resampling, "order": 1},
        **(_old_network(fake) if fake.old else {"architecture": _network(fake)}),
        **fake.settings,
    }
    facts = {"mean": 40.0, "std": 90.0, "percentile_00_5": -120.0, "percentile_99_5": 260.0}
    return {
        "dataset_name": "Dataset007_Fake",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": list(fake.transpose),
        "foreground_intensity_properties_per_channel": {str(n): facts for n in range(len(fake.channels))},
        "configurations": {"base": settings, "3d_fullres": {"inherits_from": "base"}},
        **fake.plans,
    }


def _network(fake: Fake) -> dict[str, Any]:
    name = "ResidualEncoderUNet" if fake.residual else "PlainConvUNet"
    return {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{name}",
        "arch_kwargs": {
            "n_stages": len(fake.filters),
            "features_per_stage": list(fake.filters),
            "kernel_sizes": [size[int(fake.flat) :] for size in fake.kernels],
            "strides": [size[int(fake.flat) :] for size in fake.strides],
            "n_blocks_per_stage" if fake.residual else "n_conv_per_stage": list(fake.depths),
            "n_conv_per_stage_decoder": list(fake.decoder),
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
    }


def _old_network(fake: Fake) -> dict[str, Any]:
    return {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": fake.filters[0],
        "unet_max_num_features": fake.filters[-1],
        "n_conv_per_stage_encoder": list(fake.depths),
        "n_conv_per_stage_decoder": list(fake.decoder),
        "conv_kernel_sizes": fake.kernels,
        "pool_op_kernel_sizes": fake.strides,
    }


def checkpoint_of(fake: Fake, fold: int) -> dict[str, Any]:
    """What a checkpoint holds, numpy's scalars included."""
    return {
        "network_weights": {
            key: value[:, :, 0] if fake.flat and value.ndim == 5 else value
            for key, value in state_of(fake, fold).items()
        },
        "optimizer_state": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.01}]},
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float64(0.5), np.float32(0.25)], "dice": [[np.float64("nan")]]},
        "_best_ema": np.float64(0.5),
        "init_args": {"configuration": "3d_fullres", "fold": fold, "device": torch.device("cuda", 0)},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": fake.mirror and tuple(axis - fake.flat for axis in fake.mirror),
    }


def state_of(fake: Fake, seed: int) -> dict[str, Tensor]:  # noqa: C901  the whole network in one place
    """The weights in nnU-Net's names, with everything that it stores twice, and heads for deep supervision."""
    draw = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}

    def tensor(name: str, *shape: int) -> None:
        state[name] = torch.randn(*shape, generator=draw) * 0.4 + (1 if name.endswith("norm.weight") else 0)

    def block(name: str, before: int, after: int, kernel: Sequence[int], *, bias: bool = True) -> None:
        tensor(f"{name}.conv.weight", after, before, *kernel)
        if bias:
            tensor(f"{name}.conv.bias", after)
        tensor(f"{name}.norm.weight", after)
        tensor(f"{name}.norm.bias", after)
        for number, part in enumerate(("conv", "norm")):
            for kind in ("weight", "bias"):
                if f"{name}.{part}.{kind}" in state:
                    state[f"{name}.all_modules.{number}.{kind}"] = state[f"{name}.{part}.{kind}"]

    before, last = len(fake.channels), len(fake.filters) - 1
    if fake.residual:
        block("encoder.stem.convs.0", before, fake.filters[0], fake.kernels[0])
        before = fake.filters[0]
    for stage, (after, kernel, stride, depth) in enumerate(
        zip(fake.filters, fake.kernels, fake.strides, fake.depths, strict=True)
    ):
        for number in range(depth):
            if fake.residual:
                name = f"encoder.stages.{stage}.blocks.{number}"
                block(f"{name}.conv1", before, after, kernel)
                block(f"{name}.conv2", after, after, kernel)
                if before != after:
                    pooled = number == 0 and max(stride) > 1
                    block(f"{name}.skip.{int(pooled)}", before, after, (1, 1, 1), bias=False)
            else:
                block(f"encoder.stages.{stage}.0.convs.{number}", before, after, kernel)
            before = after
    state |= {f"decoder.{name}": value for name, value in state.items()}
    for stage in range(last):
        below, here = fake.filters[last - stage], fake.filters[last - stage - 1]
        tensor(f"decoder.transpconvs.{stage}.weight", below, here, *fake.strides[last - stage])
        tensor(f"decoder.transpconvs.{stage}.bias", here)
        for number in range(fake.decoder[stage]):
            inputs = here if number else 2 * here
            block(f"decoder.stages.{stage}.convs.{number}", inputs, here, fake.kernels[last - stage - 1])
        tensor(f"decoder.seg_layers.{stage}.weight", fake.outputs, here, 1, 1, 1)
        tensor(f"decoder.seg_layers.{stage}.bias", fake.outputs)
    return state


def scores_of(fake: Fake, state: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """What nnU-Net's network answers, of its weights alone."""

    def block(name: str, x: Tensor, stride: Sequence[int] = (1, 1, 1), *, active: bool = True) -> Tensor:
        weight = state[f"{name}.conv.weight"]
        padding = [(size - 1) // 2 for size in weight.shape[2:]]
        x = functional.conv3d(x, weight, state.get(f"{name}.conv.bias"), tuple(stride), padding)
        x = functional.instance_norm(x, weight=state[f"{name}.norm.weight"], bias=state[f"{name}.norm.bias"], eps=1e-5)
        return functional.leaky_relu(x, 0.01) if active else x

    def residual(name: str, x: Tensor, stride: Sequence[int]) -> Tensor:
        pooled = max(stride) > 1
        shortcut = functional.avg_pool3d(x, tuple(stride), tuple(stride)) if pooled else x
        if f"{name}.skip.{int(pooled)}.conv.weight" in state:
            shortcut = block(f"{name}.skip.{int(pooled)}", shortcut, active=False)
        return functional.leaky_relu(block(f"{name}.conv2", block(f"{name}.conv1", x, stride), active=False) + shortcut)

    skips = []
    x = block("encoder.stem.convs.0", x) if fake.residual else x
    for stage, (stride, depth) in enumerate(zip(fake.strides, fake.depths, strict=True)):
        for number in range(depth):
            step = stride if number == 0 else (1, 1, 1)
            name = f"encoder.stages.{stage}"
            plain = f"{name}.0.convs.{number}"
            x = residual(f"{name}.blocks.{number}", x, step) if fake.residual else block(plain, x, step)
        skips.append(x)
    last = len(fake.filters) - 1
    for stage in range(last):
        weight, bias = (state[f"decoder.transpconvs.{stage}.{kind}"] for kind in ("weight", "bias"))
        x = functional.conv_transpose3d(x, weight, bias, stride=fake.strides[last - stage])
        x = torch.cat((x, skips[last - stage - 1]), dim=1)
        for number in range(fake.decoder[stage]):
            x = block(f"decoder.stages.{stage}.convs.{number}", x)
    head = f"decoder.seg_layers.{last - 1}"
    return functional.conv3d(x, state[f"{head}.weight"], state[f"{head}.bias"])


# --- its predictor, whole volumes in memory ---------------------------------------------------------------------------


def predicted(fake: Fake, arrays: NDArray[np.float32], spacing: Sequence[float], *, mirrored: bool) -> NDArray[Any]:
    """The label map ``(z, y, x)`` of images ``(C, z, y, x)`` that lie as the training images did."""
    data = arrays.transpose(0, *(axis + 1 for axis in fake.transpose)).astype(np.float32)
    spacing = [spacing[axis] for axis in fake.transpose]
    mask = binary_fill_holes((data != 0).any(axis=0))
    box = tuple(slice(int(where.min()), int(where.max()) + 1) for where in np.nonzero(mask))
    shape, data, mask = data.shape[1:], data[(slice(None), *box)], mask[box]
    size = data.shape[1:]
    target = [*spacing[: int(fake.flat)], *fake.spacing[int(fake.flat) :]]
    wanted = [round(a / b * n) for a, b, n in zip(spacing, target, size, strict=True)]
    normal = [_normalised(channel.copy(), name, mask if inside else None)
              for channel, name, inside in zip(data, fake.schemes, fake.masked, strict=True)]  # fmt: skip
    volume = np.stack([resampled(channel, wanted, spacing, target, 3) for channel in normal]).astype(np.float32)
    with torch.inference_mode():
        of_folds = (_stitched(fake, state_of(fake, fold), volume, mirrored=mirrored) for fold in range(fake.folds))
        logits = sum(of_folds, start=torch.zeros(()))
        halves = np.asarray((logits / fake.folds).numpy())
    fine = np.stack([resampled(channel.astype(float), size, target, spacing, 1) for channel in halves])
    labels = np.zeros(shape, dtype=np.uint8)
    labels[box] = fine.astype(np.float16).argmax(axis=0)
    if fake.order:
        painted = np.zeros(size, dtype=np.uint8)
        for value, scores in zip(fake.order, fine.astype(np.float16), strict=True):
            painted[torch.sigmoid(torch.from_numpy(scores).float()).numpy() > 0.5] = value
        labels[box] = painted
    return labels.transpose(np.argsort(fake.transpose))


def _normalised(values: NDArray[np.float32], name: str, mask: NDArray[np.bool_] | None) -> NDArray[np.float32]:
    if name == "CTNormalization":
        return (np.clip(values, -120.0, 260.0) - 40.0) / 90.0
    inside = np.ones(values.shape, dtype=bool) if mask is None else mask
    values[inside] = (values[inside] - values[inside].mean()) / max(values[inside].std(), 1e-8)
    return values


def resampled(
    values: NDArray[Any], shape: Sequence[int], spacing: Sequence[float], wanted: Sequence[float], order: int
) -> NDArray[Any]:
    """nnU-Net's resampling of one channel: slices apart, by the nearest, where voxels are anisotropic."""
    if values.shape == tuple(shape):
        return values
    sizes = next((s for s in (spacing, wanted) if max(s) / min(s) > 3), None)
    apart = [axis for axis, s in enumerate(sizes or ()) if s == max(sizes or ())]
    if len(apart) != 1:
        return np.asarray(resize(values.astype(float), shape, order, mode="edge", anti_aliasing=False))
    slices = np.moveaxis(values.astype(float), apart[0], 0)
    across = [n for axis, n in enumerate(shape) if axis != apart[0]]
    flat = np.stack([resize(part, across, order, mode="edge", anti_aliasing=False) for part in slices])
    volume = np.moveaxis(flat, 0, apart[0])
    grid = [(n / m) * (np.arange(m) + 0.5) - 0.5 for n, m in zip(volume.shape, shape, strict=True)]
    return np.asarray(map_coordinates(volume, np.meshgrid(*grid, indexing="ij"), order=0, mode="nearest"))


def _stitched(fake: Fake, state: Mapping[str, Tensor], volume: NDArray[np.float32], *, mirrored: bool) -> Tensor:
    """Scores of a volume, summed in half precision over windows that are spread evenly."""
    margins = [max(w - n, 0) for w, n in zip(fake.patch, volume.shape[1:], strict=True)]
    padded = np.pad(volume, [(0, 0), *((m // 2, m - m // 2) for m in margins)])
    places = []
    for n, w in zip(padded.shape[1:], fake.patch, strict=True):
        count = int(np.ceil((n - w) / max(w / 2, 1))) + 1
        places.append([int(np.round((n - w) / max(count - 1, 1) * step)) for step in range(count)])
    peak = np.zeros(fake.patch)
    peak[tuple(n // 2 for n in fake.patch)] = 1
    weights = gaussian_filter(peak, [n / 8 for n in fake.patch], mode="constant")
    half = torch.from_numpy(weights / weights.max() * 10).half()
    half[half == 0] = half[half > 0].min()
    sums = torch.zeros(fake.outputs, *padded.shape[1:], dtype=torch.half)
    total = torch.zeros(padded.shape[1:], dtype=torch.half)
    axes = [axis + 2 for axis in fake.mirror or ()] if mirrored else []
    flips = [chosen for count in range(len(axes) + 1) for chosen in combinations(axes, count)]
    for start in product(*places):
        window = tuple(slice(a, a + n) for a, n in zip(start, fake.patch, strict=True))
        x = torch.from_numpy(padded[(slice(None), *window)].copy())[None]
        views = (scores_of(fake, state, x.flip(f)).flip(f) for f in flips)
        scores = sum(views, start=torch.zeros(())) / len(flips)
        sums[(slice(None), *window)] += scores[0] * half
        total[window] += half
    inside = tuple(slice(m // 2, m // 2 + n) for m, n in zip(margins, volume.shape[1:], strict=True))
    return (sums / total)[(slice(None), *inside)]
