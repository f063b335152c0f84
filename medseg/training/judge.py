"""The judge: a discriminator that learns, after a run's last epoch, which segmentation belongs to an image.

The generator's opponent learns what predictions look like, and may take the size of a structure for its truth. The
fakes of the judge are wrong pairs alone, as often too large as too small, and it sees the image inside of each label
(``products`` of :class:`medseg.networks.ConditionalPatchDiscriminator`). It starts fresh, and depends on nothing but
the training cases and a seed: whatever the generator has become, and whether the run was stopped, it is the same to the
bit.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.data import list_data_collate
from torch.optim.lr_scheduler import CosineAnnealingLR

from medseg.bundle.checkpoints import read_data
from medseg.errors import BundleError
from medseg.networks.discriminator import ConditionalPatchDiscriminator
from medseg.training.adversary import Activation, Adversary
from medseg.training.checkpoints import save_whole
from medseg.training.data import DrawSampler, TrainingDataset
from medseg.training.schedule import AdversarialSchedule
from medseg.training.trainer import AdversarialSegmentationTrainer, JudgeEvents

JUDGE_NAME = "judge.pt"
_CHANNELS = 16
_logger = logging.getLogger("medseg.training")


@dataclass(frozen=True)
class JudgeRecipe:
    """How a judge learns; the same for every bundle.

    It makes ``updates`` from each of ``steps`` batches of ``batch`` crops, each with other wrong pairs; the
    ``learning_rate`` falls by half a cosine; ``noise`` is the standard deviation of that on both segmentations.
    """

    steps: int
    batch: int = 2
    updates: int = 2
    learning_rate: float = 1e-3
    noise: float = 0.05
    activation: Activation = "softmax"
    seed: int = 0


@dataclass(frozen=True)
class Judge:
    """A judge that has learnt, in evaluation mode, what it is (for ``trust/discriminator.json``), and what it cost."""

    network: ConditionalPatchDiscriminator
    definition: Mapping[str, Any]
    recipe: JudgeRecipe
    core_seconds: float

    def as_json(self) -> dict[str, Any]:
        """For ``run.json``."""
        return {**asdict(self.recipe), "core_seconds": round(self.core_seconds, 1)}


def judge_definition(discriminator: Mapping[str, Any]) -> dict[str, Any] | None:
    """A judge for where this discriminator learns; None if it is of another class."""
    if str(discriminator.get("_target_")).rpartition(".")[2] != ConditionalPatchDiscriminator.__name__:
        return None
    channels = max(_CHANNELS, int(discriminator.get("channels", _CHANNELS)))
    return {**discriminator, "channels": channels, "products": True}


def learn_judge(
    dataset: TrainingDataset,
    definition: Mapping[str, Any],
    recipe: JudgeRecipe,
    device: str | torch.device = "cpu",
    watch: Callable[[int], None] = lambda _: None,
) -> Judge:
    """Let a fresh judge learn from crops round the structures of the cases.

    Parameters
    ----------
    dataset
        Gives ``image`` ``(C, H, W[, D])`` and ``label`` for each draw; the cases in its memory are shared. What crops
        with a ``foreground_key``, such as :class:`medseg.transforms.RandSpatiald`, puts every crop on a structure: of
        one without any there is no wrong pair, and it teaches nothing.
    definition
        Of :func:`judge_definition`.
    watch
        Called with the number of steps that are done, 0 at the beginning.
    """
    begun = time.process_time()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = _fresh(definition)
    network.to(device)
    optimizer = torch.optim.AdamW(network.parameters(), recipe.learning_rate, betas=(0.5, 0.99), weight_decay=0.0)
    updates = recipe.steps * recipe.updates
    adversary = Adversary(
        network,
        optimizer,
        AdversarialSchedule(),
        scheduler=CosineAnnealingLR(optimizer, max(1, updates), eta_min=0.02 * recipe.learning_rate),
        max_norm=10.0,
        wrong_pairs=1.0,
        noise=recipe.noise,
        activation=recipe.activation,
        seed=recipe.seed,
    )
    cases, draws = _on_structures(dataset), iter(DrawSampler(len(dataset), recipe.batch, recipe.seed))
    for step in range(recipe.steps):
        watch(step)
        batch = list_data_collate([cases[next(draws)] for _ in range(recipe.batch)])
        image, label = (torch.as_tensor(batch[key]).to(device) for key in ("image", "label"))
        teaches = (label > 0).flatten(1).any(1)
        if not teaches.any():
            continue
        nothing = torch.zeros(len(label), int(definition["label_channels"]), *label.shape[2:], device=device)[teaches]
        for _ in range(recipe.updates):
            adversary.learn(image[teaches], label[teaches], nothing, 1.0, update=True)
    watch(recipe.steps)
    return Judge(network.eval(), definition, recipe, time.process_time() - begun)


def _on_structures(dataset: TrainingDataset) -> TrainingDataset:
    found = copy.copy(dataset)
    found.transform = copy.deepcopy(dataset.transform)
    for transform in found.transform.flatten().transforms:
        if getattr(transform, "foreground_key", None):
            transform.prob_foreground = 1.0
    return found


def judge_of(trainer: AdversarialSegmentationTrainer, parser: ConfigParser, folder: Path) -> Judge | None:
    """The judge of a run at its end, which learns for ``judge_steps`` of the configuration, or has learnt before.

    It is kept in ``folder``. None where the configuration wants none, or there is none to have: images are judged, or
    cases do not come from a :class:`~medseg.training.data.TrainingDataset`.
    """
    adversary, dataset = trainer.adversary, getattr(trainer.data_loader, "dataset", None)
    steps = int(parser.get_parsed_content("judge_steps", default=0))
    definition = judge_definition(parser.config.get("discriminator_def") or {})
    if steps < 1 or adversary is None or not adversary.judges_labels or definition is None:
        return None
    if not isinstance(dataset, TrainingDataset):
        return None
    recipe, path = JudgeRecipe(steps, activation=adversary.activation, seed=dataset.seed), folder / JUDGE_NAME
    if kept := _kept(path, definition, recipe):
        return kept
    _logger.info("the judge learns from the training cases, in %d steps", steps)

    def watch(done: int) -> None:
        trainer.state.judge_steps = done, steps
        trainer.fire_event(JudgeEvents.PROGRESSED)

    judge = learn_judge(dataset, definition, recipe, trainer.state.device, watch)
    _logger.info("the judge has learnt, in %.0f core-seconds", judge.core_seconds)
    weights = {name: tensor.cpu().contiguous() for name, tensor in judge.network.state_dict().items()}
    save_whole({"made_by": _made_by(definition, recipe), "cost": judge.core_seconds, "weights": weights}, path)
    return judge


def _made_by(definition: Mapping[str, Any], recipe: JudgeRecipe) -> dict[str, Any]:
    return {"definition": dict(definition), "recipe": asdict(recipe)}


def _kept(path: Path, definition: Mapping[str, Any], recipe: JudgeRecipe) -> Judge | None:
    """The judge that an earlier part of the run has left, unless it is to learn in another way now, or is damaged."""
    if not path.is_file():
        return None
    network = _fresh(definition)
    try:
        content = read_data(path)
        if content["made_by"] != _made_by(definition, recipe):
            return None
        network.load_state_dict(content["weights"])
        return Judge(network.eval(), definition, recipe, float(content["cost"]))
    except (BundleError, RuntimeError, LookupError, TypeError, ValueError) as error:
        _logger.warning("%s cannot be read (%s): the judge learns anew", path, type(error).__name__)
        return None


def _fresh(definition: Mapping[str, Any]) -> ConditionalPatchDiscriminator:
    return ConditionalPatchDiscriminator(**{key: one for key, one in definition.items() if key != "_target_"})
