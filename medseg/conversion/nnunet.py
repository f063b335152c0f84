"""A trained nnU-Net v2 model as a bundle that labels as nnU-Net does. Nothing of nnU-Net is needed, or executed.

Its axis order (slices first, then as the plans transpose) becomes the orientation that the preprocessing makes, so that
weights, windows and voxel sizes stay as they are. That takes the orientation of the training images, which the
model's folder does not state.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata as packages
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg.bundle import require_trusted
from medseg.conversion.imported import Imported, ImportOptions, describe, free_place, name_of, template, write_texts
from medseg.conversion.nnunet_network import converted, read_architecture
from medseg.conversion.nnunet_source import Checkpoint, Model, is_nnunet, open_model, read_checkpoint
from medseg.errors import BundleError, UsageError
from medseg.files import atomic_path, prepare_folder, sha256_file, whole_or_gone, write_text
from medseg.ingest.image_files import read_image_grid
from medseg.json_shape import NUMBER, misfit
from medseg.labels.scheme import LabelScheme

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["import_nnunet", "is_nnunet"]

_NAME = re.compile(r"[a-z0-9]+(_[a-z0-9]+)+")
_ENDS = ({"L", "R"}, {"A", "P"}, {"S", "I"})
_AXIS_NAMES = {"L": "lr", "R": "lr", "A": "ap", "P": "ap", "S": "is", "I": "is"}
_REORIENTS = "NibabelIOWithReorient"
_READERS = ("SimpleITKIO", "NibabelIO", _REORIENTS)
_RESAMPLING = {
    "resample_data_or_seg_to_shape": "resize",
    "resample_torch_fornnunet": "torch",
    "no_resampling_hack": "none",
}
_MR = re.compile(r"mri?|t1\w*|t2\w*|flair|adc|dwi|dce\w*|pd|swi|.*\bmri?\b.*", re.IGNORECASE)
_ABOVE_HALF = 1.3e-7
"""From this score on the sigmoid, in single precision, is above 0.5."""
_LICENCE = """The model's folder states no licence: ask its authors before you share it, or use it for more than trying.
{stated}"""


def import_nnunet(source: Path, output: Path, options: ImportOptions) -> Imported:
    """Make the bundle ``output/NAME`` of a trained model: a folder of results, a tree with one, or its exported zip.

    Raises ``UsageError`` if the orientation of the training images is not told, or the source holds several models;
    ``BundleError`` or ``UntrustedBundle`` if the model cannot be read, or is none that medseg runs: 2D, a cascade,
    another network or normalisation.
    """
    with tempfile.TemporaryDirectory(prefix=".nnunet-", dir=output) as scratch:
        model, notes = open_model(source, Path(scratch))
        first = read_checkpoint(model.checkpoints[0])
        plan = _Plan(model, first, _orientation(model, options))
        form = "the form <anatomy>_<modality>_<task>, lower case"
        folder = free_place(output, options.name or plan.default_name, _NAME, form)
        with whole_or_gone(folder):
            _write(folder, plan)
            require_trusted(folder, "infer")  # names and texts of the source stand in the bundle
    return Imported(folder, plan.kind, (*notes, *plan.notes))


def _orientation(model: Model, options: ImportOptions) -> str:
    """Three letters, as ``RAS``: to which ends of the patient the axes of the training images' files ran."""
    if options.orientation is None and options.like is not None:
        return read_image_grid(options.like)[0].orientation
    if options.orientation is None and model.plans.get("image_reader_writer") == _REORIENTS:
        return "RAS"
    given = (options.orientation or "").upper()
    if not given:
        raise UsageError(
            "nnU-Net reads arrays as they lie on disk, and the folder of a model does not say to which side of the"
            " patient their axes ran: an image that lies otherwise would be labelled mirrored, and nothing would show."
            " Give --orientation (RAS, LPS, ...), or --like with one of the images that it was trained on"
        )
    if len(given) != 3 or any(not any(letter in ends for letter in given) for ends in _ENDS):
        raise UsageError(
            f"--orientation {given[:20]}: expected one letter each of L/R, A/P and S/I, such as RAS or LPS"
        )
    return given


@dataclass(frozen=True)
class _Plan:
    """What a model says of its configuration, checked, in medseg's terms."""

    model: Model
    checkpoint: Checkpoint
    orientation: str

    def __post_init__(self) -> None:
        """Refuse what would be run differently."""
        plans, name, settings = self.model.plans, self.checkpoint.configuration, self.settings
        if settings.get("previous_stage"):
            raise BundleError(f"{name} is the second stage of a cascade: it needs the label maps of the first; import"
                              " 3d_fullres or 3d_lowres instead")  # fmt: skip
        known = {
            "preprocessor_name": ("DefaultPreprocessor",),
            "label_manager": ("LabelManager",),
            "image_reader_writer": _READERS,
        }
        for key, values in known.items():
            found = {**plans, **settings}.get(key, values[0])
            if found not in values:
                raise BundleError(f"{key} of the plans is {str(found)[:80]!r}, expected {' or '.join(values)}: medseg"
                                  " does not know what another one does")  # fmt: skip
        axes = len(settings["patch_size"])
        if sorted(plans["transpose_forward"]) != [0, 1, 2] or not 2 <= axes == len(settings["spacing"]) <= 3:
            raise BundleError("plans.json does not describe three axes, or two of slices; the plans are damaged")

    @cached_property
    def settings(self) -> dict[str, Any]:
        return self.model.configuration(self.checkpoint.configuration)

    @property
    def patch(self) -> list[int]:
        """Size of a window; of a 2D network it is one slice thick."""
        size: list[int] = self.settings["patch_size"]
        return [1] * (3 - len(size)) + size

    @property
    def default_name(self) -> str:
        stated = self.model.plans.get("dataset_name") or "nnunet_model"
        return name_of(f"{stated[:80]}_{self.checkpoint.configuration[:40]}")

    @property
    def kind(self) -> str:
        """What the source was."""
        stated = [str(self.model.plans.get(key, "")) for key in ("dataset_name", "plans_name")]
        parts = [
            *stated,
            self.checkpoint.trainer,
            self.checkpoint.configuration,
            f"{len(self.model.checkpoints)} folds",
        ]
        return f"an nnU-Net v2 model ({', '.join(part[:80] for part in parts if part)})"

    @property
    def axcodes(self) -> str:
        """The orientation of the network's grid: files' axes backwards, then as the plans transpose them."""
        return "".join(self.orientation[::-1][axis] for axis in self.model.plans["transpose_forward"])

    @property
    def mirror(self) -> list[str]:
        """The axes of the patient over whose mirrored views nnU-Net averages."""
        flat = 3 - len(self.settings["patch_size"])  # whose axes are counted within the slice
        return [_AXIS_NAMES[self.axcodes[axis + flat]] for axis in self.checkpoint.mirror_axes if axis + flat < 3]

    @cached_property
    def scheme(self) -> LabelScheme:
        dataset = self.model.dataset
        try:
            scheme = LabelScheme.of(
                {key: dataset.get(key) for key in ("labels", "regions_class_order")}, "dataset.json"
            )
        except UsageError as error:
            raise BundleError(str(error)) from error
        if not scheme.regions and sorted({0, *scheme.names}) != list(range(len({0, *scheme.names}))):
            raise BundleError(f"dataset.json labels {sorted(scheme.names)}, expected 0, 1, 2 … without gaps")
        return scheme

    @property
    def channel_names(self) -> dict[int, str]:
        """Names of the scores' channels."""
        return (
            dict(enumerate(self.scheme.regions)) if self.scheme.regions else {0: "background", **self.scheme.structures}
        )

    @property
    def schemes(self) -> list[dict[str, Any]]:
        """Normalisation per channel."""
        names, masked = self.settings["normalization_schemes"], self.settings["use_mask_for_norm"]
        if not 0 < len(self.model.channels) == len(names) == len(masked):
            raise BundleError(
                f"dataset.json names {len(self.model.channels)} channels, plans.json normalises {len(names)}; both"
                " belong to one model"
            )
        keys = ("foreground_intensity_properties_per_channel", "foreground_intensity_properties_by_modality")
        facts: Mapping[str, Any] = next((self.model.plans[key] for key in keys if self.model.plans.get(key)), {})
        pairs = enumerate(zip(names, masked, strict=True))
        return [_scheme(name, flag, facts.get(str(number), {})) for number, (name, flag) in pairs]

    def resampling(self, what: str, order: int) -> dict[str, Any]:
        """Arguments of :class:`medseg.transforms.nnunet.Resampling` for ``data`` or ``probabilities``."""
        name = self.settings.get(f"resampling_fn_{what}", "resample_data_or_seg_to_shape")
        if name not in _RESAMPLING:
            raise BundleError(f"resampling_fn_{what} of the plans is {name[:80]!r}, expected {', '.join(_RESAMPLING)}")
        given = self.settings.get(f"resampling_fn_{what}_kwargs") or {}
        mode_z = given.get("aniso_axis_mode", "nearest-exact")
        if given.get("mode", "linear") != "linear" or mode_z not in {"nearest-exact", "nearest", "linear"}:
            modes = f"{given.get('mode')!r} and {mode_z[:40]!r}"
            raise BundleError(f"resampling_fn_{what}_kwargs asks for {modes}, expected linear and nearest-exact")
        orders = [given.get("order", order), given.get("order_z", 0)]
        if any(value not in range(6) for value in orders):
            raise BundleError(f"resampling_fn_{what}_kwargs asks for splines of order {orders}, expected 0 to 5")
        return {
            "by": _RESAMPLING[name],
            "order": int(orders[0]),
            "order_z": int(orders[1]),
            "separate_z": given.get("force_separate_z"),
            "threshold": float(given.get("separate_z_anisotropy_threshold", 3)),
            "mode_z": mode_z,
        }

    @property
    def notes(self) -> tuple[str, ...]:
        """What whoever uses the bundle should know."""
        notes = [f"images are turned to {self.axcodes}, the origin's axes for training images that lay as"
                 f" {self.orientation}"]  # fmt: skip
        if self.mirror:
            notes.append(f"nnU-Net averages mirrored views by default: --mirror {','.join(self.mirror)} does, too")
        painted = (self.scheme.paints[name] for name in self.scheme.regions)
        values = [0, *painted]
        in_order = [values[bits.bit_length()] for bits in range(len(self.scheme.table))]
        if self.scheme.regions and in_order != list(self.scheme.table):
            notes.append("where regions overlap without one holding the other, a voxel gets the value of both; nnU-Net"
                         " paints the later one's")  # fmt: skip
        if not self.checkpoint.trainer.startswith("nnUNetTrainer"):
            notes.append(
                f"the trainer {self.checkpoint.trainer[:80]} is not one of nnU-Net's: what else it did is not known"
            )
        return tuple(notes)


def _scheme(name: str, masked: bool, facts: Mapping[str, Any]) -> dict[str, Any]:
    from medseg.transforms.nnunet import SCHEMES

    if name not in SCHEMES:
        raise BundleError(f"the plans normalise by {name[:80]!r}, expected one of {', '.join(SCHEMES)}")
    if name != "CTNormalization":
        return {"name": name, "masked": masked} if name == "ZScoreNormalization" else {"name": name}
    keys = {"low": "percentile_00_5", "high": "percentile_99_5", "mean": "mean", "std": "std"}
    if wrong := misfit(facts, {f"{key}!": NUMBER for key in keys.values()}, "intensities"):
        raise BundleError(f"plans.json: {wrong}, which CTNormalization needs; it is damaged")
    return {"name": name, **{key: float(facts[stated]) for key, stated in keys.items()}}


# --- writing the bundle -----------------------------------------------------------------------------------------------


def _write(folder: Path, plan: _Plan) -> None:
    import torch

    architecture = read_architecture(plan.settings, f"plans.json, configuration {plan.checkpoint.configuration}")
    channels, outputs = len(plan.model.channels), len(plan.channel_names)
    definition: dict[str, Any] = {}
    weights: dict[str, Tensor] = {}
    for number, file in enumerate(plan.model.checkpoints):
        given = plan.checkpoint if number == 0 else read_checkpoint(file)
        where = f"{file.parent.name}/{file.name}"
        if given.configuration != plan.checkpoint.configuration:
            raise BundleError(f"{where} is of the configuration {given.configuration[:80]}, the first fold of another")
        definition, state = converted(given.state, architecture, channels, outputs, where)
        prefix = f"networks.{number}." if len(plan.model.checkpoints) > 1 else ""
        if architecture.dimensions == 2:
            definition, prefix = {"_target_": "medseg.networks.SliceWise", "network": definition}, f"{prefix}network."
        weights |= {f"{prefix}{key}": value for key, value in state.items()}
    if (count := len(plan.model.checkpoints)) > 1:
        definition = {"_target_": "medseg.networks.MeanOf", "networks": [definition] * count}
    with atomic_path(prepare_folder(folder / "models") / "model.pt") as partial:
        torch.save(weights, partial)
    stated = plan.model.dataset.get("licence") or plan.model.dataset.get("license")
    said = f"dataset.json says of the data: {stated}\n" if stated else ""
    licence = _LICENCE.format(stated=said)
    write_texts(folder, _inference(plan, definition), _metadata(folder.name, plan), licence, plan.notes)
    write_text(folder / "docs" / "data_license.txt", said or "dataset.json names no licence.\n")


def _inference(plan: _Plan, network: Mapping[str, Any]) -> dict[str, Any]:
    """The config; a file is a case, several channels are ``CASE_0000``, ``CASE_0001`` …, as nnU-Net names them."""
    config = template("inference")
    spacing = plan.settings["spacing"]
    channels = len(plan.model.channels)
    if channels > 1:
        several = "[path.replace('_0000.', '_000' + str(number) + '.') for number in range(@channels)]"
        listed = config["datalist"].replace("'image': path", f"'image': {several}")
        config |= {"images": "*_0000.nii.gz", "datalist": listed}
    grids = {"spacing": [None] * (3 - len(spacing)) + spacing, "schemes": plan.schemes}
    ways = {"forth": plan.resampling("data", 3), "back": plan.resampling("probabilities", 1)}
    config["preprocessing"]["transforms"] += [
        {"_target_": "Orientationd", "keys": "image", "axcodes": plan.axcodes, "labels": None},
        {"_target_": "medseg.transforms.NNUNetPreprocessd", "keys": "image", **grids, **ways},
    ]
    inferer = {"_target_": "medseg.networks.EvenWindowInferer", "roi_size": plan.patch}
    config |= {"channels": channels, "network_def": network, "inferer": inferer}
    labels = {"threshold": _ABOVE_HALF} if plan.scheme.regions else {"argmax": True}
    config["postprocessing"]["transforms"][1] |= labels
    return config


def _metadata(name: str, plan: _Plan) -> dict[str, Any]:
    dataset, modality = plan.model.dataset, _modality(plan.model.channels)
    channels = dict(enumerate(plan.model.channels))
    metadata = describe(name, plan.kind, channels, plan.channel_names, plan.patch, modality)
    metadata["network_data_format"]["outputs"]["pred"] |= plan.scheme.to_json() if plan.scheme.regions else {}
    metadata["required_packages_version"]["medseg"] = packages.version("medseg")
    hashed = {path.relative_to(plan.model.folder).as_posix(): sha256_file(path) for path in plan.model.files}
    metadata["imported"] |= {"mirror": plan.mirror, "orientation": plan.orientation, "sha256": hashed}
    return metadata | {
        "task": f"Segmentation of {', '.join(plan.scheme.structures.values())}",
        "description": dataset.get("description") or metadata["description"],
        "data_source": dataset.get("reference") or dataset.get("name") or "not stated",
        "references": ["Isensee et al., Nat Methods 18, 203-211 (2021)"],
    }


def _modality(channels: Sequence[str]) -> str:
    """A DICOM code where the names tell one."""
    names = {name.strip() for name in channels}
    if names <= {"CT"}:
        return "CT"
    return "MR" if all(_MR.fullmatch(name) for name in names) else "/".join(sorted(names))[:64]
