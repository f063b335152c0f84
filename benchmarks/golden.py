"""The walks that two trees take for :mod:`benchmarks.compare_trees`, mostly through the command line.

Every walk leaves a folder: what the commands wrote, and below ``said/`` what each printed and its exit code.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.golden_files import Side

WORKER = Path(__file__).with_name("tree_worker.py")
PATIENTS = 5
"""As many as a calibration of trust asks for."""
_KINDS = "nifti,seg,sr,rtstruct,sc"
_LABELS = ("liver", "spleen", "right_kidney", "left_kidney")
_PHANTOM = "phantom_ct_segmentation"
_HIPPOCAMPUS = "hippocampus_mri_segmentation"
_SARCOMA = "sarcoma_mrpet_segmentation"
_OK = (0,)
_SOME_REFUSED = (0, 1)


class StepFailed(Exception):
    """A command of a tree ended as it should not."""


@dataclass
class Tree:
    """A checkout of medseg, and where its results go."""

    name: str
    root: Path
    folder: Path
    seconds: dict[str, float] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        """One thread, no GPU, one key for pseudonyms: what would make equal code give unequal results."""
        fixed = {"PYTHONPATH": str(self.root), "CUDA_VISIBLE_DEVICES": "", "MEDSEG_PSEUDONYM_KEY": "compare-trees"}
        threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        plain = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        return {**plain, **threads, **fixed, "COLUMNS": "100", "NO_COLOR": "1"}

    def check(self) -> None:
        """Refuse to compare if another tree's code would run.

        Raises
        ------
        StepFailed
            If ``medseg`` is imported from elsewhere, or not at all.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        done = self.start(["-c", "import medseg; print(medseg.__file__)"], self.folder)
        found = done.stdout.strip()
        if done.returncode or not Path(found).resolve().is_relative_to(self.root.resolve()):
            raise StepFailed(f"{self.name}: {self.root} is no tree of medseg: got {found or done.stderr[-2000:]}")

    def start(self, arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
        """Run the interpreter in ``folder`` with this tree's code; both outputs are kept."""
        command = [sys.executable, *arguments]
        return subprocess.run(
            command, cwd=folder, env=self.environment(), capture_output=True, text=True, check=False, errors="replace"
        )

    def side(self, part: str, out: Path) -> Side:
        """This tree's results of one part, for a comparison."""
        names = ((str(self.folder), "<results>"), (str(self.root), "<tree>"), (str(out), "<out>"))
        return Side(self.folder / part, names)


@dataclass
class Walk:
    """Commands of one tree in one folder."""

    tree: Tree
    folder: Path
    data: Path

    @classmethod
    def begin(cls, tree: Tree, part: str, data: Path) -> Walk:
        folder = tree.folder / part
        (folder / "said").mkdir(parents=True)
        return cls(tree, folder, data)

    def medseg(self, name: str, *arguments: str | Path, ok: Sequence[int] = _OK) -> None:
        """Run ``medseg ARGUMENTS``; what it prints goes to ``said/NAME.json`` if it was asked for JSON, else ``.txt``.

        Raises
        ------
        StepFailed
            If the exit code is not in ``ok``; with the end of what the command said.
        """
        ending = "json" if "--json" in arguments else "txt"
        self._keep(name, ["-m", "medseg", *map(str, arguments)], ok, ending)

    def worker(self, name: str, *arguments: str | Path) -> None:
        """Run ``tree_worker.py``; its answer goes to ``said/NAME.json``."""
        self._keep(name, ["-P", str(WORKER), *map(str, arguments)], _OK, "json")

    def _keep(self, name: str, arguments: list[str], ok: Sequence[int], ending: str) -> None:
        begin = time.perf_counter()
        done = self.tree.start(arguments, self.folder)
        self.tree.seconds[f"{self.folder.name}/{name}"] = round(time.perf_counter() - begin, 1)
        (self.folder / "said" / f"{name}.{ending}").write_text(done.stdout)
        (self.folder / "said" / f"{name} exit.txt").write_text(f"{done.returncode}\n")
        if done.returncode not in ok:
            said = f"{done.stdout[-1500:]}\n{done.stderr[-3000:]}".strip()
            raise StepFailed(
                f"{self.tree.name}: {self.folder.name}/{name} ended with {done.returncode}\n"
                f"  {' '.join(arguments)}\n{said}"
            )


def make_data(tree: Tree, folder: Path) -> None:
    """What both trees work on: studies of synthetic patients, made by the old tree; rules and datalists."""
    folder.mkdir(parents=True, exist_ok=True)
    done = tree.start(["-P", str(WORKER), "phantoms", str(folder / "study"), str(PATIENTS)], folder)
    if done.returncode:
        raise StepFailed(f"{tree.name}: phantoms ended with {done.returncode}\n{done.stderr[-3000:]}")
    for study in sorted((folder / "study" / "dicom").iterdir()):
        shutil.copytree(study / "abdomen", folder / "main" / study.name)
    rules = {"rules": [{"channel": "ct", "modality": "CT", "exclude_description": "thin|localizer"}]}
    (folder / "rules.json").write_text(json.dumps(rules))
    rules = {"rules": [{"channel": "mr", "modality": "MR"}, {"channel": "pet", "modality": "PT"}]}
    (folder / "mrpet.json").write_text(json.dumps(rules))


def golden(tree: Tree, data: Path) -> None:
    """From studies to a trained, evaluated and trusted bundle, its objects and its page."""
    walk = Walk.begin(tree, "golden", data)
    walk.worker("phantoms", "phantoms", walk.folder / "phantoms", "1")
    study, bundle = data / "study" / "dicom", Path("bundles/abdomen_ct_golden")
    walk.medseg("index", "index", study, "--select", data / "rules.json", "--json", ok=_SOME_REFUSED)
    walk.medseg("index first", "index", study, "--database", "index.sqlite", ok=_SOME_REFUSED)
    walk.medseg("index again", "index", study, "--database", "index.sqlite", ok=_SOME_REFUSED)
    _manifest(walk)
    walk.medseg("bundle new", "bundle", "new", bundle.name, "--datalist", "datalist.json")
    _shorten(walk.folder / bundle, tree.root / "bundles" / _PHANTOM)
    _train(walk, bundle)
    _trust(walk, study)


def _manifest(walk: Walk) -> None:
    names = [part for value, name in enumerate(_LABELS, 1) for part in ("--label", f"{value}={name}")]
    create: list[str | Path] = ["--images", walk.data / "main", "--labels", walk.data / "study" / "references", *names]
    walk.medseg("manifest create", "manifest", "create", *create, "-o", "datalist.json")
    walk.medseg("manifest split", "manifest", "split", "datalist.json", "--folds", "3", "--seed", "0", "--test", "0.2")
    walk.medseg("manifest audit", "manifest", "audit", "datalist.json", "--json")
    shutil.copy(walk.folder / "datalist.json", walk.folder / "split.json")


def _shorten(bundle: Path, shipped: Path) -> None:
    """Narrow networks, since the walk is about equality; codes of the structures, so that objects can be written."""
    for name in ("train", "inference"):
        path = bundle / "configs" / f"{name}.json"
        config = json.loads(path.read_text())
        widths = "features" if "features" in config["network_def"] else "filters"
        config["network_def"][widths] = [4] * len(config["network_def"][widths])
        if name == "train":
            config["discriminator_def"]["channels"] = 4
        path.write_text(json.dumps(config, indent=1))
    path = bundle / "configs" / "metadata.json"
    metadata = json.loads(path.read_text())
    known = json.loads((shipped / "configs" / "metadata.json").read_text())
    codes = known["network_data_format"]["outputs"]["pred"]["segment_codes"]
    metadata["network_data_format"]["outputs"]["pred"]["segment_codes"] = codes
    path.write_text(json.dumps(metadata, indent=1))


def _train(walk: Walk, bundle: Path) -> None:
    """Two iterations, the second against the discriminator; what they gave is run, evaluated and packed."""
    knobs = ("epochs=2", "iterations=1", "warm_up=1", "ramp=0", "val_interval=1")
    sets = [part for knob in knobs for part in ("--set", knob)]
    walk.medseg("train", "train", bundle, "--fold", "0", "--publish", "-o", "training", *sets)
    run = ("infer", bundle, "split.json", "--section", "test", "-o", "trained", "--write", "nifti,seg")
    walk.medseg("infer trained", *run)
    evaluate = ("evaluate", "trained", "split.json", "--section", "test", "--labels", bundle, "--workers", "1")
    walk.medseg("evaluate trained", *evaluate, "-o", "trained")
    walk.medseg("verify", "bundle", "verify", bundle, "--json", ok=_SOME_REFUSED)
    walk.medseg("pack", "bundle", "pack", bundle, "--with-names", "-o", "packed.zip")


def _trust(walk: Walk, study: Path) -> None:
    """The shipped bundle with all its objects; a copy of it learns whom to trust, and is asked."""
    select = ("--select", walk.data / "rules.json")
    walk.medseg("infer", "infer", _PHANTOM, study, *select, "-o", "shipped", "--write", _KINDS)
    labels = walk.tree.root / "bundles" / _PHANTOM
    evaluate = ("evaluate", "shipped", "datalist.json", "--labels", labels, "--all-metrics", "--workers", "1")
    walk.medseg("evaluate", *evaluate, "-o", "shipped")
    walk.medseg("report", "report", "shipped", "--title", "Golden")
    trusted = walk.folder / "trusted" / _PHANTOM
    shutil.copytree(labels, trusted, ignore=shutil.ignore_patterns("__pycache__", "runs"))
    fit = ("trust", "fit", trusted, "--predictions", "shipped", "--references", "datalist.json")
    walk.medseg("trust fit", *fit, "--json", ok=_SOME_REFUSED)
    images = sorted((walk.data / "study" / "nifti" / "images").glob("*.nii.gz"))
    inputs = [walk.data / "main" / "patient-00", *images]
    walk.medseg("infer judged", "infer", trusted, *inputs, "-o", "judged", "--write", "nifti,doubt,sr")
    walk.medseg("worklist", "trust", "worklist", "judged", "--json")


def bundles(tree: Tree, data: Path, real: Path | None) -> None:
    """Every shipped bundle that segments, in float32; on real data where there are some."""
    walk = Walk.begin(tree, "bundles", data)
    shipped = sorted(path.parent.parent for path in (tree.root / "bundles").glob("*/configs/metadata.json"))
    for bundle in shipped:
        for weights in [*bundle.glob("models/*"), *bundle.glob("trust/*")]:
            kept = walk.folder / "weights" / bundle.name / weights.name
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(weights, kept)
    light = [["bundle", action, str(bundle)] for bundle in shipped for action in ("info", "audit")]
    walk.worker("commands", "commands", json.dumps([*light, ["bundle", "list"]]))
    known = {_HIPPOCAMPUS: _hippocampus, _SARCOMA: _sarcoma}
    for bundle in shipped:
        if bundle.name in known and real is not None:
            known[bundle.name](walk, bundle, real)
        elif _segments(bundle):
            _on_phantoms(walk, bundle)
    if real is not None:
        walk.worker("read", "read", real)
        walk.medseg("index", "index", real, "--json", ok=_SOME_REFUSED)


def _segments(bundle: Path) -> bool:
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    return metadata["network_data_format"]["outputs"].get("pred", {}).get("format") == "segmentation"


def _infer(walk: Walk, name: str, bundle: Path, *arguments: str | Path) -> None:
    precision = () if "--engine" in arguments else ("--precision", "fp32")
    walk.medseg(f"infer {name}", "infer", bundle, *arguments, *precision, "-o", name, ok=_SOME_REFUSED)


def _on_phantoms(walk: Walk, bundle: Path) -> None:
    """CT patients, or MR ones for a bundle for MR; a bundle of several channels is given the same image for each."""
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    channels = metadata["network_data_format"]["inputs"]["image"]["num_channels"]
    kind = "mr" if "_mr" in bundle.name else "nifti"
    images = sorted((walk.data / "study" / kind / "images").glob("*.nii.gz"))
    items = [{"image": [str(image)] * channels if channels > 1 else str(image)} for image in images]
    datalist = walk.folder / f"{bundle.name}.json"
    datalist.write_text(json.dumps({"name": "phantoms", "test": items}))
    _infer(walk, bundle.name, bundle, datalist, "--write", "nifti")


def _hippocampus(walk: Walk, bundle: Path, real: Path) -> None:
    """Four NIfTI cases and a DICOM study with one series for the bundle and two that it refuses; mirrored; OpenVINO."""
    source = real / "msd_hippocampus"
    cases = sorted((source / "imagesTr").glob("hippocampus_*.nii.gz"))[:4]
    study = real / "brain_mr_dicom" / "Study1"
    _infer(walk, "hippocampus", bundle, *cases, study, "--write", f"{_KINDS},doubt")
    _infer(walk, "mirrored", bundle, *cases[:2], "--mirror", "lr", "--write", "nifti")
    if _has(walk, "openvino"):
        _infer(walk, "openvino", bundle, *cases[:2], "--engine", "openvino-fp32", "--write", "nifti")
    references = source / "labelsTr"
    evaluate = ("evaluate", "hippocampus", references, "--labels", bundle, "--workers", "1", "--all-metrics")
    walk.medseg("evaluate hippocampus", *evaluate, "-o", "hippocampus", ok=_SOME_REFUSED)
    weighted = ("--surface", "elements", "--percentile-rule", "pooled", "--compare", "mirrored")
    walk.medseg("evaluate otherwise", *evaluate[:-1], *weighted, "-o", "otherwise", ok=_SOME_REFUSED)
    walk.medseg("report hippocampus", "report", "hippocampus", "--references", references)
    walk.medseg("worklist", "trust", "worklist", "hippocampus", "--json")


def _sarcoma(walk: Walk, bundle: Path, real: Path) -> None:
    """Two patients whose channels lie on different grids, as NIfTI; one as DICOM, its channels found by rules."""
    source = real / "ibsi_sts"
    items = [
        {
            "image": [str(patient / "MR_T1_image.nii.gz"), str(patient / "PET_image.nii.gz")],
            "label": str(patient / "MR_T1_mask.nii.gz"),
            "case_id": patient.name,
        }
        for patient in sorted((source / "nifti").iterdir())[:2]
    ]
    datalist = walk.folder / "sarcoma.json"
    datalist.write_text(json.dumps({"name": "sarcoma", "labels": {"0": "background", "1": "tumour"}, "test": items}))
    _infer(walk, "sarcoma", bundle, datalist, "--write", "nifti")
    select = ("--select", walk.data / "mrpet.json")
    _infer(walk, "sarcoma-dicom", bundle, source / "dicom", *select, "--write", "nifti,seg,rtstruct")
    evaluate = ("evaluate", "sarcoma", datalist, "--labels", bundle, "--workers", "1")
    walk.medseg("evaluate sarcoma", *evaluate, "-o", "sarcoma", ok=_SOME_REFUSED)


def _has(walk: Walk, module: str) -> bool:
    return walk.tree.start(["-c", f"import {module}"], walk.folder).returncode == 0
