"""The whole walk on synthetic patients: DICOM → index → split → train → batch inference → evaluation → report."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg.errors import UsageError

if TYPE_CHECKING:
    from medseg.manifests import Manifest

PATIENTS = 24
_TEST_FRACTION = 0.25
_FOLDS = 6
_SEED = 41
_BUNDLE = "phantom_ct_segmentation"
_RULES = [{"channel": "ct", "modality": "CT", "exclude_description": "thin|localizer"}]
"""Which of a study's series the model is for; ``medseg index`` and ``--select`` read the same from a file."""

Say = Callable[[str], None]
"""Tells people which step begins."""


@dataclass(frozen=True)
class DemoResult:
    """What the demo left, and how well the model learned.

    Attributes
    ----------
    output
        The demo's folder.
    report
        The page to open.
    bundle
        The trained bundle.
    dice
        Mean Dice of each structure over the test patients, misses counted as 0.
    seconds
        Wall-clock time per step.
    """

    output: Path
    report: Path
    bundle: Path
    dice: Mapping[str, float]
    seconds: Mapping[str, float]

    @property
    def mean_dice(self) -> float:
        """Mean over the structures."""
        return sum(self.dice.values()) / len(self.dice)


@dataclass
class _Clock:
    """Announces each step and notes how long it took."""

    say: Say
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str, text: str) -> Iterator[None]:
        self.say(text)
        begin = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - begin, 1)


def run_demo(
    output: str | Path,
    *,
    patients: int = PATIENTS,
    overrides: Mapping[str, Any] | None = None,
    watchers: Sequence[Any] = (),
    say: Say = lambda _: None,
) -> DemoResult:
    """Run the demo into ``output``.

    Parameters
    ----------
    output
        Folder to make; it must not hold anything but an earlier demo.
    patients
        How many synthetic patients to make.
    overrides
        Ids of the bundle's ``train.json`` to change, such as ``{"epochs": 1}``.
    watchers
        Attached to the trainer, such as a progress bar.
    say
        Called with one line at the beginning of each step.

    Raises
    ------
    UsageError
        If the folder holds something else.
    """
    folder = _prepare(Path(output))
    clock = _Clock(say)
    with clock.step("patients", f"1/6  Making {patients} synthetic patients as DICOM studies"):
        bundle = _copy_bundle(folder)
        references = _make_patients(folder, patients)
    with clock.step("index", "2/6  Indexing the studies, choosing series, splitting the patients"):
        manifest = _index_and_split(folder, references)
    with clock.step("train", f"3/6  Training a U-Net against a discriminator on {len(manifest.training)} patients"):
        _train(folder, bundle, overrides or {}, watchers)
    with clock.step("infer", f"4/6  Segmenting {len(manifest.test)} test patients that training never saw"):
        _infer(folder, bundle, manifest)
    with clock.step("evaluate", "5/6  Measuring Dice and distances"):
        dice = _evaluate(folder, bundle)
    with clock.step("report", "6/6  Writing the report"):
        report = _report(folder)
    return DemoResult(folder, report, bundle, dice, clock.seconds)


def _prepare(folder: Path) -> Path:
    """An empty folder; what an earlier demo left in it is removed."""
    marker = folder / "README.txt"
    if folder.exists() and any(folder.iterdir()):
        if not marker.is_file():
            raise UsageError(f"{folder} holds other files; give an empty or new folder with --output")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    marker.write_text("Made by `medseg demo` from synthetic patients. The next demo in this folder replaces it.\n")
    return folder


def _copy_bundle(folder: Path) -> Path:
    """A copy without the shipped weights: what the demo shows, it has learned."""
    from medseg.bundle.bundle import shipped_bundle

    bundle = folder / "bundle" / _BUNDLE
    shutil.copytree(shipped_bundle(_BUNDLE), bundle, ignore=shutil.ignore_patterns("models", "trust"))
    return bundle


def _make_patients(folder: Path, patients: int) -> dict[Path, Path]:
    """Write the studies; folder of the series that was labelled → its reference mask."""
    from medseg.phantom import write_dataset

    written = write_dataset(folder, patients, seed=_SEED, kind="ct", structures=len(_labels()))
    return {patient.image: patient.label for patient in written}


def _index_and_split(folder: Path, references: Mapping[Path, Path]) -> Manifest:
    """Choose one series per study as on real data, pair it with its mask by case id, and split by patient."""
    from medseg.ingest import scan
    from medseg.ingest.selection import parse_rules, select
    from medseg.manifests import Manifest

    items = []
    for choice in select(scan([folder / "dicom"]), parse_rules(_RULES)):
        if choice.channel is None:
            continue
        record = choice.record
        series = Path(record.files[0]).parent
        label = references[series].rename(folder / "references" / f"{record.case_id}.nii.gz")
        paths = {key: path.relative_to(folder).as_posix() for key, path in (("image", series), ("label", label))}
        items.append({**paths, "case_id": record.case_id, "patient_id": record.patient_hash})
    labels = {"0": "background", **{str(value): name for value, name in _labels().items()}}
    manifest = Manifest({"name": "synthetic patients", "labels": labels, "training": items}, folder)
    split = manifest.split(_FOLDS, _SEED, _TEST_FRACTION)
    split.write(folder / "datalist.json")
    split.with_content(training=[]).write(folder / "test.json")
    return split


def _labels() -> dict[int, str]:
    from medseg.bundle import Bundle
    from medseg.bundle.bundle import shipped_bundle

    return dict(Bundle.open(shipped_bundle(_BUNDLE)).labels)


def _train(folder: Path, bundle: Path, overrides: Mapping[str, Any], watchers: Sequence[Any]) -> None:
    from medseg.training import train_bundle

    train_bundle(
        bundle,
        dataset_dir=folder,
        datalist=folder / "datalist.json",
        output=folder / "training",
        overrides=overrides,
        publish=True,
        watchers=watchers,
    )


def _infer(folder: Path, bundle: Path, manifest: Manifest) -> None:
    from medseg.inference import run_batch

    run_batch(bundle, [manifest.files(item, "image")[0] for item in manifest.test], folder)


def _evaluate(folder: Path, bundle: Path) -> dict[str, float]:
    from medseg.evaluation import evaluate_folders

    evaluated = evaluate_folders(folder, folder / "test.json", folder, labels=bundle)
    means = {name: entry["metrics"]["dice"]["mean"] for name, entry in evaluated.summary["structures"].items()}
    return {name: mean for name, mean in means.items() if mean is not None}


def _report(folder: Path) -> Path:
    from medseg.report import write_report

    references = {path.name.removesuffix(".nii.gz"): path for path in (folder / "references").glob("*.nii.gz")}
    return write_report(folder, references=references, title="Synthetic abdomen in CT: the demo")
