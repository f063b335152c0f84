"""Which images a bundle has learnt from: the SHA-256 sums in its datalist, less the fold that was held out.

Whether ``medseg train`` can train a bundle, told from its ``train.json`` before anything heavy is imported.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.bundle.audit_configs import parse_json
from medseg.bundle.bundle import Bundle
from medseg.bundle.config import follow, item_at, laid_out
from medseg.errors import BundleError

_SHA256 = re.compile(r"[0-9a-f]{64}")
_LARGEST_BYTES = 256 * 1024 * 1024
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingData:
    """SHA-256 sums (64 hex digits) of the files that a bundle's weights were trained on.

    A folder of DICOM files has one sum, see :func:`medseg.manifests.create.path_checksum`.

    Parameters
    ----------
    images
        Of the images, those without a label included: a network learns from them, too.
    labels
        Of their label maps.
    """

    images: frozenset[str]
    labels: frozenset[str]


def trained_on(bundle: Bundle | str | Path) -> TrainingData | None:
    """The files that a bundle was trained on, as far as it says; ``None`` if it states no sums.

    The run in ``docs/training_run.json`` (or ``training_run`` of the metadata) may list the sums itself, under
    ``images`` and ``labels``. Else every case under ``training`` of ``configs/datalist.json`` counts, but those of the
    fold that the run held out; cases for validation and test do not.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    run = _run(opened)
    images, labels = set(_sums(run.get("images"))), set(_sums(run.get("labels")))
    if images:
        return TrainingData(frozenset(images), frozenset(labels))
    held_out = _held_out(run)
    for item in _items(opened.path / "configs" / "datalist.json"):
        if held_out is None or item.get("fold") != held_out:
            sums = item.get("sha256")
            images.update(_sums(sums.get("image") if isinstance(sums, Mapping) else sums))
            labels.update(_sums(sums.get("label") if isinstance(sums, Mapping) else None))
    return TrainingData(frozenset(images), frozenset(labels)) if images else None


def _run(bundle: Bundle) -> Mapping[str, Any]:
    path = bundle.path / "docs" / "training_run.json"
    run = _read(path) if path.is_file() else bundle.metadata.get("training_run")
    return run if isinstance(run, Mapping) else {}


def _held_out(run: Mapping[str, Any]) -> int | None:
    """The fold that a run validated on; ``None`` if it trained on every case, or does not say."""
    configured = run.get("configuration")
    fold = run.get("fold", configured.get("fold") if isinstance(configured, Mapping) else None)
    return fold if isinstance(fold, int) and not isinstance(fold, bool) and fold >= 0 else None


def _items(datalist: Path) -> Iterator[Mapping[str, Any]]:
    content = _read(datalist) if datalist.is_file() else None
    items = content.get("training") if isinstance(content, Mapping) else None
    for item in items if isinstance(items, list) else ():
        if isinstance(item, Mapping):
            yield item


def _sums(stated: Any) -> Iterator[str]:
    """The sums of an item: one, or one per channel."""
    for value in stated if isinstance(stated, list) else [stated]:
        if isinstance(value, str) and _SHA256.fullmatch(value.lower()):
            yield value.lower()


def _read(path: Path) -> Any:
    """A JSON file of the bundle; one that is damaged tells nothing, and the log says so."""
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            raise ValueError(f"larger than {_LARGEST_BYTES // 2**20} MiB")
        return parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        _log.warning("%s cannot be read (%s): whether a case was trained on is not known from it", path.name, error)
        return None


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
