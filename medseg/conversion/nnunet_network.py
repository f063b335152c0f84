"""The network that a plan of nnU-Net describes, as a definition for a bundle, and its weights under our names."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medseg.errors import BundleError
from medseg.json_shape import FLAG, TEXT, Spec, either, misfit, number, whole, without_nulls

if TYPE_CHECKING:
    from torch import Tensor

_MOST_STAGES = 12
_MOST_ELEMENTS = 1 << 48
"""Of a network without memory: what its weights are is told by their names and shapes afterwards."""


def _or_list(spec: Spec) -> Spec:
    """One value for all stages (or axes), or a list with one for each."""
    return either(spec, ((lambda value: isinstance(value, list) and not misfit(value, [spec])), "a list of them"))


_COUNT, _DEPTHS, _SIZES = whole(1, 8192), _or_list(whole(1, 64)), _or_list(_or_list(whole(1, 1024)))
_FORM = {
    "n_stages!": whole(2, _MOST_STAGES),
    "features_per_stage!": _or_list(_COUNT),
    **dict.fromkeys(("kernel_sizes!", "strides!"), _SIZES),
    **dict.fromkeys(("n_conv_per_stage", "n_blocks_per_stage", "n_conv_per_stage_decoder!"), _DEPTHS),
    **dict.fromkeys(("norm_op", "nonlin"), TEXT),
    **dict.fromkeys(("conv_bias", "nonlin_first"), FLAG),
    "norm_op_kwargs": {"eps": number(0, 1)},
    "nonlin_kwargs": {"negative_slope": number(-10, 10)},
    "stem_channels": _COUNT,
}
_OLD_FORM = {
    "UNet_base_num_features!": _COUNT,
    "unet_max_num_features!": _COUNT,
    "n_conv_per_stage_encoder!": [whole(1, 64)],
}
_NETWORKS = {"PlainConvUNet": False, "ResidualEncoderUNet": True}
_ACTIVATIONS = {"LeakyReLU": "LEAKYRELU", "ReLU": "RELU"}

_OURS = (
    (r"encoder\.stem\.convs\.(\d+)\.", r"stem."),
    (r"encoder\.stages\.(\d+)\.(?:0\.convs|blocks)\.(\d+)\.", r"down.\1.\2."),
    (r"decoder\.stages\.(\d+)\.convs\.(\d+)\.", r"merge.\1.\2."),
    (r"decoder\.transpconvs\.(\d+)\.", r"up.\1.conv."),
    (r"decoder\.seg_layers\.\d+\.", r"head."),
)


@dataclass(frozen=True)
class Architecture:
    """One of nnU-Net's two networks; per stage, finest first, in the order of the origin's axes."""

    residual: bool
    filters: tuple[int, ...]
    kernels: tuple[tuple[int, ...], ...]
    strides: tuple[tuple[int, ...], ...]
    encoder_depths: tuple[int, ...]
    decoder_depths: tuple[int, ...]
    bias: bool
    eps: float
    activation: tuple[str, dict[str, Any]]

    @property
    def dimensions(self) -> int:
        """2 or 3."""
        return len(self.kernels[0])

    @property
    def is_dynunet(self) -> bool:
        """Whether MONAI's ``DynUNet`` is this network: its decoder takes the kernels of the stage below the skip."""
        pads = ((k - s + 1) // 2 == (k - 1) // 2 for stage in zip(self.kernels, self.strides, strict=True)
                for k, s in zip(*stage, strict=True))  # fmt: skip
        alike = len(set(self.kernels)) == 1 and {*self.encoder_depths, *self.decoder_depths} == {2}
        return not self.residual and alike and len(self.filters) > 2 and all(pads)

    def definition(self, channels: int, outputs: int, norm: str) -> dict[str, Any]:
        """``network_def`` of a bundle, for so many channels of images and scores."""
        named = ["INSTANCE", {"affine": True, "eps": self.eps}] if norm == "INSTANCE" else [norm, {"eps": self.eps}]
        shared = {"spatial_dims": self.dimensions, "in_channels": channels, "out_channels": outputs}
        per_stage = {"filters": list(self.filters), "strides": _listed(self.strides)}
        if self.is_dynunet and norm == "INSTANCE":
            return {
                "_target_": "DynUNet", **shared, "kernel_size": _listed(self.kernels), **per_stage,
                "upsample_kernel_size": _listed(self.strides[1:]), "norm_name": named,
                "act_name": [*self.activation], "trans_bias": self.bias,
            }  # fmt: skip
        return {
            "_target_": "medseg.networks.NNUNet", **shared, **per_stage, "kernel_sizes": _listed(self.kernels),
            "encoder_depths": list(self.encoder_depths), "decoder_depths": list(self.decoder_depths),
            "residual": self.residual, "bias": self.bias, "norm": named, "act": [*self.activation],
        }  # fmt: skip


def _listed(sizes: Sequence[Sequence[int]]) -> list[list[int]]:
    return [list(size) for size in sizes]


def read_architecture(configuration: Mapping[str, Any], where: str) -> Architecture:
    """The network of a configuration of plans, in the form of today or that of 2023.

    Raises ``BundleError`` if it is another network, or not described as these two are.
    """
    name, kwargs = _described(configuration, where)
    residual, axes = _NETWORKS.get(name), len(configuration["patch_size"])
    if residual is None:
        raise BundleError(
            f"{where}: the network is {name[:80]!r}, expected {' or '.join(_NETWORKS)}; medseg knows no other"
        )
    if wrong := misfit(kwargs, _FORM):
        raise BundleError(f"{where}, arch_kwargs: {wrong}; the plans are damaged")
    kwargs = without_nulls(kwargs, _FORM)
    stages, depths = kwargs["n_stages"], "n_blocks_per_stage" if residual else "n_conv_per_stage"
    filters = _each(kwargs["features_per_stage"], stages, where)
    slope = {"negative_slope": float((kwargs.get("nonlin_kwargs") or {}).get("negative_slope", 0.01))}
    activation = _ACTIVATIONS.get(str(kwargs.get("nonlin") or "").rpartition(".")[2])
    odd = {
        "nonlin": activation is None,
        "norm_op": not re.search(r"(Instance|Batch)Norm[23]d$", str(kwargs.get("norm_op"))),
        "nonlin_first": bool(kwargs.get("nonlin_first")),
        "stem_channels": kwargs.get("stem_channels") not in (None, filters[0]),
        "block": str(kwargs.get("block", "BasicBlockD")).rpartition(".")[2] != "BasicBlockD",
    }
    if unknown := next((key for key, found in odd.items() if found), None):
        raise BundleError(f"{where}: {unknown} of the network is {kwargs.get(unknown)!r}, which medseg does not know")
    kernels, strides = (
        tuple(_sizes(size, axes, where) for size in _each(kwargs[key], stages, where))
        for key in ("kernel_sizes", "strides")
    )
    steps = [math.prod(stage[axis] for stage in strides) for axis in range(axes)]
    windows = zip(configuration["patch_size"], steps, strict=True)
    if (
        any(size % 2 == 0 for kernel in kernels for size in kernel)
        or max(strides[0]) > 1
        or any(n % s for n, s in windows)
    ):
        raise BundleError(
            f"{where}: kernels of even size, a first stride above 1, or a patch_size that is no multiple of {steps}:"
            " its scores would not lie where its images do; the plans are damaged"
        )
    return Architecture(
        residual,
        filters,
        kernels,
        strides,
        _each(kwargs.get(depths, 0), stages, where),
        _each(kwargs["n_conv_per_stage_decoder"], stages - 1, where)[::-1],
        bool(kwargs.get("conv_bias")),
        float((kwargs.get("norm_op_kwargs") or {}).get("eps", 1e-5)),
        (activation or "", {**slope, "inplace": True} if activation == "LEAKYRELU" else {"inplace": True}),
    )


def _described(configuration: Mapping[str, Any], where: str) -> tuple[str, Mapping[str, Any]]:
    """Name and arguments of the network; those of older plans as newer ones state them."""
    new = {"architecture": {"network_class_name!": TEXT, "arch_kwargs!": {}}}
    if wrong := misfit(configuration, new):
        raise BundleError(f"{where}: {wrong}; the plans are damaged")
    if "architecture" in configuration:
        stated = configuration["architecture"]
        return stated["network_class_name"].rpartition(".")[2], stated["arch_kwargs"]
    if wrong := misfit(configuration, {"UNet_class_name!": TEXT, **_OLD_FORM}):
        raise BundleError(f"{where}: {wrong}; expected the network's `architecture`, or the keys of older plans")
    depths, widest = configuration["n_conv_per_stage_encoder"], configuration["unet_max_num_features"]
    first = configuration["UNet_base_num_features"]
    return configuration["UNet_class_name"], {
        "n_stages": len(depths),
        "features_per_stage": [min(first * 2**stage, widest) for stage in range(min(len(depths), _MOST_STAGES))],
        "kernel_sizes": configuration.get("conv_kernel_sizes"),
        "strides": configuration.get("pool_op_kernel_sizes"),
        "n_conv_per_stage": depths,
        "n_blocks_per_stage": depths,
        "n_conv_per_stage_decoder": configuration.get("n_conv_per_stage_decoder"),
        "conv_bias": True,
        "norm_op": "InstanceNorm3d",
        "nonlin": "LeakyReLU",
    }


def _each(value: Any, count: int, where: str) -> tuple[Any, ...]:
    """One value per stage."""
    values = tuple(value) if isinstance(value, list) else (value,) * count
    if len(values) != count or 0 in values:
        raise BundleError(f"{where}: {len(values)} values for {count} stages, or 0; the plans are damaged")
    return values


def _sizes(value: Any, axes: int, where: str) -> tuple[int, ...]:
    sizes = tuple(value) if isinstance(value, list) else (value,) * axes
    if len(sizes) != axes or not 2 <= axes <= 3:
        raise BundleError(
            f"{where}: a kernel or stride of {len(sizes)} axes for windows of {axes}; the plans are damaged"
        )
    return sizes


def converted(
    state: Mapping[str, Tensor], architecture: Architecture, channels: int, outputs: int, where: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The definition of a network, and its state of nnU-Net's: copies in other names, without deep supervision.

    Raises ``BundleError`` if the weights are of another network than the plans describe.
    """
    last = len(architecture.filters) - 2
    named = {_our_name(key, last): value for key, value in state.items() if _is_needed(key, last)}
    norm = "BATCH" if any(key.endswith(".running_mean") for key in named) else "INSTANCE"
    definition = architecture.definition(channels, outputs, norm)
    if definition["_target_"] == "DynUNet":
        named = {_dynunet_name(key, last): value for key, value in named.items() if not _cancelled(key)}
    network = _without_memory(definition)
    whole = {key: value for key, value in network.state_dict().items() if not key.startswith("skip_layers.")}
    expected, found = ({key: value.shape for key, value in tensors.items()} for tensors in (whole, named))
    if expected != found:
        wrong = next(key for key in {**expected, **found} if expected.get(key) != found.get(key))
        shapes = [None if shape is None else tuple(shape) for shape in (expected.get(wrong), found.get(wrong))]
        raise BundleError(
            f"{where} does not hold the network that plans.json describes: {wrong} has the shape {shapes[1]},"
            f" expected {shapes[0]}; a trainer of its own may have built another one"
        )
    unfit = (
        key
        for key, value in named.items()
        if value.is_floating_point() != whole[key].is_floating_point() or not value.isfinite().all()
    )
    if bad := next(unfit, None):
        raise BundleError(f"{where} holds numbers of another kind than weights, or not finite, in {bad}; copy it again")
    whole_state = {key: value.detach().float().contiguous().clone() if value.is_floating_point() else value.clone()
                   for key, value in named.items()}  # fmt: skip
    network.load_state_dict(whole_state, strict=False, assign=True)
    return definition, {key: value.detach() for key, value in network.state_dict().items()}


def _without_memory(definition: Mapping[str, Any]) -> Any:
    """The network, its weights without memory: its shapes are what is asked for."""
    from monai.networks.nets import DynUNet

    from medseg.bundle.network_building import frugal
    from medseg.networks import NNUNet

    kwargs = {key: value for key, value in definition.items() if key != "_target_"}
    with frugal(_MOST_ELEMENTS, str(definition["_target_"]), without_memory=True):
        return (DynUNet if definition["_target_"] == "DynUNet" else NNUNet)(**kwargs)


def _is_needed(key: str, last: int) -> bool:
    """Whether a tensor is one of the network's, once, and not of a head for deep supervision."""
    if key.startswith("decoder.encoder.") or ".all_modules." in key:
        return False
    return not key.startswith("decoder.seg_layers.") or key.startswith(f"decoder.seg_layers.{last}.")


def _our_name(key: str, last: int) -> str:
    """A tensor's name in :class:`medseg.networks.NNUNet`, whose decoder counts from the finest stage."""
    name = key.replace(".norm.", ".adn.N.")
    for pattern, replacement in _OURS:
        name = re.sub(f"^{pattern}", replacement, name)
    return re.sub(r"^(merge|up)\.(\d{1,3})\.", lambda found: f"{found[1]}.{last - int(found[2])}.", name)


def _cancelled(key: str) -> bool:
    """Whether it is the bias of a convolution before an instance norm, which takes every constant away."""
    return key.startswith(("down.", "merge.")) and key.endswith(".conv.bias")


def _dynunet_name(key: str, last: int) -> str:
    """A tensor's name in MONAI's ``DynUNet``, from ours."""
    part, number, *rest = key.split(".")
    if part == "head":
        return f"output_block.conv.conv.{number}"
    stage = int(number)
    if part == "up":
        return f"upsamples.{last - stage}.transp_conv.{'.'.join(rest)}"
    inner = rest[1:-1]  # conv, or adn.N
    block = (
        f"{'conv' if inner == ['conv'] else 'norm'}{int(rest[0]) + 1}{'.conv' if inner == ['conv'] else ''}.{rest[-1]}"
    )
    if part == "merge":
        return f"upsamples.{last - stage}.conv_block.{block}"
    place = "input_block" if stage == 0 else "bottleneck" if stage == last + 1 else f"downsamples.{stage - 1}"
    return f"{place}.{block}"
