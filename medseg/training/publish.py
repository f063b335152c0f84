"""What a run gives to its bundle: a model, and the discriminator that judges beside it, tried on held-out cases."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from torch import nn

from medseg.bundle import Bundle
from medseg.bundle.checkpoints import read_weights
from medseg.bundle.training_run import TrainingRun
from medseg.errors import UsageError
from medseg.files import atomic_path, sha256_file, write_bytes, write_json
from medseg.training.adversary import AdversarialLoss
from medseg.training.data import Draw, TrainingDataset
from medseg.training.judge import Judge
from medseg.training.trainer import AdversarialSegmentationTrainer
from medseg.trust.discriminator import Judging, accept_discriminator
from medseg.trust.discriminator_acceptance import ACCEPTANCE_NAME, DISCRIMINATOR_NAME, DiscriminatorAcceptance

Accept = Callable[[Mapping[str, Any] | None, str], DiscriminatorAcceptance | None]


def acceptance_of(
    trainer: AdversarialSegmentationTrainer,
    parser: ConfigParser,
    classes: int,
    judge: Judge | None,
    state: Mapping[str, Any] | None = None,
    weights_sha256: str = "",
) -> DiscriminatorAcceptance | None:
    """Try the discriminator of a run on ``validate#dataset`` of its configuration: its judge, or else its opponent.

    Parameters
    ----------
    trainer
        The run, at its end.
    parser
        Its configuration. Its cases are held out if the id ``fold`` is one of the folds.
    classes
        Channels of the generator's output.
    judge
        The judge, if the run has one.
    state
        Weights of the opponent, if not those that it has now; there is no judge then.
    weights_sha256
        Of the file that the weights are published in.

    Returns
    -------
    None where there is nothing to try: no discriminator of segmentations, one that never learnt, no validation.
    """
    adversary, cases = trainer.adversary, parser.get_parsed_content("validate#dataset", default=None)
    if adversary is None or not adversary.judges_labels or not hasattr(cases, "__len__"):
        return None
    if judge is None and not trainer.schedule.share:
        return None
    discriminator: nn.Module = adversary.discriminator if judge is None else judge.network
    if judge is None and state is not None:
        discriminator = copy.deepcopy(discriminator)
        discriminator.load_state_dict(state)
    judging = Judging(
        patch=_patch(trainer.data_loader.dataset),
        classes=classes,
        threshold=(adversary.loss if judge is None else AdversarialLoss()).threshold,
        regions=adversary.activation == "sigmoid",
    )
    held_out = int(parser.get_parsed_content("fold", default=-1)) >= 0
    return accept_discriminator(discriminator, cases, judging, held_out=held_out, weights_sha256=weights_sha256)


def _patch(dataset: Any) -> tuple[int, ...]:
    """Side of the patches that a run is trained with."""
    first = dataset[Draw(0, 0)] if isinstance(dataset, TrainingDataset) else dataset[0]
    return tuple(int(n) for n in first["image"].shape[1:])


def publish(
    bundle: Bundle,
    folder: Path,
    run: TrainingRun,
    judge: Judge | None,
    opponent: Mapping[str, Any] | None,
    accept: Accept,
) -> Path:
    """Copy a model of the run in ``folder``, and its discriminator, into the bundle, and state the run there.

    ``run.model`` says which weights are taken. The discriminator is the ``judge``; without one it is the opponent of
    that model, whose definition is ``opponent``. ``accept`` tries it, from its weights and the sum of their file.
    """
    chosen = folder / "checkpoints" / f"{run.model}.pt"
    if not chosen.exists():
        raise UsageError(f"there is no {run.model} model to publish: no validation has run; lower val_interval")
    target = bundle.path / "models" / "model.pt"
    with atomic_path(target) as partial:
        shutil.copyfile(chosen, partial)
    (target.with_suffix(".safetensors")).unlink(missing_ok=True)  # of the weights before; packing writes it anew
    beside = chosen.with_name(f"{run.model}_discriminator.pt")
    if judge is not None:
        publish_discriminator(bundle, judge.network.state_dict(), judge.definition, accept)
    elif beside.exists():
        publish_discriminator(bundle, read_weights(beside), opponent, accept)
    replace(run, weights_sha256=sha256_file(target)).write(bundle)
    return target


def publish_discriminator(
    bundle: Bundle, state: Mapping[str, Any], definition: Mapping[str, Any] | None, accept: Accept
) -> DiscriminatorAcceptance | None:
    """Write a discriminator, its definition and what came of trying it into the bundle's ``trust/``."""
    from safetensors.torch import save

    (bundle.path / ACCEPTANCE_NAME).unlink(missing_ok=True)  # of the weights before
    weights = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
    write_bytes(bundle.path / DISCRIMINATOR_NAME, save(weights))
    if definition is not None:
        write_json(bundle.path / "trust" / "discriminator.json", definition)
    if (acceptance := accept(state, sha256_file(bundle.path / DISCRIMINATOR_NAME))) is not None:
        acceptance.write(bundle.path / ACCEPTANCE_NAME)
    return acceptance
