"""The checks that :mod:`benchmarks.device_check` runs: label maps, trainings, resumed trainings.

A package that is missing costs the checks that need it and no others, so medseg is imported where it is used.
"""

from __future__ import annotations

import json
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = [
    "LARGE",
    "SMALL",
    "LabelMaps",
    "Outcome",
    "Setting",
    "Size",
    "Task",
    "Windows",
    "beside",
    "compared",
    "dynunet",
    "peak_bytes",
    "synchronised",
]

Labels = NDArray[np.integer[Any]]

SMALLEST_DICE = {"exact": 0.999, "tf32": 0.998, "reduced": 0.99}
"""Of a structure with that of the CPU, where weights are trained."""

MOST_VOXELS = {"exact": 0.001, "tf32": 0.01, "reduced": 0.03}
"""Part of them that may differ where weights are random: there, many voxels lie between two labels."""


@dataclass(frozen=True)
class Outcome:
    """What a check found.

    Attributes
    ----------
    holds
        None: the device cannot do it, or somebody should look at it, and nothing is wrong.
    text
        A line for people.
    facts
        All of it, as JSON.
    details
        Further lines.
    """

    holds: bool | None
    text: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """A check that is still to be run."""

    group: str
    name: str
    run: Callable[[], Outcome]


@dataclass(frozen=True)
class Size:
    """How much is computed.

    Attributes
    ----------
    patch, iterations
        Of the trainings, which take two epochs of that many iterations.
    features, judge
        Feature maps of MONAI's BasicUNet, and those of the discriminator's first layer.
    window, volume, wide
        Of the timed inference: side of a window, shape of the volume, feature maps.
    repeats
        Of everything that is timed.
    """

    patch: int
    iterations: int
    features: tuple[int, ...]
    judge: int
    window: int
    volume: tuple[int, int, int]
    wide: tuple[int, ...]
    repeats: int


SMALL = Size(32, 3, (8, 8, 16, 32, 32, 8), 8, 32, (64, 64, 40), (8, 16, 32, 64, 64, 8), 3)
LARGE = Size(64, 5, (16, 16, 32, 64, 128, 16), 16, 96, (192, 192, 128), (32, 32, 64, 128, 256, 32), 7)


@dataclass(frozen=True)
class Setting:
    """Where and how much: torch's name of the device, the sizes, a folder for files, and the seed of everything."""

    device: str
    size: Size
    folder: Path
    seed: int = 0

    @property
    def kind(self) -> str:
        """``cuda``, ``mps`` or ``cpu``."""
        return torch.device(self.device).type

    def rounding(self, precision: str, *, tf32: bool = True) -> str:
        """``exact``; ``tf32``: cuDNN rounds what it multiplies to 10 bits, unless told not to; or ``reduced``."""
        if precision != "fp32":
            return "reduced"
        return "tf32" if self.kind == "cuda" and tf32 and torch.backends.cudnn.allow_tf32 else "exact"

    @cached_property
    def bf16(self) -> bool:
        """Whether the device computes in bf16 rather than emulating it."""
        from medseg.cli.doctor import diagnose

        return self.kind != "cpu" or bool(diagnose().cpu["bf16_in_hardware"])


def dynunet(classes: int) -> dict[str, Any]:
    """MONAI's DynUNet, four levels, instance norms."""
    return {
        "_target_": "DynUNet",
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": classes,
        "kernel_size": [3] * 4,
        "strides": [1, 2, 2, 2],
        "upsample_kernel_size": [2] * 3,
        "filters": [8, 16, 32, 64],
        "norm_name": "instance",
    }


def write_bundle(folder: Path, window: int, spacing_mm: Sequence[float] | None, **network: Any) -> Path:
    """The shipped bundle for phantoms with other windows; with ``network`` another one, random weights of a fixed seed.

    Raises
    ------
    UsageError
        If the bundle did not come with medseg.
    """
    from monai.bundle import ConfigParser

    from medseg.bundle import Bundle

    shutil.copytree(Bundle.open("phantom_ct_segmentation").path, folder, ignore=shutil.ignore_patterns("trust", "docs"))
    path, about = folder / "configs" / "inference.json", folder / "configs" / "metadata.json"
    config, metadata = json.loads(path.read_text()), json.loads(about.read_text())
    config["inferer"] |= {"roi_size": [window] * 3, "sw_batch_size": 4}
    config["spacing_mm"] = spacing_mm or config["spacing_mm"]
    del metadata["training_range"]  # the volumes that are timed lie on grids of their own
    if network:
        config["network_def"] = network
        torch.manual_seed(0)
        weights = ConfigParser({"network": network}).get_parsed_content("network").state_dict()
        torch.save(weights, folder / "models" / "model.pt")
    path.write_text(json.dumps(config))
    about.write_text(json.dumps(metadata))
    return folder


def patient(seed: int, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float] | None = None) -> Any:
    """A synthetic CT as MONAI's MetaTensor ``(1, H, W, D)``, in RAS."""
    from monai.data import MetaTensor

    from medseg.phantom import make_patient

    phantom = make_patient(seed, shape=shape, spacing_mm=spacing_mm, lesion=False)
    image = torch.from_numpy(phantom.image[::-1, ::-1].astype(np.float32))
    return MetaTensor(image[None], affine=torch.diag(torch.tensor([*np.abs(np.diag(phantom.affine))])))


def compared(found: Labels, expected: Labels) -> dict[str, Any]:
    """``differing`` and ``voxels``, and ``dice`` of every structure by its label."""
    labels = [int(label) for label in np.union1d(np.unique(found), np.unique(expected)) if label]
    dice = {
        label: 2.0
        * float(((found == label) & (expected == label)).sum())
        / float((found == label).sum() + (expected == label).sum())
        for label in labels
    }
    return {"differing": int((found != expected).sum()), "voxels": int(expected.size), "dice": dice}


class LabelMaps:
    """Label maps of the device against those of the CPU in fp32, for trained and for random weights."""

    group = "Label maps against those of the CPU in fp32"

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self._bundles: dict[str, Path] = {}
        self._expected: dict[tuple[str, tuple[str, ...]], Labels] = {}

    def tasks(self) -> Iterator[Task]:
        """One per network and way to run it."""
        for network in ("BasicUNet", "DynUNet"):
            for precision, tf32, mirror in self._ways():
                words = [network, precision, "mirrored" if mirror else "", "" if tf32 else "no TF32"]
                name = " ".join(word for word in words if word)
                yield Task(self.group, name, partial(self._check, network, precision, tf32, mirror))

    def _ways(self) -> Iterator[tuple[str, bool, tuple[str, ...]]]:
        yield "fp32", True, ()
        if self.setting.kind == "cuda":
            yield "fp32", False, ()
            yield "auto", True, ()
        yield "bf16", True, ()
        yield "fp32", True, ("ap", "is")
        yield "auto" if self.setting.kind == "cuda" else "bf16", True, ("ap", "is")

    def _check(self, network: str, precision: str, tf32: bool, mirror: tuple[str, ...]) -> Outcome:
        if precision == "bf16" and not self.setting.bf16:
            return Outcome(None, "this processor only emulates bf16")
        key = (network, mirror)
        if key not in self._expected:
            self._expected[key] = self._labels(network, "cpu", "fp32", mirror)
        with tf32_in_convolutions(tf32):
            found = self._labels(network, self.setting.device, precision, mirror)
        facts = compared(found, self._expected[key])
        kind = self.setting.rounding(precision, tf32=tf32)
        part = facts["differing"] / facts["voxels"]
        worst = min(facts["dice"].values(), default=0.0)
        holds = worst >= SMALLEST_DICE[kind] if network == "BasicUNet" else part <= MOST_VOXELS[kind]
        weights = "random weights, " if network == "DynUNet" else ""
        told = " ".join(f"{value:.5f}" for value in facts["dice"].values())
        text = f"{facts['differing']} of {facts['voxels']} voxels differ"
        return Outcome(holds and bool(facts["dice"]), text, facts, (f"{weights}Dice {told or 'none: no structure'}",))

    def _labels(self, network: str, device: str, precision: str, mirror: tuple[str, ...]) -> Labels:
        from medseg.inference import Predictor

        predictor = Predictor(self._bundle(network), device, precision, mirror=mirror)
        labels: Labels = predictor.predict(patient(self.setting.seed, (64, 64, 40))).label_map
        return labels

    def _bundle(self, network: str) -> Path:
        if network not in self._bundles:
            other = dynunet(5) if network == "DynUNet" else {}
            self._bundles[network] = write_bundle(self.setting.folder / network, 32, None, **other)
        return self._bundles[network]


@contextmanager
def tf32_in_convolutions(allowed: bool) -> Iterator[None]:
    """Whether cuDNN may round what it multiplies to 10 bits, which torch allows unless told not to."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = before and allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


class Windows:
    """The time of a window, stitching and labelling included, against MONAI's inferer on the same prepared volume."""

    group = "Time of a window against MONAI's SlidingWindowInferer"

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def tasks(self) -> Iterator[Task]:
        """In fp32, and in the fast format of the device."""
        for precision in {"cuda": ("fp32", "auto", "bf16"), "cpu": ("fp32", "bf16")}.get(self.setting.kind, ("fp32",)):
            yield Task(self.group, precision, partial(self._compare, precision))

    def _compare(self, precision: str) -> Outcome:
        from medseg.inference import Predictor

        if precision == "bf16" and not self.setting.bf16:
            return Outcome(None, "this processor only emulates bf16")
        image, predictor = self._image, Predictor(self._bundle, self.setting.device, precision)
        stock = _Stock(predictor.prepare(image), self._network, self.setting, precision)
        labels: dict[str, Labels] = {}
        seconds: dict[str, list[float]] = {"medseg": [], "MONAI": []}
        peaks = dict.fromkeys(seconds, 0)
        for turn in range(self.setting.size.repeats + 1):
            with peak_bytes(self.setting.device) as peak:
                prediction = predictor.predict(image)
            peaks["medseg"], labels["medseg"] = max(peak), prediction.label_map
            taken = prediction.seconds["network"] + prediction.seconds["restore"]
            with peak_bytes(self.setting.device) as peak:
                begun = time.perf_counter()
                labels["MONAI"] = stock()
                other = time.perf_counter() - begun
            peaks["MONAI"] = max(peak)
            if turn:  # kernels are chosen in the first turn
                seconds["medseg"].append(taken / stock.windows)
                seconds["MONAI"].append(other / stock.windows)
        facts = compared(labels["medseg"], labels["MONAI"])
        part = facts["differing"] / facts["voxels"]
        told = f"{stock.windows} windows of {self.setting.size.window}³, {part:.2%} of the voxels differ"
        holds = part <= MOST_VOXELS[self.setting.rounding(precision)]
        return beside(seconds, peaks, {}, (told,), facts, holds=holds)

    @cached_property
    def _bundle(self) -> Path:
        network = {"_target_": "BasicUNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 5}
        network |= {"features": list(self.setting.size.wide), "norm": "batch"}
        return write_bundle(self.setting.folder / "timed", self.setting.size.window, [2.0] * 3, **network)

    @cached_property
    def _network(self) -> torch.nn.Module:
        from medseg.bundle import Bundle

        return Bundle.open(self._bundle).load_network(self.setting.device).eval()

    @cached_property
    def _image(self) -> Any:
        return patient(self.setting.seed, self.setting.size.volume, (2.0, 2.0, 2.0))


class _Stock:
    """MONAI's own inferer, volume and stitched scores on the device, then the largest class of each voxel."""

    def __init__(self, prepared: Any, network: torch.nn.Module, setting: Setting, precision: str) -> None:
        from monai.inferers import SlidingWindowInferer

        self.volume, self.network, self.setting = prepared.as_tensor()[None].float(), network, setting
        self.inferer = SlidingWindowInferer([setting.size.window] * 3, sw_batch_size=4, overlap=0.5, mode="gaussian")
        formats = {"auto": torch.float16, "bf16": torch.bfloat16}
        self.format = formats.get(precision, torch.float32)
        self.windows = 0

    @torch.inference_mode()
    def __call__(self) -> Labels:
        self.windows = 0
        reduced = self.format != torch.float32
        with torch.autocast(self.setting.kind, self.format if reduced else None, enabled=reduced):
            scores = self.inferer(self.volume.to(self.setting.device), self._run)
        labels: Labels = scores[0].argmax(dim=0).to("cpu", torch.uint8).numpy()
        return labels

    def _run(self, batch: torch.Tensor) -> Any:
        self.windows += len(batch)
        return self.network(batch)


def synchronised(device: str) -> None:
    """Wait until the device has done what it was given."""
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.synchronize(device)
    elif kind == "mps":
        torch.mps.synchronize()


@contextmanager
def peak_bytes(device: str) -> Iterator[list[int]]:
    """A list that holds, afterwards, how much more of the device's memory than before was taken; 0 where unknown."""
    found = [0]
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device) if cuda else 0
    yield found
    if cuda:
        torch.cuda.synchronize(device)
        found.append(torch.cuda.max_memory_allocated(device) - before)


def beside(
    seconds: Mapping[str, Sequence[float]],
    peaks: Mapping[str, int],
    formats: Mapping[str, str],
    details: tuple[str, ...] = (),
    facts: Mapping[str, Any] | None = None,
    *,
    holds: bool = True,
) -> Outcome:
    """Medians of medseg and MONAI, their ratio, and the peak of the device's memory."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = medians["MONAI"] / medians["medseg"]
    text = "medseg {medseg:.1f}, MONAI {MONAI:.1f} ".format(**{n: 1000.0 * m for n, m in medians.items()})
    told = {name: f"{name} {formats[name]}" for name in formats}
    memory = {name: f"{name} {peak / 2**20:.0f} MiB" for name, peak in peaks.items() if peak}
    further = [", ".join(words.values()) for words in (told, memory) if words]
    all_facts = {"medians_s": medians, "ratio": ratio, "peak_bytes": dict(peaks), "formats": dict(formats)}
    all_facts |= {"seconds": {name: list(values) for name, values in seconds.items()}, **(facts or {})}
    return Outcome(holds, f"{text}ms: {ratio:.2f}×", all_facts, (*further, *details))
