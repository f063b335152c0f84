"""Whether ``medseg train`` can train a bundle, told from its ``train.json`` before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Mapping

from medseg.bundle.bundle import Bundle
from medseg.bundle.pipeline import follow, item_at, laid_out
from medseg.errors import BundleError

__all__ = ["check_trainable"]

_TRAINER = "train::trainer"
_FOREIGN = ("monai.", "ignite.")


def check_trainable(bundle: Bundle) -> None:
    """Refuse a bundle that names a trainer of MONAI's: it has none of the ids and handlers that ``medseg train`` sets.

    Raises
    ------
    BundleError
        If there is no ``train.json``, no trainer in it, or one that is not medseg's.
    """
    config = laid_out(bundle.config("train"))
    trainer = item_at(config, follow(config, _TRAINER))
    target = str(trainer.get("_target_", "")) if isinstance(trainer, Mapping) else ""
    if "." in target and not target.startswith(_FOREIGN):
        return  # medseg's own, or one of the bundle's scripts, which is asked when it is built
    found = f"trains with {target.rpartition('.')[2]}" if target else f"has no trainer at {_TRAINER}"
    raise BundleError(
        f"the bundle {bundle.name} {found}; 'medseg train' needs medseg.training.AdversarialSegmentationTrainer with"
        " medseg.training.Checkpoints among train#handlers. Train it with: python -m monai.bundle run training"
        f" --config_file {bundle.path}/configs/train.json, or plan a bundle for your data: medseg bundle new"
    )
