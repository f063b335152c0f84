"""Published encoders that a plan can start from: the network around each, what it asks of a patch, what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Encoder:
    """An encoder with the layout of published weights, under a new decoder.

    Every axis is halved alike, since that is how it was trained. ``width`` is that of the plain U-Net which costs as
    much memory and time per voxel (measured forwards and backwards on one core); ``parameters`` counts millions.
    """

    name: str
    target: str
    halvings: int
    width: int
    parameters: float
    options: Mapping[str, Any] = field(default_factory=dict)

    def network_def(self, channels: int, classes: int) -> dict[str, Any]:
        """The network for a config: MONAI's own class where it has one."""
        sizes = {"spatial_dims": 3, "in_channels": channels, "out_channels": classes}
        return {"_target_": self.target, **sizes, **self.options}

    def match(self, weights: str | Path, channels: int) -> tuple[str, dict[str, Tensor]]:
        """What of a file of weights fits, in one line, and its tensors that the encoder has a place for.

        What belongs to another architecture is a ``UsageError``.
        """
        from monai.bundle import ConfigParser

        from medseg.networks.encoders import load_encoder, read_checkpoint

        network = ConfigParser({"network": self.network_def(channels, 2)}).get_parsed_content("network")
        found = read_checkpoint(weights)
        match = load_encoder(network.encoder, found)
        missing = [name for name in match.missing if not name.endswith("num_batches_tracked")]  # old files lack them
        if match.misfits or missing:
            raise UsageError(
                f"{weights} is of another architecture than {self.name}: {len(match.misfits)} tensors do not fit "
                f"({', '.join(match.misfits[:2])}), {len(missing)} are missing; choose its encoder, or other weights"
            )
        used = network.encoder.state_dict().keys() & found.keys()
        return str(match).partition("\n")[0], {name: found[name].contiguous() for name in sorted(used)}


def _resnet(depth: int, width: int, parameters: float) -> Encoder:
    return Encoder(f"resnet{depth}", "FlexibleUNet", 5, width, parameters, {"backbone": f"resnet{depth}"})


ENCODERS = {
    encoder.name: encoder
    for encoder in (
        _resnet(18, 19, 40.0),
        _resnet(34, 23, 71.0),
        _resnet(50, 27, 68.0),
        Encoder("vgg16", "medseg.networks.VGGUNet", 4, 60, 55.0),
    )
}


def encoder_named(name: str | None, weights: str | Path | None) -> Encoder | None:
    """The encoder of a name. An unknown one, or weights for none, is a ``UsageError``."""
    if name is None:
        if weights is not None:
            raise UsageError(f"--weights {weights} belong to an encoder; say which with --encoder {'|'.join(ENCODERS)}")
        return None
    if name not in ENCODERS:
        raise UsageError(f"found the encoder {name!r}, expected one of {', '.join(ENCODERS)}")
    return ENCODERS[name]
