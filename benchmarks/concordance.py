"""How well agreement stands in for truth: the estimated Dice of `medseg concord` against the true one.

    python -m benchmarks.concordance DATA OUTPUT [--only train]

DATA is the folder of MSD Task04_Hippocampus. Three networks learn from folds 1 to 4, shortly and each in its own way;
with the flagship, which has seen all cases and is the best reader here, they label fold 0. Further readers are made of
the flagship's results: eroded, shifted, with a structure dropped. What is done is not done again.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from medseg.files import write_json
from medseg.training import train_bundle

BUNDLE = Path(__file__).parents[1] / "bundles" / "hippocampus_mri_segmentation"
TRIED = 0
NETWORKS: dict[str, dict[str, Any]] = {
    "plain": {"epochs": 10, "seed": 1},
    "few": {"epochs": 10, "seed": 2, "training_cases": 24},
    "brief": {"epochs": 3, "seed": 3},
}
"""Networks that have not seen the cases, by what is peculiar to their training."""


def trained(data: Path, output: Path, name: str) -> Path:
    """A copy of the flagship's bundle with weights of its own."""
    bundle = output / "bundles" / name
    if not bundle.is_dir():
        shutil.copytree(BUNDLE, bundle, ignore=shutil.ignore_patterns("trust", "models"))
        content = json.loads((BUNDLE / "configs" / "datalist.json").read_text())
        write_json(bundle / "configs" / "datalist.json", {**content, "dataset_dir": str(data)})
    if not (bundle / "models" / "model.pt").is_file():
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


def main() -> None:
    """Train, label, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--only", choices=("train", "all"), default="all")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data, output = options.data.absolute(), options.output.absolute()
    for name in NETWORKS:
        print(trained(data, output, name), flush=True)


if __name__ == "__main__":
    main()
