"""How well agreement stands in for truth: what `medseg concord` estimates against what references say.

    python -m benchmarks.concordance DATA OUTPUT

DATA is the folder of MSD Task04_Hippocampus. Three networks learn from folds 1 to 4, shortly and each in its own way;
with the flagship, which has seen all cases and is the best reader here, they label fold 0. Panels of readers are made
of these results: as they are, with one of them spoilt in every case by a fault that is drawn, and with two that share
one error. What is done is not done again. Prints Markdown and writes ``concordance.json``.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, stats

from medseg.evaluation import evaluate_case
from medseg.evaluation.concordance import Concord, compare_case
from medseg.evaluation.matching import Matched, Offered
from medseg.files import write_json
from medseg.geometry import Geometry
from medseg.labels.raters import majority, staple

BUNDLE = Path(__file__).parents[1] / "bundles" / "hippocampus_mri_segmentation"
TRIED = 0
NETWORKS: dict[str, dict[str, Any]] = {
    "plain": {"epochs": 10, "seed": 1},
    "few": {"epochs": 10, "seed": 2, "training_cases": 24},
    "brief": {"epochs": 3, "seed": 3},
}
"""Networks that have not seen the cases, by what is peculiar to their training."""
NAMES = {1: "anterior", 2: "posterior"}

Labels = NDArray[Any]
Maps = dict[str, Labels]


def trained(data: Path, output: Path, name: str) -> Path:
    """A copy of the flagship's bundle with weights of its own."""
    bundle = output / "bundles" / name
    if not bundle.is_dir():
        shutil.copytree(BUNDLE, bundle, ignore=shutil.ignore_patterns("trust", "models"))
        content = json.loads((BUNDLE / "configs" / "datalist.json").read_text())
        write_json(bundle / "configs" / "datalist.json", {**content, "dataset_dir": str(data)})
    if not (bundle / "models" / "model.pt").is_file():
        from medseg.training import train_bundle

        plain = {"batch_size": 2, "adversarial_share": 0, "val_interval": 100, "judge_steps": 0}
        train_bundle(
            bundle,
            dataset_dir=data,
            fold=TRIED,
            output=output / "runs" / name,
            resume=True,
            publish="final",
            device="cpu",
            overrides={**plain, **NETWORKS[name]},
        )
    return bundle


def labelled(data: Path, output: Path) -> dict[str, Maps]:
    """Label maps of fold 0 by case and reader, the truth among them."""
    items = json.loads((BUNDLE / "configs" / "datalist.json").read_text())["training"]
    names = [Path(item["image"]).name for item in items if item["fold"] == TRIED]
    for reader in ("flagship", *NETWORKS):
        if not (output / "labels" / reader / "run.json").is_file():  # written once all cases are labelled
            from medseg.inference import Options, run_batch

            bundle = BUNDLE if reader == "flagship" else trained(data, output, reader)
            options = Options(precision="fp32", device="cpu", trust=False)
            run_batch(bundle, [data / "imagesTr" / name for name in names], output / "labels" / reader, options)
    return {
        name.removesuffix(".nii.gz"): {
            "truth": read(data / "labelsTr" / name),
            **{
                reader: read(output / "labels" / reader / name.replace(".nii.gz", "_seg.nii.gz"))
                for reader in ("flagship", *NETWORKS)
            },
        }
        for name in names
    }


def read(path: Path) -> Labels:
    """Labels of a file; all of this study have voxels of 1 mm."""
    return np.asarray(nib.load(path).dataobj).astype(np.uint8)


def eroded(labels: Labels) -> Labels:
    """One voxel less all round."""
    return np.where(ndimage.binary_erosion(labels > 0), labels, 0).astype(np.uint8)


FAULTS: dict[str, Callable[[Labels], Labels]] = {
    "shifted by 2 mm": lambda labels: np.roll(labels, 2, axis=0),
    "eroded by 1 mm": eroded,
    "posterior part lost": lambda labels: np.where(labels == 2, 0, labels).astype(np.uint8),
    "half of the voxels lost": lambda labels: np.where(
        np.random.default_rng(0).random(labels.shape) < 0.5, labels, 0
    ).astype(np.uint8),
}


def spoilt(maps: Maps, case: str) -> Maps:
    """Three networks, one of them drawn and spoilt by a fault that is drawn."""
    draw = np.random.default_rng(int(case[-3:]))
    made = {name: maps[name] for name in ("flagship", "plain", "few")}
    who, fault = draw.choice(list(made)), draw.choice(list(FAULTS))
    return {**made, who: FAULTS[fault](made[who])}


def aside(maps: Maps, case: str) -> Maps:
    """Three networks, one of them drawn and moved by 1 mm: hardly worse than networks differ."""
    who = ("flagship", "plain", "few")[int(case[-3:]) % 3]
    return {name: np.roll(maps[name], int(name == who), axis=0) for name in ("flagship", "plain", "few")}


def sharing(maps: Maps, _: str) -> Maps:
    """Two of three networks with one error: their results lie 2 mm aside."""
    return {"flagship": maps["flagship"], **{name: np.roll(maps[name], 2, axis=0) for name in ("plain", "few")}}


PANELS: dict[str, Callable[[Maps, str], Maps]] = {
    "three networks": lambda maps, _: {name: maps[name] for name in ("flagship", "plain", "few")},
    "four networks, one poor": lambda maps, _: {name: maps[name] for name in ("flagship", "plain", "few", "brief")},
    "three, one spoilt in each case": spoilt,
    "three, one 1 mm aside in each case": aside,
    "three, two share an error": sharing,
}


@dataclass(frozen=True)
class Point:
    """One reader's structure in one case: what is true, and what stands for it."""

    case: str
    reader: str
    structure: str
    true: float
    stands: Mapping[str, float]


def true_dice(labels: Labels, truth: Labels) -> dict[int, float]:
    """Dice by structure; 1 where both lack it."""
    rows = evaluate_case(labels, truth, (1.0, 1.0, 1.0), NAMES)
    return {row.label: 1.0 if row.dice is None else row.dice for row in rows}


def measured(case: str, maps: Maps, truth: Labels, margin: float) -> tuple[list[Point], Concord]:
    """Every estimate of a panel in a case, and the command's own comparison."""
    structures = [Matched(name, dict.fromkeys(maps, Offered(name, (value,))), "name") for value, name in NAMES.items()]
    found = compare_case(case, maps, Geometry(truth.shape, np.eye(4)), structures, margin)
    agreed = {"majority": majority(list(maps.values())), "STAPLE": staple(list(maps.values()))}
    points = []
    for reader, labels in maps.items():
        true = true_dice(labels, truth)
        consensus = {way: true_dice(labels, other) for way, other in agreed.items()}
        for value, name in NAMES.items():
            [own] = [one for one in found.opinions if (one.reader, one.structure) == (reader, name)]
            stands = {
                "estimated": np.nan if own.estimated_dice is None else own.estimated_dice,
                "agreement": np.nan if own.agreement is None else own.agreement,
                **{way: dice[value] for way, dice in consensus.items()},
            }
            points.append(Point(case, reader, name, true[value], stands))
    return points, found


def against_truth(points: Sequence[Point], what: str) -> dict[str, float]:
    """How one estimate stands to the truth: over all points, and the readers' means in order."""
    known = np.array([(one.stands[what], one.true) for one in points if np.isfinite(one.stands[what])])
    return {
        "n": len(known),
        "pearson": float(stats.pearsonr(*known.T).statistic),
        "spearman": float(stats.spearmanr(*known.T).statistic),
        "bias": float((known[:, 0] - known[:, 1]).mean()),
        "mae": float(np.abs(known[:, 0] - known[:, 1]).mean()),
    }


def odd(points: Sequence[Point], cases: Sequence[Concord]) -> dict[str, Any]:
    """How often an odd one out is named, and how often it is the truly worst of its case."""
    right, gaps = [], []
    for case in cases:
        means: dict[str, list[float]] = {}
        for one in points:
            if one.case == case.case_id:
                means.setdefault(one.reader, []).append(one.true)
        ranked = sorted((float(np.mean(values)), reader) for reader, values in means.items())
        if case.odd:
            right.append(ranked[0][1] == case.odd)
        else:
            gaps.append(float(np.mean([dice for dice, _ in ranked[1:]])) - ranked[0][0])
    return {"named": len(right), "worst": sum(right), "of": len(cases), "gap_where_none": float(np.mean(gaps or [0]))}


def panel(name: str, cases: Mapping[str, Maps], margin: float) -> dict[str, Any]:
    """All figures of a panel."""
    points: list[Point] = []
    compared = []
    for case, maps in cases.items():
        made, found = measured(case, PANELS[name](maps, case), maps["truth"], margin)
        points += made
        compared.append(found)
    readers = {
        reader: {
            "true": float(np.mean([one.true for one in points if one.reader == reader])),
            "estimated": float(np.nanmean([one.stands["estimated"] for one in points if one.reader == reader])),
        }
        for reader in dict.fromkeys(one.reader for one in points)
    }
    return {
        "readers": readers,
        "estimates": {what: against_truth(points, what) for what in points[0].stands},
        "odd": odd(points, compared),
    }


def main() -> None:
    """Train, label, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--margin", type=float, default=0.05)
    options = parser.parse_args()
    data, output = options.data.absolute(), options.output.absolute()
    cases = labelled(data, output)
    found = {name: panel(name, cases, options.margin) for name in PANELS}
    write_json(output / "concordance.json", found)
    print("| panel | stands for Dice | r | rho | bias | mean error |\n| --- | --- | ---: | ---: | ---: | ---: |")
    for name, of in found.items():
        for what, one in of["estimates"].items():
            figures = " | ".join(f"{one[key]:+.3f}" for key in ("pearson", "spearman", "bias", "mae"))
            print(f"| {name} | {what} | {figures} |")
    print("\n| panel | reader: true, estimated | odd one out named | of these truly worst | gap where none |")
    print("| --- | --- | ---: | ---: | ---: |")
    for name, of in found.items():
        means = "; ".join(f"{who} {one['true']:.3f}, {one['estimated']:.3f}" for who, one in of["readers"].items())
        counts = of["odd"]
        print(f"| {name} | {means} | {counts['named']} of {counts['of']} | {counts['worst']} |"
              f" {counts['gap_where_none']:.3f} |")  # fmt: skip


if __name__ == "__main__":
    main()
