"""What a bundle's networks say of a prepared image: scores of all windows, averaged as where the networks come from.

Three kinds of networks take a way of their own. Of a VISTA3D and of a stack of convolutions features are stitched, and
their many scores follow from finished planes; a network of slices sees windows that are one voxel thick.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

from medseg.bundle import Bundle
from medseg.errors import UsageError
from medseg.inference.config import InferenceConfig
from medseg.inference.convolution_stack import Head, split_stack
from medseg.inference.engines import EngineChoice, build_engine
from medseg.inference.ensemble import ensemble_of, load_models, members_of
from medseg.inference.prompts import ClassScores
from medseg.inference.sliding_window import EVEN, Chunk, WindowSettings, averaged_windows

Timed = Callable[[Callable[[torch.Tensor], torch.Tensor]], Callable[[torch.Tensor], torch.Tensor]]
"""Gives a function whose calls are counted."""


class Scoring:
    """The networks of a bundle, and those that are averaged with them, ready to run.

    ``network`` is the bundle's own, on ``device``; ``ensemble`` names the others, ``mirrored`` says whether windows are
    seen mirrored, too. Raises ``UsageError`` for an ensemble of networks that are asked by class.
    """

    def __init__(
        self,
        bundle: Bundle,
        config: InferenceConfig,
        network: torch.nn.Module,
        choice: EngineChoice,
        device: str,
        *,
        ensemble: Sequence[str] = (),
        mirrored: bool = False,
    ) -> None:
        self._config = config
        self._classes: ClassScores | None = None
        self._head: Head | None = None
        models = [*members_of(network), *load_models(bundle, network, ensemble, device)]
        alone = len(models) == 1
        whole = max(config.windows.roi_size) <= 0 and choice.engine.startswith(("torch", "cuda"))
        if config.prompts:
            if not alone:
                raise UsageError(f"--ensemble: {bundle.name} is asked by class, and stands alone; leave the option out")
            self._classes = ClassScores(network, config.prompts, bundle.name)
            models = [self._classes]
        elif config.slice_axis is not None:
            models = [_Slicewise(model, config.slice_axis) for model in models]
        elif alone and whole and not mirrored and (split := split_stack(network)):
            models, self._head = [split[0]], split[1]
        self._engines = [build_engine(choice.engine, model, device) for model in models]

    def chunks(
        self, image: torch.Tensor, mirrored: Sequence[int], timed: Timed, windows: WindowSettings | None = None
    ) -> Iterator[Chunk]:
        """Scores of an image ``(C, H, W, D)``, float32, also mirrored along array axes; :meth:`labels` takes them.

        In the bundle's windows, if no others are given.
        """
        activation = self._config.post.decoding.activation
        apart = self._config.windows.mode == EVEN and activation == "none"  # as nnU-Net averages its folds
        together = [[engine] for engine in self._engines] if apart else [self._engines]
        networks = [timed(ensemble_of(engines, mirrored, activation)) for engines in together]
        chunks = averaged_windows(image, windows or self._config.windows, networks)
        return chunks if self._head is None else self._head(chunks)

    def labels(self, chunks: Iterable[Chunk]) -> Iterable[Chunk]:
        """The same, but for networks that are asked by class: their labels."""
        return chunks if self._classes is None else self._classes.labels(chunks)


class _Slicewise(torch.nn.Module):
    """A network of slices, for windows that are one voxel thick along an array axis (0, 1, 2)."""

    def __init__(self, network: torch.nn.Module, axis: int) -> None:
        super().__init__()
        self.network, self.axis = network, axis + 2

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """Map ``(N, C, H, W, D)`` to scores ``(N, K, H, W, D)``."""
        scores = self.network(windows.squeeze(self.axis))
        first: torch.Tensor = scores[0] if isinstance(scores, list | tuple) else scores
        return first.unsqueeze(self.axis)
