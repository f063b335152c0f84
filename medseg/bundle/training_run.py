"""What a bundle says of the training that its weights come from: the run, its figures, the images it has learnt from.

It stands in ``docs/training_run.json``, the metadata, the README and the SHA-256 sums of ``configs/datalist.json``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib import metadata as packages
from pathlib import Path
from typing import Any

from medseg.bundle.bundle import Bundle
from medseg.bundle.config import read_config
from medseg.bundle.findings import Finding
from medseg.bundle.text_limits import read_text_file
from medseg.errors import BundleError
from medseg.files import sha256_file, write_json, write_text

TRAINING_RUN = "docs/training_run.json"
CROSS_VALIDATION = "docs/cross_validation.json"
UNTRAINED = "not trained yet"
"""What a bundle without weights says of itself."""

_METADATA, _README = "configs/metadata.json", "docs/README.md"
_SECTION = re.compile(r"<!-- training -->.*?<!-- /training -->", re.DOTALL)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingRun:
    """The run that made a bundle's weights."""

    weights_sha256: str  # of ``models/model.pt``
    model: str  # ``best``: chosen by the held-out fold; ``final``: of the last epoch, chosen by nothing
    epoch: int  # epoch, epochs, iterations: when the weights were taken; the length of the run
    epochs: int
    iterations: int
    fold: int  # the fold that was held out; negative if none was by its number
    cases: int  # cases and held_out_cases: how many were trained on, and validated on
    held_out_cases: int
    # of the validation in that epoch, as in the run's ``metrics.csv``: held out only if :attr:`is_held_out`
    figures: Mapping[str, float] = field(default_factory=dict)
    seed: int | None = None
    precision: str = ""
    medseg: str = ""
    apart: bool = False  # whether no case was both trained on and validated on, by their sums
    images: tuple[str, ...] = ()  # images and labels: SHA-256 sums of the files that were trained on, sorted
    labels: tuple[str, ...] = ()

    @classmethod
    def read(cls, bundle: Bundle) -> TrainingRun | None:
        """The record of a bundle; None if it has none. Raises ``BundleError`` if it cannot be read."""
        path = bundle.path / TRAINING_RUN
        if not path.is_file():
            return None
        try:
            known = {entry.name for entry in fields(cls)}
            values = {key: value for key, value in read_config(path).items() if key in known}
            for key in ("images", "labels"):
                values[key] = tuple(str(value) for value in values.get(key, ()))
            return cls(**values)
        except TypeError as error:
            raise BundleError(f"{path} cannot be read as the record of a training run: {error}") from error

    def write(self, bundle: Bundle) -> None:
        """State the run in the bundle: record, metadata (version, changelog, figures, packages) and README."""
        write_json(bundle.path / TRAINING_RUN, asdict(self))
        record_figures(bundle, self.sentence, self.figures if self.is_held_out else {}, self.described)
        readme = bundle.path / _README
        text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
        section = f"<!-- training -->\n{self.sentence[0].upper()}{self.sentence[1:]}.\n<!-- /training -->"
        if _SECTION.search(text):
            write_text(readme, _SECTION.sub(lambda _: section, text, count=1))

    @property
    def sentence(self) -> str:
        """The run in one sentence, without a full stop."""
        which = "weights of the best validation" if self.model == "best" else "weights of the last epoch"
        return f"trained for {self.epochs} epochs on {self.cases} cases, {self.described}; {which} (epoch {self.epoch})"

    @property
    def is_held_out(self) -> bool:
        """Whether the figures are of cases that the network has not learnt from."""
        return self.fold >= 0 or self.apart

    @property
    def described(self) -> str:
        """Which cases the figures are of."""
        if not self.is_held_out:
            return "none held out"
        chosen = ", which chose the epoch" if self.model == "best" else ""
        fold = f"fold {self.fold} with " if self.fold >= 0 else ""
        return f"{fold}{self.held_out_cases} cases held out{chosen}"


def record_figures(bundle: Bundle, change: str, figures: Mapping[str, float], cases: str) -> None:
    """Write ``figures`` (of ``cases``) and what was done into the metadata, in memory and on disk.

    They replace those of earlier weights, under a new version unless this one was never trained.
    """
    metadata = bundle.metadata
    changelog = dict(metadata.get("changelog") or {})
    version = bundle.version if UNTRAINED in str(changelog.get(bundle.version, "")) else _next(bundle.version)
    metadata["version"] = version
    metadata["changelog"] = {version: change, **{key: text for key, text in changelog.items() if key != version}}
    validated = (metadata.get("eval_metrics") or {}).get("cross_validation")  # of the configuration, not of the weights
    kept = {"cross_validation": validated} if validated and not _outdated(bundle) else {}
    metadata["eval_metrics"] = {"cases": cases, **{name: round(value, 4) for name, value in figures.items()}, **kept}
    for key, package in (("monai_version", "monai"), ("pytorch_version", "torch"), ("numpy_version", "numpy")):
        metadata[key] = packages.version(package).partition("+")[0]
    write_json(bundle.path / _METADATA, metadata)


def _outdated(bundle: Bundle) -> bool:
    """Whether the training was configured otherwise when the folds were trained."""
    path = bundle.path / CROSS_VALIDATION
    if not path.is_file():
        return True
    try:
        stated = read_config(path)["train_config_sha256"]
    except (BundleError, KeyError) as error:
        raise BundleError(f"{path} cannot be read ({error}); run medseg crossval again, or remove it") from error
    return bool(stated != sha256_file(bundle.config_file("train")))


def _next(version: str) -> str:
    """The next minor version; what cannot be counted is started anew."""
    parts = [*version.split("."), "0"]
    return f"{parts[0]}.{int(parts[1]) + 1}.0" if all(part.isdigit() for part in parts) else "0.1.0"


def training_run_findings(bundle: Bundle) -> Iterator[Finding]:
    """Where a bundle's words do not fit its weights."""
    weights = {sha256_file(path) for path in (bundle.path / "models").glob("model.*") if path.is_file()}
    if not weights:
        return
    try:
        run = TrainingRun.read(bundle)
    except BundleError as error:
        yield Finding("block", TRAINING_RUN, "", str(error), "train again with --publish, or remove it")
        return
    if run is not None and run.weights_sha256 not in weights:
        why = "figures of other weights must not stand beside these; publish the run that made them"
        yield Finding("block", TRAINING_RUN, "weights_sha256", "it describes other weights", why)
    if UNTRAINED in str(bundle.metadata.get("changelog", {}).get(bundle.version, "")):
        why = "say how the weights were made: medseg train --publish does"
        yield Finding("block", _METADATA, "changelog", f"{UNTRAINED!r}, and there are weights", why)
    readme = bundle.path / _README
    if readme.is_file() and UNTRAINED in _readme(readme):
        yield Finding("warn", _README, "", f"{UNTRAINED!r}, and there are weights", "say how they were made")
    if not bundle.metadata.get("eval_metrics"):
        why = "nobody can tell what to expect; medseg train --publish and medseg crossval write them"
        yield Finding("warn", _METADATA, "eval_metrics", "there are weights, and no figures", why)
    if (bundle.path / CROSS_VALIDATION).is_file() and _outdated(bundle):
        why = "its figures are of another configuration; run medseg crossval again, or remove it"
        yield Finding("warn", CROSS_VALIDATION, "train_config_sha256", "configs/train.json has changed since", why)
    if run is None:
        why = "which images the network has learnt from is known from the datalist alone"
        yield Finding("info", TRAINING_RUN, "", "missing", why)


def _readme(path: Path) -> str:
    """What a bundle says of itself, in small letters."""
    try:
        return read_text_file(path).lower()
    except ValueError as error:
        raise BundleError(f"{path} cannot be a text to read: {error}") from error


@dataclass(frozen=True)
class TrainingData:
    """SHA-256 sums (64 hex digits) of the files that a bundle's weights were trained on.

    A folder of DICOM files has one sum, see :func:`medseg.manifests.layouts.path_checksum`.
    """

    images: frozenset[str]  # of the images, those without a label included: a network learns from them, too
    labels: frozenset[str]  # of their label maps


def trained_on(bundle: Bundle | str | Path) -> TrainingData | None:
    """The files that a bundle was trained on, as far as it says; ``None`` if it states no sums.

    The run in ``docs/training_run.json`` (or ``training_run`` of the metadata) may list the sums itself, under
    ``images`` and ``labels``. Else every case under ``training`` of ``configs/datalist.json`` counts, but those of the
    fold that the run held out; cases for validation and test do not.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    stated = _stated(opened.path / TRAINING_RUN) or opened.metadata.get("training_run")
    run = stated if isinstance(stated, Mapping) else {}
    images, labels = set(_sums(run.get("images"))), set(_sums(run.get("labels")))
    if not images:
        held_out = _held_out(run)
        items = _stated(opened.path / "configs" / "datalist.json").get("training")
        for item in items if isinstance(items, list) else ():
            if isinstance(item, Mapping) and (held_out is None or item.get("fold") != held_out):
                sums = item.get("sha256")
                images.update(_sums(sums.get("image") if isinstance(sums, Mapping) else sums))
                labels.update(_sums(sums.get("label") if isinstance(sums, Mapping) else None))
    return TrainingData(frozenset(images), frozenset(labels)) if images else None


def _held_out(run: Mapping[str, Any]) -> int | None:
    """The fold that a run validated on; ``None`` if it trained on every case, or does not say."""
    configured = run.get("configuration")
    fold = run.get("fold", configured.get("fold") if isinstance(configured, Mapping) else None)
    return fold if isinstance(fold, int) and not isinstance(fold, bool) and fold >= 0 else None


def _sums(stated: Any) -> Iterator[str]:
    """The sums of an item: one, or one per channel."""
    for value in stated if isinstance(stated, list) else [stated]:
        if isinstance(value, str) and _SHA256.fullmatch(value.lower()):
            yield value.lower()


def _stated(path: Path) -> dict[str, Any]:
    """A JSON file of the bundle; one that is damaged tells nothing, and the log says so."""
    try:
        return read_config(path) if path.is_file() else {}
    except BundleError as error:
        _log.warning("%s: whether a case was trained on is not known from it", error)
        return {}
