"""VISTA3D by class prompts: one sliding window for all classes, labels without a score per class in memory.

The scores of a class are its embedding times the features of the class head. That is linear, so that windows can be
stitched as features, of which there are as many for one class as for a hundred; the labels of finished planes follow.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from monai.networks.nets import VISTA3D
from monai.transforms import Compose, Invertd

from medseg.bundle import Bundle
from medseg.bundle.promptable import CLASSES, PARTS
from medseg.errors import BundleError, UsageError
from medseg.inference.postprocessing import Postprocessing
from medseg.inference.sliding_window import Chunk

_VOXELS = 1 << 18
"""Voxels whose scores of all classes are in memory at once: 128 MB for 120 classes."""


def read_prompts(bundle: Bundle, wanted: Sequence[str] = ()) -> tuple[int, ...]:
    """The classes that a VISTA3D bundle is asked for: all that it names by itself, or the ``wanted`` structures.

    Raises ``UsageError`` if a structure is not one of the bundle's, ``BundleError`` if its classes cannot be read.
    """
    parsed, names = bundle.parsed(CLASSES, PARTS), bundle.labels
    parts = parsed.get(PARTS, default={}) or {}
    if not isinstance(parts, Mapping) or not all(isinstance(of, list) for of in parts.values()):
        raise BundleError(f"{PARTS} of {bundle.name} is no table of classes")
    values = {name.lower(): value for value, name in names.items()}
    if unknown := [name for name in wanted if name.lower() not in values]:
        known = ", ".join(list(values))
        raise UsageError(f"--structures {', '.join(unknown)}: {bundle.name} has no such structure; it has {known}")
    asked = [values[name.lower()] for name in wanted] or parsed.get(CLASSES) or list(names)
    if not isinstance(asked, list) or not all(type(value) is int and value in names for value in asked):
        raise BundleError(f"everything_labels of {bundle.name} are {asked!r}, expected numbers that channel_def names")
    return tuple(dict.fromkeys(int(part) for value in asked for part in parts.get(str(value), [value])))


def read_way_back(transforms: Any, bundle: Bundle) -> Postprocessing:
    """The post-processing once labels are there: one inversion of the preprocessing, by the nearest voxel."""
    listed = transforms.transforms if type(transforms) is Compose else ()
    back = [step for step in listed if isinstance(step, Invertd) and "pred" in step.keys]
    if len(back) != 1 or not all(back[0].nearest_interp):
        raise BundleError(f"postprocessing of {bundle.name} needs one Invertd of pred with nearest_interp")
    return Postprocessing(written=Compose(back))


class ClassScores(torch.nn.Module):
    """What a VISTA3D says of windows ``(N, 1, H, W, D)``: scores ``(N, K, H, W, D)`` of the classes ``values``.

    With more classes than features: the features ``(N, F, H, W, D)``, of which :meth:`labels` makes the scores.
    """

    def __init__(self, network: torch.nn.Module, values: Sequence[int], bundle: str) -> None:
        super().__init__()
        if not isinstance(network, VISTA3D):
            raise BundleError(f"the network of {bundle} is a {type(network).__name__}, expected VISTA3D")
        if max(values) >= network.class_head.class_embeddings.num_embeddings:
            raise BundleError(f"the network of {bundle} knows no class {max(values)}")
        self.encoder, self.head, self.values = network.image_encoder, network.class_head.image_post_mapping, values
        with torch.inference_mode():
            asked = torch.tensor(list(values), device=next(network.parameters()).device)
            found = network.class_head.class_embeddings(asked[:, None])
            found = network.class_head.mlp(found) if network.class_head.use_mlp else found
        self.embedding: torch.Tensor
        self.register_buffer("embedding", found[:, 0].clone())
        self.stitches_features = len(values) > found.shape[2]

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """Map windows to scores or features."""
        _, features = self.encoder(windows, with_point=False, with_label=True)
        mapped: torch.Tensor = self.head(features)
        if self.stitches_features:
            return mapped
        scores: torch.Tensor = self.embedding @ mapped.flatten(2)
        return scores.view(*scores.shape[:2], *mapped.shape[2:])

    def labels(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """Chunks with the label of every voxel in place of scores: the class that scores highest above 0, else 0."""
        embedding, table = self.embedding.float().cpu(), torch.tensor([float(value) for value in self.values])
        for chunk in chunks:
            flat = chunk.scores.flatten(1)
            labels = torch.empty(flat.shape[1])
            for begin in range(0, flat.shape[1], _VOXELS):
                part = flat[:, begin : begin + _VOXELS]
                best, index = (embedding @ part if self.stitches_features else part).max(dim=0)
                labels[begin : begin + _VOXELS] = torch.where(best > 0, table[index], 0.0)
            yield Chunk(chunk.start, labels.view(1, *chunk.scores.shape[1:]))
