"""Scores of the cases of :mod:`benchmarks.trust_cases`, by a critic and a reference that have not seen the patient."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.trust_cases import KINDS, Run, load_network, prepared, read
from medseg.bundle import Bundle
from medseg.bundle.checkpoints import read_weights
from medseg.files import sha256_file, write_json
from medseg.networks import ConditionalPatchDiscriminator
from medseg.training.judge import JUDGE_NAME
from medseg.trust.crop import most_probable, structure_box
from medseg.trust.error_net import ErrorNet, ErrorNetShape
from medseg.trust.features import case_features
from medseg.trust.fit import start_error_net
from medseg.trust.fit_cases import TrainingCase, TrustCase
from medseg.trust.out_of_distribution import TrainingStatistics, fit_training_statistics
from medseg.trust.regression import fold_of

Row = dict[str, Any]


class Stored(Sequence[TrustCase]):
    """Cases on disk, read when asked for."""

    def __init__(self, folders: Sequence[Path], kinds: Sequence[str] = KINDS) -> None:
        self.where: list[tuple[Path, str, int]] = []
        self.patients: list[str] = []
        self.kinds: list[str] = []
        for folder in folders:
            for kind in kinds:
                with np.load(folder / f"{kind}.npz") as content:
                    names = [str(name) for name in content["patients"]]
                self.where += [(folder, kind, i) for i in range(len(names))]
                self.patients += names
                self.kinds += [kind] * len(names)
        self._open: dict[Path, Any] = {}

    def __len__(self) -> int:
        return len(self.where)

    def __getitem__(self, index: Any) -> Any:
        folder, kind, i = self.where[index]
        path = folder / f"{kind}.npz"
        if path not in self._open:
            self._open[path] = np.load(path)
        return read(self._open[path], i, kind)


def reference_of(bundle: Bundle, data: Path, run: Run, cache: Path) -> tuple[nn.Module, TrainingStatistics]:
    """A run's network and what its training cases look like to it."""
    network, path = load_network(bundle, run.weights), cache / run.folder.name / "reference.json"
    sha256 = sha256_file(run.weights)
    if not path.is_file():
        cases = prepared(bundle, data, run.fold, "training")
        training = [TrainingCase(torch.from_numpy(c["image"])[None], c["reference"]) for c in cases]
        fit_training_statistics(network, training, bundle.output_channels, sha256).write(path)
    return network, TrainingStatistics.read(path, [sha256])


def crossed(runs: Sequence[Run], cases: Stored, parts: int) -> np.ndarray[Any, Any]:
    """Part of every case for cross-fitting: its fold, or a part of the patients if there is one fold alone."""
    if len(runs) == 1:
        return fold_of(cases.patients, parts)
    return np.array([[run.folder.name for run in runs].index(where[0].name) for where in cases.where])


def started(bundle: Bundle, run: Run, start: str) -> ErrorNet:
    """An error net that begins as a run's judge, else as its discriminator if it has one; or ``random``, as large."""
    torch.manual_seed(0)
    judge = run.folder / "checkpoints" / JUDGE_NAME
    if not judge.is_file():
        return start_error_net(bundle, run.folder / "none" if start == "random" else run.discriminator)
    kept = torch.load(judge, map_location="cpu", weights_only=True)
    how = {key: int(kept["made_by"]["definition"].get(key, 0)) for key in ("channels", "layers", "products")}
    found = ErrorNet(ErrorNetShape(bundle.output_channels, bundle.input_channels, **how))
    if start != "random":
        weights = {key: value for key, value in kept["weights"].items() if key.startswith("scales.0.")}
        found.discriminator.load_state_dict(weights)
    return found


def adversary_scores(discriminator: ConditionalPatchDiscriminator, image: Tensor, probabilities: Tensor) -> Row:
    """The discriminator as adversarial training left it: logits round every structure, softmax and one-hot."""
    labels = most_probable(probabilities)
    box = (slice(None), *structure_box(labels))
    hard = torch.nn.functional.one_hot(labels, len(probabilities)).movedim(-1, 0).float()
    row: Row = {}
    for name, judged in (("soft", probabilities), ("hard", hard)):
        with torch.inference_mode():
            logits = discriminator(image[box][None], judged[box][None]).logits[0]
        for label in range(1, len(probabilities)):
            mask = (labels[box[1:]] == label).float()[None, None]
            near = torch.nn.functional.adaptive_max_pool3d(mask, logits.shape[2:]) > 0
            values = logits[near] if bool(near.any()) else logits.flatten()
            row[f"adversary-{name}-mean[{label}]"] = float(values.mean())
            row[f"adversary-{name}-low[{label}]"] = float(values.quantile(0.1))
    return row


def adversary_of(bundle: Bundle, run: Run) -> ConditionalPatchDiscriminator | None:
    """A run's discriminator as adversarial training left it; None if it had none."""
    if not run.discriminator.is_file():
        return None
    found = ErrorNetShape(bundle.output_channels, bundle.input_channels).discriminator()
    found.load_state_dict(read_weights(run.discriminator))
    return found.eval()


def rows_of(cases: Stored, which: Sequence[int], judges: Mapping[str, Any], labels: Sequence[int]) -> list[Row]:
    """Everything known of the given cases; ``control`` among the judges is a second error net."""
    rows = []
    for i in which:
        case: TrustCase = cases[i]
        known = case_features(case.crop, judges["critic"])
        again = judges["reference"].reinfer(judges["network"], known)
        scores = {**known.values, **again.features, **judges["head"].features(again.embedding)}
        if judges.get("control"):
            told = case_features(case.crop, judges["control"]).values
            scores |= {f"control-{name}": value for name, value in told.items() if name.startswith("critic-")}
        if judges.get("adversary"):
            scores |= adversary_scores(judges["adversary"], case.crop.image, case.crop.probabilities)
        overlaps = {str(label): case.overlap(label) for label in labels}
        truth = {
            "dice": {label: one.dice for label, one in overlaps.items()},
            "log_ratio": {label: one.log_ratio for label, one in overlaps.items()},
        }
        whose = {"number": i, "patient": case.patient, "kind": case.fault or "own"}
        rows.append({**whose, "scores": scores, **truth})
    return rows


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Keep rows as JSON."""
    write_json(path, list(rows))


def read_rows(path: Path) -> list[Row]:
    """Rows kept by :func:`write_rows`."""
    return list(json.loads(path.read_text()))
