"""The simple ways to judge a result, for comparison: does it agree with other looks, or with other networks?

Every score is the mean Dice of a structure between the result and what one more forward pass gives: on the image mildly
disturbed (test-time augmentation), or by an earlier checkpoint of the same run, where it has kept them in ``weak``
(snapshot ensemble; the networks of the other folds have learnt these very patients, and would know too much). Each
costs as many forward passes as it has members, so this is done for every n-th result alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import nn

from benchmarks import trust_figures as figures
from benchmarks.trust_cases import Floats, Run, load_network, probabilities_of
from benchmarks.trust_scores import Row, Stored
from medseg.bundle import Bundle
from medseg.files import write_json

SNAPSHOTS = (300, 400, 600)
COMPARED: Mapping[str, Callable[[str], bool]] = {
    "as shipped": figures.is_shipped,
    "softmax entropy": lambda name: name.startswith("mean-entropy"),
    "augmentation agreement": lambda name: name.startswith("looks"),
    "snapshot agreement": lambda name: name.startswith("members"),
    "augmentation and snapshots": lambda name: name.startswith(("looks", "members")),
}


def looks(image: Floats, rng: np.random.Generator) -> list[Floats]:
    """Four mild disturbances that leave every voxel in its place."""
    noisy = image + rng.normal(0.0, 0.15, image.shape).astype(np.float32)
    bright, flat = 1.15 * image + 0.1, 0.85 * image - 0.1
    return [noisy, bright, flat, gaussian_filter(image, 0.6)]


def agreement(result: NDArray[Any], others: Sequence[NDArray[Any]], label: int) -> float:
    """Mean Dice of one structure between a label map and others; 1 where neither has it."""
    mine, found = result == label, []
    for other in others:
        theirs = other == label
        total = int(mine.sum() + theirs.sum())
        found.append(2.0 * float((mine & theirs).sum()) / total if total else 1.0)
    return float(np.mean(found))


def baseline_scores(
    image: Floats, result: NDArray[Any], networks: Sequence[nn.Module], labels: Sequence[int]
) -> dict[str, float]:
    """``looks[label]`` and ``members[label]`` of one result ``(H, W, D)``; the first network made it."""
    rng = np.random.default_rng(0)

    def labelled(by: nn.Module, seen: Floats) -> NDArray[Any]:
        return np.asarray(probabilities_of(by, np.ascontiguousarray(seen, np.float32)).argmax(0))

    others = {
        "looks": [labelled(networks[0], seen) for seen in looks(image, rng)],
        "members": [labelled(member, image) for member in networks[1:]],
    }
    return {f"{kind}[{n}]": agreement(result, maps, n) for kind, maps in others.items() if maps for n in labels}


def with_baselines(bundle: Bundle, runs: Sequence[Run], cache: Path, rows: Sequence[Row], every: int) -> list[Row]:
    """Every n-th of the rows with these scores added, kept in the cache."""
    path = cache / f"baselines-{'-'.join(str(run.fold) for run in runs)}-{every}.json"
    if path.is_file():
        return list(json.loads(path.read_text()))
    known = {(row["fold"], row["number"]): row for row in rows}  # a patient may have two images
    found: list[Row] = []
    for run in runs:
        cases = Stored([cache / run.folder.name])
        kept = [run.snapshot(number) for number in SNAPSHOTS]
        weights = [run.weights, *(kept if all(path.is_file() for path in kept) else ())]
        networks = [load_network(bundle, path) for path in weights]
        for number in range(run.fold % every, len(cases), every):
            case = cases[number]
            row = known[(run.fold, number)]
            result = case.crop.probabilities.numpy().argmax(0)
            scores = baseline_scores(case.crop.image[0].numpy(), result, networks, list(bundle.labels))
            found.append({**row, "scores": {**row["scores"], **scores}})
    write_json(path, found)
    return found


def compared(rows: Sequence[Row], labels: Sequence[str]) -> dict[str, Any]:
    """Quality of each way, with the area under its risk–coverage curve beside the best possible and that of chance."""
    known = rows[0]["scores"]
    compared = {name: chosen for name, chosen in COMPARED.items() if any(map(chosen, known))}
    return {name: figures.part_quality(rows, labels, chosen) for name, chosen in compared.items()}
