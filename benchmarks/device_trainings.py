"""Trainings for :mod:`benchmarks.device_check`: losses beside those of the CPU, resumption, the time of a step."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.device_checks import Outcome, Setting, Task, beside, dynunet, peak_bytes, synchronised

__all__ = ["Steps", "Trainings", "compare_losses"]

FIRST_LOSS, LAST_LOSS = {"fp32": 0.001, "reduced": 0.01}, {"fp32": 0.01, "reduced": 0.05}
"""Largest relative difference of a loss in the first iteration, and in any: Adam makes much of little differences."""

_RANDOM_AGAIN = 10.0
"""A resumed run may be so many times as far from an uninterrupted one as this is from its own repetition."""

_MOST_LINES = 6
"""Of layers, and of iterations, are printed; all of them are in the JSON."""


class _Losses:
    """Notes the losses of every iteration; after iteration ``stop`` it asks the run to stop, as a batch system does."""

    def __init__(self, stop: int = 0) -> None:
        self.stop = stop
        self.rows: list[dict[str, float]] = []

    def attach(self, engine: Any) -> None:
        from ignite.engine import Events

        engine.add_event_handler(Events.ITERATION_COMPLETED, self._note, engine)

    def _note(self, engine: Any) -> None:
        output = engine.state.output
        first = output[0] if isinstance(output, list) else output
        self.rows.append({"generator": float(first["loss"]), "discriminator": float(first["discriminator_loss"])})
        if engine.state.iteration == self.stop:
            signal.raise_signal(signal.SIGTERM)


@dataclass(frozen=True)
class _Training:
    losses: list[dict[str, float]]
    precision: dict[str, Any]
    folder: Path

    def weights(self) -> dict[str, torch.Tensor]:
        names = ("final.pt", "final_discriminator.pt")
        states = {name: torch.load(self.folder / "checkpoints" / name, weights_only=True) for name in names}
        return {f"{name} {key}": value for name, state in states.items() for key, value in state.items()}


class Trainings:
    """Short trainings of the shipped hippocampus bundle on phantoms; each is run once, whoever asks for it."""

    losses = "Losses of a training against those of the CPU in fp32"
    resumed = "A training that was interrupted and resumed"

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self._done: dict[Path, _Training] = {}

    def tasks(self) -> Iterator[Task]:
        """Losses per format, without and with deep supervision; then what is left of the format; then resumption."""
        for deep in (False, True):
            title = "DynUNet, deep" if deep else "BasicUNet"
            for precision in ("fp32", *self._reduced()):
                yield Task(self.losses, f"{title} {precision}", partial(self._compare, precision, deep))
                if precision != "fp32":
                    yield Task(self.losses, "  self-check", partial(self._self_check, precision, deep))
        for precision in ("fp32", *self._reduced()):
            yield Task(self.resumed, f"BasicUNet {precision}", partial(self._resume, precision))

    def _reduced(self) -> tuple[str, ...]:
        return {"cuda": ("auto", "fp16"), "mps": ("fp16",)}.get(self.setting.kind, ("auto",))

    def _compare(self, precision: str, deep: bool) -> Outcome:
        expected = self._run("cpu", "fp32", deep, "reference").losses
        found = self._run(self.setting.device, precision, deep)
        exact = found.precision["used"] == "fp32"
        return compare_losses(found.losses, expected, exact)

    def _self_check(self, precision: str, deep: bool) -> Outcome:
        record = self._run(self.setting.device, precision, deep).precision
        kept, used = record["kept_in_fp32"], record["used"]
        text = f"asked {record['asked']}, used {used}"
        if used == "fp32" and record["checked_on"] is None:
            return Outcome(None, f"{text}: nothing faster here", record)
        apart = [f"fp32: {name} ({error})" for name, error in record["disagreement"].items()]
        more = len(apart) - _MOST_LINES
        details = (*apart[:_MOST_LINES], *([f"and {more} more"] if more > 0 else []))
        if record["unchecked"] or used == "fp32":
            return Outcome(False, f"{text}: {record['unchecked'] or 'the gradients disagree'}", record, details)
        return Outcome(None if kept else True, f"{text}; {len(kept)} layers in fp32", record, details)

    def _resume(self, precision: str) -> Outcome:
        from medseg.errors import Interrupted

        device, after = self.setting.device, self.setting.size.iterations + 1
        whole = self._run(device, precision, False).weights()
        folder = self.setting.folder / f"interrupted-{precision}"
        try:
            self._train(folder, device, precision, False, stop=after)
        except Interrupted:
            pass
        else:
            return Outcome(False, f"the run did not stop after iteration {after}")
        resumed = self._train(folder, device, precision, False, resume=True)
        far = distance(resumed.weights(), whole)
        facts = {"resumed": far, "after": after, "resumed_losses": resumed.losses}
        text = f"stopped after {after} of {2 * self.setting.size.iterations}: "
        if far == 0.0:
            return Outcome(True, f"{text}the same bits", facts)
        again = self._train(self.setting.folder / f"again-{precision}", device, precision, False)
        repeated = distance(again.weights(), whole)
        facts["repeated"] = repeated
        details = (f"weights differ by {far:.1e}, those of a run that is repeated by {repeated:.1e}",)
        return Outcome(far <= _RANDOM_AGAIN * repeated, f"{text}not the same bits", facts, details)

    def _run(self, device: str, precision: str, deep: bool, role: str = "tried") -> _Training:
        folder = self.setting.folder / f"{role}-{precision}-{'deep' if deep else 'plain'}"
        if folder not in self._done:
            self._done[folder] = self._train(folder, device, precision, deep)
        return self._done[folder]

    def _train(
        self, folder: Path, device: str, precision: str, deep: bool, *, stop: int = 0, resume: bool = False
    ) -> _Training:
        from medseg.training import train_bundle

        watcher = _Losses(stop)
        train_bundle(
            "hippocampus_mri_segmentation",
            datalist=self._datalist,
            dataset_dir=self._datalist.parent,
            output=folder,
            device=device,
            overrides=self._overrides(precision, deep),
            watchers=[watcher],
            resume=resume,
        )
        record = json.loads((folder / "run.json").read_text())
        return _Training(watcher.rows, record["precision"], folder)

    def _overrides(self, precision: str, deep: bool) -> dict[str, Any]:
        size = self.setting.size
        network: dict[str, Any] = {"network_def#features": list(size.features)}
        if deep:
            heads = {"layers": ["upsamples.1", "upsamples.0"], "channels": [16, 32], "out_channels": 3}
            heads["_target_"] = "medseg.training.DeepSupervision"
            network = {"network_def": dynunet(3), "deep_supervision": heads}
        return network | {
            "precision": precision,
            "epochs": 2,
            "iterations": size.iterations,
            "val_interval": 99,
            "batch_size": 2,
            "patch_size": [size.patch] * 3,
            "spacing_mm": self._spacing_mm,
            "warm_up": 0,
            "ramp": 0,
            "adversarial_share": 0.1,
            "discriminator_def#channels": size.judge,
            "adversary#noise": 0.0,  # it is drawn on the device, and devices draw differently
        }

    @property
    def _spacing_mm(self) -> list[float]:
        return [
            8.0 * 32 / self.setting.size.patch,
            8.0 * 32 / self.setting.size.patch,
            6.0 * 32 / self.setting.size.patch,
        ]

    @cached_property
    def _datalist(self) -> Path:
        from medseg.phantom import write_dataset

        folder, side = self.setting.folder / "patients", self.setting.size.patch * 5 // 4
        form: dict[str, Any] = {"shape": (side, side, side), "spacing_mm": tuple(self._spacing_mm), "structures": 2}
        patients = write_dataset(folder, 3, seed=self.setting.seed, form="nifti", kind="mr", **form)
        items = [
            {
                "image": str(one.image.relative_to(folder)),
                "label": str(one.label.relative_to(folder)),
                "patient_id": one.patient_id,
                "fold": 0 if number == 0 else 1,
            }
            for number, one in enumerate(patients)
        ]
        (folder / "datalist.json").write_text(json.dumps({"training": items}))
        return folder / "datalist.json"


def compare_losses(
    found: Sequence[Mapping[str, float]], expected: Sequence[Mapping[str, float]], exact: bool
) -> Outcome:
    """Losses of every iteration side by side; they hold if all are finite and none is too far away."""
    if len(found) != len(expected) or not found:
        return Outcome(False, f"{len(found)} iterations instead of {len(expected)}")
    apart = [
        {name: abs(row[name] - right[name]) / abs(right[name]) for name in right}
        for row, right in zip(found, expected, strict=True)
    ]
    first, worst = max(apart[0].values()), max(max(row.values()) for row in apart)
    finite = all(math.isfinite(value) for row in found for value in row.values())
    kind = "fp32" if exact else "reduced"
    holds = finite and first <= FIRST_LOSS[kind] and worst <= LAST_LOSS[kind]
    facts = {"found": list(found), "expected": list(expected), "first": first, "worst": worst}
    text = f"first apart by {first:.1e}, at most {worst:.1e}" if finite else "a loss is not finite"
    heads = f"{'iteration':10}" + f"{'CPU':>8}{'device':>9}{'apart':>9}  " * 2
    details = [f"{'':10}{'generator':^28}{'discriminator':^28}", heads]
    for number in sorted({*range(0, len(found), math.ceil(len(found) / _MOST_LINES)), len(found) - 1}):
        row, right, far = found[number], expected[number], apart[number]
        cells = [f"{right[name]:8.4f}{row[name]:9.4f}{far[name]:9.1e}  " for name in ("generator", "discriminator")]
        details.append(f"{number + 1:^10}" + "".join(cells))
    return Outcome(holds, text, facts, tuple(line.rstrip() for line in details))


def distance(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> float:
    """Largest difference of a number, relative to the largest of its tensor."""
    worst = 0.0
    for name, right in expected.items():
        right, other = right.double(), found[name].double()
        if not torch.equal(other, right):
            far = float((other - right).abs().max() / right.abs().max().clamp_min(1e-12))
            worst = max(worst, far if math.isfinite(far) else math.inf)
    return worst


class Steps:
    """The time of a training step against MONAI's own trainer, with copies of one network, on one batch."""

    group = "Time of a training step against MONAI's SupervisedTrainer"

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def tasks(self) -> Iterator[Task]:
        """In fp32, in the fast format of the device, and against a discriminator."""
        yield Task(self.group, "fp32", lambda: self._compare("fp32"))
        yield Task(self.group, "auto", lambda: self._compare("auto"))
        yield Task(self.group, "auto, adversarial", lambda: self._compare("auto", adversarial=True))

    def _compare(self, precision: Literal["auto", "fp32"], *, adversarial: bool = False) -> Outcome:
        from monai.engines import SupervisedTrainer
        from monai.networks.nets import BasicUNet

        from medseg.training import AdversarialSegmentationTrainer

        torch.manual_seed(self.setting.seed)
        network = BasicUNet(3, 1, 3, self.setting.size.features, norm="batch")
        options: dict[str, Any] = {"adversary": self._adversary()} if adversarial else {}
        ours = AdversarialSegmentationTrainer(precision=precision, **self._parts(deepcopy(network)), **options)
        amp = precision == "auto" and ours.dtype != torch.float32 and self.setting.kind == "cuda"
        formats: dict[str, Any] = {"amp": True, "amp_kwargs": {"dtype": ours.dtype}} if amp else {}
        stock = SupervisedTrainer(**self._parts(deepcopy(network)), **formats)
        used = str(ours.dtype).removeprefix("torch.")
        other = (f"amp {used}" if amp else "float32") + (" without an opponent" if adversarial else "")
        return self._timed({"medseg": ours, "MONAI": stock}, {"medseg": used, "MONAI": other})

    def _timed(self, trainers: Mapping[str, Any], formats: Mapping[str, str]) -> Outcome:
        clocks = {name: _Clock(trainer, self.setting.device) for name, trainer in trainers.items()}
        peaks = dict.fromkeys(trainers, 0)
        for turn in range(self.setting.size.repeats + 1):
            for name, trainer in trainers.items():  # in turn, so that what else runs meets both
                if turn <= 1:
                    clocks[name].seconds.clear()  # kernels are chosen, and formats tried, in the first turn
                with peak_bytes(self.setting.device) as peak:
                    trainer.run()
                peaks[name] = max(peak)
        return beside({name: clock.seconds for name, clock in clocks.items()}, peaks, formats)

    def _parts(self, network: torch.nn.Module) -> dict[str, Any]:
        from monai.losses import DiceCELoss

        network.to(self.setting.device)
        generator = torch.Generator().manual_seed(self.setting.seed)
        shape = (2, 1, *[self.setting.size.patch] * 3)
        batch = {"image": torch.randn(shape, generator=generator), "label": torch.zeros(shape)}
        batch["label"] = torch.bucketize(batch["image"], torch.tensor([0.0, 1.0])).float()
        return {
            "device": torch.device(self.setting.device),
            "max_epochs": 1,
            "train_data_loader": [{key: value.to(self.setting.device) for key, value in batch.items()}] * 3,
            "network": network,
            "optimizer": torch.optim.AdamW(network.parameters(), lr=1e-4),
            "loss_function": DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True),
            "decollate": False,
        }

    def _adversary(self) -> Any:
        from medseg.networks import ConditionalPatchDiscriminator
        from medseg.training import AdversarialSchedule, Adversary

        judge = ConditionalPatchDiscriminator(3, channels=self.setting.size.judge, layers=2).to(self.setting.device)
        optimizer = torch.optim.AdamW(judge.parameters(), lr=1e-4)
        return Adversary(judge, optimizer, AdversarialSchedule(share=0.02))


class _Clock:
    """Seconds of every iteration of a trainer, the device's work awaited."""

    def __init__(self, trainer: Any, device: str) -> None:
        from ignite.engine import Events

        self.seconds: list[float] = []
        self._device, self._begun = device, 0.0
        trainer.add_event_handler(Events.ITERATION_STARTED, self._begin)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._end)

    def _begin(self) -> None:
        synchronised(self._device)
        self._begun = time.perf_counter()

    def _end(self) -> None:
        synchronised(self._device)
        self.seconds.append(time.perf_counter() - self._begun)
