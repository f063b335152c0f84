"""Which construction of the discriminator learns to judge: the acceptance table for each option, on held-out cases.

    python -m benchmarks.discriminator BUNDLE DATA OUTPUT [--options classical hinge ...] [--steps 500]
    python -m benchmarks.discriminator BUNDLE DATA OUTPUT --publish classical

BUNDLE is a segmentation bundle with weights. Its generator is frozen; a fresh discriminator learns from crops of the
other folds, by the bundle's own ``train.json``, and is tried on the held-out fold: the acceptance test, the rank
correlation of its mean logit with Dice over the generator's predictions of clean and of noisy images, and what it
accepts of these and how good that is. One JSON file and one set of weights for each option; what is there is not done
again. ``shipped`` tries what the bundle has; ``judge`` is what ``medseg train`` ends with.
``--publish`` writes the discriminator of an option into the bundle's ``trust/``, with definition and acceptance.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigWorkflow
from monai.inferers import SlidingWindowInferer
from monai.utils import set_determinism
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from medseg.bundle import Bundle
from medseg.evaluation import StructureResult, evaluate_case
from medseg.evaluation.accepted import acceptances
from medseg.files import atomic_path, write_json
from medseg.networks import ConditionalPatchDiscriminator
from medseg.phantom import write_dataset
from medseg.results import CaseResult
from medseg.training import AdversarialLoss, AdversarialSchedule, Adversary
from medseg.training.configuration import parse_overrides
from medseg.training.judge import JudgeRecipe, judge_definition, learn_judge
from medseg.training.publish import publish_discriminator
from medseg.trust.discriminator import DiscriminatorJudge, Judging, accept_discriminator, mean_logit, read_discriminator
from medseg.trust.discriminator_acceptance import DiscriminatorAcceptance

OPTIONS: dict[str, dict[str, Any]] = {
    "shipped": {},
    "classical": {},
    "hinge": {"loss": AdversarialLoss("hinge")},
    "least-squares": {"loss": AdversarialLoss("least-squares")},
    "spectral": {"definition": {"spectral": True, "norm": None}},
    "R1": {"penalty": 1.0},
    "products": {"definition": {"products": True}},
    "judge": {},
    "two-scales": {"definition": {"scales": 2}},
    "predictions-alone": {"wrong_pairs": 0.0},
    "wrong-pairs-alone": {"wrong_pairs": 1.0},
}
"""Arguments of the adversary; ``definition`` of the discriminator."""
NOISE = (0.0, 0.5, 1.0, 2.0)
"""Standard deviations of the noise on the images whose predictions are judged; the images' own is 1."""


class Subject:
    """A bundle's data and its frozen generator."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.bundle, self.steps, self.output = Bundle.open(options.bundle), options.steps, options.output
        given = parse_overrides(options.set)
        if options.datalist:
            given["datalist"] = str(options.datalist)
        workflow = ConfigWorkflow(
            config_file=str(self.bundle.path / "configs" / "train.json"),
            logging_file=False,
            workflow_type="train",
            run_id="training",
            bundle_root=str(self.bundle.path),
            dataset_dir=str(options.data),
            device="cpu",
            fold=options.fold,
            output_dir=str(options.output / "run"),
            batch_size=options.crops,
            iterations=options.steps,
            epochs=1,
            **given,
        )
        workflow.initialize()
        parsed = workflow.parser.get_parsed_content
        self.loader, self.held_out = parsed("train#dataloader"), parsed("validate#dataset")
        self.inferer: SlidingWindowInferer = parsed("validate#inferer")
        config = workflow.parser.config
        self.definition = dict(config["discriminator_def"])
        self.spacing_mm = tuple(parsed("spacing_mm"))
        self.rate, self.noise = config["discriminator_learning_rate"], config["adversary"]["noise"]
        self.network = self.bundle.load_network().eval()
        self.judging = Judging(tuple(parsed("patch_size")), self.bundle.output_channels)

    def learn(
        self, name: str, arguments: dict[str, Any], definition: dict[str, Any]
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Weights of a discriminator after its steps, and core-seconds."""
        if name == "judge":
            recipe = JudgeRecipe(self.steps, self.loader.batch_size, seed=self.loader.dataset.seed)
            judge = learn_judge(self.loader.dataset, definition, recipe)
            return judge.network.state_dict(), {"learning": judge.core_seconds}
        set_determinism(seed=0)
        discriminator = built(definition)
        optimizer = torch.optim.AdamW(discriminator.parameters(), lr=self.rate, betas=(0.5, 0.99), weight_decay=0.0)
        adversary = Adversary(
            discriminator,
            optimizer,
            AdversarialSchedule(),
            scheduler=CosineAnnealingLR(optimizer, self.steps, eta_min=0.02 * self.rate),
            max_norm=10.0,
            **{"noise": self.noise} | {key: value for key, value in arguments.items() if key != "definition"},
        )
        begun = time.process_time()
        for batch in islice(self.loader, self.steps):
            with torch.no_grad():
                prediction = self.network(batch["image"])
            adversary.learn(batch["image"], batch["label"], prediction, 1.0, update=True)
        return discriminator.state_dict(), {"learning": time.process_time() - begun}

    def cases(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Image and label of the held-out cases."""
        for number in range(len(self.held_out)):
            case = self.held_out[number]
            yield torch.as_tensor(case["image"]), torch.as_tensor(case["label"])

    def predictions(self) -> list[list[Tensor]]:
        """The generator's label maps of each held-out case, by the noise on its image; made once, and kept."""
        path = self.output / "predictions.pt"
        if not path.is_file():
            found = []
            for number, (image, _) in enumerate(self.cases()):
                with torch.inference_mode():
                    logits = [self.inferer(_noisy(image, number, sigma)[None], self.network)[0] for sigma in NOISE]
                found.append([one.argmax(0, keepdim=True).to(torch.uint8) for one in logits])
            torch.save(found, path)
        kept: list[list[Tensor]] = torch.load(path, weights_only=True)
        return kept

    def ordered(self, discriminator: nn.Module, judging: Judging) -> dict[str, Any]:
        """Rank correlation of mean logit and Dice, over predictions of clean and noisy images, and of clean ones.

        And what is accepted of all, and how good it is.
        """
        rows, kept, judged = [], self.predictions(), Judgements(discriminator, judging, self.bundle.labels)
        for number, (image, label) in enumerate(self.cases()):
            truth = judging.structures(judging.segmentation(label))
            for sigma, found in zip(NOISE, kept[number], strict=True):
                segmentation = judging.segmentation(found)
                noisy = _noisy(image, number, sigma)
                logit = mean_logit(discriminator, noisy, segmentation, judging)
                judged.add(f"{number} with noise {sigma:g}", noisy, found, label, self.spacing_mm)
                rows.append((sigma, _dice(judging.structures(segmentation), truth), logit))
        table = np.array(rows)
        clean = table[table[:, 0] == 0.0]
        return {
            "spearman": float(spearmanr(table[:, 1], table[:, 2]).statistic),
            "spearman_clean": float(spearmanr(clean[:, 1], clean[:, 2]).statistic),
            "dice": float(table[:, 1].mean()),
            "dice_clean": float(clean[:, 1].mean()),
            "accepted": acceptances(judged.cases, judged.rows),
        }


class Judgements:
    """Results as the discriminator takes them, and how good they are."""

    def __init__(self, discriminator: nn.Module, judging: Judging, names: Mapping[int, str]) -> None:
        self.judge = DiscriminatorJudge(discriminator, judging, names)
        self.cases: dict[str, CaseResult] = {}
        self.rows: list[StructureResult] = []

    def add(self, case_id: str, image: Tensor, found: Tensor, truth: Tensor, spacing_mm: Sequence[float]) -> None:
        """Judge and measure label maps ``(1, H, W, D)``."""
        self.cases[case_id] = CaseResult(case_id, discriminator=self.judge.judge_labels(image, found))
        arrays = [one[0].numpy().astype(np.uint8) for one in (found, truth)]
        scored = evaluate_case(arrays[0], arrays[1], spacing_mm, self.judge.names)
        self.rows += [replace(row, case_id=case_id) for row in scored]


def built(definition: Mapping[str, Any]) -> ConditionalPatchDiscriminator:
    """A fresh discriminator, in evaluation mode."""
    return ConditionalPatchDiscriminator(**{key: one for key, one in definition.items() if key != "_target_"}).eval()


def _noisy(image: Tensor, number: int, sigma: float) -> Tensor:
    return image + sigma * torch.randn(image.shape, generator=torch.Generator().manual_seed(number))


def _dice(found: Tensor, truth: Tensor) -> float:
    """Mean over the structures that either has."""
    both, either = (found * truth).flatten(1).sum(1), (found + truth).flatten(1).sum(1)
    return float((2.0 * both[either > 0] / either[either > 0]).mean())


def measure(subject: Subject, name: str, output: Path) -> dict[str, Any]:
    """One option, as kept in ``NAME.json``; weights as ``NAME.pt``."""
    arguments = OPTIONS[name]
    judging = replace(subject.judging, threshold=arguments.get("loss", AdversarialLoss()).threshold)
    discriminator: nn.Module
    definition: dict[str, Any] | None = None
    cost: dict[str, float] = {}
    if name == "shipped":
        discriminator = read_discriminator(subject.bundle)
    else:
        stated = judge_definition(subject.definition) if name == "judge" else subject.definition
        definition = {**(stated or {}), **arguments.get("definition", {})}
        discriminator, path = built(definition), output / f"{name}.pt"
        if not path.is_file():
            weights, cost = subject.learn(name, arguments, definition)
            with atomic_path(path) as partial:
                torch.save({"weights": weights, "cost": cost}, partial)
        kept = torch.load(path, weights_only=True)
        discriminator.load_state_dict(kept["weights"])
        cost = kept["cost"]
    begun = time.process_time()
    acceptance = accept_discriminator(discriminator, subject.held_out, judging, held_out=True)
    cost["acceptance"] = time.process_time() - begun
    order = subject.ordered(discriminator, judging)
    result = {"definition": definition, "core_seconds": cost, "acceptance": acceptance.to_json(), **order}
    write_json(output / f"{name}.json", result)
    return result


def row(name: str, result: dict[str, Any]) -> str:
    """A line of the table."""
    found, cost = result["acceptance"], result["core_seconds"]
    cells = [found["real"], *found["above"].values()]
    shares = " | ".join(f"{100 * one['count'] / one['of']:.0f}" for one in cells)
    seconds = f"{cost['learning']:.0f}" if "learning" in cost else "-"
    return f"| {name} | {shares} | {result['spearman']:.2f} | {result['spearman_clean']:.2f} | {seconds} |"


def publish(bundle: Bundle, output: Path, name: str) -> None:
    """Write the discriminator of an option, its definition and its acceptance into the bundle."""
    result = json.loads((output / f"{name}.json").read_text())
    weights = torch.load(output / f"{name}.pt", weights_only=True)["weights"]
    acceptance = DiscriminatorAcceptance.from_json(result["acceptance"])

    def accept(_: Any, sha256: str) -> DiscriminatorAcceptance:
        return replace(acceptance, weights_sha256=sha256)

    publish_discriminator(bundle, weights, result["definition"], accept)
    print(f"{bundle.name}: {acceptance.describe()}")


def make_patients(bundle: Bundle, folder: Path, count: int) -> Path:
    """Synthetic patients, the first two fifths of them fold 0, and their datalist."""
    names = {"0": "background", **{str(label): name for label, name in bundle.labels.items()}}
    written = write_dataset(folder, count, seed=1000, form="nifti", kind="ct", structures=len(bundle.labels))
    items = [
        {
            "image": str(one.image.relative_to(folder)),
            "label": str(one.label.relative_to(folder)),
            "patient_id": one.patient_id,
            "fold": int(5 * number >= 2 * count),
        }
        for number, one in enumerate(written)
    ]
    write_json(folder / "datalist.json", {"name": "synthetic patients", "labels": names, "training": items})
    return folder / "datalist.json"


def main() -> None:
    """Learn, try, print; or publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("data", type=Path, help="folder that the datalist's paths start in")
    parser.add_argument("output", type=Path)
    parser.add_argument("--datalist", type=Path)
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--crops", type=int, default=2)
    parser.add_argument("--set", nargs="*", default=[], metavar="ID=VALUE", help="of train.json")
    parser.add_argument("--options", nargs="+", choices=OPTIONS, default=list(OPTIONS))
    parser.add_argument("--publish", choices=OPTIONS)
    parser.add_argument("--patients", type=int, help="make as many synthetic patients in DATA first")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.patients:
        options.datalist = make_patients(Bundle.open(options.bundle), options.data, options.patients)
    options.output.mkdir(parents=True, exist_ok=True)
    wanted = [options.publish] if options.publish else options.options
    missing = [name for name in wanted if not (options.output / f"{name}.json").is_file()]
    subject = Subject(options) if missing else None
    for name in missing:
        assert subject is not None
        print(row(name, measure(subject, name, options.output)), flush=True)
    results = {name: json.loads((options.output / f"{name}.json").read_text()) for name in wanted}
    kinds = list(next(iter(results.values()))["acceptance"]["above"])
    print("| option | true is real | " + " | ".join(kinds) + " | Spearman | clean | core-seconds |")
    print("\n".join(row(name, result) for name, result in results.items()))
    if options.publish:
        publish(Bundle.open(options.bundle), options.output, options.publish)


if __name__ == "__main__":
    main()
