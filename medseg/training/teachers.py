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
LONGER = 4
"""How many times as many epochs a teacher takes as the network that goes on from it."""
_SLOWER = 0.4
"""Its learning rate over the teachers': it moves about where one of them has ended."""
_NUMBERS: dict[str, tuple[type, ...]] = {"seed": (int,), "epochs": (int,), "learning_rate": (int, float)}
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
    learns from it (:class:`~medseg.training.distillation.Distillation`) costs one. It goes on from the first teacher,
    since one that begins anew keeps little of the gain: with another seed, at 0.4 of the learning rate, for the given
    ``epochs``; each teacher takes four times as many, with the bundle's seed and those that follow it. No
    discriminator judges the teachers, and the last weights of each teach.

    What begins is told to ``tell``. Every option is that of :func:`~medseg.training.run.train_bundle`, for all of
    them; ``publish`` is for the last. A finished teacher is left as it is, and all of them once the last network has
    begun, which goes on with the same ones alone. A bundle without the id ``teachers`` is a ``UsageError``, and so is
    a folder that holds another run, before any time is spent.
    """
    given, publish = dict(overrides or {}), options.pop("publish", False)
    if "teachers" in given:
        raise UsageError("the setting teachers names networks, and --teachers trains others; give one of them")
    opened = Bundle.open(Path(bundle), options.get("permission", "audited"), options.get("presets", ()))
    values = {**opened.training, **given}
    if "teachers" not in values or not _NUMBERS.keys() <= values.keys():
        raise UsageError(
            f"the training of {opened.path.name} has not all of the ids teachers, {', '.join(_NUMBERS)}; expected a "
            "bundle as 'medseg bundle new' plans it. Train it without --teachers"
        )
    for name, kinds in _NUMBERS.items():
        if isinstance(values[name], bool) or not isinstance(values[name], kinds):
            raise UsageError(
                f"{name} is {values[name]!r}, expected a number, from which the teachers' is reckoned; give one: "
                f"--set {name}="
            )
    seed, weights = values["seed"], list[str]()
    last = Checkpoints(Path(output) / "checkpoints")
    if not resume:
        last.require_none()
    begun = last.latest() is not None
    for number in range(count):
        folder = Path(output) / FOLDER / str(number)
        weights.append(str(folder.resolve() / "checkpoints" / "final.pt"))
        if begun:
            continue
        alone = {**given, "seed": seed + number, "epochs": LONGER * values["epochs"], "judge_steps": 0, "teachers": []}
        tell(f"teacher {number + 1} of {count}")
        train_bundle(bundle, output=folder, resume=resume, overrides=alone, **options)
    start = {
        "seed": seed + count,
        "learning_rate": _SLOWER * values["learning_rate"],
        "init": weights[0],
        "rescale": False,
    }
    taught = {**given, **start, "teachers": weights}
    tell(f"the network that learns from {count}")
    return train_bundle(bundle, output=output, resume=resume, overrides=taught, publish=publish, **options)
