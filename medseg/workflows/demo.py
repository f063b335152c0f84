"""The whole walk on synthetic patients: DICOM → index → split → train → batch inference → evaluation → report."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medseg.errors import UsageError

if TYPE_CHECKING:
    from medseg.manifests import Manifest
    from medseg.training.run import Watcher

PATIENTS = 24
_TEST_FRACTION = 0.25
_FOLDS = 6
_SEED = 41
_BUNDLE = "phantom_ct_segmentation"
_RULES = [{"channel": "ct", "modality": "CT", "exclude_description": "thin|localizer"}]
"""Which of a study's series the model is for; ``medseg index`` and ``--select`` read the same from a file."""


@dataclass(frozen=True)
class DemoResult:
    """What the demo left, and how well the model learned."""

    output: Path  # the demo's folder
    report: Path  # the page to open
    bundle: Path  # the trained bundle
    dice: Mapping[str, float]  # mean Dice of each structure over the test patients, missing structures counted as 0
    seconds: Mapping[str, float]  # wall-clock time per step

    @property
    def mean_dice(self) -> float:
        """Mean over the structures."""
        return sum(self.dice.values()) / len(self.dice)


def run_demo(
    output: str | Path, *, watchers: Sequence[Watcher] = (), say: Callable[[str], None] = lambda _: None
) -> DemoResult:
    """Run the demo into ``output``.

    ``output``: folder to make; it must not hold anything but an earlier demo. ``watchers``: attached to the trainer,
    such as a progress bar. ``say``: called with one line at the beginning of each step. Raises ``UsageError`` if the
    folder holds something else.
    """
    folder = _prepared(Path(output))
    bundle = folder / "bundle" / _BUNDLE
    seconds: dict[str, float] = {}

    @contextmanager
    def step(name: str, text: str) -> Iterator[None]:
        say(f"{len(seconds) + 1}/6  {text}")
        begin = time.perf_counter()
        yield
        seconds[name] = round(time.perf_counter() - begin, 1)

    with step("patients", f"Making {PATIENTS} synthetic patients as DICOM studies"):
        labels, references = _make_patients(folder, bundle)
    with step("index", "Indexing the studies, choosing series, splitting the patients"):
        manifest = _index_and_split(folder, labels, references)
    with step("train", f"Training a U-Net against a discriminator on {len(manifest.training)} patients"):
        from medseg.training import train_bundle

        training, datalist = folder / "training", folder / "datalist.json"
        quick = {"judge_steps": 0}  # a judge would take another minute
        train_bundle(
            bundle,
            dataset_dir=folder,
            datalist=datalist,
            output=training,
            publish=True,
            watchers=watchers,
            overrides=quick,
        )
    with step("infer", f"Segmenting {len(manifest.test)} test patients that training never saw"):
        from medseg.inference import run_batch

        run_batch(bundle, [manifest.files(item, "image")[0] for item in manifest.test], folder)
    with step("evaluate", "Measuring Dice and distances"):
        from medseg.evaluation import evaluate_folders

        structures = evaluate_folders(folder, folder / "test.json", folder, labels=bundle).summary["structures"]
        means = {name: entry["metrics"]["dice"]["mean"] for name, entry in structures.items()}
    with step("report", "Writing the report"):
        from medseg.report import write_report

        masks = {path.name.removesuffix(".nii.gz"): path for path in (folder / "references").glob("*.nii.gz")}
        report = write_report(folder, references=masks, title="Synthetic abdomen in CT: the demo")
    return DemoResult(folder, report, bundle, {k: mean for k, mean in means.items() if mean is not None}, seconds)


def _prepared(folder: Path) -> Path:
    """An empty folder; what an earlier demo left in it is removed."""
    marker = folder / "README.txt"
    if folder.exists() and any(folder.iterdir()):
        if not marker.is_file():
            raise UsageError(f"{folder} holds other files; give an empty or new folder with --output")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    marker.write_text("Made by `medseg demo` from synthetic patients. The next demo in this folder replaces it.\n")
    return folder


def _make_patients(folder: Path, bundle: Path) -> tuple[dict[int, str], dict[Path, Path]]:
    """Write the bundle and the studies; the labels, and by folder of the series that was labelled its mask."""
    from medseg.bundle import Bundle
    from medseg.bundle.find import shipped_bundle
    from medseg.phantom import write_dataset

    # without the shipped weights: what the demo shows, it has learned
    shutil.copytree(shipped_bundle(_BUNDLE), bundle, ignore=shutil.ignore_patterns("models", "trust"))
    labels = dict(Bundle.open(bundle).labels)
    written = write_dataset(folder, PATIENTS, seed=_SEED, kind="ct", structures=len(labels))
    return labels, {patient.image: patient.label for patient in written}


def _index_and_split(folder: Path, labels: Mapping[int, str], references: Mapping[Path, Path]) -> Manifest:
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
    names = {"0": "background", **{str(value): name for value, name in labels.items()}}
    manifest = Manifest({"name": "synthetic patients", "labels": names, "training": items}, folder)
    split = manifest.split(_FOLDS, _SEED, _TEST_FRACTION)
    split.write(folder / "datalist.json")
    split.with_content(training=[]).write(folder / "test.json")
    return split
