"""Several networks that differ by their seed alone, and one that learns from all of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from medseg.bundle import Bundle
from medseg.errors import UsageError
from medseg.training.checkpoints import Checkpoints
from medseg.training.run import TrainingResult, train_bundle

FOLDER = "teachers"
_logger = logging.getLogger("medseg.training")


def train_with_teachers(
    bundle: str | PathLike[str],
    count: int,
    *,
    output: str | PathLike[str],
    resume: bool = False,
    tell: Callable[[str], None] = _logger.info,
    overrides: Mapping[str, Any] | None = None,
    **options: Any,
) -> TrainingResult:
    """Train ``count`` networks into ``output/teachers/0``, ``1`` …, and one that learns from them into ``output``.

    Their mean is better than each of them (by chance each errs elsewhere), but costs as many passes; the one that
    learns from it (:class:`~medseg.training.distillation.Distillation`) costs one. What it keeps of the gain is for
    each task to measure. Teachers have the seeds that follow the bundle's, no discriminator judges them, and the last
    weights of each teach.

    What begins is told to ``tell``. Every option is that of :func:`~medseg.training.run.train_bundle`, for all of
    them; ``publish`` is for the last. A finished teacher is left as it is, and all of them once the last network has
    begun, which goes on with the same ones alone. A bundle without the id ``teachers`` is a ``UsageError``, and so is
    a folder that holds another run, before any time is spent.
    """
    given, publish = dict(overrides or {}), options.pop("publish", False)
    if "teachers" in given:
        raise UsageError("the setting teachers names networks, and --teachers trains others; give one of them")
    opened = Bundle.open(Path(bundle), options.get("permission", "audited"), options.get("presets", ()))
    written = opened.training
    if "teachers" not in written or "seed" not in written:
        raise UsageError(
            f"the training of {opened.path.name} has no id 'teachers' and 'seed'; expected a bundle as "
            "'medseg bundle new' plans it. Train it without --teachers"
        )
    seed, weights = given.get("seed", written["seed"]), list[str]()
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise UsageError(f"seed is {seed!r}, expected a whole number: teachers have those that follow it")
    last = Checkpoints(Path(output) / "checkpoints")
    if not resume:
        last.require_none()
    begun = last.latest() is not None
    for number in range(count):
        folder = Path(output) / FOLDER / str(number)
        weights.append(str(folder.resolve() / "checkpoints" / "final.pt"))
        if begun:
            continue
        alone = {**given, "seed": seed + 1 + number, "judge_steps": 0, "teachers": []}
        tell(f"teacher {number + 1} of {count}")
        train_bundle(bundle, output=folder, resume=resume, overrides=alone, **options)
    taught = {**given, "teachers": weights}
    tell(f"the network that learns from {count}")
    return train_bundle(bundle, output=output, resume=resume, overrides=taught, publish=publish, **options)
