"""Checkpoints in the key layouts of published ones, with random values, written down name by name."""

import torch
from torch import Tensor


def batch_norm(name: str, width: int) -> dict[str, Tensor]:
    return {
        f"{name}.weight": torch.rand(width) + 0.5,
        f"{name}.bias": torch.randn(width),
        f"{name}.running_mean": torch.randn(width),
        f"{name}.running_var": torch.rand(width) + 0.5,
        f"{name}.num_batches_tracked": torch.tensor(7),
    }


def medicalnet_resnet18() -> dict[str, dict[str, Tensor]]:
    """``resnet_18.pth`` of MedicalNet: ``state_dict`` → ``module.…``, 3D kernels, shortcuts without weights."""
    state = {"conv1.weight": torch.randn(64, 1, 7, 7, 7) * 0.05, **batch_norm("bn1", 64)}
    before = 64
    for level, width in enumerate((64, 128, 256, 512), start=1):
        for block in range(2):
            place = f"layer{level}.{block}"
            state[f"{place}.conv1.weight"] = torch.randn(width, before, 3, 3, 3) * 0.02
            state |= batch_norm(f"{place}.bn1", width)
            state[f"{place}.conv2.weight"] = torch.randn(width, width, 3, 3, 3) * 0.02
            state |= batch_norm(f"{place}.bn2", width)
            before = width
    assert len(state) == 102
    return {"state_dict": {f"module.{name}": value for name, value in state.items()}}


def imagenet_resnet50() -> dict[str, Tensor]:
    """torchvision's ``resnet50``: 2D kernels for three colours, shortcuts with weights, a classifier."""
    state = {"conv1.weight": torch.randn(64, 3, 7, 7) * 0.05, **batch_norm("bn1", 64)}
    before = 64
    for level, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), start=1):
        for block in range(blocks):
            place = f"layer{level}.{block}"
            sizes = ((width, before, 1), (width, width, 3), (4 * width, width, 1))
            for number, (out, inside, side) in enumerate(sizes, start=1):
                state[f"{place}.conv{number}.weight"] = torch.randn(out, inside, side, side) * 0.02
                state |= batch_norm(f"{place}.bn{number}", out)
            if not block:
                state[f"{place}.downsample.0.weight"] = torch.randn(4 * width, before, 1, 1) * 0.02
                state |= batch_norm(f"{place}.downsample.1", 4 * width)
            before = 4 * width
    return {**state, "fc.weight": torch.randn(1000, 2048), "fc.bias": torch.randn(1000)}


def imagenet_vgg16_bn(channels: tuple[int, ...]) -> dict[str, Tensor]:
    """torchvision's ``vgg16_bn``, with given widths: the places of its layers as torchvision numbers them."""
    convolutions = (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)
    widths = [width for width, count in zip(channels, (2, 2, 3, 3, 3), strict=True) for _ in range(count)]
    state: dict[str, Tensor] = {}
    before = 3
    for place, width in zip(convolutions, widths, strict=True):
        state[f"features.{place}.weight"] = torch.randn(width, before, 3, 3) * 0.1
        state[f"features.{place}.bias"] = torch.randn(width)
        state |= batch_norm(f"features.{place + 1}", width)
        before = width
    return {**state, "classifier.0.weight": torch.randn(8, 8), "classifier.0.bias": torch.randn(8)}
