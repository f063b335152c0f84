"""What the fuzzer damages, and how each is read: volumes, labels, datalists, weights, trust files, rules, runs."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from benchmarks.fuzz_damage import Form
from benchmarks.fuzz_labels import label_files, read_damaged
from medseg.errors import MedsegError
from medseg.ingest import SeriesRecord, read_volume, save_nifti, scan
from tests.ingest.synthetic import Series, enhanced, enlarge, make_series, save

__all__ = ["TARGETS", "Seed", "Target"]

_AFFINE = np.diag([-0.7, 0.8, 2.5, 1.0])
_DIGEST = "0" * 64


@dataclass(frozen=True)
class Seed:
    """A sound source: its files by name, the one to damage, and what that one is made of."""

    name: str
    files: dict[str, bytes]
    victim: str
    form: Form = "bytes"


@dataclass(frozen=True)
class Target:
    """One kind of input.

    Parameters
    ----------
    seeds
        Makes sound sources, in an empty folder.
    attempt
        Reads the source in a folder as medseg's commands do; returns what was made of it, raises what they raise.
    """

    seeds: Callable[[Path], list[Seed]]
    attempt: Callable[[Path], str]


# --- volumes --------------------------------------------------------------------------------------------------------

_SYNTAXES: dict[str, Any] = {
    "classic": None,
    "deflated": DeflatedExplicitVRLittleEndian,
    "rle": RLELossless,
    "j2k": JPEG2000Lossless,
    "jpeg-ls": JPEGLSLossless,
}


def _volumes(root: Path) -> list[Seed]:
    """One sound source of every kind that is read."""
    seeds = [_classic(root, name, syntax) for name, syntax in _SYNTAXES.items()]
    seeds.append(_one(save(enhanced(make_series()), root / "enhanced.dcm"), "enhanced"))
    packed = enhanced(make_series(change=enlarge))
    packed.compress(JPEG2000Lossless, generate_instance_uid=False)
    seeds.append(_one(save(packed, root / "enhanced-j2k.dcm"), "enhanced-j2k"))
    values = np.random.default_rng(0).integers(-1000, 1000, (12, 10, 8)).astype(np.int16)
    for name, array in (("int16.nii", values), ("int16.nii.gz", values), ("float32.nii.gz", values / np.float32(7))):
        save_nifti(array, _AFFINE, root / name)
        seeds.append(_one(root / name, name))
    for name in ("volume.mha", "packed.mha", "volume.nrrd", "packed.nrrd"):
        image = SimpleITK.GetImageFromArray(values)
        SimpleITK.WriteImage(image, str(root / name), useCompression=name.startswith("packed"))
        seeds.append(_one(root / name, name, "lines"))
    return seeds


def _classic(root: Path, name: str, syntax: Any) -> Seed:
    series: Series = make_series((0.0, 2.5, 5.0, 7.5), change=enlarge)
    for item in series.slices:
        item.RescaleSlope, item.RescaleIntercept = "1", "-1024"
        if syntax == DeflatedExplicitVRLittleEndian:
            item.file_meta.TransferSyntaxUID = syntax
        elif syntax is not None:
            item.compress(syntax, generate_instance_uid=False)
    files = {file.name: file.read_bytes() for file in series.write(root / name).iterdir()}
    return Seed(name, files, "image-001.dcm")


def _one(path: Path, name: str, form: Form = "bytes") -> Seed:
    return Seed(name, {path.name: path.read_bytes()}, path.name, form)


def _read_volume(case: Path) -> str:
    for record in scan(case, workers=1):
        if "the reader failed" in record.message:
            raise AssertionError(f"the index met an error that no reader foresaw: {record.message}")
    values, geometry, _ = read_volume(case)
    sound = values.shape == geometry.shape and np.isfinite(geometry.affine).all() and np.isfinite(values).all()
    return "loaded" if sound else "FAILED unsound volume"


# --- datalists ------------------------------------------------------------------------------------------------------


def _datalists(root: Path) -> list[Seed]:
    label = np.zeros((6, 5, 4), np.uint8)
    label[2:4, 2:4, 1:3] = 1
    for number in range(3):
        save_nifti(np.full((6, 5, 4), number, np.int16) + label, _AFFINE, root / f"images/c{number}_0000.nii")
        save_nifti(np.roll(label, number, 0), _AFFINE, root / f"labels/c{number}.nii")
    files = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.nii")}
    items = [
        {
            "image": f"images/c{number}_0000.nii",
            "label": f"./labels/c{number}.nii",
            "patient_id": f"p{number}",
            "case_id": f"c{number}",
            "fold": number,
            "sha256": {"image": _DIGEST, "label": _DIGEST},
        }
        for number in range(3)
    ]
    content = {
        "name": "phantoms",
        "licence": "CC0",
        "dataset_dir": ".",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "block"},
        "training": items[:2],
        "test": [items[2]["image"]],
    }
    nnunet = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "block": 1},
        "numTraining": 3,
        "file_ending": ".nii",
    }
    raw = {name.replace("images/", "imagesTr/").replace("labels/", "labelsTr/"): data for name, data in files.items()}
    splits = json.dumps([{"train": ["c0", "c1"], "val": ["c2"]}, {"train": ["c2"], "val": ["c0", "c1"]}]).encode()
    raw["splits_final.json"] = splits
    return [
        Seed("datalist", {**files, "dataset.json": json.dumps(content).encode()}, "dataset.json", "json"),
        Seed("nnU-Net", {**raw, "dataset.json": json.dumps(nnunet).encode()}, "dataset.json", "json"),
        Seed("splits", {**raw, "dataset.json": json.dumps(nnunet).encode()}, "splits_final.json", "json"),
    ]


def _audit(case: Path) -> str:
    from medseg.manifests import Manifest
    from medseg.manifests.audit_checks import audit

    manifest = Manifest.read(case)
    report = audit(manifest, workers=1)
    manifest.write(case / "again.json")
    for number in range(2):
        _tolerated(partial(manifest.fold, number))
    _tolerated(lambda: manifest.split(2, seed=0))
    return "blocked" if report.blocks_training else "passed"


def _tolerated(call: Callable[[], object]) -> None:
    """Several readers look at one file, and each may refuse it."""
    with contextlib.suppress(MedsegError):
        call()


# --- weights and trust ----------------------------------------------------------------------------------------------


def _weights(root: Path) -> list[Seed]:
    import torch
    from safetensors.torch import save_file

    from medseg.trust.error_net import ErrorNet, ErrorNetShape

    state = {"conv.weight": torch.ones(2, 1, 3, 3, 3), "conv.bias": torch.zeros(2), "count": torch.tensor([3])}
    save_file(state, root / "model.safetensors", metadata={"format": "pt"})
    ErrorNet(ErrorNetShape(label_channels=2, channels=2, layers=1)).write(root / "critic.safetensors", _DIGEST)
    return [
        _one(root / name, name.partition(".")[0], "safetensors") for name in ("model.safetensors", "critic.safetensors")
    ]


def _load_weights(case: Path) -> str:
    from medseg.bundle.audit_weights import judge_safetensors
    from medseg.bundle.checkpoints import read_weights
    from medseg.trust.error_net import ErrorNet

    (path,) = case.iterdir()
    findings = judge_safetensors(path, path.name)
    if path.name.startswith("critic"):
        ErrorNet.read(path)
    else:
        read_weights(path)
    return "found and loaded" if findings else "loaded"


def _trust(_: Path) -> list[Seed]:
    from medseg.results.accept_table import AcceptTable
    from medseg.results.verdict import Thresholds
    from medseg.trust import calibration, fault_classifier, out_of_distribution, volume_interval
    from medseg.trust.gradient_boosting import BoostedTrees, Tree
    from medseg.trust.out_of_distribution import OODDetector

    asked, left, right = (0, -1, 1, -1, -1), (1, 0, 3, 0, 0), (2, 0, 4, 0, 0)
    tree = Tree(asked, (0.5, 0.0, 0.2, 0.0, 0.0), left, right, (0.0, 0.1, 0.0, 0.2, 0.3))
    structure = calibration.StructureCalibration(
        *(1, "block", ("a", "b"), BoostedTrees(0.5, 0.1, (tree, tree)), (0.0, 1.0), (0.1, 0.2), 1.5, 20, 10),
        kinds=(calibration.KindBound("noise", 2.0, 9),),
    )
    thresholds, yes = Thresholds(0.8, 0.5), np.array([True, False])
    table = AcceptTable.of(np.array([0.9, 0.7]), yes, yes, ["a", "b"], thresholds=(0.8,))
    parts: dict[str, Any] = {
        "calibration": calibration.Calibration(
            ("a", "b"), 0.9, _DIGEST, thresholds, (structure,), "phantoms", (), table
        ),
        "case_class": fault_classifier.FaultClassifier(
            ("usual", "noise"), (0.0, 1.0), (1.0, 2.0), ((0.1, 0.2), (0.3, 0.4)), (0.0, 0.1), {"usual": 0.9}, _DIGEST
        ),
        "reference": out_of_distribution.TrainingStatistics(
            ("0",),
            4,
            dict.fromkeys(
                ("encoder", "image", "shape"), OODDetector((0.0, 1.0), (1.0, 1.0), ((1.0, 0.0),), (0.5,), 0.7)
            ),
            {"encoder": 3.0},
            _DIGEST,
        ),
        "volume_interval": volume_interval.VolumeInterval(
            0.9,
            _DIGEST,
            (
                volume_interval.StructureInterval(
                    1, "block", ("a", "b"), BoostedTrees(0.1, 0.1, (tree,)), (0.0, 1.0), (0.1, 0.2), 1.5, 20, 10, 0.5
                ),
            ),
        ),
    }
    files = {
        f"trust/{name}.json": json.dumps({"format": part.file_format, **part.to_json()}).encode()
        for name, part in parts.items()
    }
    output = {"type": "probabilities", "num_channels": 2, "channel_def": {"0": "background", "1": "block"}}
    data_format = {"inputs": {"image": {"num_channels": 1}}, "outputs": {"pred": output}}
    files["configs/metadata.json"] = json.dumps({"version": "0.1.0", "network_data_format": data_format}).encode()
    files["configs/inference.json"] = b'{"network_def": {"_target_": "torch.nn.Identity"}}'
    return [Seed(name, files, f"trust/{name}.json", "json") for name in parts]


def _use_trust(case: Path) -> str:
    from medseg.bundle import Bundle
    from medseg.trust.calibration import Calibration
    from medseg.trust.fault_classifier import FaultClassifier
    from medseg.trust.out_of_distribution import TrainingStatistics
    from medseg.trust.trust_files import trust_state
    from medseg.trust.volume_interval import VolumeInterval

    state = trust_state(Bundle.open(case))
    json.dumps([state.as_json(), state.describe()])
    found = Calibration.read(case / "trust/calibration.json")
    for value in (0.3, -1e30, float("nan")):
        estimates = found.estimate(dict.fromkeys(found.features, value), "noise")
        assert all(0 <= e.lower_bound <= 1 and 0 <= e.predicted_dice <= 1 for e in estimates), "no share"
        assert found.thresholds.decide(estimates) in {"accept", "review", "reject"}
    kinds = FaultClassifier.read(case / "trust/case_class.json", {_DIGEST})
    assert np.isfinite(list(kinds.probabilities(np.zeros(len(kinds.mean))).values())).all(), "no probabilities"
    reference = TrainingStatistics.read(case / "trust/reference.json", {_DIGEST})
    for detector in reference.detectors.values():
        assert detector.distance(np.zeros(len(detector.mean))) >= 0, "no distance"
    volumes = VolumeInterval.read(case / "trust/volume_interval.json", {_DIGEST})
    for one in volumes.structures:
        factors = one.factors(dict.fromkeys(volumes.features, 0.3), volumes.coverage)
        assert factors is None or 0.1 <= factors.low <= 1 <= factors.high <= 10, "no interval"
    return state.state


# --- rules and runs -------------------------------------------------------------------------------------------------


def _rules(_: Path) -> list[Seed]:
    rule = {
        "channel": "t1",
        "modality": ["MR", "CT"],
        "orientation": "axial",
        "slices": {"min": 3, "max": 300},
        "spacing_mm": {"max": [1.5, 1.5, 6]},
        "slice_spacing_mm": {"min": 0.5},
        "fov_mm": {"min": [10, 10, 10]},
        "description": "t1.*(mprage|bravo)",
        "exclude_description": "scout",
        "contrast": False,
        "take": "latest",
    }
    content = {"rules": [rule, {"channel": "t2", "take": "most-slices"}]}
    return [Seed("rules", {"rules.json": json.dumps(content).encode()}, "rules.json", "json")]


def _select(case: Path) -> str:
    from medseg.ingest.selection import read_rules, select, selected_studies

    rules = read_rules(case / "rules.json")
    known: dict[str, Any] = {
        "kind": "dicom",
        "study_uid_hash": "s",
        "modality": "MR",
        "usable": True,
        "contrast": False,
        "shape": (12, 10, 8),
        "spacing_mm": (0.7, 0.8, 2.5),
        "affine": tuple(map(tuple, _AFFINE.tolist())),
        "orientation": "LAS",
    }
    names = ("t1 mprage", "t2 tse", "t1 bravo", "scout")
    records = [
        SeriesRecord(f"series-{n}", "x", files=(f"{n}.dcm",), series_uid_hash=str(n), description=name, **known)
        for n, name in enumerate(names)
    ]
    studies = selected_studies(select(records, rules), rules)
    return f"{sum(not study.missing for study in studies)} studies"


def _runs(_: Path) -> list[Seed]:
    structure = {"label": 1, "name": "block", "volume_ml": 1.5}
    judged = {"label": 1, "name": "block", "predicted_dice": 0.8, "lower_bound": 0.6}
    trust = {
        "verdict": "review",
        "predicted_dice": 0.8,
        "lower_bound": 0.6,
        "flags": ["unlike-training"],
        "structures": [judged],
        "look_at_mm": [1.0, 2.0, 3.0],
        "case_class": {"name": "noise", "probability": 0.7},
    }
    case = {
        "case_id": "c1",
        "source": "in/c1.nii.gz",
        "status": "done",
        "reason": None,
        "message": "",
        "seconds": 1.5,
        "outputs": ["c1_seg.nii.gz", "c1_sr.dcm"],
        "structures": [structure],
        "trust": trust,
        "trained_on": False,
    }
    refused = {"case_id": "c2", "source": "in/c2", "status": "refused", "reason": "not-3d", "message": "found 2 axes"}
    run = {
        "medseg": "1.0",
        "bundle": {"name": "phantom", "version": "0.1.0", "sha256": _DIGEST},
        "device": "cpu",
        "precision": "fp32",
        "started": "2026-01-01T00:00:00+00:00",
        "finished": "2026-01-01T00:01:00+00:00",
        "trust": {"state": "ready", "message": "", "thresholds": {"accept": 0.8, "reject": 0.5}, "coverage": 0.9},
        "cases": [case, {**case, "case_id": "c3", "trust": None}, refused],
        "summary": {"done": 2, "refused": 1, "failed": 0, "seconds": 3.0},
    }
    return [Seed("run.json", {"run.json": json.dumps(run).encode()}, "run.json", "json")]


def _read_run(case: Path) -> str:
    from medseg.evaluation.tables import measured_dice
    from medseg.report import write_report
    from medseg.results import RunReport, keep_worklist

    _tolerated(lambda: RunReport.find(case))
    _tolerated(lambda: keep_worklist(RunReport.read(case), measured_dice))
    write_report(case)
    return "shown"


TARGETS: dict[str, Target] = {
    "reading": Target(_volumes, _read_volume),
    "labels": Target(lambda root: [Seed(*files) for files in label_files(root)], read_damaged),
    "datalists": Target(_datalists, _audit),
    "weights": Target(_weights, _load_weights),
    "trust": Target(_trust, _use_trust),
    "rules": Target(_rules, _select),
    "runs": Target(_runs, _read_run),
}
"""By name."""
